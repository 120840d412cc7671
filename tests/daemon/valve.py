"""A TCP proxy that can go silent: its connections stay open, and nothing passes any more."""

from __future__ import annotations

import contextlib
import select
import socket
import threading


class Valve:
    """Forwards connections from `port` to a loopback port until `freeze`.

    Frozen, it reads nothing in either direction and closes nothing, so each side's kernel goes
    on acknowledging for a while: what a stateful middlebox looks like that lost its way.
    Connections made after `thaw` are forwarded; those that were frozen stay so.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._frozen: list[tuple[socket.socket, socket.socket]] = []
        self._is_open = threading.Event()
        self._is_open.set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="valve")

    def start(self) -> Valve:
        self._thread.start()
        return self

    def freeze(self) -> None:
        """Let nothing pass any more, and take no new connection (its SYN is answered)."""
        self._is_open.clear()

    def thaw(self) -> None:
        self._is_open.set()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._server.close()
        for pair in self._pairs + self._frozen:
            for sock in pair:
                sock.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._is_open.is_set():
                self._frozen += self._pairs
                self._pairs = []
                self._stopping.wait(0.01)
                continue
            sources = {a: b for pair in self._pairs for a, b in (pair, pair[::-1])}
            for ready in select.select([self._server, *sources], [], [], 0.01)[0]:
                if ready is self._server:
                    self._accept()
                elif self._is_open.is_set() and ready.fileno() >= 0:
                    self._forward(ready, sources[ready])

    def _accept(self) -> None:
        client = self._server.accept()[0]
        try:
            self._pairs.append((client, socket.create_connection(("127.0.0.1", self._target))))
        except OSError:
            client.close()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if data := source.recv(1 << 16):
                sink.sendall(data)
                return
        self._pairs = [pair for pair in self._pairs if source not in pair]
        source.close()
        sink.close()
