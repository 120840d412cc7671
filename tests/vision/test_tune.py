"""`edge-agent model tune`: what is measured is shown, and stored where the daemon finds it."""

import json

import msgspec
import pytest
from commands import edge_agent
from hostile_files import made_boxes, made_nan

from agent.choices import CHOICES_FILE, Choice, most_threads, read_choices
from agent.config import CameraConfig, Config, ModelConfig
from agent.vision.model_files import read_model
from agent.vision.trial import choice_key
from agent.vision.tune import section_of


@pytest.fixture
def model_file(tmp_path):
    def write(data):
        path = tmp_path / "m.tflite"
        path.write_bytes(data)
        return str(path)

    return write


def write_config(tmp_path, state_dir, **model):
    path = tmp_path / "agent.toml"
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in model.items())
    path.write_text(f'[device]\nstate_dir = "{state_dir}"\n[model]\n{lines}')
    return path


def test_tune_stores_what_the_daemon_looks_for(tmp_path, model_file):
    model = model_file(made_boxes())
    settings = write_config(tmp_path, tmp_path / "state", path=model, xnnpack="off")
    done = edge_agent("model", "tune", model, "--config", settings, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["stored_in"] == str(tmp_path / "state" / CHOICES_FILE)
    assert "loading and running it on" in done.stderr
    stored = read_choices(tmp_path / "state" / CHOICES_FILE)
    daemons = ModelConfig(path=model, xnnpack="off")
    assert list(stored) == [choice_key(read_model(model), daemons, most_threads())]
    assert next(iter(stored.values())) == msgspec.convert(document["choice"], Choice)


def test_tune_prints_a_table_and_why_it_cannot_store(tmp_path, model_file):
    (tmp_path / "file").touch()
    settings = write_config(tmp_path, tmp_path / "file" / "state")
    done = edge_agent("model", "tune", model_file(made_boxes()), "--config", settings)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("* ") and "chosen" not in line for line in lines) == 1
    assert "Not a directory" in lines[-1]
    assert lines[-1].startswith("not stored: ")


def test_tune_of_a_bad_model_is_a_sentence(model_file):
    path = model_file(made_nan())
    done = edge_agent("model", "tune", path)
    assert done.returncode == 69
    assert done.stderr.splitlines()[-1].startswith(f"edge-agent: {path}: gives no numbers")


def test_tune_uses_the_settings_of_the_section_it_is_told():
    config = Config(
        model=ModelConfig(path="default", threads=2),
        models={"faces": ModelConfig(path="/m/faces.tflite", xnnpack="off")},
        camera=(CameraConfig(),),
    )
    assert section_of(config, ModelConfig(path="default")) == config.model
    assert section_of(config, ModelConfig(path="faces")) == config.models["faces"]
    assert section_of(config, ModelConfig(path="/m/faces.tflite")) == config.models["faces"]
    given = section_of(config, ModelConfig(path="faces", threads=1))
    assert given == ModelConfig(path="/m/faces.tflite", xnnpack="off", threads=1)
    other = ModelConfig(path="other.tflite", runtime="litert")
    assert section_of(config, other) == other
