"""A link whose network dies for real: run in a network namespace of its own, by `unshare`.

    unshare --map-root-user --net python unplugged.py MOSQUITTO FOLDER KEEP_ALIVE_S ANSWER_S

A second namespace holds the broker; a veth pair is the cable, and its far end is set down:
packets vanish, and no RST, no ICMP and no carrier change of a socket tells of it (veth(4)).
Prints a line of JSON: in how many seconds the link noticed, and what it said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from agent.config import MqttConfig
from agent.daemon.mqtt import MqttLink, Timing
from agent.daemon.outbox import Outbox

PORT = 1883
NEAR, FAR = "10.213.0.1", "10.213.0.2"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def wait(claim: object, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not claim():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise SystemExit("it never came true")
        time.sleep(0.01)


def main(mosquitto: str, folder: Path, timing: Timing) -> None:
    config = folder / "unplugged.conf"
    config.write_text(f"user root\nlistener {PORT} {FAR}\nallow_anonymous true\n")
    with subprocess.Popen(["unshare", "--net", "sleep", "300"]) as far_side:
        inside = ("nsenter", "--target", str(far_side.pid), "--net")
        own = Path("/proc/self/ns/net").readlink()
        wait(lambda: Path(f"/proc/{far_side.pid}/ns/net").readlink() != own, 10)
        run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
        run("ip", "link", "set", "far", "netns", str(far_side.pid))
        run("ip", "address", "add", f"{NEAR}/24", "dev", "near")
        run("ip", "link", "set", "near", "up")
        run(*inside, "ip", "address", "add", f"{FAR}/24", "dev", "far")
        run(*inside, "ip", "link", "set", "far", "up")
        log = (folder / "unplugged.log").open("wb")
        with log, subprocess.Popen([*inside, mosquitto, "-c", str(config)], stderr=log) as broker:
            try:
                watch(inside, timing)
            finally:
                broker.terminate()
                far_side.terminate()


def watch(inside: tuple[str, ...], timing: Timing) -> None:
    link = MqttLink(
        MqttConfig(url=f"mqtt://{FAR}:{PORT}"), client_id="unplugged", availability_topic="a",
        outbox=Outbox(max_bytes=1 << 20, folder=None), gap_record=lambda _: None, timing=timing,
    )  # fmt: skip
    link.start()
    wait(lambda: link.connection.connected, 30)
    time.sleep(0.2)
    run(*inside, "ip", "link", "set", "far", "down")
    began = time.monotonic()
    wait(lambda: not link.connection.connected, 4 * timing.notices_within_s + 30)
    noticed_s = time.monotonic() - began
    reason = link.connection.reason
    run(*inside, "ip", "link", "set", "far", "up")
    wait(lambda: link.connection.connected, 60)
    link.stop(2.0)
    print(json.dumps({"noticed_s": noticed_s, "reason": reason}))


if __name__ == "__main__":
    main(
        sys.argv[1], Path(sys.argv[2]),
        Timing(
            connect_timeout_s=3.0, retry_max_s=0.5,
            keep_alive_s=float(sys.argv[3]), answer_within_s=float(sys.argv[4]),
        ),
    )  # fmt: skip
