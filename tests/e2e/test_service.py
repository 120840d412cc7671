"""The daemon as a service: what systemd is told, new settings, one instance, lasting numbers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from harness import PROJECT, WITHIN_S, config_text, fresh_state_dir


class Systemd:
    """The end of NOTIFY_SOCKET that systemd holds."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while (message := self._socket.recv(4096)) != b"end":
            self.heard += message.decode().splitlines()

    def wait(self, start: str, after: int = 0, within_s: float = WITHIN_S) -> str:
        """Return the first word that starts so, of those heard after the first `after`."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for line in self.heard[after:]:
                if line.startswith(start):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"{start} was never heard, but {self.heard[-20:]}")

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"end", str(self.path))
        self._thread.join()
        self._socket.close()


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    one = Systemd(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(one.path))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    yield one
    one.close()


def test_ready_alive_reloaded_and_stopped(tmp_path, broker, subscriber, run_agent, systemd):
    text = config_text(broker.port, camera="loop = true\nfps = 15")
    agent = run_agent(text)
    assert systemd.wait("READY=1")
    assert "1 of 1 cameras online" in systemd.wait("STATUS=1 of 1")
    subscriber.wait_results(10)
    config = tmp_path / "agent.toml"
    worker, before = agent.worker().pid, len(systemd.heard)

    config.write_text(text + "nonsense = 1\n")
    os.kill(agent.process.pid, signal.SIGHUP)
    assert systemd.wait("STATUS=the new configuration was refused", before)
    assert "nonsense" in agent.log
    assert agent.worker().pid == worker, "the old one goes on"

    config.write_text(text.replace("fps = 15", "fps = 10"))
    before = len(systemd.heard)
    os.kill(agent.process.pid, signal.SIGHUP)
    assert systemd.wait("RELOADING=1", before)
    assert systemd.wait("MONOTONIC_USEC=", before)
    assert systemd.wait("READY=1", before)
    assert systemd.wait("WATCHDOG=1", before)
    assert agent.process.poll() is None, "the same process"
    assert agent.worker(None).pid != worker
    subscriber.wait_results(len(subscriber.results()) + 10)

    before = len(systemd.heard)
    assert agent.stop() == 0
    assert systemd.wait("STOPPING=1", before)

    def changes():
        said = [m.payload for m in list(subscriber.messages) if m.topic.endswith("/availability")]
        return [word for word, last in zip(said, [b"", *said], strict=False) if word != last]

    # What the daemon sent last is still on its way when the daemon has ended.
    subscriber.wait(lambda: changes()[-1] == b"offline" and len(changes()) >= 4)
    assert changes() == [b"online", b"offline", b"online", b"offline"]
    seqs = [result["seq"] for result in subscriber.results()]
    assert sorted(set(seqs)) == list(range(1, max(seqs) + 1)), "nothing is missing, no gap"


def test_a_second_instance_is_refused(tmp_path, broker, subscriber, run_agent):
    agent = run_agent(config_text(broker.port))
    subscriber.wait_results(1)
    second = subprocess.run(
        [sys.executable, "-m", "agent", "run", "--config", str(tmp_path / "agent.toml")],
        cwd=PROJECT, capture_output=True, text=True, timeout=WITHIN_S,
    )  # fmt: skip
    assert second.returncode == 69
    assert f"another edge-agent (process {agent.process.pid}) runs on" in second.stderr


def test_killed_while_the_broker_is_away_what_is_older_than_a_second_comes_later(
    broker, subscriber, run_agent
):
    text = config_text(broker.port, camera="loop = true\nfps = 20", state_dir=fresh_state_dir())
    agent = run_agent(text)
    subscriber.wait_results(10)
    broker.stop()
    time.sleep(4.0)  # the outage
    killed_at = time.time()
    agent.process.kill()
    agent.process.wait()
    first = {result["boot_id"] for result in subscriber.results()}
    broker.start()
    run_agent(text)
    subscriber.wait(lambda: any(result["boot_id"] not in first for result in subscriber.results()))
    old = [result for result in subscriber.results() if result["boot_id"] in first]
    seqs = {result["seq"] for result in old}
    assert seqs == set(range(1, max(seqs) + 1))
    assert max(result["captured_at"] for result in old) > killed_at - 2.5, "a second, and its frame"
    gaps = [m.json for m in subscriber.messages if m.topic.endswith("/gap")]
    restart = [gap for gap in gaps if gap["stream"] == "camera/door/detections"]
    new = min(r["seq"] for r in subscriber.results() if r["boot_id"] not in first)
    assert [(gap["from_seq"], gap["to_seq"], gap["count"], gap["reason"]) for gap in restart] == [
        (max(seqs) + 1, new - 1, None, "restart")
    ]
