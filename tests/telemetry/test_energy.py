"""Energy of windows: exact where it can be, invalid where samples are missing, never made up."""

from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec import json as msgspec_json

from agent.contract.reading import BoardIdentity, Power, Reading
from agent.contract.telemetry import EnergyTelemetry
from agent.sensors.reader import BoardReader
from agent.telemetry.baseline import BASELINE_FILE, Baseline, read_baseline, write_baseline
from agent.telemetry.energy import EnergyMeter, Tally
from agent.telemetry.integral import Sample, gap_limit_s, measure, sample_of

TRACES = Path(__file__).resolve().parents[1] / "boards" / "_energy"
CASES = json.loads((TRACES / "expected.json").read_text())["cases"]


@dataclass(frozen=True)
class Look:
    reading: Reading
    energy_j: float | None
    at_s: float


def look(
    at_s, power_w, *, energy_j=None, kind="measured", scope="module_input", sensor="ina3221 A"
):
    power = Power(
        kind=kind, scope=scope, total_w=power_w, rails={}, in_total=[], excluded_from_total=[],
        sensor=sensor, reason=None if kind == "measured" else "no sensor answers",
    )  # fmt: skip
    board = BoardIdentity(id="board-1", family="generic", soc=None, model=None, compatible=[])
    reading = Reading(
        board_id=board, power=power, estimate=None, temps_c={}, temps_unreadable=[],
        temps_ignored=[], throttle=None, clocks_hz=None, fan=None, accel=None, read_errors={},
    )  # fmt: skip
    return Look(reading, energy_j, at_s)


def trace(points, **more):
    return [Sample(at_s=at_s, power_w=power_w, **more) for at_s, power_w in points]


def counter(points):
    return [Sample(at_s=at_s, power_w=None, energy_j=energy_j) for at_s, energy_j in points]


# --- the integrals ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_traces_with_known_answers(case):
    with (TRACES / case["file"]).open() as file:
        points = [(float(row["t_mono_s"]), float(row["power_w"])) for row in csv.DictReader(file)]
    energy = measure(trace(points), *case["window_s"], every_s=0.1)
    assert energy.source == "trapezoid"
    assert energy.gross_j == pytest.approx(case["gross_j"], abs=1e-6)
    assert energy.net_j(case["idle_w"]) == pytest.approx(case["net_j"], abs=1e-6)
    assert energy.largest_gap_s == pytest.approx(case["max_gap_s"], abs=1e-9)
    assert (energy.why_invalid is None) == case["valid"]
    if case["valid"]:
        assert energy.mean_w == pytest.approx(case["mean_power_w"], abs=1e-9)
        each_j = energy.gross_j / case["inferences"], energy.net_j(3.0) / case["inferences"]
        wanted = case["gross_j_per_inference"], case["net_j_per_inference"]
        assert each_j == pytest.approx(wanted, abs=1e-9)
        assert energy.coverage == pytest.approx(1.0)
    else:
        assert energy.why_invalid == "no sample for 1.5 s, allowed are 0.5 s"
        assert energy.coverage < 0.2


@st.composite
def traces(draw, least=2):
    """Samples at uneven distances of at most 0.4 s, power of either sign."""
    steps = draw(st.lists(st.integers(1, 400), min_size=least - 1, max_size=20))
    watts = draw(
        st.lists(st.integers(-2000, 50_000), min_size=len(steps) + 1, max_size=len(steps) + 1)
    )
    times = [100.0 + sum(steps[:at]) / 1e3 for at in range(len(steps) + 1)]
    return list(zip(times, (one / 1e3 for one in watts), strict=True))


def joules(points, start_s, end_s):
    """The plain definition: the line between the samples, summed over its corners."""

    def at(moment):
        for (a_s, a_w), (b_s, b_w) in itertools.pairwise(points):
            if a_s <= moment <= b_s:
                return a_w + (b_w - a_w) * (moment - a_s) / (b_s - a_s)
        raise AssertionError(moment)

    corners = [start_s, *(at_s for at_s, _ in points if start_s < at_s < end_s), end_s]
    return math.fsum((at(a) + at(b)) / 2 * (b - a) for a, b in itertools.pairwise(corners))


