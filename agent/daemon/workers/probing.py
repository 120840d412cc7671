"""Accelerators are tried in processes of their own, which may abort or hang as they like."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.config import ModelConfig
from agent.daemon.workers.failover import Failover
from agent.daemon.workers.killed import KilledProcesses
from agent.daemon.workers.listener import Probe
from agent.link import Learned
from agent.trial_words import NO_ANSWER, PROBE_INVOKES, Trial, TrialRequest, start_trial

log = logging.getLogger(__name__)


@dataclass(slots=True)
class ProbeWatch:
    """Probes an engine's resting accelerator when it is time."""

    start: Callable[[tuple[str, ...]], Probe]  # of models by name in [models]
    failover: Failover
    killed: KilledProcesses
    _probe: Probe | None = None

    def is_back(self, now: float) -> bool:
        """Look how it fares; return whether the accelerator can be used again."""
        if self._probe is None:
            # One that tried it and is stuck would have another one get stuck beside it.
            if self.failover.is_probe_due(now) and not self.killed.pids:
                self._probe = self.start(self.failover.resting)
            return False
        failure = self._probe.poll()
        if failure is None:
            return False
        self.end()
        log.info("accelerator probed wanted=%s failure=%s", self.failover.wanted, failure or "none")
        return self.failover.on_probe(failure, now)

    def end(self) -> None:
        """Stop trying, without waiting."""
        if self._probe is not None:
            for process in self._probe.end():
                self.killed.kill(process)
            self._probe = None


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
        trial = self._trial
        if trial is None:
            return self._failure
        if time.monotonic() > trial.ends_at and trial.process.poll() is None:
            # `Trial.poll` would kill it and wait: here, engines would wait with it. What a driver
            # holds in the kernel may take any time; `end` hands it over.
            limit_s, doing = (
                trial.request.limit_s,
                "".join(f"; it was {at}" for at in trial.heard[-1:]),
            )
            return f"could not be tried within {limit_s:g} s{doing}"
        answer = trial.poll()
        if answer is None:
            return None
        self._trial = None
        self._failure = answer.refused or ""
        if answer.choice is not None:
            self._learn(Learned(key=answer.key, choice=answer.choice))
        elif not self._failure:
            self._failure = NO_ANSWER
        return self._failure

    def end(self) -> list[subprocess.Popen[bytes]]:
        """Stop trying, without waiting; return the process that is to be killed, if any."""
        trial, self._trial = self._trial, None
        if trial is None:
            return []
        trial.answers.close()
        trial.complaints.close()
        return [trial.process]


class AcceleratorProbes:
    """The accelerators of several models, one after the other, until one of them works.

    One that stays away must not keep another from coming back.
    """

    def __init__(self, models: Sequence[ModelConfig], learn: Callable[[Learned], None]) -> None:
        self._left = list(models)
        self._learn = learn
        self._now: AcceleratorProbe | None = None
        self._late: list[subprocess.Popen[bytes]] = []

    def poll(self) -> str | None:
        """Return as `AcceleratorProbe` does, of all."""
        if self._now is None:
            if not self._left:
                return ""
            self._now = AcceleratorProbe(self._left.pop(0), self._learn)
        answer = self._now.poll()
        if answer and self._left:
            self._kill_late(self._now.end())
            self._now = None
            return None
        return answer

    def end(self) -> list[subprocess.Popen[bytes]]:
        """Stop trying, as `AcceleratorProbe` does, of all."""
        if self._now is not None:
            self._late += self._now.end()
            self._now = None
        return self._late

    def _kill_late(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Kill before the next one starts, as they may share one accelerator."""
        for process in processes:
            if process.poll() is None:
                process.kill()
        self._late += processes
