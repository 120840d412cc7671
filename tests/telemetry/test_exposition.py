"""What /metrics says, read back as Prometheus reads it."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_board import STAGES, MadeUpBoard
from msgspec import UNSET, Struct
from msgspec.structs import replace as changed
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from prometheus_tools import promtool

from agent.contract.payloads import CameraState, CameraSummary, Problem
from agent.contract.reading import Accel, Fan, Power, Rail, Throttle
from agent.contract.telemetry import CameraTelemetry, SystemTelemetry, Telemetry
from agent.telemetry.exposition import exposition, wants_openmetrics, weight
from agent.telemetry.families import Families, label_text
from agent.telemetry.latency import Buckets
from agent.telemetry.metrics import Metrics, ScrapeCost

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# What Prometheus 2 and 3 send.
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.75,application/openmetrics-text;"
    "version=0.0.1;q=0.65,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;"
    "escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.fixture(scope="module")
def board() -> MadeUpBoard:
    """A board that is slowed down, so that it has alerts as well; never changed."""
    board = MadeUpBoard(uptime_s=1500.0)
    board.go_on(20)
    return board


def openmetrics_text(families: Families) -> str:
    encode, _ = choose_encoder(PROMETHEUS_2)
    return encode(families).decode()


@pytest.fixture
def metrics(board: MadeUpBoard) -> Metrics:
    return board.metrics()


def families_of(metrics: Metrics, cost: ScrapeCost | None = None) -> dict[str, Metric]:
    text, content_type = exposition(metrics, "", cost)
    assert content_type == PLAIN
    return {family.name: family for family in parse_plain(text.decode())}


def value_of(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return one sample's value; None where it is not there."""
    found = [
        sample.value
        for family in families_of(metrics).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


def with_telemetry(metrics: Metrics, **changes: object) -> Metrics:
    return replace(metrics, telemetry=changed(metrics.telemetry, **changes))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("text/html,application/xhtml+xml,*/*;q=0.8", PLAIN),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text; version=9.9.9; escaping=dots", OPENMETRICS),
        ("application/openmetrics-text; version=nonsense", OPENMETRICS),
        ("application/openmetrics-text;q=0, text/plain", PLAIN),
        ("application/openmetrics-text;q=0.2, text/plain;version=0.0.4;q=0.9", PLAIN),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", PLAIN),
        ("application/openmetrics-text;q=much", PLAIN),
    ],
)
def test_the_scraper_chooses_the_format(metrics, accept, expected):
    text, content_type = exposition(metrics, accept)
    assert content_type == expected
    assert text.endswith(b"# EOF\n") == (expected == OPENMETRICS)


@given(st.text(max_size=200))
def test_any_accept_header_is_an_answer(accept):
    assert wants_openmetrics(accept) in (True, False)
    assert 0.0 <= weight("gzip;q=0.5, deflate", "gzip") <= 1.0


def test_both_formats_say_the_same(metrics):
    plain = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_plain(exposition(metrics, "")[0].decode())
        for sample in family.samples
    }
    other = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_openmetrics(exposition(metrics, PROMETHEUS_2)[0].decode())
        for sample in family.samples
    }
    assert plain == other
    assert len(plain) > 400


def test_promtool_finds_nothing_to_say(metrics):
    done = promtool("check", "metrics", stdin=exposition(metrics, "")[0])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_units_are_named(metrics):
    for family in parse_openmetrics(exposition(metrics, PROMETHEUS_2)[0].decode()):
        assert family.name.startswith("edge_agent_")
        assert family.documentation.endswith(".")
        if family.unit:
            assert family.name.endswith(f"_{family.unit}")
        assert not re.search(r"_(ms|mib|mb|mw|w|c|hz|percent|pct)(_|$)", family.name), family.name


def test_each_histogram_adds_up(metrics):
    family = families_of(metrics)["edge_agent_stage_latency_seconds"]
    series: dict[tuple[str, str], dict[str, list]] = {}
    for sample in family.samples:
        key = (sample.labels["camera"], sample.labels["stage"])
        parts = series.setdefault(key, {"bucket": [], "count": [], "sum": []})
        kind = sample.name.rpartition("_")[2]
        le = float(sample.labels["le"]) if kind == "bucket" else None
        parts[kind].append((le, sample.value))
    assert {stage for _, stage in series} == set(STAGES)
    for (camera, stage), parts in series.items():
        bounds = [bound for bound, _ in parts["bucket"]]
        counts = [count for _, count in parts["bucket"]]
        assert bounds == sorted(set(bounds))
        assert bounds[-1] == math.inf
        assert counts == sorted(counts)
        buckets = metrics.histograms[camera][stage]
        assert counts[-1] == parts["count"][0][1] == sum(buckets.counts)
        assert parts["sum"][0][1] == pytest.approx(buckets.sum_s)


