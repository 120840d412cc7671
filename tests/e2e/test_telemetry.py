"""What a running daemon says of itself, held against what others see of it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from harness import CLIP, DEVICE, PROJECT, WITHIN_S, Subscriber, config_text
from prometheus_client.parser import text_string_to_metric_families

BOARDS = PROJECT / "tests" / "boards"
ON_BOARD = Path(__file__).with_name("agent_on_board.py")
DISCOVERY = f"homeassistant/device/{DEVICE}/config"


@pytest.fixture
def home(broker):
    """Home Assistant's ear."""
    client = Subscriber(broker.port, "homeassistant/#")
    yield client
    client.close()


@pytest.fixture
def run_on_board(tmp_path):
    """Return a function that starts the daemon on a recorded board."""
    started = []

    def run(board, config):
        path = tmp_path / f"{board}.toml"
        path.write_text(config)
        command = [sys.executable, ON_BOARD, BOARDS / board, "run", "--config", path]
        with (tmp_path / "agent.log").open("ab") as log:
            started.append(subprocess.Popen(command, cwd=PROJECT, stderr=log))
        return started[-1]

    yield run
    for process in started:
        process.terminate()
    for process in started:
        process.wait(WITHIN_S)


def get(port, path="/metrics"):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=WITHIN_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()


