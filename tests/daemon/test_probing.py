"""Probes of several accelerators: one that stays away does not keep another from coming back."""

import pytest

from agent.config import ModelConfig
from agent.daemon import probing
from agent.daemon.probing import AcceleratorProbes


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
            raise AssertionError("nothing is to be ended")

    monkeypatch.setattr(probing, "AcceleratorProbe", Scripted)
    probes = AcceleratorProbes([ModelConfig(path=answer) for answer in answers], lambda _: None)
    said = None
    for _ in range(10):
        said = probes.poll()
        if said is not None:
            break
    assert said == outcome
