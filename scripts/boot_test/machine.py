"""A machine for one test: systemd as process 1 of namespaces of its own, over a throwaway root.

It has this machine's programs and nothing else of it: not its services, network, processes or
devices. Everything it writes is in memory and gone with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
CGROUPS = Path("/sys/fs/cgroup")
BOOTS_WITHIN_S = 60.0

Hierarchy = Literal["unified", "legacy"]


class CannotBootError(Exception):
    """This machine does not let us; the message says why."""


def find_hierarchy(hierarchy: Hierarchy) -> list[Path]:
    """Return where the cgroups of a boot must lie: one folder, or one per legacy controller.

    Raises:
        CannotBootError: there is none of this kind.
    """
    if hierarchy == "legacy":
        # All of them, as systemd uses whatever the kernel lists in /proc/cgroups.
        found = sorted(path.parent for path in CGROUPS.glob("*/cgroup.procs"))
        needed = CGROUPS / "memory" / "cgroup.procs"
    elif (CGROUPS / "cgroup.controllers").exists():
        found = [CGROUPS]
        needed = CGROUPS / "cgroup.procs"
    else:
        found = [CGROUPS / "unified"]
        needed = CGROUPS / "unified" / "cgroup.procs"
    if not needed.exists():
        raise CannotBootError(f"no {hierarchy} cgroup hierarchy here: {needed} is missing")
    return found


def has_memory_controller() -> bool:
    """Return whether the unified hierarchy can limit memory here."""
    try:
        path = find_hierarchy("unified")[0]
        return "memory" in (path / "cgroup.controllers").read_text().split()
    except CannotBootError:
        return False


class Machine:
    """Use it as a context: it is booted on entry and gone afterwards."""

    def __init__(self, hierarchy: Hierarchy = "unified") -> None:
        self.hierarchy = hierarchy
        self._cgroups = [path / f"boot-test-{os.getpid()}" for path in find_hierarchy(hierarchy)]
        self._work = Path(tempfile.mkdtemp(prefix="boot-test-"))
        self._outer: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Machine:  # noqa: PYI034 - Self came with Python 3.11
        try:
            self._boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _boot(self) -> None:
        for cgroup in self._cgroups:
            cgroup.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems"):  # nothing may join it before they are set
                if (cgroup / name).exists():
                    (cgroup / name).write_text((cgroup.parent / name).read_text())
        # Into its own cgroups first, so that what is its root inside is a branch outside.
        enter = "for cgroup; do echo $$ >$cgroup/cgroup.procs; done; exec setpriv --pdeathsig KILL"
        flags = "unshare --pid --mount --fork --cgroup --uts --ipc --net --kill-child"
        environment = {
            **os.environ,
            "WORK": str(self._work),
            "PROJECT": str(PROJECT),
            "PYTHON_PREFIX": sys.base_prefix,
            "SITE_PACKAGES": sysconfig.get_path("purelib"),
            "VERSION": f"{sys.version_info.major}.{sys.version_info.minor}",
            "HIERARCHY": self.hierarchy,
        }
        log = self._work.with_suffix(".log")
        with log.open("wb") as out:
            self._outer = subprocess.Popen(
                ["bash", "-c", f"{enter} {flags} {HERE / 'stage'}", "boot-test", *self._cgroups],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
            )
        try:
            wait_until(self._is_up, BOOTS_WITHIN_S, "systemd is up")
        except TimeoutError as error:
            said = log.read_text(errors="replace").strip()
            raise CannotBootError(said or str(error)) from error
        finally:
            log.unlink(missing_ok=True)

    def _is_up(self) -> bool:
        assert self._outer is not None
        if self._outer.poll() is not None:
            raise TimeoutError("systemd has ended")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self._init = int((children.read_text().split() or ["0"])[0])
        if not self._init or Path(f"/proc/{self._init}/comm").read_text() != "systemd\n":
            return False
        return self.run("systemctl", "is-active", "boot-test.target").stdout == "active\n"

    def __exit__(self, *_: object) -> None:
        if self._outer is not None:
            if self._init:
                with suppress(ProcessLookupError):
                    os.kill(self._init, signal.SIGKILL)  # the kernel ends all the others with it
            self._outer.kill()
            self._outer.wait()
        for cgroup in self._cgroups:
            remove_cgroup(cgroup)
        shutil.rmtree(self._work, ignore_errors=True)

    def run(
        self, *command: str, given: str | None = None, check: bool = False, within_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, as root."""
        return subprocess.run(
            ["nsenter", f"--target={self._init}", "--all", "--", *command],
            input=given,
            stdin=None if given is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=within_s,
            check=check,
        )

    def write(self, path: str, text: str) -> None:
        """Write a file in the machine."""
        self.run("mkdir", "-p", str(Path(path).parent), check=True)
        self.run("tee", path, given=text, check=True)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def systemctl(self, *words: str) -> None:
        """Have systemd do something.

        Raises:
            RuntimeError: with what it and the unit have said.
        """
        done = self.run("systemctl", *words)
        if done.returncode:
            said = self.run("journalctl", "-n", "30", "--no-pager", "-o", "cat").stdout
            raise RuntimeError(f"systemctl {' '.join(words)}: {done.stderr.strip()}\n{said}")


def remove_cgroup(path: Path) -> None:
    """Remove a cgroup and all below it; the kernel needs a moment to bury its processes."""
    deadline = time.monotonic() + 10.0
    while path.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(path, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()
        time.sleep(0.05)


def wait_until(is_so: Callable[[], object], within_s: float, what: str) -> float:
    """Wait until something is so; return how many seconds that took.

    Raises:
        TimeoutError: it never was.
    """
    start = time.monotonic()
    while not is_so():
        if time.monotonic() - start > within_s:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - start
