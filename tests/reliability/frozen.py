"""Every loop of the daemon frozen in turn, under a watchdog like systemd's."""

from __future__ import annotations

import signal
import time

from agent.daemon.app import DISK_STUCK_S, MQTT_STUCK_S
from reliability import faults
from reliability.checker import LOSS_WINDOW_S
from reliability.collector import Collector
from reliability.daemons import Agent
from reliability.observed_agent import Observation
from reliability.rig import Outcome, Rig
from reliability.scenario import Scenario

WATCHDOG_S = 3.0
# Of the control process: what each loop calls at every turn, and how long a turn may rightly
# take. Frozen for longer, systemd must no longer be fed.
CONTROL_LOOPS = {
    "mqtt thread": ("agent.daemon.mqtt.delivery:Delivery.pump", MQTT_STUCK_S),
    "disk thread": ("agent.daemon.outbox.disk:OutboxDisk._turn", DISK_STUCK_S),
    "main loop": ("agent.daemon.workers.supervisor:Supervisor.check", 0.0),
}
TARGETS = {name: target for name, (target, _) in CONTROL_LOOPS.items()}
STAGE = "agent.vision.pipeline:Pipeline._prepare"
# Beside a loop's own time and that of the watchdog: the time between two looks, and a busy machine.
SLACK_S = 5.0
# README: a frozen process is replaced within 5 s, a stage stuck in native code within 10 s; and a
# worker takes its time to start.
WORKER_BACK_WITHIN_S = {"worker by SIGSTOP": 15.0, "worker's stage": 25.0}
FED_AGAIN_WITHIN_S = 10.0


def frozen_loops(rig: Rig, _seed: int) -> Outcome:
    """Freeze worker, stage and the loops of the control process; play systemd for the last."""
    outcome = Outcome()
    broker = rig.broker()
    collector = rig.collector(broker.port)
    observation = Observation(
        log=str(rig.logbook),
        folder=str(rig.folder),
        targets=tuple(TARGETS.values()),
        worker_targets=(STAGE,),
    )
    agent = Agent(rig, broker.port, watchdog_s=WATCHDOG_S, observation=observation)
    assert agent.systemd is not None
    agent.wait_heard(collector, 10)
    collector.wait(lambda: agent.systemd.last("READY=1"), 60, "READY=1")  # type: ignore[union-attr]
    _freeze_worker(rig, agent, collector, outcome)
    for name in CONTROL_LOOPS:
        if name == "disk thread" and rig.is_quick:
            continue  # its minute is too long for that
        rig.say(name)
        _freeze_control(rig, agent, name, outcome)
    # The main loop was last and is frozen still: systemd's WatchdogSignal= ends it.
    ended = agent.kill(signal.SIGABRT)
    outcome.expect(agent.process.returncode == -signal.SIGABRT, "SIGABRT did not end it")
    faults.switch_off(rig.folder, TARGETS["main loop"])
    agent = Agent(rig, broker.port, observation=observation)
    began = time.monotonic()
    agent.wait_heard(collector, 10)
    outcome.figures["results again after SIGABRT (s)"] = time.monotonic() - began
    agent.stop()
    # While its loop hung, what workers said was not put, so the window is at the kill.
    rig.check(collector, outcome, sudden_ends=[ended, ended - LOSS_WINDOW_S])
    return outcome


def _freeze_worker(rig: Rig, agent: Agent, collector: Collector, outcome: Outcome) -> None:
    for name, within_s in WORKER_BACK_WITHIN_S.items():
        rig.say(name)
        old = agent.processes()["worker"]
        began = time.monotonic()
        if name == "worker's stage":
            faults.switch_on(rig.folder, STAGE, "freeze")
            collector.wait(lambda: faults.has_happened(rig.folder, STAGE), 30, "the freeze")
        else:
            old.send_signal(signal.SIGSTOP)
        deadline = began + 60.0
        while agent.processes().get("worker", old).pid == old.pid:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name}: not replaced within 60 s")
            time.sleep(0.1)
        faults.switch_off(rig.folder, STAGE)
        agent.wait_heard(collector, 3)
        took_s = time.monotonic() - began
        outcome.figures[f"{name}: results again (s)"] = took_s
        outcome.expect(took_s <= within_s, f"{name}: results only after {took_s:.1f} s")
        fed_ago_s = time.monotonic() - (_fed(agent) or 0.0)
        outcome.expect(fed_ago_s <= WATCHDOG_S, f"{name}: the watchdog was not fed meanwhile")


def _freeze_control(rig: Rig, agent: Agent, name: str, outcome: Outcome) -> None:
    target, longest_s = CONTROL_LOOPS[name]
    within_s = longest_s + 2 * WATCHDOG_S + SLACK_S
    faults.switch_on(rig.folder, target, "freeze")
    began = time.monotonic()
    while not faults.has_happened(rig.folder, target):
        if time.monotonic() - began > 30:
            raise TimeoutError(f"{name}: {target} was not called within 30 s")
        time.sleep(0.02)
    frozen = time.monotonic()
    while time.monotonic() - (_fed(agent) or frozen) <= WATCHDOG_S:
        if time.monotonic() - frozen > within_s:
            outcome.bad.append(f"{name}: fed for {within_s:g} s although it was frozen")
            break
        time.sleep(0.05)
    else:
        outcome.figures[f"{name}: systemd acts after (s)"] = time.monotonic() - frozen
    if name == "main loop":
        return
    faults.switch_off(rig.folder, target)
    released = time.monotonic()
    while (_fed(agent) or 0.0) < released:
        if time.monotonic() - released > FED_AGAIN_WITHIN_S:
            outcome.bad.append(f"{name}: not fed again after it went on")
            return
        time.sleep(0.05)


def _fed(agent: Agent) -> float | None:
    return agent.systemd.last("WATCHDOG=1") if agent.systemd else None


SCENARIOS = (
    Scenario(
        name="frozen-loops",
        injected="worker by SIGSTOP, its preprocess stage, then the daemon's mqtt, disk and main "
        f"loop (quick: not the disk's); watchdog of {WATCHDOG_S:g} s, SIGABRT as systemd sends "
        "it, restart",
        run=frozen_loops,
    ),
)
