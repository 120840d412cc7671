"""Percentiles against exact ones, merging, bounded memory, and the book of all cameras."""

import gc
import json
import threading
import tracemalloc
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.contract.payloads import encode
from agent.contract.telemetry import Percentiles, Stage
from agent.link import FrameTimes
from agent.telemetry.latency import (
    BOUNDS_S,
    EVERY_FRAME,
    MOST_DELIVERED,
    RELATIVE_ERROR,
    Distribution,
    LatencyBook,
    Times,
)

US, MS, S = 10**3, 10**6, 10**9
DAY = 86_400 * S
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
NONE = Percentiles(count=0, p50=None, p90=None, p99=None, p999=None, max=None)
nanoseconds = st.integers(0, 2**64 - 1)


def exact(values):
    """Return what each percentile stands for, in milliseconds."""
    ordered = np.sort(np.asarray(values, np.uint64))
    return {
        name: int(ordered[int(np.floor(share * (len(ordered) - 1)))]) / MS
        for name, share in SHARES.items()
    }


def check(shown, values):
    assert shown.count == len(values)
    assert shown.max == int(max(values)) / MS
    for name, value in exact(values).items():
        assert abs(getattr(shown, name) - value) <= RELATIVE_ERROR * value, name
    assert shown.p50 <= shown.p90 <= shown.p99 <= shown.p999 <= shown.max


def nasty(name, count):
    """Return nanoseconds, int64[count]."""
    dice = np.random.default_rng(7)
    near, far = dice.normal(8 * MS, MS / 10, count), dice.normal(1.9 * S, S / 10, count)
    made = {
        "bimodal": lambda: np.where(dice.random(count) < 0.985, near, far),
        "heavy tail": lambda: np.minimum(dice.pareto(0.7, count) * 100 * US, 400 * DAY),
        "from 1 ns to a day": lambda: np.exp(dice.uniform(0, np.log(DAY), count)),
        "microseconds": lambda: dice.uniform(500, 5 * US, count),
        "constant": lambda: np.full(count, 33_333_333),
        "two far points": lambda: np.where(dice.random(count) < 0.5, 1, DAY),
        "mostly zero": lambda: np.where(dice.random(count) < 0.95, 0, 7 * MS),
        "huge": lambda: dice.uniform(300 * DAY, 9e18, count),
        "rising": lambda: np.arange(1, count + 1) * 977,
        "falling": lambda: np.arange(count, 0, -1) * 977,
        "one late": lambda: np.append(np.full(count - 1, 5 * MS), 60 * S),
    }
    return made[name]().astype(np.int64)


@pytest.mark.parametrize(
    "name",
    [
        "bimodal",
        "heavy tail",
        "from 1 ns to a day",
        "mostly zero",
        "microseconds",
        "two far points",
        "constant",
        "huge",
        "rising",
        "falling",
        "one late",
    ],
)
def test_percentiles_are_within_the_stated_error(name):
    values = nasty(name, 10**5)
    times = Times()
    for ns in values.tolist():
        times.record(ns)
    check(times.percentiles(), values)


@given(st.lists(nanoseconds, min_size=1, max_size=60))
def test_percentiles_of_few_are_within_it_as_well(values):
    times = Times()
    for ns in values:
        times.record(ns)
    check(times.percentiles(), np.array(values, np.uint64))


def test_no_bin_is_ever_given_up():
    """From the shortest to the longest that a stamp can tell, in the order that widens most."""
    times = Times()
    values = [2**64 - 1, 1, 2**40, 0, 1, 1]
    for ns in values:
        times.record(ns)
    check(times.percentiles(), np.array(values, np.uint64))
    assert not times._sketch._store.is_collapsed
    assert times._sketch._store.length() <= times._sketch._store.bin_limit


