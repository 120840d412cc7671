"""Figures: read from CSV, and compared point by point.

CSV columns: pose_id, pose_score, keypoint_id, keypoint_score, keypoint_x, keypoint_y, with x
and y as shares of the picture's width and height; `image` names the picture where a file is
about several.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from agent.contract.payloads import Keypoint, Pose
from agent.errors import UnavailableError
from agent.evaluate.records import PoseFigures

COLUMNS = ("pose_id", "pose_score", "keypoint_id", "keypoint_score", "keypoint_x", "keypoint_y")


def read_points(data: bytes, where: str) -> dict[str, list[Pose]]:
    """Return picture -> figures, x and y still as shares; "" where no picture is named.

    Raises:
        UnavailableError: naming the file and the line.
    """
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        lacking = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if lacking:
            raise UnavailableError(f"{where}: has no column {', '.join(lacking)}")
        figures: dict[tuple[str, int], tuple[float, dict[int, Keypoint]]] = {}
        for row in rows:
            place = f"{where}: line {rows.line_num}"
            pose_score, number, point = _point(row, place)
            key = (row.get("image") or "", int(row["pose_id"]))
            points = figures.setdefault(key, (pose_score, {}))[1]
            if number in points:
                raise UnavailableError(f"{place}: keypoint_id {number} was there before")
            points[number] = point
    except UnicodeDecodeError as error:
        raise UnavailableError(f"{where}: is not UTF-8 text (byte {error.start})") from error
    except csv.Error as error:
        raise UnavailableError(f"{where}: is not CSV: {error}") from error
    if not figures:
        raise UnavailableError(f"{where}: has no figure, only a heading")
    pictures: dict[str, list[Pose]] = {}
    for (picture, pose_id), (score, points) in figures.items():
        if sorted(points) != list(range(len(points))):
            raise UnavailableError(
                f"{where}: the keypoint_ids of pose {pose_id} are not 0 to {len(points) - 1}"
            )
        ordered = [points[number] for number in range(len(points))]
        figure = Pose(label=None, class_id=0, score=score, box=None, points=ordered)
        pictures.setdefault(picture, []).append(figure)
    return pictures


def _point(row: dict[str, str], place: str) -> tuple[float, int, Keypoint]:
    try:
        pose_score, score, x, y = (float(row[COLUMNS[at]]) for at in (1, 3, 4, 5))
        pose_id, number = int(row["pose_id"]), int(row["keypoint_id"])
    except (TypeError, ValueError) as error:
        raise UnavailableError(f"{place}: {error or 'a number is missing'}") from error
    if not all(map(math.isfinite, (pose_score, score, x, y))) or pose_id < 0:
        raise UnavailableError(f"{place}: has a number that is not finite, or a negative pose_id")
    if not (0 <= score <= 1 and 0 <= pose_score <= 1):
        raise UnavailableError(f"{place}: scores must be from 0 to 1")
    if max(abs(x), abs(y)) > 2:
        raise UnavailableError(f"{place}: x and y must be shares of the picture, about 0 to 1")
    return pose_score, number, Keypoint(label=None, score=score, x=x, y=y)


def in_shares(poses: Sequence[Pose], width: int, height: int) -> list[Pose]:
    """Return figures in pixels of a picture as shares of its width and height."""
    return [
        Pose(
            label=pose.label,
            class_id=pose.class_id,
            score=pose.score,
            box=None,
            points=[
                Keypoint(label=p.label, score=p.score, x=p.x / width, y=p.y / height)
                for p in pose.points
            ],
        )
        for pose in poses
    ]


def compare(expected: Pose, found: Pose) -> PoseFigures:
    """Compare two figures of the same points, in shares.

    Raises:
        UnavailableError: they have different numbers of points.
    """
    if len(expected.points) != len(found.points) or not found.points:
        raise UnavailableError(
            f"the model's figures have {len(found.points)} points, the expected ones "
            f"{len(expected.points)}"
        )
    pairs = list(zip(expected.points, found.points, strict=True))
    distances = [math.hypot(one.x - other.x, one.y - other.y) for one, other in pairs]
    differences = [
        abs(one.score - other.score)
        for one, other in pairs
        if one.score is not None and other.score is not None
    ]
    return PoseFigures(
        points=len(pairs),
        mean_distance=sum(distances) / len(distances),
        max_distance=max(distances),
        mean_score_difference=sum(differences) / len(differences) if differences else None,
    )


def pair(
    expected: Sequence[Pose], found: Sequence[Pose]
) -> tuple[list[tuple[int, int, PoseFigures]], list[int], list[int]]:
    """Return (pairs of indices with their figures, missing, unexpected), nearest pairs first."""
    candidates = sorted(
        (
            (compare(one, other), at, other_at)
            for at, one in enumerate(expected)
            for other_at, other in enumerate(found)
        ),
        key=lambda candidate: candidate[0].mean_distance,
    )
    missing, unexpected = set(range(len(expected))), set(range(len(found)))
    pairs = []
    for figures, at, other_at in candidates:
        if at in missing and other_at in unexpected:
            pairs.append((at, other_at, figures))
            missing.discard(at)
            unexpected.discard(other_at)
    return pairs, sorted(missing), sorted(unexpected)


def together(parts: Sequence[PoseFigures]) -> PoseFigures | None:
    """Return the figures over several poses, each point counting once."""
    points = sum(part.points for part in parts)
    if not points:
        return None
    scored = [part for part in parts if part.mean_score_difference is not None]
    return PoseFigures(
        points=points,
        mean_distance=sum(part.mean_distance * part.points for part in parts) / points,
        max_distance=max(part.max_distance for part in parts),
        mean_score_difference=sum((p.mean_score_difference or 0.0) * p.points for p in scored)
        / sum(p.points for p in scored)
        if scored
        else None,
    )
