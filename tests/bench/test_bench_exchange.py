"""What the bench of an update says: ratios within a round, gaps, results of two models."""

import json
import sys
from pathlib import Path

import pytest
from msgspec import structs

from agent.bench import beside, exchange
from agent.bench.beside import Latencies, Part
from agent.bench.exchange import document_of, run_exchange, table
from agent.contract.payloads import MeasuredRun, ModelIdentity
from agent.link import Ready, ResultOut

sys.path.append(str(Path(__file__).parent.parent / "vision"))
from bad_models import made_box, model_folder

READY = Ready(
    model=ModelIdentity(name="a", version=None, sha256="a" * 64), task="detection", head="ssd",
    accelerator="cpu", reason=None, is_accelerated=False, fallbacks=(),
    run=MeasuredRun(runtime="fake 1", threads=1, xnnpack=False, invoke_ms=None),
    first_invoke_s=0.0, notes=(),
)  # fmt: skip
OTHER = structs.replace(READY, model=ModelIdentity(name="b", version=None, sha256="b" * 64))


def result(name):
    payload = json.dumps({"model": {"name": name, "version": None, "sha256": name * 64}})
    return ResultOut(camera="clip", seq=1, frame_id=1, payload=payload.encode())


@pytest.mark.parametrize(
    ("heard", "mixed"),
    [
        ([result("a"), READY, result("a"), OTHER, result("b")], 0),
        ([READY, result("b"), OTHER, result("b"), result("a")], 2),
    ],
)
def test_results_are_of_the_model_that_was_named_last(heard, mixed):
    assert exchange._mixed(heard) == mixed


def part(quiet_ms, busy_ms):
    quiet, busy = (Latencies(p50_ms=1.0, p99_ms=p99, hz=30.0) for p99 in (quiet_ms, busy_ms))
    return Part(quiet=quiet, busy=busy, times=1, cores=0.5, load=2.0)


def test_ratios_are_within_a_round_and_medians_over_them():
    rounds = [
        {"exam": part(20.0, 25.0), "shadow": part(20.0, 20.0)},
        {"exam": part(40.0, 20.0), "shadow": part(40.0, 40.0)},
        {"exam": part(10.0, 20.0), "shadow": part(10.0, 11.0)},
    ]
    document = document_of(rounds, [], 0)
    exam, shadow = document["medians"]["exam"], document["medians"]["shadow"]
    assert (exam["p99_ratio"], shadow["p99_ratio"]) == (1.25, 1.0)
    assert (exam["quiet_p99_ms"], exam["p99_ms"]) == (20.0, 20.0)
    expected = ["exam", "1.0", "1.0", "20.0", "20.0", "1.25", "1", "0.50", "2.0"]
    assert table(document)[1].split() == expected
    assert table(document_of([], [], 3)) == ["results of two models".ljust(36) + "       3"]


def test_frames_belong_to_the_slice_they_were_captured_in():
    ms = 1_000_000
    heard = [
        structs.replace(result("a"), captured_ns=at * ms, encoded_ns=(at + took) * ms)
        for at, took in ((5, 1), (15, 2), (19, 99), (25, 4))
    ]
    found = beside._latencies(heard, [(0, 10 * ms), (20 * ms, 30 * ms)])
    assert (found.p50_ms, found.p99_ms, found.hz) == (2.5, 4.0, 100.0)


def test_a_short_run(tmp_path, capsys, monkeypatch):
    for module in (beside, exchange):
        monkeypatch.setattr(module, "SETTLE_S", 0.5)
    monkeypatch.setattr(beside, "FRAMES", 2)
    file = tmp_path / "figures.json"
    code = run_exchange(
        model=model_folder(tmp_path / "box", made_box(1), name="box"), other="", clip="",
        fps=20.0, rounds=1, seconds=0.5, swaps=1, json_file=file,
    )  # fmt: skip
    done = json.loads(file.read_text())
    assert (code, done["mixed"], len(done["swaps"])) == (0, 0, 1)
    assert done["longest_ms"]["most"] >= done["gap_ms"]["most"] > 0
    [one] = done["rounds"]
    assert all(one[kind]["busy"]["p99_ms"] > 0 for kind in ("exam", "shadow"))
    assert "results of two models" in capsys.readouterr().out
