"""What the broker's reason codes mean for the person at the board, as sentences.

MQTT 5, table 2-6; paho translates the CONNACK codes of MQTT 3.1.1 into these. Pure.
"""

from __future__ import annotations

from agent.config import MqttConfig

FAILURE = 0x80
PROTOCOL_ERROR = 0x82
UNSUPPORTED_PROTOCOL = 0x84
BAD_USER_OR_PASSWORD = 0x86
NOT_AUTHORIZED = 0x87
SESSION_TAKEN_OVER = 0x8E
PACKET_TOO_LARGE = 0x95
QUOTA_EXCEEDED = 0x97

# Also used for CONNACK: the broker is well, but has no room for us now.
BUSY = {0x88: "unavailable", 0x89: "busy", 0x97: "out of quota", 0x9F: "limiting its connections"}
ELSEWHERE = {0x9C: "use another server", 0x9D: "server moved"}
WILL = {
    0x90: "the topic of our last will",
    0x99: "the payload of our last will",
    0x9A: "retained messages",
    0x9B: "QoS 1",
}

DISCONNECTS = {
    0x87: "ended the connection: not authorized",
    0x89: "ended the connection: it is busy",
    0x8B: "is shutting down",
    0x8D: "ended the connection: it heard nothing for too long",
    SESSION_TAKEN_OVER: (
        "gave our place to another client with the same id; give each board its own [device].id"
    ),
    0x93: "ended the connection: more messages in flight than it allows",
    PACKET_TOO_LARGE: "ended the connection: a message was larger than it allows",
    0x96: "ended the connection: too many messages",
    QUOTA_EXCEEDED: "ended the connection: its quota is used up",
    0x98: "ended the connection: by its administrator",
}


def explain_connack(code: int, where: str, settings: MqttConfig) -> str:
    """Return the sentence for a CONNACK that does not accept us."""
    if code == BAD_USER_OR_PASSWORD:
        return f"{where} refuses the user or password; {_credentials(settings)}"
    if code == NOT_AUTHORIZED:
        return (
            f"{where} does not authorize this client; {_credentials(settings)}, and at the "
            "rights the broker gives it"
        )
    if code in BUSY:
        return f"{where} is {BUSY[code]}; it is asked again later"
    if code in ELSEWHERE:
        return f"{where} says: {ELSEWHERE[code]}; correct mqtt.url"
    if code in WILL:
        return f"{where} does not take {WILL[code]}, which the availability topic needs"
    if code == 0x85:
        return f"{where} does not accept this client's id; choose another [device].id"
    if code == 0x8A:
        return f"{where} has banned this client; ask its administrator"
    return f"{where} refuses the connection (reason code 0x{code:02X})"


def explain_disconnect(code: int, where: str) -> str:
    """Return the sentence for a DISCONNECT the broker sent."""
    return f"{where} {DISCONNECTS.get(code, f'ended the connection (reason code 0x{code:02X})')}"


def _credentials(settings: MqttConfig) -> str:
    if not settings.username:
        return "mqtt.username is empty: set it, and mqtt.password_file"
    if not settings.password_file:
        return f'look at mqtt.username = "{settings.username}"; mqtt.password_file is not set'
    return (
        f'look at mqtt.username = "{settings.username}" and the first line of '
        f'mqtt.password_file = "{settings.password_file}"'
    )
