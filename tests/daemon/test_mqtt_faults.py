"""Errors of our own code, everywhere and again and again: a connection each, and no record."""

from __future__ import annotations

import ctypes
import functools
import gc
import inspect
import itertools
import threading
import time

import pytest
from scripted_broker import ACK, Answer, Connack, publish, suback
from watching import STREAM, WITHIN_S, Watcher, eventually, record

from agent.daemon.mqtt import MqttLink, Timing
from agent.daemon.mqtt import delivery as mqtt_delivery
from agent.daemon.mqtt import session as mqtt_session
from agent.daemon.mqtt import subscriptions as mqtt_subscriptions
from agent.daemon.mqtt.delivery import Delivery
from agent.daemon.mqtt.refusals import Refusals
from agent.daemon.mqtt.session import Session
from agent.daemon.mqtt.subscriptions import Subscriptions
from agent.daemon.outbox import Outbox

AVAILABILITY = "edge/d/availability"
GAP = "edge/d/gap"
TOPIC = f"edge/d/{STREAM}"
YARD = "camera/yard/detections"
AT_CALLS = {1, 2, 5, 9, 14}
QUICK = Timing(
    connect_timeout_s=3.0, retry_first_s=0.005, retry_max_s=0.01, answer_within_s=5.0,
    keep_alive_s=5.0,
)  # fmt: skip
# An error injected into what closes a socket leaves it to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
# Called only where a broker behaves as none does in these tests.
NOT_REACHED = {(Session, "_explain_silence"), (Delivery, "delivered")}


@pytest.fixture(autouse=True)
def collected():
    """Collect what a test left before the next one begins, which is another's."""
    yield
    gc.collect()


class InjectedError(Exception):
    """Raised where nothing expects it."""


def functions(owner):
    """Yield the name of everything of a class that can be called, properties included."""
    for name, member in vars(owner).items():
        if name == "retain" or (name.startswith("__") and name != "__init__"):
            continue
        if inspect.isfunction(member) or isinstance(member, property):
            yield name


EVERYTHING = [
    (owner, name, InjectedError)
    for owner in (Session, Delivery, Refusals, Subscriptions)
    for name in functions(owner)
    if name != "add" and (owner is Session or name != "__init__")
]
# What no `except Exception` holds: the thread ends.
EXITS = [
    (owner, name, SystemExit)
    for owner, name, _ in EVERYTHING
    if name in ("__init__", "open", "turn", "publish", "close", "_on_connect", "_on_publish")
    or name in ("begin", "pump", "settle", "end", "_send", "_take_back", "_note_gaps", "judge")
]


def inject(monkeypatch, owner, name, error, at_calls=AT_CALLS):
    """Make a method raise at some of its calls, in the link's thread alone; return how often."""
    raised, calls = [], itertools.count(1)
    member = vars(owner)[name]
    real = member.fget if isinstance(member, property) else member

    @functools.wraps(real)
    def explode(*arguments, **named):
        if threading.current_thread().name == "agent.mqtt" and next(calls) in at_calls:
            raised.append(name)
            raise error(name)
        return real(*arguments, **named)

    # A callback of paho is what `_guarded` made of it; the error belongs inside.
    if name.startswith("_on_"):
        explode = mqtt_session._guarded(explode)
    monkeypatch.setattr(owner, name, property(explode) if isinstance(member, property) else explode)
    return raised


@pytest.fixture(autouse=True)
def _quick_pauses(monkeypatch):
    monkeypatch.setattr(mqtt_delivery, "PAUSE_FIRST_S", 0.01)
    monkeypatch.setattr(mqtt_delivery, "PAUSE_MAX_S", 0.02)
    monkeypatch.setattr(mqtt_delivery, "GAPS_EVERY_S", 0.01)
    # Both times that `eventful` hangs up a filter may just be asked for; it is not what is meant.
    monkeypatch.setattr(mqtt_subscriptions, "STRIKES", 3)


