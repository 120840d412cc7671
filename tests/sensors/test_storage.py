"""Mounts, in the kernel's words."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sensors.storage import find_mount

LINES = r"""22 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw
23 22 0:21 / /proc rw,nosuid shared:5 - proc proc rw
30 22 0:25 / /tmp rw,nosuid - tmpfs tmpfs rw,size=1024k
31 22 8:1 / /mnt/my\040disk ro,relatime shared:9 - vfat /dev/sda1 rw,errors=remount-ro
32 22 8:2 / /srv rw - ext4 /dev/sda2 rw
33 22 0:40 / /srv rw - tmpfs none rw
nonsense
34 22 - ext4
"""


@pytest.fixture
def root(tmp_path):
    file = tmp_path / "proc/self/mountinfo"
    file.parent.mkdir(parents=True)
    file.write_text(LINES)
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "point", "fstype"),
    [
        ("/var/lib/edge-agent", "/", "ext4"),
        ("/tmp/a/b", "/tmp", "tmpfs"),
        ("/tmpfile", "/", "ext4"),
        ("/mnt/my disk/state", "/mnt/my disk", "vfat"),
        ("/srv/x", "/srv", "tmpfs"),  # the later one lies on top
    ],
)
def test_the_longest_place_that_fits(root, folder, point, fstype):
    mount = find_mount(Path(folder), root)
    assert (mount.point, mount.fstype) == (point, fstype)


def test_read_only(root):
    assert find_mount(Path("/mnt/my disk"), root).is_read_only
    assert not find_mount(Path("/tmp"), root).is_read_only


def test_this_machine_and_none(tmp_path):
    assert find_mount(Path("/proc/self")).fstype == "proc"
    assert find_mount(Path("/"), tmp_path) is None


@given(st.text(max_size=200))
def test_any_text_is_survived(tmp_path_factory, text):
    root = tmp_path_factory.mktemp("root")
    file = root / "proc/self/mountinfo"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    find_mount(Path("/a/b"), root)