def test_constant_times_are_shown_no_longer_than_they_are():
    times = Times()
    for _ in range(10):
        times.record(100 * MS)
    shown = times.percentiles()
    assert shown.p999 <= shown.max == 100.0
    assert shown.p50 == pytest.approx(100.0, rel=RELATIVE_ERROR)


@given(st.lists(st.lists(nanoseconds, max_size=20), min_size=3, max_size=3))
@settings(max_examples=200)
def test_merging_is_associative_and_commutative(parts):
    def of(*which):
        times = Times()
        for values in which:
            for ns in values:
                times.record(ns)
        return times

    def merged(*which):
        times = Times()
        for one in which:
            times.merge(one)
        return times

    a, b, c = parts
    left = merged(merged(of(a), of(b)), of(c)).percentiles()
    right = merged(of(a), merged(of(b), of(c))).percentiles()
    turned = merged(of(c), of(b), of(a)).percentiles()
    assert left == right == turned == of(a, b, c).percentiles()


@given(st.lists(st.one_of(nanoseconds, st.just(None)), max_size=40))
def test_windows_add_up_to_the_whole(events):
    """None ends a window."""
    book, window, whole, expected = Distribution(), [], [], Times()
    for ns in events:
        if ns is None:
            shown = book.window()
            assert shown == NONE if not window else shown.count == len(window)
            window = []
        else:
            book.record(ns)
            expected.record(ns)
            window.append(ns)
            whole.append(ns)
        assert book.total() == expected.percentiles()
    assert book.buckets().sum_s == sum(whole) / S
    assert sum(book.buckets().counts) == len(whole)


def test_a_window_knows_nothing_of_the_one_before():
    book = Distribution()
    book.record(S)
    assert book.window().max == 1000.0
    book.record(MS)
    shown = book.window()
    assert (shown.count, shown.max) == (1, 1.0)
    assert book.window() == NONE
    assert (book.total().count, book.total().max) == (2, 1000.0)


@given(st.lists(st.one_of(nanoseconds, st.sampled_from([round(b * S) for b in BOUNDS_S]))))
def test_buckets_are_exact_and_a_bound_belongs_to_its_own(values):
    book = Distribution()
    for ns in values:
        book.record(ns)
    buckets = book.buckets()
    assert buckets.bounds == BOUNDS_S
    up_to = np.cumsum(buckets.counts).tolist()
    assert up_to == [
        *(sum(ns <= round(bound * S) for ns in values) for bound in BOUNDS_S),
        len(values),
    ]


def test_digits_are_enough_for_the_bound_and_no_more():
    book = Distribution()
    for _ in range(10):
        book.record(12_345_678)
    book.record(20_000_001)
    shown = json.loads(encode(book.total()))
    assert len(str(shown["p50"]).replace(".", "")) <= 5
    assert shown["max"] == 20.000001


def test_memory_stays_within_what_the_docstring_says():
    def grown(values):
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        book = LatencyBook({"a": 0.0})
        for ns in values:
            book.note_frames([FrameTimes("a", ns, ns, ns, ns, ns, ns, ns)])
            book.note_delivered("a", 1, 1, ns + 1, 2 * ns + 1)
        book.window("a")
        for ns in values:
            book.note_frames([FrameTimes("a", ns, ns, ns, ns, ns, ns, ns)])
            book.note_delivered("a", 1, 1, ns + 1, 2 * ns + 1)
        book.catch_up()
        gc.collect()
        size = tracemalloc.get_traced_memory()[0] - before
        assert set(book.since_start("a")) == set(get_args(Stage))
        return size

    every_bin = [int(1.0199**at) for at in range(1, 2200)]
    usual = [int(100 * US * 1.0199**at) for at in range(585)]
    tracemalloc.start()
    try:
        most, typical = grown(every_bin), grown(usual)
    finally:
        tracemalloc.stop()
    assert most < 1.5e6
    assert typical < 0.45e6


