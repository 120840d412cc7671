"""Which detector some outputs are: NanoDet, SSD, BlazeFace; and what is no detector's."""

import numpy as np
import pytest
from first_runs import CELLS, CELLS_P6, background, listed
from looks import limits, look, spec, tflite_file

from agent.errors import ModelError
from agent.vision.engines import TensorSpec
from agent.vision.heads.choose import recognise
from agent.vision.tflite_file import DetectorNotes

# NanoDet


@pytest.mark.parametrize(
    ("cells", "bins", "what"),
    [(CELLS, 8, "NanoDet because"), (CELLS, 11, "NanoDet b"), (CELLS_P6, 8, "NanoDet-Plus b")],
)
@pytest.mark.parametrize("classes", [1, 3, 80])
def test_nanodet_in_one_tensor_is_cut_where_probabilities_end(cells, bins, what, classes):
    sides = np.random.default_rng(0).normal(0, 2, (cells, 4 * bins))
    first = np.concatenate([background(cells, classes), sides], axis=1)[None].astype(np.float32)
    names = listed(*map(str, range(classes)))  # or else it might be a YOLO's rows
    found = recognise(look([first.shape], [first], file=names))
    assert (found.kind, found.class_count) == ("nanodet", classes)
    assert found.why.startswith(what)


def test_nanodet_in_two_tensors():
    shapes = [(1, CELLS, 80), (1, CELLS, 44)]
    assert recognise(look(shapes)).class_count == 80
    assert recognise(look(shapes[::-1])).class_count == 80
    both = recognise(look([(1, CELLS, 44), (1, CELLS, 44)]))
    assert "which output holds the boxes is not known" in both.why


def test_nanodet_plus_in_two_tensors_might_be_picodet():
    shapes = [(1, CELLS_P6, 80), (1, CELLS_P6, 32)]
    found = recognise(look(shapes))
    assert found.kind == "raw"
    assert "PicoDet" in found.why
    assert "NanoDet-Plus" in recognise(look(shapes, type="nanodet")).why


# SSD without its operator


def ssd_run(count, classes, has_background):
    rng = np.random.default_rng(0)
    scores = background(count, classes)
    if has_background:
        scores[:, 0] = 0.97
    return [rng.normal(0, 1, (1, count, 4)).astype(np.float32), scores[None]]


@pytest.mark.parametrize(
    ("columns", "has_background", "file", "classes"),
    [
        (80, False, None, 80),
        (91, True, None, 90),
        (91, False, None, 90),  # COCO's 90 ids have no 91st
        (6, True, None, 5),
        (6, False, None, 6),
        (6, False, listed("???", "a", "b", "c", "d", "e"), 6),
        (6, False, listed("a", "b", "c", "d", "e"), 5),
        (1, False, None, 1),
    ],
)
def test_ssd_of_tensorflows_anchors(columns, has_background, file, classes):
    first = ssd_run(1917, columns, has_background)
    one = look([a.shape for a in first], first, image=(1, 300, 300, 3), file=file)
    found = recognise(one)
    assert (found.kind, found.class_count) == ("ssd_raw", classes)
    assert "TensorFlow's default anchors for 300x300" in found.why


def test_ssd_without_known_anchors_says_what_is_needed(tmp_path):
    first = ssd_run(12804, 90, has_background=False)
    shapes = [a.shape for a in first]
    found = recognise(look(shapes, first))
    assert found.kind == "raw"
    assert "float[12804, 4] ymin, xmin, ymax, xmax" in found.why
    with pytest.raises(ModelError, match=r"12804 anchors .* is not known"):
        recognise(look(shapes, first, type="ssd_raw"))
    anchors = np.tile(np.array([0.1, 0.2, 0.3, 0.6]), (12804, 1))
    np.save(tmp_path / "anchors.npy", anchors)
    told = recognise(look(shapes, first, folder=tmp_path, anchors="anchors.npy"))
    assert told.class_count == 90
    boxes, scores = (np.zeros(shape, np.float32) for shape in shapes)
    scores[0, 5, 2] = 0.8
    result = told.bind(limits(told))([boxes, scores])
    np.testing.assert_allclose(result.xyxy_norm, [[0.2, 0.1, 0.6, 0.3]], atol=1e-6)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a .npy file"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", "npy"),
        (np.zeros((5, 4), np.float32), r"has the shape \[5, 4\], but the model has 1917 boxes"),
        (np.full((1917, 4), np.nan), "no usable numbers"),
        (np.ones((1917, 4), np.float32), "the higher numbers last"),
        (np.array(["a"]), "is not a .npy file of numbers"),
        (np.array([{"a": 1}], dtype=object), "is not a .npy file of numbers"),
        (bytes(20 << 20), "is larger than"),
    ],
)
def test_anchors_files_that_are_none(tmp_path, content, sentence):
    path = tmp_path / "anchors.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    first = ssd_run(1917, 80, has_background=False)
    with pytest.raises(ModelError, match=sentence):
        recognise(look([a.shape for a in first], first, folder=tmp_path, anchors="anchors.npy"))