@given(traces(), st.floats(0, 1), st.floats(0, 1))
def test_a_window_is_the_area_below_its_line(points, one, other):
    first_s, last_s = points[0][0], points[-1][0]
    start_s, end_s = (first_s + (last_s - first_s) * share for share in sorted((one, other)))
    assume(end_s - start_s > 1e-6)
    energy = measure(trace(points), start_s, end_s, every_s=0.1)
    assert energy.gross_j == pytest.approx(joules(points, start_s, end_s), abs=1e-7)
    assert energy.seconds == pytest.approx(end_s - start_s)


@settings(max_examples=40)
@given(traces(), st.floats(0.01, 0.99))
def test_windows_add_up(points, share):
    start_s, end_s = points[0][0], points[-1][0]
    middle_s = start_s + (end_s - start_s) * share
    whole, left, right = (
        measure(trace(points), a, b, every_s=0.1).gross_j or 0.0
        for a, b in ((start_s, end_s), (start_s, middle_s), (middle_s, end_s))
    )
    assert left + right == pytest.approx(whole, abs=1e-7)


@settings(max_examples=40)
@given(traces(), st.sets(st.sampled_from([0.2, 0.5, 0.9])))
def test_more_samples_on_the_same_lines_change_nothing(points, shares):
    finer = []
    for (a_s, a_w), (b_s, b_w) in itertools.pairwise(points):
        finer.append((a_s, a_w))
        finer += [
            (a_s + (b_s - a_s) * share, a_w + (b_w - a_w) * share) for share in sorted(shares)
        ]
    finer.append(points[-1])
    window = points[0][0], points[-1][0]
    coarse = measure(trace(points), *window, every_s=0.1)
    fine = measure(trace(finer), *window, every_s=0.1)
    assert fine.gross_j == pytest.approx(coarse.gross_j, abs=1e-7)
    assert fine.largest_gap_s <= coarse.largest_gap_s + 1e-9


@settings(max_examples=20)
@given(traces(), st.floats(-5, 50))
def test_constant_power_is_exact(points, watts):
    steady = [(at_s, watts) for at_s, _ in points]
    energy = measure(trace(steady), steady[0][0], steady[-1][0], every_s=0.1)
    assert energy.gross_j == pytest.approx(watts * energy.seconds, rel=1e-12, abs=1e-12)
    assert energy.net_j(watts) == pytest.approx(0.0, abs=1e-9)


@settings(max_examples=40)
@given(traces(least=3), st.floats(0.05, 0.95))
def test_a_counter_gives_the_same_energy_as_the_power_it_counts(points, share):
    start_s = points[0][0]
    counted = [
        (at_s, joules(points, start_s, at_s) if at_s > start_s else 0.0) for at_s, _ in points
    ]
    assume(all(a[1] <= b[1] for a, b in itertools.pairwise(counted)))
    stop_s = points[max(1, int(share * len(points)))][0]
    energy = measure(counter(counted), start_s, stop_s, every_s=0.1)
    assert energy.source == "counter"
    assert energy.gross_j == pytest.approx(joules(points, start_s, stop_s), abs=1e-7)


def test_a_counter_is_preferred_and_holes_inside_cost_it_nothing():
    samples = [
        Sample(at_s=at_s, power_w=1.0, energy_j=5.0 * at_s) for at_s in (0.0, 0.1, 30.1, 30.2)
    ]
    energy = measure(samples, 0.0, 30.2, every_s=0.1)
    assert (energy.source, energy.why_invalid) == ("counter", None)
    assert energy.gross_j == pytest.approx(151.0)
    assert energy.largest_gap_s == pytest.approx(30.0)


def test_a_hole_that_the_end_cuts_is_one_for_counters_too():
    energy = measure(counter([(0.0, 0.0), (0.1, 1.0), (30.0, 300.0)]), 0.0, 10.0, every_s=0.1)
    assert energy.why_invalid == "no sample for 29.9 s, allowed are 0.5 s"


