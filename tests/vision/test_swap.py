"""One model for another between two frames: the switch alone, and real workers on real frames."""

import gc
import json
import threading
import time
import weakref
from itertools import pairwise

import numpy as np
import pytest
from bad_models import made_at, made_box, made_classifier, made_recurrent, model_folder, pictures
from fakes import FakeCamera, FakeEngine, fake_model, setup_of
from live import assert_accounted, model
from test_pipeline import Rig, source

from agent.config import CameraConfig, SecondStage
from agent.contract.payloads import MeasuredRun, ModelIdentity
from agent.link import Keep, Ready, ResultOut, Revert, Stop, Swap, SwapFailed, Swapped
from agent.vision import swap as swap_module
from agent.vision.swap import Switch

WITHIN_S = 60.0


# The switch.


def ready_of(name):
    return Ready(
        model=ModelIdentity(name=name, version=None, sha256="0" * 64), task="detection",
        head="fake", accelerator="cpu", reason=None, is_accelerated=False, fallbacks=(),
        run=MeasuredRun(runtime="fake 1", threads=1, xnnpack=False, invoke_ms=None),
        first_invoke_s=0.0, notes=(),
    )  # fmt: skip


class Bench:
    """A switch with a clock of its own, and what it says."""

    def __init__(self):
        self.now_s = 0.0
        self.said, self.trims = [], 0
        self.old, self.new = self.setup("old"), self.setup("new", token="t", hold_s=60.0)
        self.switch = Switch(
            self.old, self.said.append, clock_ns=lambda: int(self.now_s * 1e9), trim=self.trim
        )

    def trim(self):
        self.trims += 1

    def setup(self, name, **parts):
        return setup_of(fake_model(FakeEngine()), ready=ready_of(name), **parts)

    def frame(self, setup, at_s):
        self.now_s = at_s
        self.switch.note_good(setup)
        self.switch.note_done(setup, int(at_s * 1e9))

    def kinds(self):
        return [
            one.model.name if isinstance(one, Ready) else (type(one).__name__, one.token)
            for one in self.said
        ]


@pytest.fixture
def bench():
    return Bench()


def test_a_swap_is_answered_behind_its_first_frame(bench):
    bench.frame(bench.old, 1.0)
    bench.switch.install(bench.new)
    assert (bench.switch.current, bench.switch.is_busy) == (bench.new, True)
    bench.frame(bench.old, 1.1)  # was under way
    assert bench.said == []
    bench.switch.note_good(bench.new)
    assert bench.kinds() == ["new"], "the status names the model ahead of its first result"
    bench.switch.note_done(bench.new, int(1.25e9))
    assert bench.kinds() == ["new", ("Swapped", "t")]
    assert bench.said[-1].gap_ms == 150.0
    bench.frame(bench.new, 1.3)
    assert len(bench.said) == 2
    assert not bench.switch.is_busy


@pytest.mark.parametrize(("hold_s", "is_held"), [(60.0, True), (0.0, False)])
def test_the_model_before_is_held_for_a_while_or_until_the_first_good_frame(bench, hold_s, is_held):
    bench.new.hold_s = hold_s
    bench.switch.install(bench.new)
    assert bench.switch._held is bench.old
    bench.frame(bench.new, 1.0)
    assert (bench.switch._held is bench.old) is is_held
    bench.now_s = 60.9
    bench.switch.check()
    assert (bench.switch._held is bench.old) is is_held
    bench.now_s = 61.1
    bench.switch.check()
    assert bench.switch._held is None


def test_a_failure_goes_back_and_says_so_once(bench):
    bench.switch.install(bench.new)
    assert bench.switch.withdraw(bench.new, ValueError("bad"))
    assert bench.switch.withdraw(bench.new, ValueError("again")), "a frame that was under way"
    assert bench.switch.current is bench.old
    assert bench.new.is_withdrawn
    [failed] = bench.said
    assert (failed.token, failed.code, failed.reason) == ("t", "frame_failed", "ValueError: bad")
    bench.frame(bench.old, 1.0)
    assert len(bench.said) == 1, "nobody has heard of the new one"


