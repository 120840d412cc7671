from __future__ import annotations

import errno
import grp
import os
from pathlib import Path

import pytest

from agent.config import CameraConfig
from agent.errors import CameraError
from agent.vision.cameras import open_camera, v4l2

CAPTURE = v4l2.V4L2_CAP_VIDEO_CAPTURE
META = v4l2.V4L2_CAP_META_CAPTURE
M2M = v4l2.V4L2_CAP_VIDEO_M2M_MPLANE


class FakeKernel:
    """A /dev folder of plain files, and what VIDIOC_QUERYCAP says of each."""

    def __init__(self, dev: Path) -> None:
        self.dev = dev
        self.answers: dict[str, bytes | OSError] = {}

    def add(self, name: str, caps: int, driver: str = "uvcvideo", *, old: bool = False) -> str:
        (self.dev / name).touch()
        of_device = caps if old else CAPTURE | META | v4l2.V4L2_CAP_DEVICE_CAPS
        self.answers[name] = v4l2.CAPABILITY.pack(
            *(driver.encode(), b"A camera", b"usb-1", 0x060C00, of_device, 0 if old else caps),
            *(0, 0, 0),
        )
        return str(self.dev / name)

    def refuse(self, name: str, number: int) -> str:
        (self.dev / name).touch()
        self.answers[name] = OSError(number, os.strerror(number))
        return str(self.dev / name)

    def ioctl(self, descriptor: int, request: int, argument: bytearray) -> None:
        # linux/videodev2.h on every 64-bit and 32-bit Linux: _IOR('V', 0, 104 bytes).
        assert request == 0x80685600
        answer = self.answers[Path(f"/proc/self/fd/{descriptor}").readlink().name]
        if isinstance(answer, OSError):
            raise answer
        argument[:] = answer

    def problem(self, device: str) -> str | None:
        return v4l2.problem_with(device, dev=self.dev, ioctl=self.ioctl)

    def first(self) -> str | None:
        return v4l2.first_capture_device(self.dev, self.ioctl)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def test_first_is_the_lowest_number_that_captures(kernel: FakeKernel) -> None:
    kernel.add("video10", CAPTURE)
    kernel.add("video0", META)
    kernel.add("video1", M2M, "bcm2835-codec")
    wanted = kernel.add("video2", CAPTURE)
    (kernel.dev / "video").touch()
    (kernel.dev / "videox").touch()
    assert kernel.first() == wanted


def test_raspberry_pi_and_jetson_raw_nodes_are_left_out(kernel: FakeKernel) -> None:
    device = kernel.add("video0", CAPTURE, "unicam")
    kernel.add("video14", CAPTURE, "bcm2835-isp")
    kernel.refuse("video15", errno.EBUSY)
    assert kernel.first() is None
    assert 'source = "picamera"' in (kernel.problem(device) or "")
    assert "python3-picamera2" in v4l2.nothing_found(kernel.dev, kernel.ioctl)
    device = kernel.add("video1", CAPTURE, "tegra-video")
    assert "nvarguscamerasrc" in (kernel.problem(device) or "")
    assert "nvarguscamerasrc" in v4l2.nothing_found(kernel.dev, kernel.ioctl)


def test_old_drivers_without_device_caps(kernel: FakeKernel) -> None:
    assert kernel.problem(kernel.add("video0", CAPTURE, old=True)) is None


def test_a_missing_node_lists_those_there_are(kernel: FakeKernel) -> None:
    missing = str(kernel.dev / "video7")
    assert "There is no /dev/video* at all" in (kernel.problem(missing) or "")
    kernel.add("video0", CAPTURE)
    assert f"There is {kernel.dev}/video0" in (kernel.problem(missing) or "")


def test_lasting_names_lead_to_nodes(kernel: FakeKernel) -> None:
    node = kernel.add("video2", CAPTURE)
    for name in ("by-id/usb-Cam_1-video-index0", "by-path/pci-usb-0:1-video-index0"):
        link = kernel.dev / "v4l" / name
        link.parent.mkdir(parents=True)
        link.symlink_to("../../video2")
        assert v4l2.node_of(str(link), kernel.dev) == node
        missing = str(link.with_name("usb-Other-video-index0"))
        assert v4l2.node_of(missing, kernel.dev) == missing
        said = kernel.problem(missing) or ""
        assert f"does not exist: is the camera plugged in? There is {node}, {link}" in said


