"""Recordings: what is in them reads as the board did, and nothing in them says whose it is."""

import errno
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import msgspec
import pytest
from board_readings import BOARDS, NAMES, reading_of
from commands import edge_agent
from hypothesis import given
from hypothesis import strategies as st
from read_errors import ReadErrors, build

from agent.errors import AgentError
from agent.sensors.board import identify
from agent.sensors.command import run_record
from agent.sensors.files import BoardFiles
from agent.sensors.privacy import own_names
from agent.sensors.recorder import ERRORS, TIMES, Look, compose, record
from agent.sensors.replay import Board, open_board

PROJECT = Path(__file__).resolve().parent.parent.parent
MAC = "dc:a6:32:01:23:45"
SERIAL = "10000000abcdef01"
HOST = "garden-shed"
UUID = "4c4c4544-0042-3510-8054-b7c04f564433"


def everything(folder):
    """All that a recording says, with the names of its files."""
    return b"\n".join(
        str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def board_with(tmp_path, name="rpi-cm4-ina219", **files):
    """A copy of a board with further files, named by their paths with __ for /."""
    board = tmp_path / "board"
    shutil.copytree(BOARDS / name, board)
    for path, text in files.items():
        write(board / path.replace("__", "/"), text)
    return board


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name, tmp_path, capsys):
    assert run_record(BOARDS / name, tmp_path / name) == 0
    original, replayed = reading_of(BOARDS / name), reading_of(tmp_path / name)
    assert replayed == original
    expected = json.loads((tmp_path / name / "expected.json").read_text())
    assert {key: expected[key] for key in original if key != "power"} == {
        key: value for key, value in original.items() if key != "power"
    }
    tolerance = {"tolerance_w": expected["power"]["tolerance_w"]}
    assert expected["power"] == original["power"] | tolerance
    assert expected["provenance"]["status"] == "recorded"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["jetson-nano-r32", "x86-rapl"])
def test_one_file_to_send(name, tmp_path):
    done = edge_agent("sensors", "--root", BOARDS / name, "--record", tmp_path / "mine.tar.gz")
    assert (done.returncode, done.stderr) == (0, "")
    with tarfile.open(tmp_path / "mine.tar.gz") as archive:
        entries = archive.getmembers()
        archive.extractall(tmp_path / "out", filter="data")
    assert {entry.name.split("/")[0] for entry in entries} == {"mine"}
    assert {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in entries} == {
        (0, 0, "", "", 0)
    }
    assert all(entry.isreg() for entry in entries)
    assert reading_of(tmp_path / "out/mine") == reading_of(BOARDS / name)


def test_what_is_there_is_kept(tmp_path):
    board = BOARDS / "generic-none"
    run_record(board, tmp_path / "one.tar.gz")
    before = (tmp_path / "one.tar.gz").read_bytes()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes").write_text("mine")
    for taken, said in (("one.tar.gz", "already"), ("file", "no folder"), ("folder", "not empty")):
        with pytest.raises(AgentError, match=said):
            run_record(board, tmp_path / taken)
    assert (tmp_path / "one.tar.gz").read_bytes() == before
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["notes"]
    (tmp_path / "empty").mkdir()
    assert run_record(board, tmp_path / "empty") == 0
    with pytest.raises(AgentError, match="could not be written"):
        run_record(board, tmp_path / "file/below")