def test_a_failure_after_the_answer_names_the_model_before_anew(bench):
    bench.switch.install(bench.new)
    bench.frame(bench.new, 1.0)
    assert bench.switch.withdraw(bench.new, ValueError("bad"))
    bench.frame(bench.old, 1.1)
    assert bench.kinds() == ["new", ("Swapped", "t"), ("SwapFailed", "t"), "old"]
    assert not bench.switch.withdraw(bench.old, ValueError("worse")), "nothing to go back to"


def test_revert_is_answered_as_a_swap_is(bench):
    bench.switch.install(bench.new)
    bench.frame(bench.new, 1.0)
    bench.switch.revert("back")
    assert bench.switch.is_busy
    bench.frame(bench.new, 1.03)  # was under way
    bench.frame(bench.old, 1.06)
    assert bench.kinds() == ["new", ("Swapped", "t"), "old", ("Swapped", "back")]
    bench.switch.revert("further")
    assert (bench.said[-1].token, bench.said[-1].code) == ("further", "nothing_held")


def test_revert_before_the_first_frame_is_answered_too(bench):
    bench.frame(bench.old, 0.5)
    bench.switch.install(bench.new)
    bench.switch.revert("back")
    bench.frame(bench.old, 1.0)
    assert bench.kinds() == [("Swapped", "back")]


def test_keep_leaves_no_way_back(bench):
    bench.switch.install(bench.new)
    bench.frame(bench.new, 1.0)
    bench.switch.keep()
    bench.switch.revert("back")
    assert bench.said[-1].code == "nothing_held"
    assert not bench.switch.withdraw(bench.new, ValueError("bad"))


@pytest.mark.parametrize("ends", ["kept", "reverted", "failed", "in time"])
def test_the_memory_of_a_model_that_is_let_go_is_given_back_once(bench, ends):
    bench.switch.install(bench.new)
    bench.frame(bench.new, 1.0)
    bench.switch.check()
    if ends == "kept":
        bench.switch.keep()
    elif ends == "reverted":
        bench.switch.revert("back")
    elif ends == "failed":
        bench.switch.withdraw(bench.new, ValueError("bad"))
    else:
        bench.now_s = 62.0
        bench.switch.check()
    assert bench.trims == 0, "frames may be under way with it"
    for _ in range(4):
        bench.switch.check()
    assert bench.trims == 1


def test_without_frames_a_swap_is_answered_in_time(bench):
    bench.switch.install(bench.new)
    bench.now_s = swap_module.NO_FRAME_S - 0.1
    bench.switch.check()
    assert bench.said == []
    bench.now_s = swap_module.NO_FRAME_S + 0.1
    bench.switch.check()
    bench.switch.check()
    assert bench.kinds() == ["new", ("Swapped", "t")]
    assert bench.said[-1].gap_ms is None
    bench.frame(bench.new, 60.0)
    assert len(bench.said) == 2


# The pipeline, with engines that fail where told.


def run_rig(new, *, frames, at):
    """Play a file, install `new` once some results are there; return the rig when all have come."""
    installed = threading.Event()
    camera = FakeCamera(frames, holds={at + 30: installed})
    rig = Rig({"a": source(camera)}, FakeEngine(invoke_s=1e-3)).start()
    try:
        rig.wait(lambda: len(rig.results) >= at)
        rig.pipeline.switch.install(new)
        installed.set()
        rig.wait(
            lambda: (
                sum(one.stream.processed + one.stream.lost for one in rig.lanes.values()) == frames
            )
        )
        rig.stop()
    finally:
        rig.stopping.set()
    return rig


def identity(name):
    return ModelIdentity(name=name, version=None, sha256=name[0] * 64)


