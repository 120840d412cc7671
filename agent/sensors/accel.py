"""The accelerator: an Edge TPU on PCIe, else the board's graphics processor.

Edge TPU: gasket-driver, src/apex_driver.c: trip points in millidegrees; the clock is cut a step at
each. A Coral on USB has neither sensor nor file. Graphics processor of a Jetson: `load` is per
mille and `cur_freq` of devfreq is Hz (jetson_stats, jtop/core/gpu.py). Thor's has no load in sysfs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.contract.reading import Accel
from agent.sensors.clocks import MOST_HZ
from agent.sensors.files import BoardFiles, Sensor
from agent.sensors.thermal import celsius

TRIPS = ("trip_point0_temp", "trip_point1_temp", "trip_point2_temp")
# Device tree nodes, or the last parts of devices' names, of Tegra's graphics processors.
GPUS = ("gpu", "gm20b", "gp10b", "gv11b", "ga10b", "gb10b")
GPU_OF_THOR = re.compile(r"gpu-gpc-[0-9]+")
# Linux for Tegra r32, then r35, then r36; devfreq's own link to the device last.
LOADS = (
    "sys/devices/gpu.0/load",
    "sys/devices/platform/gpu.0/load",
    *(f"sys/devices/*.{gpu}/load" for gpu in GPUS),
    *(f"sys/devices/platform/*.{gpu}/load" for gpu in GPUS),
    *(f"sys/devices/platform/bus@0/*.{gpu}/load" for gpu in GPUS),
)


class AccelReader:
    """Reads what was found at the start."""

    def __init__(self, files: BoardFiles) -> None:
        self._trips = {
            folder.rpartition("/")[2]: [files.sensor(f"{folder}/{trip}") for trip in TRIPS]
            for folder in files.find("sys/class/apex/apex_*")
        }
        gpu = _gpu_folder(files)
        self._freq = files.sensor(f"{gpu}/cur_freq") if gpu else None
        loads = [*LOADS, f"{gpu}/device/load"] if gpu else LOADS
        path = next((path for pattern in loads for path in files.find(pattern)), None)
        self._load = files.sensor(path) if path else None

    def read(self, temps_c: Mapping[str, float]) -> Accel | None:
        """Return the first Edge TPU, else the graphics processor; None where there is neither.

        `temps_c` are the temperatures of this look, which hold those of the Edge TPUs.
        """
        if self._trips:
            return self.edgetpus(temps_c)[0]
        if self._load is None and self._freq is None:
            return None
        load = self._load.number() if self._load else None
        hertz = self._freq.number() if self._freq else None
        return Accel(
            kind="gpu",
            load_ratio=load / 1000 if load is not None and 0 <= load <= 1000 else None,
            freq_hz=hertz if hertz is not None and 0 <= hertz <= MOST_HZ else None,
        )

    def edgetpus(self, temps_c: Mapping[str, float]) -> list[Accel]:
        """Return all Edge TPUs on PCIe."""
        return [_edgetpu(name, trips, temps_c.get(name)) for name, trips in self._trips.items()]


def _edgetpu(name: str, sensors: list[Sensor], temp_c: float | None) -> Accel:
    trips = [celsius(sensor.number()) for sensor in sensors]
    first = trips[0]  # 0: whoever set it wants no trip, and the driver none but that of 0 °C
    return Accel(
        kind="edgetpu",
        name=name,
        load_ratio=None,
        freq_hz=None,
        temp_c=temp_c,
        trip_points_c=[trip for trip in trips if trip is not None],
        throttled=None if temp_c is None or not first else temp_c >= first,
    )


def _gpu_folder(files: BoardFiles) -> str | None:
    for folder in files.find("sys/class/devfreq/*"):
        name = folder.rpartition("/")[2]
        node = files.read(f"{folder}/device/of_node/name")
        if node in GPUS or name.rpartition(".")[2] in GPUS or GPU_OF_THOR.fullmatch(name):
            return folder
    return None
