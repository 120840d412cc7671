"""Detectors from end to end: a file, an interpreter, a head, and boxes that were put in."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from made_models import MadeInput, MadeSsd, MadeTensor, made_detector_notes, made_model

from agent.config import ModelConfig
from agent.errors import ModelError
from agent.vision.heads.anchors import tf_ssd_anchors
from agent.vision.model import load_model

RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]
pytestmark = pytest.mark.parametrize("runtime", RUNTIMES)
CELLS = 40 * 40 + 20 * 20 + 10 * 10
# The middle of cell (row 20, column 12) at stride 8 of a 320 x 320 input, and its number.
X, Y, CELL = 12.5 * 8, 20.5 * 8, 20 * 40 + 12


def loaded(tmp_path, runtime, data, manifest=None, files=(), **config):
    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    for name, content in files:
        (tmp_path / name).write_bytes(content)
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(json.dumps({"name": "made", **manifest}))
        path = tmp_path
    return load_model(ModelConfig(path=str(path), runtime=runtime, **config))


def run(model, pixel=0):
    tensor, outputs = model.plan.new_tensor(), model.new_outputs()
    tensor[...] = pixel
    model.engine.load_input(tensor)
    model.engine.invoke()
    model.engine.read_outputs(outputs)
    return model.decode(outputs)


def quantized(values, low, high, dtype, name="out"):
    bounds = np.iinfo(dtype)
    scale = float(np.float32((high - low) / 255))
    zero_point = round(bounds.min - low / scale)
    stored = np.clip(np.rint(values / scale) + zero_point, bounds.min, bounds.max)
    return MadeTensor(stored.astype(dtype), name=name, scale=scale, zero_point=zero_point)


def one_box(found, class_id, xyxy, score, atol=0.01):
    assert found.class_ids.tolist() == [class_id]
    np.testing.assert_allclose(found.xyxy_norm, [xyxy], atol=atol)
    assert found.scores == pytest.approx([score], abs=0.01)


CORNERS = [X / 320 - 0.1, Y / 320 - 0.2, X / 320 + 0.1, Y / 320 + 0.2]


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_ultralytics_export_with_its_notes(tmp_path, runtime, dtype):
    values = np.zeros((1, 7, CELLS), np.float32)
    values[0, :, CELL] = [X / 320, Y / 320, 0.2, 0.4, 0.1, 0.9, 0.1]
    notes = {"task": "detect", "names": {"0": "ant", "1": "bee", "2": "cat"}, "stride": 32}
    made = (
        MadeTensor(values, name="Identity")
        if dtype == "float32"
        else quantized(values, 0, 1, dtype)
    )
    data = made_model([made], zip_files={"metadata.json": json.dumps(notes)})
    model = loaded(tmp_path, runtime, data)
    assert (model.head.kind, model.plan.resize) == ("yolov8", "letterbox")
    one_box(run(model), 1, CORNERS, 0.9)
    assert model.label(1) == "bee"


def test_each_picture_has_its_own_answer(tmp_path, runtime):
    values = np.zeros((3, 1, 84, CELLS), np.float32)
    for answer in (1, 2):
        values[answer, 0, :4, CELL] = [X, Y, 64, 128]
        values[answer, 0, 4 + answer, CELL] = 0.9
    values[:, 0, :2, -1] = 319  # so that the first run shows pixels
    model = loaded(tmp_path, runtime, made_model([MadeTensor(values, by_pixel=True)]))
    assert run(model, 0).scores.size == 0
    for answer in (1, 2):
        one_box(run(model, answer), answer, CORNERS, 0.9)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_split_full_integer_export(tmp_path, runtime, dtype):
    """Distributions and logits, each in its own scale: 2 cells left and right, 4 up and down."""
    sides, scores = np.zeros((1, CELLS, 4, 16)), np.full((1, CELLS, 80), -9.0)
    sides[0, CELL, [0, 2], 4] = sides[0, CELL, [1, 3], 8] = 20
    scores[0, CELL, 17] = 2.2
    data = made_model(
        [
            quantized(scores, -10, 3, dtype, "scores"),
            quantized(sides.reshape(1, CELLS, 64), -5, 20, dtype, "boxes"),
        ]
    )
    model = loaded(tmp_path, runtime, data)
    assert model.head.kind == "yolo_split"
    one_box(run(model), 17, CORNERS, 0.9)


def test_feature_maps_in_any_order(tmp_path, runtime):
    outputs = []
    for stride in (32, 8, 16):
        cells = 320 // stride
        sides, scores = np.zeros((1, cells, cells, 4, 16)), np.full((1, cells, cells, 3), -9.0)
        if stride == 8:
            sides[0, 20, 12, [0, 2], 4] = sides[0, 20, 12, [1, 3], 8] = 20
            scores[0, 20, 12, 2] = 2.2
        outputs.append(quantized(sides.reshape(1, cells, cells, 64), -5, 20, "int8", f"b{stride}"))
        outputs.insert(0, quantized(scores, -10, 3 + stride / 8, "int8", f"s{stride}"))
    model = loaded(tmp_path, runtime, made_model(outputs))
    assert (model.head.kind, model.head.class_count) == ("yolo_split", 3)
    one_box(run(model), 2, CORNERS, 0.9)


def test_maps_with_priors_from_a_manifest(tmp_path, runtime):
    """YOLOv7's priors are the manifest's; t = 0 is the prior itself, on the cell's middle."""
    outputs = []
    for stride in (8, 16, 32):
        cells = 320 // stride
        numbers = np.zeros((1, cells, cells, 3, 7), np.float32)
        numbers[..., 4:] = -9
        if stride == 8:
            numbers[0, 20, 12, 1, 4:] = [9, -9, 2.2]
        outputs.append(MadeTensor(numbers.reshape(1, cells, cells, 21), name=f"map{stride}"))
    priors = np.ones((3, 3, 2))
    priors[0, 1] = [64, 128]
    np.save(tmp_path / "priors.npy", priors)
    manifest = {"head": {"type": "yolo_split", "anchors": "priors.npy"}}
    model = loaded(tmp_path, runtime, made_model(outputs), manifest)
    one_box(run(model), 1, CORNERS, 0.9)
    np.save(tmp_path / "priors.npy", np.ones((3, 3)))
    with pytest.raises(ModelError, match=r"widths and heights in pixels, float\[3, 3, 2\]"):
        loaded(tmp_path, runtime, made_model(outputs), manifest)


