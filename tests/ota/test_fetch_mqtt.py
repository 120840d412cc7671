"""A repository behind the broker: pieces lost, late, of others, and all of it for real."""

import contextlib
import json
import os
import queue
import random
import threading
import time

import msgspec
import pytest
from asking import PATIENT, QUICK, Board
from brokers import MOSQUITTO, mosquitto
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from repository_simulator import Repository

from agent.config import MqttConfig
from agent.contract.updates import Desired, Floors
from agent.errors import UnavailableError
from agent.operator.exchange import Exchange, Message
from agent.operator.serve_mqtt import ChunkServer, serve
from agent.ota import steps
from agent.ota.chunks import (
    HEAD_BYTES,
    MOST_PIECE_BYTES,
    Chunk,
    chunk_topic,
    is_path,
    pack,
    parse_request,
    request_topic,
    unpack,
)
from agent.ota.download import Download
from agent.ota.fetch_mqtt import ChunkRelay, ChunkTransport, Lines
from agent.ota.fetching import Fetching, Source
from agent.ota.jobs import DownloadJob, Limits, Need
from agent.ota.refusal import RefusalError

WITHIN_S = 120.0
BUNDLE = random.Random(3).randbytes(400_001)
IMPATIENT = msgspec.structs.replace(QUICK, window_s=0.4, least_bytes_per_s=100.0)


@pytest.fixture(scope="module")
def made():
    repository = Repository()
    repository.add("ssd", "1.0", BUNDLE)
    return repository


@pytest.fixture
def folder(tmp_path, made):
    place = tmp_path / "repository"
    for name, content in made.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


@pytest.fixture
def server(folder):
    return ChunkServer(folder, prefix="edge", most_bytes_s=1e9)


def request(path="metadata/timestamp.json", offset=0, length=1000, **more):
    return json.dumps(
        {"id": "a-1", "path": path, "offset": offset, "length": length} | more
    ).encode()


def asked(server, **said):
    answer = server.answer("edge/porch/repo/get", request(**said))
    return None if answer is None else unpack(answer[1])


# --- what is on the wire -------------------------------------------------------------------------


@given(
    status=st.integers(0, 65535),
    offset=st.integers(0, 2**64 - 1),
    total=st.integers(0, 2**64 - 1),
    tag=st.binary(min_size=8, max_size=8),
    piece=st.binary(max_size=100),
)
def test_what_is_packed_is_unpacked(status, offset, total, tag, piece):
    chunk = Chunk(status=status, offset=offset, total=total, tag=tag, piece=piece)
    assert unpack(pack(chunk)) == chunk


@given(st.binary(max_size=200))
def test_other_bytes_are_no_answer(payload):
    chunk = unpack(payload)
    assert chunk is None or pack(chunk) == payload


def test_an_answer_fits_into_what_a_board_takes():
    assert HEAD_BYTES + MOST_PIECE_BYTES <= 64 << 10
    assert unpack(bytes(HEAD_BYTES + MOST_PIECE_BYTES + 1)) is None


@pytest.mark.parametrize(
    "path",
    [
        "metadata/timestamp.json", "metadata/12.root.json", "metadata/2.targets.json",
        f"targets/ssd/{'a' * 64}.1.4.0+b2.tar",
    ],
)  # fmt: skip
def test_paths(path):
    assert is_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "metadata/../keys/root.json", "targets/../../x", "metadata/./x.json",
        "metadata//x.json", "keys/root-1.json", "metadata/x.txt", "targets/", "targets/a/b/c/d",
        "metadata/x.json\n", "targets/a\0b", "targets/.hidden/x", "metadata/x/y.json",
    ],
)  # fmt: skip
def test_no_paths(path):
    assert not is_path(path)


@given(st.binary(max_size=1200))
def test_other_bytes_are_no_request(payload):
    with contextlib.suppress(ValueError):
        assert is_path(parse_request(payload).path)


# --- who serves ----------------------------------------------------------------------------------


