"""Any sequence of calls against a slow, obvious model: in memory, and over restarts and kills."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from outbox_bench import STREAMS, TELEMETRY, Bench, is_genuine, named, record

from agent.daemon.outbox import Outbox, size_bytes

ALL = (*STREAMS, TELEMETRY)
LIMITS = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Model:
    """Per stream what waits and what flies; overall what was lost."""

    def __init__(self) -> None:
        self.next_seq = dict.fromkeys(ALL, 1)
        self.unsent: dict[str, list[int]] = {stream: [] for stream in ALL}
        self.in_flight: dict[int, tuple[str, int]] = {}
        self.put = self.published = 0


class MemoryMachine(RuleBasedStateMachine):
    """What `Outbox` promises without a disk, exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = 6 * size_bytes(record(1, size=100))
        self.outbox = Outbox(self.bound)
        self.model = Model()
        self.sizes: dict[tuple[str, int], int] = {}
        self.order: list[tuple[str, int]] = []
        self.lost: set[tuple[str, int]] = set()
        self.noted: list[tuple[str, int]] = []

    @rule(stream=st.sampled_from(ALL), size=st.integers(30, 1500))
    def put(self, stream: str, size: int) -> None:
        model = self.model
        seq = model.next_seq[stream]
        entry = record(seq, stream=stream, size=size)
        model.next_seq[stream] += 1
        model.put += 1
        self.outbox.put(entry)
        if size_bytes(entry) > self.bound:
            self.lost.add((stream, seq))
            return
        self.sizes[stream, seq] = size_bytes(entry)
        model.unsent[stream].append(seq)
        self.order.append((stream, seq))
        while sum(self.sizes.values()) > self.bound and any(model.unsent.values()):
            oldest = min(
                ((one, numbers[0]) for one, numbers in model.unsent.items() if numbers),
                key=lambda key: (key[0] != TELEMETRY, self.order.index(key)),
            )
            model.unsent[oldest[0]].pop(0)
            del self.sizes[oldest]
            self.lost.add(oldest)

    @rule(limit=st.integers(0, 4))
    def take(self, limit: int) -> None:
        model = self.model
        waiting = sum(map(len, model.unsent.values()))
        taken = self.outbox.take(limit)
        assert len(taken) == min(limit, waiting)
        for record_id, entry in taken:
            assert model.unsent[entry.stream].pop(0) == entry.seq
            model.in_flight[record_id] = (entry.stream, entry.seq)

    @precondition(lambda self: self.model.in_flight)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        record_id = data.draw(st.sampled_from(sorted(self.model.in_flight)))
        self.outbox.acknowledged(record_id)
        del self.sizes[self.model.in_flight.pop(record_id)]
        self.model.published += 1

    @precondition(lambda self: self.model.in_flight)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        record_id = data.draw(st.sampled_from(sorted(self.model.in_flight)))
        self.outbox.refused(record_id, "refused")
        key = self.model.in_flight.pop(record_id)
        del self.sizes[key]
        self.lost.add(key)

    @rule()
    def lose_connection(self) -> None:
        self.outbox.requeue_in_flight()
        for stream, seq in reversed(self.model.in_flight.values()):
            self.model.unsent[stream].insert(0, seq)
        self.model.in_flight.clear()

    @rule()
    def take_gaps(self) -> None:
        for note in self.outbox.take_gaps():
            self.noted += named([note])
        assert sorted(self.noted) == sorted(self.lost)

    @invariant()
    def accounts_are_exact(self) -> None:
        outbox, model = self.outbox, self.model
        assert outbox.waiting == len(self.sizes)
        assert outbox.waiting_bytes == sum(self.sizes.values())
        assert (outbox.published, outbox.dropped) == (model.published, len(self.lost))
        assert model.put == outbox.published + outbox.dropped + outbox.waiting


MemoryMachine.TestCase.settings = LIMITS
TestMemoryMachine = MemoryMachine.TestCase


