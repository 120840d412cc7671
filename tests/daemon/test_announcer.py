"""The announcer: says what there is, once more when asked, and takes back what is gone."""

from __future__ import annotations

import json
import random
import threading
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from watching import FAST, eventually, gap_record

from agent.config import MqttConfig
from agent.contract.home_assistant_board import BoardFacts
from agent.contract.topics import Topics
from agent.daemon import announced as announced_module
from agent.daemon.announced import ANNOUNCED_FILE, Announced, AnnouncedMemory
from agent.daemon.announcer import (
    AFTER_BIRTH_S,
    BIRTH_TOPIC,
    EVERY_S,
    SETTLED_S,
    Announcer,
)
from agent.daemon.label_book import MAX_LABEL, MOST_LABELS, MOST_OF_ALL, LabelBook, Listed
from agent.daemon.mqtt import Connection, MqttLink
from agent.daemon.outbox import Outbox

TOPIC = "homeassistant/device/d/config"
NAMES = Topics("edge", "d")
UP = Connection(connected=True, since=0.0)
DOWN = Connection(connected=False, since=0.0)
NOTHING_LISTED = Listed()


@dataclass
class Broker:
    """Keeps what the announcer does to the link."""

    connection: Connection = UP
    retained: list[tuple[str, bytes]] = field(default_factory=list)
    subscribers: dict[str, object] = field(default_factory=dict)

    def retain(self, topic, payload):
        self.retained.append((topic, payload))

    def subscribe(self, topic_filter, qos, on_message):
        self.subscribers[topic_filter] = on_message

    @property
    def last(self):
        topic, payload = self.retained[-1]
        assert topic == TOPIC
        return json.loads(payload)["cmps"]


@dataclass
class Run:
    """One run of the daemon."""

    memory: AnnouncedMemory
    cameras: tuple[str, ...] = ("door",)
    prefix: str = "homeassistant"
    device: str = "d"
    engines: tuple[str, ...] = ("",)
    listed: Listed = NOTHING_LISTED
    broker: Broker = field(default_factory=Broker)
    now: float = 1000.0

    def __post_init__(self):
        self.labels = LabelBook(dict.fromkeys(self.cameras, self.listed), self.memory.stored.labels)
        self.announcer = Announcer(
            prefix=self.prefix, names=Topics("edge", self.device), version="1", interval_s=10.0,
            engines=self.engines, cameras=self.cameras, labels=self.labels, memory=self.memory,
            broker=self.broker, jitter=random.Random(1).uniform,
        )  # fmt: skip
        self.check()

    def check(self, after_s=0.0):
        self.now += after_s
        return self.announcer.check(self.now)


@pytest.fixture
def memory(tmp_path):
    return AnnouncedMemory(tmp_path / ANNOUNCED_FILE)


def test_it_is_said_at_once_and_not_again_without_a_change(memory):
    run = Run(memory)
    assert "camera.door.count" in run.broker.last
    for _ in range(100):
        assert run.check(1.0) > 0
    assert len(run.broker.retained) == 1


def test_new_labels_are_said_together_and_are_known_to_the_next_run(memory, tmp_path):
    run = Run(memory)
    for number in range(5):
        run.labels.see("door", [f"label{number}"])
        run.check(0.5)
    assert len(run.broker.retained) == 1
    run.check(EVERY_S)
    assert [name for name in run.broker.last if ".count.label" in name] == [
        f"camera.door.count.label{number}" for number in range(5)
    ]
    assert memory.flush(60)
    again = Run(AnnouncedMemory(tmp_path / ANNOUNCED_FILE))
    assert again.broker.last == run.broker.last


def test_it_is_said_again_after_a_birth_but_not_at_once(memory):
    run = Run(memory)
    on_birth = run.broker.subscribers[BIRTH_TOPIC]
    on_birth(BIRTH_TOPIC, b"offline", False)
    on_birth(BIRTH_TOPIC, b"online", True)  # kept by the broker
    run.check(10.0)
    assert len(run.broker.retained) == 1
    on_birth(BIRTH_TOPIC, b"online", False)
    due_s = run.check()
    assert AFTER_BIRTH_S[0] <= due_s <= AFTER_BIRTH_S[1]
    on_birth(BIRTH_TOPIC, b"online\n", False)  # twice in a moment is once
    assert run.check(due_s - 0.01) == pytest.approx(0.01)
    assert len(run.broker.retained) == 1
    run.check(0.02)
    assert run.broker.retained[0] == run.broker.retained[1]
    run.check(100.0)
    assert len(run.broker.retained) == 2


