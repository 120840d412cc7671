"""Simulated boards on a real broker, and `edge-agent fleet` against them."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import msgspec
import paho.mqtt.publish
import paho.mqtt.subscribe
from simulated import RuleBrain, SimulatedFleet, by_version

from agent.cli import main
from agent.contract.updates import Desired

PROJECT = __file__.rpartition("/tests/")[0]
WITHIN_S = 30.0
HELD = 1000.0  # seconds of a phase: nothing goes on until the test says so


def eventually(claim, within_s=WITHIN_S):
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def bad_ones_last(version):
    """Return a maker of brains: boards on which a version is bad take longer than all others."""
    wanted = Desired(deployment_id="x", counter=1, name="door", version=version)

    def make_brain(device):
        return RuleBrain(device, phase_s=0.4 if by_version(device, wanted) else 0.02)

    return make_brain


class Said(NamedTuple):
    """What a command said."""

    stdout: str
    stderr: str


class Rig:
    """So many boards, served by a thread."""

    def __init__(
        self, broker, folder, count, *, phase_s=0.02, config=None, make_brain=None, **options
    ):
        self.broker, self.folder, self.config = broker, folder, config
        self.state = folder / "rollouts"
        self._started = []
        self.fleet = SimulatedFleet(
            broker.port,
            count,
            make_brain=make_brain or (lambda device: RuleBrain(device, phase_s=phase_s)),
            **{"telemetry_s": 0.5, **options},
        )
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self.fleet.run, args=(ready.set,), name="simulated", daemon=True
        )
        self._thread.start()
        assert ready.wait(WITHIN_S)

    def close(self):
        for process in self._started:
            process.kill()
            process.communicate()
        self.fleet.stop()
        self._thread.join(WITHIN_S)

    def arguments(self, *arguments, state=True):
        where = ["--broker", f"mqtt://127.0.0.1:{self.broker.port}"]
        where += ["--config", str(self.config)] if self.config else []
        where += ["--state", str(self.state)] if state else []
        if arguments[0] in ("rollout", "rollback") and "--pace" not in arguments:
            where += ["--pace", "200"]
        return ["fleet", *map(str, arguments), *where]

    def start(self, *arguments, **options):
        """Start a command in a process of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "agent", *self.arguments(*arguments, **options)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def fleet_command(self, *arguments, code=0, **options):
        """Run a command to its end, here; return what it said."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            returned = main(self.arguments(*arguments, **options))
        said = Said(out.getvalue(), err.getvalue())
        assert returned == code, f"{returned}: {said}"
        return said

    def as_json(self, *arguments, **options):
        return json.loads(self.fleet_command(*arguments, "--json", **options).stdout)

    def rollout(self, model, *arguments, code=0):
        return self.as_json("rollout", model, *arguments, code=code)

    def let_go(self):
        """Have boards that were `HELD` go on."""
        for board in self.fleet.boards:
            self.fleet.ask("hurry", board.device)

    def versions(self):
        """Return how many boards run which version."""
        counts = {}
        for board in self.fleet.boards:
            version = board.brain.runs[1]
            counts[version] = counts.get(version, 0) + 1
        return counts

    def asked(self):
        return sum(board.brain.taken_up > 0 for board in self.fleet.boards)

    def order(self, topic, desired: Desired | None):
        """Publish an order as another operator would."""
        paho.mqtt.publish.single(
            topic,
            msgspec.json.encode(desired) if desired else b"",
            qos=1,
            retain=True,
            hostname="127.0.0.1",
            port=self.broker.port,
        )

    def retained(self, topic):
        """Return what is retained on a topic; what comes behind it shows that there is none."""
        where = {"hostname": "127.0.0.1", "port": self.broker.port}
        paho.mqtt.publish.single("behind", b"1", retain=True, qos=1, **where)
        found = []

        def note(client, _, message):
            if message.topic == "behind":
                client.disconnect()
            else:
                found.append(json.loads(message.payload))

        paho.mqtt.subscribe.callback(note, [topic, "behind"], **where)
        return found[0] if found else None

    def rollout_file(self):
        (file,) = self.state.glob("*/rollout.json")
        return file
