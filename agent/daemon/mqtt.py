"""The link to the broker: one thread that keeps a connection, for as long as the daemon runs.

`put` and `retain` only queue and wake that thread, so nobody ever waits for the network. An
absent broker is a normal state, said once; anything that goes wrong, in the network, in the
broker or in this code, ends one connection and the next one starts clean. The thread itself
ends only by `stop`. What is owed to the broker lives in `mqtt_delivery` and the outbox.

    put ─▶ Outbox ─┐                      ┌─ mqtt_dial ── TCP, TLS
    retain ────────┴▶ Delivery ─▶ Session ┴─ paho ─────── packets
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from agent.config import MqttConfig
from agent.daemon.mqtt_delivery import Delivery
from agent.daemon.mqtt_dial import DialCancelledError, Patience, dial, parse_address
from agent.daemon.mqtt_session import (
    MISC_EVERY_S,
    ConnectionLostError,
    Doorbell,
    Protocol,
    ProtocolRefusedError,
    Session,
)
from agent.daemon.outbox import GapNote, Outbox, Record
from agent.errors import BrokerError

logger = logging.getLogger(__name__)

# Of the time `stop` is given, what is kept for `offline` and DISCONNECT.
GOODBYE_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How patient the link is; the defaults are for a real network."""

    connect_timeout_s: float = 10.0  # name, TCP, TLS and CONNACK together
    retry_first_s: float = 0.5
    retry_max_s: float = 30.0
    stable_after_s: float = 10.0  # a connection this old starts the back-off afresh
    answer_within_s: float = 20.0  # a broker that is silent for longer is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How the link stands; `reason` says why it is down, `since` is Unix time."""

    connected: bool
    since: float
    protocol: Protocol | None = None
    reason: str | None = None
    reconnects: int = 0
    max_packet: int | None = None
    receive_maximum: int | None = None


def _ignore(_: Connection) -> None:
    return


