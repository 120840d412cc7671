"""What this user may do: open the devices that are configured, and enough files."""

from __future__ import annotations

import grp
import os
import re
import resource
from collections.abc import Iterable
from pathlib import Path

from agent.config import CameraConfig
from agent.doctor.check import Check, fail, ok, warn

# libcamera opens these: the sensor and its image processor, and memory for the frames
# (libcamera, src/libcamera/pipeline/rpi and src/libcamera/dma_buf_allocator.cpp).
PI_CAMERA_NODES = ("video[0-9]*", "media[0-9]*", "dma_heap/*")
_NODE = re.compile(r"/dev/[\w./:+-]+")
# A camera takes some ten descriptors, each worker and the broker some twenty; systemd's and
# Debian's default is 1024.
DESCRIPTORS_NEEDED = 256


def check_permissions(cameras: tuple[CameraConfig, ...], root: Path = Path("/")) -> Check:
    """Whether this user may use the devices that the cameras need."""
    dev = root / "dev"
    devices = sorted({node for camera in cameras for node in _nodes_of(camera.source, dev)})
    closed = [node for node in devices if not os.access(node, os.R_OK | os.W_OK)]
    if closed:
        groups = sorted({_group(node) for node in closed})
        return fail(
            "permissions",
            f"this user may not use {', '.join(node.name for node in closed)} "
            f"(group {', '.join(groups)})",
            f"sudo usermod -aG {','.join(groups)} $USER, then log in again; the service's unit "
            "takes them in SupplementaryGroups=",
        )
    message = f"{len(devices)} devices can be used" if devices else "no device needed"
    return ok("permissions", message)


def _nodes_of(source: str, dev: Path) -> Iterable[Path]:
    """Return what a source opens in /dev, as far as it is there."""
    if source == "auto":
        return dev.glob("video[0-9]*")
    if source.startswith("picamera"):
        return [node for pattern in PI_CAMERA_NODES for node in dev.glob(pattern)]
    named = _NODE.findall(source) if source.startswith(("/dev/", "gst:")) else []
    places = [dev / name.removeprefix("/dev/") for name in named]
    return [place.resolve() for place in places if place.exists()]


def _group(path: Path) -> str:
    number = path.stat().st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def check_descriptors(limit: int | None = None) -> Check:
    """Whether as many files and sockets may be open as the agent needs."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if limit is None else limit
    if 0 <= soft < DESCRIPTORS_NEEDED:
        return warn(
            "descriptors",
            f"at most {soft} files may be open at once, and up to {DESCRIPTORS_NEEDED} are needed",
            "ulimit -n 1024, or take LimitNOFILE= out of the unit",
        )
    return ok("descriptors", f"{'any number of' if soft < 0 else soft} files may be open at once")
