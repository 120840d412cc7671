"""A board that is made up, whose figures go on plausibly: what /metrics may have to tell.

It has everything at once that real boards have one by one, so that each metric there can be is
in a snapshot of it: rails and an estimate, a Raspberry Pi's flags and a Jetson's events.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import get_args

from agent.contract.payloads import (
    Accelerator,
    Board,
    CameraSummary,
    EngineStatus,
    MeasuredRun,
    ModelIdentity,
    Problem,
    Status,
)
from agent.contract.reading import Accel, Estimate, Fan, Power, Rail, Throttle, ThrottleFlags
from agent.contract.telemetry import (
    CameraTelemetry,
    EnergyTelemetry,
    EngineTelemetry,
    MqttTelemetry,
    OutboxTelemetry,
    ProcessTelemetry,
    Stage,
    SystemTelemetry,
    Telemetry,
)
from agent.telemetry.latency import BOUNDS_S, Buckets
from agent.telemetry.metrics import Metrics

STAGES: tuple[Stage, ...] = get_args(Stage)
# Middle of each stage, ms; cascade is only where there is a second stage.
USUAL_MS = {
    "age": 6.0, "queue": 1.5, "preprocess": 2.2, "inference": 21.0, "postprocess": 0.8,
    "cascade": 7.0, "total": 32.0, "publish": 0.7, "acknowledge": 4.0, "end_to_end": 38.0,
}  # fmt: skip
MODEL = ModelIdentity(name="ssd_mobilenet_v1", version="1.0.0", sha256="9b3c" * 16)
PLATES = ModelIdentity(name="plates", version=None, sha256="0a1b" * 16)


@dataclass
class MadeUpBoard:
    """Its cumulative counts; `go_on` lets time pass."""

    random: random.Random = field(default_factory=lambda: random.Random(5))
    uptime_s: float = 0.0
    energy_j: float = 0.0
    captured: dict[str, int] = field(default_factory=lambda: {"door": 0, "yard": 0})
    dropped: dict[str, int] = field(default_factory=lambda: {"door": 0, "yard": 0})
    processed: dict[str, int] = field(default_factory=lambda: {"door": 0, "yard": 0})
    still: dict[str, int] = field(default_factory=lambda: {"door": 0, "yard": 0})
    misses: int = 0
    counts: dict[tuple[str, Stage], list[int]] = field(default_factory=dict)
    sums: dict[tuple[str, Stage], float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(
        default_factory=lambda: {"control": 0.0, "worker": 0.0, "worker.plates": 0.0}
    )
    published: int = 0
    waiting: int = 0
    lost: int = 0
    reconnects: int = 0
    restarts: int = 0

    @property
    def is_hot(self) -> bool:
        """For a while in every hour the board slows itself down."""
        return 1500 <= self.uptime_s % 3600 < 2400

    @property
    def is_away(self) -> bool:
        """For a while in every hour the broker is away."""
        return 2700 <= self.uptime_s % 3600 < 3000

    @property
    def is_unplugged(self) -> bool:
        """For a while in every hour a camera is gone."""
        return 900 <= self.uptime_s % 3600 < 1080

    @property
    def watts(self) -> float:
        """What it draws."""
        return 5.6 + 0.5 * math.sin(self.uptime_s / 240) - (0.9 if self.is_hot else 0.0)

    def go_on(self, seconds: float) -> None:
        """Let time pass."""
        was_away = self.is_away
        self.uptime_s += seconds
        self.energy_j += self.watts * seconds
        for camera, fps, share in (("door", 30, 1.0), ("yard", 15, 0.4)):
            if camera == "yard" and self.is_unplugged:
                continue
            frames = round(fps * seconds)
            dropped = round(frames * (0.35 if self.is_hot else 0.01 * self.random.random()))
            still = round((frames - dropped) * (1 - share))
            self.captured[camera] += frames
            self.dropped[camera] += dropped
            self.still[camera] += still
            self.processed[camera] += frames - dropped - still
            for _ in range(frames - dropped - still):
                self._frame(camera)
        for process, share in (("control", 0.06), ("worker", 1.7), ("worker.plates", 0.4)):
            self.cpu_s[process] += seconds * share * self.random.uniform(0.9, 1.1)
        if self.is_away:
            self.waiting = min(9000, self.waiting + round(36 * seconds))
        else:
            self.published += round(36 * seconds) + self.waiting
            self.waiting = self.random.randrange(3)
            if was_away:
                self.reconnects += 1
                self.restarts += 1

    def _frame(self, camera: str) -> None:
        slow = (1.8 if self.is_hot else 1.0) * (1.0 if camera == "door" else 1.3)
        for stage in STAGES:
            if stage == "cascade" and camera == "door":
                continue
            ms = USUAL_MS[stage] * slow * self.random.lognormvariate(0.0, 0.25)
            key = (camera, stage)
            counts = self.counts.setdefault(key, [0] * (len(BOUNDS_S) + 1))
            counts[bisect_left(BOUNDS_S, ms / 1e3)] += 1
            self.sums[key] = self.sums.get(key, 0.0) + ms / 1e3
            if stage == "total" and camera == "door":
                self.misses += ms > 60

    def metrics(self, at: float = 0.0) -> Metrics:
        """Return a snapshot of now."""
        return Metrics(
            at=at,
            telemetry=self.telemetry(),
            status=self.status(),
            connected=not self.is_away,
            histograms={
                camera: {
                    stage: Buckets(
                        bounds=BOUNDS_S, counts=tuple(counts), sum_s=self.sums[name, stage]
                    )
                    for (name, stage), counts in self.counts.items()
                    if name == camera
                }
                for camera in self.captured
            },
            energy_j=self.energy_j,
            idle_w=3.1,
            cpu_s=dict(self.cpu_s),
            result_age_s={"door": 0.04, "yard": 0.11},
            disks={"mmcblk0": (300_000_000, 10_000_000 + round(4e3 * self.uptime_s))},
            networks={
                "eth0": (round(5e5 * self.uptime_s), round(2.4e4 * self.uptime_s)),
                "wlan0": (0, 0),
            },
            restart_reasons=("crashed", "hang"),
        )

    def telemetry(self) -> Telemetry:
        """Return the message of now."""
        heat = 71.0 + 6 * math.sin(self.uptime_s / 300) + (11 if self.is_hot else 0)
        return Telemetry(
            device="porch-pi",
            boot_id="6f1c",
            seq=1,
            at=1795248000.0 + self.uptime_s,
            clock_synced=True,
            uptime_s=self.uptime_s,
            interval_s=10.0,
            agent_version="0.1.0",
            times_lost=3,
            relative_error=0.01,
            cameras=self._cameras(),
            engines=self._engines(),
            power=self._power(),
            estimate=Estimate(
                label="estimated (calibrated 2026-11-21)",
                model="idle + (load - idle) * util",
                estimate_w=round(self.watts * 1.12, 3),
                note="",
            ),
            energy=EnergyTelemetry(
                valid=False, why_invalid="the window has just begun", source=None,
                scope="module_input", window_s=None, mean_w=None, gross_j=None, idle_w=3.1,
                net_j=None, inferences=0, gross_mj_per_inference=None, net_mj_per_inference=None,
                samples=0, largest_gap_s=None, coverage=None,
            ),
            temps_c={"cpu-thermal": round(heat, 2), "gpu-thermal": round(heat - 4.5, 2)},
            temps_unreadable=["cv0-thermal"],
            throttle=self._throttle(),
            clocks_hz={
                "cpu": 1_000_000_000 if self.is_hot else 1_500_000_000, "cpu_max": 1_500_000_000,
            },
            fan=Fan(rpm=2400 + round(20 * heat), pwm=125, pwm_max=255),
            accel=Accel(
                kind="gpu", name="17000000.gpu", load_ratio=0.45, freq_hz=624_000_000,
                temp_c=round(heat - 3, 2), throttled=self.is_hot, trip_points_c=[85.0, 90.0, 95.0],
            ),
            sampler_cpu_ms=0.84,
            processes=self._processes(),
            system=SystemTelemetry(
                uptime_s=self.uptime_s + 31, cpu_percent=54.0 + 8 * math.sin(self.uptime_s / 90),
                load_1m=2.3, memory_total_mib=3792.0, memory_available_mib=2610.0,
                swap_used_mib=0.0, disk_total_mib=29_500.0, disk_free_mib=21_000.0,
                disk_read_bytes_per_s=0.0, disk_written_bytes_per_s=4e3,
                network_received_bytes_per_s=5e6, network_sent_bytes_per_s=2.4e4,
            ),
            worker_restarts=self.restarts,
            outbox=OutboxTelemetry(
                waiting=self.waiting, waiting_mib=self.waiting * 6e-4,
                on_disk=max(0, self.waiting - 600), on_disk_mib=max(0, self.waiting - 600) * 6e-4,
                published=self.published, dropped=self.lost,
                oldest_age_s=self.uptime_s % 3600 - 2700 if self.is_away else 0.02,
            ),
            mqtt=MqttTelemetry(protocol="MQTT 5", reconnects=self.reconnects),
        )  # fmt: skip

    def _cameras(self) -> dict[str, CameraTelemetry]:
        return {
            camera: CameraTelemetry(
                captured=self.captured[camera],
                dropped=self.dropped[camera],
                still=self.still[camera],
                processed=self.processed[camera],
                fps_in=None,
                fps_out=None,
                deadline_ms=60.0 if camera == "door" else None,
                deadline_misses=self.misses if camera == "door" else None,
            )
            for camera in self.captured
        }

    def _engines(self) -> list[EngineTelemetry]:
        return [
            EngineTelemetry(
                name="", model=MODEL, accelerator="cpu:xnnpack", runtime="litert",
                runtime_version="2.3.0", inferences=self.processed["door"],
                restarts={"hang": self.restarts},
            ),
            EngineTelemetry(
                name="plates", model=PLATES, accelerator="edgetpu:usb:0",
                runtime="tflite-runtime", runtime_version="2.14.0",
                inferences=self.processed["yard"], restarts={},
            ),
        ]  # fmt: skip

    def _power(self) -> Power:
        return Power(
            kind="measured",
            scope="module_input",
            total_w=round(self.watts, 4),
            rails={
                "VDD_IN": Rail(power_w=self.watts, volt_v=4.984, curr_a=self.watts / 4.984),
                "VDD_CPU_GPU_CV": Rail(power_w=self.watts * 0.37, volt_v=4.98, curr_a=None),
                "VDD_SOC": Rail(power_w=self.watts * 0.2),
            },
            in_total=["VDD_IN"],
            excluded_from_total=["VDD_CPU_GPU_CV", "VDD_SOC (part of VDD_IN)"],
            sensor="ina3221 VDD_IN",
            reason=None,
            rails_unreadable=["VDD_AUX"],
            alarms=["VDD_IN:crit"] if self.is_hot else [],
            voltage_assumed_v=5.1,
            input_voltage_v=5.04,
        )

    def _throttle(self) -> Throttle:
        now = ThrottleFlags(
            under_voltage=False, freq_capped=self.is_hot, throttled=self.is_hot,
            soft_temp_limit=False,
        )  # fmt: skip
        return Throttle(
            throttled_now=self.is_hot,
            raw=0x60006 if self.is_hot else 0x60000,
            raw_hex="0x60006" if self.is_hot else "0x60000",
            now=now,
            since_boot=ThrottleFlags(
                under_voltage=False, freq_capped=True, throttled=True, soft_temp_limit=False
            ),
            hwmon_under_voltage_alarm=False,
            alerts_active=["cpu-throttle-alert"] if self.is_hot else [],
            oc_events={"oc1": 0, "oc2": 0, "oc3": round(self.uptime_s / 7)},
            oc_events_total=round(self.uptime_s / 7),
        )

    def _processes(self) -> dict[str, ProcessTelemetry | None]:
        return {
            "control": ProcessTelemetry(
                pid=410, cpu_percent=6.0, rss_mib=38.2, threads=6, pss_mib=31.5, fds=31
            ),
            "worker": ProcessTelemetry(
                pid=421, cpu_percent=170.0, rss_mib=171.0 + self.uptime_s / 1800, threads=14,
                pss_mib=152.0, fds=40,
            ),
            "worker.plates": None,
        }  # fmt: skip

    def status(self) -> Status:
        """Return the status of now."""
        problems = []
        if self.is_hot:
            problems.append(_problem("throttled"))
        if self.is_unplugged:
            problems.append(_problem("camera.yard"))
        run = MeasuredRun(runtime="litert", threads=4, xnnpack=True, invoke_ms=21.0)
        wanted = Accelerator(wanted="auto", used="cpu:xnnpack", reason="no Edge TPU is plugged in")
        used = Accelerator(wanted="edgetpu", used="edgetpu:usb:0", reason=None)
        return Status(
            device="porch-pi",
            boot_id="6f1c",
            agent_version="0.1.0",
            started_at=1795248000.0,
            board=Board(
                model="Raspberry Pi 5 Model B Rev 1.0", machine="aarch64", python="3.11.2",
                runtime="litert",
            ),
            groups=("porches", "north"),
            model=MODEL,
            task="detection",
            accelerator=wanted,
            engines=[
                EngineStatus(name="", cameras=["door"], model=MODEL, task="detection", head="ssd",
                             accelerator=wanted, run=run),
                EngineStatus(name="plates", cameras=["yard"], model=PLATES, task="detection",
                             head="yolo", accelerator=used, run=run),
            ],
            cameras=[
                CameraSummary(name="door", state="online", reason=None),
                CameraSummary(
                    name="yard", state="offline" if self.is_unplugged else "online", reason=None
                ),
            ],
            health=problems,
            clock_synced=True,
        )  # fmt: skip


def _problem(code: str) -> Problem:
    return Problem(code=code, message="it is so", since=1795248000.0)