@given(st.lists(st.integers(0, 2**50), min_size=3, max_size=3))
def test_buckets_become_cumulative(counts):
    buckets = Buckets(bounds=(0.00005, 1.0), counts=tuple(counts), sum_s=2.5)
    families = Families()
    families.histograms("edge_agent_a_seconds", "Text.", "camera", [("door", buckets)])
    (family,) = parse_openmetrics(openmetrics_text(families))
    found = {float(one.labels["le"]): one.value for one in family.samples if "le" in one.labels}
    first, second, third = counts
    assert found == {
        0.00005: first,
        1.0: first + second,
        math.inf: first + second + third,
    }


def test_figures_are_in_base_units(metrics):
    telemetry = metrics.telemetry
    assert value_of(metrics, "edge_agent_power_watts", scope="module_input", kind="measured",
                    sensor="ina3221 VDD_IN") == telemetry.power.total_w  # fmt: skip
    assert value_of(
        metrics, "edge_agent_process_resident_memory_bytes", process="control"
    ) == round(38.2 * 2**20)
    assert value_of(metrics, "edge_agent_deadline_seconds", camera="door") == 0.06
    assert value_of(metrics, "edge_agent_sampler_cpu_seconds") == pytest.approx(0.00084)
    assert value_of(metrics, "edge_agent_clock_hertz", clock="cpu_max") == 1.5e9
    assert value_of(metrics, "edge_agent_fan_duty_ratio") == pytest.approx(125 / 255)
    assert value_of(metrics, "edge_agent_energy_joules_total", scope="module_input") == (
        metrics.energy_j
    )
    assert value_of(metrics, "edge_agent_frames_dropped_total", camera="door") == (
        telemetry.cameras["door"].dropped
    )


def test_states_are_one_of_all(metrics):
    states = ["online", "offline", "starting", "frozen"]
    assert set(states) == set(get_args(CameraState))
    for state in states:
        cameras = [CameraSummary(name="door", state=state, reason=None)]
        now = replace(metrics, status=changed(metrics.status, cameras=cameras))
        shown = {
            one: value_of(now, "edge_agent_camera_state", camera="door", state=one)
            for one in states
        }
        assert shown == {one: float(one == state) for one in states}
        assert value_of(now, "edge_agent_camera_up", camera="door") == float(state == "online")


def test_an_estimate_is_never_a_measurement(metrics):
    power = changed(metrics.telemetry.power, kind="estimated", total_w=None, scope="none")
    families = families_of(with_telemetry(metrics, power=power))
    assert "edge_agent_power_watts" not in families
    (sample,) = families["edge_agent_power_estimated_watts"].samples
    assert sample.labels == {"label": "estimated (calibrated 2026-11-21)"}
    # Nor would a total be one that somebody wrote beside the wrong kind.
    power = changed(metrics.telemetry.power, kind="estimated", total_w=4.2)
    assert "edge_agent_power_watts" not in families_of(with_telemetry(metrics, power=power))


NOTHING_IN_SYSTEM = SystemTelemetry(
    **dict.fromkeys(SystemTelemetry.__struct_fields__)  # type: ignore[arg-type]
)
NO_POWER = Power(
    kind="unavailable", scope="none", total_w=None, rails={}, in_total=[],
    excluded_from_total=[], sensor=None, reason="no sensor",
)  # fmt: skip


def test_what_is_unknown_is_absent_and_never_0(metrics):
    telemetry = metrics.telemetry
    engines = [
        changed(one, model=None, accelerator=None, runtime=None, runtime_version=None, restarts={})
        for one in telemetry.engines
    ]
    bare = replace(
        with_telemetry(
            metrics, clock_synced=None, engines=engines, power=NO_POWER, estimate=None, temps_c={},
            temps_unreadable=[], throttle=None, clocks_hz=None, fan=None, accel=None,
            sampler_cpu_ms=None, processes={"control": None}, system=NOTHING_IN_SYSTEM,
            outbox=changed(telemetry.outbox, oldest_age_s=None),
            mqtt=changed(telemetry.mqtt, protocol=None),
        ),
        histograms={}, energy_j=None, idle_w=None, cpu_s={}, result_age_s={}, disks={}, networks={},
        restart_reasons=(),
    )  # fmt: skip
    found = set(families_of(bare))
    gone = (
        "power", "energy", "temperature", "throttle", "under_voltage", "overcurrent", "clock",
        "fan", "accelerator", "sampler", "process", "system", "stage", "last_result",
        "outbox_oldest", "mqtt_info", "model", "worker_restarts", "snapshot",
    )  # fmt: skip
    assert not [name for name in found if name.startswith(tuple(f"edge_agent_{x}" for x in gone))]
    assert {
        "edge_agent_build_info", "edge_agent_frames_captured", "edge_agent_engine_up",
        "edge_agent_mqtt_connected", "edge_agent_outbox_waiting_messages",
    } <= found  # fmt: skip