def eventful():
    """Return a script with a refusal of each kind, and two ends of the connection.

    At the second one the message is alone on the wire, as it is under suspicion by then.
    """
    codes = {(TOPIC, b"3"): 0x97, (f"edge/d/{YARD}", b"7"): 0x80}
    hangs_up = [True, True]

    def script(one):
        key = (one.topic, one.payload.strip())
        if key == (f"edge/d/{YARD}", b"5") or one.topic == "edge/d/refused":
            return Answer(code=0x87)
        if key == (TOPIC, b"12") and hangs_up:
            return Answer(hang_up=hangs_up.pop())
        return Answer(code=codes.pop(key, 0))

    return script


def granted(asked):
    """Answer a SUBSCRIBE; what one of them brings is a message, and one that nobody can read."""
    if asked.topic_filter == "refused/#":
        return 0x87
    answer = suback(asked.mid, asked.qos)
    return Answer(raw=answer + publish(b"in/a", b"1", qos=1, mid=3) + publish(b"in/\xff", b"2"))


def numbers(broker, stream):
    return {int(payload) for payload in broker.payloads(f"edge/d/{stream}")}


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    EVERYTHING + EXITS,
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_error_anywhere_costs_connections_and_no_record(
    owner, name, error, scripted, make_link, monkeypatch
):
    broker = scripted(Connack(max_packet=3000), eventful())
    broker.grant = granted
    heard: list[tuple[str, bytes, bool]] = []
    wanted = [(one, 1, lambda *message: heard.append(message)) for one in ("refused/#", "in/+")]
    raised = inject(monkeypatch, owner, name, error)
    link = make_link(broker.port, timing=QUICK, subscriptions=wanted)
    link.retain("edge/d/status", b"state")
    link.retain("edge/d/refused", b"state")
    for seq in range(1, 21):
        link.put(record(seq))
        link.put(record(seq, stream=YARD, size=4000 if seq == 9 else 20))

    def is_all_there():
        link.ensure_running()
        return link.outbox.waiting == 0 and not link.outbox.has_gaps

    eventually(is_all_there)
    # Some are reached only with the next one, or at a connection's end.
    for seq in itertools.count(21):
        if len(raised) >= 2 or seq > 26:
            break
        link.put(record(seq))
        eventually(is_all_there)
    assert numbers(broker, STREAM) >= set(range(1, 21))
    assert numbers(broker, YARD) == set(range(1, 21)) - {9}

    def gaps():
        link.ensure_running()
        said = {tuple(payload.decode().split()) for payload in broker.payloads(GAP)}
        return ("5-5", "refused") in said and ("9-9", "too_large") in said

    eventually(gaps)
    eventually(lambda: (link.ensure_running(), link.connection.connected)[1])
    eventually(lambda: (link.ensure_running(), ("in/a", b"1", False) in heard)[1])
    eventually(lambda: (link.ensure_running(), link.connection.refused_subscriptions)[1])
    link.stop(3.0)
    assert not link._thread.is_alive()
    assert raised or (owner, name) in NOT_REACHED


@pytest.mark.parametrize("name", ["_down", "_rest", "_up", "_change", "_settle", "_put_away"])
@pytest.mark.parametrize("error", [InjectedError, SystemExit])
def test_an_error_in_the_handling_of_errors_ends_the_thread_and_it_is_started_anew(
    name, error, broker, watch, make_link, monkeypatch
):
    watcher: Watcher = watch(broker.port)
    raised = inject(monkeypatch, MqttLink, name, error)
    link = make_link(broker.port, timing=QUICK)
    link.put(record(1))
    eventually(lambda: (link.ensure_running(), watcher.seqs())[1])
    broker.stop()
    eventually(lambda: (link.ensure_running(), raised)[1])
    link.put(record(2))
    broker.start()
    eventually(lambda: (link.ensure_running(), link.connection.connected)[1])
    eventually(lambda: (link.ensure_running(), link.outbox.published == 2)[1])
    assert link.outbox.dropped == 0


