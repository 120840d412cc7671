"""A process that can do nothing but compute: no sockets, no other programs, no files changed.

A model is a program (TensorFlow's SECURITY.md): one that takes over the process which examines it
must not reach the network, the daemon, its settings' passwords over a socket, or the store. A
filter on system calls (seccomp(2), PR_SET_SECCOMP with no_new_privs) needs no privilege and no
namespace, which the service may not make. What is denied fails with an error, so libraries that
only try go on. What was opened before stays open. Reading files is not denied.

Numbers: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h for arm64,
arch/arm/tools/syscall.tbl.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2  # linux/prctl.h, seccomp.h
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # linux/seccomp.h: SECCOMP_RET_…
LOAD, JUMP_EQUAL, JUMP_SET, JUMP_ABOVE, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06  # linux/bpf_common.h
# struct seccomp_data: number, architecture, instruction pointer, arguments of 8 bytes.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
AF_NETLINK = 16
CLONE_THREAD = 0x10000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
X32 = 0x40000000  # the other numbers of x86-64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    audit: int  # linux/audit.h: AUDIT_ARCH_…
    socket: int
    clone: int
    tgkill: int
    open: int | None  # flags are its second argument
    openat: int  # its third
    never: tuple[int, ...]  # programs, processes, others' memory, signals to others
    changes: tuple[int, ...]  # to what lies on disk


# On all of them: io_uring_setup, pidfd_getfd, pidfd_send_signal; openat2, clone3 are denied as if
# the kernel had none, as their arguments lie in memory.
_COMMON = (425, 438, 424)
_ABSENT = (437, 435)
# In this order. never: fork, vfork, execve, execveat, ptrace, process_vm_readv, process_vm_writev,
# kill, tkill, bpf, perf_event_open, unshare, setns. changes: creat, unlink, unlinkat, rename,
# renameat, renameat2, mkdir, mkdirat, rmdir, link, linkat, symlink, symlinkat, truncate, mknod,
# mknodat, chmod, fchmodat, chown, lchown, fchownat.
MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        socket=41, clone=56, tgkill=234, open=2, openat=257,
        never=(57, 58, 59, 322, 101, 310, 311, 62, 200, 321, 298, 272, 308),
        changes=(85, 87, 263, 82, 264, 316, 83, 258, 84, 86, 265, 88, 266, 76, 133, 259, 90, 268,
                 92, 94, 260),
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        socket=198, clone=220, tgkill=131, open=None, openat=56,
        never=(221, 281, 117, 270, 271, 129, 130, 280, 241, 97, 268),
        changes=(35, 38, 276, 34, 37, 36, 45, 33, 53, 54),
    ),
    "armv7l": _Machine(
        audit=0x40000028,
        socket=281, clone=120, tgkill=268, open=5, openat=322,
        never=(2, 190, 11, 387, 26, 376, 377, 37, 238, 386, 364, 337, 375),
        # And with truncate64, chown32, lchown32.
        changes=(8, 10, 328, 38, 329, 382, 39, 323, 40, 9, 330, 83, 331, 92, 193, 14, 324, 15, 333,
                 182, 16, 325, 212, 198),
    ),
}  # fmt: skip


def seal(*, may_write: bool) -> str | None:
    """Give up what computing does not need, for good; before a library starts threads.

    may_write: also open files for writing and netlink sockets, as libraries of accelerators do

    Returns why it could not be done, on a kernel without seccomp; None: it is done.
    """
    name = platform.machine()
    if struct.calcsize("P") == 4:  # 32-bit programs on 64-bit kernels have numbers of their own
        name = "armv7l" if name.startswith(("arm", "aarch64")) else f"32 bits of {name}"
    machine = MACHINES.get(name)
    if machine is None:
        return f"no list of system calls for {name}"
    return _install(program(machine, may_write=may_write, pid=os.getpid()))


def program(machine: _Machine, *, may_write: bool, pid: int) -> list[tuple[int, int, int, int]]:
    """Return the filter: (code, jump if true, jump if false, operand) each."""
    steps = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, machine.audit),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    if machine is MACHINES["x86_64"]:
        steps += [(JUMP_ABOVE, 0, 1, X32), _deny(errno.ENOSYS)]
    denied = (*machine.never, *_COMMON, *(() if may_write else machine.changes))
    steps += _deny_all(denied, errno.EPERM)
    steps += _deny_all(_ABSENT, errno.ENOSYS)
    # An argument decides: (number, argument, test, operand, whether a true test allows it).
    steps += _judged(machine.clone, 0, JUMP_SET, CLONE_THREAD, allows=True)
    steps += _judged(machine.tgkill, 0, JUMP_EQUAL, pid, allows=True)
    # There is no family 2**32 - 1, so nothing is allowed.
    family = AF_NETLINK if may_write else 0xFFFFFFFF
    steps += _judged(machine.socket, 0, JUMP_EQUAL, family, allows=True)
    if not may_write:
        steps += _judged(machine.openat, 2, JUMP_SET, WRITING, allows=False)
        if machine.open is not None:
            steps += _judged(machine.open, 1, JUMP_SET, WRITING, allows=False)
    return [*steps, (RETURN, 0, 0, ALLOW)]


def _deny(number: int) -> tuple[int, int, int, int]:
    return RETURN, 0, 0, ERRNO | number


def _deny_all(calls: Iterable[int], number: int) -> list[tuple[int, int, int, int]]:
    return [step for call in calls for step in ((JUMP_EQUAL, 0, 1, call), _deny(number))]


def _judged(
    call: int, argument: int, test: int, operand: int, *, allows: bool
) -> list[tuple[int, int, int, int]]:
    """Return the steps for a call of which an argument decides; its lower half, little-endian."""
    allow, deny = (RETURN, 0, 0, ALLOW), _deny(errno.EPERM)
    return [
        (JUMP_EQUAL, 0, 4, call),
        (LOAD, 0, 0, ARGUMENTS + 8 * argument),
        (test, 0, 1, operand),
        allow if allows else deny,
        deny if allows else allow,
    ]


def _install(steps: list[tuple[int, int, int, int]]) -> str | None:
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    memory = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of steps, and where they are.
    head = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(memory)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return os.strerror(ctypes.get_errno())
    address = ctypes.c_void_p(ctypes.addressof(head))
    if prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, address, 0, 0) != 0:
        return os.strerror(ctypes.get_errno())
    return None