def another(engine, *, decode=None, name="new", **parts):
    base = fake_model(engine) if decode is None else fake_model(engine, decode)
    made = type(base)(
        **{field: getattr(base, field) for field in base.__slots__ if field != "identity"},
        identity=identity(name),
    )
    return setup_of(made, token="t", is_answered=False, **parts)


@pytest.mark.parametrize("where", ["load_input", "invoke", "read_outputs", "decode", "slow decode"])
@pytest.mark.parametrize("good", [0, 5])
def test_whatever_fails_on_a_frame_goes_back_without_a_gap_in_the_accounts(where, good):
    engine, calls = FakeEngine(), []

    def fail_later(work):
        def run(*args):
            calls.append(args)
            if len(calls) > good:
                if where == "slow decode":  # all there is between the stages is under way
                    time.sleep(0.05)
                raise ValueError("odd frame")
            return work(*args)

        return run

    decode = fake_model(engine).head.decode
    if "decode" in where:
        decode = fail_later(decode)
    else:
        setattr(engine, where, fail_later(getattr(engine, where)))
    new = another(engine, decode=decode, hold_s=60.0)
    rig = run_rig(new, frames=100, at=20)
    assert rig.pipeline.failure is None
    [failed] = [one for one in rig.said if isinstance(one, SwapFailed)]
    assert (failed.code, failed.reason) == ("frame_failed", "ValueError: odd frame")
    assert_accounted(rig.results)
    lost = rig.lanes["a"].stream.lost
    assert 1 <= lost <= 4
    assert len(rig.results) == 100 - lost
    names = [one["model"]["name"] for one in rig.results]
    assert names.count("new") <= good
    assert names[-1] == "fake"


def test_a_failure_with_nothing_held_ends_the_worker_as_ever():
    engine = FakeEngine()
    engine.fail_at = 30
    new = another(engine, hold_s=0.0)
    installed = threading.Event()
    camera = FakeCamera(100, holds={40: installed})
    rig = Rig({"a": source(camera)}, FakeEngine(invoke_s=1e-3)).start()
    rig.wait(lambda: len(rig.results) >= 10)
    rig.pipeline.switch.install(new)
    installed.set()
    rig.wait(rig.stopping.is_set)
    rig.stop()
    assert str(rig.pipeline.failure) == "invoke failed"
    assert [type(one) for one in rig.said] == [Swapped]


def test_nothing_of_a_model_that_was_swapped_away_is_kept():
    new, last = another(FakeEngine(), hold_s=0.0), another(FakeEngine(), name="last", hold_s=0.0)
    one_is_there, other_is_there = threading.Event(), threading.Event()
    camera = FakeCamera(90, holds={30: one_is_there, 60: other_is_there})
    rig = Rig({"a": source(camera)}, FakeEngine(invoke_s=1e-3)).start()
    rig.wait(lambda: len(rig.results) >= 10)
    rig.pipeline.switch.install(new)
    one_is_there.set()
    rig.wait(lambda: len(rig.results) >= 40)
    seen = weakref.ref(new.model.engine)
    rig.pipeline.switch.install(last)
    other_is_there.set()
    del new
    rig.wait(lambda: len(rig.results) == 90)
    rig.pipeline.frame_log.take(1000)
    gc.disable()
    try:
        assert seen() is None, "not even a cycle: what is loaded at the start is never collected"
    finally:
        gc.enable()
        rig.stop()


class Still(FakeCamera):
    """Every frame is the same."""

    def read(self, buffer):
        pixels = super().read(buffer)
        pixels[...] = 0
        return pixels


def test_what_changes_is_told_of_a_new_model_whatever_it_finds():
    config = CameraConfig(name="a", source="fake", publish="changes")
    installed = threading.Event()
    camera = Still(60, holds={40: installed})
    rig = Rig({"a": source(camera)}, FakeEngine(invoke_s=1e-3), configs={"a": config}).start()
    rig.wait(lambda: rig.lanes["a"].stream.processed >= 10)
    rig.pipeline.switch.install(another(FakeEngine(), hold_s=0.0))
    installed.set()
    rig.wait(lambda: rig.lanes["a"].stream.processed == 60)
    rig.stop()
    assert [one["model"]["name"] for one in rig.results] == ["fake", "new"]