def kill(link):
    """Raise SystemExit wherever the thread is; where that is a destructor, it is swallowed.

    Not while it connects: until a thread that it starts for the look-up runs, CPython takes
    that one for it (pystate.c), and a thread killed before it has begun is waited for for ever.
    """
    while link._thread.is_alive():
        eventually(lambda: link.connection.connected)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(link._thread.ident), ctypes.py_object(SystemExit)
        )
        link.wake()
        link._thread.join(1)


def test_a_thread_that_is_killed_from_outside_is_started_anew(scripted, make_link, caplog):
    broker = scripted(answer=lambda _: ACK)
    link = make_link(broker.port, timing=QUICK)
    rebuilt = 0
    for seq in range(1, 200):
        link.put(record(seq))
        if seq % 20 == 0:
            kill(link)
            assert link.ensure_running()
            assert not link.ensure_running()
            rebuilt += 1
    eventually(lambda: link.outbox.waiting == 0)
    assert rebuilt == 9
    assert (link.outbox.published, link.outbox.dropped) == (199, 0)
    assert numbers(broker, STREAM) == set(range(1, 200))
    assert sum("mqtt thread ends" in entry.message for entry in caplog.records) == rebuilt
    assert link.stop(WITHIN_S)


def test_a_thread_that_cannot_be_started_is_started_later(scripted, make_link, monkeypatch):
    broker = scripted()
    start, failures = threading.Thread.start, itertools.count(1)

    def fail_twice(self):
        if self.name == "agent.mqtt" and next(failures) <= 2:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", fail_twice)
    link = make_link(broker.port)
    assert link.ensure_running()
    assert link.ensure_running()
    eventually(lambda: link.connection.connected)
    assert not link.ensure_running()


def test_a_thread_that_is_dead_when_it_is_time_to_stop_still_delivers(
    scripted, make_link, monkeypatch
):
    broker = scripted()
    raised = inject(monkeypatch, Delivery, "pump", SystemExit, {1, 2})
    link = make_link(broker.port)
    eventually(lambda: raised)
    link._thread.join(WITHIN_S)
    link.put(record(1))
    assert link.ensure_running()
    eventually(lambda: len(raised) == 2)
    link._thread.join(WITHIN_S)
    assert not link._thread.is_alive()
    assert link.stop(WITHIN_S)
    assert broker.payloads(AVAILABILITY)[-1] == b"offline"


def test_after_its_polite_end_the_thread_is_left_alone(scripted, make_link):
    broker = scripted()
    link = make_link(broker.port)
    eventually(lambda: link.connection.connected)
    link.stop(3.0)
    assert not link.ensure_running()
    link.wake()
    link.put(record(1))


def test_durations_do_not_follow_the_wall_clock(scripted, make_link, monkeypatch):
    broker = scripted()
    jump = [0.0]
    real = time.time
    link = make_link(broker.port, wall_clock=lambda: real() + jump[0])
    eventually(lambda: link.connection.connected)
    monkeypatch.setattr(time, "time", lambda: real() + jump[0])
    for years in (10, -10):
        jump[0] = years * 365.25 * 86_400
        link.put(record(abs(years) + (years < 0)))
        eventually(lambda: link.outbox.waiting == 0)
        time.sleep(0.05)
    assert link.connection.connected
    assert len(broker.connects) == 2


def test_an_outbox_that_raises_costs_connections(scripted, make_link, monkeypatch):
    broker = scripted()
    names = ("take", "acknowledged", "requeue_in_flight", "set_online")
    raised = [inject(monkeypatch, Outbox, name, InjectedError) for name in names]
    link = make_link(broker.port, timing=QUICK)
    for seq in range(1, 21):
        link.put(record(seq))
    eventually(lambda: (link.ensure_running(), link.outbox.waiting == 0)[1])
    assert all(raised)
    assert numbers(broker, STREAM) == set(range(1, 21))
