"""Which transport a repository's url means."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from agent.ota.fetch_file import FileTransport
from agent.ota.fetch_http import HttpTransport
from agent.ota.fetch_mqtt import ChunkTransport, Lines
from agent.ota.jobs import Limits, Need
from agent.ota.transport import Transport


def connect(
    url: str, *, ca_file: str, limits: Limits, lines: Lines, ask: Callable[[Need], None]
) -> Transport:
    """Return the transport of a mirror.

    Args:
        url: `https://`, `http://`, `file://` or `mqtt:`.
        ca_file: certificate authority of https, empty for the system's.
        limits: see there.
        lines: stdin, where `mqtt:` is answered.
        ask: how `mqtt:` asks.

    Raises:
        RefusalError: E_NET, the url cannot be one.
    """
    scheme = urlsplit(url).scheme
    if scheme == "file":
        return FileTransport(url)
    if scheme == "mqtt":
        return ChunkTransport(lines, ask, limits=limits)
    return HttpTransport(url, ca_file=ca_file, limits=limits)