def test_a_counter_that_begins_anew_leaves_the_power():
    samples = [Sample(at_s=at_s / 10, power_w=2.0, energy_j=float(at_s % 7)) for at_s in range(20)]
    energy = measure(samples, 0.0, 1.9, every_s=0.1)
    assert (energy.source, energy.why_invalid) == ("trapezoid", None)
    assert energy.gross_j == pytest.approx(3.8)
    alone = [replace(sample, power_w=None) for sample in samples]
    assert measure(alone, 0.0, 1.9, every_s=0.1).why_invalid == "the energy counter began anew"


@pytest.mark.parametrize("power_w", [2.0, None])
def test_a_counter_that_could_not_be_read_may_have_missed_something(power_w):
    samples = [Sample(at_s=at / 10, power_w=2.0, energy_j=at / 5) for at in range(20)]
    samples[9] = Sample(at_s=0.9, power_w=power_w, why_not="EAGAIN")
    energy = measure(samples, 0.0, 1.9, every_s=0.1)
    assert (energy.source, energy.why_invalid) == ("trapezoid", None)
    alone = [replace(sample, power_w=None) for sample in samples]
    assert measure(alone, 0.0, 1.9, every_s=0.1).why_invalid == (
        "the energy counter could not be followed"
    )


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        ([], "the board was not looked at"),
        (trace([(1.0, None)], why_not="permission"), "permission"),
        (trace([(at / 10, 1.0) for at in range(4)]), "too few samples: 4, at least 5"),
        (trace([(at / 10, 1.0) for at in range(40)]), "no sample for 6.1 s, allowed are 0.5 s"),
        (
            [
                *trace([(at / 10, 1.0) for at in range(50)], sensor="a", scope="module_input"),
                *trace([(at / 10, 1.0) for at in range(50, 101)], sensor="b", scope="board_input"),
            ],
            "the sensor changed from a (module_input) to b (board_input)",
        ),
    ],
)
def test_what_cannot_be_trusted_says_why(samples, why):
    end_s = 0.3 if "few" in why else 10.0
    assert measure(samples, 0.0, end_s, every_s=0.1).why_invalid == why


def test_samples_that_cover_too_little_are_no_window():
    energy = measure(trace([(at / 10, 1.0) for at in range(5, 36)]), 0.1, 3.9, every_s=0.1)
    assert energy.why_invalid == "samples cover 79% of the time, at least 90%"
    assert energy.seconds == pytest.approx(3.0)


@pytest.mark.parametrize(("every_s", "limit_s"), [(0.1, 0.5), (0.2, 0.5), (1.0, 2.5)])
def test_holes_are_judged_by_how_often_samples_are_taken(every_s, limit_s):
    assert gap_limit_s(every_s) == limit_s


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_power(value):
    assert not sample_of(look(1.0, value, energy_j=value)).is_measured


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("estimated", "power is estimated here, not measured"),
        ("unavailable", "no sensor answers"),
    ],
)
def test_only_what_was_measured_is_energy(kind, why):
    samples = [sample_of(look(at / 10, 3.0, energy_j=at, kind=kind)) for at in range(50)]
    energy = measure(samples, 0.0, 4.9, every_s=0.1)
    assert (energy.gross_j, energy.source, energy.why_invalid) == (None, None, why)
    assert energy.scope == "module_input"


# --- the meter ----------------------------------------------------------------------------------


def metered(looks, until, meter=None, **settings):
    meter = meter or EnergyMeter(**settings)
    for one in looks:
        meter.add(one)
    return meter, meter.window(until)


def figures(said: EnergyTelemetry):
    return {
        name: getattr(said, name)
        for name in (
            "mean_w", "gross_j", "net_j", "gross_mj_per_inference", "net_mj_per_inference",
        )
    }  # fmt: skip


def test_a_window_ends_at_its_last_sample_and_the_next_begins_there():
    meter, first = metered([look(100.0 + at, 5.0) for at in range(11)], 110.7)
    assert first.valid
    assert (first.window_s, first.gross_j, first.mean_w) == (10.0, 50.0, 5.0)
    assert (first.samples, first.coverage, first.largest_gap_s) == (11, 1.0, 1.0)
    _, second = metered([look(111.0 + at, 7.0) for at in range(10)], 120.3, meter)
    assert second.window_s == 10.0
    assert second.gross_j == pytest.approx(6.0 + 9 * 7.0)
    assert meter.total_j == pytest.approx(first.gross_j + second.gross_j)