def test_a_pickle_among_the_anchors_is_never_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (tmp_path.joinpath("touched").touch, ())

    np.save(tmp_path / "anchors.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    first = ssd_run(1917, 80, has_background=False)
    with pytest.raises(ModelError, match=r"is not a \.npy file of numbers"):
        recognise(look([a.shape for a in first], first, folder=tmp_path, anchors="anchors.npy"))
    assert not (tmp_path / "touched").exists()


def test_anchors_of_mediapipes_metadata():
    first = ssd_run(19206, 90, has_background=False)
    notes = DetectorNotes(
        anchors=((0.5, 0.25, 0.2, 0.1),) * 19206,
        scales=(1.0, 1.0, 1.0, 1.0),
        has_exponential=True,
        is_sigmoid_left=False,
    )
    found = recognise(look([a.shape for a in first], first, file=tflite_file(detector=notes)))
    assert "MediaPipe's metadata" in found.why
    boxes, scores = np.zeros((1, 19206, 4), np.float32), np.zeros((1, 19206, 90), np.float32)
    boxes[0, 4], scores[0, 4, 17] = [0.5, 1.0, np.log(2), 0.0], 0.8
    result = found.bind(limits(found))([boxes, scores])
    np.testing.assert_allclose(result.xyxy_norm, [[0.3, 0.4, 0.4, 0.8]], atol=1e-6)


def test_corners_are_not_taken_for_offsets():
    first = ssd_run(1917, 80, has_background=False)
    first[0][0, :, 2:] = first[0][0, :, :2] + 0.1
    found = recognise(look([a.shape for a in first], first, image=(1, 300, 300, 3)))
    assert found.kind == "raw"
    assert "corners already" in found.why


def test_few_rows_are_no_ssd():
    found = recognise(look([(1, 20, 4), (1, 20, 90)]))
    assert found.kind == "raw"


def test_quantized_box_and_score_names_tell_four_classes():
    shapes = [(1, 1917, 4)] * 2
    specs = [
        TensorSpec(
            index=at,
            name=name,
            shape=shapes[at],
            dtype=np.dtype(np.uint8),
            scale=scale,
            zero_point=0,
        )
        for at, (name, scale) in enumerate([("class_predictions", 1 / 256), ("box_encodings", 0.1)])
    ]
    first = [np.full((1, 1917, 4), 3, np.uint8), np.full((1, 1917, 4), 9, np.uint8)]
    first[1][0, :, 0] = 20
    found = recognise(look(specs, first, image=(1, 300, 300, 3)))
    assert (found.kind, found.class_count) == ("ssd_raw", 4)


# BlazeFace


@pytest.mark.parametrize(
    ("side", "count", "columns", "points"),
    [(128, 896, 16, 6), (256, 896, 16, 6), (192, 2304, 16, 6), (192, 2016, 18, 7)],
)
@pytest.mark.parametrize("is_turned", [False, True])
def test_blazeface_by_its_shapes(side, count, columns, points, is_turned):
    shapes = [(1, count, columns), (1, count, 1)]
    found = recognise(look(shapes[::-1] if is_turned else shapes, image=(1, side, side, 3)))
    assert (found.kind, found.class_count, found.resize) == ("blazeface", 1, "letterbox")
    assert len(found.keypoint_names) == points
    other = recognise(look(shapes, image=(1, side, side + 32, 3)))
    assert other.kind == "raw"


@pytest.mark.parametrize(
    "shapes",
    [
        [()],
        [(), ()],
        [(1,), ()],
        [(1, 2)] * 2,
        [(4,), (1, 9, 4)],
        [(0, 0, 0)] * 2,
        [(2, 84, CELLS)],
    ],
)
def test_shapes_that_are_no_detectors_of_any_kind(shapes):
    assert recognise(look(shapes)).kind in ("raw", "classify")


def test_kinds_that_are_asked_for_and_do_not_fit():
    for kind in ("ssd_raw", "yolo_split", "yolo_end_to_end", "nanodet", "blazeface"):
        with pytest.raises(ModelError, match=f"a {kind} head does not fit its outputs"):
            recognise(look([(1, 10), (1, 20)], type=kind))


@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.int8, 0.0), (np.uint8, np.inf), (np.uint8, -1.0), (np.bool_, 0.0)]
)
def test_numbers_whose_meaning_is_not_known_are_raw(dtype, scale):
    """Integers without a scale, or with one for each channel, which shows as none."""
    for shapes in ([(1, 84, CELLS)], [(1, CELLS, 80), (1, CELLS, 44)], [(1, 300, 6)]):
        specs = [
            spec(shape, dtype, scale, name=f"out{at}", index=at) for at, shape in enumerate(shapes)
        ]
        with np.errstate(invalid="ignore"):
            assert recognise(look(specs)).kind == "raw"
