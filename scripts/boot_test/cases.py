"""What the unit promises, each tried on a running machine; a case returns the figure to print."""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Callable

from machine import PROJECT, wait_until
from service import BROKER, CONFIG, DROP_INS, SETTINGS, SOON_S, UNIT, Service

Case = Callable[[Service], str]

STOPS_WITHIN_S = 10.0
QUICK_KILLS = 12  # systemd's own limit is 5 starts in 10 s
SHORT_WATCHDOG_S = 4
UNCHANGED_S = 2.0  # in which a daemon that starts anew would have lost its worker
HOG_LIMIT = "400M"
PIPELINE = """\
[[camera]]
name = "gst"
source = "gst:videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=5/1"
"""


class BrokenError(Exception):
    """A promise that was not kept."""


def expect(is_so: object, what: str) -> None:
    """Fail the case unless something is so."""
    if not is_so:
        raise BrokenError(what)


def ready(service: Service) -> str:
    """READY=1 comes, results flow, nothing is logged as an error."""
    start = time.monotonic()
    service.start()
    took_s = time.monotonic() - start
    service.next_result()
    print(
        textwrap.indent(
            service.machine.run("systemctl", "status", "--no-pager", UNIT).stdout, "    "
        )
    )
    errors = service.journal(0, "-p", "err")
    expect("No entries" in errors or not errors.strip(), f"errors in the journal:\n{errors}")
    status = json.loads(service.retained("status"))
    expect(not status["health"], f"it is not well: {status['health']}")
    measured = status["engines"][0]["run"]["invoke_ms"]
    expect(measured is not None, "the model was not tried in a child process")
    return f"ready after {took_s:.1f} s, results flow, trial measured {measured} ms"


def sandbox(service: Service) -> str:
    """What the agent needs is allowed, and what it does not need is refused."""
    unit = (PROJECT / "systemd" / UNIT).read_text()
    name = "edge-agent-probe.service"
    service.machine.write(f"/etc/systemd/system/{name}", unit)
    service.machine.write(
        f"/etc/systemd/system/{name}.d/probe.conf",
        "[Service]\nType=oneshot\nWatchdogSec=0\nRestart=no\nExecStart=\nExecStart="
        "/opt/edge-agent/current/bin/python /opt/edge-agent/source/scripts/boot_test/probe.py\n",
    )
    service.machine.systemctl("daemon-reload")
    service.machine.systemctl("start", name)
    said = service.machine.run("journalctl", "-u", name, "-o", "cat", "--no-pager").stdout
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    wrong = [what for what, is_right in found.items() if not is_right]
    expect(not wrong, f"wrong in the sandbox: {', '.join(wrong)}\n{said}")
    return f"{len(found)} rights and refusals as intended"


def reload_refused(service: Service) -> str:
    """Settings that cannot be used are refused by `systemctl reload`, and the old ones go on."""
    pid, workers = service.pid, service.workers()
    service.machine.write(CONFIG, "[camera]\nnam = 3\n")
    done = service.machine.run("systemctl", "reload", UNIT)
    expect(done.returncode != 0, "systemctl reload took settings that cannot be used")
    # And if somebody sends the signal without asking first.
    before = service.refusals
    service.kill("HUP", pid)
    wait_until(lambda: service.refusals > before, SOON_S, "the refusal is logged as an error")
    service.next_result()
    expect((service.pid, service.workers()) == (pid, workers), "it was restarted")
    service.machine.write(CONFIG, SETTINGS.format(interval_s=10))
    return "by systemctl, and by the daemon if nobody asked before"


def reload_unchanged(service: Service) -> str:
    """A reload without any change changes nothing."""
    pid, workers = service.pid, service.workers()
    service.machine.systemctl("reload", UNIT)
    service.next_result()
    time.sleep(UNCHANGED_S)
    expect((service.pid, service.workers()) == (pid, workers), "it was restarted")
    return "same daemon, same worker"


def reload_changed(service: Service) -> str:
    """Changed settings take effect in the same process; systemd counts no restart."""
    pid, workers, restarts = service.pid, service.workers(), service.restarts
    service.machine.write(CONFIG, SETTINGS.format(interval_s=2))
    start = time.monotonic()
    service.machine.systemctl("reload", UNIT)

    def is_new() -> bool:
        return service.is_active and bool(service.workers()) and service.workers() != workers

    wait_until(is_new, SOON_S, "a new worker runs")
    service.next_result()
    took_s = time.monotonic() - start
    expect(service.pid == pid, "it has another process id")
    expect(service.restarts == restarts, "systemd counts a restart")
    expect(service.retained("availability") == "online", "it is not online")
    return f"same process id, results again after {took_s:.1f} s"


