"""PoseNet: heat maps of 17 points over a coarse grid, and vectors that refine and join them.

    heat maps      [1, h, w, 17]  how likely the point is in the cell, mostly before a sigmoid
    short offsets  [1, h, w, 34]  17 y, then 17 x: from the cell to the point, input pixels
    displacements  [1, h, w, 32]  16 y, then 16 x: from one point of a limb to its other end;
                                  forward and backward along LIMBS, or both as [1, h, w, 64]

Without displacements only the best place of each point can be told, which is one figure.
The decoding is described in the PersonLab paper (arxiv.org/abs/1803.08225); layouts, limbs and
constants are those of github.com/tensorflow/tfjs-models/posenet and google-coral/libcoral.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.vision.engines import Tensor, TensorSpec
from agent.vision.heads import SUPPRESSION, Decode, Found, Limits, Look, Poses, top_scores
from agent.vision.heads.evidence import are_logits
from agent.vision.heads.pose import COCO_POINTS, FIGURE_LABELS
from agent.vision.heads.quantized import hold_numbers, sigmoid, to_real

POINTS = len(COCO_POINTS)
# The tree of limbs, parent to child, in the order of the displacements' channels.
LIMBS = (
    (0, 1), (1, 3), (0, 2), (2, 4), (0, 5), (5, 7), (7, 9), (5, 11), (11, 13), (13, 15),
    (0, 6), (6, 8), (8, 10), (6, 12), (12, 14), (14, 16),
)  # fmt: skip
ROOT_SCORE = 0.5  # of a point at which a figure may begin
SAME_POINT_PX = 20.0  # of the input: nearer ones are one point of one figure
# Beginnings that are followed up, best first; a full house of figures needs fewer.
MAX_ROOTS = 200

F32Map = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Which output is what, as positions; displacements may be absent, or one tensor of both."""

    heat: int
    offsets: int
    displacements: tuple[int, ...]

    def all(self) -> tuple[int, ...]:
        """Return every output that is read."""
        return self.heat, self.offsets, *self.displacements


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """One frame's maps, real numbers, [h, w, channels]; `stride` is (y, x) input px per cell."""

    scores: F32Map
    offsets: F32Map
    forward: F32Map | None
    backward: F32Map | None
    stride: tuple[float, float]


def find_posenet(look: Look) -> Found | str | None:
    """Tell PoseNet by heat maps of 17 channels beside offsets of 34 on the same grid."""
    roles = _roles(look.outputs)
    if roles is None or not hold_numbers([look.outputs[at] for at in roles.all()]):
        return None
    heat = look.outputs[roles.heat]
    grid_h, grid_w = heat.shape[1:3]
    _, height, width, _ = look.image.shape
    if grid_h < 2 or grid_w < 2 or grid_h > height or grid_w > width:
        return None
    stride = ((height - 1) / (grid_h - 1), (width - 1) / (grid_w - 1))
    first = to_real(look.first_run[roles.heat], heat.scale, heat.zero_point).reshape(-1, POINTS)
    logits = are_logits(look, first, heat)
    if logits is None:
        return "it has the shape of PoseNet, but its heat maps are neither probabilities nor logits"

    def bind(limits: Limits) -> Decode:
        def decode(tensors: Sequence[Tensor]) -> Poses:
            maps = _maps(tensors, look.outputs, roles, stride, are_logits=logits)
            lowest, limit = float(limits.thresholds.min()), limits.max_detections
            if maps.forward is None or maps.backward is None:
                points, scores = one_figure(maps)
            else:
                points, scores = many_figures(maps, maps.forward, maps.backward, limit=limit)
            return _poses(points, scores, (width, height), lowest=lowest, limit=limit)

        return decode

    several = (
        "several figures, joined by its displacements"
        if roles.displacements
        else "one figure, because forward and backward displacements are not both known"
    )
    return Found(
        kind="posenet",
        task="pose",
        class_count=1,
        why=f"PoseNet because it has heat maps of 17 points and their offsets, {grid_h}x{grid_w} "
        f"cells; scores {'need' if logits else 'need no'} sigmoid; {several}",
        bind=bind,
        keypoint_names=COCO_POINTS,
        labels=FIGURE_LABELS,
        ignores=SUPPRESSION | ({"top_k"} if roles.displacements else {"top_k", "max_detections"}),
        resize="letterbox",  # tfjs-models posenet/src/util.ts padAndResizeTo
        normalization=(127.5, 127.5),  # of its MobileNet: -1 to 1
    )


def _roles(specs: tuple[TensorSpec, ...]) -> Roles | None:
    """Match outputs by their channels; two of 32 are told apart by their names alone."""

    def having(channels: int) -> list[int]:
        return [
            at
            for at, spec in enumerate(specs)
            if len(spec.shape) == 4 and spec.shape[0] == 1 and spec.shape[3] == channels
        ]

    heat, offsets, both, each = (having(n) for n in (POINTS, 2 * POINTS, 64, 32))
    if len(heat) != 1 or not offsets:
        return None
    if len(offsets) > 1:  # BodyPix has long offsets as well
        offsets = [at for at in offsets if "short" in specs[at].name.lower()]
    grid = specs[heat[0]].shape[:3]
    if len(offsets) != 1 or specs[offsets[0]].shape[:3] != grid:
        return None
    joined: tuple[int, ...] = tuple(both) if len(both) == 1 else ()
    forward, backward = (
        [at for at in each if any(word in specs[at].name.lower() for word in words)]
        for words in (("fwd", "forward"), ("bwd", "backward"))
    )
    if len(forward) == len(backward) == 1:
        joined = (forward[0], backward[0])
    if any(specs[at].shape[:3] != grid for at in joined):
        joined = ()
    return Roles(heat=heat[0], offsets=offsets[0], displacements=joined)


