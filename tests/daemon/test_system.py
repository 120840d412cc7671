"""The board's counters: right where the kernel says them, unknown elsewhere, never stuck."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from agent.daemon import processes
from agent.daemon.aside import Aside
from agent.daemon.processes import PSS_KEEP_S, YOUNG_KEEP_S, ProcessReader, read_pss_bytes
from agent.daemon.system import SystemReader, busy_percent, rates

MIB = 1 << 20
PROC = {
    "stat": "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 100 0 50 800 50 0 0 0 0 0\nintr 1 2 3\n",
    "meminfo": "MemTotal:     1024000 kB\nMemFree: 1 kB\nMemAvailable:  512000 kB\n"
    "SwapTotal:     102400 kB\nSwapFree:       51200 kB\nHugePages_Total:   0\n",
    "diskstats": " 179 0 mmcblk0 10 0 1000 5 20 0 2000 9 0 1 1\n"
    " 179 1 mmcblk0p1 10 0 900 5 20 0 1900 9 0 1 1\n"
    " 253 0 dm-0 10 0 800 5 20 0 1800 9 0 1 1\n 7 0 loop0 1 0 5 0 0 0 0 0 0 0 0\n",
    "net/dev": "Inter-|   Receive          |  Transmit\n face |bytes packets|bytes\n"
    "    lo: 5000 1 0 0 0 0 0 0 5000 1 0 0 0 0 0 0\n"
    "  eth0:1000 1 0 0 0 0 0 0 3000 1 0 0 0 0 0 0\n"
    "docker0: 700 1 0 0 0 0 0 0 800 1 0 0 0 0 0 0\n",
}
RATES = {
    "disk": {"disk_read_bytes_per_s", "disk_written_bytes_per_s"},
    "network": {"network_received_bytes_per_s", "network_sent_bytes_per_s"},
}
MEMORY = {"memory_total_mib", "memory_available_mib"}


def write(root, name, content):
    path = root / "proc" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A board of files, which psutil reads as it reads /proc."""
    for name, text in PROC.items():
        write(tmp_path, name, text)
    for device in ("block/mmcblk0/device", "block/dm-0", "block/loop0", "class/net/eth0/device"):
        (tmp_path / "sys" / device).mkdir(parents=True)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    return tmp_path


def awake(reader):
    """Return it when it knows the disk's space: this machine may be too busy to tell at once."""
    assert reader._space.answer(within_s=30) is not None
    return reader


def change(root, name, old, new):
    text = (root / "proc" / name).read_text()
    assert old in text
    write(root, name, text.replace(old, new))


def test_a_board_of_files(root, capfd):
    reader = SystemReader(root, root)
    assert (reader.disks, reader.networks) == ({}, {})
    first = reader.read(100.0)
    assert (first.memory_total_mib, first.memory_available_mib) == (1000.0, 500.0)
    assert first.swap_used_mib == 50.0, "though /proc/vmstat is hidden"
    assert reader.memory_available_mib == 500.0
    assert (first.cpu_percent, first.disk_read_bytes_per_s) == (None, None), "of one reading"
    assert reader.disks == {"mmcblk0": (1000 * 512, 2000 * 512)}, "not again what lies on it"
    assert reader.networks == {"eth0": (1000, 3000)}
    change(root, "stat", "cpu  100 0 50 800 50 0 0 0 0", "cpu  130 0 70 840 60 0 0 0 30")
    change(root, "diskstats", "mmcblk0 10 0 1000 5 20 0 2000", "mmcblk0 10 0 1100 5 20 0 2400")
    change(root, "net/dev", "eth0:1000 1 0 0 0 0 0 0 3000", "eth0:9000 1 0 0 0 0 0 0 3500")
    change(root, "net/dev", "docker0: 700", "docker0: 9700")
    second = reader.read(110.0)
    assert second.cpu_percent == 50.0, "guests are not counted twice"
    assert second.disk_read_bytes_per_s == 100 * 512 / 10
    assert second.disk_written_bytes_per_s == 400 * 512 / 10
    assert (second.network_received_bytes_per_s, second.network_sent_bytes_per_s) == (800.0, 50.0)
    assert reader.networks == {"eth0": (9000, 3500)}
    assert capfd.readouterr() == ("", "")


