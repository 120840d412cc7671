"""`edge-agent schema`: the schemas accept what the agent sends and refuse what it never would."""

import copy
import functools
import json
import subprocess
import sys

import jsonschema
import msgspec
import pytest
from made_up_board import MadeUpBoard

from agent import __version__
from agent.cli import main
from agent.contract import payloads, topics, updates
from agent.contract import schema as schemas
from agent.contract.schema import UnknownSchemaError

VALIDATOR = jsonschema.Draft202012Validator
# All of them are made for each that is asked for, and no test changes one.
document = functools.cache(schemas.document)
IDENTITY = payloads.ModelIdentity(name="default", version="1.0.0", sha256="9b" * 32)
RESULT = {
    "device": "porch-pi",
    "camera": "door",
    "boot_id": "6f1c",
    "seq": 18231,
    "frame_id": 18302,
    "captured_at": 1795248000.123456,
    "clock_synced": True,
    "latency_ms": 12.8,
    "dropped": 0,
    "frame": payloads.FrameSize(width=1280, height=720),
    "model": IDENTITY,
    "accelerator": "cpu:xnnpack",
    "stage_ms": payloads.StageTimes(queue=0.3, preprocess=0.5, inference=7.6, postprocess=0.2),
}
DETECTION = payloads.Detection(label="cat", class_id=16, score=0.73, box=(90.3, 94.1, 918.5, 703.6))
CLASS = payloads.Classification(label=None, class_id=0, score=0.0)
POINTS = [
    payloads.Keypoint(label="nose", score=0.9, x=1.0, y=2.0),
    payloads.Keypoint(label=None, score=None, x=0.0, y=719.5),
]
POSES = [
    payloads.Pose(label="person", class_id=0, score=0.7, box=None, points=POINTS),
    payloads.Pose(label=None, class_id=1, score=0.3, box=(0.0, 0.0, 10.0, 20.0), points=[]),
]
REGIONS = [
    payloads.Region(
        label="bird", class_id=3, area=0.17, polygons=[[(0.5, 0.5), (9.5, 0.5), (9.5, 7.0)]]
    ),
    payloads.Region(label=None, class_id=200, area=1.0, polygons=[]),
]
TENSORS = [
    payloads.TensorStatistics(
        name="out", shape=[1, 4], dtype="int8", min=-1.0, max=2.5, mean=0.1, not_finite=0,
        values=[-1.0, 2.5, 0.0, None],
    ),
    payloads.TensorStatistics(
        name="", shape=[], dtype="float32", min=None, max=None, mean=None, not_finite=1
    ),
]  # fmt: skip
CASCADE = payloads.CascadeRun(
    name="faces", model=IDENTITY, accelerator="cpu:xnnpack", crops=2, skipped=1
)


def camera_status(**changes):
    values = {
        "device": "porch-pi",
        "camera": "door",
        "state": "offline",
        "since": 1795248000.0,
        "reason": "/dev/video0 was unplugged",
        "source": "/dev/video0",
        "width": None,
        "height": None,
        "fps": None,
    }
    return payloads.CameraStatus(**{**values, **changes})


# Only where there are second stages; only where the clock was set later.
OPTIONAL = {"cascade", "clock_repaired"}