@settings(max_examples=40)
@given(traces(least=12), st.sets(st.integers(1, 20), max_size=5))
def test_windows_of_the_meter_are_those_of_the_whole_trace(points, cuts):
    meter = EnergyMeter(every_s=0.16, least_samples=2)
    said = []
    for number, (at_s, watts) in enumerate(points):
        meter.add(look(at_s, watts))
        if number in cuts or number == len(points) - 1:
            said.append(meter.window(at_s + 0.05))
    whole = measure(trace(points), points[0][0], points[-1][0], every_s=0.16)
    assert all(one.valid for one in said)
    assert math.fsum(one.gross_j for one in said) == pytest.approx(whole.gross_j, abs=1e-2)
    assert math.fsum(one.window_s for one in said) == pytest.approx(whole.seconds, abs=1e-2)


def test_inferences_are_of_the_windows_own_time():
    meter = EnergyMeter()
    for tenth in range(1000, 1108):
        at_s = tenth / 10
        if tenth % 10 == 0:
            meter.add(look(at_s, 6.0))
        if tenth % 5 == 4:  # workers speak twice a second; 20 inferences a second
            meter.note_inferences(10, at_s)
    said = meter.window(110.8)
    assert said.window_s == 10.0
    assert said.inferences == pytest.approx(200, abs=8)  # the first note has none before it
    assert said.gross_mj_per_inference == pytest.approx(60.0 * 1e3 / said.inferences, abs=1e-3)
    for tenth in range(1108, 1209):
        at_s = tenth / 10
        if tenth % 10 == 0:
            meter.add(look(at_s, 6.0))
        if tenth % 5 == 4:
            meter.note_inferences(10, at_s)
    assert meter.window(120.9).inferences == 200


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=25), st.data())
def test_no_inference_is_lost_between_windows(notes, data):
    tally, now, total, counted = Tally(), 0.0, 0, 0
    tally.begin(0.0)
    for count, tenths in notes:
        now += tenths / 10
        tally.note(count, now)
        total += count
        if data.draw(st.booleans()):
            end_s = now - data.draw(st.floats(0.0, 0.1))
            counted += tally.count(end_s)
            tally.begin(end_s)
    assert counted + tally.count(now) == total


def test_without_inferences_there_is_no_figure_for_one():
    _, said = metered([look(float(at), 5.0) for at in range(11)], 10.5)
    assert said.valid
    assert said.gross_j == 50.0
    assert (said.inferences, said.gross_mj_per_inference) == (0, None)


def test_without_a_sensor_everything_is_null():
    looks = [
        look(float(at), None, kind="unavailable", scope="none", sensor=None) for at in range(9)
    ]
    meter, said = metered(looks, 8.5)
    assert (said.valid, said.why_invalid, said.source) == (False, "no sensor answers", None)
    assert set(figures(said).values()) == {None}
    assert (said.scope, said.samples, said.coverage) == ("none", 0, None)
    assert meter.total_j is None


def test_a_meter_that_saw_nothing_yet_says_so():
    said = EnergyMeter().window(5.0)
    assert (said.valid, said.window_s) == (False, 0.0)
    assert said.why_invalid == "the board was not looked at"


def test_an_estimate_is_never_an_energy():
    looks = [look(float(at), 4.0, kind="estimated") for at in range(11)]
    meter, said = metered(looks, 10.5)
    assert said.why_invalid == "power is estimated here, not measured"
    assert set(figures(said).values()) == {None}
    assert meter.total_j is None


@pytest.mark.parametrize(("lost", "is_valid"), [(1, True), (2, False)])
def test_one_lost_sample_is_bridged_and_two_are_a_hole(lost, is_valid):
    looks = [look(float(at), 5.0) for at in range(11) if not 4 <= at < 4 + lost]
    meter, said = metered(looks, 10.2)
    assert said.valid == is_valid
    if not is_valid:
        assert said.why_invalid == "no sample for 3 s, allowed are 2.5 s"
        assert set(figures(said).values()) == {None}
        assert meter.total_j == pytest.approx(35.0), "without the hole"