def test_a_disk_that_is_full(tmp_path):
    """No half an archive is left, which would be in the way of the next."""
    board, there = tmp_path / "board", tmp_path / "there"
    for number in range(200):
        name = "".join(random.Random(number).choices("ghjkmnpqrtvwxyz", k=60))
        write(board / f"sys/class/hwmon/hwmon{number}/name", f"{name}\n")
    program = f"""
import resource, signal
from pathlib import Path
from agent.sensors.command import run_record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
run_record(Path({str(board)!r}), Path({str(there)!r}) / "mine.tar.gz")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True
    )
    assert "AgentError: the recording could not be written" in done.stderr
    assert list(there.iterdir()) == []


def test_nobody_is_named(tmp_path, capsys):
    """What names the board is in files that are never taken, and, here, in some that would be."""
    board = board_with(
        tmp_path,
        etc__hostname=f"{HOST}.example.org\n",
        **{
            "etc__machine-id": "0123456789abcdef0123456789abcdef\n",
            "proc__device-tree__serial-number": SERIAL + "\0",
            "proc__sys__kernel__random__boot_id": UUID + "\n",
            "sys__class__dmi__id__product_serial": "4471-9913\n",
            "sys__class__net__eth0__address": MAC + "\n",
            "sys__class__net__eth0__operstate": "up\n",
            "sys__class__hwmon__hwmon3__name": "ds2438\n",
            "sys__class__hwmon__hwmon3__in1_label": f"of {HOST.upper()}\n",
            "sys__class__hwmon__hwmon3__in2_label": "28:01:4a:5b:6c:7d\n",
            "sys__class__hwmon__hwmon3__temp1_label": f"id {SERIAL}\n",
            "sys__class__hwmon__hwmon3__temp2_label": "unit 4471-9913 rear\n",
            "sys__class__hwmon__hwmon3__temp3_label": f"{UUID}\n",
            "sys__class__hwmon__hwmon3__temp4_label": "Serial No: 77\n",
            "sys__class__hwmon__hwmon3__temp5_label": "e45f01abc99d\n",
            "sys__class__hwmon__hwmon3__temp5_input": "41000\n",
            "sys__class__hwmon__hwmon3__uevent": "anything\n",
            "sys__class__power_supply__BAT0__serial_number": "SN-2231X\n",
            "sys__class__power_supply__BAT0__manufacturer": "SANYO\n",
            "sys__class__power_supply__BAT0__type": "Battery\n",
            "sys__class__power_supply__hid-aa:bb:cc:dd:ee:ff-battery__type": "Battery\n",
            "proc__cpuinfo": f"processor\t: 0\nCPU part\t: 0xd08\nSerial\t\t: {SERIAL}\n",
            "cmd__vcgencmd_measure_temp.txt": f"temp=48.0'C {HOST}\n",
        },
    )
    assert run_record(board, tmp_path / "out") == 0
    said = everything(tmp_path / "out").lower()
    for private in (HOST, MAC, SERIAL, UUID, "4471-9913", "e45f01abc99d", "aa:bb:cc", "sanyo"):
        assert private.encode() not in said, private
    for secret in (b"0123456789abcdef", b"28:01:4a", b"sn-2231x", b"serial no", b"operstate"):
        assert secret not in said, secret
    # What may be told is.
    out = tmp_path / "out"
    assert (out / "sys/class/hwmon/hwmon3/temp5_input").read_text() == "41000\n"
    assert (out / "proc/cpuinfo").read_text() == "CPU part\t: 0xd08\n"
    assert b"Compute Module 4" in (out / "proc/device-tree/model").read_bytes()
    assert (out / "sys/class/power_supply/BAT0/type").exists()
    assert not (out / "cmd/vcgencmd_measure_temp.txt").exists()
    told = capsys.readouterr().err
    assert "left out: /sys/class/hwmon/hwmon3/in1_label, as it holds the host's name" in told
    assert told.count("left out") == 9
    assert b"files left out, as they named this one board: 9" in everything(out)


def test_a_host_that_is_called_as_all_are(tmp_path):
    """`raspberrypi` stands in the model of every Raspberry Pi."""
    board = board_with(tmp_path, etc__hostname="raspberrypi\n")
    assert run_record(board, tmp_path / "out") == 0
    assert (tmp_path / "out/proc/device-tree/compatible").exists()
    assert b"left out, as they named this one board: 0" in everything(tmp_path / "out")


def test_counters_are_no_serial_numbers():
    private = own_names(BoardFiles(BOARDS / "generic-none"), ["nas"])
    for harmless in (
        b"240422366267\n",
        b"262143328850",
        b"# R36 (release), GCID: 38968081",
        b"abc",
    ):
        assert private.reason("sys/class/powercap/intel-rapl:0:0/energy_uj", harmless) is None
    assert private.reason("a/file", b"on nas now") == "the host's name"
    assert private.reason("a/file", b"nasal") is None


def test_only_what_is_asked_for_and_no_more_of_it(tmp_path):
    """Links in circles, pipes that nobody writes to, folders, endless files."""
    board = board_with(tmp_path)
    chip = board / "sys/class/hwmon/hwmon7"
    write(chip / "name", "odd\n")
    (chip / "in1_input").mkdir()
    os.mkfifo(chip / "in2_input")
    (chip / "in3_input").symlink_to(chip / "in4_input")
    (chip / "in4_input").symlink_to(chip / "in3_input")
    (chip / "temp1_input").symlink_to("/dev/zero")
    (chip / "temp2_input").write_bytes(b"1" * 100_000)
    (chip / "device").symlink_to(board / "sys/class/hwmon")
    (board / "sys/class/hwmon/hwmon8").symlink_to(board / "sys/class/hwmon")
    write(chip / "secret", "of the user\n")
    (chip / "reset_history").write_text("0\n")
    assert run_record(board, tmp_path / "out") == 0
    out = tmp_path / "out/sys/class/hwmon/hwmon7"
    assert {path.name for path in out.iterdir()} == {"name", "temp2_input"}
    assert (out / "temp2_input").stat().st_size == 4096
    sizes = [path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert max(sizes) <= 4096
    assert not (tmp_path / "out/sys/class/hwmon/hwmon8").exists()


def test_files_that_fail_are_recorded_as_such(tmp_path):
    """In a process of its own, where reading them really fails."""
    library = build(tmp_path)
    if library is None:
        pytest.skip("no C compiler (cc, gcc or clang) to build the faults with")
    board = board_with(tmp_path, "jetson-orin-nano-r36")
    (board / ERRORS).unlink()
    failing = {
        "sys/class/thermal/thermal_zone0/temp": "EAGAIN",
        "sys/class/hwmon/hwmon1/curr1_input": "ENODATA",
        "sys/class/thermal/thermal_zone5/temp": "EACCES",
    }
    errors = ReadErrors(tmp_path)
    for path, code in failing.items():
        errors.fail(board / path, getattr(errno, code))
    command = ["sensors", "--root", board, "--record", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "agent", *map(str, command)],
        cwd=PROJECT,
        env={**os.environ, **errors.environment(library)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    errors.close()
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / ERRORS).read_text()) == failing
    reading = reading_of(tmp_path / "out")
    assert reading["read_errors"] == failing
    assert reading["power"]["total_w"] is None


def test_a_driver_that_hangs(tmp_path, monkeypatch):
    """What was read until then is kept, and the file is named."""
    real, release = BoardFiles.whole, threading.Event()

    def whole(files, path):
        if path.endswith("thermal_zone0/temp"):
            release.wait(60)
        return real(files, path)

    monkeypatch.setattr(BoardFiles, "whole", whole)
    board = open_board(BOARDS / "rpi-4b")
    try:
        recording = record(board, own_names(board.files), within_s=1.5)
    finally:
        release.set()
    path = "sys/class/thermal/thermal_zone0/temp"
    assert recording.hung_at == path
    assert json.loads(recording.files[ERRORS]) == {path: "ETIMEDOUT"}
    assert "proc/device-tree/model" in recording.files
    assert path not in recording.files


def test_two_moments_of_a_live_board(tmp_path):
    """Between the looks a second passes, in which the files change."""
    board_folder = board_with(tmp_path, "x86-rapl")
    shutil.rmtree(board_folder / "samples")
    counter = board_folder / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.write_text("1000000\n")
    board = Board(files=BoardFiles(board_folder), ask=lambda *_: None, is_live=True)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        counter.write_text("3500000\n")

    files = record(board, own_names(board.files), sleep=sleep).files
    assert slept == [1.0]
    assert files["sys/class/powercap/intel-rapl:0/energy_uj"] == b"1000000\n"
    assert files["samples/001/sys/class/powercap/intel-rapl:0/energy_uj"] == b"3500000\n"
    # Counters that stood still are in each sample, other files only if they changed.
    assert "samples/001/sys/class/powercap/intel-rapl:0:1/energy_uj" in files
    assert not [path for path in files if path.startswith("samples") and "thermal" in path]
    assert [moment["dir"] for moment in json.loads(files[TIMES])] == ["000", "001"]


def test_this_very_machine(tmp_path):
    done = edge_agent("sensors", "--record", tmp_path / "here")
    assert done.returncode == 0, done.stderr
    here = tmp_path / "here"
    expected = json.loads((here / "expected.json").read_text())
    assert reading_of(here)["board_id"] == expected["board_id"]
    assert msgspec.to_builtins(identify(BoardFiles())) == expected["board_id"]
    said = everything(here).lower()
    machine = Path("/etc/machine-id")
    if machine.exists() and machine.read_bytes().strip():
        assert machine.read_bytes().strip().lower() not in said
    if len(socket.gethostname()) > 4:
        assert f"\n{socket.gethostname()}".lower().encode() not in said


SAID = st.dictionaries(
    st.sampled_from(["a", "b/c", "x/energy_uj"]),
    st.one_of(st.binary(max_size=3), st.sampled_from(["EAGAIN", "EIO"])),
)


@given(looks=st.lists(SAID, min_size=1, max_size=3))
def test_composed_and_laid_out_again(looks, tmp_path_factory):
    """At the last moment every file says what it said last, or fails as it did."""
    tree = compose([Look(float(number), said) for number, said in enumerate(looks)])
    folder = tmp_path_factory.mktemp("board")
    for path, content in tree.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    board = open_board(folder)
    assert len(list(board.moments())) == len(looks)
    last = {path: said for look in looks for path, said in look.items()}
    for path in ("a", "b/c", "x/energy_uj"):
        wanted = last.get(path)
        if isinstance(wanted, bytes):
            assert board.files.whole(path) == wanted
        elif wanted is None:
            assert not board.files.has(path)
        else:
            with pytest.raises(OSError, match="failed where it was recorded") as caught:
                board.files.whole(path)
            assert errno.errorcode[caught.value.errno] == wanted
    board.files.close()
