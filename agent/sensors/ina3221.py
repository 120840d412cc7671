"""The INA3221 of Jetsons: three supplies each, through hwmon or, before L4T 34, through iio.

Documentation/hwmon/ina3221.rst and drivers/hwmon/ina3221.c: in1..in3 are bus voltages in mV and
curr1..curr3 currents in mA, while in4..in7 are shunt voltages in microvolts and curr4 is a sum;
a channel that is switched off gives ENODATA, and values have a sign. Before, NVIDIA's driver had
rail_name_N, in_voltageN_input (mV), in_currentN_input (mA), in_powerN_input (mW) and limits in mA.
Labels: the device trees of NVIDIA's boards. Supplies feed one another, so only what is known to
cover the others is a total: the sum of all labels counts some twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.contract.reading import BoardIdentity, Power, Rail, Scope
from agent.sensors.files import BoardFiles
from agent.sensors.hwmon import find_chips
from agent.sensors.source import PowerReading, add_unique, per, rail_of

CHIPS_BY_BUS = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"
IIO_CHIPS = "sys/bus/i2c/drivers/ina3221x/*/iio[:_]device*"
WATCHED = (
    "sys/class/hwmon/hwmon*/name",
    "sys/class/hwmon/hwmon*/in[123]_label",
    f"{IIO_CHIPS}/rail_name_[012]",
)
NOT_CONNECTED = "NC"
# Labels of what everything else is fed from; the first that is there is the total.
INPUTS: Mapping[str, Scope] = {
    "VIN": "board_input",
    "VDD_IN": "module_input",
    "POM_5V_IN": "module_input",
}
# Boards without such a label, and what together covers the module.
SUMS = {
    "jetson-agx-xavier": ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    "jetson-agx-orin": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    "jetson-agx-thor": ("VDD_CPU_SOC_MSS", "VDD_GPU", "VIN_SYS_5V0"),
}
CHILDREN = {"VDDQ_VDD2_1V8AO": "fed from VIN_SYS_5V0"}  # NVIDIA's forum, 223111
SHUNTS = "in4..in7 (shunt voltages in uV)"
SUM_OF_CURRENTS = "curr4 (sum)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Where one supply is read."""

    label: str
    volt: str  # mV
    curr: str  # mA
    power: str | None = None  # mW
    alarms: Mapping[str, str] = field(default_factory=dict)  # kind -> path, 0 or 1
    limits: Mapping[str, str] = field(default_factory=dict)  # kind -> path, mA


class Ina3221:
    """All INA3221 of a board."""

    part_of = ""

    def __init__(
        self,
        files: BoardFiles,
        identity: BoardIdentity,
        channels: list[Channel],
        left_out: list[str],
    ) -> None:
        self._files = files
        self._board = identity.id
        self._channels = channels
        self._left_out = left_out
        self.layout: object = (channels, left_out)

    def read(self, at_s: float) -> PowerReading:  # noqa: ARG002 - as every source
        """Return all supplies, and the total of those that cover the others."""
        rails: dict[str, Rail] = {}
        unreadable: list[str] = []
        alarms: list[str] = []
        for channel in self._channels:
            rail = self._read(channel)
            if rail is None:
                unreadable.append(channel.label)
            else:
                add_unique(rails, channel.label, rail)
            alarms.extend(f"{channel.label}:{kind}" for kind in self._alarms(channel, rail))
        scope, wanted = self._total()
        reason = _why_none(wanted, rails, {channel.label for channel in self._channels})
        in_total = [] if reason else list(wanted)
        others = [name for name in rails if name not in in_total]
        power = Power(
            kind="unavailable" if reason else "measured",
            scope=scope,
            total_w=None if reason else sum(rails[name].power_w or 0.0 for name in in_total),
            rails=rails,
            in_total=in_total,
            excluded_from_total=[*map(_excluded, others), *self._left_out],
            sensor=None if reason else f"ina3221 {' + '.join(in_total)}",
            reason=reason,
            rails_unreadable=unreadable,
            alarms=sorted(alarms),
        )
        return PowerReading(power=power)

    def _total(self) -> tuple[Scope, tuple[str, ...]]:
        labels = {channel.label for channel in self._channels}
        for label, scope in INPUTS.items():
            if label in labels:
                return scope, (label,)
        if self._board in SUMS:
            return "module_rails_sum", SUMS[self._board]
        for wanted in SUMS.values():  # a module under a name that is not known here
            if labels.issuperset(wanted):
                return "module_rails_sum", wanted
        if self._board.startswith("jetson-"):  # it has one, and its label could not be read
            label = "POM_5V_IN" if self._board == "jetson-nano" else "VDD_IN"
            return "module_input", (label,)
        return "none", ()

    def _read(self, channel: Channel) -> Rail | None:
        volt_mv = self._files.sensor(channel.volt).number()
        curr_ma = self._files.sensor(channel.curr).number()
        if volt_mv is None or curr_ma is None:
            return None
        power_mw = self._files.sensor(channel.power).number() if channel.power else None
        return rail_of(volt_mv / 1e3, curr_ma / 1e3, per(power_mw, 1e3))

    def _alarms(self, channel: Channel, rail: Rail | None) -> list[str]:
        raised = [
            kind for kind, path in channel.alarms.items() if self._files.sensor(path).number() == 1
        ]
        for kind, path in channel.limits.items():
            limit_ma = self._files.sensor(path).number() or 0
            curr_a = (rail.curr_a if rail else None) or 0.0
            if 0 < limit_ma <= curr_a * 1e3:
                raised.append(kind)
        return raised


