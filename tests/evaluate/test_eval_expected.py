"""Every form of what should be found is read; whatever is wrong is said with its place."""

import json
import string

import pytest
from eval_pictures import write_json
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import UnavailableError
from agent.evaluate.coco import category_of_class, read_coco
from agent.evaluate.expected import choose_tolerance, read_expected
from agent.evaluate.records import DEFAULT_TOLERANCES, Tolerance

CAT = {"label": "cat", "class_id": 16, "score": 0.7, "box": [1, 2, 30, 40]}
PICTURES = {"a.jpg": {"detections": [CAT]}, "b.jpg": {"detections": []}}
COCO = {
    "images": [{"id": 5, "file_name": "val/a.jpg"}, {"id": 6, "file_name": "b.jpg"}],
    "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    "annotations": [
        {"id": 0, "image_id": 5, "category_id": 17, "bbox": [10, 20, 30, 40], "iscrowd": 1}
    ],
}


def read(tmp_path, document, name="expected.json"):
    return read_expected(write_json(tmp_path / name, document), tmp_path)


def said(tmp_path, document):
    with pytest.raises(UnavailableError) as caught:
        read(tmp_path, document)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def changed(**changes):
    return {**COCO, **changes}


@pytest.mark.parametrize(
    "document",
    [{"expected": {"net": PICTURES}}, {"net": PICTURES}, {"expected": PICTURES}, PICTURES],
    ids=["models", "models-plain", "pictures", "pictures-plain"],
)
def test_with_or_without_a_level_for_the_model(tmp_path, document):
    reference = read(tmp_path, document).of(["net"])
    assert list(reference.pictures) == ["a.jpg", "b.jpg"]
    (box,) = reference.pictures["a.jpg"].detections
    assert (box.label, box.class_id, box.score, box.box) == ("cat", 16, 0.7, (1, 2, 30, 40))
    assert reference.tolerances == DEFAULT_TOLERANCES


def test_a_model_without_an_entry_is_told_which_have_one(tmp_path):
    expected = read(tmp_path, {"expected": {"net": PICTURES}})
    with pytest.raises(UnavailableError, match=r'no entry for the model "other".*has "net"'):
        expected.of(["other"])


TOLERANCE = {"iou": 0.9}


@pytest.mark.parametrize(
    ("given_tolerance", "runtime", "wanted", "iou"),
    [
        (TOLERANCE, "tflite-runtime 2.14.0", "", 0.9),
        ({"same_runtime": TOLERANCE, "other_runtime_or_cpu": {}}, "litert 2.3.0", "", 0.9),
        ({"same_runtime": TOLERANCE, "other_runtime_or_cpu": {}}, "tflite-runtime 2.14", "", 0.85),
        ({"same_runtime": {}, "mine": TOLERANCE}, "litert 2.3.0", "mine", 0.9),
    ],
)
def test_the_tolerance_is_the_runtimes_or_the_one_asked_for(
    tmp_path, given_tolerance, runtime, wanted, iou
):
    document = {"expected": {"net": PICTURES}, "tolerance": given_tolerance}
    reference = read(tmp_path, document).of(["net"])
    assert choose_tolerance(reference, runtime=runtime, wanted=wanted).iou == iou


def test_a_reference_names_the_runtime_it_was_made_with(tmp_path):
    document = {"runtime": "tflite-runtime 2.14.0", "expected": {"net": PICTURES}}
    reference = read(tmp_path, document).of(["net"])
    chosen = choose_tolerance(reference, runtime="tflite-runtime 2.14.0", wanted="")
    assert chosen == Tolerance()
    assert choose_tolerance(reference, runtime="litert 2.3.0", wanted="") != chosen


def test_an_unknown_tolerance_is_refused_with_those_there_are(tmp_path):
    reference = read(tmp_path, PICTURES).of(["net"])
    with pytest.raises(UnavailableError, match=r'no tolerance "x".*"same_runtime"'):
        choose_tolerance(reference, runtime="litert 2.3.0", wanted="x")
    several = {"expected": {"net": PICTURES}, "tolerance": {"a": {}, "b": {}}}
    with pytest.raises(UnavailableError, match='with --tolerance: "a", "b"'):
        choose_tolerance(read(tmp_path, several).of(["net"]), runtime="litert", wanted="")


