"""The store's steps: on threads, one at a time, and never blocking whoever polls."""

import threading
import time

import pytest
from ota.made_bundles import made_bundle

from agent.contract.manifest import Budget
from agent.ota.refusal import RefusalError
from agent.ota.state import BundleRef
from agent.ota.steps import Refused, Succeeded, Working
from agent.ota.store import Store
from agent.ota.store_steps import StoreSteps, Work

BUDGET = {"rpi-4*": Budget(p95_ms=40.0, rss_mib=120.0)}
BOARD = "rpi-4"


def answer(step, within_s=20.0):
    ends = time.monotonic() + within_s
    while isinstance(reply := step.poll(), Working):
        assert time.monotonic() < ends
        time.sleep(0.002)
    return reply


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "models")


@pytest.fixture
def bundle(tmp_path, store):
    """Return the reference of a bundle that has been fetched."""
    import hashlib

    content = made_bundle(tmp_path / "made.tar", budget=BUDGET)
    ref = BundleRef(
        sha256=hashlib.sha256(content).hexdigest(),
        name="made",
        version="1.0.0",
        release_counter=3,
        security_floor=0,
    )
    store.part(ref.sha256).write_bytes(content)
    return ref


def test_a_fetched_bundle_is_taken_in_with_this_boards_budget(store, bundle):
    steps = StoreSteps(store, BOARD)
    assert not steps.has(bundle)
    reply = answer(steps.verify(bundle, 1))
    assert isinstance(reply, Succeeded)
    assert (reply.ref.p95_ms, reply.ref.rss_mib) == (40.0, 120.0)
    assert reply.ref.manifest_sha256
    assert steps.has(bundle)
    # Once more, without the file: the one that is there is compared.
    store.part(bundle.sha256).unlink(missing_ok=True)
    assert answer(steps.verify(bundle, 1)) == reply
    other = answer(StoreSteps(store, "jetson-nano").verify(bundle, 1))
    assert other.ref.p95_ms is None


def test_what_is_damaged_is_refused_so_that_it_can_be_fetched_anew(store, bundle):
    steps = StoreSteps(store, BOARD)
    ref = answer(steps.verify(bundle, 1)).ref
    store.part(bundle.sha256).unlink(missing_ok=True)
    model = store.path(ref) / "model.tflite"
    model.chmod(0o600)
    model.write_bytes(b"b model" * 100)
    reply = answer(steps.verify(bundle, 1))
    assert isinstance(reply, Refused)
    assert (reply.code, reply.is_final) == ("E_HASH", False)
    assert not steps.has(bundle)


def test_what_nothing_needs_is_thrown_away(store, bundle):
    steps = StoreSteps(store, BOARD)
    answer(steps.verify(bundle, 1))
    assert answer(steps.collect(frozenset({bundle.sha256}), frozenset())) == Succeeded()
    assert steps.has(bundle)
    answer(steps.collect(frozenset(), frozenset()))
    assert not steps.has(bundle)


def test_no_room(store, bundle, monkeypatch):
    monkeypatch.setattr(store, "free_bytes", lambda: 1000)
    with pytest.raises(RefusalError, match="free"):
        StoreSteps(store, BOARD).require_space(bundle, 10_000_000)


def test_one_at_a_time_and_nobody_waits():
    turn, go, running, most = threading.Lock(), threading.Event(), [], []

    def slow():
        running.append(1)
        most.append(len(running))
        assert go.wait(30)
        time.sleep(0.02)
        running.pop()
        return Succeeded()

    steps = [Work("slow", slow, turn) for _ in range(4)]
    assert [step.poll() for step in steps[1:]] == [Working()] * 3
    steps[2].stop()
    go.set()
    assert [answer(steps[at]) for at in (0, 1, 3)] == [Succeeded()] * 3
    assert max(most) == 1
    assert len(most) == 3  # what was given up before its turn was never begun


def test_a_fault_of_ours_is_an_answer(caplog):
    reply = answer(Work("broken", lambda: 1 / 0, threading.Lock()))
    assert isinstance(reply, Refused)
    assert (reply.code, reply.is_final) == ("E_SYSTEM", False)
    assert "division" in reply.message
