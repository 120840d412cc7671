"""Which Coral Edge TPUs are connected, and why one of them could not be used.

libedgetpu gives no reason when it opens no device, so the reason is read from the kernel's
files. Sources: libedgetpu, driver/beagle/beagle_usb_driver_provider.cc (USB ids) and
tflite/edgetpu_manager_direct.cc (PCIe before USB); gasket-driver, src/apex_driver.c (PCI id)
and src/gasket_core.c (attributes in /sys/class/apex; opening a node that another process owns
fails with EPERM); Documentation/ABI/testing/sysfs-bus-usb.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# (vendor, product); the first is a Coral that no program has used since it was plugged in:
# libedgetpu sends it its firmware, and it comes back as the second.
USB_NEW, USB_STARTED = ("1a6e", "089a"), ("18d1", "9302")
PCI_ID = ("0x1ac1", "0x089a")
USB2_MBPS = 480
RULES = {
    "usb": (
        "/etc/udev/rules.d/99-edgetpu-accelerator.rules",
        tuple(
            f'SUBSYSTEM=="usb", ATTRS{{idVendor}}=="{vendor}", ATTRS{{idProduct}}=="{product}", '
            'MODE="0660", GROUP="plugdev"'
            for vendor, product in (USB_NEW, USB_STARTED)
        ),
    ),
    "pci": (
        "/etc/udev/rules.d/65-apex.rules",
        ('SUBSYSTEM=="apex", MODE="0660", GROUP="apex"',),
    ),
}
GROUPS = {"usb": "plugdev", "pci": "apex"}
HOW_TO_INSTALL = (
    "install libedgetpu1-std in a build for TensorFlow 2.12 or later, such as 16.0tf2.16.1 "
    "(Google's own 16.0 is for 2.5 and crashes the runtimes of today)"
)

Kind = Literal["pci", "usb"]
CoralFault = Literal["device_missing", "device_busy", "no_permission", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coral:
    """One device, as `edgetpu:<kind>:<number>` names it."""

    kind: Kind
    number: int
    node: str  # "/dev/apex_0" or "/dev/bus/usb/002/005"
    where: str  # PCI address or USB port
    is_started: bool  # USB: has its firmware; PCIe: always
    speed_mbps: int | None  # USB: of the link
    status: str | None  # PCIe: the driver's word, "ALIVE" where all is well
    owner: int | None  # PCIe: the process that has it open

    @property
    def name(self) -> str:
        """Return what the setting `accelerator` calls it."""
        return f"edgetpu:{self.kind}:{self.number}"

    def describe(self) -> str:
        """Return a few words for people."""
        if self.kind == "pci":
            return f"{self.name} is the PCIe Coral at {self.where}"
        speed = f", {self.speed_mbps} Mbit/s" if self.speed_mbps else ""
        state = "" if self.is_started else ", not used since it was plugged in"
        return f"{self.name} is the USB Coral at port {self.where}{speed}{state}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a Coral cannot be used, and what to do about it; neither is a whole sentence."""

    fault: CoralFault
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}"


def find_corals(root: Path = Path("/")) -> list[Coral]:
    """Return the Corals in libedgetpu's order: PCIe, unused USB, used USB."""
    return [*_pci_corals(root), *_usb_corals(root)]


def _pci_corals(root: Path) -> Iterator[Coral]:
    folder = root / "sys/class/apex"
    nodes = sorted(folder.glob("apex_[0-9]*"), key=lambda path: (len(path.name), path.name))
    for number, device in enumerate(nodes):
        owner = _text(device / "device_owner")
        is_owned = _text(device / "is_device_owned") == "1" and owner is not None
        yield Coral(
            kind="pci",
            number=number,
            node=f"/dev/{device.name}",
            where=_text(device / "pci_address") or device.name,
            is_started=True,
            speed_mbps=None,
            status=_text(device / "status"),
            owner=int(owner) if is_owned and owner and owner.isdecimal() else None,
        )


def _usb_corals(root: Path) -> Iterator[Coral]:
    devices = sorted((root / "sys/bus/usb/devices").glob("*"))
    number = 0
    for wanted in (USB_NEW, USB_STARTED):
        for device in devices:
            if (_text(device / "idVendor"), _text(device / "idProduct")) != wanted:
                continue
            bus, address = _text(device / "busnum") or "", _text(device / "devnum") or ""
            speed = _text(device / "speed") or ""
            yield Coral(
                kind="usb",
                number=number,
                node=f"/dev/bus/usb/{bus:0>3}/{address:0>3}",
                where=device.name,
                is_started=wanted == USB_STARTED,
                speed_mbps=int(speed) if speed.isdecimal() else None,
                status=None,
                owner=None,
            )
            number += 1


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def why_unusable(wanted: str, root: Path = Path("/")) -> Trouble | None:
    """Say why "edgetpu", "edgetpu:usb:0" or "edgetpu:pci:0" cannot be used; None: it looks well."""
    _, _, rest = wanted.partition(":")
    kind, _, number = rest.partition(":")
    corals = find_corals(root)
    fitting = [coral for coral in corals if kind in ("", coral.kind)]
    chosen = int(number or 0)
    if chosen >= len(fitting):
        return _missing(kind, chosen, corals, root)
    coral = fitting[chosen]
    trouble = _trouble_of(coral, root)
    others = [other for other in corals if other is not coral and not _trouble_of(other, root)]
    if trouble is not None and others:
        # libedgetpu takes the first it finds and does not go on to the next.
        remedy = f'{trouble.remedy}; or set accelerator = "{others[0].name}", which is free'
        return Trouble(fault=trouble.fault, message=trouble.message, remedy=remedy)
    return trouble