class DiskMachine(RuleBasedStateMachine):
    """What it promises over clean and sudden ends: order, accounts, and a name for every loss."""

    def __init__(self) -> None:
        super().__init__()
        self._temporary = tempfile.TemporaryDirectory()
        folder = Path(self._temporary.name) / "state"
        folder.mkdir()
        self.bench = Bench(folder, max_bytes=30_000)
        self.ever: set[tuple[str, int]] = set()
        self.got: set[tuple[str, int]] = set()
        self.told: set[tuple[str, int]] = set()
        self._begin()

    def _begin(self) -> None:
        self.in_flight: dict[int, tuple[str, int]] = {}
        self.taken_up_to = dict.fromkeys(ALL, 0)
        self.put_count = 0
        self.next_seq = {stream: self.bench.outbox.first_seq(stream) for stream in ALL}
        for stream, seq in self.next_seq.items():
            assert seq > max((used for one, used in self.ever if one == stream), default=0)

    @rule(stream=st.sampled_from(ALL), count=st.integers(1, 12), size=st.integers(30, 2500))
    def put(self, stream: str, count: int, size: int) -> None:
        for _ in range(count):
            seq = self.next_seq[stream]
            self.next_seq[stream] += 1
            self.put_count += 1
            self.ever.add((stream, seq))
            self.bench.put(seq, stream=stream, size=size)

    @rule(size=st.integers(29_000, 60_000))
    def put_something_huge(self, size: int) -> None:
        self.put(STREAMS[0], 1, size)

    @rule(seconds=st.sampled_from((0.1, 0.5, 3.0)))
    def let_time_pass(self, seconds: float) -> None:
        self.bench.turn(seconds)

    @rule(is_online=st.booleans())
    def connection_changes(self, is_online: bool) -> None:
        self.bench.outbox.set_online(is_online)

    @rule(limit=st.integers(0, 20))
    def take(self, limit: int) -> None:
        for record_id, entry in self.bench.outbox.take(limit):
            assert is_genuine(entry)
            assert entry.seq > self.taken_up_to[entry.stream]
            self.taken_up_to[entry.stream] = entry.seq
            self.in_flight[record_id] = (entry.stream, entry.seq)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), is_refused=st.booleans())
    def answer(self, data: st.DataObject, is_refused: bool) -> None:
        record_id = data.draw(st.sampled_from(sorted(self.in_flight)))
        key = self.in_flight.pop(record_id)
        if is_refused:
            self.bench.outbox.refused(record_id, "refused")
        else:
            self.bench.outbox.acknowledged(record_id)
            self.got.add(key)

    @rule()
    def answer_all(self) -> None:
        for record_id, key in self.in_flight.items():
            self.bench.outbox.acknowledged(record_id)
            self.got.add(key)
        self.in_flight.clear()

    @rule()
    def lose_connection(self) -> None:
        self.bench.outbox.requeue_in_flight()
        for stream, seq in self.in_flight.values():
            self.taken_up_to[stream] = min(self.taken_up_to[stream], seq - 1)
        self.in_flight.clear()

    @rule(are_told=st.booleans())
    def take_gaps(self, are_told: bool) -> None:
        for note in self.bench.outbox.take_gaps():
            assert note.reason != "damaged"
            if are_told:
                self.bench.outbox.gap_told(note)
                self.told |= named([note])

    @rule()
    def restart(self) -> None:
        self.bench.reopen()
        self._begin()

    @rule()
    def kill(self) -> None:
        self.bench.kill()
        self._begin()

    @invariant()
    def accounts_are_exact(self) -> None:
        outbox = self.bench.outbox
        assert self.put_count + outbox.found == outbox.published + outbox.dropped + outbox.waiting
        assert 0 <= outbox.on_disk <= outbox.waiting
        assert 0 <= outbox.on_disk_bytes <= outbox.waiting_bytes
        assert outbox.alarm is None
        assert (outbox.waiting == 0) == (outbox.waiting_bytes == 0)

    def teardown(self) -> None:
        # Notes that were handed out and never told come again after a restart.
        self.bench.kill()
        for entry in self.bench.drain():
            self.got.add((entry.stream, entry.seq))
        self.told |= named(self.bench.outbox.take_gaps())
        missing = self.ever - self.got - self.told
        self.bench.close()
        self._temporary.cleanup()
        assert missing == set()


# Each step may write to a real disk, so there are fewer; MACHINE_EXAMPLES asks for more.
DiskMachine.TestCase.settings = settings(
    LIMITS, max_examples=int(os.environ.get("MACHINE_EXAMPLES", "8"))
)
TestDiskMachine = DiskMachine.TestCase
