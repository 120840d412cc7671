"""The bench of heads leaves no kind out, and its made outputs are read as a model's are."""

import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bench import heads, outputs
from agent.bench.heads import ROWS, Row, count, percentile_99, prepare, run_heads, table
from agent.contract.manifest import HeadType
from agent.errors import AgentError, ModelError
from agent.vision.heads.choose import FAMILIES


def row_named(start):
    return next(row for row in ROWS if row.name.startswith(start))


def test_every_kind_of_head_has_a_row():
    assert heads.without_a_row(FAMILIES) == set()
    assert heads.without_a_row(list(get_args(HeadType))) == set()
    assert heads.without_a_row([*FAMILIES, "new_kind"]) == {"new_kind"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_made_outputs_are_recognised_and_decoded(row):
    bench = prepare(row)
    found = count(bench.decode())
    assert found >= 1
    assert bench.candidates >= found or row.kind == "raw"
    findings = json.loads(bench.finish())
    (rows,) = findings.values()
    assert rows


@pytest.mark.parametrize(
    ("start", "objects"),
    [
        ("YOLOv8 640 int8, typical", 6),
        ("YOLOv8 640 float", 6),
        ("YOLOv5 640 int8, typical", 6),
        ("YOLO split 640 int8, boxes", 6),
        ("YOLO split 640 int8, six maps", 6),
        ("NanoDet", 6),
        ("SSD, operator", 3),
        ("SSD raw", 8),
        ("YOLO end to end", 10),
        ("MoveNet", 1),
        ("PoseNet", 3),
        ("YOLO pose", 3),
    ],
)
def test_each_object_that_was_made_is_found_once(start, objects):
    """So the candidates of one object do suppress each other, as a real picture's do."""
    assert abs(count(prepare(row_named(start)).decode()) - objects) <= 1


def test_the_same_scene_is_found_in_any_layout():
    typical = [
        prepare(row_named(start)).decode()
        for start in ("YOLOv8 640 float", "YOLO split 640 int8, boxes", "YOLO split 640 int8, six")
    ]
    first = typical[0]
    for other in typical[1:]:
        order, others = (np.lexsort(one.xyxy_norm.T) for one in (first, other))
        assert np.abs(first.xyxy_norm[order] - other.xyxy_norm[others]).max() < 0.03


def test_busy_pictures_have_many_more_candidates():
    busy, typical = (prepare(row_named(f"YOLOv8 640 int8, {how}")) for how in ("busy", "typical"))
    assert (busy.candidates, typical.candidates) == (600, 30)


def test_outputs_are_the_same_each_time():
    one, other = outputs.yolov5(objects=3, each=4), outputs.yolov5(objects=3, each=4)
    assert all(
        np.array_equal(first, second)
        for first, second in zip(one.tensors, other.tensors, strict=True)
    )


def test_a_kind_that_is_not_built_in_or_does_not_fit_is_named():
    with pytest.raises(ModelError, match="no head of the kind unheard"):
        prepare(Row(kind="unheard", name="x", make=outputs.raw))
    misfit = outputs.Outputs(
        **{
            **{name: getattr(outputs.classes(), name) for name in outputs.Outputs.__slots__},
            "wanted": outputs.ssd_raw().wanted,
        }
    )
    with pytest.raises(ModelError, match="does not fit"):
        prepare(Row(kind="ssd_raw", name="x", make=lambda: misfit))


def test_the_command_prints_writes_and_skips_nothing(tmp_path, capsys, monkeypatch):
    rows = (row_named("MoveNet"), Row(kind="unheard", name="unheard of", make=outputs.raw))
    monkeypatch.setattr(heads, "ROWS", rows)
    monkeypatch.setattr(heads, "FAMILIES", {"movenet": FAMILIES["movenet"], "lost": None})
    file = tmp_path / "heads.json"
    assert run_heads(seconds=0.001, json_file=file) == 1
    document = json.loads(file.read_text())
    by_name = {one["name"]: one for one in document["heads"]}
    assert set(by_name) == {"MoveNet, one figure", "unheard of", "lost", "raw"}
    good = by_name["MoveNet, one figure"]
    assert (good["candidates"], good["found"]) == (1, 1)
    assert good["runs"] >= heads.FEWEST_RUNS
    assert 0 < good["decode_p50_ms"] <= good["decode_p99_ms"]
    printed = capsys.readouterr().out
    assert "unheard of: no head of the kind unheard is built in" in printed
    assert "lost: no row of this bench is of this kind" in printed


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 1e9])
def test_times_that_make_no_sense_are_refused(seconds):
    with pytest.raises(AgentError, match="--seconds"):
        run_heads(seconds=seconds, json_file=None)


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(heads, "ROWS", ())
    monkeypatch.setattr(heads, "FAMILIES", {})
    with pytest.raises(AgentError, match=r"heads\.json: cannot be written: No such file"):
        run_heads(seconds=1, json_file=tmp_path / "nowhere" / "heads.json")


def test_the_table_has_figures_in_columns_and_reasons_below():
    measured = [
        {
            "name": "one", "candidates": 30, "found": 6, "decode_p50_ms": 1.5,
            "decode_p99_ms": 20.25, "to_json_p50_ms": 2.0, "to_json_p99_ms": 3.0, "runs": 100,
        },
        {"name": "two", "error": "no head"},
    ]  # fmt: skip
    heading, row, reason = table(measured)
    assert row.split() == ["one", "30", "6", "1.500", "20.250", "2.000", "3.000", "100"]
    assert len(heading) == len(row)
    assert reason == "two: no head"


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=300))
def test_percentile_99_is_exceeded_by_at_most_one_in_a_hundred(values):
    limit = percentile_99(values)
    assert limit in values
    assert sum(value > limit for value in values) <= len(values) / 100
    assert sum(value >= limit for value in values) > len(values) / 100