def _maps(
    tensors: Sequence[Tensor],
    specs: tuple[TensorSpec, ...],
    roles: Roles,
    stride: tuple[float, float],
    *,
    are_logits: bool,
) -> Maps:
    """Return the outputs as real numbers; what is no number becomes 0, which no point has."""

    def real(at: int) -> F32Map:
        return np.nan_to_num(to_real(tensors[at][0], specs[at].scale, specs[at].zero_point))

    heat = to_real(tensors[roles.heat][0], specs[roles.heat].scale, specs[roles.heat].zero_point)
    scores = np.nan_to_num(sigmoid(heat) if are_logits else heat)
    forward = backward = None
    if len(roles.displacements) == 1:
        both = real(roles.displacements[0])
        forward, backward = both[:, :, :32], both[:, :, 32:]
    elif roles.displacements:
        forward, backward = (real(at) for at in roles.displacements)
    return Maps(
        scores=np.clip(scores, 0, 1),
        offsets=real(roles.offsets),
        forward=forward,
        backward=backward,
        stride=stride,
    )


def one_figure(maps: Maps) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the best place of each point: float[1, 17, 3] y, x (input px), score, and [1]."""
    height, width, _ = maps.scores.shape
    cells = maps.scores.reshape(height * width, POINTS).argmax(axis=0)
    rows, columns = np.divmod(cells, width)
    names = np.arange(POINTS)
    places = maps.offsets[rows, columns]
    scores = maps.scores[rows, columns, names]
    points = np.stack(
        [
            rows * maps.stride[0] + places[names, names],
            columns * maps.stride[1] + places[names, POINTS + names],
            scores,
        ],
        axis=1,
    )
    return points[None], scores.mean(keepdims=True)


def many_figures(
    maps: Maps, forward: F32Map, backward: F32Map, *, limit: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return figures as `one_figure` does: each grown from a clear point along the limbs.

    A point already claimed by a better figure adds nothing to a figure's score.
    """
    figures: list[npt.NDArray[Any]] = []
    scores: list[float] = []
    for row, column, point in _roots(maps.scores):
        if len(figures) == limit:
            break
        root = _place(maps, row, column, point)
        known = np.array(figures).reshape(-1, POINTS, 3)
        if (np.hypot(*(known[:, point, :2] - root[:2]).T) <= SAME_POINT_PX).any():
            continue
        figure = _grown(maps, forward, backward, point, root)
        apart = known[:, :, :2] - figure[None, :, :2]
        is_claimed = (np.hypot(apart[..., 0], apart[..., 1]) <= SAME_POINT_PX).any(axis=0)
        scores.append(float(figure[~is_claimed, 2].sum()) / POINTS)
        figures.append(figure)
    return np.array(figures).reshape(-1, POINTS, 3), np.array(scores)


def _roots(scores: F32Map) -> list[list[int]]:
    """Return [row, column, point] of the clear points that no neighbour beats, best first."""
    height, width, _ = scores.shape
    padded = np.pad(scores, ((1, 1), (1, 1), (0, 0)))
    around = np.max(
        [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0
    )
    found = np.argwhere((scores >= ROOT_SCORE) & (scores >= around))
    best = top_scores(scores[tuple(found.T)], MAX_ROOTS)
    roots: list[list[int]] = found[best].tolist()
    return roots


def _place(maps: Maps, row: int, column: int, point: int) -> npt.NDArray[Any]:
    """Return y, x (input px) and score of a point in a cell."""
    offset = maps.offsets[row, column]
    return np.array(
        [
            row * maps.stride[0] + offset[point],
            column * maps.stride[1] + offset[POINTS + point],
            maps.scores[row, column, point],
        ]
    )


def _grown(
    maps: Maps, forward: F32Map, backward: F32Map, point: int, root: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return float[17, 3], the figure around a root: up the tree of limbs, then down."""
    figure = np.full((POINTS, 3), np.nan)
    figure[point] = root
    steps = [(child, parent, edge, backward) for edge, (parent, child) in enumerate(LIMBS)][::-1]
    steps += [(parent, child, edge, forward) for edge, (parent, child) in enumerate(LIMBS)]
    for source, target, edge, displacements in steps:
        if np.isnan(figure[source, 0]) or not np.isnan(figure[target, 0]):
            continue
        vector = displacements[_cell(maps, figure[source])]
        towards = figure[source, :2] + [vector[edge], vector[len(LIMBS) + edge]]
        figure[target] = _place(maps, *_cell(maps, towards), target)
    return figure


def _cell(maps: Maps, place: npt.NDArray[Any]) -> tuple[int, int]:
    """Return the cell nearest to y, x in input px."""
    height, width, _ = maps.scores.shape
    row, column = round(place[0] / maps.stride[0]), round(place[1] / maps.stride[1])
    return min(max(row, 0), height - 1), min(max(column, 0), width - 1)


def _poses(
    points: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    size: tuple[int, int],
    *,
    lowest: float,
    limit: int,
) -> Poses:
    """Return the figures that count, best first; points float[n, 17, 3] y, x in input px."""
    passing = np.flatnonzero(scores >= lowest)
    best = passing[top_scores(scores[passing], limit)]
    keypoints = points[best][:, :, [1, 0, 2]].astype(np.float32)
    keypoints[:, :, :2] /= np.array(size, np.float32)
    return Poses(keypoints=keypoints, scores=scores[best].astype(np.float32))
