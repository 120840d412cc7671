"""A real worker process, spoken to over its link as the supervisor does."""

import contextlib
import json
import select
import time

from agent.choices import Choice
from agent.config import CameraConfig, ModelConfig
from agent.daemon.workers.worker_run import spawn_worker
from agent.link import FromWorker, Inbox, ResultOut, Start, open_link, send
from agent.vision.engines import installed_runtimes
from agent.vision.model_files import read_model
from agent.vision.trial import choice_key

WITHIN_S = 60.0


def chosen(*configs):
    """Return choices as if these models had been tried here before: no child is started."""
    choice = Choice(
        runtime=installed_runtimes()[0], xnnpack=True, threads=1, invoke_ms=1.0, candidates=(),
        measured_at=time.time(),
    )  # fmt: skip
    return {choice_key(read_model(one.path), one, 1): choice for one in configs}


def model(path, **settings):
    """Return a model's settings."""
    return ModelConfig(path=str(path), accelerator="cpu", threads=1, **settings)


class Live:
    """One worker and all that it has said."""

    def __init__(self, first, *, others=(), cameras=None, second=None):
        self.cameras = cameras or (CameraConfig(name="door", source="synthetic", fps=30.0),)
        self.link, theirs = open_link()
        self.process = spawn_worker(theirs)
        theirs.close()
        self.inbox = Inbox(self.link, FromWorker)
        self.heard = []
        self.choices = chosen(first, *others, *(second or {}).values())
        self.start = Start(
            device="d", boot_id="b", model=first, second=second or {}, cameras=self.cameras,
            resume={}, most_threads=1, choices=self.choices,
        )  # fmt: skip
        self.say(self.start)

    def say(self, message):
        send(self.link, message)

    def until(self, kind, *, count=1, within_s=WITHIN_S, **fields):
        """Read on until so many more messages of a kind, with these fields, have come."""
        deadline = time.monotonic() + within_s
        while count:
            left = deadline - time.monotonic()
            readable = left > 0 and select.select([self.link], [], [], left)[0]
            assert readable, (kind, fields, self.heard[-3:])
            message = self.inbox.receive()
            assert message is not None, ("the worker has ended", self.heard[-3:])
            self.heard.append(message)
            has_all = all(getattr(message, name, None) == value for name, value in fields.items())
            count -= isinstance(message, kind) and has_all
        return message

    def of_kind(self, *kinds):
        return [message for message in self.heard if isinstance(message, kinds)]

    def results(self, camera="door"):
        return [json.loads(one.payload) for one in self.of_kind(ResultOut) if one.camera == camera]

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.inbox.close()
        with contextlib.suppress(OSError):
            self.link.close()


def assert_accounted(results):
    """No result is missing or repeated, and every frame without one is counted."""
    assert [one["seq"] for one in results] == list(range(1, len(results) + 1))
    frame_id = 0
    for one in results:
        assert one["frame_id"] == frame_id + one["dropped"] + one["still"] + 1
        frame_id = one["frame_id"]
