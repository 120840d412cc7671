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
TOPIC_INVALID = 0x90
PACKET_TOO_LARGE = 0x95
QUOTA_EXCEEDED = 0x97

# What a PUBACK (MQTT 5, table 3-4) says beside "never": these are about the broker's state at
# this moment, whatever the message is. Some of them the table does not list, and brokers send
# them all the same. 0x91 accuses the packet id, and the next attempt has another one.
NOT_NOW = {0x88, 0x89, 0x91, 0x96, QUOTA_EXCEEDED}
# Unspecified error; implementation specific error. 3.4.2.1: "the receiver does not accept the
# publish but either does not want to reveal the reason, or it does not match" another code, and
# "is not willing to accept it": as well a database that is full now as a rule of a plug-in.
UNCLEAR = {0x80, 0x83}
# DISCONNECTs that say nothing about the message that was on its way.
ACCUSES_NOBODY = NOT_NOW | {0x8B, 0x8D, SESSION_TAKEN_OVER, 0x93, 0x98, 0x9C, 0x9D, 0x9F, 0xA0}

PUBACKS = {
    0x00: "hangs up whenever it is sent",
    NOT_AUTHORIZED: (
        "does not authorize this client to publish there; give it the right in the broker's "
        "access rules"
    ),
    TOPIC_INVALID: "does not accept this topic's name; choose another mqtt.prefix",
    PACKET_TOO_LARGE: "takes no message of this size; raise its limit",
    0x99: "says that the payload has the wrong format",
}

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


def explain_puback(code: int) -> str:
    """Return what the broker does with a message it answered with `code`; 0 is no answer."""
    return PUBACKS.get(code, f"does not take it (reason code 0x{code:02X})")


def _credentials(settings: MqttConfig) -> str:
    if not settings.username:
        return "mqtt.username is empty: set it, and mqtt.password_file"
    if not settings.password_file:
        return f'look at mqtt.username = "{settings.username}"; mqtt.password_file is not set'
    return (
        f'look at mqtt.username = "{settings.username}" and the first line of '
        f'mqtt.password_file = "{settings.password_file}"'
    )