def test_each_reason_of_a_restart_is_counted_from_0_on(metrics):
    (sample, *others) = families_of(metrics)["edge_agent_worker_restarts"].samples
    assert {(one.labels["engine"], one.labels["reason"]) for one in (sample, *others)} == {
        ("[model]", "crashed"), ("[model]", "hang"), ("plates", "crashed"), ("plates", "hang"),
    }  # fmt: skip
    telemetry = metrics.telemetry
    engines = [changed(telemetry.engines[0], restarts={"hang": 2, "silent": 1})]
    for reason, count in {"crashed": 0.0, "hang": 2.0, "silent": 1.0}.items():
        assert count == value_of(
            with_telemetry(metrics, engines=engines),
            "edge_agent_worker_restarts_total",
            engine="[model]",
            reason=reason,
        )


@pytest.mark.parametrize("throttled_now", [None, True, False])
def test_throttling_as_far_as_it_is_known(metrics, throttled_now):
    only = with_telemetry(metrics, throttle=Throttle(throttled_now=throttled_now))
    expected = None if throttled_now is None else float(throttled_now)
    assert value_of(only, "edge_agent_throttled") == expected
    found = families_of(only)
    assert not [name for name in found if "flag" in name or "alert" in name or "event" in name]


def test_unset_and_unreadable_parts_are_absent(metrics):
    power = changed(NO_POWER, rails={"5V": Rail(power_w=None), "3V": Rail(power_w=-0.01)})
    part = with_telemetry(
        metrics,
        power=power,
        fan=Fan(rpm=None, pwm=10, pwm_max=0),
        accel=Accel(kind="edgetpu", load_ratio=None, freq_hz=None),
        temps_c={"a": math.nan, "b": math.inf, "c": -4.0},
    )
    families = families_of(part)
    assert [one.labels for one in families["edge_agent_power_rail_watts"].samples] == [
        {"rail": "3V", "in_total": "false"}
    ]
    assert [one.labels for one in families["edge_agent_temperature_celsius"].samples] == [
        {"zone": "c"}
    ]
    assert not [name for name in families if "fan" in name or "accelerator" in name]
    assert Accel(kind="gpu", load_ratio=None, freq_hz=None).name is UNSET


def test_no_deadline_is_not_a_deadline_of_0(metrics):
    cameras = {
        name: changed(camera, deadline_ms=deadline, deadline_misses=None)
        for (name, camera), deadline in zip(
            metrics.telemetry.cameras.items(), [0.0, None], strict=True
        )
    }
    assert not [name for name in families_of(with_telemetry(metrics, cameras=cameras))
                if "deadline" in name]  # fmt: skip


