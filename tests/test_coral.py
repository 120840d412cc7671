"""Corals as the kernel shows them, on made-up trees: which there are, and what keeps us out."""

import os
from pathlib import Path

import pytest
from coral_trees import STATUS, open_in, pci, usb, write
from hypothesis import given
from hypothesis import strategies as st

from agent.sensors import coral
from agent.sensors.coral import edgetpu_package, find_corals, is_too_old, why_unusable

NEW = ("1a6e", "089a")


def test_nothing_there(tmp_path):
    assert find_corals(tmp_path) == []


def test_all_kinds_in_the_librarys_order(tmp_path):
    """PCIe, then USB sticks that no program has used yet, then used ones."""
    usb(tmp_path, "1-2", bus=1, address=4, speed="480")
    usb(tmp_path, "2-1.4", ids=NEW, address=9)
    usb(tmp_path, "2-3", ids=("046d", "c077"), address=7)  # a mouse
    pci(tmp_path, 1)
    pci(tmp_path, 0)
    corals = find_corals(tmp_path)
    assert [one.name for one in corals] == [
        "edgetpu:pci:0",
        "edgetpu:pci:1",
        "edgetpu:usb:0",
        "edgetpu:usb:1",
    ]
    assert [one.node for one in corals] == [
        "/dev/apex_0",
        "/dev/apex_1",
        "/dev/bus/usb/002/009",
        "/dev/bus/usb/001/004",
    ]
    assert [one.is_started for one in corals] == [True, True, False, True]
    assert corals[3].speed_mbps == 480
    assert corals[2].describe() == (
        "edgetpu:usb:0 is the USB Coral at port 2-1.4, 5000 Mbit/s, not used since it was "
        "plugged in"
    )
    assert corals[0].describe() == "edgetpu:pci:0 is the PCIe Coral at 0000:01:00.0"


