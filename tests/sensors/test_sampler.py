"""The sampling thread with readers that fail in every way, and the reader of a whole board."""

import logging
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_trees import BOARDS, NAMES, chip, expected, grow, silent, zone

from agent.sensors.reader import LOOK_AGAIN_S, BoardReader, Look
from agent.sensors.replay import open_board
from agent.sensors.sampler import FRESH_FOR_S, Sampler, next_turn

WAIT_S = 30.0


def reader_of(board):
    opened = open_board(BOARDS / board)
    return BoardReader(ask=opened.ask, files=opened.files)


READING = reader_of("rpi-4b").read(0.0).reading


class Scripted:
    """Does what it is told at each look, then looks well for ever."""

    def __init__(self, *script):
        self.script = list(script)
        self.looks = 0
        self.closed = threading.Event()

    def read(self, at_s=None):
        self.looks += 1
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        if callable(step):
            return step()
        return Look(reading=READING, energy_j=None, at_s=at_s)

    def close(self):
        self.closed.set()


class Seen:
    """What the sampler handed out, to be waited for."""

    def __init__(self):
        self.looks = []
        self._more = threading.Condition()

    def __call__(self, look):
        with self._more:
            self.looks.append(look)
            self._more.notify_all()

    def wait(self, count):
        with self._more:
            assert self._more.wait_for(lambda: len(self.looks) >= count, WAIT_S)


@pytest.fixture
def run():
    """Start a sampler that is always stopped."""
    started = []

    def of(reader, on_look, every_s=0.01):
        sampler = Sampler(reader, every_s=every_s, on_look=on_look)
        started.append(sampler)
        sampler.start()
        return sampler

    yield of
    for sampler in started:
        sampler.stop()


def test_looks_are_handed_out(run):
    reader, seen = Scripted(), Seen()
    sampler = run(reader, seen)
    seen.wait(3)
    sampler.stop()
    assert sampler.latest is seen.looks[-1]
    assert sampler.cpu_ms > 0
    assert sampler.ticked_at == seen.looks[-1].at_s
    times = [look.at_s for look in seen.looks]
    assert times == sorted(set(times))
    assert reader.closed.wait(WAIT_S)
    assert reader.looks == len(seen.looks)


def test_the_first_look_is_taken_at_once(run):
    seen = Seen()
    sampler = run(Scripted(), seen, every_s=3600.0)
    seen.wait(1)
    sampler.stop()  # and does not wait for the next
    assert len(seen.looks) == 1


def fail():
    raise OSError(5, "a driver's fault")


def test_a_reader_that_raises(run, caplog):
    seen = Seen()
    run(Scripted(ValueError(1), ValueError(2), fail, RuntimeError(), ZeroDivisionError()), seen)
    seen.wait(2)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 4, said
    assert sum("ValueError" in message for message in said) == 1


def test_a_reader_that_returns_garbage(run, caplog):
    seen = Seen()
    sampler = run(Scripted(lambda: None, lambda: "garbage", lambda: 3.3), seen)
    seen.wait(1)
    assert isinstance(sampler.latest, Look)
    assert all(isinstance(look, Look) for look in seen.looks)
    assert "a look is no NoneType" in caplog.text


def test_a_user_that_raises(run, caplog):
    reader, seen = Scripted(), Seen()

    def on_look(look):
        seen(look)
        raise KeyError(len(seen.looks))

    run(reader, on_look)
    seen.wait(3)
    assert sum("KeyError" in record.getMessage() for record in caplog.records) == 1


def test_a_reader_that_hangs(run):
    hanging, released = threading.Event(), threading.Event()

    def hang():
        hanging.set()
        released.wait(WAIT_S)
        return Look(reading=READING, energy_j=None, at_s=time.monotonic())

    seen = Seen()
    sampler = run(Scripted(None, hang), seen)
    assert hanging.wait(WAIT_S)
    at_s = sampler.latest.at_s
    assert sampler.fresh(at_s + FRESH_FOR_S) is sampler.latest
    assert sampler.fresh(at_s + FRESH_FOR_S + 0.1) is None
    sampler.stop()
    assert not released.is_set()
    released.set()


def test_stopping_twice_or_before_the_start():
    sampler = Sampler(Scripted(), on_look=lambda _: None)
    sampler.stop()
    sampler.stop()
    assert sampler.fresh(0.0) is None
    assert sampler.cpu_ms is None


def test_a_reader_that_cannot_be_closed(run, caplog):
    reader = Scripted()
    ended = threading.Event()

    def close():
        ended.set()
        raise OSError(9, "no such thing")

    reader.close = close
    sampler = run(reader, lambda _: None)
    sampler.stop()
    assert ended.wait(WAIT_S)


@given(
    st.floats(0, 1e9),
    st.floats(0, 1e4),
    st.floats(0.01, 100),
)
def test_turns_do_not_drift(due, late_s, every_s):
    now = due + late_s
    following = next_turn(due, now, every_s)
    turns = (following - due) / every_s
    assert turns == pytest.approx(round(turns), abs=1e-3)
    assert following > now - every_s * 1e-3
    assert following <= now + every_s * 1.001


@pytest.mark.parametrize("board", NAMES)
def test_every_board_is_looked_at(board):
    """Fields are compared elsewhere; here that the parts come together, and stay together."""
    reader = reader_of(board)
    first, second = reader.read(10.0), reader.read(11.0)
    reader.close()
    assert first.at_s == 10.0
    assert first.reading.temps_c == pytest.approx(expected(board)["temps_c"])
    assert second.reading.throttle == first.reading.throttle
    assert second.reading.read_errors == first.reading.read_errors
    assert "ENOENT" not in first.reading.read_errors.values()


def test_errors_are_named(tmp_path):
    opened = open_board(BOARDS / "jetson-orin-nano-r36")
    errors = BoardReader(ask=opened.ask, files=opened.files).read().reading.read_errors
    assert errors == expected("jetson-orin-nano-r36")["read_errors"]


def test_what_is_plugged_in_later_is_found(tmp_path):
    grow(tmp_path, zone(0, "cpu-thermal", 40000))
    reader = BoardReader(tmp_path, silent)
    assert reader.read(0.0).reading.accel is None
    grow(tmp_path, {"sys/class/apex/apex_0/temp": 50000})
    assert reader.read(LOOK_AGAIN_S - 1).reading.accel is None
    look = reader.read(LOOK_AGAIN_S)
    assert look.reading.accel.temp_c == 50.0
    assert look.reading.temps_c == {"cpu-thermal": 40.0, "apex_0": 50.0}


def test_a_chip_that_was_replaced_is_found(tmp_path):
    grow(tmp_path, chip(0, "rpi_volt", in0_lcrit_alarm=1) | chip(1, "gpio_fan", fan1_input=1000))
    reader = BoardReader(tmp_path, silent)
    assert reader.read(0.0).reading.fan.rpm == 1000
    (tmp_path / "sys/class/hwmon/hwmon1").rename(tmp_path / "sys/class/old")
    grow(tmp_path, chip(1, "nvme", temp1_input=30000))
    look = reader.read(LOOK_AGAIN_S)
    assert look.reading.fan is None
    answer = "throttled=0x0"
    reader = BoardReader(tmp_path, lambda *command, **_: answer)
    reader.read(0.0)
    grow(tmp_path, chip(2, "tach", rpm=1))
    # What was seen before all was found anew is still known.
    assert reader.read(LOOK_AGAIN_S).reading.throttle.since_boot.under_voltage
