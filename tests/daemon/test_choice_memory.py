"""What workers learn and what `edge-agent model tune` finds out live in one file, side by side."""

import threading

import msgspec

from agent.choices import MAX_CHOICES, Candidate, Choice, add_choices, read_choices
from agent.config import ModelConfig
from agent.daemon.workers import choice_memory, probing
from agent.daemon.workers.choice_memory import ChoiceMemory
from agent.daemon.workers.probing import AcceleratorProbe
from agent.link import Learned
from agent.trial_words import TrialAnswer

OURS, THEIRS = "a" * 64, "b" * 64


def choice(at, **changes):
    usual = {"runtime": "litert", "xnnpack": True, "threads": 2, "invoke_ms": 12.5}
    return Choice(**{**usual, **changes}, candidates=(), measured_at=at)


def test_what_was_tuned_meanwhile_is_not_lost(tmp_path):
    path = tmp_path / "choices.json"
    memory = ChoiceMemory(path)
    add_choices(path, {THEIRS: choice(10.0)})
    memory.learn(Learned(key=OURS, choice=choice(20.0)))
    assert memory.flush(60)
    assert read_choices(path) == {OURS: choice(20.0), THEIRS: choice(10.0)}
    assert memory.choices == read_choices(path)  # for the next worker


def test_newer_choice_of_the_same_model_stands(tmp_path):
    path = tmp_path / "choices.json"
    add_choices(path, {THEIRS: choice(1.0)})
    memory = ChoiceMemory(path)
    tuned = choice(30.0, threads=4)
    add_choices(path, {THEIRS: tuned})
    memory.learn(Learned(key=OURS, choice=choice(20.0)))
    assert memory.flush(60)
    assert read_choices(path)[THEIRS] == memory.choices[THEIRS] == tuned


def test_memory_is_bounded_as_the_file_is(tmp_path, caplog):
    (tmp_path / "file").touch()
    for path in (tmp_path / "choices.json", tmp_path / "file" / "choices.json"):
        memory = ChoiceMemory(path)
        for at in range(MAX_CHOICES + 5):
            memory.learn(Learned(key=f"{at:064x}", choice=choice(float(at))))
            assert memory.flush(60)
        assert len(memory.choices) == len(memory.short) == MAX_CHOICES
        assert f"{4:064x}" not in memory.choices
        assert f"{MAX_CHOICES + 4:064x}" in memory.choices
    assert caplog.text.count("choices not kept") == 1  # said once, of the disk that takes nothing


def test_workers_are_told_the_choice_alone(tmp_path):
    tried = Candidate(runtime="litert 1", xnnpack=True, threads=1, invoke_ms=1.0)
    memory = ChoiceMemory(tmp_path / "choices.json")
    learned = msgspec.structs.replace(choice(1.0), candidates=(tried,))
    memory.learn(Learned(key=OURS, choice=learned))
    assert memory.flush(60)
    assert memory.short == {OURS: choice(1.0)}


class Tried:
    """A trial that has an answer at its second poll."""

    ends_at = float("inf")

    def __init__(self, answer):
        self._answers = [None, answer]

    def poll(self):
        return self._answers.pop(0)

    def end(self):
        raise AssertionError("it has ended by itself")


def probed(monkeypatch, answer):
    events = []
    monkeypatch.setattr(probing, "start_trial", lambda request: Tried(answer))
    probe = AcceleratorProbe(ModelConfig(), events.append)
    assert probe.poll() is None
    assert not events
    events.append(probe.poll())
    assert probe.poll() == events[-1]  # asked again, it says the same
    probe.end()
    return events


def test_probe_that_succeeds_is_learned_before_it_is_told(monkeypatch):
    answer = TrialAnswer(key=OURS, choice=choice(1.0))
    assert probed(monkeypatch, answer) == [Learned(key=OURS, choice=choice(1.0)), ""]


def test_probe_that_fails_teaches_nothing(monkeypatch):
    assert probed(monkeypatch, TrialAnswer(refused="it is asleep")) == ["it is asleep"]
    assert probed(monkeypatch, TrialAnswer()) == ["gave no answer"]


def test_a_disk_that_hangs_does_not_hold_up_whoever_learns(tmp_path, monkeypatch):
    answers = threading.Event()
    slow = choice_memory.add_choices
    monkeypatch.setattr(
        choice_memory, "add_choices", lambda *args: (answers.wait(60), slow(*args))[1]
    )
    memory = ChoiceMemory(tmp_path / "choices.json")
    for at in range(3):
        memory.learn(Learned(key=f"{at:064x}", choice=choice(float(at))))
    assert len(memory.short) == 3
    assert not memory.flush(0.01)
    answers.set()
    assert memory.flush(60)
    assert len(ChoiceMemory(tmp_path / "choices.json").short) == 3
