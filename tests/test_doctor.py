"""`edge-agent check`: what is well is ok, what is not says what to do, and no secret is printed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from brokers import MOSQUITTO, free_port, mosquitto
from commands import PROJECT, edge_agent
from coral_trees import STATUS, pci, usb, write
from plugins import build_plugin
from remembered import remember

from agent import trial_words
from agent.choices import Choice, add_choices, most_threads
from agent.config import CameraConfig, Config, ModelConfig
from agent.doctor import accelerator, doctor, settings, trials
from agent.doctor.accelerator import check_accelerator, check_runtime
from agent.doctor.settings import check_config
from agent.doctor.trials import check_camera, check_model
from agent.vision.model_files import read_model
from agent.vision.probe import CameraFound, Refused
from agent.vision.trial import choice_key

NAMES = ["config", "files", "state_dir", "disk", "instance", "runtime", "accelerator", "model"]
NAMES += ["permissions", "camera", "network", "broker", "broker_limits", "updates", "memory"]
NAMES += ["board", "power", "heat", "memory_limits", "watchdog", "descriptors", "clock", "rtc"]
NAMES += ["service"]
# What is this machine's own affair; none of it is a failure anywhere but on a starved board.
OWN = {
    "state_dir",
    "memory",
    "power",
    "heat",
    "memory_limits",
    "watchdog",
    "clock",
    "rtc",
    "service",
}


def write_config(folder, *, port=1883, camera='source = "synthetic"', more=""):
    path = folder / "agent.toml"
    remember(folder / "state")
    path.write_text(
        f'[device]\nid = "porch-pi"\nstate_dir = "{folder}/state"\n'
        f'[[camera]]\nname = "door"\n{camera}\n'
        f'[mqtt]\nurl = "mqtt://127.0.0.1:{port}"\n{more}'
    )
    return path


@pytest.fixture
def broker(tmp_path):
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    running = mosquitto(tmp_path).start()
    yield running
    running.stop()


def test_everything_there_is_ok(tmp_path, broker):
    done = edge_agent("check", "--config", write_config(tmp_path, port=broker.port), "--json")
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert [name.split()[0] for name in checks] == NAMES
    assert {check["state"] for name, check in checks.items() if name not in OWN} == {"ok"}
    assert {checks[name]["state"] for name in OWN} <= {"ok", "warn"}
    assert all(bool(check["remedy"]) is (check["state"] != "ok") for check in checks.values())
    assert done.returncode == 0
    assert report["ok"] is True
    assert "default 1.0.0" in checks["model"]["message"]
    assert "ms per run" in checks["model"]["message"]
    assert "640x480" in checks["camera door"]["message"]
    assert "edge/porch-pi/check came back" in checks["broker"]["message"]
    assert all(set(check) == {"name", "state", "message", "remedy"} for check in report["checks"])


def test_lines_for_people(tmp_path):
    path = write_config(tmp_path, port=free_port(), camera='source = "/no/such/clip.mp4"')
    done = edge_agent("check", "--config", path)
    assert done.returncode == 69
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["ok", "config", str(path)]
    [camera] = [number for number, line in enumerate(lines) if "  camera door  " in line]
    assert lines[camera].startswith("fail")
    assert "no such file" in lines[camera]
    assert lines[camera + 1].strip().startswith("→")
    assert lines[-1] == "2 failed: camera door, broker"
    assert "\033" not in done.stdout


def test_bad_configuration_lists_every_problem(tmp_path):
    path = write_config(tmp_path, camera='sorce = "auto"\nfps = -1')
    done = edge_agent("check", "--config", path, "--json")
    assert done.returncode == 78
    report = json.loads(done.stdout)
    assert report["ok"] is False
    config = report["checks"][0]
    assert (config["name"], config["state"]) == ("config", "fail")
    assert "did you mean `source`" in config["message"]
    assert "camera[0].fps" in config["message"]
    assert {"clock", "power", "service"} <= {check["name"] for check in report["checks"][1:]}
    assert "broker" not in {check["name"] for check in report["checks"]}


@pytest.mark.parametrize(
    "content", [None, b"", b"<html>", b"\xff\xfe", b"= [", b"[mqtt]\nurl = 1"], ids=repr
)
def test_unusable_configuration_never_ends_in_a_traceback(tmp_path, capsys, content):
    path = tmp_path / "agent.toml"
    if content is not None:
        path.write_bytes(content)
    config, check = check_config(path)
    if content == b"":  # an empty file is a file full of defaults
        assert (config, check.state) == (Config(), "ok")
    else:
        assert (config, check.state) == (None, "fail")
        assert str(path) in check.message


@pytest.mark.parametrize(
    ("content", "code", "state"),
    [('[mqtt]\nurl = "mqtt://h"', 0, "ok"), ("[models.other]\nthreads = 1", 0, "warn"),
     ("[mqtt]\nqos = 3", 78, "fail"), (None, 78, "fail")],
)  # fmt: skip
def test_configuration_alone(tmp_path, content, code, state):
    """Nothing else is tried, nor loaded: no broker, no camera, no network library."""
    path = tmp_path / "agent.toml"
    if content is not None:
        path.write_text(content)
    done = edge_agent("check", "--config-only", "--json", "--config", path)
    assert done.returncode == code
    [check] = json.loads(done.stdout)["checks"]
    assert (check["name"], check["state"]) == ("config", state)


def test_configuration_alone_loads_little(tmp_path):
    code = (
        "import sys; from agent.cli import main; main(['check', '--config-only', '--config', "
        f"{str(tmp_path / 'none')!r}]); print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    ).stdout.split()
    assert "agent.doctor.settings" in loaded
    heavy = {"paho", "psutil", "numpy", "cv2", "tuf", "agent.daemon", "agent.ota"}
    assert not heavy & set(loaded)
    vision = {name for name in loaded if name.startswith("agent.vision.")}
    assert vision <= {"agent.vision.arguments"}


def test_a_root_that_is_not_there_warns(tmp_path):
    """Cameras are served without it."""
    update = f'[update]\nrepository = "https://h/"\nroot = "{tmp_path}/none"\n'
    config, check = check_config(write_config(tmp_path, more=update))
    assert config is not None
    assert check.state == "warn"
    assert "no model can be taken over the air" in check.message
    assert "cameras are served" in check.remedy


def test_no_file_means_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "DEFAULT_CONFIG_PATH", tmp_path / "agent.toml")
    config, check = check_config(None)
    assert config == Config()
    assert check.state == "ok"


def test_runtime():
    check = check_runtime(ModelConfig())
    assert (check.state, check.remedy) == ("ok", None)
    assert "litert" in check.message or "tflite-runtime" in check.message


@pytest.fixture
def library(monkeypatch):
    """Whether libedgetpu is installed: it is, until a test says otherwise."""
    found = {"edgetpu": "libedgetpu.so.1"}
    monkeypatch.setattr(accelerator.ctypes.util, "find_library", found.get)
    return found


def checked(root, wanted):
    check = check_accelerator(ModelConfig(accelerator=wanted), root)
    assert (check.remedy is None) is (check.state == "ok")
    return check


@pytest.mark.parametrize(
    ("wanted", "state", "reason"),
    [
        ("cpu", "ok", "cpu"),
        ("auto", "ok", "no Coral Edge TPU is connected"),
        ("delegate:/no/such.so", "fail", "/no/such.so is not there"),
        (f"delegate:{__file__}", "ok", __file__),
        ("edgetpu", "fail", "no Coral is connected"),
    ],
)
def test_accelerator_without_a_coral(tmp_path, library, wanted, state, reason):
    check = checked(tmp_path, wanted)
    assert check.state == state
    assert reason in check.message


@pytest.mark.parametrize(("wanted", "state"), [("edgetpu:usb:0", "fail"), ("auto", "warn")])
def test_a_coral_without_its_library(tmp_path, library, wanted, state):
    """With `auto` it is no failure: the plain models run."""
    usb(tmp_path)
    library.clear()
    check = checked(tmp_path, wanted)
    assert check.state == state
    assert "libedgetpu.so.1, which the Edge TPU needs, is not installed" in check.message
    assert "the USB Coral at port 2-1" in check.message
    assert "install libedgetpu1-std" in check.remedy


@pytest.mark.parametrize(("wanted", "state"), [("edgetpu", "fail"), ("auto", "warn")])
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ({"owner": 31337}, "in use by process 31337"),
        ({"status": "DEAD"}, "/dev/apex_0 DEAD"),
        ({"node": False}, "not visible here"),
    ],
)
def test_a_coral_that_cannot_be_used(tmp_path, library, wanted, state, trouble, reason):
    pci(tmp_path, **trouble)
    check = checked(tmp_path, wanted)
    assert check.state == state
    assert reason in check.message


@pytest.mark.parametrize("wanted", ["auto", "edgetpu", "edgetpu:usb:0"])
def test_a_coral_that_can_be_used(tmp_path, library, wanted):
    usb(tmp_path)
    check = checked(tmp_path, wanted)
    assert check.state == "ok"
    assert "edgetpu:usb:0 is the USB Coral at port 2-1, 5000 Mbit/s" in check.message


def test_a_coral_on_a_slow_port(tmp_path, library):
    usb(tmp_path, speed="480")
    check = checked(tmp_path, "edgetpu")
    assert check.state == "warn"
    assert "480 Mbit/s" in check.message
    assert "USB 3 port" in check.remedy


@pytest.mark.parametrize(
    ("version", "state"), [("16.0", "fail"), ("16.0tf2.11.1", "fail"), ("16.0tf2.16.1-1", "ok")]
)
def test_a_library_that_crashes_the_runtime(tmp_path, library, version, state):
    usb(tmp_path)
    write(
        tmp_path / "var/lib/dpkg/status",
        STATUS.format(status="install ok installed", version=version),
    )
    check = checked(tmp_path, "edgetpu")
    assert check.state == state
    assert f"libedgetpu1-std {version}" in check.message


@pytest.mark.parametrize(
    ("wanted", "remedy"), [("edgetpu", "libedgetpu1-std"), ("cpu", "model inspect")]
)
def test_a_crash_while_the_model_is_tried(monkeypatch, wanted, remedy):
    answer = Refused("its driver or runtime crashed (SIGSEGV)")
    monkeypatch.setattr(trials, "ask", lambda *_: answer)
    check = check_model(ModelConfig(accelerator=wanted))
    assert check.state == "fail"
    assert remedy in check.remedy


# One way to run it on the processor, so that the search for the best one is short.
ONE_WAY = {"xnnpack": "on", "threads": 1}


def test_operators_on_a_delegate(tmp_path):
    """The whole way: config, child, engine, a real delegate."""
    library = build_plugin(tmp_path)
    check = check_model(ModelConfig(accelerator=f"delegate:{library}", **ONE_WAY))
    assert check.state == "ok"
    assert f"on delegate:{library.name}" in check.message
    assert "12 of 117 operators on the accelerator" in check.message


def test_a_delegate_that_is_away(tmp_path):
    library = build_plugin(tmp_path)
    config = ModelConfig(
        accelerator=f"delegate:{library}",
        delegate_options={"mode": "gone", "message": "no device"},
        **ONE_WAY,
    )
    check = check_model(config)
    assert check.state == "warn"
    assert "on cpu" in check.message
    assert "created no delegate: it says: no device" in check.message


def test_a_delegate_that_crashes(tmp_path):
    library = build_plugin(tmp_path)
    config = ModelConfig(
        accelerator=f"delegate:{library}", delegate_options={"mode": "crash_prepare"}, **ONE_WAY
    )
    check = check_model(config)
    assert check.state == "warn"  # tried in a child, so the processor runs the model
    assert "on cpu" in check.message
    assert "SIGSEGV" in check.message


@pytest.mark.parametrize("runtime", ["auto", "litert", "tflite-runtime"])
def test_missing_runtime(monkeypatch, runtime):
    monkeypatch.setattr(accelerator, "_version", lambda package: None)
    check = check_runtime(ModelConfig(runtime=runtime))
    assert check.state == "fail"
    assert "pip install" in check.remedy


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such model"), (b"", "is empty"), (b"<html>", "a web page"), (b"x" * 99, "TFL3")],
)
def test_bad_model_fails(tmp_path, content, reason):
    path = tmp_path / "m.tflite"
    if content is not None:
        path.write_bytes(content)
    check = check_model(ModelConfig(path=str(path)))
    assert check.state == "fail"
    assert reason in check.message
    assert str(path) in check.message


def test_way_the_model_runs_is_measured_or_remembered(tmp_path):
    memory = tmp_path / "choices.json"
    measured = check_model(ModelConfig(), choices_file=memory)
    assert measured.state == "ok"
    first, second = measured.message.splitlines()
    assert "ms per run" in first
    assert second.startswith("measured just now: ")
    assert "thread" in second
    assert not memory.exists()  # a check changes nothing

    config = ModelConfig()
    key = choice_key(read_model(config.path), config, most_threads())
    runtime = "litert" if find_spec("ai_edge_litert") else "tflite-runtime"
    way = {"runtime": runtime, "xnnpack": False, "threads": 1}
    add_choices(memory, {key: Choice(**way, invoke_ms=77.0, candidates=(), measured_at=1.0)})
    remembered = check_model(config, choices_file=memory)
    assert remembered.message.splitlines()[1] == (
        f"remembered: {runtime}, without XNNPACK, 1 thread: 77 ms"
    )
    assert "on cpu," in remembered.message


def test_unknown_label_warns(tmp_path):
    check = check_model(ModelConfig(labels={"persn": 0.5}), choices_file=remember(tmp_path))
    assert check.state == "warn"
    assert "did you mean `person`" in check.message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 320, "height": 240, "fps": 60.0}, "320x240"),
        ({"source": "synthetic"}, "frames/s"),
    ],
)
def test_good_camera(changes, said):
    check = check_camera(CameraConfig(**{"source": "synthetic", **changes}))
    assert check.state == "ok"
    assert said in check.message
    assert "brightness" in check.message


def test_black_pictures_of_another_size_warn(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((48, 64, 3), np.uint8))
    config = CameraConfig(source=f"images:{tmp_path}", width=640, height=480)
    check = check_camera(config)
    assert check.state == "warn"
    assert "64x48, 1 frames read" in check.message
    assert "is black" in check.message
    assert "640x480 was asked for" in check.message


def test_slow_camera_warns(monkeypatch):
    found = CameraFound(width=640, height=480, live=True, frames=15, fps=7.5, brightness=90.0)
    monkeypatch.setattr(trials, "ask", lambda *_: found)
    check = check_camera(CameraConfig(source="auto", fps=30))
    assert check.state == "warn"
    assert "30 frames/s were asked for" in check.message


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://viewer:s3cret@127.0.0.1:1/x",
        "gst:rtspsrc location=rtsp://h/x user-pw=s3cret ! fakesink",
        "http://127.0.0.1:1/video?token=s3cret",
    ],
)
def test_no_message_gives_a_password_away(tmp_path, source):
    path = write_config(tmp_path, port=free_port(), camera=f'source = "{source}"')
    done = edge_agent("check", "--config", path, "--json")
    assert done.returncode == 69
    states = {check["name"]: check["state"] for check in json.loads(done.stdout)["checks"]}
    assert states["camera door"] == "fail"
    assert "s3cret" not in done.stdout + done.stderr


def test_hanging_camera_is_given_up():
    answer = trials.ask("camera", CameraConfig(source="synthetic"), 0.05)
    assert "did not answer within 0.05 s" in answer.reason


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -SEGV $$", "crashed (SIGSEGV)"),
        ("kill -40 $$", "crashed (signal 40)"),
        ("echo broken driver >&2; exit 1", "broken driver"),
        ("exit 0", "no reason given"),
        ("echo '[]'", "no reason given"),
    ],
)
def test_child_without_an_answer_is_a_failure(tmp_path, monkeypatch, script, reason):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(trials.sys, "executable", str(program))
    for check in (check_camera(CameraConfig()), check_model(ModelConfig())):
        assert check.state == "fail"
        assert reason in check.message


def test_what_libraries_print_does_not_disturb(tmp_path, monkeypatch):
    program = tmp_path / "python"
    answer = '{"type":"refused","reason":"it is asleep"}'
    program.write_text(f"#!/bin/sh\necho '[INFO] {{'\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(trials.sys, "executable", str(program))
    assert "it is asleep" in check_camera(CameraConfig()).message


def test_model_may_take_as_long_as_all_its_trials():
    all_s = 3 * trial_words.TRIAL_WITHIN_S + trial_words.ALONE_WITHIN_S
    assert all_s < trials.MODEL_LIMIT_S


def test_its_own_process_loads_no_array_library():
    code = "import agent.doctor.doctor, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    ).stdout.split()
    assert not {"numpy", "cv2", "ai_edge_litert", "tflite_runtime", "tuf"} & set(loaded)


def test_secrets_are_not_in_the_child_s_arguments(monkeypatch):
    seen = []
    real = subprocess.run

    def spy(command, **options):
        seen.append(command)
        return real(command, **options)

    monkeypatch.setattr(trials.subprocess, "run", spy)
    check_camera(CameraConfig(source="rtsp://u:s3cret@127.0.0.1:1/x"))
    assert seen
    assert "s3cret" not in os.fsdecode(b" ".join(map(os.fsencode, seen[0])))


def test_every_model_that_is_used_is_checked(tmp_path, capsys):
    path = tmp_path / "agent.toml"
    remember(tmp_path / "state", engines=2)
    path.write_text(
        f'[device]\nstate_dir = "{tmp_path}/state"\n'
        '[[model.then]]\nmodel = "second"\n'
        f'[models.second]\npath = "{tmp_path}/none.tflite"\n'
        "[models.other]\nscore_threshold = 0.4\n"
        '[[camera]]\nsource = "synthetic"\n'
        '[[camera]]\nname = "yard"\nsource = "synthetic"\nmodel = "other"\n'
        '[mqtt]\nurl = "mqtt://127.0.0.1:1"\n'
    )
    checks = {check.name: check for check in doctor.examine(path)}
    assert checks["model"].state == "ok"
    assert checks["model other"].state == "ok"
    assert checks["model second"].state == "fail"
    assert "none.tflite" in checks["model second"].message