class MqttLink:
    """Publishes what it is given, in order, over as many connections as it takes.

    Call order: `start`, then anything from any thread, then `stop` once. `on_change` and
    `gap_record` are called by the link's thread.
    """

    def __init__(
        self,
        settings: MqttConfig,
        *,
        client_id: str,
        availability_topic: str,
        outbox: Outbox,
        gap_record: Callable[[GapNote], Record],
        on_change: Callable[[Connection], None] = _ignore,
        timing: Timing = Timing(),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.connection = Connection(connected=False, since=wall_clock())
        self._settings = settings
        self._client_id = client_id
        self._availability_topic = availability_topic
        self.outbox = outbox
        self._delivery = Delivery(
            outbox,
            availability_topic=availability_topic,
            gap_record=gap_record,
            qos=settings.qos,
            clock=clock,
        )
        self._on_change = on_change
        self._timing = timing
        self._clock = clock
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._doorbell = Doorbell()
        self._thread = threading.Thread(target=self._run, name="agent.mqtt", daemon=True)
        self._stopping = threading.Event()
        self._flush_until = self._stop_at = float("inf")
        # owned by the link's thread
        self._reconnects = -1
        self._failures = 0
        self._speaks_5 = False

    def start(self) -> None:
        """Begin connecting; returns at once."""
        self._thread.start()

    def retain(self, topic: str, payload: bytes) -> None:
        """Set the newest state of a topic; all of them are sent again on every connection."""
        self._delivery.retain(topic, payload)
        self._doorbell.ring()

    def put(self, record: Record) -> None:
        """Queue a record to be published; never blocks."""
        self.outbox.put(record)
        self._doorbell.ring()

    def stop(self, timeout_s: float) -> bool:
        """Flush, say `offline`, disconnect; return whether every record was acknowledged.

        With the broker away and records waiting, connecting is tried until the time is up.
        """
        self._stop_at = self._clock() + timeout_s
        self._flush_until = self._stop_at - timeout_s * GOODBYE_SHARE
        self._stopping.set()
        self._doorbell.ring()
        if self._thread.ident is not None:
            # Every wait of the thread ends by `_stop_at`; the rest is scheduling.
            self._thread.join(timeout_s + 1.0)
        if not self._thread.is_alive():
            self._doorbell.close()
        return self._delivery.delivered

    def _run(self) -> None:
        while not self._is_over():
            try:
                self._connect_and_serve()
                break
            except DialCancelledError:
                continue
            except BrokerError as error:
                self._down(str(error))
            except Exception as error:
                # Whatever it was, the next connection starts clean.
                logger.exception("mqtt connection abandoned")
                self._down(f"internal error: {error!r}")
            self._rest()
        self._down("stopped")

    def _is_over(self) -> bool:
        """Return whether to make no further attempt."""
        if not self._stopping.is_set():
            return False
        return self._delivery.delivered or self._clock() >= self._stop_at

    def _rest(self) -> None:
        """Wait before the next attempt: exponential, with jitter so that fleets spread out."""
        # 2 ** 16 is past any longest wait; unbounded, it would overflow after a month away.
        doubled = self._timing.retry_first_s * 2 ** min(self._failures, 16)
        longest = min(self._timing.retry_max_s, doubled)
        wait_s = self._jitter(longest / 2, longest)
        self._failures += 1
        if self._stopping.wait(wait_s) and not self._is_over():
            # Stopping with records waiting: try again soon, but do not spin.
            time.sleep(min(self._timing.retry_first_s, max(0.0, self._stop_at - self._clock())))

    def _connect_and_serve(self) -> None:
        """Go through one connection; returns only after a polite end of it."""
        session = self._open()
        began, published = self._clock(), self.outbox.published
        lost: ConnectionLostError | None = None
        try:
            self._delivery.begin(session)
            self._up(session)
            self._serve(session)
            self._goodbye(session)
        except ConnectionLostError as error:
            lost = error
            raise
        finally:
            # Answers that arrived before the end still count.
            self._settle(session)
            self._delivery.end(lost)
            session.close()
            if self._clock() - began >= self._timing.stable_after_s:
                self._failures = 0
            elif self.outbox.published > published:
                # A broker that hangs up over single messages must not slow the others down.
                self._failures = min(self._failures, 1)

    def _open(self) -> Session:
        """Connect with MQTT 5 where the broker is known to speak it, else with 3.1.1.

        A broker not known to speak 5 is asked on every connection, so one that only hung up
        because it was restarting is not taken for an old one for longer than that connection.
        """
        if not self._speaks_5:
            self._speaks_5 = self._ask_for_5()
        try:
            return self._connect("5" if self._speaks_5 else "3.1.1", self._availability_topic)
        except BrokerError:
            self._speaks_5 = False
            raise

    def _ask_for_5(self) -> bool:
        """Return whether the broker accepts MQTT 5; without a last will, on purpose.

        amqtt 0.12 answers a plain CONNECT of version 5 with "unsupported", but reads one with
        a will by the rules of 3.1.1 and then never answers at all.
        """
        try:
            session = self._connect("5", None)
        except ProtocolRefusedError:
            return False
        session.goodbye(Patience(self._timing.connect_timeout_s, self._is_over))
        session.close()
        return True

    def _connect(self, protocol: Protocol, availability_topic: str | None) -> Session:
        return connect(
            self._settings,
            Patience(self._timing.connect_timeout_s, self._is_over),
            self._doorbell,
            client_id=self._client_id,
            protocol=protocol,
            availability_topic=availability_topic,
        )

    def _serve(self, session: Session) -> None:
        """Keep sending until the connection is lost or it is time to say goodbye."""
        while True:
            self._delivery.pump()
            wait_s = self._delivery.wait_s(MISC_EVERY_S)
            if self._stopping.is_set():
                self._delivery.hurry = True
                left_s = self._flush_until - self._clock()
                if self._delivery.idle or left_s <= 0:
                    return
                wait_s = min(wait_s, left_s)
            session.turn(wait_s)
            self._settle(session)
            if self._delivery.unanswered_s() > self._timing.answer_within_s:
                raise ConnectionLostError(
                    f"the broker acknowledged nothing for {self._timing.answer_within_s:g} s"
                )

    def _settle(self, session: Session) -> None:
        while session.answers:
            self._delivery.settle(*session.answers.popleft())

    def _goodbye(self, session: Session) -> None:
        """Say `offline` and disconnect; where that cannot be said, the last will does."""
        self._delivery.leave()
        patience = Patience(max(0.0, self._stop_at - self._clock()))
        try:
            while not self._delivery.has_left:
                self._delivery.pump()
                session.turn(patience.slice_s())
                self._settle(session)
        except TimeoutError:
            return
        session.goodbye(patience)

    def _up(self, session: Session) -> None:
        self._reconnects += 1
        logger.info("broker connected url=%s protocol=%s", self._settings.url, session.protocol)
        self._change(
            Connection(
                connected=True,
                since=self._wall_clock(),
                protocol=session.protocol,
                reconnects=self._reconnects,
                max_packet=session.max_packet,
                receive_maximum=session.receive_maximum,
            )
        )

    def _down(self, reason: str) -> None:
        """Note why there is no connection; a reason that stays the same is said once."""
        now = self.connection
        if not now.connected and now.reason == reason:
            return
        level = logging.INFO if self._stopping.is_set() else logging.WARNING
        logger.log(level, "broker not connected url=%s: %s", self._settings.url, reason)
        self._change(
            Connection(
                connected=False,
                since=self._wall_clock(),
                reason=reason,
                reconnects=max(0, self._reconnects),
            )
        )

    def _change(self, connection: Connection) -> None:
        self.connection = connection
        try:
            self._on_change(connection)
        except Exception:  # a listener's fault is not the connection's
            logger.exception("on_change failed")


def connect(
    settings: MqttConfig,
    patience: Patience,
    doorbell: Doorbell,
    *,
    client_id: str,
    protocol: Protocol,
    availability_topic: str | None,
) -> Session:
    """Return a session the broker has accepted.

    Raises:
        BrokerError: as a sentence; `ProtocolRefusedError` where another version may work.
        DialCancelledError: the caller's patience was called off.
    """
    address = parse_address(settings.url)
    wire = dial(address, settings, patience)
    try:
        session = Session(
            wire,
            address,
            settings,
            doorbell,
            client_id=client_id,
            protocol=protocol,
            availability_topic=availability_topic,
        )
    except BaseException:
        wire.close()
        raise
    try:
        session.open(patience)
    except BaseException:
        session.close()
        raise
    return session


def probe(settings: MqttConfig, timeout_s: float) -> str:
    """Connect once, without a last will, and return the protocol version the broker speaks.

    Raises:
        BrokerError: with what to do about it.
    """
    patience = Patience(timeout_s)
    # An id of its own: with the daemon's, the broker would end the daemon's connection.
    client_id = f"edge-agent-probe-{secrets.token_hex(4)}"
    doorbell = Doorbell()
    try:
        try:
            session = _probe_with("5", settings, patience.share(2), doorbell, client_id)
        except ProtocolRefusedError:
            session = _probe_with("3.1.1", settings, patience, doorbell, client_id)
        session.goodbye(patience)
        session.close()
        return session.protocol
    finally:
        doorbell.close()


def _probe_with(
    protocol: Protocol,
    settings: MqttConfig,
    patience: Patience,
    doorbell: Doorbell,
    client_id: str,
) -> Session:
    return connect(
        settings,
        patience,
        doorbell,
        client_id=client_id,
        protocol=protocol,
        availability_topic=None,
    )
