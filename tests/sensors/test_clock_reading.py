"""Whether the clock is to be believed: timesyncd's word, the kernel's, and none."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.sensors.clock import (
    STEP_S,
    ask_kernel,
    judge_capture,
    read_clock_offset_s,
    read_clock_synced,
    read_kernel_boot_id,
)

TEN_YEARS_S = 10 * 365.25 * 86400


@pytest.mark.parametrize(
    ("folder", "file", "kernel", "expected"),
    [
        (True, True, None, True),  # a unit's filter refuses adjtimex; timesyncd has answered
        (True, True, False, True),  # long without a time server, but it was set
        (False, False, True, True),  # chrony, ntpd
        (False, False, False, False),
        (False, False, None, None),
        (True, False, None, False),  # timesyncd runs and has not heard from a server yet
        (True, False, False, False),
        (True, False, True, True),
    ],
)
def test_clock_is_synced_if_anyone_says_so(tmp_path, folder, file, kernel, expected):
    place = tmp_path / "run/systemd/timesync"
    if folder:
        place.mkdir(parents=True)
    if file:
        (place / "synchronized").touch()
    assert read_clock_synced(tmp_path, kernel=lambda: kernel) is expected


def test_this_kernel_answers():
    assert ask_kernel() in (True, False, None)
    assert read_clock_synced() in (True, False, None)


def test_kernel_boot_id(tmp_path):
    assert read_kernel_boot_id(tmp_path) is None
    file = tmp_path / "proc/sys/kernel/random/boot_id"
    file.parent.mkdir(parents=True)
    file.write_text("0ce61866-1fb7-4492-b353-659434aa407f\n")
    assert read_kernel_boot_id(tmp_path) == "0ce61866-1fb7-4492-b353-659434aa407f"
    file.write_text("\n")
    assert read_kernel_boot_id(tmp_path) is None
    file.write_bytes(b"\xff")
    assert read_kernel_boot_id(tmp_path) is None
    assert len(read_kernel_boot_id()) == 36


def test_offset_links_the_clocks():
    assert abs(time.monotonic() + read_clock_offset_s() - time.time()) < 1.0


@given(
    is_synced=st.sampled_from([True, False, None]),
    uptime_s=st.floats(0, 1e7),
    age_s=st.floats(0, 5),
    step_s=st.one_of(st.just(0.0), st.floats(-TEN_YEARS_S, TEN_YEARS_S)),
)
def test_word_and_offset_agree(is_synced, uptime_s, age_s, step_s):
    """A result says `true` exactly where there is nothing to correct."""
    offset_s = 1.7e9
    captured_ns, captured_at = int(uptime_s * 1e9), uptime_s + offset_s
    said, known_s = judge_capture(
        is_synced, captured_at, captured_ns, read_offset_s=lambda: offset_s + step_s
    )
    assert (said is True) is (known_s is None)
    if known_s is not None:
        assert known_s == pytest.approx(offset_s, abs=1e-6)
    if is_synced is not True:
        assert said is is_synced
    elif abs(step_s) < STEP_S / 2:
        assert said is True
    elif abs(step_s) > STEP_S * 2:
        assert said is False, "the clock was set while the frame was under way"