def watchdog(service: Service) -> str:
    """A daemon that is stopped in its tracks is killed and started again."""
    service.drop_in("watchdog", f"WatchdogSec={SHORT_WATCHDOG_S}")
    service.machine.systemctl("restart", UNIT)
    service.next_result()
    time.sleep(2 * SHORT_WATCHDOG_S)
    pid = service.pid
    expect(service.restarts == 0, f"the watchdog bit a healthy daemon\n{service.journal(30)}")
    service.kill("STOP", pid)
    took_s = service.wait_for_another(pid)
    said = service.journal(60)
    expect("watchdog" in said.lower(), f"it was not the watchdog:\n{said}")
    service.next_result()
    service.undo_drop_in("watchdog")
    service.machine.systemctl("restart", UNIT)
    return f"WatchdogSec={SHORT_WATCHDOG_S}: another daemon ready after {took_s:.1f} s"


def kill(service: Service) -> str:
    """A daemon that is killed comes back."""
    pid, before = service.pid, service.restarts
    service.kill("KILL", pid)
    took_s = service.wait_for_another(pid)
    expect(service.restarts == before + 1, "systemd does not count one restart")
    service.next_result()
    return f"kill -9: ready again after {took_s:.1f} s"


def many_kills(service: Service) -> str:
    """It is started again and again, however fast it dies."""
    service.drop_in("quick", "RestartSec=50ms")
    before = service.restarts
    start = time.monotonic()
    for _ in range(QUICK_KILLS):
        wait_until(lambda: service.pid > 0, SOON_S, "there is a daemon to kill")
        pid = service.pid
        service.machine.run("kill", "-KILL", str(pid))
        wait_until(lambda pid=pid: service.pid != pid, SOON_S, "it is gone")
    took_s = time.monotonic() - start
    wait_until(lambda: service.is_active, SOON_S, "it is ready after all")
    counted = service.restarts - before
    expect(counted >= QUICK_KILLS, f"only {counted} restarts")
    service.undo_drop_in("quick")
    return f"{QUICK_KILLS} kills in {took_s:.0f} s, and ready in the end"


def stop(service: Service) -> str:
    """SIGTERM ends it in time: `offline` is said, no process is left, and that is a success."""
    service.next_result()
    start = time.monotonic()
    service.machine.systemctl("stop", UNIT)
    took_s = time.monotonic() - start
    expect(took_s <= STOPS_WITHIN_S, f"it took {took_s:.1f} s")
    expect(service.show("Result") == "success", f"Result={service.show('Result')}")
    expect(service.retained("availability") == "offline", "it did not say that it is offline")
    left = service.processes()
    expect(not left, f"processes are left: {left}")
    service.start()
    return f"gone after {took_s:.1f} s, offline said"


def broker_away(service: Service) -> str:
    """Without a broker it starts, is ready and stops in time all the same."""
    service.machine.systemctl("stop", BROKER)
    start = time.monotonic()
    service.machine.systemctl("restart", UNIT)
    ready_s = time.monotonic() - start
    start = time.monotonic()
    service.machine.systemctl("stop", UNIT)
    stop_s = time.monotonic() - start
    service.machine.systemctl("start", BROKER)
    service.start()
    expect(stop_s <= STOPS_WITHIN_S, f"stopping took {stop_s:.1f} s")
    service.next_result()
    return f"restarted in {ready_s:.1f} s, stopped in {stop_s:.1f} s"


def bad_settings(service: Service) -> str:
    """Settings that cannot be used end the unit for good, with a word about why."""
    service.machine.systemctl("stop", UNIT)
    service.machine.write(CONFIG, "[camera]\nnam = 3\n")
    done = service.machine.run("systemctl", "start", UNIT)
    expect(done.returncode != 0, "it started")
    time.sleep(3.0)  # longer than RestartSec
    state = service.show("ActiveState"), service.show("ExecMainStatus"), service.show("NRestarts")
    expect(state == ("failed", "78", "0"), f"state, exit code, restarts: {state}")
    service.machine.write(CONFIG, SETTINGS.format(interval_s=10))
    service.start()
    return "failed with 78/CONFIG, not started again; starts with better ones"


def restarts(service: Service, count: int) -> str:
    """It can be restarted as often as anybody likes; nothing is left behind."""
    slowest_s = 0.0
    start = time.monotonic()
    for _ in range(count):
        before = time.monotonic()
        service.machine.systemctl("restart", UNIT)
        slowest_s = max(slowest_s, time.monotonic() - before)
    took_s = time.monotonic() - start
    service.next_result()
    mains = [line for line in service.processes().values() if " run --config" in line]
    expect(len(mains) == 1, f"daemons: {mains}")
    everything = service.machine.run("pgrep", "-c", "-f", "agent.vision.worker").stdout.strip()
    expect(everything == str(len(service.workers())), f"workers on the machine: {everything}")
    return f"{count} in {took_s:.0f} s, slowest {slowest_s:.1f} s"


