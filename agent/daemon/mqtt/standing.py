"""How patient the link is, and how it stands."""

from __future__ import annotations

from dataclasses import dataclass

from agent.daemon.mqtt.client import Protocol
from agent.daemon.mqtt.session import KEEP_ALIVE_S, MISC_EVERY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How patient the link is; the defaults are for a real network."""

    connect_timeout_s: float = 10.0  # name, TCP, TLS and CONNACK together
    retry_first_s: float = 0.5
    retry_max_s: float = 30.0
    stable_after_s: float = 10.0  # a connection this old starts the back-off afresh
    keep_alive_s: float = KEEP_ALIVE_S  # a shorter one of the broker's takes its place
    answer_within_s: float = 20.0  # a broker that acknowledges nothing for longer is given up

    @property
    def notices_within_s(self) -> float:
        """Return how long a dead connection goes unnoticed: until a heartbeat, and its answer."""
        return self.keep_alive_s / 2 + self.answer_within_s + MISC_EVERY_S


PATIENT = Timing()


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
    keep_alive_s: float | None = None
    refused_subscriptions: tuple[str, ...] = ()  # filters that the broker does not let us have