def samples():
    yield "detections", payloads.Result(**RESULT, detections=[DETECTION])
    yield "detections", payloads.Result(**RESULT, detections=[])
    yield "detections", payloads.Result(**RESULT, classes=[CLASS])
    with_more = msgspec.structs.replace(
        DETECTION, keypoints=POINTS, classes=[CLASS], classified_by="faces"
    )
    yield "detections", payloads.Result(**RESULT, detections=[with_more], cascade=[CASCADE])
    yield "detections", payloads.Result(**RESULT, keypoints=POSES)
    yield "detections", payloads.Result(**RESULT, regions=REGIONS)
    yield "detections", payloads.Result(**RESULT, tensors=TENSORS)
    yield "detections", payloads.Result(**RESULT, detections=[], clock_repaired=True)
    yield "camera-status", camera_status()
    yield "camera-status", camera_status(state="frozen", reason="the picture stands still")
    yield "camera-status", camera_status(state="online", reason=None, width=640, fps=29.9)
    for total, counts in ((3, {"person": 1, "traffic light": 2, "cat": 0}), (None, None)):
        yield (
            "counts",
            payloads.Counts(
                device="porch-pi", camera="door", at=1795248000.0, total=total, counts=counts
            ),
        )
    yield (
        "gap",
        payloads.Gap(
            device="porch-pi",
            boot_id="6f1c",
            stream="camera/door/detections",
            from_seq=10,
            to_seq=19,
            count=10,
            reason="queue_full",
        ),
    )
    yield (
        "gap",
        payloads.Gap(
            device="porch-pi",
            boot_id="6f1c",
            stream="telemetry",
            from_seq=10,
            to_seq=10_000,
            count=None,
            reason="restart",
        ),
    )
    yield (
        "status",
        payloads.Status(
            device="porch-pi",
            boot_id="6f1c",
            agent_version="0.1.0",
            started_at=1795248000.0,
            board=payloads.Board(
                model=None, machine="aarch64", python="3.11.2", runtime="litert 2.3.0"
            ),
            groups=("porches",),
            model=IDENTITY,
            task="detection",
            accelerator=payloads.Accelerator(wanted="auto", used="cpu:xnnpack", reason=None),
            engines=[
                payloads.EngineStatus(
                    name="",
                    cameras=["door"],
                    model=IDENTITY,
                    task="detection",
                    head="ssd",
                    accelerator=payloads.Accelerator(
                        wanted="edgetpu", used="cpu:xnnpack", reason="no Edge TPU is plugged in"
                    ),
                    run=payloads.MeasuredRun(
                        runtime="litert 2.3.0", threads=3, xnnpack=True, invoke_ms=None
                    ),
                )
            ],
            cameras=[payloads.CameraSummary(name="door", state="starting", reason=None)],
            health=[payloads.Problem(code="model", message="it is damaged", since=1795248000.0)],
            clock_synced=None,
        ),
    )
    board = MadeUpBoard()
    board.go_on(10)
    yield "telemetry", board.telemetry()
    yield (
        "reported",
        updates.Reported(
            device="porch-pi",
            boot_id="6f1c",
            at=1795248000.0,
            engine="",
            deployment_id="spring-1",
            phase="downloading",
            code=None,
            message=None,
            progress=0.25,
            model=payloads.ModelIdentity(name="cats", version="1.2.0", sha256="9b" * 32),
            release_counter=17,
            source="active",
            candidate="cats@1.3.0",
            previous=None,
            attempts=1,
            bytes_done=1024,
            bytes_total=4096,
            p95_ms=None,
            rss_mib=None,
            agreement=None,
            clock_trusted=True,
            floors=updates.Floors(release_counter=17, security_floor=3, root_version=1),
            ignored=updates.IgnoredOrder(
                code="E_REPLAY", message="is older", deployment_id=None, at=1795248000.0
            ),
        ),
    )


SAMPLES = [(name, json.loads(payloads.encode(payload))) for name, payload in samples()]
HEARD = {"desired"}
NAMES = ["status", "detections", "camera-status", "counts", "telemetry", "gap", "reported"]
NAMES += sorted(HEARD)


def test_every_payload_of_the_topic_table_has_a_schema_and_a_sample():
    schemas = document("all")["schemas"]
    in_table = {row.payload for row in topics.TABLE if not isinstance(row.payload, str)}
    assert len(schemas) == len(in_table)
    assert set(schemas) == set(NAMES) == {name for name, _ in SAMPLES} | HEARD


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_a_schema_and_stands_alone(name):
    schema = document(name)
    VALIDATOR.check_schema(schema)
    assert schema["$schema"] == VALIDATOR.META_SCHEMA["$id"]
    assert schema["$id"] == f"urn:edge-agent:{name}:1"
    assert schema["title"] == f"edge-agent/{name}/1"
    for reference in references(schema):
        assert resolve(schema, reference)["type"] == "object"


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_what_is_sent_is_valid(name, sample):
    VALIDATOR(document(name)).validate(sample)


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_every_key_is_required(name, sample):
    validator = VALIDATOR(document(name))
    for key in sample.keys() - OPTIONAL:
        rest = {other: value for other, value in sample.items() if other != key}
        assert not validator.is_valid(rest), key


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_every_value_of_another_type_is_refused(name, sample):
    validator = VALIDATOR(document(name))
    for path, value in leaves(sample):
        wrong = copy.deepcopy(sample)
        place(wrong, path[:-1])[path[-1]] = "text" if value == [] else []
        assert not validator.is_valid(wrong), path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "edge-agent/detections/2"),
        ("seq", 0),
        ("dropped", -1),
        ("latency_ms", -0.1),
        ("classes", []),  # besides `detections`
        ("detections", [{"label": "cat", "class_id": 16, "score": 1.1, "box": [0, 0, 1, 1]}]),
        ("detections", [{"label": "cat", "class_id": 16, "score": 0.9, "box": [0, 0, 1]}]),
        ("detections", [{"label": "cat", "class_id": 16, "score": 0.9, "box": [0, 0, 1, 1, 1]}]),
        ("model", {"name": "default", "version": None, "sha256": "9B"}),
        ("keypoints", []),
        ("regions", []),
        ("tensors", []),
    ],
)
@pytest.mark.parametrize("dialect", ["2020-12", "asyncapi"])
def test_impossible_result_is_refused(dialect, key, value):
    sample = SAMPLES[0][1]
    validator = VALIDATOR(document("detections")) if dialect == "2020-12" else draft_07("Result")
    validator.validate(sample)
    assert not validator.is_valid({**sample, key: value})