def test_which_sources_are_nodes(kernel: FakeKernel, tmp_path: Path) -> None:
    node = kernel.add("video0", CAPTURE)
    (kernel.dev / "shm").mkdir()
    for other in (kernel.dev / "null", kernel.dev / "shm" / "clip.mp4"):
        other.touch()
    assert v4l2.node_of(node, kernel.dev) == node
    for name in ("null", "shm/clip.mp4", "shm/missing.mp4"):
        assert v4l2.node_of(str(kernel.dev / name), kernel.dev) is None
    assert v4l2.node_of("clip.mp4", kernel.dev) is None
    (kernel.dev / "gone").symlink_to("video9")  # udev has not taken it away yet
    assert v4l2.node_of(str(kernel.dev / "gone"), kernel.dev) == str(kernel.dev / "video9")


@pytest.mark.parametrize(
    ("caps", "kind"),
    [
        (META, "a camera's metadata node"),
        (M2M, "a codec or image processor"),
        (v4l2.V4L2_CAP_VIDEO_CAPTURE_MPLANE, "a multi-planar capture node"),
        (v4l2.V4L2_CAP_VIDEO_OUTPUT, "a video output"),
        (0, "a node without video capture"),
    ],
)
def test_not_a_camera_names_the_right_one(kernel: FakeKernel, caps: int, kind: str) -> None:
    device = kernel.add("video1", caps)
    assert kind in (kernel.problem(device) or "")
    assert "no other node is one either" in (kernel.problem(device) or "")
    good = kernel.add("video0", CAPTURE)
    assert f"{good} is one" in (kernel.problem(device) or "")


def test_permission_names_the_group_of_the_node(kernel: FakeKernel) -> None:
    device = kernel.refuse("video0", errno.EACCES)
    group = grp.getgrgid(Path(device).stat().st_gid).gr_name
    assert f"`sudo usermod -aG {group} USER`" in (kernel.problem(device) or "")
    assert f"-aG {group} USER" in v4l2.nothing_found(kernel.dev, kernel.ioctl)


def test_other_refusals(kernel: FakeKernel) -> None:
    assert "not a video device" in (kernel.problem(kernel.refuse("video0", errno.ENOTTY)) or "")
    assert "Input/output error" in (kernel.problem(kernel.refuse("video1", errno.EIO)) or "")
    assert "in use by" in (kernel.problem(kernel.refuse("video2", errno.EBUSY)) or "")


def test_busy_names_the_program(tmp_path: Path) -> None:
    for pid, name, target in (("41", "motion", "/dev/video0"), ("42", "other", "/dev/video1")):
        (tmp_path / pid / "fd").mkdir(parents=True)
        (tmp_path / pid / "comm").write_text(f"{name}\n")
        (tmp_path / pid / "fd" / "3").symlink_to(target)
    said = v4l2.busy_with("/dev/video0", tmp_path)
    assert "in use by motion (process 41); stop that program" in said
    assert "in use by another program" in v4l2.busy_with("/dev/video2", tmp_path)


def test_busy_with_another_camera_of_ours(tmp_path: Path) -> None:
    folder = tmp_path / str(os.getpid()) / "fd"
    folder.mkdir(parents=True)
    (folder / "3").symlink_to("/dev/video0")
    ours = "/dev/video0 is already used by another [[camera]] of this configuration"
    assert ours in v4l2.busy_with("/dev/video0", tmp_path)
    assert "in use by another program" in v4l2.busy_with("/dev/video0", tmp_path, held=1)
    (folder / "4").symlink_to("/dev/video0")
    assert ours in v4l2.busy_with("/dev/video0", tmp_path, held=1)


def test_through_the_factory() -> None:
    with pytest.raises(CameraError, match=r"/dev/video987 does not exist"):
        open_camera(CameraConfig(source="/dev/video987"))
    with pytest.raises(CameraError, match=r"by-id/usb-None-video-index0 does not exist"):
        open_camera(CameraConfig(source="/dev/v4l/by-id/usb-None-video-index0"))
    if not v4l2.video_nodes():
        with pytest.raises(CameraError, match="no camera found: plug in a USB camera"):
            open_camera(CameraConfig(source="auto"))
