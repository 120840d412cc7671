"""Questions to a Raspberry Pi's firmware by its mailbox, without starting a program each time.

What `vcgencmd` does itself (raspberrypi/utils, vcgencmd.c): a property message with one tag is
handed to the kernel's vcio driver by one ioctl, and the answer comes back in the same memory.
Newer kernels have a second device that takes questions alone, and no orders
(raspberrypi/linux, drivers/char/broadcom/vcio.c). Both are of the group `video`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from agent.sensors.commands import Ask

DEVICES = ("dev/vcio_gencmd", "dev/vcio")
# _IOWR(100, 0, char *): direction, size of a pointer, type, number (asm-generic/ioctl.h).
PROPERTY = 3 << 30 | struct.calcsize("P") << 16 | 100 << 8
GET_GENCMD_RESULT = 0x00030080
SUCCEEDED = 0x80000000
# Size of the message, request or status, tag, size of the tag's buffer, size of the answer, error.
HEAD = struct.Struct("=6I")
MOST_TEXT = 1024
END_TAG = bytes(4)
# How the firmware says that it does not know a command; vcgencmd prints the same text.
REFUSED = ("error=", "error_msg=")


class Mailbox:
    """The firmware's mailbox below a root; where there is none, every answer is None."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._descriptor: int | None = None

    def answer(self, command: str) -> str | None:
        """Return what the firmware answers, such as `throttled=0x0` to `get_throttled`."""
        descriptor = self._open()
        if descriptor is None:
            return None
        message = encode(command)
        try:
            # Longer than 1024 bytes, so it is handed over itself, and other threads run meanwhile.
            fcntl.ioctl(descriptor, PROPERTY, message, True)
        except OSError:
            self.close()
            return None
        return decode(message)

    def close(self) -> None:
        """Let go of the device."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _open(self) -> int | None:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        if self._descriptor is None:
            for device in DEVICES:
                with contextlib.suppress(OSError):
                    self._descriptor = os.open(self._root / device, flags)
                    break
        return self._descriptor


def through_mailbox(ask: Ask, mailbox: Mailbox) -> Ask:
    """Return what answers `vcgencmd ...` by the mailbox, and the rest and what it cannot by ask."""

    def answer(*command: str, **options: object) -> str | None:
        if command[0] == "vcgencmd":
            said = mailbox.answer(" ".join(command[1:]))
            if said is not None:
                return said
        return ask(*command, **options)

    return answer


def encode(command: str) -> bytearray:
    """Return the message that asks this."""
    text = command.encode("ascii", "replace")[: MOST_TEXT - 1].ljust(MOST_TEXT, b"\0")
    size = HEAD.size + MOST_TEXT + len(END_TAG)
    return bytearray(HEAD.pack(size, 0, GET_GENCMD_RESULT, MOST_TEXT, 0, 0) + text + END_TAG)


def decode(message: bytes | bytearray) -> str | None:
    """Return the text of an answer; None where the firmware did not do it, or refused."""
    if len(message) < HEAD.size:
        return None
    _size, status, _tag, _room, _length, error = HEAD.unpack_from(message)
    text = bytes(message[HEAD.size : HEAD.size + MOST_TEXT]).split(b"\0", 1)[0]
    answer = text.decode("utf-8", "replace").strip()
    if status != SUCCEEDED or error or not answer or any(word in answer for word in REFUSED):
        return None
    return answer