def test_another_prefix_is_used_and_both_births_are_heard(memory):
    run = Run(memory, prefix="ha/disco")
    assert run.broker.retained[0][0] == "ha/disco/device/d/config"
    assert sorted(run.broker.subscribers) == ["ha/disco/status", BIRTH_TOPIC]


def test_a_camera_that_is_gone_is_taken_back_once(memory, tmp_path):
    Run(memory, cameras=("door", "yard"))
    memory.flush(60)
    run = Run(AnnouncedMemory(tmp_path / ANNOUNCED_FILE), broker=Broker(connection=DOWN))
    assert run.broker.last["camera.yard.count"] == {"p": "sensor"}
    assert run.broker.last["camera.yard.occupancy"] == {"p": "binary_sensor"}
    run.check(10 * SETTLED_S)  # nobody has heard it yet
    run.labels.see("door", ["cat"])
    run.check(EVERY_S)
    assert run.broker.last["camera.yard.count"] == {"p": "sensor"}
    # A run that ends before the broker was there has not said it.
    run.memory.flush(60)
    run = Run(AnnouncedMemory(tmp_path / ANNOUNCED_FILE))
    assert run.broker.last["camera.yard.count"] == {"p": "sensor"}
    run.check(1.0)
    run.check(SETTLED_S - 2.0)
    assert len(run.broker.retained) == 1
    run.check(2.0)
    assert "camera.yard.count" not in run.broker.last
    assert "camera.door.count" in run.broker.last
    run.memory.flush(60)
    run = Run(AnnouncedMemory(tmp_path / ANNOUNCED_FILE))
    assert not [name for name in run.broker.last if "yard" in name]


def test_a_camera_that_comes_back_is_no_longer_taken_back(memory):
    Run(memory, cameras=("door", "yard"))
    Run(memory)
    run = Run(memory, cameras=("door", "yard"))
    assert run.broker.last["camera.yard.count"]["name"] == "yard count"


def test_turned_off_it_removes_what_it_had_announced_and_nothing_else(memory):
    assert Run(memory, prefix="off").broker.retained == []  # nothing was
    Run(memory)
    run = Run(memory, prefix="off")
    assert run.broker.retained == [(TOPIC, b"")]
    assert run.broker.subscribers == {}
    run.labels.see("door", ["cat"])
    run.check(EVERY_S)
    assert memory.stored.topic == ""
    assert memory.stored.labels == {"door": ["cat"]}  # the topic `counts` goes on
    assert Run(memory, prefix="off").broker.retained == []


def test_another_prefix_removes_what_was_under_the_old_one(memory):
    Run(memory)
    run = Run(memory, prefix="ha")
    assert run.broker.retained[0] == (TOPIC, b"")
    assert run.broker.retained[1][0] == "ha/device/d/config"


@pytest.mark.parametrize("prefix", ["off", "homeassistant"])
def test_the_state_of_another_board_removes_nothing_of_it(memory, prefix):
    Run(memory, device="other", cameras=("door", "yard"))
    run = Run(memory, prefix=prefix)
    assert [topic for topic, _ in run.broker.retained] == [TOPIC] * (prefix != "off")
    assert all(json.loads(payload)["cmps"] for _, payload in run.broker.retained)


def test_a_sensor_that_is_seen_is_announced_and_one_of_another_board_taken_back(memory):
    memory.keep(Announced(board=BoardFacts(id="rpi-5", has_fan=True, temps=("cpu",))))
    run = Run(memory)
    assert "fan" in run.broker.last
    run.announcer._board = msgspec.structs.replace(run.announcer._board, has_throttle=True)
    run.check(EVERY_S)
    assert "throttled" in run.broker.last
    run.announcer._board = BoardFacts(id="rpi-4b")
    run.check(EVERY_S)
    assert run.broker.last["fan"] == {"p": "sensor"}
    assert run.broker.last["throttled"] == {"p": "binary_sensor"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"topic": 3}', b"\xff", b'{"components": {"a": 1}}', b"[" * 100_000],
)
def test_a_damaged_memory_is_an_empty_one(tmp_path, content, caplog):
    path = tmp_path / ANNOUNCED_FILE
    path.write_bytes(content)
    assert AnnouncedMemory(path).stored == Announced()
    assert "not known" in caplog.text


def test_a_disk_that_takes_nothing_makes_it_a_memory_of_one_run(tmp_path, caplog):
    memory = AnnouncedMemory(tmp_path / "missing" / ANNOUNCED_FILE)
    for number in range(3):
        memory.keep(Announced(topic=f"{number}"))
        assert memory.flush(60)
    assert memory.stored.topic == "2"
    assert caplog.text.count("not kept") == 1


