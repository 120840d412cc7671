"""What a trip over the broker means for the agent, as findings with what to do."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import UNSET

from agent.config import Config, MqttConfig, device_id
from agent.contract.payloads import (
    MAX_POLYGON_POINTS,
    MAX_POLYGONS,
    MAX_TENSOR_NAME,
    MAX_TENSOR_VALUES,
    Detection,
    FrameSize,
    Keypoint,
    ModelIdentity,
    Pose,
    Region,
    Result,
    StageTimes,
    TensorStatistics,
    encode,
)
from agent.daemon.mqtt.connect import probe
from agent.doctor.broker import FAILURE, Attempt, Limits, Trip, attempts_on, travel
from agent.doctor.broker_orders import judge_orders, orders_of
from agent.doctor.certificates import check_certificates, read_own, read_peer
from agent.doctor.check import Check, State, fail, ok, worst
from agent.errors import BrokerError

BROKER_LIMIT_S = 10.0
# As agent.daemon.mqtt.delivery has them in flight at most.
WINDOW = 20
USUAL_HZ = 30.0  # of a camera whose rate is not limited
PACKET_OVERHEAD = 256  # MQTT 5, 3.3: fixed header, topic, message id, properties
# A result with this much in it is a large one, not the largest that can be.
MANY_BOXES, MANY_FIGURES, MANY_CLASSES, MANY_TENSORS = 100, 10, 8, 16
BODY_POINTS = 17  # COCO's and MoveNet's figure


def examine_broker(
    config: Config, tasks: set[str], timeout_s: float = BROKER_LIMIT_S
) -> list[Check]:
    """Connect as the daemon would, then send messages to ourselves."""
    settings = config.mqtt
    own = list(read_own(settings))
    tls = [check_certificates(own)] if own else []
    try:
        protocol = probe(settings, timeout_s)
    except BrokerError as error:
        remedy = "results wait on disk meanwhile; start the broker or correct [mqtt]"
        return [fail("broker", str(error), remedy), *tls]
    size = large_result_bytes(config, tasks)
    device_topic = f"{settings.prefix}/{device_id(config.device)}"
    attempts = attempts_on(device_topic, [camera.name for camera in config.camera], size)
    orders = orders_of(config)
    trip = travel(settings, protocol, attempts, timeout_s, orders)
    if trip.peer is not None:
        tls = [check_certificates([*own, *read_peer(trip.peer)])]
    found = [judge_trip(settings, protocol, attempts, trip)]
    if trip.error is None:
        found.append(judge_limits(config, trip, size))
    if orders is not None and len(trip.codes) >= len(attempts):
        found.append(judge_orders(config, orders, trip))
    return [*found, *tls]


def judge_trip(settings: MqttConfig, protocol: str, attempts: list[Attempt], trip: Trip) -> Check:
    """Say whether every message was taken, and whether it came back."""
    where = f"{settings.url}, MQTT {protocol}"
    if trip.error is not None:
        return fail("broker", f"{where}; {trip.error}", "run the check again")
    faults = list(dict.fromkeys(_faults_of(protocol, attempts, trip)))
    first = min(trip.back_ms, default=None)
    if first is None and trip.puback_ms and not faults:
        return ok(
            "broker",
            f"{where}; it took a message to {attempts[0].topic} within {trip.puback_ms[0]:.1f} ms, "
            "which this user may not read, and need not",
        )
    if first is None:
        return worst("broker", where, faults)
    topic, took_ms = attempts[first].topic, trip.back_ms[first]
    message = f"{where}; a message to {topic} came back after {took_ms:.1f} ms"
    return worst("broker", message, faults)


def _faults_of(
    protocol: str, attempts: list[Attempt], trip: Trip
) -> Iterator[tuple[State, str, str]]:
    for place, (topic, payload, _) in enumerate(attempts):
        level = topic.rpartition("/")[0]
        rights = f"let this user write to {level}/# in the broker's access rules"
        code = trip.codes.get(place)
        is_large = place == len(attempts) - 1 and place > 0
        if code is None:
            yield "fail", f"it did not acknowledge a message to {topic}", rights
            return
        if code >= FAILURE and is_large and trip.codes.get(0, FAILURE) < FAILURE:
            yield (
                "warn",
                f"it refuses messages of {len(payload)} bytes, as large results have "
                f"(reason code 0x{code:02X})",
                "raise message_size_limit or what the broker calls it, or lower max_detections",
            )
        elif code >= FAILURE:
            yield "fail", f"it refuses messages to {topic} (reason code 0x{code:02X})", rights
        elif payload and place not in trip.back_ms and protocol != "5":
            # MQTT 5 has said yes above, and the agent does not read its own messages.
            yield "warn", f"a message to {topic} was taken but did not come back", rights


def judge_limits(config: Config, trip: Trip, result_bytes: int) -> Check:
    """Hold what the broker allows against what the agent sends."""
    limits = trip.limits
    faults = list(_limits_faults(limits, result_bytes))
    answer_ms = trip.puback_ms.get(0)
    window = min(WINDOW, limits.receive_maximum)
    said = [f"{window} messages in flight"]
    if answer_ms:
        most_hz = window / answer_ms * 1000
        wanted_hz = sum(camera.fps or USUAL_HZ for camera in config.camera)
        said.append(f"acknowledged after {answer_ms:.1f} ms")
        if most_hz < wanted_hz and config.mqtt.qos:
            message = f"so at most {most_hz:.0f} of {wanted_hz:g} results a second get through"
            remedy = (
                "raise the broker's Receive Maximum (mosquitto: max_inflight_messages), bring it "
                'nearer, or send less: camera.fps, publish = "changes"'
            )
            faults.append(("warn", message, remedy))
    if limits.max_packet is not None:
        said.append(f"messages up to {limits.max_packet} bytes")
    if limits.keep_alive_s is not None:
        said.append(f"a sign of life every {limits.keep_alive_s} s")
    return worst("broker_limits", ", ".join(said), faults)


def _limits_faults(limits: Limits, result_bytes: int) -> Iterator[tuple[State, str, str]]:
    if limits.max_qos < 1:
        message = "it takes QoS 0 alone, so it acknowledges nothing and results may be lost"
        yield "fail", message, "set mqtt.qos = 0 to live with that, or take another broker"
    if not limits.is_retaining:
        message = "it keeps no retained messages, so whoever comes later sees no status"
        yield "warn", message, "allow retained messages (mosquitto: retain_available true)"
    needed = result_bytes + PACKET_OVERHEAD
    if limits.max_packet is not None and limits.max_packet < needed:
        message = f"large results, of about {needed} bytes, will be given up and named in a gap"
        remedy = (
            "raise the broker's Maximum Packet Size (mosquitto: max_packet_size), or lower "
            "max_detections"
        )
        yield "warn", message, remedy


def large_result_bytes(config: Config, tasks: set[str]) -> int:
    """Return the size of a result with much in it, of the models that are used.

    Args:
        config: for `max_detections`.
        tasks: what the models do, as far as they could be tried; none is taken for detection.
    """
    limits = [model.max_detections for model in (config.model, *config.models.values())]
    boxes = max((one for one in limits if one is not None), default=MANY_BOXES)
    return max(len(encode(_large(task, boxes))) for task in tasks or {"detection"})


def _large(task: str, boxes: int) -> Result:
    label, score = "x" * 16, 0.1234
    point = Keypoint(label=label, score=score, x=1234.5, y=1234.5)
    box = (1234.5, 1234.5, 1234.5, 1234.5)
    figure = Pose(label=label, class_id=0, score=score, box=box, points=[point] * BODY_POINTS)
    outline = [(1234.5, 1234.5)] * MAX_POLYGON_POINTS
    region = Region(label=label, class_id=10, area=score, polygons=[outline] * MAX_POLYGONS)
    tensor = TensorStatistics(
        name="x" * (MAX_TENSOR_NAME // 4),
        shape=[1, 100, 100, 100],
        dtype="float32",
        min=score,
        max=score,
        mean=score,
        not_finite=0,
        values=[score] * MAX_TENSOR_VALUES,
    )
    detection = Detection(label=label, class_id=10, score=score, box=box)
    return Result(
        device="x" * 32,
        camera="x" * 16,
        boot_id="x" * 32,
        seq=10**9,
        frame_id=10**9,
        captured_at=1795260710.187915,
        clock_synced=False,
        latency_ms=123.456,
        dropped=100,
        frame=FrameSize(width=1920, height=1080),
        model=ModelIdentity(name="x" * 32, version="1.0.0", sha256="0" * 64),
        accelerator="edgetpu:usb:0",
        stage_ms=StageTimes(queue=1.234, preprocess=1.234, inference=123.456, postprocess=1.234),
        detections=[detection] * boxes if task == "detection" else UNSET,
        keypoints=[figure] * min(boxes, MANY_FIGURES) if task == "pose" else UNSET,
        regions=[region] * MANY_CLASSES if task == "segmentation" else UNSET,
        tensors=[tensor] * MANY_TENSORS if task == "raw" else UNSET,
    )