def test_pieces_of_a_file(server, made):
    content = made.files["metadata/timestamp.json"]
    chunk = asked(server, length=100)
    assert (chunk.status, chunk.total, chunk.piece) == (200, len(content), content[:100])
    rest = asked(server, offset=100, length=MOST_PIECE_BYTES)
    assert rest.piece == content[100:]
    assert rest.tag == chunk.tag
    assert asked(server, offset=len(content)).status == 416
    assert asked(server, offset=2**40).status == 416
    assert asked(server, path="metadata/9.root.json").status == 404


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{", b"[]", request(path="../keys"), request(offset=-1), request(length=0),
        request(length=MOST_PIECE_BYTES + 1), request(id="x y"), request(id="../x"),
        request(more=1), request(path="targets/../metadata/timestamp.json"), b"[" * 1000,
        b" " * 2000,
    ],
)  # fmt: skip
def test_what_is_no_request_is_not_answered(server, payload):
    assert server.answer("edge/porch/repo/get", payload) is None


@pytest.mark.parametrize(
    "topic",
    [
        "edge//repo/get",
        "edge/a/b/repo/get",
        "other/porch/repo/get",
        "edge/porch/repo/put",
        "",
        "edge",
    ],
)
def test_other_topics_are_not_answered(server, topic):
    assert server.answer(topic, request()) is None


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_files_are_served(server, folder, kind):
    trap = folder / "metadata/7.root.json"
    if kind == "link":
        trap.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(trap)
    else:
        trap.mkdir()
    assert asked(server, path="metadata/7.root.json").status == 404


def test_one_board_does_not_take_it_all(folder):
    now = 0.0
    server = ChunkServer(folder, prefix="edge", most_bytes_s=400_000, clock=lambda: now)
    path = next(str(one.relative_to(folder)) for one in folder.rglob("*.tar"))

    def status(device):
        answer = server.answer(f"edge/{device}/repo/get", request(path, length=MOST_PIECE_BYTES))
        return unpack(answer[1]).status

    first = [status("greedy") for _ in range(20)]
    assert first.count(200) == 2  # 100,000 bytes a second, and the piece that goes beyond
    assert status("modest") == 200
    now = 1.0
    assert status("greedy") == 200


def test_no_more_boards_are_known_than_fit(folder, monkeypatch):
    from agent.operator import serve_mqtt

    monkeypatch.setattr(serve_mqtt, "MOST_BOARDS", 10)
    server = ChunkServer(folder, prefix="edge")
    for number in range(50):
        server.answer(f"edge/board-{number}/repo/get", request())
    assert server.boards == 10


def test_no_repository(tmp_path):
    with pytest.raises(UnavailableError, match="repo init"):
        ChunkServer(tmp_path, prefix="edge")


# --- who asks ------------------------------------------------------------------------------------


class Wire:
    """Both pipes of an update process, and a network between that a test may spoil."""

    def __init__(self, server, spoil=lambda number, answer: [answer]):
        read, self._write = os.pipe()
        self.lines = Lines(read)
        self.asked: list[Need] = []
        self._read = read
        self._spoil = spoil
        self._server = server
        self._relay = ChunkRelay(prefix="edge", device="porch", publish=self._publish)

    def ask(self, need):
        self.asked.append(need)
        self._relay.ask(need, self._hand_down)

    def _hand_down(self, message):
        os.write(self._write, message)

    def _publish(self, topic, payload):
        answer = self._server.answer(topic, payload)
        for topic, payload in self._spoil(len(self.asked), answer):
            self._relay.on_message(topic, payload)

    def transport(self, limits=PATIENT):
        return ChunkTransport(self.lines, self.ask, limits=limits, pause=lambda _: None)

    def close(self):
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def wire(server):
    made = Wire(server)
    yield made
    made.close()


def read_all(transport, path, **more):
    reply = transport.open(path, **more)
    content = b""
    while piece := reply.read(50_000):
        content += piece
    return content


@pytest.fixture
def path(made):
    return next(name for name in made.files if name.endswith(".tar"))


