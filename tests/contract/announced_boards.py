"""Boards, cameras and messages of them, as nice and as nasty as they come."""

from __future__ import annotations

import msgspec

from agent.contract import payloads, reading, telemetry, topics, updates
from agent.contract.home_assistant import Announcement, CameraEntities
from agent.contract.home_assistant_board import BoardFacts, learn
from agent.contract.topics import Topics

NAMES = Topics("edge", "porch-pi")
NASTY_LABELS = (
    "person", "traffic light", "traffic_light", "Traffic Light", "人", "😀", "", " ", "a'b\"c",
    "{{ 7*7 }}", "{% raw %}", "}}", "\\", "\\x41", "\n", "\x00", "\u2028", "class_7", "total",
    "#", "a.b", "a-b", "a_b", "é", "e\u0301", "None", "x" * 128, "key', 'x", "\x85\ufeff",
)  # fmt: skip
EMPTY = telemetry.Percentiles(count=0, p50=None, p90=None, p99=None, p999=None, max=None)
SOME = telemetry.Percentiles(count=9, p50=7.5, p90=8.0, p99=9.1, p999=9.9, max=10.0)
POWER = reading.Power(
    kind="measured", scope="board_input", total_w=4.25, rails={}, in_total=["VDD_IN"],
    excluded_from_total=[], sensor="ina3221 VDD_IN", reason=None,
)  # fmt: skip
NO_POWER = reading.Power(
    kind="unavailable", scope="none", total_w=None, rails={}, in_total=[], excluded_from_total=[],
    sensor=None, reason="no sensor",
)  # fmt: skip
FLAGS = reading.ThrottleFlags(
    under_voltage=True, freq_capped=False, throttled=False, soft_temp_limit=False
)
IDENTITY = reading.BoardIdentity(
    id="rpi-5", family="raspberry-pi", soc="bcm2712", model="Raspberry Pi 5 Model B", compatible=[]
)
MODEL = payloads.ModelIdentity(name="default", version="1.0.0", sha256="9b" * 32)


def energy(**values: object) -> telemetry.EnergyTelemetry:
    fields = telemetry.EnergyTelemetry.__struct_fields__
    known = {"valid": False, "scope": "none", "inferences": 0, "samples": 0, **values}
    return telemetry.EnergyTelemetry(**{**dict.fromkeys(fields), **known})


def message(**values: object) -> telemetry.Telemetry:
    """Return a telemetry message of a board that knows nothing but what is given."""
    system = dict.fromkeys(telemetry.SystemTelemetry.__struct_fields__)
    known = {
        "device": "porch-pi", "boot_id": "6f1c", "seq": 1, "at": 1795248000.0, "clock_synced": True,
        "uptime_s": 10.0, "interval_s": 10.0, "agent_version": "0.0.1", "relative_error": 0.01,
        "cameras": {}, "engines": [], "power": NO_POWER, "estimate": None, "energy": energy(),
        "temps_c": {}, "temps_unreadable": [], "throttle": None, "clocks_hz": None, "fan": None,
        "accel": None, "sampler_cpu_ms": None, "processes": {},
        "system": telemetry.SystemTelemetry(**system), "worker_restarts": 0, "times_lost": 0,
        "outbox": telemetry.OutboxTelemetry(
            waiting=3, waiting_mib=0.0, on_disk=0, on_disk_mib=0.0, published=9, dropped=0
        ),
        "mqtt": telemetry.MqttTelemetry(protocol="5", reconnects=0),
    }  # fmt: skip
    return telemetry.Telemetry(**{**known, **values})


def camera(**values: object) -> telemetry.CameraTelemetry:
    known = {"captured": 9, "dropped": 0, "still": 0, "processed": 9, "fps_in": 29.9}
    return telemetry.CameraTelemetry(**{**known, "fps_out": 29.5, **values})


FULL = message(
    cameras={
        "door": camera(latency_ms={"total": SOME, "age": SOME}),
        "back-yard_2": camera(latency_ms={"total": EMPTY}, fps_out=None),
    },
    power=POWER,
    estimate=reading.Estimate(label="estimated", model="linear", estimate_w=3.1, note=""),
    energy=energy(valid=True, total_j=1234.5, gross_mj_per_inference=41.7, source="trapezoid"),
    temps_c={"cpu-thermal": 51.2, "nvme: Composite": 39.0, "it's": 1.0},
    throttle=reading.Throttle(throttled_now=False, now=FLAGS),
    fan=reading.Fan(rpm=2100),
    accel=reading.Accel(kind="edgetpu", load_ratio=None, freq_hz=None, temp_c=44.5),
    system=telemetry.SystemTelemetry(
        **{
            **dict.fromkeys(telemetry.SystemTelemetry.__struct_fields__),
            "cpu_percent": 12.5, "disk_free_mib": 10_000.0, "memory_available_mib": 512.0,
        }
    ),
)  # fmt: skip
BOARD = learn(BoardFacts(), FULL, IDENTITY)