HOSTILE = [
    'back\\slash "quoted"\nnext line',
    "\udcff\udc80 no text",
    "\x00\x01\r\u2028\u0085",
    "} 1\n# EOF\nevil 1",
    "温度",
    "x" * 5000,
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("accept", ["", PROMETHEUS_2])
def test_no_name_breaks_the_text(metrics, name, accept):
    """Names of rails and zones come from device trees and drivers, and codes hold them."""
    hostile = replace(
        with_telemetry(
            metrics,
            temps_c={name: 40.0},
            power=changed(
                metrics.telemetry.power, rails={name: Rail(power_w=1.0)}, sensor=name, alarms=[name]
            ),
            throttle=Throttle(throttled_now=False, alerts_active=[name], oc_events={name: 3}),
        ),
        status=changed(metrics.status, health=[Problem(code=name, message="", since=0.0)] * 2),
    )
    text, _ = exposition(hostile, accept)
    parse = parse_openmetrics if accept else parse_plain
    zones = [
        sample.labels["zone"]
        for family in parse(text.decode("utf-8"))
        for sample in family.samples
        if sample.name == "edge_agent_temperature_celsius"
    ]
    assert zones == [name[:200].encode("utf-8", "replace").decode()]
    assert len(text) < len(exposition(metrics, accept)[0]) + 10_000
    if not accept:
        done = promtool("check", "metrics", stdin=text)
        assert (done.returncode, done.stderr) == (0, b"")


@given(st.lists(st.text(max_size=30), max_size=4))
def test_no_names_are_told_twice(names):
    families = Families()
    rows = [(name, float(number)) for number, name in enumerate(names)]
    families.gauges("edge_agent_temperature_celsius", "Text.", "zone", rows)
    found = [
        (sample.labels["zone"], sample.value)
        for family in parse_openmetrics(openmetrics_text(families))
        for sample in family.samples
    ]
    assert found == list({label_text(name): value for name, value in rows}.items())


def test_the_cost_of_scrapes_is_told(metrics):
    cost = ScrapeCost(scrapes=12, cpu_s=0.06, snapshot_age_s=0.4)
    families = families_of(metrics, cost)
    assert families["edge_agent_scrapes"].samples[0].value == 12
    assert families["edge_agent_scrape_cpu_seconds"].samples[0].value == 0.06
    assert families["edge_agent_snapshot_age_seconds"].samples[0].value == 0.4


# Every figure of the telemetry message is exposed, but for these.
DERIVED = "Prometheus works it out over any time from counters and histograms"
IN_INFO = "it is a label of edge_agent_device_info, edge_agent_build_info or edge_agent_model_info"
NOT_EXPOSED = {
    "telemetry": {
        "schema": "of messages", "seq": "of messages", "clock_repaired": "of messages",
        "at": "the scrape has a time", "interval_s": DERIVED, "relative_error": DERIVED,
        "worker_restarts": "the sum of edge_agent_worker_restarts_total",
        "device": IN_INFO, "boot_id": IN_INFO, "agent_version": IN_INFO,
    },
    "cameras": {
        "fps_in": DERIVED, "fps_out": DERIVED, "latency_ms": DERIVED,
        "latency_since_start_ms": DERIVED,
    },
    "system": {
        "disk_read_bytes_per_s": DERIVED, "disk_written_bytes_per_s": DERIVED,
        "network_received_bytes_per_s": DERIVED, "network_sent_bytes_per_s": DERIVED,
    },
}  # fmt: skip


def names_with(metrics: Metrics) -> str:
    return exposition(metrics, "")[0].decode()


def without(there: Struct, field: str) -> Struct:
    """Return a struct in which one number is another one, or one thing is not there."""
    value = getattr(there, field)
    if isinstance(value, bool):
        return changed(there, **{field: not value})
    if isinstance(value, int | float):
        return changed(there, **{field: value + 1})
    if isinstance(value, dict | list):
        return changed(there, **{field: type(value)()})
    return changed(there, **{field: None})


# These are looked at field by field.
PARTS = ("outbox", "mqtt", "system", "power", "energy")


@pytest.mark.parametrize("field", sorted({*Telemetry.__struct_fields__}.difference(PARTS)))
def test_each_part_of_telemetry_is_exposed(metrics, field):
    other = replace(metrics, telemetry=without(metrics.telemetry, field))
    is_exposed = field not in NOT_EXPOSED["telemetry"]
    assert (names_with(other) != names_with(metrics)) == is_exposed


@pytest.mark.parametrize(
    ("part", "field"),
    [("system", field) for field in SystemTelemetry.__struct_fields__]
    + [("outbox", field) for field in ("waiting", "waiting_mib", "on_disk", "on_disk_mib",
                                       "published", "dropped")]
    + [("mqtt", field) for field in ("protocol", "reconnects")]
    + [("power", field) for field in ("scope", "total_w", "rails", "in_total", "sensor",
                                      "rails_unreadable", "alarms", "voltage_assumed_v",
                                      "input_voltage_v")],
)  # fmt: skip
def test_each_figure_of_a_part_is_exposed(metrics, part, field):
    other = with_telemetry(metrics, **{part: without(getattr(metrics.telemetry, part), field)})
    is_exposed = field not in NOT_EXPOSED.get(part, {})
    assert (names_with(other) != names_with(metrics)) == is_exposed


@pytest.mark.parametrize("field", CameraTelemetry.__struct_fields__)
def test_each_figure_of_a_camera_is_exposed(metrics, field):
    cameras = dict(metrics.telemetry.cameras)
    cameras["door"] = without(cameras["door"], field)
    other = with_telemetry(metrics, cameras=cameras)
    is_exposed = field not in NOT_EXPOSED["cameras"]
    if getattr(metrics.telemetry.cameras["door"], field) in (None, {}):
        assert not is_exposed
    else:
        assert (names_with(other) != names_with(metrics)) == is_exposed
