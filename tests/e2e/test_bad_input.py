"""What is wrong is said in one sentence, in the status, while the daemon stays up."""

import subprocess
import sys
import time

import pytest
from brokers import amqtt, mosquitto
from harness import DEVICE, PROJECT, WITHIN_S, Agent, Subscriber, config_text

MODEL = PROJECT / "models" / "default" / "model.tflite"


def health(subscriber, code):
    status = subscriber.last(f"{DEVICE}/status")
    found = [p for p in status["health"] if p["code"] == code] if status else []
    return found[0] if found else None


def broken_models(folder):
    data = MODEL.read_bytes()
    return {
        "missing": (None, "no such model file"),
        "truncated": (data[: len(data) // 2], "truncated or damaged"),
    }


# What else is no model is tried without a daemon: tests/test_doctor.py, tests/vision/test_trial.py.
@pytest.mark.parametrize("kind", ["missing", "truncated"])
def test_bad_model_is_said_and_a_good_one_in_its_place_runs(
    tmp_path, broker, subscriber, run_agent, kind
):
    content, sentence = broken_models(tmp_path)[kind]
    path = tmp_path / "model.tflite"
    if content is not None:
        path.write_bytes(content)
    agent = run_agent(config_text(broker.port, camera="loop = true", model=f'path = "{path}"'))
    problem = subscriber.wait(lambda: health(subscriber, "model"))
    assert sentence in problem["message"]
    assert str(path) in problem["message"]
    assert subscriber.last(f"{DEVICE}/status")["model"] is None
    assert agent.process.poll() is None
    temporary = path.with_suffix(".new")
    temporary.write_bytes(MODEL.read_bytes())
    temporary.rename(path)
    subscriber.wait_results(3)
    subscriber.wait(lambda: not subscriber.last(f"{DEVICE}/status")["health"])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("/dev/video42", "/dev/video42"),
        (str(PROJECT / "README.md"), "README.md"),
        ("rtsp://viewer:s3cret@127.0.0.1:1/x", "127.0.0.1"),
    ],
)
def test_bad_camera_is_said(broker, subscriber, run_agent, source, sentence):
    agent = run_agent(config_text(broker.port, source=source))
    status = subscriber.wait(
        lambda: (s := subscriber.last("camera/door/status")) and s["state"] == "offline" and s
    )
    assert sentence in status["reason"]
    subscriber.wait(lambda: health(subscriber, "camera.door"))
    assert agent.process.poll() is None
    everything = agent.log + "".join(str(m.payload) for m in subscriber.messages)
    assert "s3cret" not in everything


def test_wrong_password_is_said_and_nothing_gives_it_away(tmp_path, run_agent):
    guarded = mosquitto(tmp_path, users={"board": "right"}).start()
    secret = tmp_path / "password"
    secret.write_text("wr0ng-word\n")
    try:
        agent = run_agent(
            config_text(
                guarded.port,
                camera="loop = true",
                mqtt_lines=f'username = "board"\npassword_file = "{secret}"',
            )
        )
        deadline_log(agent, "password")
        assert "wr0ng-word" not in agent.log
        assert agent.process.poll() is None
    finally:
        guarded.stop()


def deadline_log(agent: Agent, word: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while word not in agent.log:
        assert time.monotonic() < deadline, agent.log
        time.sleep(0.05)


def test_broker_that_speaks_only_3_1_1(tmp_path, run_agent):
    pytest.importorskip("amqtt")
    old = amqtt(tmp_path).start()
    try:
        agent = run_agent(config_text(old.port, camera="loop = true\nfps = 10"))
        deadline_log(agent, "protocol=3.1.1")
    finally:
        agent.stop()
        old.stop()


def test_bad_configuration_lists_everything_and_exits_78(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text('[modle]\n[mqtt]\nqos = 3\n[[camera]]\nname = "a"\nfsp = 3\n')
    done = subprocess.run(
        [sys.executable, "-m", "agent", "run", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        cwd=PROJECT,
    )
    assert done.returncode == 78
    assert "3 problems" in done.stderr
    assert "did you mean `model`" in done.stderr
    assert "mqtt.qos = 3: must be one of 0, 1" in done.stderr
    assert "did you mean `fps`" in done.stderr
    assert "Traceback" not in done.stderr


def test_payload_over_the_brokers_limit_is_counted_not_fatal(tmp_path, run_agent):
    """Results of this clip are about 700 bytes and more; the gap record that names them is not."""
    small = mosquitto(tmp_path, "max_packet_size 500").start()
    subscriber = Subscriber(small.port)
    try:
        agent = run_agent(config_text(small.port, camera="loop = true\nfps = 10"))

        def gaps():
            told = [m.json for m in subscriber.messages if m.topic.endswith("/gap")]
            return [gap for gap in told if gap["stream"] == "camera/door/detections"]

        subscriber.wait(gaps)
        assert {gap["reason"] for gap in gaps()} == {"too_large"}
        assert subscriber.last("/detections") is None
        assert agent.process.poll() is None
    finally:
        subscriber.close()
        agent.stop()
        small.stop()
