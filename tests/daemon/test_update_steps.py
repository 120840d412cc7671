"""The updater's steps put together: what each is handed, and what it is told apart by."""

from pathlib import Path
from typing import get_type_hints

import pytest

from agent.config import ModelConfig
from agent.contract.payloads import MeasuredRun, ModelIdentity
from agent.contract.updates import Desired, Floors
from agent.daemon.update_steps import EngineModel, UpdateSteps, runs_of
from agent.link import Ready
from agent.ota.state import BundleRef
from agent.ota.steps import Refused, Steps
from agent.ota.store import Store
from agent.ota.store_steps import StoreSteps

REF = BundleRef(
    sha256="a" * 64,
    name="ssd",
    version="1",
    release_counter=1,
    security_floor=0,
    manifest_sha256="b" * 64,
    p95_ms=20.0,
    rss_mib=90.0,
)
WANTED = Desired(deployment_id="d", counter=1, name="ssd", version="1")
SETTINGS = ModelConfig(path="default", accelerator="cpu", threads=2)


class Exchange:
    """Writes down what it is asked."""

    way = None

    def __init__(self):
        self.asked = []
        self.workers = self

    def swap(self, model, *, manifest_sha256):
        self.asked.append(("swap", model, manifest_sha256))

    def shadow(self, request):
        self.asked.append(("shadow", request))

    def keep(self):
        self.asked.append(("keep",))

    def replace(self, why):
        self.asked.append(("replace", why))


@pytest.fixture
def exchange():
    return Exchange()


@pytest.fixture
def steps(tmp_path, exchange):
    store = Store(tmp_path / "models")
    return UpdateSteps(
        engines={"": EngineModel(settings=SETTINGS, exchange=exchange)},
        store=store,
        stored=StoreSteps(store, "rpi-4"),
        fetching=None,
        most_threads=3,
    )


def test_all_steps_are_there():
    wanted = {name for name in vars(Steps) if not name.startswith("_")}
    for name in wanted:
        ours, theirs = getattr(UpdateSteps, name), getattr(Steps, name)
        assert list(get_type_hints(ours)) == list(get_type_hints(theirs)), name


def test_a_bundle_runs_as_the_settings_say_but_for_its_path(steps, exchange, tmp_path):
    steps.swap("", REF)
    steps.swap("", None)
    (_, model, manifest), factory = exchange.asked
    assert (model.path, model.threads) == (str(tmp_path / "models" / REF.sha256), 2)
    assert manifest == REF.manifest_sha256
    assert factory == ("swap", SETTINGS, "")


def test_shadow_knows_budget_and_threads(steps, exchange, tmp_path):
    steps.shadow("", REF)
    request = exchange.asked[0][1]
    assert request.model.path == str(tmp_path / "models" / REF.sha256)
    assert (request.p95_ms, request.rss_mib, request.most_threads) == (20.0, 90.0, 3)


def test_the_worker_is_told(steps, exchange):
    steps.keep("")
    steps.restart("")
    assert exchange.asked == [("keep",), ("replace", "swap")]


def test_without_a_repository_nothing_is_asked(steps):
    for step in (steps.metadata(WANTED, Floors()), steps.download(WANTED, REF, 1, Floors())):
        reply = step.poll()
        assert isinstance(reply, Refused)
        assert (reply.code, reply.is_final) == ("E_DISABLED", True)
        step.stop()


def test_which_bundle_a_worker_runs():
    def ready(path):
        run = MeasuredRun(runtime="litert", threads=1, xnnpack=True, invoke_ms=None)
        return Ready(
            model=ModelIdentity(name="ssd", version="1", sha256="c" * 64),
            path=path,
            task="detection",
            head="ssd",
            accelerator="cpu:xnnpack",
            reason=None,
            is_accelerated=False,
            fallbacks=(),
            run=run,
            first_invoke_s=0.1,
            notes=(),
        )

    models = Path("/var/lib/edge-agent/models")
    ours = runs_of("door", ready(str(models / REF.sha256)), models)
    assert (ours.engine, ours.bundle, ours.model.name) == ("door", REF.sha256, "ssd")
    for path in ("default", "/etc/edge-agent/m.tflite", str(models / ".staging" / REF.sha256)):
        factory = runs_of("", ready(path), models)
        assert (factory.bundle, factory.source) == (None, "factory")