def test_a_file_in_pieces(wire, path):
    assert read_all(wire.transport(), path) == BUNDLE
    assert len(wire.asked) == -(-len(BUNDLE) // MOST_PIECE_BYTES)


def test_a_file_from_an_offset_on(wire, path):
    first = wire.transport().open(path)
    assert read_all(wire.transport(), path, offset=399_000, tag=first.tag) == BUNDLE[399_000:]


def test_another_file_by_now_starts_at_its_beginning(wire, path):
    reply = wire.transport().open(path, offset=1000, tag="00" * 8)
    assert reply.start == 0
    reply = wire.transport().open(path, offset=len(BUNDLE) + 5)
    assert reply.start == 0


def test_a_file_that_is_replaced_on_the_way(wire, folder, path):
    reply = wire.transport().open(path)
    (folder / path).write_bytes(bytes(len(BUNDLE)))
    os.utime(folder / path, ns=(1, 1))
    assert reply.read(MOST_PIECE_BYTES) == BUNDLE[:MOST_PIECE_BYTES]
    with pytest.raises(RefusalError, match="another file"):
        reply.read(1)


def test_a_path_that_nobody_serves_is_not_even_asked_for(wire):
    with pytest.raises(RefusalError):
        wire.transport().open("../etc/passwd")
    assert wire.asked == []


def lossy(number, answer):
    return [] if number % 3 else [answer]


def doubled(number, answer):
    return [answer, answer, (answer[0], b"")]


def of_others(number, answer):
    topic = chunk_topic("edge", "porch", "ffffffff-1")
    return [(topic, pack(Chunk(status=404))), answer]


def broken_first(number, answer):
    return [(answer[0], answer[1][:20])] if number % 2 else [answer]


def too_long(number, answer):
    return [(answer[0], answer[1] + bytes(70_000)), answer]


def elsewhere(number, answer):
    chunk = unpack(answer[1])
    wrong = Chunk(status=200, offset=chunk.offset + 1, total=chunk.total, piece=b"x")
    return [(answer[0], pack(wrong))] if number % 2 else [answer]


def empty(number, answer):
    chunk = unpack(answer[1])
    nothing = Chunk(status=200, offset=chunk.offset, total=chunk.total, tag=chunk.tag)
    return [(answer[0], pack(nothing))] if number % 2 else [answer]


def busy(number, answer):
    return [(answer[0], pack(Chunk(status=429)))] if number % 2 else [answer]


@pytest.mark.parametrize(
    "spoil", [lossy, doubled, of_others, broken_first, too_long, elsewhere, empty, busy]
)
def test_a_network_that_spoils(server, path, spoil):
    wire = Wire(server, spoil)
    patient = msgspec.structs.replace(PATIENT, window_s=0.4, least_bytes_per_s=0.0)
    assert read_all(wire.transport(patient), path) == BUNDLE
    wire.close()


@pytest.mark.parametrize("spoil", [lambda *_: [], lambda _, a: [(a[0], pack(Chunk(status=503)))]])
def test_a_network_that_says_nothing(server, path, spoil):
    wire = Wire(server, spoil)
    with pytest.raises(RefusalError) as refused:
        wire.transport(IMPATIENT).open(path)
    assert refused.value.code == "E_SLOW"
    assert len(wire.asked) >= 3
    wire.close()


@pytest.mark.parametrize(
    "junk", [b"", b"hello\n", b"chunk x y\n", b"chunk a-1 999999\n", b"x" * 300]
)
def test_a_control_process_that_goes_away_or_mad(path, junk):
    read, write = os.pipe()
    os.write(write, junk)
    os.close(write)
    transport = ChunkTransport(Lines(read), lambda need: None, limits=IMPATIENT)
    with pytest.raises(RefusalError) as refused:
        transport.open(path)
    assert refused.value.code == "E_NET"
    os.close(read)


def test_f30_resumed_over_mqtt(tmp_path, server, path, made):
    """What arrived is not asked for again, whichever process goes on."""
    target = made.targets.targets["ssd/1.0.tar"]
    job = DownloadJob(
        repository=["mqtt:"],
        name="ssd",
        version="1.0",
        sha256=target.hashes["sha256"],
        length=target.length,
        part=str(tmp_path / "part"),
        limits=IMPATIENT,
    )
    first = Wire(server, lambda number, answer: [answer] if number <= 3 else [])
    with pytest.raises(RefusalError):
        Download(job).run([lambda: first.transport(IMPATIENT)])
    first.close()
    second = Wire(server)
    said = Download(msgspec.structs.replace(job, limits=PATIENT)).run([second.transport])
    second.close()
    assert (tmp_path / "part").read_bytes() == BUNDLE
    assert second.asked[0].offset == 3 * MOST_PIECE_BYTES
    assert said.bytes_fetched == len(BUNDLE) - 3 * MOST_PIECE_BYTES


def test_relay_passes_on_nothing_that_was_not_asked_for():
    published, handed = [], []
    relay = ChunkRelay(prefix="p", device="d", publish=lambda *what: published.append(what))
    relay.on_message("p/d/repo/chunk/a-1", b"early")
    relay.ask(Need(id="a-1", path="metadata/timestamp.json", offset=0, length=9), handed.append)
    assert published[0][0] == request_topic("p", "d") == "p/d/repo/get"
    assert parse_request(published[0][1]).path == "metadata/timestamp.json"
    relay.on_message("p/d/repo/chunk/a-2", b"other")
    relay.on_message("p/e/repo/chunk/a-1", b"other")
    relay.on_message("p/d/repo/chunk/a-1", bytes(100_000))
    assert handed == []
    relay.on_message("p/d/repo/chunk/a-1", b"this")
    relay.on_message("p/d/repo/chunk/a-1", b"this")
    assert handed == [b"chunk a-1 4\nthis"]


# --- both, over a real broker --------------------------------------------------------------------


class Link:
    """The control process's connection, as far as this needs one."""

    def __init__(self, port, device):
        self.inbox = queue.SimpleQueue()
        self.relay = ChunkRelay(prefix="edge", device=device, publish=self._publish)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._ready = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe(self.relay.topic_filter, 0)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda _c, _d, message: self.inbox.put(
            (message.topic, bytes(message.payload))
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._ready.wait(WITHIN_S)

    def _publish(self, topic, payload):
        self._client.publish(topic, payload, 0)

    def run(self, step, within_s=WITHIN_S):
        ends = time.monotonic() + within_s
        while time.monotonic() < ends:
            reply = step.poll()
            if not isinstance(reply, steps.Working):
                return reply
            with contextlib.suppress(queue.Empty):
                self.relay.on_message(*self.inbox.get(timeout=0.01))
        raise AssertionError("still working")

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()  # paho would, whenever it is collected


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not here")
def test_from_order_to_file_over_a_broker(tmp_path, folder, made):
    broker = mosquitto(tmp_path).start()
    over, said = threading.Event(), []
    server = ChunkServer(folder, prefix="edge", most_bytes_s=1e9)
    settings = MqttConfig(url=f"mqtt://127.0.0.1:{broker.port}")

    def run_server():
        with Exchange(settings, [server.topic_filter]) as exchange:
            ready.set()
            serve(server, exchange, say=said.append, is_over=over.is_set)

    ready = threading.Event()
    thread = threading.Thread(target=run_server)
    thread.start()
    try:
        assert ready.wait(WITHIN_S)
        link = Link(broker.port, "porch")
        board = Board(tmp_path / "board", made, "mqtt:")
        source = Source(
            repository=("mqtt:",), root=board.root, metadata_dir=board.metadata, board="rpi-4b",
            limits=Limits(window_s=30.0),
        )  # fmt: skip
        fetching = Fetching(source, link.relay, read_synced=lambda: True)
        wanted = Desired(deployment_id="d1", counter=1, name="ssd", version="1.0")
        found = link.run(fetching.metadata(wanted, Floors()))
        assert isinstance(found, steps.Succeeded), found
        began = time.monotonic()
        done = link.run(fetching.download(found.target.ref, found.target.size, board.part))
        seconds = time.monotonic() - began
        assert isinstance(done, steps.Succeeded), done
        assert board.part.read_bytes() == BUNDLE
        print(f"\n{len(BUNDLE)} bytes over a broker in {seconds:.1f} s, {server.answered} requests")
        link.close()
    finally:
        over.set()
        thread.join(WITHIN_S)
        broker.stop()
    assert server.boards == 1


def test_server_s_loop():
    class Answers:
        def answer(self, topic, payload):
            return ("answer", payload) if topic == "ask" else None

        answered, boards, sent_bytes = 0, 1, 10

    class Broker:
        def __init__(self):
            self.sent = []

        def drain(self, wait_s):
            return [
                Message("ask", b"1", False),
                Message("ask", b"2", True),
                Message("x", b"3", False),
            ]

        def publish(self, *what, **how):
            self.sent.append((what, how))

    broker, rounds, said, times = Broker(), iter([False, False, True]), [], iter([0.0, 5.0, 15.0])
    answers = Answers()
    answers.answered = 3
    serve(answers, broker, say=said.append, is_over=lambda: next(rounds), clock=lambda: next(times))
    assert broker.sent == [(("answer", b"1"), {"retain": False, "qos": 0})] * 2
    assert said == ["answered 3 requests of 1 boards, 0.0 MB"]
