"""A reading as people read it: what is known, what is not and why, and what is only estimated."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TypeVar

from msgspec import UNSET, UnsetType

from agent.contract.reading import (
    Accel,
    BoardIdentity,
    Estimate,
    Fan,
    Power,
    Rail,
    Reading,
    Scope,
    Throttle,
    ThrottleFlags,
)

SCOPES: dict[Scope, str] = {
    "board_input": "at the board's input",
    "board_input_5v": "at the board's 5 V input",
    "module_input": "at the module's input, without its carrier board",
    "module_rails_sum": "sum of the module's rails",
    "pmic_rails_sum": "sum of the power chip's rails, without USB and losses of conversion",
    "cpu_package": "the processor alone",
    "cpu_packages": "the processors alone",
    "battery_discharge": "out of the battery",
    "none": "",
}
FLAGS = {
    "under_voltage": "under-voltage",
    "freq_capped": "clock capped",
    "throttled": "throttled",
    "soft_temp_limit": "soft temperature limit",
}
# What drivers mean by them; others are shown as they are.
ERRNOS = {
    "EAGAIN": "no value: that part is switched off",
    "ENODATA": "no value: that channel is switched off",
    "EACCES": "no permission",
    "EPERM": "no permission",
    "ETIMEDOUT": "it never answered",
}
HEADING = 14
WIDTH = 100

T = TypeVar("T")


def show(reading: Reading, hints: list[str]) -> str:
    """Return the whole reading as lines of text; `hints` are things to do, one line each."""
    sections = [
        ("power", _power(reading.power)),
        ("estimate", _estimate(reading.estimate, reading.power)),
        ("temperature", _temperatures(reading)),
        ("throttling", _throttle(reading.throttle)),
        ("clock", _clocks(reading.clocks_hz)),
        ("fan", _fan(reading.fan)),
        ("accelerator", _accel(reading.accel)),
        ("unreadable", _errors(reading.read_errors)),
        ("to do", iter(hints)),
    ]
    lines = [*_title(reading.board_id), ""]
    for heading, found in sections:
        for number, line in enumerate(found):
            lines += _wrap(heading if number == 0 else "", line)
    return "\n".join(map(_printable, lines))


def _wrap(heading: str, line: str) -> list[str]:
    """Return a line behind its heading, as several where it is long."""
    first = f"{heading:<{HEADING}}{line}".rstrip()
    return textwrap.wrap(
        first,
        WIDTH,
        subsequent_indent=" " * (HEADING + 4),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def _printable(line: str) -> str:
    """Return a line that does nothing to a terminal, whatever a recording's labels hold."""
    return "".join(one if one.isprintable() else "?" for one in line)


def _title(board: BoardIdentity) -> list[str]:
    l4t = _known(board.l4t)
    facts = [board.id, board.soc, f"Linux for Tegra {l4t}" if l4t else None]
    return [board.model or "a board without a name", ", ".join(fact for fact in facts if fact)]


def _power(power: Power) -> Iterator[str]:
    if power.total_w is None:
        yield f"unknown: {power.reason or 'no sensor'}"
    else:
        by = f", by {power.sensor}" if power.sensor else ""
        yield f"{power.total_w:.3f} W {power.kind}, {SCOPES[power.scope]}{by}"
        words = _known(power.label) or power.reason
        if words:
            yield f"  {words}"
    width = max(map(len, [*power.rails, *power.rails_unreadable]), default=0)
    for name, rail in power.rails.items():
        yield f"  {name:<{width}}  {_rail(rail)}{'' if name in power.in_total else '  not added'}"
    for name in power.rails_unreadable:
        if name not in power.rails:
            yield f"  {name:<{width}}  unknown"
    others = [name for name in power.excluded_from_total if name not in power.rails]
    if others:
        yield f"  not added: {', '.join(others)}"
    volts = _known(power.input_voltage_v)
    if volts is not None:
        yield f"  input voltage {volts:.3f} V"
    if power.alarms:
        yield f"  alarms: {', '.join(power.alarms)}"