def test_a_sampler_that_hangs_spoils_its_windows_and_no_others():
    meter, good = metered([look(float(at), 5.0) for at in range(11)], 10.5)
    assert good.valid
    assert not meter.window(20.5).valid
    looks = [look(25.0 + at, 5.0) for at in range(6)]
    _, hanging = metered(looks, 30.5, meter)
    assert "no sample for" in hanging.why_invalid
    _, after = metered([look(31.0 + at, 5.0) for at in range(10)], 40.5, meter)
    assert (after.valid, after.window_s, after.gross_j) == (True, 10.0, 50.0)
    assert meter.total_j == pytest.approx(50.0 + 25.0 + 50.0)


def test_a_sensor_that_comes_back_as_another_one_begins_anew():
    looks = [look(float(at), 5.0) for at in range(6)]
    looks += [look(float(at), 9.0, sensor="ina226", scope="board_input") for at in range(6, 11)]
    meter, said = metered(looks, 10.5)
    assert "the sensor changed from ina3221 A (module_input) to ina226" in said.why_invalid
    assert meter.total_j == pytest.approx(36.0)


def test_a_processors_own_counter_runs_through_and_goes_on(tmp_path):
    shutil.copytree(TRACES.parent / "x86-rapl", tmp_path / "board")
    zone = tmp_path / "board/sys/class/powercap/intel-rapl:0"
    range_uj = int((zone / "max_energy_range_uj").read_text())
    reader = BoardReader(tmp_path / "board")
    meter = EnergyMeter()
    for at in range(13):
        counted_uj = range_uj - 30_000_000 + 8_000_000 * at
        (zone / "energy_uj").write_text(f"{counted_uj % range_uj}\n")
        meter.add(reader.read(100.0 + at))
    reader.close()
    said = meter.window(112.5)
    assert (said.valid, said.source, said.scope) == (True, "counter", "cpu_package")
    assert said.window_s == 11.0, "from the first look that tells power"
    assert said.gross_j == pytest.approx(88.0, abs=1e-3)
    assert meter.total_j == pytest.approx(88.0, abs=1e-3)


def test_looks_out_of_order_are_left_out():
    looks = [look(float(at), 5.0) for at in (0, 1, 2, 1, 2, 3, 4, 5)]
    _, said = metered(looks, 5.5)
    assert (said.valid, said.samples, said.gross_j) == (True, 6, 25.0)


def test_power_that_flows_back_keeps_its_sign_but_a_counter_never_falls():
    meter, said = metered([look(float(at), -0.4) for at in range(11)], 10.5)
    assert said.gross_j == -4.0
    assert meter.total_j == 0.0


def test_two_threads_lose_no_joule():
    meter = EnergyMeter(least_samples=2)
    stop = threading.Event()
    now, said = 0.0, []

    def take():
        while not stop.wait(1e-4):
            said.append(meter.window(now))

    thread = threading.Thread(target=take)
    thread.start()
    for at in range(500):
        now = at / 10
        meter.add(look(now, 5.0))
        meter.note_inferences(3, now)
    stop.set()
    thread.join()
    said.append(meter.window(now))
    assert meter.total_j == pytest.approx(0.5 * 499)
    assert math.fsum(one.gross_j or 0.0 for one in said) == pytest.approx(0.5 * 499, abs=0.1)
    assert sum(one.inferences for one in said) <= 3 * 499


# --- the baseline -------------------------------------------------------------------------------


def rest(**changed):
    fields = {
        "board": "board-1", "scope": "module_input", "sensor": "ina3221 A", "idle_w": 3.0,
        "drift_w": -0.02, "seconds": 20.0, "samples": 200, "measured_at": 1.7e9,
    }  # fmt: skip
    return Baseline(**{**fields, **changed})


def test_net_is_without_what_the_board_draws_at_rest():
    meter = EnergyMeter(rest())
    meter.note_inferences(0, 0.0)
    meter.note_inferences(100, 10.0)
    _, said = metered([look(float(at), 5.0) for at in range(11)], 10.5, meter)
    assert (said.gross_j, said.idle_w, said.net_j) == (50.0, 3.0, 20.0)
    assert (said.gross_mj_per_inference, said.net_mj_per_inference) == (500.0, 200.0)


