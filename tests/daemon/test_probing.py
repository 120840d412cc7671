"""Probes of several accelerators: one that stays away does not keep another from coming back."""

import subprocess
import sys
import time

import pytest

from agent.config import ModelConfig
from agent.daemon.workers import probing
from agent.daemon.workers.probing import AcceleratorProbe, AcceleratorProbes
from agent.trial_words import Trial, TrialRequest, _memory_file


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [([""], ""), (["a"], "a"), (["a", ""], ""), (["", "b"], ""), (["a", "b"], "b"), ([], "")],
)
def test_any_that_works_is_enough(monkeypatch, answers, outcome):
    class Scripted:
        def __init__(self, model, learn):
            self.answers = [None, model.path]

        def poll(self):
            return self.answers.pop(0)

        def end(self):
            return []

    monkeypatch.setattr(probing, "AcceleratorProbe", Scripted)
    probes = AcceleratorProbes([ModelConfig(path=answer) for answer in answers], lambda _: None)
    said = None
    for _ in range(10):
        said = probes.poll()
        if said is not None:
            break
    assert said == outcome


def test_one_that_is_late_is_handed_over_and_not_waited_for(monkeypatch):
    """It may be stuck in a driver, where SIGKILL ends nothing."""

    def start_trial(request):
        return Trial(
            request=request,
            process=subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]),
            answers=_memory_file("answers"),
            complaints=_memory_file("complaints"),
            ends_at=time.monotonic() - 1,
        )

    monkeypatch.setattr(probing, "start_trial", start_trial)
    monkeypatch.setattr(subprocess.Popen, "kill", lambda process: None)
    probe = AcceleratorProbe(ModelConfig(), lambda _: None)
    assert (
        probe.poll() == f"could not be tried within {TrialRequest(model=ModelConfig()).limit_s:g} s"
    )
    [process] = probe.end()
    assert process.poll() is None
    assert probe.end() == []
    monkeypatch.undo()
    process.kill()
    process.wait()
