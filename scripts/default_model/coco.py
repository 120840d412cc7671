"""The COCO-80 class list, and how it maps to the 90-id numbering the network was trained on."""

from __future__ import annotations

# Contiguous order, person = 0, as in the COCO detection task (sorted by category id).
# Source: COCO 2017 instances annotations, field "categories".
_NAMES = """
    person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|
    stop sign|parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|
    backpack|umbrella|handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|
    baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|
    fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|
    cake|chair|couch|potted plant|bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|
    cell phone|microwave|oven|toaster|sink|refrigerator|book|clock|vase|scissors|teddy bear|
    hair drier|toothbrush
"""
LABELS: tuple[str, ...] = tuple(name.strip() for name in _NAMES.split("|"))

# Ids of 1..90 that COCO never used for a detection class (street sign, hat, shoe, ...).
# Source: mscoco_label_map.pbtxt of the TensorFlow object detection API.
_UNUSED_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})

# Column of each LABELS entry in a 91-wide class head; column 0 is the background.
HEAD_COLUMNS: tuple[int, ...] = tuple(i for i in range(1, 91) if i not in _UNUSED_IDS)


def labels_text() -> str:
    """Return labels.txt: one name per line, line number = class id."""
    return "\n".join(LABELS) + "\n"