def frame(camera="door", **times):
    stages = dict.fromkeys(("age", "queue", "preprocess", "inference", "postprocess"), MS)
    return FrameTimes(camera, **{**stages, "cascade": 0, "total": 5 * MS, **times})


def test_the_book_keeps_cameras_and_stages_apart():
    book = LatencyBook({"door": 0.0, "yard": 0.0})
    book.note_frames([frame(age=2 * MS), frame("yard", cascade=3 * MS), frame("gone")])
    door, yard = book.window("door"), book.window("yard")
    assert list(door) == list(EVERY_FRAME)
    assert {shown.count for shown in door.values()} == {1}
    assert (door["age"].max, yard["age"].max) == (2.0, 1.0)
    assert yard["cascade"].max == 3.0
    assert list(yard) == [stage for stage in get_args(Stage) if stage in yard]
    assert set(book.window("door").values()) == {NONE}
    assert book.since_start("door")["total"].count == 1
    histograms = book.buckets()
    assert sum(histograms["door"]["total"].counts) == 1
    assert histograms["yard"]["cascade"].sum_s == 0.003
    assert set(histograms["door"]) == set(EVERY_FRAME)


def test_before_the_first_frame_all_is_null():
    book = LatencyBook({"door": 0.0})
    assert book.window("door") == dict.fromkeys(EVERY_FRAME, NONE)
    assert book.since_start("door") == dict.fromkeys(EVERY_FRAME, NONE)


def test_deadlines_are_missed_by_what_takes_longer():
    book = LatencyBook({"door": 33.3, "yard": 0.0})
    totals = (33_299_999, 33_300_000, 33_300_001, S)
    book.note_frames([frame(total=total) for total in totals])
    book.note_frames([frame("yard", total=S)])
    assert (book.deadline_ms("door"), book.misses("door")) == (33.3, 2)
    assert (book.deadline_ms("yard"), book.misses("yard")) == (None, None)


def test_what_is_delivered_adds_up_to_end_to_end():
    book = LatencyBook({"door": 0.0})
    captured, encoded, sent, acknowledged = DAY, DAY + 20 * MS, DAY + 21 * MS, DAY + 24 * MS
    book.note_delivered("door", captured, encoded, sent, acknowledged)
    book.note_delivered("gone", captured, encoded, sent, acknowledged)
    window = book.window("door")
    shown = {stage: window[stage].max for stage in ("publish", "acknowledge", "end_to_end")}
    assert shown == {"publish": 1.0, "acknowledge": 3.0, "end_to_end": 24.0}


def test_unknown_stamps_count_for_nothing():
    book = LatencyBook({"door": 0.0})
    book.note_delivered("door", DAY, DAY + 1, DAY + 2, 0)  # QoS 0
    book.note_delivered("door", 0, 0, DAY, DAY + MS)  # read back from disk
    window = book.window("door")
    assert (window["publish"].count, window["acknowledge"].count) == (1, 1)
    assert "end_to_end" not in window


def test_another_thread_delivers_while_the_main_one_reads():
    book, number = LatencyBook({"door": 0.0}), 20_000
    read = 0

    def deliver():
        for at in range(number):
            while len(book._delivered) >= MOST_DELIVERED - 1:
                pass
            book.note_delivered("door", 1, 2, 3 + at, 4 + 2 * at)

    thread = threading.Thread(target=deliver)
    thread.start()
    while thread.is_alive():
        read += book.window("door").get("publish", NONE).count
    read += book.window("door")["publish"].count
    thread.join()
    assert (read, book.lost) == (number, 0)
    assert book.since_start("door")["end_to_end"].count == number


def test_deliveries_that_nobody_takes_over_are_bounded_and_counted():
    book = LatencyBook({"door": 0.0})
    for _ in range(MOST_DELIVERED + 5):
        book.note_delivered("door", 1, 2, 3, 4)
    assert book.lost == 5
    assert book.window("door")["publish"].count == MOST_DELIVERED