def find_ina3221(files: BoardFiles, identity: BoardIdentity) -> Ina3221 | None:
    """Return the board's INA3221, or None where it has none with labels."""
    folders = [chip.folder for chip in find_chips(files) if chip.name == "ina3221"]
    folders = folders or files.find(CHIPS_BY_BUS)
    channels = [channel for folder in folders for channel in _hwmon_channels(files, folder)]
    known = {channel.label for channel in channels}
    for folder in files.find(IIO_CHIPS):
        channels.extend(one for one in _iio_channels(files, folder) if one.label not in known)
    left_out = []
    if any(channel.label == NOT_CONNECTED for channel in channels):
        left_out.append(NOT_CONNECTED)
    if any(files.has(f"{folder}/in4_input") for folder in folders):
        left_out.extend((SHUNTS, SUM_OF_CURRENTS))
    connected = [channel for channel in channels if channel.label != NOT_CONNECTED]
    return Ina3221(files, identity, connected, left_out) if connected else None


def _hwmon_channels(files: BoardFiles, folder: str) -> list[Channel]:
    channels = []
    for number in (1, 2, 3):
        label = files.read(f"{folder}/in{number}_label")
        if label:
            alarms = {kind: f"{folder}/curr{number}_{kind}_alarm" for kind in ("max", "crit")}
            channels.append(
                Channel(
                    label=label,
                    volt=f"{folder}/in{number}_input",
                    curr=f"{folder}/curr{number}_input",
                    alarms=_existing(files, alarms),
                )
            )
    return channels


def _iio_channels(files: BoardFiles, folder: str) -> list[Channel]:
    channels = []
    for number in (0, 1, 2):
        label = files.read(f"{folder}/rail_name_{number}")
        if label:
            power = f"{folder}/in_power{number}_input"
            limits = {
                "max": f"{folder}/warn_current_limit_{number}",
                "crit": f"{folder}/crit_current_limit_{number}",
            }
            channels.append(
                Channel(
                    label=label,
                    volt=f"{folder}/in_voltage{number}_input",
                    curr=f"{folder}/in_current{number}_input",
                    power=power if files.has(power) else None,
                    limits=_existing(files, limits),
                )
            )
    return channels


def _existing(files: BoardFiles, paths: Mapping[str, str]) -> dict[str, str]:
    return {kind: path for kind, path in paths.items() if files.has(path)}


def _why_none(wanted: tuple[str, ...], rails: dict[str, Rail], labels: set[str]) -> str | None:
    """Return why there is no total, None if there is one."""
    if not wanted:
        return "nothing says which of the rails make the total"
    missing = [name for name in wanted if name not in rails]
    if not missing:
        return None
    fault = "unreadable" if labels.issuperset(missing) else "missing"
    return f"{', '.join(missing)} {fault}: do not substitute the sum of the remaining rails"


def _excluded(name: str) -> str:
    return f"{name} ({CHILDREN[name]})" if name in CHILDREN else name
