"""A TCP proxy on loopback that does to a connection what networks do.

The eight toxics are those of toxiproxy (github.com/Shopify/toxiproxy, README, "Toxics"), with
its meaning of each; a toxic acts in one direction, several at a time. One thread per proxy
runs everything in its own event loop; toxics may be changed from any thread.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Literal, final

Direction = Literal["up", "down"]  # towards the broker; towards the client
Name = Literal[
    "latency", "down", "bandwidth", "slow_close", "timeout", "reset_peer", "slicer", "limit_data"
]
NAMES: tuple[Name, ...] = (
    "latency", "down", "bandwidth", "slow_close", "timeout", "reset_peer", "slicer", "limit_data",
)  # fmt: skip
READ_BYTES = 16 << 10
# Chunks on their way in one direction; beyond this the sender's window fills, as on a real path.
IN_TRANSIT = 64
LOOK_EVERY_S = 0.02
# socket(7) SO_LINGER with a time of zero: close() sends RST instead of FIN.
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Toxic:
    """One trouble; `value` is seconds, bytes/s for `bandwidth`, bytes for the last two.

    `timeout` swallows everything; connections end after `value` seconds, or when the toxic is
    taken away (0: only then). `down` concerns both directions, whichever it is given for.
    """

    name: Name
    direction: Direction = "up"
    value: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}({self.direction},{self.value:g})"


@dataclass(eq=False, slots=True)
class _Pair:
    """A client's connection and the one to the broker."""

    client: socket.socket
    broker: socket.socket
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    passed: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    was_swallowed: bool = False

    async def end(self, *, reset: bool) -> None:
        """Close both connections; tasks first, for the loop waits on numbers of descriptors."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for end in (self.client, self.broker):
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.close()


@final
class Proxy:
    """Listens on `port` of loopback and passes on to `upstream_port`. Use as a context."""

    def __init__(self, upstream_port: int) -> None:
        self.accepted = 0
        self._upstream = ("127.0.0.1", upstream_port)
        self._toxics: tuple[Toxic, ...] = ()
        self._since = 0.0
        self._pairs: set[_Pair] = set()
        self._endings: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def set(self, *toxics: Toxic) -> None:
        """Replace all toxics; none: a clean network. Returns when it is so."""
        asyncio.run_coroutine_threadsafe(self._set(toxics), self._loop).result(10)

    async def _set(self, toxics: tuple[Toxic, ...]) -> None:
        had_timeout = self._value("timeout") is not None
        self._toxics, self._since = toxics, time.monotonic()
        if had_timeout and self._value("timeout") is None:
            # Bytes are missing from these streams: toxiproxy ends them with the toxic.
            self._close([pair for pair in self._pairs if pair.was_swallowed])
        if self._value("down") is not None:
            self._close(list(self._pairs))
        await asyncio.gather(*self._endings)

    def _value(self, name: Name, direction: Direction | None = None) -> float | None:
        """Return the value of a toxic that acts now; None where it does not."""
        for toxic in self._toxics:
            if toxic.name == name and direction in (None, toxic.direction):
                return toxic.value
        return None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        tasks = [self._loop.create_task(self._accept()), self._loop.create_task(self._expire())]
        self._loop.run_forever()
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._close(list(self._pairs))
        self._loop.run_until_complete(asyncio.gather(*self._endings))
        self._listener.close()
        self._loop.close()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            self.accepted += 1
            if self._value("down") is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.close()
                continue
            broker = socket.socket()
            broker.setblocking(False)
            try:
                await self._loop.sock_connect(broker, self._upstream)
            except OSError:
                client.close()
                broker.close()
                continue
            for end in (client, broker):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(client, broker)
            self._pairs.add(pair)
            for direction in ("up", "down"):
                # What is under way: the chunk, and the time from which it may arrive.
                transit: asyncio.Queue[tuple[bytes, float]] = asyncio.Queue(IN_TRANSIT)
                pair.tasks += [
                    self._loop.create_task(self._take(pair, direction, transit)),
                    self._loop.create_task(self._pass_on(pair, direction, transit)),
                ]

    async def _take(
        self, pair: _Pair, direction: Direction, transit: asyncio.Queue[tuple[bytes, float]]
    ) -> None:
        source = pair.client if direction == "up" else pair.broker
        data = b"?"
        while data:
            try:
                data = await self._loop.sock_recv(source, READ_BYTES)
            except OSError:
                data = b""
            latency_s = self._value("latency", direction) or 0.0
            await transit.put((data, time.monotonic() + latency_s))

    async def _pass_on(
        self, pair: _Pair, direction: Direction, transit: asyncio.Queue[tuple[bytes, float]]
    ) -> None:
        sink = pair.broker if direction == "up" else pair.client
        while True:
            data, not_before = await transit.get()
            await asyncio.sleep(max(0.0, not_before - time.monotonic()))
            if not data:
                await asyncio.sleep(self._value("slow_close", direction) or 0.0)
                self._close([pair])
                return
            if self._value("timeout", direction) is not None:
                pair.was_swallowed = True
                continue
            try:
                await self._write(pair, direction, sink, data)
            except OSError:
                self._close([pair])
                return

    async def _write(
        self, pair: _Pair, direction: Direction, sink: socket.socket, data: bytes
    ) -> None:
        while data:
            piece = data[: int(self._value("slicer", direction) or len(data))]
            limit = self._value("limit_data", direction)
            if limit is not None and pair.passed[direction] + len(piece) > limit:
                self._close([pair])
                return
            if rate := self._value("bandwidth", direction):
                piece = piece[: max(1, int(rate * LOOK_EVERY_S))]
                await asyncio.sleep(len(piece) / rate)
            await self._loop.sock_sendall(sink, piece)
            pair.passed[direction] += len(piece)
            data = data[len(piece) :]
            if self._value("slicer", direction):
                await asyncio.sleep(0.001)

    async def _expire(self) -> None:
        """End connections whose time is up: `reset_peer` and `timeout`."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            age_s = time.monotonic() - self._since
            reset_s, timeout_s = self._value("reset_peer"), self._value("timeout")
            if reset_s is not None and age_s >= reset_s:
                self._close(list(self._pairs), reset=True)
            if timeout_s and age_s >= timeout_s:
                self._close([pair for pair in self._pairs if pair.was_swallowed])

    def _close(self, pairs: list[_Pair], *, reset: bool = False) -> None:
        for pair in pairs:
            if pair in self._pairs:
                self._pairs.remove(pair)
                ending = self._loop.create_task(pair.end(reset=reset))
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)


