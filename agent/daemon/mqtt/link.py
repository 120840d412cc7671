"""The link to the broker: one thread that keeps a connection, for as long as the daemon runs.

`put` and `retain` only queue and wake that thread, so nobody ever waits for the network. An
absent broker is a normal state, said once; anything that goes wrong, in the network, in the
broker or in this code, ends one connection and the next one starts clean. What is owed to the
broker lives in `delivery` and the outbox.

    put ─▶ Outbox ─┐                         ┌─ dial ── TCP, TLS
    retain ────────┴▶ Delivery ┬─▶ Session ──┴─ paho ── packets
    tell ──▶ Asides ───────────┘      └──▶ Subscriptions ──▶ on_message

A connection counts as alive because the broker acknowledges, never because a socket is open:
`Timing.notices_within_s` is how long a broker, a proxy or a network may go on in silence. The
thread ends by `stop` alone; should an error end it all the same, `ensure_running` starts it
anew, and `ticked_at` tells whether it hangs.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from agent.config import MqttConfig
from agent.daemon.mqtt.asides import Asides
from agent.daemon.mqtt.client import Protocol
from agent.daemon.mqtt.connect import connect, probe
from agent.daemon.mqtt.delivery import Delivery, OnDelivered
from agent.daemon.mqtt.dial import DialCancelledError, Patience
from agent.daemon.mqtt.doorbell import Doorbell
from agent.daemon.mqtt.secrets import Secrets
from agent.daemon.mqtt.session import (
    MISC_EVERY_S,
    ConnectionLostError,
    ProtocolRefusedError,
    Session,
)
from agent.daemon.mqtt.standing import PATIENT, Connection, Timing
from agent.daemon.mqtt.subscriptions import OnMessage, Subscriptions
from agent.daemon.outbox import GapNote, Outbox, Record
from agent.errors import BrokerError

__all__ = ["Connection", "MqttLink", "Timing", "probe"]

logger = logging.getLogger(__name__)

# Of the time `stop` is given, what is kept for `offline` and DISCONNECT.
GOODBYE_SHARE = 0.25
LONGEST_WAIT_S = MISC_EVERY_S


def _ignore(_: Connection) -> None:
    return


class MqttLink:
    """Publishes what it is given, in order, over as many connections as it takes.

    Call order: `subscribe`, `start`, then `put`, `retain` and `wake` from any thread and
    `ensure_running` every second or so from that of `start`, then `stop` once. All that is given
    to be called is called by the link's thread. `ticked_at` is when that thread last made a turn,
    by `clock`; in no state does it wait for longer than `LONGEST_WAIT_S` at a time.
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
        on_delivered: OnDelivered | None = None,
        timing: Timing = PATIENT,
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
            keep_alive_s=timing.keep_alive_s,
            clock=clock,
            on_delivered=on_delivered,
        )
        self._subscriptions = Subscriptions(clock)
        self._asides = Asides()
        self._on_change = on_change
        self._timing = timing
        self._clock = clock
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._doorbell = Doorbell()
        self._secrets = Secrets(settings)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._flush_until = self._stop_at = float("inf")
        # written by the link's thread, read by anyone
        self.ticked_at = clock()
        self._finished = False
        # owned by the link's thread
        self._reconnects = -1
        self._failures = 0
        self._speaks_5 = False

    def subscribe(self, topic_filter: str, qos: int, on_message: OnMessage) -> None:
        """Have `on_message(topic, payload, retained)` called for what is published to a filter.

        Before `start`; filters must not overlap. It must not block: it is called by the thread
        that publishes. With QoS 1 a message may come twice; none comes that is larger than
        `MAX_PAYLOAD_BYTES`.
        """
        self._subscriptions.add(topic_filter, qos, on_message)

    def start(self) -> None:
        """Begin connecting; returns at once."""
        self.ticked_at = self._clock()
        thread = threading.Thread(target=self._live, name="agent.mqtt", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # no memory or no process left for it now: `ensure_running`
            logger.exception("mqtt thread cannot be started")

    def ensure_running(self) -> bool:
        """Start the thread anew if an error has ended it; return whether that was so."""
        thread = self._thread
        if thread is None or self._finished or thread.is_alive():
            return False
        logger.error("mqtt thread had ended; it is started anew")
        self.start()
        return True

    def wake(self) -> None:
        """Make the thread look at the outbox; from any thread."""
        self._doorbell.ring()

    def retain(self, topic: str, payload: bytes) -> None:
        """Set the newest state of a topic; all of them are sent again on every connection."""
        self._delivery.retain(topic, payload)
        self._doorbell.ring()

    def put(self, record: Record) -> None:
        """Queue a record to be published; never blocks."""
        self.outbox.put(record)
        self._doorbell.ring()

    def tell(self, topic: str, payload: bytes) -> None:
        """Send a message with QoS 0 now, or never; never blocks."""
        self._asides.put(topic, payload)
        self._doorbell.ring()

    def stop(self, timeout_s: float) -> bool:
        """Flush, as long as there is time, say `offline`; return whether all was acknowledged."""
        self._stop_at = self._clock() + timeout_s
        self._flush_until = self._stop_at - timeout_s * GOODBYE_SHARE
        self._stopping.set()
        self._doorbell.ring()
        self.ensure_running()
        thread = self._thread
        if thread is not None and thread.ident is not None:
            # Every wait of the thread ends by `_stop_at`; the rest is scheduling.
            thread.join(timeout_s + 1.0)
        if thread is None or not thread.is_alive():
            self._doorbell.close()
        return self._delivery.delivered

    def _live(self) -> None:
        """Be the thread; whatever ends it is said, and left to `ensure_running`."""
        try:
            # A thread that died before this one may have left a connection half put away.
            self._delivery.end(None)
            self._run()
        except BaseException as error:  # SystemExit as well, of which Python would say nothing
            logger.critical("mqtt thread ends", exc_info=True)
            with contextlib.suppress(BaseException):  # it may have been the reason
                self._down(f"internal error: {error!r}")

    def _run(self) -> None:
        while not self._is_over():
            try:
                self._connect_and_serve()
                break
            except DialCancelledError:
                continue
            except BrokerError as error:
                reason = str(error)
            except Exception as error:
                # Whatever it was, the next connection starts clean.
                logger.exception("mqtt connection abandoned")
                reason = f"internal error: {error!r}"
            self._down(reason)
            self._rest()
        self._down("stopped")
        self._finished = True

    def _is_over(self) -> bool:
        """Return whether to make no further attempt."""
        if not self._stopping.is_set():
            return False
        return self._delivery.is_safe or self._clock() >= self._stop_at

    def _tick(self) -> bool:
        """Note that the thread lives; return whether a connection is no longer wanted."""
        self.ticked_at = self._clock()
        return self._is_over()

    def _rest(self) -> None:
        """Wait before the next attempt: exponential, with jitter so that fleets spread out."""
        # 2 ** 16 is past any longest wait; unbounded, it would overflow after a month away.
        doubled = self._timing.retry_first_s * 2 ** min(self._failures, 16)
        longest = min(self._timing.retry_max_s, doubled)
        until = self._clock() + self._jitter(longest / 2, longest)
        self._failures += 1
        while (left_s := until - self._clock()) > 0 and not self._stopping.is_set():
            self._tick()
            self._stopping.wait(min(left_s, LONGEST_WAIT_S))
        if self._stopping.is_set() and not self._is_over():  # try again soon, but do not spin
            time.sleep(min(self._timing.retry_first_s, max(0.0, self._stop_at - self._clock())))

    def _connect_and_serve(self) -> None:
        """Go through one connection; returns only after a polite end of it."""
        session = self._open()
        began, published = self._clock(), self.outbox.published
        lost: ConnectionLostError | None = None
        try:
            self._delivery.begin(session)
            self._subscriptions.begin()
            self._asides.begin()
            self._up(session)
            self._serve(session)
            self._goodbye(session)
        except ConnectionLostError as error:
            lost = error
            raise
        finally:
            self._put_away(session, lost)
            lasted_s = self._clock() - began
            if lasted_s >= self._timing.stable_after_s and self._delivery.has_heard:
                self._failures = 0
            elif self.outbox.published > published:
                # A broker that hangs up over single messages must not slow the others down.
                self._failures = min(self._failures, 1)

    def _put_away(self, session: Session, lost: ConnectionLostError | None) -> None:
        """End a connection on our side; each step whatever becomes of the others."""
        with contextlib.ExitStack() as steps:  # the last one pushed comes first
            steps.callback(self.outbox.set_online, False)
            steps.callback(session.close)
            steps.callback(self._end, lost)
            # Answers that arrived before the end still count.
            steps.callback(self._settle, session)

    def _end(self, lost: ConnectionLostError | None) -> None:
        try:
            code = lost.code if lost is not None and lost.by_peer else None
            if self._subscriptions.end(code):
                lost = None  # it is no message's fault
        finally:
            self._delivery.end(lost)

    def _open(self) -> Session:
        """Connect with MQTT 5 where the broker is known to speak it, else with 3.1.1.

        A broker not known to speak 5 is asked on each: it may have hung up as it was restarting.
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

        amqtt 0.12 reads a CONNECT of version 5 with a will by 3.1.1 and then never answers it.
        """
        try:
            session = self._connect("5", None)
        except ProtocolRefusedError:
            return False
        session.goodbye(Patience(self._timing.connect_timeout_s, self._tick))
        session.close()
        return True

    def _connect(self, protocol: Protocol, availability_topic: str | None) -> Session:
        return connect(
            self._settings,
            Patience(self._timing.connect_timeout_s, self._tick),
            self._doorbell,
            client_id=self._client_id,
            protocol=protocol,
            availability_topic=availability_topic,
            keep_alive_s=self._timing.keep_alive_s,
            secrets=self._secrets,
        )

    def _serve(self, session: Session) -> None:
        """Keep sending until the connection is lost or it is time to say goodbye."""
        patience_s = self._timing.answer_within_s
        while True:
            self._tick()
            self._delivery.pump()
            self._asides.pump(session)
            if self._delivery.has_heard:
                self._subscriptions.pump(session)
            wait_s = self._delivery.wait_s(LONGEST_WAIT_S)
            wait_s = min(wait_s, max(0.0, patience_s - self._delivery.unanswered_s()))
            if self._stopping.is_set():
                self._delivery.hurry = True
                left_s = self._flush_until - self._clock()
                if self._delivery.idle or left_s <= 0:
                    return
                wait_s = min(wait_s, left_s)
            session.turn(wait_s)
            self._settle(session)
            if self._delivery.unanswered_s() >= patience_s:
                raise ConnectionLostError(
                    f"{session.where} acknowledged nothing for {patience_s:g} s, although its "
                    "connection was open; a new one is made"
                )

    def _settle(self, session: Session) -> None:
        while session.answers:
            self._delivery.settle(*session.answers.popleft())
        while session.subscribed:
            self._subscriptions.settle(*session.subscribed.popleft())
        while session.incoming:
            self._subscriptions.hand_out(session.incoming.popleft())
        refused, now = self._subscriptions.refused, self.connection
        if now.connected and refused != now.refused_subscriptions:
            self._change(replace(now, refused_subscriptions=refused))

    def _goodbye(self, session: Session) -> None:
        """Say `offline` and disconnect; where that cannot be said, the last will does."""
        self._delivery.leave()
        patience = Patience(max(0.0, self._stop_at - self._clock()))
        try:
            while not self._delivery.has_left:
                self._tick()
                self._delivery.pump()
                session.turn(patience.slice_s())
                self._settle(session)
        except TimeoutError:
            return
        session.goodbye(patience)

    def _up(self, session: Session) -> None:
        self._reconnects += 1
        self.outbox.set_online(True)
        logger.info("broker connected url=%s protocol=%s", self._settings.url, session.protocol)
        self._change(
            Connection(
                connected=True,
                since=self._wall_clock(),
                protocol=session.protocol,
                reconnects=self._reconnects,
                max_packet=session.max_packet,
                receive_maximum=session.receive_maximum,
                keep_alive_s=session.keep_alive_s,
            )
        )

    def _down(self, reason: str) -> None:
        """Note why there is no connection; a reason that stays the same is said once."""
        self.outbox.set_online(False)
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
