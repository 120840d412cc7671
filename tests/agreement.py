"""Hold results against reference detections, within the tolerances that come with them."""

from __future__ import annotations

from typing import Any


def iou(a: list[float], b: list[float]) -> float:
    """Intersection over union of two xyxy boxes."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height)


def problems(
    picture: str, expected: dict[str, Any], found: dict[str, Any], tolerance: dict[str, float]
) -> list[str]:
    """Return what is missing, and what is there without reason."""
    if "classes" in expected:
        best, got = expected["classes"][0], {c["class_id"]: c for c in found["classes"]}
        row = got.get(best["class_id"])
        is_right = (
            row is not None
            and row["label"] == best["label"]
            and abs(row["score"] - best["score"]) <= tolerance["class_score"]
        )
        return [] if is_right else [f"{picture}: {best} not in {found['classes']}"]

    def matches(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return bool(
            one["class_id"] == other["class_id"]
            and one["label"] == other["label"]
            and abs(one["score"] - other["score"]) <= tolerance["score"]
            and iou(one["box"], other["box"]) >= tolerance["iou"]
        )

    least = tolerance["boxes_with_score_at_least"]
    missing = [
        f"{picture}: {row} not in {found['detections']}"
        for row in expected["detections"]
        if row["score"] >= least and not any(matches(row, got) for got in found["detections"])
    ]
    unexpected = [
        f"{picture}: {got} is not expected"
        for got in found["detections"]
        if got["score"] >= least + tolerance["score"]
        and not any(matches(row, got) for row in expected["detections"])
    ]
    return missing + unexpected
