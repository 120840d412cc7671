"""A real RTSP server, stopped and started again while the daemon watches."""

import subprocess
import time
from itertools import pairwise

import pytest
from brokers import free_port
from harness import CLIP, PROJECT, config_text

SERVER = PROJECT / "tests" / "rtsp_server.py"
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture
def start_server():
    check = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True).returncode:
        pytest.skip("gir1.2-gst-rtsp-server-1.0 is not installed")
    running = []

    def start(port: int, *options: str) -> subprocess.Popen:
        server = subprocess.Popen(
            [SYSTEM_PYTHON, str(SERVER), str(CLIP), "--port", str(port), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        running.append(server)
        assert b"ready" in server.stdout.readline()
        return server

    yield start
    for server in running:
        server.kill()
        server.communicate()


def state(subscriber):
    status = subscriber.last("camera/door/status")
    return status["state"] if status else None


def test_stream_lost_and_found(broker, subscriber, run_agent, start_server):
    port = free_port()
    options = ("--user", "viewer", "--password", "s3cret")
    server = start_server(port, *options)
    agent = run_agent(
        config_text(broker.port, source=f"rtsp://viewer:s3cret@127.0.0.1:{port}/clip")
    )
    subscriber.wait_results(20)
    subscriber.wait(lambda: state(subscriber) == "online")

    server.kill()
    server.wait()
    moment = time.monotonic()
    subscriber.wait(lambda: state(subscriber) == "offline")
    noticed_s = time.monotonic() - moment
    assert noticed_s < 16

    start_server(port, *options)
    before = len(subscriber.results())
    subscriber.wait_results(before + 20)
    subscriber.wait(lambda: state(subscriber) == "online")
    assert agent.process.poll() is None
    ids = [r["frame_id"] for r in subscriber.results()]
    assert all(a < b for a, b in pairwise(ids))
    everything = agent.log + "".join(str(m.payload) for m in subscriber.messages)
    assert "s3cret" not in everything
    assert "viewer:***@" in everything or "***@" in everything
