"""Which labels are counted for each camera: those of the configuration, then those seen.

They are remembered over restarts, so that what is announced somewhere does not come and go with
what happens to pass by. One owner: the control process's main thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Of one camera; and of all together, so that what announces them stays below some 130 KB: a label
# takes about a thousand bytes there.
MOST_LABELS = 32
MOST_OF_ALL = 128
MAX_LABEL = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What the configuration of a camera's model says of labels."""

    labels: tuple[str, ...] = ()
    only: bool = False
    denied: frozenset[str] = frozenset()

    def allows(self, label: str) -> bool:
        """Return whether the model's results may have this label."""
        is_listed = not self.only or label in self.labels
        return is_listed and label not in self.denied and len(label) <= MAX_LABEL


class LabelBook:
    """See the module's docstring."""

    def __init__(
        self, listed: Mapping[str, Listed], remembered: Mapping[str, Iterable[str]]
    ) -> None:
        """Take each camera's settings, and what an earlier run knew."""
        self._listed = dict(listed)
        self._most = max(1, min(MOST_LABELS, MOST_OF_ALL // max(1, len(listed))))
        self._seen: dict[str, set[str]] = {camera: set() for camera in listed}  # in this run
        self._labels: dict[str, tuple[str, ...]] = {}
        for camera, settings in listed.items():
            known = dict.fromkeys((*settings.labels, *remembered.get(camera, ())))
            allowed = [label for label in known if settings.allows(label)]
            self._labels[camera] = tuple(allowed[: self._most])

    def of(self, camera: str) -> tuple[str, ...]:
        """Return a camera's labels."""
        return self._labels[camera]

    def all(self) -> dict[str, list[str]]:
        """Return every camera's labels, to be remembered."""
        return {camera: list(labels) for camera, labels in self._labels.items()}

    def see(self, camera: str, labels: Iterable[str]) -> None:
        """Learn what a camera saw; what nobody has seen in this run makes room for it."""
        for label in labels:
            if label not in self._seen[camera] and self._listed[camera].allows(label):
                self._seen[camera].add(label)
                if label not in self._labels[camera]:
                    self._add(camera, label)

    def _add(self, camera: str, label: str) -> None:
        kept = self._labels[camera]
        if len(kept) >= self._most:
            stay = self._seen[camera].union(self._listed[camera].labels)
            goes = next((one for one in kept if one not in stay), None)
            if goes is None:
                self._seen[camera].discard(label)
                return
            kept = tuple(one for one in kept if one != goes)
        self._labels[camera] = (*kept, label)
