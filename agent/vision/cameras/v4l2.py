"""Which /dev/video* nodes are cameras, and why one cannot be used.

Asks the kernel only; no OpenCV here. One USB camera makes several nodes (pictures, metadata)
and boards have nodes for codecs and image processors too, so a node is a camera only when the
driver says so. The folders and the ioctl are arguments, so that any machine can be described.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

DEV = Path("/dev")
PROC = Path("/proc")

# linux/videodev2.h: struct v4l2_capability is 16 + 32 + 32 bytes of names, then the version,
# capabilities, device_caps and three reserved words; VIDIOC_QUERYCAP is _IOR('V', 0, that).
CAPABILITY = struct.Struct("=16s32s32sIII3I")
VIDIOC_QUERYCAP = (2 << 30) | (CAPABILITY.size << 16) | (ord("V") << 8) | 0
V4L2_CAP_VIDEO_CAPTURE = 0x0000_0001
V4L2_CAP_VIDEO_OUTPUT = 0x0000_0002
V4L2_CAP_VIDEO_CAPTURE_MPLANE = 0x0000_1000
V4L2_CAP_VIDEO_M2M_MPLANE = 0x0000_4000
V4L2_CAP_VIDEO_M2M = 0x0000_8000
V4L2_CAP_META_CAPTURE = 0x0080_0000
V4L2_CAP_DEVICE_CAPS = 0x8000_0000

# These say that they capture, but what they give is the sensor's raw Bayer data or the inside
# of an image processor. Driver names as VIDIOC_QUERYCAP reports them on Raspberry Pi OS
# (unicam: Pi 0-4, rp1-cfe and pispbe: Pi 5, bcm2835-isp) and on JetPack (tegra-video).
RAW_DRIVERS = {
    "unicam": "picamera",
    "rp1-cfe": "picamera",
    "bcm2835-isp": "picamera",
    "pispbe": "picamera",
    "tegra-video": "gst:nvarguscamerasrc ! nvvidconv ! video/x-raw,format=BGRx",
}

Ioctl = Callable[[int, int, bytearray], None]


class Node(NamedTuple):
    """What a driver says of one video node."""

    driver: str
    caps: int

    @property
    def is_camera(self) -> bool:
        """Whether pictures come from it that OpenCV can read."""
        return bool(self.caps & V4L2_CAP_VIDEO_CAPTURE) and self.driver not in RAW_DRIVERS


def _ioctl(descriptor: int, request: int, argument: bytearray) -> None:
    fcntl.ioctl(descriptor, request, argument)


def query(device: Path, ioctl: Ioctl = _ioctl) -> Node:
    """Ask a node what it is; raises OSError when it cannot be asked."""
    # Non-blocking, as some drivers wait for hardware in open().
    descriptor = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    try:
        answer = bytearray(CAPABILITY.size)
        ioctl(descriptor, VIDIOC_QUERYCAP, answer)
    finally:
        os.close(descriptor)
    driver, _, _, _, of_device, of_node, *_ = CAPABILITY.unpack(answer)
    # `capabilities` is of the whole device; drivers before Linux 3.4 have nothing better.
    caps = of_node if of_device & V4L2_CAP_DEVICE_CAPS else of_device
    return Node(driver.split(b"\0")[0].decode("ascii", "replace"), caps)


def video_nodes(dev: Path = DEV) -> list[Path]:
    """Return all video nodes, video2 before video10."""
    nodes = [node for node in dev.glob("video*") if node.name[5:].isdigit()]
    return sorted(nodes, key=lambda node: int(node.name[5:]))


def node_of(source: str, dev: Path = DEV) -> str | None:
    """Return the video node that a source below /dev means, None where it means something else.

    udev makes links that stay the same when cameras change places (60-persistent-v4l.rules:
    v4l/by-id, v4l/by-path). A name that does not exist is returned as it stands, for
    `problem_with` to tell what there is.
    """
    if not source.startswith(f"{dev}/"):
        return None
    target = Path(os.path.realpath(source))
    if target.parent == Path(os.path.realpath(dev)) and re.fullmatch(r"video\d+", target.name):
        return str(target)
    # Files in /dev/shm are like any others.
    is_missing = not source.startswith(f"{dev}/shm/") and not target.exists()
    return source if is_missing else None


def first_capture_device(dev: Path = DEV, ioctl: Ioctl = _ioctl) -> str | None:
    """Return the first node that gives pictures, None where there is none we may open."""
    for path in video_nodes(dev):
        node = _query_or_error(path, ioctl)
        if isinstance(node, Node) and node.is_camera:
            return str(path)
    return None


def problem_with(device: str, *, dev: Path = DEV, ioctl: Ioctl = _ioctl) -> str | None:
    """Return the sentence that says why a node cannot be used, None where it can."""
    try:
        node = query(Path(device), ioctl)
    except OSError as error:
        return _why_not(device, error, dev)
    if node.is_camera:
        return None
    if source := RAW_DRIVERS.get(node.driver):
        return (
            f"{device} gives only raw sensor data (driver {node.driver});"
            f' set source = "{source}" for a ribbon cable camera'
        )
    return f"{device} is {_kind(node.caps)}, not a camera; {_others(dev, ioctl)}"


def nothing_found(dev: Path = DEV, ioctl: Ioctl = _ioctl) -> str:
    """Return the sentence for a board on which no camera was found."""
    advice = (
        "plug in a USB camera (it appears as /dev/video0), or for a ribbon cable camera run"
        " `sudo apt install python3-picamera2`, or set source in [[camera]]"
    )
    for path in video_nodes(dev):
        node = _query_or_error(path, ioctl)
        if isinstance(node, PermissionError):
            return f"no camera found: {_forbidden(path)}"
        if isinstance(node, Node) and RAW_DRIVERS.get(node.driver, "").startswith("gst:"):
            advice = f'for the ribbon cable camera set source = "{RAW_DRIVERS[node.driver]}"'
    return f"no camera found: {advice}"


def busy_with(device: str, proc: Path = PROC, *, held: int = 0) -> str:
    """Return the sentence for a device that someone else is using.

    `held` is how many times the asking camera itself has the device open.
    """
    own, users = _users(device, proc)
    if own > held:
        return (
            f"{device} is already used by another [[camera]] of this configuration;"
            " give each a device of its own"
        )
    who = f"in use by {' and '.join(users)}" if users else "in use by another program"
    return f"{device} is {who}; stop that program, or give this camera another device"


def _query_or_error(path: Path, ioctl: Ioctl) -> Node | OSError:
    try:
        return query(path, ioctl)
    except OSError as error:
        return error


def _why_not(device: str, error: OSError, dev: Path) -> str:
    if error.errno == errno.EACCES:
        return _forbidden(Path(device))
    if error.errno == errno.EBUSY:
        return busy_with(device)
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        present = ", ".join(map(str, _present(device, dev))) or "no /dev/video* at all"
        return f"{device} does not exist: is the camera plugged in? There is {present}"
    if error.errno in (errno.ENOTTY, errno.EINVAL):
        return f"{device} is not a video device: VIDIOC_QUERYCAP says {error.strerror}"
    return f"{device} cannot be opened: {error.strerror}"


def _present(device: str, dev: Path) -> list[Path]:
    """Return the nodes there are, and their lasting names: by place for who asked for those."""
    folder = dev / "v4l" / ("by-path" if "/by-path/" in device else "by-id")
    return [*video_nodes(dev), *sorted(folder.glob("*"))]


def _forbidden(node: Path) -> str:
    try:
        group = grp.getgrgid(node.stat().st_gid).gr_name
    except (KeyError, OSError):
        group = "video"  # what udev's own rules give to video4linux nodes (50-udev-default.rules)
    return (
        f"{node} may not be opened by this user: it belongs to the group {group}; run"
        f" `sudo usermod -aG {group} USER` for the user that runs this, and start again"
    )


def _kind(caps: int) -> str:
    if caps & V4L2_CAP_META_CAPTURE:
        return "a camera's metadata node"
    if caps & (V4L2_CAP_VIDEO_M2M | V4L2_CAP_VIDEO_M2M_MPLANE):
        return "a codec or image processor"
    if caps & V4L2_CAP_VIDEO_CAPTURE_MPLANE:
        return "a multi-planar capture node, which OpenCV cannot read"
    if caps & V4L2_CAP_VIDEO_OUTPUT:
        return "a video output"
    return "a node without video capture"


def _others(dev: Path, ioctl: Ioctl) -> str:
    other = first_capture_device(dev, ioctl)
    return f"{other} is one" if other else "no other node is one either"


def _users(device: str, proc: Path) -> tuple[int, list[str]]:
    """Return how often we hold the device open, and the other programs that do, if we see them."""
    links = [link for link in proc.glob("[0-9]*/fd/*") if _leads(link, device)]
    others = [link for link in links if link.parts[-3] != str(os.getpid())]
    return len(links) - len(others), sorted({_program(link) for link in others})


def _leads(link: Path, device: str) -> bool:
    try:
        return str(link.readlink()) == device
    except OSError:  # ended meanwhile, or another user's
        return False


def _program(link: Path) -> str:
    process = link.parent.parent
    try:
        name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        name = "a program that has just ended"
    return f"{name} (process {process.name})"