@given(st.dictionaries(st.sampled_from(["idVendor", "busnum", "devnum", "speed"]), st.binary()))
def test_no_content_of_a_file_stops_the_search(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("sys")
    usb(root)
    for name, data in content.items():
        (root / "sys/bus/usb/devices/2-1" / name).write_bytes(data)
    assert len(find_corals(root)) <= 1
    why_unusable("edgetpu", root)


@pytest.mark.parametrize(
    ("wanted", "sought", "remedy"),
    [
        ("edgetpu", "1a6e:089a or 18d1:9302, no /dev/apex_0", "lsusb"),
        ("edgetpu:usb:0", "1a6e:089a or 18d1:9302", "power supply"),
        ("edgetpu:pci:0", "no /dev/apex_0 and no PCI device 1ac1:089a", "lspci -d 1ac1:089a"),
    ],
)
def test_no_device(tmp_path, wanted, sought, remedy):
    trouble = why_unusable(wanted, tmp_path)
    assert trouble.fault == "device_missing"
    assert sought in trouble.message
    assert remedy in trouble.remedy


@pytest.mark.parametrize("wanted", ["edgetpu:usb:1", "edgetpu:pci:0"])
def test_another_device_than_the_wanted_one(tmp_path, wanted):
    usb(tmp_path)
    trouble = why_unusable(wanted, tmp_path)
    assert trouble.fault == "device_missing"
    assert f"there is no {wanted}" in trouble.message
    assert "edgetpu:usb:0" in trouble.remedy


def test_pcie_without_a_driver(tmp_path):
    for name, value in (("vendor", "0x1ac1"), ("device", "0x089a")):
        write(tmp_path / "sys/bus/pci/devices/0000:03:00.0" / name, f"{value}\n")
    for wanted in ("edgetpu", "edgetpu:pci:0"):
        trouble = why_unusable(wanted, tmp_path)
        assert trouble.fault == "device_missing"
        assert "0000:03:00.0 has no driver" in trouble.message
        assert "modprobe apex" in trouble.remedy
    assert "no USB device" in why_unusable("edgetpu:usb:0", tmp_path).message


@pytest.mark.parametrize("wanted", ["edgetpu", "edgetpu:usb:0"])
@pytest.mark.parametrize("ids", [NEW, ("18d1", "9302")])
def test_a_device_that_is_well(tmp_path, wanted, ids):
    usb(tmp_path, ids=ids)
    open_in(tmp_path, os.getpid(), "/dev/bus/usb/002/005")  # we may have it ourselves
    assert why_unusable(wanted, tmp_path) is None


def test_a_device_that_is_not_in_the_container(tmp_path):
    usb(tmp_path, node=False)
    trouble = why_unusable("edgetpu", tmp_path)
    assert trouble.fault == "no_permission"
    assert "/dev/bus/usb/002/005 is not visible here" in trouble.message
    assert "container" in trouble.remedy


def test_usb_held_by_another_process(tmp_path):
    usb(tmp_path)
    open_in(tmp_path, 4242, "/dev/null", comm="other")
    open_in(tmp_path, 31337, "/dev/bus/usb/002/005")
    trouble = why_unusable("edgetpu:usb:0", tmp_path)
    assert trouble.fault == "device_busy"
    assert trouble.message == "/dev/bus/usb/002/005 is in use by process 31337 (frigate)"


@pytest.mark.parametrize("owner", [None, os.getpid()], ids=["free", "ours"])
def test_pcie_that_is_free_or_ours(tmp_path, owner):
    pci(tmp_path, owner=owner)
    assert why_unusable("edgetpu:pci:0", tmp_path) is None


def test_pcie_held_by_another_process(tmp_path):
    """The driver tells, even where /proc hides that process."""
    pci(tmp_path, owner=31337)
    trouble = why_unusable("edgetpu", tmp_path)
    assert trouble.fault == "device_busy"
    assert trouble.message == "/dev/apex_0 is in use by process 31337"


def test_another_one_is_free(tmp_path):
    """The library takes the first and does not go on to the next, so the next must be named."""
    pci(tmp_path, owner=31337)
    usb(tmp_path)
    trouble = why_unusable("edgetpu", tmp_path)
    assert trouble.fault == "device_busy"
    assert 'accelerator = "edgetpu:usb:0"' in trouble.remedy
    assert why_unusable("edgetpu:usb:0", tmp_path) is None


@pytest.mark.parametrize("status", ["DEAD", "LAMED"])
def test_pcie_that_its_driver_gave_up(tmp_path, status):
    pci(tmp_path, status=status)
    trouble = why_unusable("edgetpu:pci:0", tmp_path)
    assert trouble.fault == "failed"
    assert f"/dev/apex_0 {status}" in trouble.message
    assert "dmesg" in trouble.remedy


@pytest.fixture
def closed(monkeypatch):
    """A user for whom no device can be opened; tests may run as root, for whom all can."""
    monkeypatch.setattr(coral.os, "access", lambda *_: False)
    monkeypatch.setattr(coral, "_user", lambda number: {0: "root"}.get(number, "pi"))


@pytest.mark.parametrize(
    ("put", "node", "lines"),
    [
        (
            usb,
            "dev/bus/usb/002/005",
            [
                '`SUBSYSTEM=="usb", ATTRS{idVendor}=="1a6e", ATTRS{idProduct}=="089a", '
                'MODE="0660", GROUP="plugdev"`',
                'ATTRS{idVendor}=="18d1", ATTRS{idProduct}=="9302"',
                "/etc/udev/rules.d/99-edgetpu-accelerator.rules",
                "usermod -aG plugdev",
                "plug it in again",
            ],
        ),
        (
            pci,
            "dev/apex_0",
            ['`SUBSYSTEM=="apex", MODE="0660", GROUP="apex"`', "usermod -aG apex", "restart"],
        ),
    ],
)
def test_a_node_that_belongs_to_root_alone_needs_a_rule(
    tmp_path, closed, monkeypatch, put, node, lines
):
    put(tmp_path)
    (tmp_path / node).chmod(0o600)
    monkeypatch.setattr(coral, "_group", lambda number: "root")
    trouble = why_unusable("edgetpu", tmp_path)
    assert trouble.fault == "no_permission"
    assert f"may not open /{node}" in trouble.message
    assert "group root, mode 0600" in trouble.message
    for line in lines:
        assert line in trouble.remedy


def test_a_node_with_a_group_needs_a_member(tmp_path, closed, monkeypatch):
    usb(tmp_path)
    (tmp_path / "dev/bus/usb/002/005").chmod(0o664)
    monkeypatch.setattr(coral, "_group", lambda number: "plugdev")
    trouble = why_unusable("edgetpu:usb:0", tmp_path)
    assert trouble.fault == "no_permission"
    assert trouble.remedy.startswith("sudo usermod -aG plugdev ")
    assert "rules.d" not in trouble.remedy


def test_names_of_groups_and_users_that_are_not_listed():
    assert coral._group(2**31 - 7) == str(2**31 - 7)
    assert coral._user(2**31 - 7) == str(2**31 - 7)


def test_the_librarys_package(tmp_path):
    assert edgetpu_package(tmp_path) is None
    path = tmp_path / "var/lib/dpkg/status"
    write(path, STATUS.format(status="install ok installed", version="16.0tf2.16.1-1"))
    assert edgetpu_package(tmp_path) == "libedgetpu1-std 16.0tf2.16.1-1"
    write(path, STATUS.format(status="deinstall ok config-files", version="16.0"))
    assert edgetpu_package(tmp_path) is None


@pytest.mark.parametrize(
    ("version", "too_old"),
    [
        ("13.0", True),
        ("16.0", True),
        ("16.0-0ppa1", True),
        ("16.0tf2.11.1", True),
        ("16.0tf2.12.1", False),
        ("16.0tf2.16.1-1", False),
        ("16.0tf3.0.0-1", False),
    ],
)
def test_packages_that_crash_todays_runtimes(version, too_old):
    assert is_too_old(f"libedgetpu1-std {version}") is too_old


def test_this_machine_can_be_asked():
    """Whatever is here, the answer has a form that can be printed."""
    for one in find_corals():
        assert one.name in one.describe()
        assert Path(one.node).is_absolute()
    trouble = why_unusable("edgetpu:usb:63")
    assert trouble is not None
    assert str(trouble).startswith(trouble.message)
