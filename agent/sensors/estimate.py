"""What a board without a sensor probably draws: a model's figure, and always named so.

Boards: the line from idle to full load, P = P_idle + (P_load - P_idle) * cpu_util * f/f_max, by
published readings of meters; where none were found (Compute Modules, Coral Dev Board) there is no
estimate. No GPU, USB, camera or radio is in it: take it as +-30 %, which is a guess itself.
The Raspberry Pi 5 measures a part, and a line fitted to one owner's board gives the whole.
Two readings of a meter replace either (calibration.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.contract.reading import BoardIdentity, Estimate, Power, Scope
from agent.sensors.calibration import Calibration
from agent.sensors.files import BoardFiles
from agent.sensors.load import CpuLoad, freq_ratio

LABEL = "estimated"
MODEL = "P = P_idle + (P_load - P_idle) * cpu_util * f/f_max"
NOTE = "not a measurement; never report under power.kind=measured"
# Of power that no sensor measures as a whole.
ESTIMATED: tuple[Scope, ...] = ("none", "pmic_rails_sum")
OWN_READINGS = "two readings of a meter at this board"
# Board input over the sum of the PMIC's supplies: github.com/jfikar/RPi5-power.
PMIC_SLOPE, PMIC_OFFSET_W = 1.1451, 0.5879
PMIC_MODEL = (
    f"board_input ~= {PMIC_SLOPE} * pmic_sum + {PMIC_OFFSET_W} (community fit, jfikar/RPi5-power)"
)
PMIC_NOTE = "one community calibration, not this board's; never report as measured"
# Boards of the 2 GB kind have the chip's later, thriftier step.
TWO_GIB_KB = 2_500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What somebody's meter showed for a board at rest and with all cores busy."""

    idle_w: float
    load_w: float
    source: str


FIGURES = {
    "rpi-zero-2w": Figures(
        idle_w=0.6,
        load_w=1.785,
        source="idle 0.6 W: CNX Software 2021-12-09 (Otii Arc, 120 mA @ 5 V); upper figure 350 mA "
        "x 5.1 V = 1.785 W is Raspberry Pi's 'typical bare-board active', NOT a full-load figure",
    ),
    "rpi-3b-plus": Figures(
        idle_w=1.9,
        load_w=5.1,
        source="pidramble.com power benchmarks: 3B+ idle 350 mA (1.9 W), 400% CPU 980 mA (5.1 W)",
    ),
    "rpi-4b": Figures(
        idle_w=2.7,
        load_w=6.4,
        source="pidramble.com power benchmarks: 4B idle 540 mA (2.7 W), 400% CPU 1280 mA (6.4 W)",
    ),
    "rpi-5": Figures(
        idle_w=3.3,
        load_w=9.8,
        source="Jeff Geerling's readings (hardwareluxx 64340), 4 GB: idle 3.3 W, 400% CPU 9.8 W",
    ),
}
PI_5_OF_2_GB = Figures(
    idle_w=2.4,
    load_w=8.9,
    source="Jeff Geerling's readings (hardwareluxx 64340), 2 GB D0: idle 2.4 W, 400% CPU 8.9 W",
)


class Estimator:
    """One board's model; asked once a look, after power and clocks."""

    def __init__(
        self, files: BoardFiles, identity: BoardIdentity, calibration: Calibration | None = None
    ) -> None:
        self._load = CpuLoad(files)
        self._calibration = calibration
        self._figures = figures_for(files, identity)

    def estimate(self, power: Power, clocks_hz: dict[str, int] | None) -> Estimate | None:
        """Return what the board may draw; None where a sensor says it, or too little is known."""
        load = self._load.step()
        if power.scope not in ESTIMATED:
            return None
        if power.total_w is not None:
            return _of_pmic(power.total_w, self._calibration)
        ratio = freq_ratio(clocks_hz)
        if load is None or ratio is None:
            return None
        return _of_load(load, ratio, self._figures, self._calibration)


def figures_for(files: BoardFiles, identity: BoardIdentity) -> Figures | None:
    """Return the published figures of a board, if there are any."""
    if identity.id == "rpi-5":
        words = (files.read("proc/meminfo") or "").split(maxsplit=2)
        kilobytes = words[1] if len(words) > 1 and words[0] == "MemTotal:" else ""
        if kilobytes.isdecimal() and len(kilobytes) < 20 and int(kilobytes) < TWO_GIB_KB:
            return PI_5_OF_2_GB
    return FIGURES.get(identity.id)


def _of_load(
    load: float, ratio: float, figures: Figures | None, calibration: Calibration | None
) -> Estimate | None:
    label, note = LABEL, NOTE
    if calibration is not None and calibration.basis == "cpu_load":
        idle_w, slope_w = calibration.offset_w, calibration.slope
        source, label = OWN_READINGS, calibration.label
    elif figures is not None:
        idle_w, slope_w = figures.idle_w, figures.load_w - figures.idle_w
        source = figures.source
    else:
        return None
    return Estimate(
        label=label,
        model=MODEL,
        estimate_w=round(idle_w + slope_w * load * ratio, 4),
        note=note,
        figures_source=source,
        p_idle_w=round(idle_w, 4),
        p_load_w=round(idle_w + slope_w, 4),
        cpu_util=round(load, 6),
        freq_ratio=round(ratio, 6),
    )


def _of_pmic(pmic_w: float, calibration: Calibration | None) -> Estimate:
    if calibration is not None and calibration.basis == "pmic_sum":
        slope, offset_w = calibration.slope, calibration.offset_w
        return Estimate(
            label=calibration.label,
            model=f"board_input ~= {slope:.4f} * pmic_sum + {offset_w:.4f} ({OWN_READINGS})",
            estimate_w=round(slope * pmic_w + offset_w, 4),
            note=NOTE,
        )
    return Estimate(
        label=LABEL,
        model=PMIC_MODEL,
        estimate_w=round(PMIC_SLOPE * pmic_w + PMIC_OFFSET_W, 4),
        note=PMIC_NOTE,
    )
