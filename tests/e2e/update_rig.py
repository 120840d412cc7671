"""A board under the operator's orders: a repository with real keys, the daemon, and its reports."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.publish
from bad_models import made_classifier, model_folder
from brokers import RunningBroker
from harness import DEVICE, WITHIN_S, Agent, Subscriber, config_text
from made_repository import Site

from agent.operator import repo_commands
from agent.ota.bundle import describe, write_bundle
from agent.ota.manifest import BundleManifest

FPS = 30.0
# An exam stands back while others want the processor, and what hangs in it has its time.
ENDS_WITHIN_S = 600.0
# What the models that this board may come from are sure of, by the name of each.
SURE_OF = {"factory": 2, "good": 5, "better": 6}
ENDS = ("committed", "refused", "rolled_back")


def bundle_of(folder: Path, tar: Path, **more: Any) -> Path:
    """Make a bundle of a model folder; `more` of its manifest."""
    said = json.loads((folder / "manifest.json").read_bytes())
    members = {file: (folder / file).read_bytes() for file in said["files"]}
    said |= {"schema": "edge-agent/manifest/1", "files": describe(members), **more}
    write_bundle(members, msgspec.convert(said, BundleManifest), tar)
    return tar


class UpdatedBoard:
    """See the module's docstring; versions are 1, 2, 3 and so on, whatever they are versions of."""

    def __init__(
        self, home: Path, broker: RunningBroker, subscriber: Subscriber, site: Site
    ) -> None:
        self.home, self.broker, self.subscriber, self.site = home, broker, subscriber, site
        self.state_dir = home / "state"
        self.agent: Agent | None = None
        self._counters = itertools.count(int(time.time() * 1000))
        self._versions = itertools.count(1)
        self.factory = model_folder(
            home / "factory", made_classifier(SURE_OF["factory"]), name="factory"
        )

    def config(self, source: str, *, repository: str = "", probation_s: float = 1.0) -> str:
        """Return the board's settings."""
        text = config_text(
            self.broker.port,
            source=source,
            model=f'path = "{self.factory}"',
            camera=f"fps = {FPS}\nloop = true\nrealtime = true",
            state_dir=self.state_dir,
        )
        repository = repository or f"file://{self.site.folder}"
        root = self.site.folder / "metadata" / "1.root.json"
        return text.replace("[device]\n", '[device]\ngroups = ["porches"]\n') + (
            f'[update]\nrepository = "{repository}"\nroot = "{root}"\nprobation_s = {probation_s}\n'
        )

    def publish(
        self, data: bytes, *, name: str = "good", folder: Path | None = None, **more: Any
    ) -> str:
        """Add a model to the repository; return name@version. `more` as `model_folder` takes it."""
        version = str(next(self._versions))
        budget = more.pop("budget", {})
        made = Path(model_folder(self.home / f"made-{version}", data, name=name, **more))
        tar = bundle_of(
            made,
            self.home / f"{name}-{version}.tar",
            name=name,
            version=version,
            release_counter=int(version),
            budget=budget,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            assert repo_commands.run_publish(self.site.call(), tar, channel=None) == 0
        return f"{name}@{version}"

    def order(self, model: str | None, *, action: str = "run", topic: str = "") -> str:
        """Publish what should run; return the order's id."""
        counter = next(self._counters)
        order = {"deployment_id": f"d{counter}", "counter": counter, "action": action}
        if model is not None:
            order["name"], order["version"] = model.split("@")
        paho.mqtt.publish.single(
            topic or f"edge/{DEVICE}/model/desired",
            json.dumps(order),
            qos=1,
            retain=True,
            hostname="127.0.0.1",
            port=self.broker.port,
        )
        return f"d{counter}"

    def reports(self, deployment: str) -> list[dict[str, Any]]:
        """Return what was reported of an order so far."""
        said = [m for m in list(self.subscriber.messages) if m.topic.endswith("/model/reported")]
        return [m.json for m in said if m.json["deployment_id"] == deployment]

    def end_of(self, deployment: str, within_s: float = ENDS_WITHIN_S) -> dict[str, Any]:
        """Wait for the end of an order; return the report of it."""
        found: dict[str, Any] = self.subscriber.wait(
            lambda: next((one for one in self.reports(deployment) if one["phase"] in ENDS), None),
            within_s,
        )
        return found

    def serves(self, name: str, within_s: float = WITHIN_S) -> dict[str, Any]:
        """Wait for a result that comes from now on of this model; return it."""
        since = len(self.subscriber.messages)
        found: dict[str, Any] = self.subscriber.wait(
            lambda: next(
                (
                    m.json
                    for m in list(self.subscriber.messages)[since:]
                    if m.topic.endswith("/detections") and m.json["model"]["name"] == name
                ),
                None,
            ),
            within_s,
        )
        return found

    def mixed(self) -> list[dict[str, Any]]:
        """Return the results whose answer is another model's than the one that they name."""
        return [
            one
            for one in self.subscriber.results()
            if one["model"]["name"] in SURE_OF
            and one["classes"][0]["class_id"] != SURE_OF[one["model"]["name"]]
        ]
