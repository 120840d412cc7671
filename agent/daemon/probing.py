"""One try of an accelerator in a process of its own, which may abort or hang as it likes."""

from __future__ import annotations

from agent.config import ModelConfig
from agent.trial_words import PROBE_INVOKES, Trial, TrialRequest, start_trial


class AcceleratorProbe:
    """A supervisor's `Probe`."""

    def __init__(self, model: ModelConfig) -> None:
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
        return None if answer is None else answer.refused or ""

    def end(self) -> None:
        """Stop trying."""
        if self._trial is not None:
            self._trial.end()
            self._trial = None