def memory(service: Service) -> str:
    """What eats the unit's memory is killed; the daemon stays, and so does the unit."""
    service.drop_in("memory", f"MemoryMax={HOG_LIMIT}", f"MemoryHigh={HOG_LIMIT}")
    service.machine.systemctl("restart", UNIT)
    service.next_result()
    pid = service.pid
    group = service.show("ControlGroup")
    folder = "/sys/fs/cgroup/memory" if service.machine.hierarchy == "legacy" else "/sys/fs/cgroup"
    # As a worker that leaks: in the unit's cgroup, and more inclined to go than the daemon.
    hog = f"""
import pathlib
pathlib.Path("{folder}{group}/cgroup.procs").write_text("0")
pathlib.Path("/proc/self/oom_score_adj").write_text("500")
eaten = []
while True:
    eaten.append(bytearray(b"x" * (8 << 20)))
"""
    done = service.machine.run("/opt/edge-agent/python/bin/python3", "-c", hog)
    expect(done.returncode == -9, f"the hog ended with {done.returncode}: {done.stderr}")
    time.sleep(1.0)
    expect(service.is_active and service.pid == pid, f"the daemon went too\n{service.journal(20)}")
    service.next_result()
    service.undo_drop_in("memory")
    return f"MemoryMax={HOG_LIMIT}: the hog went, the daemon kept its process id"


def journal(service: Service) -> str:
    """The daemon's and its worker's lines have priorities of their own."""
    service.next_result()
    service.machine.write(CONFIG, "[camera]\nnam = 3\n")
    service.kill("HUP", service.pid)
    wait_until(lambda: service.refusals, SOON_S, "the refusal is logged as an error")
    service.machine.write(CONFIG, SETTINGS.format(interval_s=10))
    entries = [
        json.loads(line)
        for line in service.journal(0, "-o", "json").splitlines()
        if line[:1] == "{"
    ]
    ours = [entry for entry in entries if entry.get("_TRANSPORT") == "stdout"]
    expect(not [e for e in ours if str(e.get("MESSAGE", "")).startswith("<")], "prefixes are left")
    by_process = {
        what: {e["PRIORITY"] for e in ours if what in str(e.get("MESSAGE"))}
        for what in ("agent.vision.worker", CONFIG)
    }
    expected = {"agent.vision.worker": {"6"}, CONFIG: {"3"}}
    expect(by_process == expected, f"priorities: {by_process}")
    return f"{len(ours)} lines, the worker's too"


def gstreamer(service: Service) -> str:
    """A pipeline runs as a child of the worker, inside the sandbox."""
    if service.machine.run("which", "gst-launch-1.0").returncode:
        return "not tried: gst-launch-1.0 is not installed"
    service.machine.write(CONFIG, SETTINGS.format(interval_s=10) + PIPELINE)
    service.machine.systemctl("restart", UNIT)
    service.next_result("gst")
    kept = service.machine.run("find", "/var/cache/edge-agent", "-name", "registry*").stdout
    expect(kept.strip(), "the list of plugins was not kept")
    service.machine.write(CONFIG, SETTINGS.format(interval_s=10))
    service.machine.systemctl("restart", UNIT)
    return "frames of a pipeline are looked at"


def drop_ins(service: Service) -> str:
    """With each of the drop-ins it starts and works; the kernel's clock can be asked with one."""
    folder = PROJECT / "systemd" / f"{UNIT}.d-examples"
    tried = sorted(folder.glob("*.conf"))
    for path in tried:
        service.machine.write(f"{DROP_INS}/example.conf", path.read_text(encoding="utf-8"))
        service.machine.systemctl("daemon-reload")
        service.machine.systemctl("restart", UNIT)
        is_known = service.next_result()["clock_synced"] is not None
        expect(is_known == (path.stem == "kernel-clock"), f"{path.name}: clock known: {is_known}")
    service.undo_drop_in("example")
    service.machine.systemctl("restart", UNIT)
    return f"{len(tried)} drop-ins, each with the daemon at work"


def all_cases(restart_count: int) -> dict[str, Case]:
    """Return the cases in the order in which they are tried."""
    return {
        "ready": ready,
        "sandbox": sandbox,
        "journal": journal,
        "reload refused": reload_refused,
        "reload unchanged": reload_unchanged,
        "reload changed": reload_changed,
        "kill": kill,
        "watchdog": watchdog,
        "many kills": many_kills,
        "stop": stop,
        "broker away": broker_away,
        "bad settings": bad_settings,
        "gstreamer": gstreamer,
        "drop-ins": drop_ins,
        "restarts": lambda service: restarts(service, restart_count),
    }