def test_a_container_without_hardware_counts_its_own_interfaces(root):
    (root / "sys/class/net/eth0/device").rmdir()
    (root / "sys/block/mmcblk0/device").rmdir()
    reader = SystemReader(root, root)
    reader.read(100.0)
    change(root, "net/dev", "docker0: 700", "docker0: 900")
    change(root, "net/dev", "lo: 5000", "lo: 9000")
    said = reader.read(101.0)
    assert said.network_received_bytes_per_s == 200.0
    assert said.disk_read_bytes_per_s is None
    assert (reader.disks, set(reader.networks)) == ({}, {"eth0", "docker0"})


def test_counters_that_begin_anew_are_no_rate(root):
    reader = SystemReader(root, root)
    reader.read(100.0)
    change(root, "net/dev", "eth0:1000", "eth0:10")
    said = reader.read(110.0)
    assert (said.network_received_bytes_per_s, said.network_sent_bytes_per_s) == (None, 0.0)
    assert reader.networks == {"eth0": (10, 3000)}, "as the kernel says"
    assert reader.read(120.0).network_received_bytes_per_s == 0.0


def test_a_device_that_comes_counts_from_the_next_time():
    one, both = {"a": (100, 0)}, {"a": (200, 0), "usb": (10**9, 0)}
    assert rates(one, both, 10.0) == (10.0, 0.0)
    assert rates(both, {**both, "usb": (10**9 + 50, 0)}, 10.0) == (5.0, 0.0)
    assert rates(both, one, 10.0) == (None, 0.0)
    assert rates(one, {"new": (5, 5)}, 10.0) == (None, None)
    assert rates({}, one, 10.0) == (None, None)
    assert rates(one, one, 0.0) == (None, None)


# psutil does not know diskstats with other numbers of words; lxcfs has had such.
STRANGE = {
    "stat": b"cpu  1 2 3\n",
    "meminfo": b"MemTotal: many kB\n",
    "diskstats": b"8 0 sda 0 0 0 0 46 0 977 34 0 2\n",
    "net/dev": b"one\ntwo\nno colon\n",
}


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("stat", {"cpu_percent"}),
        ("meminfo", MEMORY | {"swap_used_mib"}),
        ("diskstats", RATES["disk"]),
        ("net/dev", RATES["network"]),
    ],
)
@pytest.mark.parametrize("content", ["gone", "strange"])
def test_each_file_fails_by_itself(root, capfd, name, lost, content):
    reader = awake(SystemReader(root, root))
    reader.read(1.0)
    change(root, "stat", "cpu  100", "cpu  150")
    whole = structs.asdict(reader.read(2.0))
    assert None not in whole.values()
    change(root, "stat", "cpu  150", "cpu  170")
    if content == "gone":
        (root / "proc" / name).unlink()
    else:
        write(root, name, STRANGE[name])
    parts = structs.asdict(reader.read(3.0))
    assert {key for key, value in parts.items() if value is None} == lost
    write(root, name, PROC[name])
    reader.read(4.0)
    change(root, "stat", "cpu  1", "cpu  9")
    assert None not in structs.asdict(reader.read(5.0)).values()
    assert capfd.readouterr() == ("", "")


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(list(PROC)), st.binary(max_size=200)))
def test_any_content_is_read_without_an_error(tmp_path_factory, files):
    root = tmp_path_factory.getbasetemp() / "any"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil, "PROCFS_PATH", str(root / "proc"))
        for name in PROC:
            write(root, name, files.get(name, b""))
        reader = SystemReader(root, root)
        reader.read(1.0)
        said = reader.read(2.0)
    assert said.cpu_percent is None or 0 <= said.cpu_percent <= 100


