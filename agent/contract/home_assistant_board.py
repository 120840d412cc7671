"""The board's part of what Home Assistant is told: sensors, once they have said anything. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct, UnsetType

from agent.contract.home_assistant_words import (
    Component,
    component,
    identifier,
    path,
    printable,
    truth_template,
    value_template,
)
from agent.contract.reading import BoardIdentity
from agent.contract.telemetry import Telemetry

MAX_TEMPS = 16
# What a total covers, where it is not the whole board.
SCOPES = {
    "module_input": "module",
    "module_rails_sum": "module",
    "pmic_rails_sum": "PMIC rails",
    "cpu_package": "processor",
    "cpu_packages": "processors",
    "battery_discharge": "battery",
}


class BoardFacts(Struct, frozen=True, kw_only=True):
    """Which sensors this board has ever had a value of: what is there once stays announced."""

    id: str = ""
    family: str = ""
    model: str | None = None
    temps: tuple[str, ...] = ()
    power_scope: str = ""  # of the measured one; empty: never
    is_estimated: bool = False
    has_energy: bool = False
    has_energy_per_inference: bool = False
    has_throttle: bool = False
    has_under_voltage: bool = False
    has_fan: bool = False
    has_accel_temp: bool = False


def learn(known: BoardFacts, telemetry: Telemetry, identity: BoardIdentity | None) -> BoardFacts:
    """Return what is known after a message; another board (a card that was moved) begins anew."""
    if identity is not None and identity.id != known.id:
        known = BoardFacts(id=identity.id)
    power, energy, throttle = telemetry.power, telemetry.energy, telemetry.throttle
    is_measured = power.kind == "measured" and power.total_w is not None
    voltage = throttle is not None and not (
        isinstance(throttle.now, UnsetType)
        and not isinstance(throttle.hwmon_under_voltage_alarm, bool)
    )
    accel = telemetry.accel
    temps = dict.fromkeys((*known.temps, *sorted(telemetry.temps_c)))
    return BoardFacts(
        id=known.id,
        family=identity.family if identity is not None else known.family,
        model=identity.model if identity is not None else known.model,
        temps=tuple(temps)[:MAX_TEMPS],
        power_scope=power.scope if is_measured else known.power_scope,
        is_estimated=known.is_estimated or telemetry.estimate is not None,
        has_energy=known.has_energy or energy.total_j is not None,
        has_energy_per_inference=known.has_energy_per_inference
        or energy.gross_mj_per_inference is not None,
        has_throttle=known.has_throttle
        or (throttle is not None and throttle.throttled_now is not None),
        has_under_voltage=known.has_under_voltage or voltage,
        has_fan=known.has_fan or (telemetry.fan is not None and telemetry.fan.rpm is not None),
        has_accel_temp=known.has_accel_temp
        or (accel is not None and isinstance(accel.temp_c, float)),
    )


def board_components(telemetry: str, board: BoardFacts, expiry_s: int) -> dict[str, Component]:
    """Return the board's components, which read the topic `telemetry`."""
    sensor = _Sensors(telemetry, expiry_s)
    return {
        "cpu": sensor("CPU", "system", "cpu_percent", unit="%", ic="mdi:cpu-64-bit"),
        "disk_free": sensor(
            "Disk free", "system", "disk_free_mib", unit="MiB", digits=0, dev_cla="data_size"
        ),
        "memory_available": sensor(
            "Memory available", "system", "memory_available_mib", unit="MiB", digits=0,
            dev_cla="data_size",
        ),
        "outbox": sensor("Messages waiting", "outbox", "waiting", digits=0, ic="mdi:tray-full"),
        "worker_restarts": sensor(
            "Worker restarts", "worker_restarts", digits=0, stat_cla="total_increasing",
            ic="mdi:restart-alert",
        ),
        **_heat(sensor, board),
        **_power(sensor, board),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Sensors:
    """Makes components that read the telemetry."""

    topic: str
    expiry_s: int

    def __call__(
        self, name: str, *keys: str, unit: str = "", digits: int = 1, **more: object
    ) -> Component:
        units = {"unit_of_meas": unit} if unit else {}
        rest = {**units, "stat_cla": "measurement", "sug_dsp_prc": digits, **more}
        return component(
            "sensor", name, self.topic, value_template(*keys), ent_cat="diagnostic",
            exp_aft=self.expiry_s, **rest,
        )  # fmt: skip

    def problem(self, name: str, *expressions: str) -> Component:
        return component(
            "binary_sensor", name, self.topic, truth_template(*expressions), dev_cla="problem",
            ent_cat="diagnostic", exp_aft=self.expiry_s,
        )  # fmt: skip


def _heat(sensor: _Sensors, board: BoardFacts) -> dict[str, Component]:
    found = {
        f"temp.{identifier(zone)}": sensor(
            f"Temperature {printable(zone)}", "temps_c", zone, unit="°C", dev_cla="temperature"
        )
        for zone in board.temps
    }
    if board.has_accel_temp:
        found["accel_temp"] = sensor(
            "Accelerator temperature", "accel", "temp_c", unit="°C", dev_cla="temperature"
        )
    if board.has_throttle:
        found["throttled"] = sensor.problem("Throttled", path("throttle", "throttled_now"))
    if board.has_under_voltage:
        found["under_voltage"] = sensor.problem(
            "Under-voltage", path("throttle", "now", "under_voltage"),
            path("throttle", "hwmon_under_voltage_alarm"),
        )  # fmt: skip
    if board.has_fan:
        found["fan"] = sensor("Fan", "fan", "rpm", unit="rpm", digits=0, ic="mdi:fan")
    return found


def _power(sensor: _Sensors, board: BoardFacts) -> dict[str, Component]:
    found = {}
    if board.power_scope:
        covers = SCOPES.get(board.power_scope)
        found["power"] = sensor(
            f"Power of the {covers}" if covers else "Power", "power", "total_w", unit="W",
            digits=2, dev_cla="power",
        )  # fmt: skip
    if board.is_estimated:
        found["power_estimated"] = sensor(
            "Power (estimated)", "estimate", "estimate_w", unit="W", dev_cla="power"
        )
    if board.has_energy:
        found["energy"] = sensor(
            "Energy", "energy", "total_j", unit="J", digits=0, dev_cla="energy",
            stat_cla="total_increasing",
        )  # fmt: skip
    if board.has_energy_per_inference:
        found["energy_per_inference"] = sensor(
            "Energy per inference", "energy", "gross_mj_per_inference", unit="mJ",
            ic="mdi:lightning-bolt",
        )  # fmt: skip
    return found