# Real workers.

ONE, TWO = 2, 5  # the class that each model is sure of


@pytest.fixture
def models(tmp_path):
    """Two classifiers that have nothing in common but their kind."""
    one = model_folder(tmp_path / "one", made_classifier(ONE), name="one")
    two = model_folder(
        tmp_path / "two", made_classifier(TWO, size=32, classes=20), name="two",
        labels=[f"second {number}" for number in range(20)],
        input={"color": "bgr"},
    )  # fmt: skip
    return model(one), model(two)


def best(result):
    return result["model"]["name"], result["classes"][0]["class_id"], result["classes"][0]["label"]


ANSWERS = {"one": ("one", ONE, None), "two": ("two", TWO, f"second {TWO}")}


def test_at_thirty_frames_a_second_no_result_is_of_two_models(live, models):
    one, two = models
    running = live(one, others=[two])
    running.until(ResultOut, count=20)
    tokens = []
    for number, wanted in enumerate((two, one, two, one)):
        tokens.append(f"swap {number}")
        running.say(Swap(token=tokens[-1], model=wanted, choices=running.choices))
        swapped = running.until(Swapped, token=tokens[-1])
        assert swapped.gap_ms < 5000.0
        running.until(ResultOut, count=10)
    results = running.results()
    assert {best(result) for result in results} == set(ANSWERS.values())
    assert all(best(result) == ANSWERS[result["model"]["name"]] for result in results)
    changes = sum(a["model"] != b["model"] for a, b in pairwise(results))
    assert changes == 4
    assert_accounted(results)
    # Ready comes ahead of the first result of each, Swapped behind it.
    names, known = [], None
    for message in running.heard:
        if isinstance(message, Ready):
            known = message
            names.append(message.model.name)
            assert message.path == (one if message.model.name == "one" else two).path
        elif isinstance(message, ResultOut):
            assert json.loads(message.payload)["model"]["name"] == known.model.name
    assert names == ["one", "two", "one", "two", "one"]


def test_what_cannot_be_loaded_or_hangs_as_it_loads_changes_nothing(live, models, tmp_path):
    one, two = models
    hangs = model(model_folder(tmp_path / "hangs", made_at(0, "endless"), name="hangs"))
    running = live(one, others=[hangs, two])
    running.until(ResultOut, count=5)
    bad = model(tmp_path / "bad.tflite")
    (tmp_path / "bad.tflite").write_bytes(b"\x18\0\0\0TFL3")
    running.say(Swap(token="bad", model=bad))
    failed = running.until(SwapFailed)
    assert (failed.token, failed.code) == ("bad", "refused")
    assert "truncated or damaged" in failed.reason
    running.say(Swap(token="other", model=two, manifest_sha256="0" * 64, choices=running.choices))
    failed = running.until(SwapFailed)
    assert "is not the manifest that was installed" in failed.reason
    running.say(Swap(token="hangs", model=hangs, choices=running.choices))
    running.until(ResultOut, count=20)
    for order in (Revert(token="late"), Swap(token="late", model=two)):
        running.say(order)
        assert running.until(SwapFailed).code == "busy", "another one is being loaded"
    running.say(Stop())
    assert running.process.wait(WITHIN_S) == 0
    assert {result["model"]["name"] for result in running.results()} == {"one"}
    assert_accounted(running.results())