def reported(**values: object) -> updates.Reported:
    known = {
        "device": "porch-pi", "boot_id": "6f1c", "at": 1.0, "engine": "", "deployment_id": "d1",
        "phase": "committed", "code": None, "message": None, "progress": None, "model": MODEL,
        "release_counter": 3, "source": "active", "candidate": None, "previous": None,
        "attempts": 1, "bytes_done": None, "bytes_total": None, "p95_ms": None, "rss_mib": None,
        "agreement": None, "clock_trusted": True, "floors": updates.Floors(),
    }  # fmt: skip
    return updates.Reported(**{**known, **values})


REPORTED = (
    reported(),
    reported(phase="downloading", candidate="default@1.1.0", progress=0.256),
    reported(phase="trial", candidate="cats@1.0.0"),
    reported(phase="accepted", candidate="factory"),
    reported(phase="refused", code="E_SIG", message="not signed " * 40, model=None),
)


def status(**values: object) -> payloads.Status:
    engine = payloads.EngineStatus(
        name="", cameras=["door"], model=MODEL, task="detection", head="ssd",
        accelerator=payloads.Accelerator(wanted="auto", used="cpu:xnnpack", reason=None), run=None,
    )  # fmt: skip
    versionless = msgspec.structs.replace(
        engine, name="faces",
        model=payloads.ModelIdentity(name="a'b", version=None, sha256="0" * 64),
    )  # fmt: skip
    known = {
        "device": "porch-pi", "boot_id": "6f1c", "agent_version": "0.0.1", "started_at": 1.0,
        "board": payloads.Board(model=None, machine="aarch64", python="3.11.2", runtime=None),
        "groups": (), "model": MODEL, "task": None, "accelerator": engine.accelerator,
        "engines": [engine, versionless], "cameras": [], "health": [], "clock_synced": None,
    }  # fmt: skip
    return payloads.Status(**{**known, **values})


PROBLEM = payloads.Problem(code="too_hot", message="it's <hot>", since=1.0, value=85.0, limit=80.0)


def counts(camera_name: str, found: dict[str, int] | None) -> payloads.Counts:
    total = None if found is None else sum(found.values())
    return payloads.Counts(
        device="porch-pi", camera=camera_name, at=1.0, total=total, counts=found
    )  # fmt: skip


def camera_status(state: str) -> payloads.CameraStatus:
    return payloads.CameraStatus(
        device="porch-pi", camera="door", state=state, since=1.0, reason='it\'s "gone"',
        source="auto", width=None, height=None, fps=None,
    )  # fmt: skip


ANNOUNCEMENT = Announcement(
    names=NAMES,
    version="0.0.1",
    interval_s=10.0,
    board=BOARD,
    cameras=(
        CameraEntities(name="door", labels=NASTY_LABELS),
        CameraEntities(name="back-yard_2", labels=("person", "cat")),
    ),
    engines=("", "faces", "gone"),
)
# What may come, and what must not break anything: parts of messages, and no messages.
BROKEN = ["{}", '{"cameras": null, "system": null, "counts": null, "engines": null}', "[]", "null"]


def messages() -> dict[str, list[str]]:
    """Return messages by topic, the last ones broken."""

    def written(*structs: msgspec.Struct) -> list[str]:
        return [*(payloads.encode(one).decode() for one in structs), *BROKEN]

    door, yard = "door", "back-yard_2"
    return {
        NAMES.name(topics.TELEMETRY): written(FULL, message()),
        NAMES.name(topics.STATUS): written(status(), status(health=[PROBLEM], engines=[])),
        NAMES.name(topics.MODEL_REPORTED): written(*REPORTED),
        NAMES.name(topics.CAMERA_STATUS, door): written(
            *(camera_status(state) for state in ("online", "offline", "starting", "frozen"))
        ),
        NAMES.name(topics.CAMERA_STATUS, yard): written(camera_status("frozen")),
        NAMES.name(topics.COUNTS, door): written(
            counts(door, {label: at for at, label in enumerate(NASTY_LABELS)}), counts(door, None)
        ),
        NAMES.name(topics.COUNTS, yard): written(counts(yard, {"person": 0})),
    }
