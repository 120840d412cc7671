"""Times from before the clock was set are right once it is; everything else stays as it was."""

import json
import time

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from made_up_board import MadeUpBoard

from agent.contract.payloads import Result, encode
from agent.contract.telemetry import Telemetry
from agent.daemon.clock_repair import ClockRepair, shift_time
from agent.daemon.outbox import ClockMark, Record

BOOT = "0ce61866-1fb7-4492-b353-659434aa407f"
TEN_YEARS_S = 10 * 365.25 * 86400


class Clock:
    """A board's clocks: the monotonic one goes on, the other one is set."""

    def __init__(self, *, offset_s=1.6e9, is_synced=False):
        self.offset_s = offset_s
        self.is_synced = is_synced

    def repair(self, boot=BOOT):
        return ClockRepair(
            boot=boot, read_synced=lambda: self.is_synced, read_offset_s=lambda: self.offset_s
        )


def result(captured_at=0.0, **more):
    fields = {
        "schema": "edge-agent/detections/1",
        "device": "porch-pi",
        "captured_at": captured_at,
        "clock_synced": False,
        "latency_ms": 34.044,
        "detections": [{"label": "cat", "score": 0.9844, "box": [715.4, 49.4, 1141.8, 350.6]}],
    }
    return json.dumps(fields | more).encode()


MARK = ClockMark(boot=BOOT, offset_s=1.6e9)


def record(payload, clock=MARK):
    return Record(topic="t", payload=payload, stream="s", seq=7, clock=clock)


@given(
    monotonic_s=st.floats(0, 1e8),
    offset_s=st.floats(0, 2e9),
    step_s=st.floats(-TEN_YEARS_S, TEN_YEARS_S),
)
@example(monotonic_s=12.5, offset_s=0.0, step_s=1.76e9)
@example(monotonic_s=12.5, offset_s=1.6e9, step_s=0.0)
def test_a_time_is_right_after_any_step(monotonic_s, offset_s, step_s):
    clock = Clock(offset_s=offset_s + step_s, is_synced=True)
    before = record(result(monotonic_s + offset_s), ClockMark(boot=BOOT, offset_s=offset_s))
    after = clock.repair().repair(before)
    fields = json.loads(after.payload)
    assert fields["captured_at"] == pytest.approx(monotonic_s + offset_s + step_s, abs=2e-6)
    assert (fields["clock_synced"], fields["clock_repaired"]) == (True, True)
    assert after.clock is None
    assert (after.topic, after.stream, after.seq) == ("t", "s", 7)


def test_everything_else_keeps_its_bytes_and_its_order():
    payload = (
        b'{"seq":1,"captured_at":12.25,"clock_synced":null,"big":123456789012345678901234567890,'
        b'"f":1.10,"text":"\\u00e9\\/","none":null,"nested":{"captured_at":1,"b":[1.0,2]}}'
    )
    assert shift_time(payload, 100.0) == (
        b'{"seq":1,"captured_at":112.25,"clock_synced":true,"clock_repaired":true,'
        b'"big":123456789012345678901234567890,"f":1.10,"text":"\\u00e9\\/","none":null,'
        b'"nested":{"captured_at":1,"b":[1.0,2]}}'
    )


def test_telemetry_is_of_its_schema_after_it():
    message = msgspec.structs.replace(MadeUpBoard().telemetry(), at=100.5, clock_synced=False)
    clock = Clock(offset_s=1.6e9 + 50, is_synced=True)
    repaired = clock.repair().repair(record(encode(message)))
    decoded = msgspec.json.decode(repaired.payload, type=Telemetry, strict=True)
    assert decoded == msgspec.structs.replace(
        message, at=150.5, clock_synced=True, clock_repaired=True
    )
    # Each key stands where a message that was written so has it.
    assert list(json.loads(repaired.payload)) == list(json.loads(encode(decoded)))


def test_latency_is_untouched():
    fields = json.loads(Clock(is_synced=True).repair().repair(record(result(5.0))).payload)
    assert fields["latency_ms"] == 34.044
    assert "clock_repaired" in Result.__struct_fields__


@pytest.mark.parametrize("is_synced", [False, None])
def test_nothing_changes_while_the_clock_is_not_set(is_synced):
    before = record(result(5.0))
    assert Clock(is_synced=is_synced, offset_s=9.0).repair().repair(before) is before


def test_another_boot_of_the_kernel_is_not_repaired():
    before = record(result(5.0), ClockMark(boot="another", offset_s=0.0))
    assert Clock(is_synced=True).repair().repair(before) is before


def test_without_a_boot_id_nothing_is_marked_or_repaired():
    repair = Clock(is_synced=True).repair(boot="")
    assert repair.mark(1.0) is None
    before = record(result(5.0), ClockMark(boot="", offset_s=0.0))
    assert repair.repair(before) is before


def test_a_record_with_a_right_time_is_left_alone():
    before = record(result(5.0), None)
    assert Clock(is_synced=True).repair().repair(before) is before


def test_a_second_repair_changes_nothing():
    repair = Clock(is_synced=True, offset_s=1.6e9 + 3600).repair()
    once = repair.repair(record(result(5.0)))
    assert repair.repair(once) is once


def test_a_record_sent_twice_is_repaired_from_what_it_was():
    """What was not acknowledged is taken again; the marks are still those of its capture."""
    clock = Clock(is_synced=True, offset_s=1.6e9 + 10)
    before = record(result(5.0))
    first = clock.repair().repair(before)
    clock.offset_s += 0.001
    second = clock.repair().repair(before)
    times = [json.loads(one.payload)["captured_at"] for one in (first, second)]
    assert times == [15.0, 15.001]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"online",
        b"\xff\xfe",
        b"{}",
        b'{"captured_at":"now"}',
        b'{"captured_at":null}',
        b'{"captured_at":true}',
        b'{"captured_at":1e999}',
        b'{"\xff":1,"at":2}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_cannot_be_read_is_left_alone(payload):
    before = record(payload)
    assert Clock(is_synced=True).repair().repair(before) is before


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(payload):
    Clock(is_synced=True).repair().repair(record(payload))


def test_marks():
    clock = Clock()
    repair = clock.repair()
    assert repair.mark(None) is None
    assert repair.mark(2.5) == ClockMark(boot=BOOT, offset_s=2.5)
    at, is_synced, mark = repair.stamp()
    assert is_synced is False
    assert mark.offset_s == pytest.approx(time.time() - time.monotonic(), abs=5.0)
    assert at == pytest.approx(time.time(), abs=5.0)
    clock.is_synced = True
    assert repair.stamp()[1:] == (True, None)


def test_this_kernel_s_boot():
    assert ClockRepair().mark(1.0).boot
