"""Made-up /sys, /dev, /proc and /var with Corals in them."""

STATUS = """Package: bash
Status: install ok installed
Version: 5.2

Package: libedgetpu1-std
Status: {status}
Priority: optional
Version: {version}
Description: Support library for Edge TPU
 that drives one
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def usb(root, port="2-1", *, ids=("18d1", "9302"), bus=2, address=5, speed="5000", node=True):
    """Plug in a USB device."""
    device = root / "sys/bus/usb/devices" / port
    values = {"idVendor": ids[0], "idProduct": ids[1], "busnum": bus, "devnum": address}
    for name, value in {**values, "speed": speed}.items():
        write(device / name, f"{value}\n")
    if node:
        write(root / f"dev/bus/usb/{bus:03}/{address:03}", "")


def pci(root, number=0, *, owner=None, status="ALIVE", node=True):
    """Put in a PCIe device with its driver."""
    device = root / f"sys/class/apex/apex_{number}"
    write(device / "pci_address", f"0000:0{number + 1}:00.0\n")
    write(device / "status", f"{status}\n")
    write(device / "is_device_owned", f"{int(owner is not None)}\n")
    write(device / "device_owner", f"{owner or 0}\n")
    if node:
        write(root / f"dev/apex_{number}", "")


def open_in(root, pid, node, comm="frigate"):
    """Let a process have a node open."""
    write(root / f"proc/{pid}/comm", f"{comm}\n")
    folder = root / f"proc/{pid}/fd"
    folder.mkdir(parents=True)
    (folder / "7").symlink_to(node)
