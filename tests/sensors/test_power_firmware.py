"""The Raspberry Pi 5's power chip, and the mailbox through which it is asked."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import BOARDS, identity, silent

from agent.contract.reading import BoardIdentity
from agent.sensors import mailbox
from agent.sensors.files import BoardFiles
from agent.sensors.mailbox import Mailbox, decode, encode, through_mailbox
from agent.sensors.pmic import SILENT_FOR_S, parse
from agent.sensors.power import PowerReader

CAPTURED = (BOARDS / "rpi-5-load/cmd/vcgencmd_pmic_read_adc.txt").read_text()
PI_5 = identity("raspberry-pi", "bcm2712")


class Firmware:
    """Answers pmic_read_adc, and counts."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = 0

    def __call__(self, *command, **_):
        assert command == ("vcgencmd", "pmic_read_adc")
        self.asked += 1
        return self.answer


def read(tmp_path, answer, at_s=0.0, board=PI_5):
    return PowerReader(BoardFiles(tmp_path), board, Firmware(answer)).read(at_s).power


@pytest.mark.parametrize("board", ["rpi-500", "rpi-cm5", "rpi-6"])
def test_all_boards_of_its_kind(tmp_path, board):
    """A Raspberry Pi that is not known here is asked: it may have one."""
    soc = None if board == "rpi-6" else "bcm2712"
    its = BoardIdentity(id=board, family="raspberry-pi", soc=soc, model=None, compatible=[])
    power = read(tmp_path, CAPTURED, board=its)
    assert power.total_w == pytest.approx(7.239819, abs=1e-6)
    assert power.input_voltage_v == 5.09066


@pytest.mark.parametrize("soc", ["bcm2835", "bcm2837", "bcm2711"])
def test_older_boards_are_not_asked(tmp_path, soc):
    firmware = Firmware(CAPTURED)
    reader = PowerReader(BoardFiles(tmp_path), identity("raspberry-pi", soc), firmware)
    assert reader.read(0.0).power.scope == "none"
    assert firmware.asked == 0


def test_pairs_go_by_name(tmp_path):
    """The numbers of a current and its voltage differ."""
    power = read(
        tmp_path,
        "A_A current(16)=2.0A\nB_V volt(16)=9.0V\nB_A current(1)=1.0A\nA_V volt(19)=3.0V\n"
        "EXT5V_V volt(24)=5.1V",
    )
    assert {name: rail.power_w for name, rail in power.rails.items()} == {"A": 6.0, "B": 9.0}
    assert power.excluded_from_total == ["EXT5V (no current)"]


def test_an_answer_that_was_cut_off(tmp_path):
    """Currents stand first: without all voltages the sum would be too low."""
    lines = CAPTURED.splitlines()
    power = read(tmp_path, "\n".join(lines[:20]))
    assert (power.kind, power.scope, power.total_w) == ("unavailable", "pmic_rails_sum", None)
    assert power.rails_unreadable == ["3V3_DAC", "3V3_ADC", "0V8_AON", "HDMI"]
    assert "VDD_CORE" in power.excluded_from_total


@pytest.mark.parametrize("answer", [None, "", 'error=1 error_msg="Command not registered"'])
def test_nobody_answers(tmp_path, answer):
    firmware = Firmware(answer)
    reader = PowerReader(BoardFiles(tmp_path), PI_5, firmware)
    power = reader.read(0.0).power
    assert (power.kind, power.scope, power.total_w) == ("unavailable", "none", None)
    assert "pmic_read_adc" in power.reason
    reader.read(SILENT_FOR_S / 2)
    assert firmware.asked == 1
    firmware.answer = CAPTURED
    assert reader.read(SILENT_FOR_S).power.kind == "measured"
    firmware.answer = None
    gone = reader.read(SILENT_FOR_S + 1).power
    assert (gone.scope, gone.total_w) == ("pmic_rails_sum", None)


@given(st.text(max_size=300))
def test_any_answer(text):
    amps, volts = parse(text)
    assert all(value == value for value in [*amps.values(), *volts.values()])  # no NaN


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z0-9]{1,8}(_[A-Z0-9]{1,8})?", fullmatch=True),
        st.tuples(st.floats(0, 99), st.floats(0, 30)),
        max_size=20,
    )
)
def test_every_pair_is_found(rails):
    lines = [f"  {name}_A current({i})={a:.8f}A" for i, (name, (a, _)) in enumerate(rails.items())]
    lines += [f"{name}_V volt({i})={v:.8f}V" for i, (name, (_, v)) in enumerate(rails.items(), 40)]
    amps, volts = parse("\n".join(lines))
    assert amps == pytest.approx({name: a for name, (a, _) in rails.items()}, abs=1e-8)
    assert volts == pytest.approx({name: v for name, (_, v) in rails.items()}, abs=1e-8)


def answering(text, status=0x80000000, error=0):
    """Return an ioctl that answers as the kernel's vcio does, in the caller's memory."""

    def ioctl(_descriptor, request, message, mutate):
        # _IOWR(100, 0, char *) for this machine's pointers.
        assert request == {4: 0xC0046400, 8: 0xC0086400}[struct.calcsize("P")]
        assert mutate
        size, process, tag, room, length, fault = struct.unpack_from("=6I", message)
        assert (size, process, tag, room) == (len(message), 0, 0x00030080, 1024)
        assert (length, fault) == (0, 0)
        assert bytes(message[24:]).split(b"\0")[0] == b"get_throttled"
        assert message[-4:] == bytes(4)  # the end tag
        struct.pack_into("=I", message, 4, status)
        struct.pack_into("=I", message, 20, error)
        message[24 : 24 + len(text) + 1] = text.encode() + b"\0"
        return 0

    return ioctl


@pytest.fixture
def box(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/vcio").write_bytes(b"")
    opened = Mailbox(tmp_path)
    yield opened
    opened.close()


def test_the_mailbox(box, monkeypatch):
    monkeypatch.setattr(mailbox.fcntl, "ioctl", answering("throttled=0x50005"))
    ask = through_mailbox(silent, box)
    assert ask("vcgencmd", "get_throttled") == "throttled=0x50005"


@pytest.mark.parametrize(
    "ioctl",
    [
        answering("throttled=0x0", status=0x80000001),
        answering("throttled=0x0", error=1),
        answering('error=1 error_msg="Command not registered"'),
        answering(""),
    ],
)
def test_what_the_mailbox_cannot_say_is_asked_of_the_program(box, monkeypatch, ioctl):
    monkeypatch.setattr(mailbox.fcntl, "ioctl", ioctl)
    asked = []
    ask = through_mailbox(lambda *command, **_: asked.append(command) or "throttled=0x1", box)
    assert ask("vcgencmd", "get_throttled") == "throttled=0x1"
    assert asked == [("vcgencmd", "get_throttled")]


def test_a_device_that_is_no_mailbox(box):
    """A plain file takes no such ioctl (ENOTTY), each time anew."""
    assert [box.answer("get_throttled") for _ in range(3)] == [None, None, None]


def test_no_device(tmp_path):
    assert Mailbox(tmp_path).answer("get_throttled") is None
    ask = through_mailbox(lambda *command, **_: command[0], Mailbox(tmp_path))
    assert ask("iw", "dev") == "iw"


@given(st.binary(max_size=1200))
def test_any_message(message):
    answer = decode(message)
    assert answer is None or answer


def test_commands_too_long_are_cut():
    message = encode("x" * 5000)
    assert len(message) == 24 + 1024 + 4
    assert message[24 + 1023] == 0
