"""The embedded broker's process: `python -m agent.demo.embedded_broker HOST:PORT`.

amqtt speaks MQTT 3.1.1 and keeps everything in memory. It ends by SIGTERM like any program.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from amqtt.broker import Broker
from amqtt.mqtt.connect import ConnectPacket, ConnectPayload, ConnectVariableHeader

MQTT_3_1_1 = 4  # protocol level in CONNECT (MQTT 3.1.1, section 3.1.2.2)


class OneVersionPayload:
    """The payload of CONNECT, read only where it is MQTT 3.1.1.

    amqtt parses MQTT 5 by the rules of 3.1.1, takes the client id for lengths, and waits for
    bytes that never come, so that the client learns nothing until its time is up. Unread, the
    packet reaches amqtt's own check, which refuses the version at once.
    """

    @staticmethod
    async def from_stream(
        reader: object, header: object, variable_header: ConnectVariableHeader | None
    ) -> ConnectPayload:
        """Return what was read, or empty fields, which pass every check before the version's."""
        if variable_header is not None and variable_header.proto_level != MQTT_3_1_1:
            return ConnectPayload(
                client_id="-", will_topic="", will_message=b"", username="", password=""
            )
        return await ConnectPayload.from_stream(reader, header, variable_header)


async def serve(address: str) -> None:
    """Listen at an address until the process is ended."""
    ConnectPacket.PAYLOAD = OneVersionPayload
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": address}},
            # Nothing but this: by default it publishes statistics every few seconds.
            "plugins": {
                "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}
            },
        }
    )
    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)  # it narrates every packet otherwise
    asyncio.run(serve(sys.argv[1]))
