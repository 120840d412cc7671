"""paho's client, taught what a connection of ours needs of it.

paho has no public way to be given a socket, to be held to a size of packet, or to take a reason
code that its table does not list. Belongs to the link's thread; nobody but the session uses it.
"""

from __future__ import annotations

from typing import Literal

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.daemon.mqtt.dial import Wire

Protocol = Literal["5", "3.1.1"]

# The largest message anybody has reason to send to a board, and the largest packet with one: a
# topic, and the few properties a broker adds. A broker of MQTT 3.1.1 cannot be told.
MAX_PAYLOAD_BYTES = 64 << 10
MAX_PACKET_BYTES = MAX_PAYLOAD_BYTES + (1 << 10)
# Messages of QoS 1 that the broker may have on the way to us (MQTT 5, 3.1.2.11.3).
MAX_INCOMING = 20


class Client(mqtt.Client):
    """paho on a socket that is already connected."""

    def __init__(self, wire: Wire, *, client_id: str, protocol: Protocol) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=mqtt.MQTTv5 if protocol == "5" else mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        self._wire = wire
        # Our window is the only one: with a limit of its own paho searches its queue on each
        # acknowledgement.
        self.max_inflight_messages = 0

    def _create_socket(self) -> Wire:
        return self._wire

    def let_go_of_the_rest(self) -> None:
        """Keep no more of a packet that is being read than is needed to know it as too large.

        The beginning is enough to acknowledge it; a broker of MQTT 3.1.1 may send 256 MiB.
        """
        packet: bytearray = self._in_packet["packet"]
        if len(packet) > MAX_PACKET_BYTES:
            del packet[MAX_PACKET_BYTES + 1 :]


def limits() -> Properties:
    """Return what a CONNECT of MQTT 5 says about what may be sent to us."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho's
    properties.MaximumPacketSize = MAX_PACKET_BYTES
    properties.ReceiveMaximum = MAX_INCOMING
    return properties


def _accept_every_reason() -> None:
    """Teach paho that a PUBACK and a SUBACK may carry any failure code.

    Its table allows only the codes MQTT 5, 3.4.2.1 and 3.9.3 list, and it drops the connection
    over another one; mosquitto 2.0 answers 0x95 (packet too large) to a message over its
    message_size_limit (src/handle__publish.c), which would then be sent again for ever.
    """
    # Before 2.2 the table belongs to each instance; there the rule for hang-ups has to do.
    if not hasattr(ReasonCode, "names"):
        return
    ReasonCode.names = {
        code: names if code < 0x80 else _with(PacketTypes.SUBACK, _with(PacketTypes.PUBACK, names))
        for code, names in ReasonCode.names.items()
    }


def _with(packet: int, names: dict[str, list[int]]) -> dict[str, list[int]]:
    if any(packet in packets for packets in names.values()):
        return names
    first, *others = names.items()
    return {first[0]: [*first[1], packet], **dict(others)}


_accept_every_reason()