def test_end_to_end_rows(tmp_path, runtime):
    rows = np.zeros((2, 1, 300, 6), np.float32)
    rows[1, 0, 0] = [*CORNERS, 0.9, 16]
    notes = {"task": "detect", "names": {i: f"t{i}" for i in range(80)}, "args": {"nms": True}}
    data = made_model([MadeTensor(rows, by_pixel=True)], zip_files={"metadata.json": str(notes)})
    model = loaded(tmp_path, runtime, data)
    assert model.head.kind == "yolo_end_to_end"
    assert run(model, 0).scores.size == 0
    one_box(run(model, 1), 16, CORNERS, 0.9, atol=1e-6)
    assert model.label(16) == "t16"


def test_nanodet(tmp_path, runtime):
    sides, scores = np.zeros((1, CELLS, 4, 11)), np.zeros((1, CELLS, 5))
    sides[0, CELL, [0, 2], 4] = sides[0, CELL, [1, 3], 8] = 20
    scores[0, CELL, 3] = 0.9
    outputs = [
        quantized(sides.reshape(1, CELLS, 44), -5, 20, "uint8", "PartitionedCall:1"),
        quantized(scores, 0, 1, "uint8", "PartitionedCall:0"),
    ]
    model = loaded(tmp_path, runtime, made_model(outputs))
    assert (model.head.kind, model.plan.resize) == ("nanodet", "stretch")
    one_box(run(model), 3, CORNERS, 0.9)


def encoded(xyxy, anchor):
    """Offsets of a box from a prior: centre y, centre x, height, width, times 10, 10, 5, 5."""
    y, x = (xyxy[1] + xyxy[3]) / 2, (xyxy[0] + xyxy[2]) / 2
    h, w = xyxy[3] - xyxy[1], xyxy[2] - xyxy[0]
    ay, ax, ah, aw = anchor
    return [(y - ay) / ah * 10, (x - ax) / aw * 10, np.log(h / ah) * 5, np.log(w / aw) * 5]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_raw_ssd(tmp_path, runtime, dtype):
    offsets, scores = np.zeros((1, 1917, 4)), np.zeros((1, 1917, 80))
    offsets[0, ::2] = -1
    offsets[0, 700] = encoded(CORNERS, tf_ssd_anchors()[700])
    scores[0, 700, 44] = 0.9
    outputs = [
        quantized(scores, 0, 1, dtype, "scores"),
        quantized(offsets, -30, 30, dtype, "boxes"),
    ]
    data = made_model(outputs, inputs=[MadeInput(shape=(1, 300, 300, 3))])
    model = loaded(tmp_path, runtime, data)
    assert model.head.kind == "ssd_raw"
    found = run(model)
    one_box(found, 44, CORNERS, 0.9, atol=0.03)


def test_raw_ssd_of_mediapipes_model_maker(tmp_path, runtime):
    """Anchors, scales and what else is to be done are in the metadata; so are the labels."""
    rng = np.random.default_rng(0)
    middles, sizes = rng.uniform(0.2, 0.8, (600, 2)), rng.uniform(0.1, 0.5, (600, 2))
    anchors = np.concatenate([middles, sizes], axis=1)
    offsets, scores = np.zeros((1, 600, 4), np.float32), np.full((1, 600, 3), -6, np.float32)
    offsets[0, ::2] = -1
    offsets[0, 77] = np.array(encoded(CORNERS, anchors[77])) / [10, 10, 5, 5]
    scores[0, 77, 1] = 2.2
    data = made_model(
        [MadeTensor(offsets, name="raw_detection_boxes"), MadeTensor(scores, name="scores")],
        inputs=[MadeInput(shape=(1, 256, 256, 3))],
        zip_files={"labels.txt": "ant\nbee\ncat\n"},
        metadata=made_detector_notes(anchors, (1, 1, 1, 1), is_sigmoid_left=True),
    )
    model = loaded(tmp_path, runtime, data)
    assert "MediaPipe's metadata" in model.head.why
    one_box(run(model), 1, CORNERS, 0.9, atol=1e-5)
    assert model.label(1) == "bee"


