"""The state folder: written to, lasting, roomy, free; the files the configuration names."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
from coral_trees import write

from agent.config import CameraConfig, Config, ModelConfig, MqttConfig
from agent.daemon.instance import LOCK_FILE, acquire
from agent.doctor import access, settings, state
from agent.doctor.access import check_descriptors, check_permissions
from agent.doctor.settings import check_files
from agent.doctor.state import check_disk, check_instance, check_state, check_state_dir, time_fsync
from agent.sensors.storage import Mount


def sound(check):
    assert (check.remedy is None) is (check.state == "ok"), check
    return check


def mount(fstype="ext4", point="/", options=("rw",)):
    return Mount(point=point, fstype=fstype, source="/dev/mmcblk0p2", options=options)


def test_a_folder_that_is_there(tmp_path):
    check = sound(check_state_dir(tmp_path, mount()))
    assert check.state == "ok"
    assert "on disk within" in check.message
    assert list(tmp_path.iterdir()) == [], "what was written is taken away again"


def test_a_folder_that_can_be_made(tmp_path):
    check = sound(check_state_dir(tmp_path / "a" / "b", mount()))
    assert check.state == "ok"
    assert check.message.endswith("can be created")
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    check = sound(check_state_dir(tmp_path / "file" / "b", mount()))
    assert check.state == "warn"
    assert "what waits for the broker is lost with the process" in check.message
    assert "set device.state_dir" in check.remedy


def test_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr(state.os, "access", lambda *_: False)
    check = sound(check_state_dir(tmp_path, mount(options=("ro", "noatime"), point="/data")))
    assert check.state == "warn"
    assert "mount /data read-write" in check.remedy


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails(tmp_path, number):
    def write(_folder):
        raise OSError(number, os.strerror(number))

    check = sound(check_state_dir(tmp_path, mount(), write))
    assert check.state == "warn"
    assert os.strerror(number) in check.message
    assert "dmesg" in check.remedy


def test_a_slow_card(tmp_path):
    check = sound(check_state_dir(tmp_path, mount(), lambda _folder: 2.5))
    assert check.state == "warn"
    assert "on disk within 2500 ms; that is slow" in check.message
    assert "another card" in check.remedy


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fsync(_descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(state.os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        time_fsync(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fstype", "said", "remedy"),
    [
        ("tmpfs", "empty after a reboot", "a folder on a disk"),
        ("overlay", "gone after a reboot or with the container", "mount a partition or a volume"),
        ("nfs4", "on a network (nfs4)", "a folder on a disk of this board"),
    ],
)
def test_places_that_do_not_last(tmp_path, fstype, said, remedy):
    check = sound(check_state_dir(tmp_path, mount(fstype, "/var/lib")))
    assert check.state == "warn"
    assert said in check.message
    assert "/var/lib" in check.message
    assert remedy in check.remedy


def test_the_kernel_s_word_on_a_real_folder(tmp_path):
    names = [sound(check).name for check in check_state(tmp_path, 16.0)]
    assert names == ["state_dir", "disk", "instance"]


def room(mib, inodes=100_000, files=200_000):
    """A disk with this much left for users who are not root."""
    blocks = int(mib * 256)
    return lambda _path: os.statvfs_result(
        (4096, 4096, blocks * 4, blocks * 2, blocks, files, inodes, inodes, 0, 255)
    )


@pytest.mark.parametrize(
    ("free_mib", "outbox_mb", "state"),
    [(200, 16.0, "ok"), (100, 16.0, "warn"), (200, 256.0, "warn"), (400, 256.0, "ok")],
)
def test_room_for_a_full_outbox(tmp_path, free_mib, outbox_mb, state):
    check = sound(check_disk(tmp_path / "not yet", outbox_mb, room(free_mib)))
    assert check.state == state
    assert f"{free_mib} MiB free" in check.message
    if state == "warn":
        assert "mqtt.outbox_max_mb" in check.message
        assert "lower mqtt.outbox_max_mb" in check.remedy


def test_what_the_outbox_holds_already_is_its_room(tmp_path):
    with (tmp_path / "outbox.db").open("wb") as file:
        file.truncate(250 << 20)
    assert check_disk(tmp_path, 256.0, room(110)).state == "ok"
    assert check_disk(tmp_path, 256.0, room(50)).state == "warn"


def test_inodes(tmp_path):
    check = sound(check_disk(tmp_path, 16.0, room(1000, inodes=3)))
    assert check.state == "warn"
    assert "only 3 files can still be made" in check.message
    assert check_disk(tmp_path, 16.0, room(1000, inodes=0, files=0)).state == "ok"


def test_a_second_instance(tmp_path):
    assert sound(check_instance(tmp_path)).state == "ok"
    held = acquire(tmp_path)
    try:
        check = sound(check_instance(tmp_path))
        assert check.state == "warn"
        assert f"process {os.getpid()}" in check.message
        assert "systemctl stop edge-agent" in check.remedy
    finally:
        held.release()
    assert check_instance(tmp_path).state == "ok"


def test_asking_locks_nothing(tmp_path, monkeypatch):
    (tmp_path / LOCK_FILE).touch()
    monkeypatch.setattr(fcntl, "flock", lambda *_: pytest.fail("it locked"))
    assert check_instance(tmp_path).state == "ok"


def test_locks_of_others_are_not_taken_for_it(tmp_path):
    file = tmp_path / LOCK_FILE
    file.touch()
    inode = file.stat().st_ino
    root = tmp_path / "root"
    lines = [
        "1: POSIX  ADVISORY  WRITE 700 08:02:5 0 EOF",
        f"2: FLOCK  ADVISORY  WRITE 701 08:02:{inode + 1} 0 EOF",
        f"2: -> FLOCK  ADVISORY  WRITE 702 08:02:{inode} 0 EOF",
        "garbage",
    ]
    write(root / "proc/locks", "\n".join(lines))
    assert check_instance(tmp_path, root).state == "ok"
    write(root / "proc/locks", f"3: FLOCK  ADVISORY  WRITE 703 00:1f:{inode} 0 EOF\n")
    assert "process 703" in check_instance(tmp_path, root).message


def named(tmp_path, mode=0o600):
    paths = {name: tmp_path / name for name in ("password", "ca", "cert", "key", "labels")}
    for path in paths.values():
        path.write_text("x")
        path.chmod(mode)
    return paths, Config(
        model=ModelConfig(labels_file=str(paths["labels"])),
        mqtt=MqttConfig(
            password_file=str(paths["password"]),
            ca_file=str(paths["ca"]),
            cert_file=str(paths["cert"]),
            key_file=str(paths["key"]),
        ),
    )


def test_files(tmp_path):
    _, config = named(tmp_path)
    check = sound(check_files(config))
    assert (check.state, check.message) == ("ok", "5 named in the configuration")
    assert check_files(Config()).state == "ok"


@pytest.mark.parametrize(
    ("name", "key"),
    [("password", "mqtt.password_file"), ("ca", "mqtt.ca_file"), ("labels", "model.labels_file")],
)
def test_a_file_that_is_not_there(tmp_path, name, key):
    paths, config = named(tmp_path)
    paths[name].unlink()
    check = sound(check_files(config))
    assert check.state == "fail"
    assert f"{key}: {paths[name]}: No such file" in check.message
    assert f"correct {key}" in check.remedy


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    paths, config = named(tmp_path)
    real = Path.open

    def refuse(path, *arguments, **more):
        if path == paths["key"]:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **more)

    monkeypatch.setattr(settings.Path, "open", refuse)
    check = sound(check_files(config, uid=1234))
    assert check.state == "fail"
    assert "mqtt.key_file" in check.message
    assert "as user 1234" in check.message
    assert f"chgrp edge-agent {paths['key']}" in check.remedy


def test_secrets_that_everybody_may_read(tmp_path):
    paths, config = named(tmp_path, 0o644)
    check = sound(check_files(config))
    assert check.state == "warn"
    assert f"{paths['password']} holds a secret and has mode 0644" in check.message
    assert str(paths["ca"]) not in check.message
    assert f"chmod 0640 {paths['key']}" in check.remedy


def test_a_configuration_with_a_password_in_it(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text("")
    path.chmod(0o644)
    plain = Config(camera=(CameraConfig(source="/dev/video0"),))
    guarded = Config(camera=(CameraConfig(source="rtsp://u:s3cret@h/x"),))
    assert check_files(plain, path).state == "ok"
    check = sound(check_files(guarded, path))
    assert check.state == "warn"
    assert "s3cret" not in check.message


@pytest.fixture
def dev(tmp_path):
    for name in ("video0", "video1", "media0", "dma_heap/system"):
        write(tmp_path / "dev" / name, "")
    link = tmp_path / "dev/v4l/by-id/usb-cam"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "dev/video1")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "closed"),
    [
        ("/dev/video1", {"video1"}),
        ("/dev/v4l/by-id/usb-cam", {"video1"}),
        ("auto", {"video0", "video1"}),
        ("picamera:1", {"video0", "video1", "media0", "system"}),
        ("gst:v4l2src device=/dev/video0 ! videoconvert", {"video0"}),
        ("/dev/video9", set()),
        ("synthetic", set()),
        ("rtsp://h/dev/video0", set()),
    ],
)
def test_devices_of_each_source(dev, monkeypatch, source, closed):
    cameras = (CameraConfig(source=source),)
    assert sound(check_permissions(cameras, dev)).state == "ok"
    monkeypatch.setattr(access.os, "access", lambda path, mode: False)
    check = sound(check_permissions(cameras, dev))
    assert check.state == ("fail" if closed else "ok")
    for name in ("video0", "video1", "media0", "system"):
        assert (name in check.message.split("(")[0]) is (name in closed)
    if closed:
        assert "usermod -aG" in check.remedy


@pytest.mark.parametrize(("limit", "state"), [(1024, "ok"), (-1, "ok"), (256, "ok"), (64, "warn")])
def test_descriptors(limit, state):
    check = sound(check_descriptors(limit))
    assert check.state == state
    assert check_descriptors().name == "descriptors"