def samples(port):
    """Return (name, sorted labels) -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(get(port)[1])
        for sample in family.samples
    }


def with_prometheus(text, port):
    return f'{text}prometheus = "{port}"\n'


def exact(values, share):
    """Return the percentile as `latency` defines it."""
    return sorted(values)[int(share * (len(values) - 1))]


def test_telemetry_prometheus_and_outside_observers_agree(
    broker, subscriber, run_agent, free_port, record_property
):
    agent = run_agent(with_prometheus(config_text(broker.port, camera="fps = 25"), free_port))
    subscriber.wait(lambda: (s := subscriber.last("door/status")) and s["state"] == "offline")
    ended_at = time.time()

    def is_told(telemetry):
        """Return whether it is of after the end, with every frame accounted for and here."""
        camera = telemetry["cameras"]["door"]
        there = camera["latency_since_start_ms"].get("end_to_end")
        accounted = camera["processed"] + camera["dropped"] + camera["still"]
        return (
            telemetry["at"] > ended_at
            and accounted == camera["captured"]
            and there
            and there["count"] == camera["processed"] == len(subscriber.results())
        )

    told = subscriber.wait(lambda: (t := subscriber.last("/telemetry")) and is_told(t) and t)
    results = subscriber.results()
    camera = told["cameras"]["door"]
    door = ("camera", "door")
    count = len(results)
    assert camera["processed"] == count
    time.sleep(1.5)  # Prometheus is told once a second
    deadline = time.monotonic() + WITHIN_S
    while (metrics := samples(free_port))["edge_agent_frames_processed_total", (door,)] < count:
        assert time.monotonic() < deadline, metrics
        time.sleep(0.2)
    assert len(subscriber.results()) == count
    assert metrics["edge_agent_frames_processed_total", (door,)] == count
    assert metrics["edge_agent_outbox_published_total", ()] >= count

    # Our own latencies by stage, from the results, against percentiles and histograms.
    differences = {}
    latencies = [result["latency_ms"] for result in results]
    stages = {"total": latencies} | {
        stage: [result["stage_ms"][stage] for result in results]
        for stage in ("queue", "preprocess", "inference", "postprocess")
    }
    for stage, times in stages.items():
        since_start = camera["latency_since_start_ms"][stage]
        assert since_start["count"] == count
        assert since_start["max"] == pytest.approx(max(times), abs=1e-3)
        for name, share in {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}.items():
            truth = exact(times, share)
            assert since_start[name] == pytest.approx(truth, rel=told["relative_error"], abs=1e-3)
            differences[f"{stage} {name}"] = since_start[name] - truth
        labels = (door, ("stage", stage))
        assert metrics["edge_agent_stage_latency_seconds_count", labels] == count
        total_s = metrics["edge_agent_stage_latency_seconds_sum", labels]
        assert total_s == pytest.approx(sum(times) / 1e3, abs=count * 1e-6)

    # The broker's word against a subscriber's clock: it can have nothing before we have sent it.
    arrivals = [
        (message.at - message.json["captured_at"]) * 1e3
        for message in subscriber.messages
        if message.topic.endswith("/detections")
    ]
    publish = camera["latency_since_start_ms"]["publish"]["p50"]
    seen_ms = statistics.median(arrivals)
    assert camera["latency_since_start_ms"]["total"]["p50"] < seen_ms
    differences["subscriber's median, of total + publish"] = seen_ms - (
        camera["latency_since_start_ms"]["total"]["p50"] + publish
    )

    # /proc, by a program of our own.
    for name, process in {
        "control": psutil.Process(agent.process.pid),
        "worker": agent.worker(),
    }.items():
        seen, said = process.memory_info().rss / 2**20, told["processes"][name]["rss_mib"]
        assert said == pytest.approx(seen, rel=0.25)
        assert told["processes"][name]["threads"] == pytest.approx(process.num_threads(), abs=2)
        times = process.cpu_times()
        cpu_s = metrics["edge_agent_process_cpu_seconds_total", (("process", name),)]
        assert cpu_s == pytest.approx(times.user + times.system, abs=3.0)
        differences[f"{name} RSS, MiB"] = said - seen
    system = told["system"]
    assert system["memory_total_mib"] == pytest.approx(
        psutil.virtual_memory().total / 2**20, rel=0.001
    )
    for name, difference in differences.items():
        print(f"{name:45} {difference:+.4f}")
        record_property(name, difference)


def test_joules_of_a_board_with_a_sensor(broker, subscriber, run_on_board, free_port, home):
    lines = "loop = true\nrealtime = true\nfps = 10"
    config = config_text(broker.port, camera=lines, telemetry_s=6.0)
    run_on_board("jetson-orin-nano-r36", with_prometheus(config, free_port))
    # The first window may begin before the model runs.
    told = subscriber.wait(
        lambda: (
            (t := subscriber.last("/telemetry"))
            and t["energy"]["valid"]
            and t["energy"]["inferences"] > 30
            and t
        )
    )
    assert told["power"]["kind"] == "measured"
    assert told["power"]["total_w"] == pytest.approx(9.250304)
    energy = told["energy"]
    assert (energy["scope"], energy["source"]) == ("module_input", "trapezoid")
    assert energy["mean_w"] == pytest.approx(9.250304, rel=1e-4)
    assert energy["gross_j"] == pytest.approx(9.250304 * energy["window_s"], rel=1e-3)
    per_inference = energy["gross_j"] / energy["inferences"] * 1e3
    assert energy["gross_mj_per_inference"] == pytest.approx(per_inference, rel=1e-3)
    assert energy["net_j"] is None  # nobody has measured this board at rest
    assert told["temps_c"]["tj-thermal"] == pytest.approx(63.781)
    assert "gpu-thermal" in told["temps_unreadable"]
    watts = [
        value for (name, _), value in samples(free_port).items() if name == "edge_agent_power_watts"
    ]
    assert watts == [pytest.approx(9.250304)]
    entities = home.wait(
        lambda: (
            (d := home.last("/config"))
            and any(one.get("dev_cla") == "power" for one in d["cmps"].values())
            and d["cmps"]
        )
    )
    assert any(one["p"] == "update" for one in entities.values())


def test_limits_that_are_passed_stand_in_the_status(broker, subscriber, run_on_board):
    run_on_board("jetson-orin-nx-throttled", config_text(broker.port, camera="loop = true"))
    status = subscriber.wait(
        lambda: (
            (s := subscriber.last(f"{DEVICE}/status"))
            and {"throttled", "over_current", "too_hot.CPU-therm"}
            <= {problem["code"] for problem in s["health"]}
            and s
        )
    )
    hot = next(one for one in status["health"] if one["code"] == "too_hot.CPU-therm")
    assert (hot["value"], hot["limit"], hot["unit"]) == (99.187, 95.0, "°C")
    assert "heat sink" in hot["remedy"]
    assert hot["since"] == pytest.approx(time.time(), abs=60)


def test_a_board_without_a_sensor_has_no_watts(broker, subscriber, run_on_board, free_port):
    config = config_text(broker.port, camera="loop = true")
    run_on_board("rpi-4b", with_prometheus(config, free_port))
    told = subscriber.wait(
        lambda: (t := subscriber.last("/telemetry")) and t["temps_c"] and t["uptime_s"] > 4 and t
    )
    assert (told["power"]["kind"], told["power"]["total_w"]) == ("unavailable", None)
    energy = told["energy"]
    assert not energy["valid"]
    assert energy["why_invalid"]
    assert energy["gross_j"] is energy["mean_w"] is energy["gross_mj_per_inference"] is None
    assert "edge_agent_power_watts" not in get(free_port)[1]


def test_home_assistant_is_told_and_told_again(broker, subscriber, run_agent, home):
    agent = run_agent(config_text(broker.port, camera="loop = true"))
    counts = subscriber.wait(
        lambda: (c := subscriber.last("door/counts")) and c["total"] and c["counts"]
    )
    assert {"person", "cat"} & counts.keys()
    home.wait(
        lambda: (
            (d := home.last("/config"))
            and any("person" in key for key in d["cmps"])
            and any(one["p"] == "update" for one in d["cmps"].values())
        )
    )
    time.sleep(1)
    before = sum(message.topic == DISCOVERY for message in home.messages)
    birth = Subscriber(broker.port, "none")
    birth._client.publish("homeassistant/status", "online").wait_for_publish(WITHIN_S)
    home.wait(lambda: sum(message.topic == DISCOVERY for message in home.messages) > before)
    birth.close()
    assert agent.stop() == 0
    late = Subscriber(broker.port, "#")
    late.wait(lambda: any(message.topic == DISCOVERY for message in late.messages))
    assert all(message.retained for message in late.messages if message.topic == DISCOVERY)
    late.close()


def test_what_is_no_longer_wanted_is_taken_back(broker, run_agent, home, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    agent = run_agent(config_text(broker.port, camera="loop = true", state_dir=state))
    home.wait(lambda: home.last("/config"))
    assert agent.stop() == 0
    run_agent(
        config_text(
            broker.port,
            camera="loop = true",
            mqtt_lines='discovery = "off"',
            state_dir=state,
        )
    )
    home.wait(lambda: home.messages[-1].topic == DISCOVERY and not home.messages[-1].payload)


def test_an_address_in_use_is_a_problem_and_no_end(broker, subscriber, run_agent, taken_port):
    agent = run_agent(with_prometheus(config_text(broker.port, camera="loop = true"), taken_port))
    problem = subscriber.wait(
        lambda: (
            (s := subscriber.last(f"{DEVICE}/status"))
            and next((one for one in s["health"] if one["code"] == "prometheus"), None)
        )
    )
    assert str(taken_port) in problem["message"]
    subscriber.wait_results(20)
    assert agent.process.poll() is None


def test_ready_only_with_a_model_and_a_camera(broker, subscriber, run_agent, free_port):
    text = config_text(broker.port, "/dev/video99")
    run_agent(with_prometheus(text, free_port))
    subscriber.wait(lambda: (s := subscriber.last(f"{DEVICE}/status")) and s["model"])
    deadline = time.monotonic() + WITHIN_S
    while (answer := get(free_port, "/readyz"))[1].splitlines() != ["no camera gives frames"]:
        assert time.monotonic() < deadline, answer
        time.sleep(0.3)
    assert answer[0] == 503
    assert get(free_port, "/healthz") == (200, "ok\n")


def test_deadlines_are_counted(broker, subscriber, run_agent):
    run_agent(config_text(broker.port, CLIP, camera="loop = true\ndeadline_ms = 0.5"))
    camera = subscriber.wait(
        lambda: (
            (t := subscriber.last("/telemetry"))
            and (c := t["cameras"]["door"])["processed"] > 10
            and c
        )
    )
    assert camera["deadline_ms"] == 0.5
    assert camera["deadline_misses"] == camera["processed"]
