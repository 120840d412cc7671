"""Orders to a daemon that runs: whatever a signed model is like, cameras are served: A19, A20."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from typing import get_args

import numpy as np
import paho.mqtt.publish
import pytest
from bad_models import made_at, made_classifier, pictures
from harness import DEVICE, PROJECT, WITHIN_S
from hostile_files import made_endless, made_giant, made_nan
from made_repository import Site
from update_rig import SURE_OF, UpdatedBoard
from wall_clock import WallClock

from agent.contract.updates import Phase

# Most of it is waiting, for exams that stand back and for probations.
pytestmark = pytest.mark.long

ANY_TIME = {"*": {"p95_ms": 10_000.0, "rss_mib": 4000.0}}


@pytest.fixture
def board(tmp_path, broker, subscriber, run_agent, monkeypatch):
    """Return a board whose clock is set, and which runs the model that it came with."""
    clock = WallClock(tmp_path)
    clock.set(0, synced=True)
    for name, value in clock.environment.items():
        monkeypatch.setenv(name, value)
    site = Site(tmp_path / "operator")
    site.home.mkdir()
    made = UpdatedBoard(tmp_path, broker, subscriber, site.init())

    def start(source, **options):
        made.agent = run_agent(made.config(source, **options))
        made.serves("factory")
        return made

    yield start
    clock.close()


@pytest.fixture
def dull(tmp_path):
    """A camera that shows nothing special."""
    return pictures(tmp_path / "dull", range(20, 40))


TINY = {"*": {"p95_ms": 0.0001, "rss_mib": 4000.0}}
SMALL = {"*": {"p95_ms": 10_000.0, "rss_mib": 1.0}}
PROMISED = {
    "input_0": np.zeros((1, 8, 8, 3), np.uint8),
    "class_ids_0": np.array([3]),
    "scores_0": np.array([0.78], np.float32),
}
# Bad, and signed by the right people.
BAD = {
    "crashes at load": (made_endless(is_nested=True), {}, "E_CRASH"),
    "hangs": (made_endless(), {}, "E_HANG"),
    "takes all memory": (made_giant(), {}, "E_MEMORY"),
    "NaN": (made_nan(), {}, "E_NAN"),
    "too slow": (made_classifier(5), {"budget": TINY}, "E_BUDGET"),
    "too large": (made_classifier(5), {"budget": SMALL}, "E_BUDGET"),
    "other answers": (made_classifier(4), {"golden": PROMISED}, "E_GOLDEN"),
    "fails on a frame": (made_at(128, "fail"), {}, "E_CRASH"),
}


def test_a_board_through_good_and_bad_models(board, dull, subscriber, run_agent):
    running = board(dull)
    worker = running.agent.worker().pid
    good = running.publish(made_classifier(SURE_OF["good"]), budget=ANY_TIME)
    done = running.end_of(running.order(good))
    assert (done["phase"], done["code"]) == ("committed", None), done
    # A retained topic has the newest state; what did not last may never have been sent.
    phases = [one["phase"] for one in running.reports(done["deployment_id"])]
    assert phases == sorted(phases, key=get_args(Phase).index)
    assert {"selftest", "shadow", "probation", "committed"} <= set(phases)
    running.serves("good")
    gap_ms = swapped_within_ms(subscriber.results())
    assert running.agent.worker().pid == worker, "swapped in the worker that served"
    assert gap_ms < 10_000  # on a machine that others keep busy

    took = {"gap_ms": gap_ms}
    for what, (data, more, code) in BAD.items():
        bad = running.publish(data, name="bad", **more)
        began = time.monotonic()
        done = running.end_of(running.order(bad))
        took[what] = time.monotonic() - began
        assert (done["phase"], done["code"]) == ("refused", code), (what, done)
        assert done["message"], what
        assert (done["model"]["name"], done["source"]) == ("good", "active"), what
        running.serves("good")
    print({what: round(figure, 1) for what, figure in took.items()})
    assert running.agent.worker().pid == worker, "the worker has served all the time"
    assert {one["model"]["name"] for one in subscriber.results()} == {"factory", "good"}

    # One step on by the group's order, one back by the board's own.
    better = running.publish(made_classifier(SURE_OF["better"]), name="better", budget=ANY_TIME)
    done = running.end_of(running.order(better, topic="edge/group/porches/model/desired"))
    assert (done["phase"], done["previous"]) == ("committed", good), done
    done = running.end_of(running.order(None, action="rollback"))
    assert (done["phase"], done["model"]["name"]) == ("committed", "good"), done
    running.serves("good")

    # A25: a bit of it flips on the disk. It is passed over, said, and fetched again when ordered.
    running.agent.stop()
    for path in (running.state_dir / "models").glob("*/model.tflite"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    running.agent = run_agent(running.config(dull))
    running.serves("factory")

    def said_of_the_store():
        health = subscriber.last(f"{DEVICE}/status")["health"]
        return [one["message"] for one in health if one["code"] == "model_store"]

    said = subscriber.wait(said_of_the_store)
    assert len(said) == 1, said
    assert f"active {good}: " in said[0]
    assert "model.tflite" in said[0]
    assert running.end_of(running.order(good))["phase"] == "committed"
    running.serves("good")
    subscriber.wait(lambda: subscriber.last(f"{DEVICE}/status")["health"] == [])
    done = running.end_of(running.order(None, action="factory"))
    assert (done["phase"], done["source"]) == ("committed", "factory"), done
    running.serves("factory")
    assert running.mixed() == []


def swapped_within_ms(results):
    """Return the time between the last frame of one model and the first of the next one."""
    changes = [(a, b) for a, b in pairwise(results) if a["model"] != b["model"]]
    assert len(changes) == 1, "swapped once, and not back and forth"
    assert [b["seq"] - a["seq"] for a, b in pairwise(results)] == [1] * (len(results) - 1)
    ((before, after),) = changes
    return (after["captured_at"] - before["captured_at"]) * 1e3


@pytest.mark.parametrize(
    ("what", "codes"), [("fail", {"E_FRAME"}), ("endless", {"E_HANG", "E_CRASH"})]
)
def test_what_passes_every_test_and_fails_on_this_boards_cameras(
    board, subscriber, tmp_path, what, codes
):
    shown = pictures(tmp_path / "shown", [20] * 300 + [200])  # every ten seconds
    running = board(shown, probation_s=30)
    bad = running.publish(made_at(200, what), name="bad", budget=ANY_TIME)
    done = running.end_of(running.order(bad))
    assert done["phase"] in ("refused", "rolled_back"), done  # shadow may have seen it
    assert done["code"] in codes, done
    running.serves("factory")
    subscriber.wait(lambda: subscriber.last("/model/reported")["source"] == "factory")
    # The same order again is not taken up, nor is the same bundle by another one of its kind.
    since = len(subscriber.messages)
    time.sleep(1.0)
    assert all("trial" not in str(m.payload) for m in subscriber.messages[since:])


def test_killed_again_and_again_on_the_way(board, dull, run_agent):
    running = board(dull)
    good = running.publish(made_classifier(SURE_OF["good"]), budget=ANY_TIME)
    deployment = running.order(good)
    for wait_s in (0.3, 1.0, 3.0):
        time.sleep(wait_s)
        running.agent.process.kill()
        running.agent.process.wait()
        running.agent = run_agent(running.config(dull))
    done = running.end_of(deployment)
    if done["phase"] != "committed":  # its self-test was tried twice, and ended each time
        assert (done["phase"], done["code"]) == ("refused", "E_LOOP"), done
        running.serves("factory")
        assert running.end_of(running.order(good))["phase"] == "committed"
    running.serves("good")
    assert running.mixed() == []


def test_over_the_broker_alone(board, dull, broker, subscriber):
    running = board(dull, repository="mqtt:")
    good = running.publish(made_classifier(SURE_OF["good"], size=200), budget=ANY_TIME)
    command = [sys.executable, "-m", "agent", "repo", "serve-mqtt", str(running.site.folder)]
    command += ["--broker", f"mqtt://127.0.0.1:{broker.port}"]
    with subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE) as server:
        try:
            done = running.end_of(running.order(good))
        finally:
            server.terminate()
            server.communicate(timeout=WITHIN_S)
    assert done["phase"] == "committed", done
    asked = {m.topic for m in subscriber.messages if m.topic.endswith("/repo/get")}
    assert asked == {f"edge/{DEVICE}/repo/get"}
    running.serves("good")


def test_orders_that_are_not_taken_up(board, dull, subscriber, broker):
    running = board(dull)
    running.order("good@99")  # which nobody has published
    first = subscriber.wait(lambda: subscriber.last("/model/reported"))
    assert first["model"]["name"] == "factory"

    topic = f"edge/{DEVICE}/model/desired"
    for payload, code in [
        (b"{", "E_JSON"),
        (b"x" * 5000, "E_SIZE"),
        (json.dumps({"deployment_id": "old", "counter": 1, "action": "factory"}), "E_REPLAY"),
    ]:
        paho.mqtt.publish.single(topic, payload, qos=1, hostname="127.0.0.1", port=broker.port)
        subscriber.wait(
            lambda code=code: (
                ((subscriber.last("/model/reported") or {}).get("ignored") or {}).get("code")
                == code
            )
        )
    running.serves("factory")