def test_blazeface(tmp_path, runtime):
    boxes, scores = np.zeros((1, 896, 16), np.float32), np.full((1, 896, 1), -20, np.float32)
    for row, score in ((40, 3.0), (41, 1.0)):  # both of cell (row 1, column 4) of 16 x 16
        boxes[0, row, :4] = [8, 0, 32, 32]
        boxes[0, row, 4:] = np.arange(12)
        scores[0, row, 0] = score
    data = made_model(
        [MadeTensor(scores, name="classificators"), MadeTensor(boxes, name="regressors")],
        inputs=[MadeInput(shape=(1, 128, 128, 3), dtype="float32")],
    )
    model = loaded(tmp_path, runtime, data)
    assert (model.head.kind, model.plan.resize) == ("blazeface", "letterbox")
    assert model.head.keypoint_names[:2] == ("right_eye", "left_eye")
    assert model.plan.table[0, :, 0][[0, 255]].tolist() == [-1, 1]
    found = run(model)
    x, y = 4.5 / 16, 1.5 / 16
    middle = [x + 8 / 128, y]
    box = [middle[0] - 0.125, middle[1] - 0.125, middle[0] + 0.125, middle[1] + 0.125]
    one_box(found, 0, box, 1 / (1 + np.exp(-3.0)), atol=1e-5)
    points = [[x, y + 1 / 128], [x + 2 / 128, y + 3 / 128]]
    np.testing.assert_allclose(found.keypoints[0, :2, :2], points, atol=1e-6)


def ssd(classes, order):
    """The operator as EfficientDet-Lite and the Coral zoo have it: two boxes, one of them late."""
    scores = np.zeros((1, 3, classes + 1), np.float32)
    scores[0, 0, 1], scores[0, 2, classes] = 0.6, 0.9
    anchors = np.array([[0.3, 0.3, 0.2, 0.2], [0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.4, 0.2]])
    return MadeSsd(
        boxes=np.zeros((1, 3, 4)),
        scores=scores,
        anchors=anchors,
        order=order,
        names=tuple(f"StatefulPartitionedCall:{at}" for at in range(4)),
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)])
@pytest.mark.parametrize("first", [[], ["???"], ["background"]])
def test_the_ssd_operator_in_any_order_with_labels_of_90_ids(tmp_path, runtime, order, first):
    """EfficientDet-Lite: COCO's 90 ids with gaps; some files count the background, others not."""
    labels = [*first, *(f"id {number}" for number in range(1, 91))]
    data = made_model([ssd(90, order)], zip_files={"labelmap.txt": "\n".join(labels)})
    model = loaded(tmp_path, runtime, data)
    assert (model.head.kind, model.head.class_count) == ("ssd", 90)
    found = run(model)
    assert [model.label(number) for number in found.class_ids] == ["id 90", "id 1"]
    assert found.scores == pytest.approx([0.9, 0.6])
    np.testing.assert_allclose(
        found.xyxy_norm, [[0.4, 0.3, 0.6, 0.7], [0.2, 0.2, 0.4, 0.4]], atol=1e-6
    )


def test_raw_says_what_would_be_needed(tmp_path, runtime):
    boxes, scores = np.zeros((1, 12804, 4), np.float32), np.zeros((1, 12804, 90), np.float32)
    model = loaded(tmp_path, runtime, made_model([MadeTensor(boxes), MadeTensor(scores, "s")]))
    assert model.head.kind == "raw"
    assert "anchors.npy" in model.head.why


def test_labels_with_a_background_that_the_map_does_not_have(tmp_path, runtime):
    """ARG_MAX chose among 3 channels: a list of 4 that begins with a background is one off."""
    scores = np.zeros((1, 32, 32, 3), np.float32)
    scores[..., 1] = 1.0
    map_of_ones = MadeTensor(scores, through="argmax")
    data = made_model([map_of_ones], inputs=[MadeInput(shape=(1, 32, 32, 3))])
    labels = tmp_path / "labels.txt"
    labels.write_text("background\nroad\nwall\nsky\n")
    model = loaded(tmp_path, runtime, data, labels_file=str(labels))
    assert (model.head.task, model.head.class_count) == ("segmentation", 3)
    assert model.labels == ("road", "wall", "sky")
    labels.write_text("void\nroad\nwall\n# a note\n# another\n")
    longer = loaded(tmp_path, runtime, data, labels_file=str(labels))
    assert longer.labels[:3] == ("void", "road", "wall")