def entry(**fields):
    return {"a.jpg": fields}


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ([CAT], "expected.json: Expected `object`, got `array`"),
        ({}, "expected.json: expects nothing"),
        ({"expected": {}}, "expected.json: expects nothing"),
        ({"net": {"a.jpg": {}}}, "expected.json: net: a.jpg: must have exactly one of"),
        (
            {"net": PICTURES, "a.jpg": {"detections": []}},
            'expected.json: "a.jpg" is a picture\'s entry and "net" is not',
        ),
        (
            {"net": {"a.jpg": {"detecions": []}}},
            "expected.json: net: a.jpg: Object contains unknown field `detecions`",
        ),
        (
            entry(detections=[], classes=[]),
            "expected.json: a.jpg: must have exactly one of",
        ),
        (
            entry(detections=[CAT, {**CAT, "box": [1, 2, 3]}]),
            "expected.json: a.jpg: Expected `array` of length 4 - at `$.detections[1].box`",
        ),
        (
            entry(detections=[{**CAT, "box": [9, 9, 1, 20]}]),
            "expected.json: a.jpg: detections[0].box is [9.0, 9.0, 1.0, 20.0]",
        ),
        (
            entry(detections=[{"box": [1, 2, 3, 4]}]),
            "expected.json: a.jpg: detections[0] needs a label or a class_id",
        ),
        (entry(classes=[]), "expected.json: a.jpg: classes is empty"),
        (
            entry(classes=[{"label": "cat", "score": 7}]),
            "expected.json: a.jpg: Expected `float` <= 1.0 - at `$.classes[0].score`",
        ),
        (
            {"expected": PICTURES, "tolerance": {"iuo": 0.8}},
            "expected.json: tolerance: Object contains unknown field `iuo`",
        ),
        (
            {"images": [], "annotations": [], "categories": []},
            "expected.json: `images` is empty",
        ),
        (changed(categories=[]), "expected.json: `categories` is empty"),
        (
            changed(images=[{"id": 5, "file_name": "a"}, {"id": 5, "file_name": "b"}]),
            "expected.json: 2 rows of `images` have the id 5",
        ),
        (
            changed(images=[{"id": 5, "file_name": "a"}, {"id": 6, "file_name": "a"}]),
            "expected.json: 2 rows of `images` have the file_name 'a'",
        ),
        (
            changed(annotations=[{**COCO["annotations"][0], "image_id": 99}]),
            "expected.json: annotations[0] (id 0): image_id 99 is not among the images",
        ),
        (
            changed(annotations=[{**COCO["annotations"][0], "category_id": 99}]),
            "expected.json: annotations[0] (id 0): category_id 99 is not among the categories",
        ),
        (
            changed(annotations=[{**COCO["annotations"][0], "bbox": [1, 2, -3, 4]}]),
            "expected.json: annotations[0] (id 0): bbox is [1.0, 2.0, -3.0, 4.0]",
        ),
        (
            changed(annotations=[{"id": 1, "image_id": 5, "category_id": 17}]),
            "expected.json: is not COCO annotations of objects with boxes: Object missing required"
            " field `bbox` - at `$.annotations[0]`",
        ),
    ],
)
def test_what_is_wrong_is_said_with_file_and_entry(tmp_path, document, sentence):
    assert sentence in said(tmp_path, document)


def test_files_that_are_not_there_cut_off_or_not_json(tmp_path):
    with pytest.raises(UnavailableError, match=r"none\.json: cannot be read: No such file"):
        read_expected(tmp_path / "none.json", tmp_path)
    cut = tmp_path / "cut.json"
    cut.write_text(json.dumps(COCO)[:-9])
    with pytest.raises(UnavailableError, match=r"cut.json: .*truncated"):
        read_expected(cut, tmp_path)
    cut.write_bytes(b"\xff\xfe")
    with pytest.raises(UnavailableError, match=r"cut.json: "):
        read_expected(cut, tmp_path)


def test_coco_boxes_become_corners_by_file_name(tmp_path):
    reference = read(tmp_path, COCO).of(["any model"])
    assert list(reference.pictures) == ["val/a.jpg", "b.jpg"]
    (box,) = reference.pictures["val/a.jpg"].detections
    assert (box.box, box.class_id, box.is_crowd, box.area) == ((10, 20, 40, 60), 17, True, 1200)
    assert reference.pictures["b.jpg"].detections == []
    assert (reference.categories, reference.tolerances) == ({"cat": 17, "dog": 18}, {})
    assert choose_tolerance(reference, runtime="litert 2.3.0", wanted="") is None


def test_categories_go_by_name_whatever_their_ids():
    mapping, notes = category_of_class(["dog", "bird", "cat"], {"cat": 17, "dog": 18}, {17}, "f")
    assert (mapping, notes) == ({0: 18, 2: 17}, [])


def test_annotated_categories_that_the_model_lacks_are_named():
    _, (note,) = category_of_class(["cat", "moped"], {"cat": 1, "mopeds": 2}, {1, 2}, "f.json")
    assert "no label for 1 category" in note
    assert "mopeds (did you mean moped?)" in note
    with pytest.raises(UnavailableError, match=r"f.json: none of its 1 categories \(lion"):
        category_of_class(["cat"], {"lion": 1}, {1}, "f.json")


def test_without_labels_ids_decide_and_it_is_said():
    mapping, (note,) = category_of_class([], {"cat": 1}, {1}, "f.json")
    assert mapping == {1: 1}
    assert "--labels" in note


@given(st.binary(max_size=200) | st.text(string.printable, max_size=200).map(str.encode))
def test_no_bytes_are_taken_for_annotations(data):
    with pytest.raises(UnavailableError, match=r"^file: is not COCO"):
        read_coco(data, "file")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["images", "annotations", "expected", "a.jpg", "detections", "mask"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_read_or_refused_with_its_name(tmp_path_factory, document):
    path = write_json(tmp_path_factory.mktemp("any") / "any.json", document)
    try:
        expected = read_expected(path, path.parent)
    except UnavailableError as error:
        assert "any.json" in str(error)
    else:
        assert expected.by_model or expected.for_any