def _rail(rail: Rail) -> str:
    values = ((_known(rail.volt_v), "V"), (_known(rail.curr_a), "A"), (rail.power_w, "W"))
    return "  ".join(
        f"{'?' if value is None else f'{value:.3f}':>8} {unit}" for value, unit in values
    )


def _estimate(estimate: Estimate | None, power: Power) -> Iterator[str]:
    if estimate is None:
        if power.total_w is None:
            yield "none: no sourced figures for this board, or its load is not known yet"
        return
    yield f"{estimate.estimate_w:.2f} W, {estimate.label}; {estimate.note}"
    yield f"  {estimate.model}"
    source = _known(estimate.figures_source)
    if source:
        yield f"  {source}"


def _temperatures(reading: Reading) -> Iterator[str]:
    if not reading.temps_c and not reading.temps_unreadable:
        yield "unknown: no sensor"
    width = max(map(len, [*reading.temps_c, *reading.temps_unreadable]), default=0)
    for name, degrees in reading.temps_c.items():
        yield f"{name:<{width}}  {degrees:7.1f} °C"
    for name in reading.temps_unreadable:
        yield f"{name:<{width}}  unknown"
    if reading.temps_ignored:
        yield f"left out, as a constant: {', '.join(reading.temps_ignored)}"


def _throttle(throttle: Throttle | None) -> Iterator[str]:
    if throttle is None:
        yield "unknown: this board does not tell"
        return
    now = {None: "not known", True: "yes, now", False: "not now"}[throttle.throttled_now]
    active = [*_flags(throttle.now), *(_known(throttle.alerts_active) or [])]
    yield f"{now}{': ' + ', '.join(active) if active else ''}"
    earlier = _flags(throttle.since_boot)
    if earlier:
        yield f"since the start: {', '.join(earlier)}"
    if _known(throttle.hwmon_under_voltage_alarm):
        yield "the kernel has seen under-voltage"
    events = _known(throttle.oc_events)
    if events:
        yield "events since the start: " + ", ".join(f"{name} {n}" for name, n in events.items())


def _flags(flags: ThrottleFlags | UnsetType) -> list[str]:
    known = _known(flags)
    return [] if known is None else [word for name, word in FLAGS.items() if getattr(known, name)]


def _clocks(clocks_hz: dict[str, int] | None) -> Iterator[str]:
    if not clocks_hz:
        yield "unknown"
    for name, hertz in (clocks_hz or {}).items():
        yield f"{name:<12}  {hertz / 1e6:8.1f} MHz"


def _fan(fan: Fan | None) -> Iterator[str]:
    if fan is None:
        yield "none known"
        return
    speed = "speed unknown" if fan.rpm is None else f"{fan.rpm} rpm"
    pwm, pwm_max = _known(fan.pwm), _known(fan.pwm_max)
    yield speed if pwm is None else f"{speed}, driven at {pwm} of {pwm_max}"


def _accel(accel: Accel | None) -> Iterator[str]:
    if accel is None:
        yield "none whose sensors can be read"
        return
    load = "unknown" if accel.load_ratio is None else f"{accel.load_ratio:.1%}"
    clock = "unknown" if accel.freq_hz is None else f"{accel.freq_hz / 1e6:.1f} MHz"
    yield f"{_known(accel.name) or accel.kind}: load {load}, clock {clock}"
    if accel.temp_c is not UNSET:
        trips = ", ".join(f"{trip:g}" for trip in _known(accel.trip_points_c) or [])
        degrees = "unknown" if accel.temp_c is None else f"{accel.temp_c:.1f} °C"
        slowed = {None: "", True: ", slowed down", False: ", not slowed down"}
        yield f"  {degrees}{slowed[_known(accel.throttled)]}"
        if trips:
            yield f"  trips at {trips} °C"


def _errors(errors: dict[str, str]) -> Iterator[str]:
    for path, error in errors.items():
        meaning = ERRNOS.get(error)
        yield f"/{path}: {error}{f' ({meaning})' if meaning else ''}"


def _known(value: T | UnsetType) -> T | None:
    return None if isinstance(value, UnsetType) else value