def test_a_rest_that_was_higher_gives_a_negative_net():
    _, said = metered([look(float(at), 2.5) for at in range(11)], 10.5, baseline=rest())
    assert said.net_j == -5.0


@pytest.mark.parametrize(
    "changed", [{"board": "board-2"}, {"scope": "board_input"}, {"sensor": "ina3221 B"}]
)
def test_a_baseline_of_something_else_is_ignored_and_said_once(changed, caplog):
    meter, said = metered(
        [look(float(at), 5.0) for at in range(11)], 10.5, baseline=rest(**changed)
    )
    _, again = metered([look(11.0 + at, 5.0) for at in range(10)], 20.5, meter)
    for one in (said, again):
        assert (one.gross_j, one.idle_w, one.net_j) == (50.0, None, None)
    told = [record for record in caplog.records if "no net energy" in record.getMessage()]
    assert len(told) == 1
    assert next(iter(changed)) in told[0].getMessage()


def test_the_baseline_that_applies_now():
    meter = EnergyMeter(rest())
    assert meter.idle_w is None, "nothing has measured yet"
    for at in range(5):
        meter.add(look(float(at), 5.0))
        assert meter.idle_w == 3.0
    meter.window(4.5)
    assert meter.idle_w == 3.0, "of no interval"
    meter.add(look(5.0, None))
    assert meter.idle_w == 3.0, "one look may fail"
    meter.add(look(8.0, None))
    assert meter.idle_w is None, "the sensor is gone"
    meter.add(look(9.0, 9.0, sensor="ina226", scope="board_input"))
    assert meter.idle_w is None, "of another one"
    meter.add(look(10.0, 5.0))
    assert meter.idle_w == 3.0


@pytest.mark.parametrize("kind", ["estimated", "unavailable"])
def test_without_a_sensor_no_baseline_applies(kind):
    meter, said = metered(
        [look(float(at), 5.0, kind=kind) for at in range(9)], 8.5, baseline=rest()
    )
    assert (meter.idle_w, said.idle_w) == (None, None)
    meter, _ = metered([look(float(at), 5.0) for at in range(9)], 8.5)
    assert meter.idle_w is None, "none was measured"


def test_a_baseline_is_kept(tmp_path):
    assert read_baseline(tmp_path) == (None, None)
    path = write_baseline(tmp_path / "state", rest())
    assert path.name == BASELINE_FILE
    assert read_baseline(tmp_path / "state") == (rest(), None)


GOOD = msgspec_json.decode(msgspec_json.encode(rest()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        msgspec_json.encode(GOOD)[:-9],
        msgspec_json.encode({**GOOD, "more": 1}),
        msgspec_json.encode({**GOOD, "idle_w": "3"}),
        msgspec_json.encode({**GOOD, "idle_w": 1e9}),
        msgspec_json.encode(GOOD).replace(b'"idle_w":3.0', b'"idle_w":1e999'),
        msgspec_json.encode(GOOD).replace(b'"idle_w":3.0', b'"idle_w":NaN'),
        msgspec_json.encode({**GOOD, "samples": 0}),
        msgspec_json.encode({**GOOD, "scope": "the moon"}),
        msgspec_json.encode({**GOOD, "schema": "edge-agent/power-baseline/2"}),
        b" " * 5000 + msgspec_json.encode(GOOD),
    ],
)
def test_a_damaged_baseline_is_none_with_a_reason(tmp_path, content):
    (tmp_path / BASELINE_FILE).write_bytes(content)
    found, why = read_baseline(tmp_path)
    assert found is None
    assert BASELINE_FILE in why


@settings(max_examples=30)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_baseline_or_a_reason(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / BASELINE_FILE).write_bytes(content)
    found, why = read_baseline(folder)
    assert (found is None) != (why is None)


def test_a_baseline_that_cannot_be_read_is_none_with_a_reason(tmp_path):
    (tmp_path / BASELINE_FILE).mkdir()
    found, why = read_baseline(tmp_path)
    assert found is None
    assert "cannot be read" in why