def test_what_has_not_changed_is_not_written(tmp_path):
    path = tmp_path / ANNOUNCED_FILE
    memory = AnnouncedMemory(path)
    Run(memory)
    memory.flush(60)
    written = path.stat().st_ino
    Run(AnnouncedMemory(path))
    assert path.stat().st_ino == written


def test_a_disk_that_hangs_holds_nobody_up(tmp_path, monkeypatch):
    goes_on = threading.Event()
    written: list[bytes] = []

    def hang(path, content):
        if path.parent == tmp_path:  # the thread of a test before may still write
            goes_on.wait(60)
            written.append(content)

    monkeypatch.setattr(announced_module, "write_durably", hang)
    memory = AnnouncedMemory(tmp_path / ANNOUNCED_FILE)
    for number in range(50):
        memory.keep(Announced(topic=f"{number}"))
    assert not memory.flush(0.01)
    goes_on.set()
    assert memory.flush(60)
    assert len(written) <= 2
    assert msgspec.json.decode(written[-1], type=Announced).topic == "49"


def book(listed=NOTHING_LISTED, remembered=(), cameras=1):
    names = [f"camera{at}" for at in range(cameras)]
    return LabelBook(dict.fromkeys(names, listed), {"camera0": list(remembered)})


def test_labels_of_the_configuration_come_first_and_denied_ones_never():
    known = book(Listed(labels=("cat", "dog"), denied=frozenset({"dog"})), ["bus", "cat", "dog"])
    assert known.of("camera0") == ("cat", "bus")
    known.see("camera0", ["dog", "x" * (MAX_LABEL + 1), "bird"])
    assert known.of("camera0") == ("cat", "bus", "bird")


def test_with_an_allow_list_there_are_no_others():
    known = book(Listed(labels=("cat",), only=True), ["bus"])
    known.see("camera0", ["bird"])
    assert known.of("camera0") == ("cat",)


def test_labels_that_nobody_sees_any_more_make_room():
    old = [f"old{at}" for at in range(MOST_LABELS)]
    known = book(remembered=old)
    known.see("camera0", ["old0", "new"])
    assert known.of("camera0") == ("old0", *old[2:], "new")
    known.see("camera0", [f"new{at}" for at in range(100)])
    assert len(known.of("camera0")) == MOST_LABELS
    assert {"old0", "new"} <= set(known.of("camera0"))


@given(
    cameras=st.integers(1, 20),
    listed=st.lists(st.text(max_size=3), max_size=40, unique=True),
    seen=st.lists(st.text(max_size=3), max_size=100),
)
def test_labels_are_bounded_and_never_twice(cameras, listed, seen):
    known = book(Listed(labels=tuple(listed)), seen[:10], cameras)
    for at in range(cameras):
        for label in seen:
            known.see(f"camera{at}", [label])
        labels = known.of(f"camera{at}")
        assert len(labels) == len(set(labels)) <= MOST_LABELS
    assert sum(map(len, known.all().values())) <= max(MOST_OF_ALL, cameras)


def test_a_real_broker_keeps_it_hears_a_birth_and_lets_it_go(memory, broker, watch):
    def link_of(run_prefix):
        link = MqttLink(
            MqttConfig(url=f"mqtt://127.0.0.1:{broker.port}"), client_id="edge-agent-d",
            availability_topic="edge/d/availability", outbox=Outbox(max_bytes=1 << 20, folder=None),
            gap_record=gap_record, timing=FAST,
        )  # fmt: skip
        run = Run(memory, prefix=run_prefix, broker=link)
        link.start()
        return link, run

    watcher = watch(broker.port)
    link, run = link_of("homeassistant")
    try:
        eventually(lambda: len(watcher.payloads(TOPIC)) == 1)
        eventually(lambda: f"edge-agent-d 1 {BIRTH_TOPIC}" in broker.log.read_text())
        watcher.client.publish(BIRTH_TOPIC, b"online")
        # The clock of the run jumps, so its delay is over at once.
        eventually(lambda: (run.check(AFTER_BIRTH_S[1]), len(watcher.payloads(TOPIC)) == 2)[1])
        assert len(set(watcher.payloads(TOPIC))) == 1
    finally:
        link.stop(2.0)
    link, run = link_of("off")
    try:
        eventually(lambda: watcher.payloads(TOPIC)[-1] == b"")
        connected = link.connection.reconnects
        broker.stop()
        broker.start()
        eventually(lambda: link.connection.reconnects > connected)
        late = watch(broker.port)
        eventually(lambda: late.payloads("edge/d/availability"))
        # Neither is it kept, nor is it taken back again on each connection.
        assert late.payloads(TOPIC) == []
        assert broker.log.read_text().count(TOPIC) == len(watcher.payloads(TOPIC)) * 2
    finally:
        link.stop(2.0)
