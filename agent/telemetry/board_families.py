"""What Prometheus is told of the board: power, heat, the agent's processes, the system."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from msgspec import UNSET, UnsetType

from agent.contract.reading import Accel, Fan, Power, Throttle, ThrottleFlags
from agent.contract.telemetry import ProcessTelemetry, SystemTelemetry
from agent.telemetry.families import Families, mib_in_bytes, scaled
from agent.telemetry.metrics import Metrics

FLAGS = ThrottleFlags.__struct_fields__
T = TypeVar("T")


def board_families(families: Families, metrics: Metrics) -> None:
    """Add all of them."""
    _power(families, metrics)
    _heat(families, metrics)
    _processes(families, metrics)
    _system(families, metrics.telemetry.system)
    _traffic(families, metrics)


def _power(families: Families, metrics: Metrics) -> None:
    power, estimate = metrics.telemetry.power, metrics.telemetry.estimate
    if power.kind == "measured":
        families.gauges(
            "edge_agent_power_watts",
            "What a sensor measures the scope to draw; other scopes cannot be compared with it.",
            ("scope", "kind", "sensor"),
            [((power.scope, power.kind, power.sensor), power.total_w)],
        )
    if estimate is not None:
        families.gauges(
            "edge_agent_power_estimated_watts",
            "What a model of the board says that it draws; never a measurement.",
            "label",
            [(estimate.label, estimate.estimate_w)],
        )
    _rails(families, power)
    families.counters(
        "edge_agent_energy_joules",
        "Energy that the scope drew while it was measured.",
        "scope",
        [(metrics.telemetry.energy.scope, metrics.energy_j)],
    )
    families.gauge(
        "edge_agent_power_idle_watts", "What the scope draws at rest, measured.", metrics.idle_w
    )
    families.gauge(
        "edge_agent_power_input_volts", "At the board's input.", _set(power.input_voltage_v)
    )
    families.gauge(
        "edge_agent_power_assumed_volts",
        "A voltage that no sensor measures and the power is worked out with.",
        _set(power.voltage_assumed_v),
    )


def _rails(families: Families, power: Power) -> None:
    def rows(quantity: str) -> Iterable[tuple[tuple[str, str], float | None]]:
        for name, rail in power.rails.items():
            in_total = "true" if name in power.in_total else "false"
            yield (name, in_total), _set(getattr(rail, quantity))

    labels = ("rail", "in_total")
    families.gauges(
        "edge_agent_power_rail_watts",
        "Power of one supply; only those in_total may be added up.",
        labels,
        rows("power_w"),
    )
    families.gauges("edge_agent_power_rail_volts", "Of one supply.", labels, rows("volt_v"))
    families.gauges("edge_agent_power_rail_amperes", "Of one supply.", labels, rows("curr_a"))
    families.gauges(
        "edge_agent_power_rail_unreadable",
        "Supplies whose sensor is there and does not answer.",
        "rail",
        [(name, 1) for name in power.rails_unreadable],
    )
    families.gauges(
        "edge_agent_power_alarm",
        "Limits of a power sensor that are passed now.",
        "alarm",
        [(name, 1) for name in power.alarms],
    )


def _heat(families: Families, metrics: Metrics) -> None:
    telemetry = metrics.telemetry
    families.gauges(
        "edge_agent_temperature_celsius",
        "Of one thermal zone.",
        "zone",
        telemetry.temps_c.items(),
    )
    families.gauges(
        "edge_agent_temperature_unreadable",
        "Zones that are there and do not answer, as their unit may be switched off.",
        "zone",
        [(zone, 1) for zone in telemetry.temps_unreadable],
    )
    families.gauges(
        "edge_agent_clock_hertz",
        "Clocks of the processor; cpu_max is the highest it may have.",
        "clock",
        (telemetry.clocks_hz or {}).items(),
    )
    if telemetry.throttle is not None:
        _throttle(families, telemetry.throttle)
    if telemetry.fan is not None:
        _fan(families, telemetry.fan)
    if telemetry.accel is not None:
        _accel(families, telemetry.accel)


def _throttle(families: Families, throttle: Throttle) -> None:
    families.gauge(
        "edge_agent_throttled",
        "Whether the board slows itself down now.",
        throttle.throttled_now,
    )
    families.gauges(
        "edge_agent_throttle_flag",
        "What the firmware says, of now and of the time since boot.",
        ("flag", "when"),
        [
            ((flag, when), getattr(flags, flag))
            for when, flags in (("now", throttle.now), ("since_boot", throttle.since_boot))
            if isinstance(flags, ThrottleFlags)
            for flag in FLAGS
        ],
    )
    families.gauge(
        "edge_agent_under_voltage_alarm",
        "The kernel's alarm of the last seconds.",
        _set(throttle.hwmon_under_voltage_alarm),
    )
    families.gauges(
        "edge_agent_throttle_alert",
        "Alerts that slow the board down now.",
        "alert",
        [(alert, 1) for alert in _set(throttle.alerts_active) or []],
    )
    families.counters(
        "edge_agent_overcurrent_events",
        "Times that a supply passed its limit, since boot.",
        "event",
        (_set(throttle.oc_events) or {}).items(),
    )


def _fan(families: Families, fan: Fan) -> None:
    families.gauge("edge_agent_fan_rpm", "Turns of the fan per minute.", fan.rpm)
    pwm, most = _set(fan.pwm), _set(fan.pwm_max)
    families.gauge(
        "edge_agent_fan_duty_ratio",
        "What the fan is given, 0 to 1.",
        pwm / most if pwm is not None and most else None,
    )


def _accel(families: Families, accel: Accel) -> None:
    labels = ("kind", "name")
    values = (accel.kind, _set(accel.name))
    families.gauges(
        "edge_agent_accelerator_load_ratio",
        "How busy the accelerator or graphics processor is, 0 to 1.",
        labels,
        [(values, accel.load_ratio)],
    )
    families.gauges(
        "edge_agent_accelerator_clock_hertz", "Its clock.", labels, [(values, accel.freq_hz)]
    )
    families.gauges(
        "edge_agent_accelerator_temperature_celsius",
        "Its temperature.",
        labels,
        [(values, _set(accel.temp_c))],
    )
    families.gauges(
        "edge_agent_accelerator_throttled",
        "Whether it slows itself down now.",
        labels,
        [(values, _set(accel.throttled))],
    )
    families.gauges(
        "edge_agent_accelerator_trip_celsius",
        "Temperatures at which it slows down, each further than the one before.",
        (*labels, "trip"),
        [
            ((*values, str(number)), point)
            for number, point in enumerate(_set(accel.trip_points_c) or [])
        ],
    )


def _processes(families: Families, metrics: Metrics) -> None:
    there = {
        name: process
        for name, process in metrics.telemetry.processes.items()
        if process is not None
    }
    families.counters(
        "edge_agent_process_cpu_seconds",
        "Processor time of one process of the agent.",
        "process",
        metrics.cpu_s.items(),
    )

    gauges: list[tuple[str, str, Callable[[ProcessTelemetry], float | None]]] = [
        (
            "resident_memory_bytes",
            "Memory in RAM, shared parts in full.",
            lambda one: mib_in_bytes(one.rss_mib),
        ),
        (
            "proportional_memory_bytes",
            "Memory in RAM, shared parts divided.",
            lambda one: mib_in_bytes(one.pss_mib),
        ),
        ("threads", "Threads of the process.", lambda one: one.threads),
        ("open_fds", "Open file descriptors.", lambda one: one.fds),
    ]
    for name, text, value in gauges:
        rows = [(process, value(facts)) for process, facts in there.items()]
        families.gauges(f"edge_agent_process_{name}", text, "process", rows)


def _system(families: Families, system: SystemTelemetry) -> None:
    gauges: list[tuple[str, str, float | None]] = [
        ("uptime_seconds", "Time since the board started.", system.uptime_s),
        (
            "cpu_usage_ratio",
            "Share of all cores that was busy of late.",
            scaled(system.cpu_percent, 1e-2),
        ),
        ("load1", "Load of the last minute.", system.load_1m),
        ("memory_bytes", "All memory of the board.", mib_in_bytes(system.memory_total_mib)),
        ("memory_available_bytes", "Left for programs.", mib_in_bytes(system.memory_available_mib)),
        ("swap_used_bytes", "Memory that was moved to a disk.", mib_in_bytes(system.swap_used_mib)),
        ("disk_bytes", "Of the file system with state_dir.", mib_in_bytes(system.disk_total_mib)),
        ("disk_free_bytes", "Left on it.", mib_in_bytes(system.disk_free_mib)),
    ]
    for name, text, value in gauges:
        families.gauge(f"edge_agent_system_{name}", text, value)


def _traffic(families: Families, metrics: Metrics) -> None:
    kinds = [
        ("disk", ("read", "written"), "of a disk since the board started", metrics.disks),
        ("network", ("received", "sent"), "of an interface since then", metrics.networks),
    ]
    for kind, directions, of, devices in kinds:
        for number, direction in enumerate(directions):
            families.counters(
                f"edge_agent_system_{kind}_{direction}_bytes",
                f"Bytes {direction}, {of}.",
                "device",
                [(device, counts[number]) for device, counts in devices.items()],
            )


def _set(value: T | UnsetType) -> T | None:
    return None if value is UNSET else value