def test_asyncapi_covers_the_topic_table():
    found = document("asyncapi")
    assert found["asyncapi"] == "3.0.0"
    assert found["info"]["version"] == __version__
    channels = found["channels"]
    assert [channel["address"] for channel in channels.values()] == [
        row.pattern.replace("<p>", "{prefix}")
        .replace("<d>", "{device}")
        .replace("<c>", "{camera}")
        .replace("<g>", "{group}")
        for row in topics.TABLE
    ]
    for row, (name, channel) in zip(topics.TABLE, channels.items(), strict=True):
        action = "receive" if row.payload is updates.Desired else "send"
        operation = found["operations"][f"{action}-{name}"]
        assert operation["action"] == action
        assert operation["channel"] == {"$ref": f"#/channels/{name}"}
        assert operation["bindings"]["mqtt"]["retain"] == row.retained
        assert operation["bindings"]["mqtt"]["qos"] == 1
        assert {f"{{{name}}}" for name in channel["parameters"]} == {
            part for part in channel["address"].split("/") if part.startswith("{")
        }
        assert channel["messages"]


@pytest.mark.parametrize(
    ("changes", "is_valid"),
    [
        ({}, True),
        ({"action": "rollback", "name": None, "version": None}, True),
        ({"counter": 0}, False),
        ({"name": "a/b"}, False),
        ({"unknown": 1}, False),
        ({"deployment_id": None}, False),
    ],
)
@pytest.mark.parametrize("dialect", ["2020-12", "asyncapi"])
def test_what_is_heard_may_leave_out_what_has_a_default(dialect, changes, is_valid):
    order = {"deployment_id": "a", "counter": 1, "name": "cats", "version": "1.2.0"}
    validator = VALIDATOR(document("desired")) if dialect == "2020-12" else draft_07("Desired")
    assert validator.is_valid({**order, **changes}) == is_valid
    assert "model/desired, <p>/group/<g>/model/desired" in document("desired")["description"]


def test_asyncapi_references_resolve():
    found = document("asyncapi")
    everything = list(references(found))
    assert len(everything) > 20
    for reference in everything:
        assert resolve(found, reference)
    assert "prefixItems" not in json.dumps(found)


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_asyncapi_payloads_accept_what_is_sent(name, sample):
    found = document("asyncapi")
    [message] = found["channels"][name]["messages"].values()
    payload = resolve(found, message["$ref"])["payload"]
    draft_07(payload["$ref"].rsplit("/", 1)[-1]).validate(sample)


@pytest.mark.parametrize("name", ["detection", "asyncap", "", "/etc/passwd"])
def test_unknown_name_is_a_usage_error_with_the_names(name, capsys):
    assert main(["schema", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for known in ("all", "asyncapi", *NAMES):
        assert known in captured.err


def test_nearest_name_is_suggested():
    with pytest.raises(UnknownSchemaError, match="did you mean `camera-status`"):
        document("camera_status")


def test_command_prints_one_document():
    shown = subprocess.run(
        [sys.executable, "-m", "agent", "schema"], capture_output=True, text=True, check=True
    )
    assert json.loads(shown.stdout) == document("all")
    assert shown.stderr == ""


def draft_07(name):
    components = document("asyncapi")["components"]
    return jsonschema.Draft7Validator(
        {"$ref": f"#/components/schemas/{name}", "components": components}
    )


def references(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def resolve(found, reference):
    assert reference.startswith("#/")
    for step in reference[2:].split("/"):
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return found


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list) and value:
        for index, part in enumerate(value):
            yield from leaves(part, (*path, index))
    else:
        yield path, value


def place(value, path):
    for step in path:
        value = value[step]
    return value
