"""Models whose input leaves its height and width open: the manifest gives them."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from made_models import MadeInput, MadeTensor, made_model

from agent.cli import main
from agent.config import ModelConfig
from agent.errors import ModelError
from agent.trial_words import TrialRequest
from agent.vision.detect import StillModel
from agent.vision.measure import Search
from agent.vision.model import load_model
from agent.vision.model_files import read_model

RUNTIMES = [
    name
    for name, module in (("litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))
    if find_spec(module)
]


def multipose():
    """[1, 6, 56] of MoveNet MultiPose: one figure on the input's diagonal."""
    rows = np.zeros((1, 6, 56), np.float32)
    line = np.linspace(0.25, 0.75, 17, dtype=np.float32)
    rows[0, 0, :51] = np.stack([line, line, np.full(17, 0.9, np.float32)], axis=1).reshape(-1)
    rows[0, 0, 51:] = [0.25, 0.25, 0.75, 0.75, 0.8]
    return rows


@pytest.fixture
def folder(tmp_path):
    image = MadeInput(shape=(1, 1, 1, 3), signature=(1, -1, -1, 3), name="image")
    data = made_model([MadeTensor(multipose())], inputs=[image])
    (tmp_path / "model.tflite").write_bytes(data)
    return tmp_path


def say(folder, **size):
    manifest = {"name": "multipose", "input": size}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_manifest_gives_the_size(folder, runtime):
    say(folder, width=64, height=32)
    model = load_model(ModelConfig(path=str(folder), runtime=runtime))
    assert (model.plan.width, model.plan.height) == (64, 32)
    assert model.engine.inputs[0].shape == (1, 32, 64, 3)
    assert not model.engine.inputs[0].is_dynamic
    findings, _ = StillModel(model).find(np.zeros((320, 640, 3), np.uint8))
    [figure] = findings.keypoints
    assert figure.box == pytest.approx((160, 80, 480, 240), abs=0.1)
    assert (figure.label, figure.class_id) == ("person", 0)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("size", [{}, {"width": 64}])
def test_without_it_the_sentence_says_what_to_write(folder, runtime, size):
    say(folder, **size)
    wanted = r'"image" has a size left open, \[1, -1, -1, 3\].*"width": 256.*multiples of 32'
    with pytest.raises(ModelError, match=wanted):
        load_model(ModelConfig(path=str(folder), runtime=runtime))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_side_may_be_fixed(tmp_path, runtime):
    image = MadeInput(shape=(1, 1, 48, 3), signature=(-1, -1, 48, 3), name="image")
    data = made_model([MadeTensor(multipose())], inputs=[image])
    (tmp_path / "model.tflite").write_bytes(data)
    say(tmp_path, height=32)
    model = load_model(ModelConfig(path=str(tmp_path), runtime=runtime))
    assert model.engine.inputs[0].shape == (1, 32, 48, 3)
    say(tmp_path, height=32, width=64)
    with pytest.raises(ModelError, match=r"fixed at 48x32 pixels: leave"):
        load_model(ModelConfig(path=str(tmp_path), runtime=runtime))


def test_a_fixed_size_cannot_be_changed(tmp_path):
    (tmp_path / "model.tflite").write_bytes(made_model([MadeTensor(multipose())]))
    say(tmp_path, width=320, height=320)
    assert load_model(ModelConfig(path=str(tmp_path))).plan.width == 320
    say(tmp_path, width=256, height=256)
    with pytest.raises(ModelError, match="fixed at 320x320 pixels: leave"):
        load_model(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("size", [{"width": 0}, {"height": 4097}, {"width": 1.5}])
def test_sizes_that_are_none(folder, size):
    say(folder, **size)
    with pytest.raises(ModelError, match=r"manifest\.json: "):
        read_model(str(folder))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_way_of_running_it_is_measured(folder, runtime):
    say(folder, width=64, height=64)
    config = ModelConfig(path=str(folder), threads=1)
    request = TrialRequest(model=config, runtime=runtime, most_threads=1, run_within_s=60.0)
    told = []
    Search(read_model(str(folder)), request, told.append).run()
    candidates = [one.candidate for one in told if hasattr(one, "candidate")]
    assert any(one is not None and one.invoke_ms is not None for one in candidates)


def test_the_example_of_inspect_keeps_the_size(folder, capfd):
    say(folder, width=64, height=32)
    assert main(["model", "inspect", str(folder), "--json"]) == 0
    example = json.loads(capfd.readouterr().out)["manifest_example"]
    assert (example["input"]["width"], example["input"]["height"]) == (64, 32)
    (folder / "manifest.json").write_text(json.dumps(example))
    assert load_model(ModelConfig(path=str(folder))).plan.width == 64
