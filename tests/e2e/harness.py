"""The daemon as a user runs it, and a subscriber as a user writes one."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import psutil
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.choices import CHOICES_FILE

PROJECT = Path(__file__).resolve().parent.parent.parent
CLIP = PROJECT / "agent" / "demo" / "clip.mp4"
DEVICE = "board-1"
# Waits end as soon as what they wait for has come; a machine that others share may take its time.
WITHIN_S = 120.0
STATES = Path(tempfile.mkdtemp(prefix="edge-agent-states-"))
atexit.register(shutil.rmtree, STATES, ignore_errors=True)


@dataclass(frozen=True)
class Message:
    """What a subscriber got, and when."""

    topic: str
    payload: bytes
    retained: bool
    at: float

    @cached_property
    def json(self) -> dict[str, Any]:
        """The payload as a document; read once, as `Subscriber.wait` looks again and again."""
        document: dict[str, Any] = json.loads(self.payload)
        return document


class Subscriber:
    """Keeps all it hears; reconnects by itself as paho does."""

    def __init__(self, port: int, topic: str = "edge/#") -> None:
        self.messages: list[Message] = []
        self._changed = threading.Condition()
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=uuid.uuid4().hex, protocol=mqtt.MQTTv5
        )
        self._client.reconnect_delay_set(0.2, 0.5)
        self._client.on_connect = lambda client, *_: (
            self._disconnected.clear(),
            client.subscribe(topic, qos=1),
        )
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._keep
        self._client.on_disconnect = lambda *_: self._disconnected.set()
        self._subscribed = threading.Event()
        self._disconnected = threading.Event()
        # A broker that keeps sessions keeps what comes while we are not back yet, as after its
        # restart, when the agent may be there first.
        session = Properties(PacketTypes.CONNECT)
        session.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=session)
        self._client.loop_start()
        assert self._subscribed.wait(WITHIN_S)

    def _keep(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self.messages.append(
                Message(message.topic, message.payload, message.retain, time.time())
            )
            self._changed.notify_all()

    def results(self) -> list[dict[str, Any]]:
        """All results so far, in order of arrival."""
        return [m.json for m in list(self.messages) if m.topic.endswith("/detections")]

    def last(self, ending: str) -> dict[str, Any] | None:
        """The newest document of a topic."""
        newest_first = reversed(list(self.messages))
        found = next((m for m in newest_first if m.topic.endswith(ending) and m.payload), None)
        return found.json if found else None

    def wait(self, until: Callable[[], Any], timeout_s: float = WITHIN_S) -> Any:
        """Wait until a message makes `until` true; return what it returned."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (value := until()):
                left = deadline - time.monotonic()
                assert left > 0, f"nothing of the kind among {len(self.messages)} messages"
                self._changed.wait(left)
        return value

    def wait_results(self, count: int, timeout_s: float = WITHIN_S) -> list[dict[str, Any]]:
        """Wait until that many results have come."""
        self.wait(lambda: len(self.results()) >= count, timeout_s)
        return self.results()

    def close(self) -> None:
        """Disconnect; paho says goodbye only if its loop may run until that is done."""
        if self._client.disconnect() == mqtt.MQTT_ERR_SUCCESS:
            self._disconnected.wait(2)
        self._client.loop_stop()
        self._client._reset_sockets()  # paho would, whenever it is collected


class Agent:
    """`edge-agent run` in a process of its own."""

    def __init__(self, folder: Path, config: str) -> None:
        self.log_path = folder / "agent.log"
        config_path = folder / "agent.toml"
        config_path.write_text(config)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", "--config", str(config_path)],
                cwd=PROJECT,
                stderr=log,
            )

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self.log_path.read_text()

    def worker(self, pid: int | None = None) -> psutil.Process:
        """The vision worker of this moment; with `pid`, that one of several."""
        deadline = time.monotonic() + WITHIN_S
        while time.monotonic() < deadline:
            for child in psutil.Process(self.process.pid).children():
                is_worker = "agent.vision.worker" in " ".join(child.cmdline())
                if is_worker and pid in (None, child.pid):
                    return child
            time.sleep(0.02)
        raise AssertionError("there is no worker")

    def stop(self) -> int:
        """SIGTERM, and wait."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def config_text(
    port: int,
    source: str | Path = CLIP,
    *,
    camera: str = "",
    model: str = "",
    mqtt_lines: str = "",
    telemetry_s: float = 1.0,
    state_dir: Path | None = None,
) -> str:
    """A configuration with one camera called `door`."""
    state_dir = state_dir or fresh_state_dir()
    return f"""
[device]
id = "{DEVICE}"
state_dir = "{state_dir}"
[model]
{model}
[[camera]]
name = "door"
source = "{source}"
{camera}
[mqtt]
url = "mqtt://127.0.0.1:{port}"
{mqtt_lines}
[telemetry]
interval_s = {telemetry_s}
"""


def fresh_state_dir() -> Path:
    """A board's state of its own, which knows how models ran best in the tests before.

    Tests that want a board which has never seen a model bring an empty one.
    """
    known = sorted(STATES.glob(f"*/{CHOICES_FILE}"), key=lambda path: path.stat().st_mtime_ns)
    folder = Path(tempfile.mkdtemp(dir=STATES))
    if known:
        shutil.copy2(known[-1], folder)
    return folder
