"""Which decoder fits a model: from its manifest, else from its tensors, else none.

Nothing is guessed silently: `why` goes into the log and into `model inspect`. What two
families could read is refused until the manifest says which; what none can read is `raw`.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import ModelError
from agent.vision.heads import Found, Look
from agent.vision.heads.blazeface import find_blazeface
from agent.vision.heads.classify import find_classes
from agent.vision.heads.nanodet import find_nanodet
from agent.vision.heads.pose import find_movenet, find_yolo_pose
from agent.vision.heads.posenet import find_posenet
from agent.vision.heads.raw import find_raw, hint_for
from agent.vision.heads.segment import find_segments
from agent.vision.heads.ssd import find_ssd
from agent.vision.heads.ssd_raw import find_ssd_raw
from agent.vision.heads.yolo import find_yolo
from agent.vision.heads.yolo_end_to_end import find_end_to_end
from agent.vision.heads.yolo_segment import find_yolo_segment
from agent.vision.heads.yolo_split import find_yolo_split

# What a finder gives: what fits; what is missing for that, in words; or that it is no matter.
Finder = Callable[[Look], Found | str | None]
# Kinds a manifest may name -> who reads them. A finder looks at `Look.wanted.type` itself where
# it reads several kinds, and is less strict about what it was asked for by name.
FAMILIES: dict[str, Finder] = {
    "ssd": find_ssd,
    "ssd_raw": find_ssd_raw,
    "yolov5": find_yolo,
    "yolov8": find_yolo,
    "yolo_segment": find_yolo_segment,
    "yolo_split": find_yolo_split,
    "yolo_end_to_end": find_end_to_end,
    "nanodet": find_nanodet,
    "blazeface": find_blazeface,
    "classify": find_classes,
    "movenet": find_movenet,
    "posenet": find_posenet,
    "yolo_pose": find_yolo_pose,
    "segment": find_segments,
}
# Exporter tasks that have a head of their own: their tensors may look like another's.
BY_TASK: dict[object, Finder] = {"pose": find_yolo_pose, "segment": find_yolo_segment}


def recognise(look: Look) -> Found:
    """Tell what the outputs mean.

    Raises:
        ModelError: the head that was asked for does not fit, or several would.
    """
    shapes = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in look.outputs)
    wanted = look.wanted.type
    if wanted == "raw":
        return find_raw(look, "raw because the manifest says so")
    if wanted is not None:
        asked = FAMILIES[wanted](look)
        if not isinstance(asked, Found):
            because = f": {asked}" if asked else ""
            raise ModelError(f"a {wanted} head does not fit its outputs ({shapes}){because}")
        return asked
    task = look.file.exporter.get("task")
    if task == "obb":
        return find_raw(look, "raw because the exporter calls this a model of rotated boxes (obb)")
    finders = [BY_TASK[task]] if task in BY_TASK else dict.fromkeys(FAMILIES.values())
    answers = [answer for find in finders if (answer := find(look))]
    fitting = [answer for answer in answers if isinstance(answer, Found)]
    if len(fitting) > 1:
        raise ModelError(
            f"its outputs ({shapes}) could be read in {len(fitting)} ways: "
            + "; ".join(found.why for found in fitting)
            + '; say which in a manifest.json beside the model ("head": {"type": '
            + " or ".join(f'"{found.kind}"' for found in fitting)
            + "})"
        )
    if fitting:
        return fitting[0]
    missing = "; ".join(answer for answer in answers if isinstance(answer, str))
    missing = missing or hint_for(look.image.shape, look.outputs)
    return find_raw(
        look,
        f"raw because no head fits its outputs ({shapes}); "
        + (f"{missing}; " if missing else "")
        + 'if one should, say so in a manifest.json beside the model ("head": {"type": …})',
    )