def random_toxic(chance: random.Random) -> Toxic:
    """Return one of the eight with a value that hurts."""
    name = chance.choice(NAMES)
    value = {
        "latency": lambda: chance.uniform(0.02, 0.5),
        "bandwidth": lambda: chance.uniform(2_000, 50_000),
        "slow_close": lambda: chance.uniform(0.1, 1.0),
        "timeout": lambda: chance.choice([0.0, chance.uniform(0.2, 1.0)]),
        "reset_peer": lambda: chance.uniform(0.0, 0.5),
        "slicer": lambda: float(chance.randint(1, 64)),
        "limit_data": lambda: float(chance.randint(1, 20_000)),
        "down": lambda: 0.0,
    }[name]()
    return Toxic(name, chance.choice(("up", "down")), round(value, 3))


def random_schedule(seed: int, length_s: float) -> list[tuple[float, tuple[Toxic, ...]]]:
    """Return (seconds from the beginning, toxics from then on); the last entry is a clean network.

    One to three toxics at a time for 0.3 to 1.5 s each, with clean moments in between.
    """
    chance = random.Random(seed)
    at, steps = 0.0, []
    while at < length_s:
        toxics = tuple(random_toxic(chance) for _ in range(chance.randint(1, 3)))
        steps.append((round(at, 3), toxics))
        at += chance.uniform(0.3, 1.5)
        if chance.random() < 0.3:
            steps.append((round(at, 3), ()))
            at += chance.uniform(0.1, 0.5)
    steps.append((round(at, 3), ()))
    return steps
