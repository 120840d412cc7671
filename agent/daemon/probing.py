"""One try of an accelerator in a process of its own, which may abort or hang as it likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent.config import ModelConfig
from agent.link import Learned
from agent.trial_words import NO_ANSWER, PROBE_INVOKES, Trial, TrialRequest, start_trial


class AcceleratorProbe:
    """A supervisor's `Probe` of one model.

    `learn` hears of a success before `poll` tells it: the worker that then takes the accelerator
    need not have it tried once more, while nobody looks at the cameras.
    """

    def __init__(self, model: ModelConfig, learn: Callable[[Learned], None]) -> None:
        self._learn = learn
        self._failure = ""
        self._trial: Trial | None = None
        try:
            self._trial = start_trial(TrialRequest(model=model, probe=PROBE_INVOKES))
        except OSError as error:
            self._failure = f"no process can be started: {error.strerror}"

    def poll(self) -> str | None:
        """Return why it does not work, empty when it does, None while that is being tried."""
        if self._trial is None:
            return self._failure
        answer = self._trial.poll()
        if answer is None:
            return None
        self._trial = None
        self._failure = answer.refused or ""
        if answer.choice is not None:
            self._learn(Learned(key=answer.key, choice=answer.choice))
        elif not self._failure:
            self._failure = NO_ANSWER
        return self._failure

    def end(self) -> None:
        """Stop trying."""
        if self._trial is not None:
            self._trial.end()
            self._trial = None


class AcceleratorProbes:
    """The accelerators of several models, one after the other, until one of them works.

    One that stays away must not keep another from coming back.
    """

    def __init__(self, models: Sequence[ModelConfig], learn: Callable[[Learned], None]) -> None:
        self._left = list(models)
        self._learn = learn
        self._now: AcceleratorProbe | None = None

    def poll(self) -> str | None:
        """Return as `AcceleratorProbe` does, of all."""
        if self._now is None:
            if not self._left:
                return ""
            self._now = AcceleratorProbe(self._left.pop(0), self._learn)
        answer = self._now.poll()
        if answer and self._left:
            self._now = None
            return None
        return answer

    def end(self) -> None:
        """Stop trying."""
        if self._now is not None:
            self._now.end()
