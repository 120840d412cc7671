"""From the settings to a session that the broker has accepted: once, or as a probe of it.

Each attempt either returns an open `Session` or leaves nothing open behind. Keeping one for as
long as the daemon runs is the link's business.
"""

from __future__ import annotations

from secrets import token_hex

from agent.config import MqttConfig
from agent.daemon.mqtt.client import Protocol
from agent.daemon.mqtt.dial import Patience, dial, parse_address
from agent.daemon.mqtt.doorbell import Doorbell
from agent.daemon.mqtt.secrets import Secrets
from agent.daemon.mqtt.session import KEEP_ALIVE_S, ProtocolRefusedError, Session


def connect(
    settings: MqttConfig,
    patience: Patience,
    doorbell: Doorbell,
    *,
    client_id: str,
    protocol: Protocol,
    availability_topic: str | None,
    keep_alive_s: float = KEEP_ALIVE_S,
    secrets: Secrets | None = None,
) -> Session:
    """Return a session the broker has accepted; `secrets` are those of earlier connections.

    Raises:
        BrokerError: as a sentence; `ProtocolRefusedError` where another version may work.
        DialCancelledError: the caller's patience was called off.
    """
    address = parse_address(settings.url)
    secrets = secrets or Secrets(settings)
    password = secrets.password() if settings.username else None
    wire = dial(address, settings, patience, secrets.context() if address.tls else None)
    try:
        session = Session(
            wire,
            address,
            settings,
            doorbell,
            client_id=client_id,
            protocol=protocol,
            availability_topic=availability_topic,
            keep_alive_s=keep_alive_s,
            password=password,
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
    client_id = f"edge-agent-probe-{token_hex(4)}"
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