def test_a_model_that_fails_on_a_frame_gives_way_in_the_same_worker(live, models, tmp_path):
    one, _ = models
    bad = model(model_folder(tmp_path / "bad", made_at(200, "fail"), name="bad"))
    shown = pictures(tmp_path / "shown", [20] * 40 + [200])
    camera = CameraConfig(name="door", source=shown, loop=True, realtime=True, fps=30.0)
    running = live(one, others=[bad], cameras=(camera,))
    running.until(ResultOut, count=5)
    running.say(Swap(token="bad", model=bad, choices=running.choices))
    failed = running.until(SwapFailed)
    assert (failed.token, failed.code) == ("bad", "frame_failed")
    running.until(ResultOut, count=30)
    names = [result["model"]["name"] for result in running.results()]
    assert names[-1] == "one"
    assert_accounted(running.results())
    assert running.process.poll() is None
    assert running.of_kind(Ready)[-1].model.name == "one"


def test_revert_and_keep(live, models):
    one, two = models
    running = live(one, others=[two])
    running.until(ResultOut, count=5)
    running.say(Swap(token="there", model=two, choices=running.choices))
    running.until(Swapped, token="there")
    running.say(Revert(token="back"))
    back = running.until(Swapped, token="back")
    assert (back.model.name, back.load_ms) == ("one", 0.0)
    running.say(Swap(token="again", model=two, choices=running.choices))
    running.until(Swapped, token="again")
    running.say(Keep())
    running.say(Revert(token="late"))
    assert running.until(SwapFailed).code == "nothing_held"
    running.until(ResultOut, count=5)
    assert running.results()[-1]["model"]["name"] == "two"


def test_second_stages_and_all_cameras_go_on(live, tmp_path):
    labels = ["cat", "dog", "owl", "cow"]
    cats = model_folder(tmp_path / "cats", made_box(0), name="cats", labels=labels)
    dogs = model_folder(tmp_path / "dogs", made_box(1), name="dogs", labels=labels)
    breed = model(model_folder(tmp_path / "breed", made_classifier(3), name="breed"))
    then = (SecondStage(model="breeds"),)
    first, other = model(cats, then=then), model(dogs, then=then)
    cameras = tuple(
        CameraConfig(name=name, source="synthetic", fps=15.0) for name in ("door", "yard")
    )
    running = live(first, others=[other], cameras=cameras, second={"breeds": breed})
    running.until(ResultOut, count=20)
    running.say(Swap(token="t", model=other, choices=running.choices))
    running.until(Swapped, token="t")
    for camera in ("door", "yard"):
        running.until(ResultOut, count=5, camera=camera)
        results = running.results(camera)
        assert_accounted(results)
        for result in results:
            [found] = result["detections"]
            label = {"cats": "cat", "dogs": "dog"}[result["model"]["name"]]
            assert (found["label"], found["classified_by"]) == (label, "breeds")
            assert found["classes"][0]["class_id"] == 3
            assert result["cascade"][0]["model"]["name"] == "breed"
        assert [result["model"]["name"] for result in results][-1] == "dogs"


def test_a_recurrent_model_begins_anew_for_each_camera_and_goes_on_after_a_revert(live, tmp_path):
    one = model(model_folder(tmp_path / "one", made_recurrent(1.0), name="one"))
    ten = model(model_folder(tmp_path / "ten", made_recurrent(10.0), name="ten"))
    cameras = tuple(
        CameraConfig(name=name, source="synthetic", fps=20.0) for name in ("door", "yard")
    )
    running = live(one, others=[ten], cameras=cameras)
    running.until(ResultOut, count=20)
    running.say(Swap(token="t", model=ten, choices=running.choices))
    running.until(Swapped, token="t")
    running.until(ResultOut, count=10)
    running.say(Revert(token="back"))
    running.until(Swapped, token="back")
    running.until(ResultOut, count=10)
    for camera in ("door", "yard"):
        results = running.results(camera)
        sums = {"one": [], "ten": []}
        for result in results:
            sums[result["model"]["name"]].append(result["tensors"][0]["values"][0])
        for name, step in (("one", 1.0), ("ten", 10.0)):
            assert np.array_equal(sums[name], step * np.arange(1, len(sums[name]) + 1))
        assert_accounted(results)
