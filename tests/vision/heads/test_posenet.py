"""PoseNet: figures painted into heat maps, offsets and displacements come out again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import limits, look, spec, tflite_file

from agent.vision.heads.choose import recognise
from agent.vision.heads.posenet import LIMBS
from agent.vision.tflite_file import BUILTIN_LOGISTIC

INPUT, GRID, STRIDE = 257, 17, 16
IMAGE = (1, INPUT, INPUT, 3)
# y, x of a standing figure's points, in pixels around its middle.
STANDING = np.array(
    [
        (-80, 0), (-84, -4), (-84, 5), (-80, -9), (-80, 10), (-60, -20), (-60, 21), (-35, -26),
        (-35, 27), (-10, -28), (-10, 29), (0, -12), (0, 13), (35, -13), (35, 14), (70, -14),
        (70, 15),
    ],
    float,
)  # fmt: skip


def paint(figures, *, clear=6.0, quiet=-6.0):
    """Return heat (logits), offsets, forward, backward as a network of figures would give them."""
    heat = np.full((1, GRID, GRID, 17), quiet, np.float32)
    offsets = np.zeros((1, GRID, GRID, 34), np.float32)
    ways = np.zeros((2, 1, GRID, GRID, 32), np.float32)
    for points in figures:
        cells = np.clip(np.rint(points / STRIDE).astype(int), 0, GRID - 1)
        for point, (row, column) in enumerate(cells):
            heat[0, row, column, point] = clear
        # The vectors hold for a whole neighbourhood, as a network's do.
        for row in range(GRID):
            for column in range(GRID):
                near = [
                    point for point, cell in enumerate(cells)
                    if max(abs(cell - (row, column))) <= 1
                ]  # fmt: skip
                for point in near:
                    offsets[0, row, column, [point, 17 + point]] = points[point] - (
                        row * STRIDE, column * STRIDE
                    )  # fmt: skip
                for edge, ends in enumerate(LIMBS):
                    for way, (source, target) in enumerate((ends, ends[::-1])):
                        if source in near:
                            ways[way, 0, row, column, [edge, 16 + edge]] = (
                                points[target] - points[source]
                            )
    return heat, offsets, ways[0], ways[1]


def specs(names=("heat", "offsets", "displacement_fwd_2", "displacement_bwd_2")):
    channels = (17, 34, 32, 32)
    return [
        spec((1, GRID, GRID, count), name=name, index=at + 1)
        for at, (name, count) in enumerate(zip(names, channels, strict=True))
    ]


FIGURES = [STANDING + np.array(middle) for middle in ((110, 60), (130, 190))]


PAINTED = paint(FIGURES)  # takes a while; only ever copied


def in_pixels(poses):
    """float[n, 17, 2] y, x."""
    return poses.keypoints[:, :, [1, 0]] * INPUT


def test_several_figures():
    tensors = PAINTED
    found = recognise(look(specs(), list(tensors), image=IMAGE))
    assert (found.kind, found.task) == ("posenet", "pose")
    assert (found.resize, found.normalization) == ("letterbox", (127.5, 127.5))
    assert "need sigmoid; several figures" in found.why
    poses = found.bind(limits(found, 0.3))(tensors)
    assert len(poses.scores) == 2
    assert poses.scores == pytest.approx(1 / (1 + np.exp(-6)), abs=0.3)
    ordered = sorted(in_pixels(poses).tolist(), key=lambda points: points[0][1])
    np.testing.assert_allclose(ordered, FIGURES, atol=0.01)
    assert len(found.bind(limits(found, 0.3, max_detections=1))(tensors).scores) == 1


def test_both_displacements_in_one_output_in_any_order():
    heat, offsets, forward, backward = PAINTED
    tensors = [np.concatenate([forward, backward], axis=3), offsets, heat]
    outputs = [spec(one.shape, name=f"t{at}", index=at + 1) for at, one in enumerate(tensors)]
    found = recognise(look(outputs, tensors, image=IMAGE))
    poses = found.bind(limits(found, 0.3))(tensors)
    ordered = sorted(in_pixels(poses).tolist(), key=lambda points: points[0][1])
    np.testing.assert_allclose(ordered, FIGURES, atol=0.01)


@pytest.mark.parametrize("count", [2, 4])
def test_without_known_displacements_the_best_places_are_one_figure(count):
    tensors = paint(FIGURES[:1])[:count]
    outputs = specs(("a", "b", "c", "d"))[:count]
    found = recognise(look(outputs, list(tensors), image=IMAGE))
    assert "one figure, because" in found.why
    poses = found.bind(limits(found, 0.3))(tensors)
    np.testing.assert_allclose(in_pixels(poses), FIGURES[:1], atol=0.01)
    assert not found.bind(limits(found, 0.999))(tensors).scores.size


def test_probabilities_and_quantized_maps():
    heat, offsets, *_ = paint(FIGURES[:1])
    heat = 1 / (1 + np.exp(-heat))
    outputs = [
        spec(heat.shape, np.uint8, 1 / 256, index=1),
        spec(offsets.shape, np.uint8, 0.5, 128, index=2),
    ]
    stored = [np.rint(heat * 255).astype(np.uint8), np.rint(offsets * 2 + 128).astype(np.uint8)]
    found = recognise(look(outputs, stored, image=IMAGE))
    assert "need no sigmoid" in found.why
    poses = found.bind(limits(found, 0.3))(stored)
    np.testing.assert_allclose(in_pixels(poses), FIGURES[:1], atol=0.3)
    file = tflite_file(producers={1: BUILTIN_LOGISTIC})
    found = recognise(look([heat.shape, offsets.shape], image=IMAGE, file=file))
    poses = found.bind(limits(found, 0.3))([heat.astype(np.float32), offsets])
    np.testing.assert_allclose(in_pixels(poses), FIGURES[:1], atol=0.01)


def test_nobody_there():
    tensors = paint([])
    found = recognise(look(specs(), list(tensors), image=IMAGE))
    poses = found.bind(limits(found, 0.3))(tensors)
    assert poses.keypoints.shape == (0, 17, 3)


def test_heat_maps_alone_are_raw_with_a_hint():
    found = recognise(look([(1, 64, 64, 17)], image=(1, 256, 256, 3)))
    assert found.kind == "raw"
    assert "heat maps" in found.why


@given(
    st.lists(
        st.floats(width=32) | st.sampled_from([9.0, np.nan, np.inf, -np.inf, 1e38]),
        min_size=1,
        max_size=50,
    ),
    st.integers(0, 3),
)
def test_any_numbers(values, which):
    tensors = [tensor.copy() for tensor in PAINTED]
    flat = tensors[which].reshape(-1)
    flat[:: max(1, flat.size // 500)] = np.resize(
        np.array(values, np.float32), len(flat[:: max(1, flat.size // 500)])
    )
    found = recognise(look(specs(), list(PAINTED), image=IMAGE))
    poses = found.bind(limits(found, 0.0))(tensors)
    assert np.isfinite(poses.keypoints).all()
    assert ((poses.scores >= 0) & (poses.scores <= 1)).all()


def test_heat_maps_that_are_no_scores_are_published_raw():
    tensors = [one.copy() for one in PAINTED]
    tensors[0][:] = 5.0  # neither within 0 to 1 nor mostly below 0
    found = recognise(look(specs(), tensors, image=IMAGE))
    assert found.kind == "raw"
    assert "heat maps are neither probabilities nor logits" in found.why
    assert recognise(look(specs(), tensors, image=IMAGE, logits=True)).kind == "posenet"


def test_integers_without_a_scale_are_no_heat_maps():
    made = specs()
    made[0] = spec((1, GRID, GRID, 17), np.uint8, name="heat", index=1)
    first = [np.zeros(one.shape, one.dtype) for one in made]
    assert recognise(look(made, first, image=IMAGE)).kind == "raw"


def test_figures_are_persons():
    assert recognise(look(specs(), list(PAINTED), image=IMAGE)).labels == ("person",)