@pytest.mark.parametrize(
    ("module", "name", "lost"),
    [
        (psutil, "virtual_memory", MEMORY),
        (psutil, "swap_memory", {"swap_used_mib"}),
        (psutil, "cpu_times", {"cpu_percent"}),
        (psutil, "disk_io_counters", RATES["disk"]),
        (psutil, "net_io_counters", RATES["network"]),
        (psutil, "disk_usage", {"disk_total_mib", "disk_free_mib"}),
        (os, "getloadavg", {"load_1m"}),
        (time, "clock_gettime", {"uptime_s"}),
    ],
)
def test_what_is_refused_is_unknown(root, monkeypatch, module, name, lost):
    def refuse(*_, **__):
        raise PermissionError(name)

    now = 1.0
    reader = awake(SystemReader(root, root, clock=lambda: now))
    reader.read(now)
    change(root, "stat", "cpu  100", "cpu  150")
    monkeypatch.setattr(module, name, refuse)
    now = 100.0  # free space is told anew
    parts = structs.asdict(reader.read(now))
    assert {key for key, value in parts.items() if value is None} == lost
    if name == "virtual_memory":
        assert reader.memory_available_mib is None


def test_an_estimate_that_makes_no_sense_is_unknown(root):
    change(root, "meminfo", "MemAvailable:  512000 kB", "MemAvailable:  0 kB")
    change(root, "meminfo", "MemFree: 1 kB", "MemFree: -1 kB")
    said = SystemReader(root, root).read(1.0)
    assert (said.memory_total_mib, said.memory_available_mib) == (1000.0, None)


TIMES = st.dictionaries(
    st.sampled_from(["user", "system", "idle", "iowait", "irq"]), st.floats(0, 2**40)
)


@given(TIMES, TIMES)
def test_a_share_is_a_share_whatever_the_counters_do(old, new):
    share = busy_percent(old, new)
    assert share is None or 0 <= share <= 100


def test_this_machine(tmp_path):
    reader = awake(SystemReader(tmp_path))
    reader.read(time.monotonic())
    ends = time.process_time() + 0.1  # a tenth of a second is ten of the kernel's ticks
    while time.process_time() < ends:
        pass
    said = reader.read(time.monotonic())
    assert said.uptime_s == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=2)
    assert said.memory_total_mib == pytest.approx(psutil.virtual_memory().total / MIB, abs=1)
    assert said.cpu_percent > 0
    assert said.load_1m >= 0
    space = os.statvfs(tmp_path)
    assert said.disk_total_mib == pytest.approx(space.f_blocks * space.f_frsize / MIB, abs=1)
    assert said.disk_free_mib == pytest.approx(space.f_bavail * space.f_frsize / MIB, rel=0.1)
    assert reader.disk_free_mib == said.disk_free_mib
    assert reader.disks.keys() <= {disk.name for disk in Path("/sys/block").iterdir()}
    assert "lo" not in reader.networks


def test_a_folder_that_is_not_there_has_no_space(tmp_path):
    said = SystemReader(tmp_path / "gone").read(1.0)
    assert (said.disk_total_mib, said.disk_free_mib) == (None, None)


# --- what may hang ------------------------------------------------------------------------------


class Kernel:
    """Answers, or does not until it is let go."""

    def __init__(self):
        self.asked, self.answer = 0, 7
        self.free = threading.Event()
        self.free.set()
        self.now = 1000.0

    def ask(self):
        self.asked += 1
        self.free.wait(60)
        return self.answer


def test_what_hangs_is_unknown_holds_nobody_up_and_is_asked_once():
    kernel = Kernel()
    aside = Aside(kernel.ask, keep_s=5.0, clock=lambda: kernel.now)
    assert aside.answer(within_s=60) == 7
    kernel.answer = 8
    assert aside.answer() == 7, "kept"
    kernel.free.clear()
    kernel.now += 6
    assert aside.answer() == 7, "old, but not too old"
    for _ in range(50):
        kernel.now += 1
        known = aside.answer()
    assert known is None
    assert kernel.asked == 2
    kernel.free.set()
    aside._thread.join(60)
    assert aside.answer(within_s=60) == 8
    assert kernel.asked == 3, "that answer was too old when it came"


