"""Thresholds that somebody should know of, each as one entry of the status while it lasts.

A threshold has two limits and two times, so that nothing flaps: it is raised when its value has
been at the first limit for a while, and ends when it has been back inside the second one for a
while. What nobody can read any more ends after `FORGET_S`, as it is not known either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.contract.payloads import Problem

FORGET_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When to speak up, and what to say; a `release` below the `limit` makes it an upper limit."""

    code: str
    message: str
    remedy: str
    unit: str
    limit: float
    release: float
    raise_after_s: float
    end_after_s: float

    def is_over(self, value: float) -> bool:
        """Return whether a value is at the limit or beyond."""
        return value >= self.limit if self.release <= self.limit else value <= self.limit

    def is_calm(self, value: float) -> bool:
        """Return whether a value is well back inside."""
        return value < self.release if self.release <= self.limit else value > self.release


@dataclass(frozen=True, slots=True)
class Observation:
    """A value of now, and the rule that it is held against; None: unknown at this moment."""

    rule: Rule
    value: float | None


@dataclass(slots=True)
class _Course:
    """How one threshold fares; all times monotonic seconds."""

    rule: Rule
    value: float | None = None  # the last one known
    over_since: float | None = None
    calm_since: float | None = None
    known_at: float = 0.0
    raised_since: float | None = None

    def follow(self, observation: Observation, now: float) -> None:
        self.rule = observation.rule
        value = observation.value
        if value is None:
            if now - self.known_at > FORGET_S:
                self.raised_since = None
            self.over_since = self.calm_since = None
            return
        self.value, self.known_at = value, now
        self.over_since = _since(self.over_since, now, self.rule.is_over(value))
        self.calm_since = _since(self.calm_since, now, self.rule.is_calm(value))
        if self.raised_since is None:
            if self.over_since is not None and now - self.over_since >= self.rule.raise_after_s:
                self.raised_since = self.over_since
        elif self.calm_since is not None and now - self.calm_since >= self.rule.end_after_s:
            self.raised_since = None


def _since(since: float | None, now: float, holds: bool) -> float | None:
    if not holds:
        return None
    return now if since is None else since


@dataclass(slots=True)
class Health:
    """Follows thresholds; the control process's main thread owns it."""

    clock: Callable[[], float]  # Unix seconds
    _courses: dict[str, _Course] = field(default_factory=dict)
    _raised: tuple[str, ...] = ()

    def follow(self, observations: Iterable[Observation], now: float) -> bool:
        """Take over the values of one look; return whether something was raised or has ended.

        What is not among the observations counts as unknown.
        """
        there = {one.rule.code: one for one in observations}
        for code, observation in there.items():
            self._courses.setdefault(code, _Course(observation.rule)).follow(observation, now)
        for code in list(self._courses):
            if code not in there:
                course = self._courses[code]
                course.follow(Observation(course.rule, None), now)
                if course.raised_since is None:
                    del self._courses[code]
        raised = tuple(
            sorted(code for code, one in self._courses.items() if one.raised_since is not None)
        )
        has_changed, self._raised = raised != self._raised, raised
        return has_changed

    def problems(self, now: float) -> list[Problem]:
        """Return what is over its limit, with the values last known."""
        # `since` is worked out anew each time, so that it is right after the clock was set.
        shift_s = self.clock() - now
        return [
            Problem(
                code=code,
                message=course.rule.message,
                since=round(course.raised_since + shift_s, 3),
                value=course.value,
                limit=course.rule.limit,
                unit=course.rule.unit,
                remedy=course.rule.remedy,
            )
            for code, course in sorted(self._courses.items())
            if course.raised_since is not None
        ]
