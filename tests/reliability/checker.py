"""What was put against what a subscriber heard: losses, order, repeats, and what gaps name.

Pure. The producer's log is written before each `put`, so a record in it may at worst never have
reached the outbox; it can never be missing from it. A record is known by (stream, seq), and by
the digest of its payload. The verdicts are those of the contract: at least once, in order per
stream, every number that a subscriber misses named by a gap message.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from agent.contract.payloads import GapReason

Key: TypeAlias = tuple[str, int]  # stream, seq

# What a sudden end (power cut, kill -9) may take with it: records younger than this.
LOSS_WINDOW_S = 1.0
SHOWN = 3  # examples of each kind in a sentence


@dataclass(frozen=True, slots=True)
class Put:
    """A record as it was about to be put; `at` is monotonic time in seconds."""

    stream: str
    seq: int
    digest: str
    at: float

    @property
    def key(self) -> Key:
        """Return what identifies it."""
        return (self.stream, self.seq)


@dataclass(frozen=True, slots=True)
class Heard:
    """A record as a subscriber got it, in order of arrival; `at` is monotonic time in seconds."""

    stream: str
    seq: int
    digest: str
    at: float = 0.0

    @property
    def key(self) -> Key:
        """Return what identifies it."""
        return (self.stream, self.seq)


@dataclass(frozen=True, slots=True)
class Named:
    """A gap message."""

    stream: str
    from_seq: int
    to_seq: int
    reason: GapReason
    count: int | None


@dataclass(slots=True)
class Findings:
    """What the three logs say together."""

    produced: int = 0
    received: int = 0  # distinct
    duplicates: int = 0  # deliveries of what had come before, payload and all
    lost: list[Key] = field(default_factory=list)  # put, and never heard
    in_window: list[Key] = field(default_factory=list)  # of those: put just before a sudden end
    named: list[Key] = field(default_factory=list)  # of those lost: inside a gap message
    unnamed: list[Key] = field(default_factory=list)  # a number below the last that nothing names
    reordered: list[Key] = field(default_factory=list)  # first heard after a later one
    wrong: list[Key] = field(default_factory=list)  # heard with a payload that was never put
    reused: list[Key] = field(default_factory=list)  # one number for two payloads
    miscounted: list[Named] = field(default_factory=list)  # `count` is not what the range holds
    named_but_heard: int = 0

    def violations(self, may_give_up: Iterable[GapReason] = ()) -> list[str]:
        """Return what breaks the contract, as sentences.

        Args:
            may_give_up: reasons for which this scenario allows records to be given up.
        """
        allowed = {key for key, reasons in self.named_for.items() if reasons & set(may_give_up)}
        window = set(self.in_window)
        lost = [key for key in self.lost if key not in allowed and key not in window]
        found = (
            ("lost outside the loss window", lost),
            ("missing and named by no gap", self.unnamed),
            ("out of order", self.reordered),
            ("with a payload that was never put", self.wrong),
            ("numbers used twice", self.reused),
            ("gaps with a wrong count", self.miscounted),
        )
        return [f"{len(what)} {words}: {_examples(what)}" for words, what in found if what]

    # reasons for which each lost record was named
    named_for: dict[Key, set[GapReason]] = field(default_factory=dict)


def check(
    puts: Sequence[Put],
    heard: Sequence[Heard],
    gaps: Sequence[Named] = (),
    *,
    sudden_ends: Sequence[float] = (),
    window_s: float = LOSS_WINDOW_S,
) -> Findings:
    """Compare the logs after everything that can be delivered has been.

    Args:
        puts: the producer's log over all its runs, in order.
        heard: the subscriber's log, in order of arrival.
        gaps: the gap messages the subscriber got.
        sudden_ends: monotonic times at which the producer was killed, in seconds.
        window_s: how much a sudden end may take with it, in seconds.
    """
    findings = Findings()
    payloads = _payloads(puts, findings)
    first_heard = _deliveries(heard, payloads, findings)
    names = _Names(gaps)
    put_at = {put.key: put.at for put in puts}
    findings.produced = len(put_at)
    findings.received = len(first_heard.keys() & put_at.keys())
    findings.miscounted = [gap for gap in gaps if not _counts_right(gap)]
    for key, at in put_at.items():
        if key in first_heard:
            findings.named_but_heard += bool(names.reasons(key))
            continue
        findings.lost.append(key)
        if any(end - window_s <= at <= end for end in sudden_ends):
            findings.in_window.append(key)
        if reasons := names.reasons(key):
            findings.named.append(key)
            findings.named_for[key] = reasons
    _find_unnamed(put_at, first_heard, names, findings)
    return findings


def _payloads(puts: Sequence[Put], findings: Findings) -> dict[Key, set[str]]:
    payloads: dict[Key, set[str]] = defaultdict(set)
    for put in puts:
        payloads[put.key].add(put.digest)
    findings.reused = [key for key, digests in payloads.items() if len(digests) > 1]
    return payloads


def _deliveries(
    heard: Sequence[Heard], payloads: dict[Key, set[str]], findings: Findings
) -> dict[Key, float]:
    """Return when each record was heard first; repeats, order and payloads go to the findings."""
    first_heard: dict[Key, float] = {}
    highest: dict[str, int] = {}
    for one in heard:
        if one.digest not in payloads.get(one.key, ()):
            findings.wrong.append(one.key)
            continue
        if one.key in first_heard:
            # A record may come again after a reconnect, behind later ones: its number tells.
            findings.duplicates += 1
            continue
        first_heard[one.key] = one.at
        if one.seq < highest.get(one.stream, 0):
            findings.reordered.append(one.key)
        highest[one.stream] = max(one.seq, highest.get(one.stream, 0))
    return first_heard


def _find_unnamed(
    put_at: dict[Key, float], first_heard: dict[Key, float], names: _Names, findings: Findings
) -> None:
    """Walk each stream from 1 to its last number, as a subscriber who keeps count would."""
    last: dict[str, int] = {}
    for stream, seq in (*put_at, *first_heard):
        last[stream] = max(seq, last.get(stream, 0))
    for stream, end in last.items():
        for seq in range(1, end + 1):
            key = (stream, seq)
            if key not in first_heard and not names.reasons(key):
                findings.unnamed.append(key)


class _Names:
    """Which gap messages name a record."""

    def __init__(self, gaps: Sequence[Named]) -> None:
        self._by_stream: dict[str, list[Named]] = defaultdict(list)
        # The same range may come twice, as any message may.
        for gap in dict.fromkeys(gaps):
            self._by_stream[gap.stream].append(gap)

    def reasons(self, key: Key) -> set[GapReason]:
        stream, seq = key
        return {
            gap.reason
            for gap in self._by_stream.get(stream, ())
            if gap.from_seq <= seq <= gap.to_seq
        }


def _counts_right(gap: Named) -> bool:
    """Return whether `count` is what the contract says: unknown for a restart, else the range."""
    if gap.to_seq < gap.from_seq or gap.from_seq < 1:
        return False
    return gap.count == (None if gap.reason == "restart" else gap.to_seq - gap.from_seq + 1)


def _examples(what: Sequence[object]) -> str:
    shown = ", ".join(str(one) for one in what[:SHOWN])
    return shown + (", …" if len(what) > SHOWN else "")