def test_without_a_thread_it_is_unknown(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert Aside(lambda: 1, keep_s=1.0).answer() is None


def test_a_mount_that_hangs_costs_its_own_figures_alone(tmp_path, monkeypatch):
    free, asked, statvfs = threading.Event(), [], os.statvfs

    def hang(path):
        asked.append(path)
        free.wait(60)
        return statvfs(path)

    monkeypatch.setattr(os, "statvfs", hang)
    reader = SystemReader(tmp_path)
    for now in (1.0, 2.0, 3.0):
        said = reader.read(now)
        assert (said.disk_total_mib, said.disk_free_mib) == (None, None)
        assert reader.disk_free_mib is None
        assert said.memory_total_mib > 0
    assert asked == [str(tmp_path)], "once"
    free.set()
    reader._space._thread.join(60)
    assert reader.disk_free_mib > 0


# --- processes ----------------------------------------------------------------------------------


@pytest.fixture
def child():
    """Works for a tenth of a second, holds 64 MiB, says so, and waits."""
    code = """
import time
x = bytearray(64 << 20)
while time.process_time() < 0.1:
    pass
print(flush=True)
input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_process_with_memory_of_its_own(child):
    reader = ProcessReader()
    assert reader.cpu_s == {}
    first = reader.read({"worker": child.pid, "none": None})
    assert first["none"] is None
    assert first["worker"].cpu_percent is None
    assert 64 < first["worker"].pss_mib <= first["worker"].rss_mib + 1
    assert first["worker"].fds >= 3
    assert first["control"].pss_mib is not None
    assert first["control"].fds == psutil.Process().num_fds() - 1, "without the look's own"
    assert reader.cpu_s.keys() == {"worker", "control"}
    assert 0.05 < reader.cpu_s["worker"] <= sum(psutil.Process(child.pid).cpu_times()[:2]) + 0.01
    before = reader.cpu_s
    assert reader.read({"worker": child.pid})["worker"].cpu_percent is not None
    assert reader.cpu_s is not before, "another thread may look at it"
    child.kill()
    child.communicate()
    assert reader.read({"worker": child.pid})["worker"] is None
    assert reader.cpu_s.keys() == {"control"}


def test_memory_of_a_process_that_has_just_begun_is_not_kept_for_long(child, monkeypatch):
    now = [1000.0]
    asked = []
    monkeypatch.setattr(processes, "read_pss_bytes", lambda pid: asked.append(pid) or 7 * MIB)
    reader = ProcessReader(lambda: now[0])
    for _ in range(60):
        reader.read({})
        now[0] += 1.0
    assert len(asked) == PSS_KEEP_S / YOUNG_KEEP_S + 1
    asked.clear()
    reader.read({"worker": child.pid})
    assert reader.read({"worker": child.pid})["worker"].pss_mib == 7
    assert asked == [os.getpid(), child.pid]


def test_without_a_descriptor_left_processes_are_unknown(monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    reader = ProcessReader()
    reader.read({})
    monkeypatch.setattr(psutil.Process, "num_threads", refuse)
    assert reader.read({}) == {"control": None}
    assert reader.cpu_s == {}


def test_memory_of_a_process_that_has_ended_is_unknown(child):
    assert read_pss_bytes(child.pid) > 64 * MIB
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie until waited for
    assert read_pss_bytes(child.pid) is None
    child.communicate()
    assert read_pss_bytes(child.pid) is None


def test_memory_that_is_not_for_us_is_unknown(monkeypatch):
    def refuse(process):
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", psutil.Process.memory_info)
    assert read_pss_bytes(os.getpid()) is None, "a kernel built without"
    monkeypatch.setattr(psutil.Process, "memory_full_info", refuse)
    assert read_pss_bytes(os.getpid()) is None
    assert ProcessReader().read({})["control"].pss_mib is None
