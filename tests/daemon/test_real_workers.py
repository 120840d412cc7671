"""Workers that are real processes: stopped, leaking, and first to go when memory runs out.

They speak the link's words but load no model: what is tested is how they are looked after.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from test_supervisor import READY, Heard

import agent
from agent.config import CameraConfig, ModelConfig
from agent.daemon.workers import memory_limit
from agent.daemon.workers import supervisor as module
from agent.daemon.workers.failover import Failover
from agent.daemon.workers.memory_limit import MIB, Budget, WorkerMemory
from agent.daemon.workers.stopping import stop_all
from agent.daemon.workers.supervisor import Supervisor
from agent.daemon.workers.worker_run import spawn_worker
from agent.link import Start, open_link
from agent.vision.worker import OOM_SCORE_ADJ

WITHIN_S = 120.0
WORKER = """
import socket, sys, time
import msgspec
from agent.link import Beat, FromWorker, Inbox, ToWorker, send
link = socket.socket(fileno=int(sys.argv[1]))
start = Inbox(link, ToWorker).receive()
link.send(bytes.fromhex(sys.argv[2]))
kept = []
while True:
    kept.append(b"x" * (int(start.boot_id) << 20))
    send(link, Beat(stage_age_s={}, cameras={}))
    time.sleep(0.05)
"""


class Kept:
    """A supervisor of real workers, driven as the main loop does; `leak_mib` each 50 ms."""

    def __init__(self, leak_mib=0, **settings):
        self.heard = Heard()
        self.pids = []
        ready = msgspec.msgpack.encode(READY).hex()

        def spawn(worker_end):
            process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(worker_end.fileno()), ready],
                pass_fds=[worker_end.fileno()],
                cwd=Path(agent.__file__).parent.parent,
            )
            self.pids.append(process.pid)
            return process

        def make_start(resume, avoid):
            return Start(
                device="d", boot_id=str(leak_mib), model=ModelConfig(),
                cameras=(CameraConfig(),), resume=resume,
            )  # fmt: skip

        self.supervisor = Supervisor(
            make_start=make_start, listener=self.heard, failover=Failover(("cpu",)),
            start_probe=lambda names: None, spawn=spawn, **settings,
        )  # fmt: skip
        self.supervisor.start()

    def until(self, claim):
        deadline = time.monotonic() + WITHIN_S
        while not claim():
            assert time.monotonic() < deadline, self.heard.downs
            due_s = self.supervisor.check()
            link = self.supervisor.link
            if link is None:
                time.sleep(min(due_s, 0.05))
            elif select.select([link], [], [], min(due_s, 0.05))[0]:
                self.supervisor.receive()

    def stop(self):
        self.supervisor.ask_to_stop()
        stop_all([self.supervisor], 0.2)
        self.supervisor.see_off(WITHIN_S)  # a worker that is dropped unseen is another test's fault


@pytest.fixture
def keep():
    kept = []

    def start(*args, **settings):
        kept.append(Kept(*args, **settings))
        return kept[-1]

    yield start
    for one in kept:
        one.stop()


def test_a_stopped_worker_is_replaced(keep, monkeypatch):
    kept = keep()
    kept.until(lambda: kept.heard.beats)
    os.kill(kept.pids[0], signal.SIGSTOP)
    with monkeypatch.context() as soon:  # and not for the worker after it, which has to start
        soon.setattr(module, "SILENT_S", 1.0)
        kept.until(lambda: kept.heard.downs)
    kept.until(lambda: len(kept.heard.readies) == 2)
    [(code, reason)] = kept.heard.downs
    assert (code, "was silent" in reason) == ("worker", True)
    assert not Path(f"/proc/{kept.pids[0]}").exists(), "SIGKILL ends what is stopped"
    assert kept.heard.abandoned == []


def test_a_leaking_worker_is_replaced_and_the_next_one_too(keep, monkeypatch):
    monkeypatch.setattr(memory_limit, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(memory_limit, "WARM_AFTER_S", 0.1)
    kept = keep(4, memory=WorkerMemory(Budget(150 * MIB, 300 * MIB)))
    kept.until(lambda: len(kept.heard.downs) >= 2)
    for code, reason in kept.heard.downs:
        assert code == "worker"
        assert "MiB of 150 MiB allowed; replaced" in reason
    kept.until(lambda: len(kept.heard.readies) >= 3)


def test_the_kernel_takes_a_real_worker_before_the_control_process():
    ours, theirs = open_link()
    process = spawn_worker(theirs)
    theirs.close()
    try:
        ours.settimeout(WITHIN_S)
        assert ours.recv(1 << 16), "its heart beats, so `main` is past its first lines"
        score = int(Path(f"/proc/{process.pid}/oom_score_adj").read_text())
        assert score >= OOM_SCORE_ADJ
        assert score > int(Path("/proc/self/oom_score_adj").read_text())
    finally:
        process.kill()
        process.wait()
        ours.close()
