"""One reading of a board's sensors, as types; `edge-agent sensors --json` and telemetry share them.

SI units are in the names. A null says that nobody knows: a sensor that is not there, or did not
answer this time. A model's figure stands in `estimate` alone and never in `power`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Family = Literal["raspberry-pi", "jetson", "coral", "x86", "generic"]
PowerKind = Literal["measured", "estimated", "unavailable"]
Scope = Literal[
    "board_input",
    "board_input_5v",
    "module_input",
    "module_rails_sum",
    "pmic_rails_sum",
    "cpu_package",
    "cpu_packages",
    "battery_discharge",
    "none",
]
Watts = float


class BoardIdentity(Struct, frozen=True, kw_only=True):
    """Which board this is, by its device tree, else by its processor."""

    id: Annotated[str, Meta(description="such as rpi-4b, jetson-orin-nano, x86-rapl, generic")]
    family: Family
    soc: str | None
    model: Annotated[str | None, Meta(description="in the board's own words")]
    compatible: list[str]
    l4t: Annotated[str, Meta(description="of a Jetson, such as 36.4.3")] | UnsetType = UNSET


class Rail(Struct, frozen=True, kw_only=True):
    """One supply; the sign is kept, as a rail that is switched off may read slightly negative."""

    power_w: Watts | None
    volt_v: float | UnsetType | None = UNSET
    curr_a: float | UnsetType | None = UNSET


class Power(Struct, frozen=True, kw_only=True):
    """What the board draws; totals of different scope cannot be compared."""

    kind: PowerKind
    scope: Scope
    total_w: Watts | None
    rails: dict[str, Rail]
    in_total: Annotated[list[str], Meta(description="rails that make the total")]
    excluded_from_total: Annotated[
        list[str], Meta(description="rails that must not be added, some with why in parentheses")
    ]
    sensor: Annotated[str | None, Meta(description="what measured, such as ina3221 VDD_IN")]
    reason: Annotated[str | None, Meta(description="why there is no total, or no measured one")]
    rails_unreadable: list[str] = []
    alarms: Annotated[list[str], Meta(description="such as VDD_IN:crit")] = []
    label: Annotated[str, Meta(description="how an estimated total was made")] | UnsetType = UNSET
    voltage_assumed_v: float | UnsetType = UNSET
    input_voltage_v: float | UnsetType = UNSET


class Estimate(Struct, frozen=True, kw_only=True):
    """What a model says where no sensor does; never a measurement."""

    label: Annotated[str, Meta(description="estimated, or estimated (calibrated 2026-11-21)")]
    model: Annotated[str, Meta(description="the formula")]
    estimate_w: Watts
    note: str
    figures_source: str | UnsetType = UNSET
    p_idle_w: Watts | UnsetType = UNSET
    p_load_w: Watts | UnsetType = UNSET
    cpu_util: float | UnsetType = UNSET
    freq_ratio: float | UnsetType = UNSET


class ThrottleFlags(Struct, frozen=True, kw_only=True):
    """The flags of the Raspberry Pi's firmware."""

    under_voltage: bool
    freq_capped: bool
    throttled: bool
    soft_temp_limit: bool


class Throttle(Struct, frozen=True, kw_only=True):
    """What slows the board down: a Raspberry Pi's word of flags, or a Jetson's alerts."""

    throttled_now: bool | None
    raw: int | UnsetType = UNSET
    raw_hex: str | UnsetType = UNSET
    now: ThrottleFlags | UnsetType = UNSET
    since_boot: ThrottleFlags | UnsetType = UNSET
    hwmon_under_voltage_alarm: bool | UnsetType | None = UNSET
    alerts_active: list[str] | UnsetType = UNSET
    oc_events: (
        Annotated[dict[str, int] | None, Meta(description="over-current events since boot")]
        | UnsetType
    ) = UNSET
    oc_events_total: int | UnsetType = UNSET


class Fan(Struct, frozen=True, kw_only=True):
    """A fan; `pwm` of `pwm_max`."""

    rpm: int | None
    pwm: int | UnsetType = UNSET
    pwm_max: int | UnsetType = UNSET


class Accel(Struct, frozen=True, kw_only=True):
    """The board's accelerator, or its graphics processor."""

    kind: Literal["gpu", "edgetpu"]
    load_ratio: float | None
    freq_hz: int | None
    name: str | UnsetType = UNSET
    temp_c: float | UnsetType | None = UNSET
    trip_points_c: list[float] | UnsetType = UNSET
    throttled: bool | UnsetType | None = UNSET


class Reading(Struct, frozen=True, kw_only=True):
    """Everything that one look at the board gave."""

    board_id: BoardIdentity
    power: Power
    estimate: Estimate | None
    temps_c: dict[str, float]
    temps_unreadable: list[str]
    temps_ignored: Annotated[list[str], Meta(description="constants that are no readings")]
    throttle: Throttle | None
    clocks_hz: Annotated[
        dict[str, int] | None, Meta(description="cpu, cpu_max; arm_measured by the firmware")
    ]
    fan: Fan | None
    accel: Accel | None
    read_errors: Annotated[
        dict[str, str], Meta(description="path -> errno of files that are there but fail")
    ]
