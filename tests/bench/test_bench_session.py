"""The benches' runs of the real daemon: results of every camera, from the engines asked for."""

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from commands import edge_agent
from remembered import remember

from agent.bench.cameras import SETUPS, config
from agent.bench.session import STATE_FOLDER, demo_clip, play, run_session
from agent.contract.payloads import Result
from agent.demo.children import Children, Signals
from agent.errors import AgentError

sys.path.append(str(Path(__file__).parent.parent / "vision"))
from bad_models import made_box, model_folder

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def children(tmp_path):
    with Signals() as signals, Children(tmp_path, signals) as started:
        yield started


@pytest.mark.parametrize("setup", SETUPS[2:], ids=lambda setup: setup.name)
def test_every_camera_gives_results_from_its_engine(children, setup, tmp_path):
    remember(tmp_path / STATE_FOLDER, engines=setup.engines, threads=1)
    played = play(
        lambda port: config(setup, ("default", "default"), demo_clip(), port, tmp_path),
        setup.camera_names,
        seconds=1.0,
        children=children,
    )
    results = {
        name: [msgspec.json.decode(payload, type=Result) for _, payload in there]
        for name, there in played.arrivals.items()
    }
    assert set(results) == set(setup.camera_names)
    # Each had given one before the measured time began, else `play` would have said so.
    assert {one.camera for there in results.values() for one in there} <= set(setup.camera_names)
    # A file's frames are all processed, and a camera's results come in order.
    for there in filter(None, results.values()):
        assert [one.seq for one in there] == list(range(there[0].seq, there[0].seq + len(there)))
        assert sum(one.dropped for one in there) == 0
    assert played.status is not None
    assert len(played.status.engines) == setup.engines


def test_a_session_of_one_camera_has_all_its_figures(children):
    remember(children.folder / STATE_FOLDER)
    session = run_session("default", demo_clip(), seconds=2.0, realtime=True, children=children)
    assert session.results_per_s > 0
    assert set(session.stage_p50_ms) == {"queue", "preprocess", "inference", "postprocess"}
    assert 0 < session.latency_p50_ms <= session.latency_p99_ms
    assert session.pss_mib > 0


def test_a_daemon_that_ends_is_quoted(children):
    with pytest.raises(AgentError, match=r"no result of camera camera1; it said: .*nonsense"):
        play(
            lambda port: f"[nonsense]\nport = {port}\n", ["camera1"], seconds=1.0, children=children
        )


@pytest.mark.parametrize("kind", [[], ["cameras"]])
def test_an_interrupted_bench_ends_without_a_trace(kind, tmp_path):
    model = model_folder(tmp_path / "box", made_box(1), name="box")
    bench = subprocess.Popen(
        [sys.executable, "-m", "agent", "bench", *kind, "--model", model, "--seconds", "1"],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert bench.stderr.readline() == "round 1 of 3\n"
    bench.send_signal(signal.SIGTERM)
    _, said = bench.communicate(timeout=60)
    assert bench.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said


def test_bench_still_stands_for_itself_beside_its_kinds():
    helped = edge_agent("bench", "--help")
    assert helped.returncode == 0
    for word in ("--model", "--clip", "--seconds", "--runs", "--json", "heads", "cameras"):
        assert word in helped.stdout
    assert "--second MODEL" in edge_agent("bench", "cameras", "--help").stdout
    assert edge_agent("bench", "tails").returncode == 2