def _missing(kind: str, number: int, corals: list[Coral], root: Path) -> Trouble:
    """Explain an absence by what is there instead."""
    there = ", ".join(coral.name for coral in corals)
    if there:
        return Trouble(
            fault="device_missing",
            message=f"there is no edgetpu:{kind}:{number}",
            remedy=f"set accelerator to one that is there ({there}), or look at its cable",
        )
    if kind != "usb" and (address := _driverless(root)):
        return Trouble(
            fault="device_missing",
            message=f"the PCIe Coral at {address} has no driver, so there is no /dev/apex_0",
            remedy="install gasket-dkms and the kernel's headers, then `sudo modprobe apex`",
        )
    usb, pci = (":".join(ids) for ids in (USB_NEW, USB_STARTED)), "1ac1:089a"
    sought = {
        "usb": f"no USB device {' or '.join(usb)}",
        "pci": f"no /dev/apex_0 and no PCI device {pci}",
    }
    return Trouble(
        fault="device_missing",
        message=f"no Coral is connected ({sought.get(kind, ', '.join(sought.values()))})",
        remedy=f"`lspci -d {pci}` must list it; power the board off and seat it again"
        if kind == "pci"
        else "plug it in until `lsusb` lists it; try another cable, another USB 3 port and a "
        "stronger power supply",
    )


def _driverless(root: Path) -> str | None:
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if (_text(device / "vendor"), _text(device / "device")) == PCI_ID:
            return device.name
    return None


def _trouble_of(coral: Coral, root: Path) -> Trouble | None:
    node = root / coral.node.lstrip("/")
    if not node.exists():
        return Trouble(
            fault="no_permission",
            message=f"{coral.describe()}, but {coral.node} is not visible here",
            remedy=f"hand {'/dev/bus/usb' if coral.kind == 'usb' else coral.node} into the "
            "container, or take PrivateDevices= out of the unit",
        )
    if coral.status not in (None, "ALIVE"):
        return Trouble(
            fault="failed",
            message=f"the driver calls {coral.node} {coral.status}",
            remedy="switch the board's power off and on, and see `sudo dmesg | grep apex`",
        )
    if not os.access(node, os.R_OK | os.W_OK):
        return _no_permission(coral, node)
    holder = _holder(coral, root)
    if holder is not None:
        return Trouble(
            fault="device_busy",
            message=f"{coral.node} is in use by process {holder}",
            remedy="stop that process, as an Edge TPU serves one at a time",
        )
    return None


def _no_permission(coral: Coral, node: Path) -> Trouble:
    """Tell the group to join, or the rule that gives the node a group."""
    status = node.stat()
    group, mode = _group(status.st_gid), stat.S_IMODE(status.st_mode)
    user = _user(os.getuid())
    message = (
        f"user {user} may not open {coral.node} (owner {_user(status.st_uid)}, group {group}, "
        f"mode {mode:04o})"
    )
    if mode & 0o060 == 0o060 and group != "root":
        remedy = f"sudo usermod -aG {group} {user}, then log in again or restart the service"
        return Trouble(fault="no_permission", message=message, remedy=remedy)
    path, lines = RULES[coral.kind]
    wanted = GROUPS[coral.kind]
    shown = " and ".join(f"`{line}`" for line in lines)
    after = "plug it in again" if coral.kind == "usb" else "restart"
    remedy = (
        f"put {shown} into {path}, then sudo groupadd -f {wanted}; sudo usermod -aG {wanted} "
        f"{user}; sudo udevadm control --reload-rules; and {after}"
    )
    return Trouble(fault="no_permission", message=message, remedy=remedy)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _holder(coral: Coral, root: Path) -> str | None:
    """Return the number and name of another process that has the device open.

    Of PCIe devices the driver tells. Of USB devices /proc does, but only to root for the
    processes of other users, so None may mean that it cannot be known.
    """
    if coral.kind == "pci":
        return _process(coral.owner, root) if coral.owner not in (None, os.getpid()) else None
    for folder in (root / "proc").glob("[0-9]*"):
        try:
            opened = {str(file.readlink()) for file in (folder / "fd").iterdir()}
        except OSError:  # another user's, or it has just ended
            continue
        if coral.node in opened and folder.name != str(os.getpid()):
            return _process(int(folder.name), root)
    return None


def _process(number: int | None, root: Path) -> str:
    name = _text(root / f"proc/{number}/comm")
    return f"{number} ({name})" if name else str(number)


def edgetpu_package(root: Path = Path("/")) -> str | None:
    """Return the Debian package that libedgetpu came with, "libedgetpu1-std 16.0"; else None."""
    text = _text(root / "var/lib/dpkg/status") or ""
    for entry in text.split("\n\n"):
        if not entry.startswith("Package: libedgetpu1-"):
            continue
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line)
        if fields.get("Status", "").endswith(" installed"):
            return f"{fields['Package']} {fields.get('Version', '')}".strip()
    return None


def is_too_old(package: str) -> bool:
    """Return whether this package's libedgetpu crashes every runtime that we can run on.

    Google's own builds, up to 16.0, were made for TensorFlow 2.5, whose delegates lack fields
    that TFLite reads since 2.12 (google-coral/edgetpu, issue 812). Builds for a later one name
    it, as 16.0tf2.16.1-1 (libedgetpu, debian/changelog).
    """
    made_for = re.search(r"tf(\d+)\.(\d+)", package)
    return made_for is None or (int(made_for[1]), int(made_for[2])) < (2, 12)
