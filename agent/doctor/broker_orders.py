"""Whether the broker lets orders for models through, and a repository behind it.

The rights are those of `systemd/mosquitto/acl`. What is tried: the daemon's subscriptions, and
where `update.repository` names `mqtt:` a request for a first small file, which nobody but a server
of repositories hears. What is not: `<p>/<d>/model/reported`, as people and programs listen to it,
and the daemon's word is retained there.

SUBACK says what brokers refuse: mosquitto's dynamic security does. Its acl_file (2.0.11) grants
every subscription and leaves out what may not be read, so there only an answer proves anything.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import msgspec

from agent.config import Config, device_id, mirrors_of
from agent.contract.topics import Topics
from agent.daemon.build_updates import OVER_MQTT, desired_topics
from agent.doctor.broker import ANSWERS_WITHIN_S, FAILURE, Attempt, Orders, Trip
from agent.doctor.check import Check, State, worst
from agent.ota.chunks import BUSY, MOST_PIECE_BYTES, OK, ChunkRequest, chunk_topic, request_topic

NOBODY_LISTENS = 0x10  # MQTT 5, 3.4.2.1: No matching subscribers
FIRST_FILE = "metadata/timestamp.json"  # of any repository; some hundred bytes
Fault = tuple[State, str, str]


def orders_of(config: Config) -> Orders | None:
    """Return what to try; None where no order could be carried out."""
    mirrors = mirrors_of(config.update.repository)
    if not config.update.enabled or not mirrors:
        return None
    prefix, device = config.mqtt.prefix, device_id(config.device)
    filters = dict.fromkeys(desired_topics(Topics(prefix, device), config.device.groups), 1)
    if OVER_MQTT not in mirrors:
        return Orders(filters=filters)
    filters[chunk_topic(prefix, device, "+")] = 0
    # An id of its own: an answer to it means nothing to the daemon, which hears it too.
    request = ChunkRequest(
        id=f"{secrets.token_hex(4)}-0", path=FIRST_FILE, offset=0, length=MOST_PIECE_BYTES
    )
    return Orders(
        filters=filters,
        request=Attempt(request_topic(prefix, device), msgspec.json.encode(request)),
        answer_topic=chunk_topic(prefix, device, request.id),
    )


def judge_orders(config: Config, orders: Orders, trip: Trip) -> Check:
    """Say what would keep orders from coming; none of it keeps results from going."""
    prefix, device = config.mqtt.prefix, device_id(config.device)
    faults = list(_faults_of(prefix, device, orders, trip))
    said = f"subscribed to {', '.join(one for one, code in trip.heard.items() if code < FAILURE)}"
    if trip.answer_status in (OK, BUSY) and trip.answer_ms is not None:
        said += f"; a repository behind the broker answered after {trip.answer_ms:.1f} ms"
    return worst("broker_orders", "" if faults else said, faults)


def _faults_of(prefix: str, device: str, orders: Orders, trip: Trip) -> Iterator[Fault]:
    for topic_filter in orders.filters:
        rights = _rights("read", topic_filter, prefix, device)
        code = trip.heard.get(topic_filter)
        if code is None:
            message = f"it hung up on a subscription to {topic_filter}, or did not answer it"
            yield "warn", message, rights
            return
        if code >= FAILURE:
            what = "pieces of files" if topic_filter.endswith("+") else "orders"
            message = f"it refuses a subscription to {topic_filter} (reason code 0x{code:02X})"
            yield "warn", f"{message}, so {what} do not come", rights
    if orders.request is not None:
        yield from _repository_faults(prefix, device, orders.request.topic, trip)


def _repository_faults(prefix: str, device: str, topic: str, trip: Trip) -> Iterator[Fault]:
    rights = _rights("write", topic, prefix, device)
    chunks = chunk_topic(prefix, device, "+")
    serve = "run `edge-agent repo serve-mqtt` where it reaches this broker"
    code, status = trip.request_code, trip.answer_status
    if code is None:
        yield "warn", f"it did not acknowledge a request to {topic}", rights
    elif code >= FAILURE:
        yield "warn", f"it refuses messages to {topic} (reason code 0x{code:02X})", rights
    elif code == NOBODY_LISTENS:
        yield "warn", f"nobody listens to {topic}, so `mqtt:` has no files", serve
    elif status is None and trip.heard[chunks] < FAILURE:
        # MQTT 3.1.1 does not say that a message was refused, either.
        message = f"nobody answered a request to {topic} within {ANSWERS_WITHIN_S:g} s"
        yield "warn", message, f"{serve}; {rights}; {_rights('read', chunks, prefix, device)}"
    elif status not in (None, OK, BUSY):
        message = f"whoever answers {topic} says {status} of {FIRST_FILE}"
        yield "warn", message, "look at the folder that `edge-agent repo serve-mqtt` was given"


def _rights(verb: str, topic: str, prefix: str, device: str) -> str:
    """Return which right is missing, and the line of systemd/mosquitto/acl that gives it."""
    line = topic.replace(f"{prefix}/{device}/", f"{prefix}/%u/", 1)
    if line.startswith(f"{prefix}/group/"):
        line = f"{prefix}/group/+/model/desired"
    return (
        f"let this user {verb} {topic} in the broker's access rules (mosquitto's acl_file: "
        f"`pattern {verb} {line}`)"
    )
