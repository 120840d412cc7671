"""The Grafana dashboard and the alerts, held against what /metrics really has."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import free_port
from made_up_board import MadeUpBoard
from prometheus_client.parser import text_string_to_metric_families
from prometheus_tools import program, promtool

from agent.daemon.scrape import ScrapeServer
from agent.telemetry.exposition import exposition
from agent.telemetry.metrics import Metrics, ScrapeCost

PROJECT = Path(__file__).resolve().parent.parent.parent
DASHBOARD = json.loads((PROJECT / "systemd/grafana/edge-agent.json").read_text())
RULES = PROJECT / "systemd/prometheus/edge-agent.rules.yml"
SCRAPES = PROJECT / "systemd/prometheus/prometheus.yml"
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [
    pytest.param(target, id=f"{panel['title']}-{target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
GRID_WIDTH = 24
# Labels that Prometheus or a histogram adds.
ADDED = {"instance", "job", "le"}


@pytest.fixture(scope="module")
def board() -> MadeUpBoard:
    """One that is slowed down, so that it has alerts and problems."""
    board = MadeUpBoard(uptime_s=1500.0)
    board.go_on(10)
    return board


@pytest.fixture(scope="module")
def labels_of(board: MadeUpBoard) -> dict[str, set[str]]:
    """Name of each sample of a full exposition -> its labels."""
    found: dict[str, set[str]] = {}
    cost = ScrapeCost(snapshot_age_s=0.1)
    text, _ = exposition(board.metrics(), "", cost)
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def filled_in(expression: str, interval: str = "5m", instance: str = "a") -> str:
    """Return an expression as Grafana sends it."""
    variables = {
        "$__rate_interval": interval,
        "$instance": instance,
        "$camera": "door|yard",
        "$stage": "total",
    }
    for name, value in variables.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bedge_agent_\w+", expression))


def test_the_dashboard_can_be_imported_anywhere():
    assert DASHBOARD["uid"] == "edge-agent"
    assert "id" not in DASHBOARD  # one of another Grafana would be of no use
    assert [one["name"] for one in DASHBOARD["templating"]["list"]] == [
        "datasource", "instance", "camera", "stage",
    ]  # fmt: skip
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    anywhere = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["title"]
        assert panel["datasource"] == anywhere
        assert [target["datasource"] for target in panel["targets"]] == [anywhere] * len(
            panel["targets"]
        )
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references))
        for override in panel["fieldConfig"]["overrides"]:
            if override["matcher"]["id"] == "byFrameRefID":
                assert override["matcher"]["options"] in references


def test_panels_do_not_lie_on_each_other():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= GRID_WIDTH
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("target", TARGETS)
def test_each_panel_asks_for_what_there_is(target, labels_of):
    names = names_in(target["expr"])
    assert names
    assert names <= labels_of.keys()
    known = set.union(*(labels_of[name] for name in names)) | ADDED
    used = re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"])
    used += re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", target["expr"])
    for group in re.findall(r"(?:by|on|ignoring|group_left)\s*\(([^)]*)\)", target["expr"]):
        used += re.findall(r"\w+", group)
    assert set(used) <= known


def test_variables_and_annotations_ask_for_what_there_is(labels_of):
    asked = [
        one["query"]["query"]
        for one in DASHBOARD["templating"]["list"]
        if isinstance(one["query"], dict)
    ]
    asked += [one["expr"] for one in DASHBOARD["annotations"]["list"] if "expr" in one]
    assert len(asked) == 4
    for query in asked:
        assert names_in(query) <= labels_of.keys()


def test_each_expression_parses(tmp_path):
    """As records of rules: promtool of older releases has no other way."""
    expressions = [filled_in(target["expr"]) for panel in PANELS for target in panel["targets"]]
    rules = [
        {"record": f"panel:number_{number}", "expr": expression}
        for number, expression in enumerate(expressions)
    ]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # YAML as well
    done = promtool("check", "rules", path)
    assert done.returncode == 0, done.stderr.decode()
    assert f"{len(rules)} rules found".encode() in done.stdout


def test_the_alerts_are_right_and_raised():
    for arguments in (
        ("check", "rules", RULES),
        ("check", "config", SCRAPES),
        ("test", "rules", Path(__file__).with_name("alerts.test.yml")),
    ):
        done = promtool(*arguments)
        assert done.returncode == 0, (done.stdout + done.stderr).decode()


def test_the_alerts_ask_for_what_there_is(labels_of):
    text = RULES.read_text()
    expressions = re.findall(r"expr: (.+)\n(?:\s{10,}(.+)\n)?(?:\s{10,}(.+)\n)?", text)
    names = names_in(" ".join(" ".join(parts) for parts in expressions))
    assert len(names) >= 10
    assert names <= labels_of.keys()


def test_each_alert_is_tested():
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    tested = Path(__file__).with_name("alerts.test.yml").read_text()
    assert alerts
    for alert in alerts:
        # Once where it must not be raised, and once where it must.
        assert tested.count(f"alertname: {alert}}}") >= 1
        assert re.search(rf"alertname: {alert}\n\s+exp_alerts:", tested)


class Prometheus:
    """The real server, asked over its HTTP interface."""

    def __init__(self, folder: Path, target: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        config = folder / "prometheus.yml"
        job = {"job_name": "edge-agent", "static_configs": [{"targets": [target]}]}
        config.write_text(
            json.dumps({"global": {"scrape_interval": "250ms"}, "scrape_configs": [job]})
        )
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=log,
            )

    def query(self, expression: str) -> list[dict]:
        """Return the series of now; raises OSError while nobody answers."""
        parameters = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{parameters}", timeout=20) as answer:
            return json.load(answer)["data"]["result"]

    def wait_for(self, expression: str) -> list[dict]:
        """Return the series once there are some."""
        deadline = time.monotonic() + 60
        while True:
            try:
                if found := self.query(expression):
                    return found
            except OSError:  # it is starting
                assert self.process.poll() is None
            assert time.monotonic() < deadline, f"never there: {expression}"
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def shown() -> list[Metrics]:
    """The snapshot that is served: the last one here."""
    return []


@pytest.fixture
def scraped(shown: list[Metrics], tmp_path: Path) -> Iterator[tuple[Prometheus, str]]:
    """A Prometheus that scrapes what is shown, and the name that the board has there."""
    server = ScrapeServer("127.0.0.1", 0, lambda: shown[-1], alive=list, ready=list)
    server.start()
    prometheus = None
    try:
        deadline = time.monotonic() + 10
        while not server.ports:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        target = f"127.0.0.1:{server.ports[0]}"
        prometheus = Prometheus(tmp_path, target)
        yield prometheus, target
    finally:
        if prometheus is not None:
            prometheus.stop()
        server.stop()


def test_a_real_prometheus_fills_every_panel(shown, scraped):
    board = MadeUpBoard(uptime_s=1500.0)  # slowed down, so that it has alerts and problems
    board.go_on(10)
    shown.append(board.metrics(time.monotonic()))
    prometheus, target = scraped
    prometheus.wait_for("edge_agent_build_info")
    frames = board.processed["door"]
    board.go_on(2)
    shown.append(board.metrics(time.monotonic()))
    prometheus.wait_for(f'edge_agent_frames_processed_total{{camera="door"}} > {frames}')
    assert prometheus.query("last_over_time(up[1m])")[0]["value"][1] == "1"
    assert float(prometheus.query("scrape_samples_scraped")[0]["value"][1]) > 400
    empty = [
        f"{panel['title']}: {target_['expr']}"
        for panel in PANELS
        for target_ in panel["targets"]
        # Restarts are shown where there were any.
        if not prometheus.query(filled_in(target_["expr"], "1m", target).removesuffix(" > 0"))
    ]
    assert not empty
    # What it says is what the board had.
    (watts,) = prometheus.query("edge_agent_power_watts")
    assert float(watts["value"][1]) == round(board.watts, 4)
    assert watts["metric"]["sensor"] == "ina3221 VDD_IN"
    (count,) = prometheus.query(
        'edge_agent_stage_latency_seconds_count{camera="door",stage="total"}'
    )
    assert float(count["value"][1]) == board.processed["door"]
