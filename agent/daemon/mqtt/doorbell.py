"""How any thread wakes the link's, which waits on its socket."""

from __future__ import annotations

import contextlib
import socket


class Doorbell:
    """Wakes the loop from any thread; ringing twice before it is answered costs nothing."""

    def __init__(self) -> None:
        self._hear, self._push = socket.socketpair()
        self._hear.setblocking(False)
        self._push.setblocking(False)
        self._rung = False

    def ring(self) -> None:
        """Wake the loop; harmless after `close`."""
        if not self._rung:
            self._rung = True
            try:
                self._push.send(b"!")
            except OSError:
                # Closed: nobody listens any more. Full: it is already rung.
                return

    def answer(self) -> None:
        """Take the ring away; whatever was queued before it must be looked at afterwards."""
        with contextlib.suppress(BlockingIOError):
            self._hear.recv(64)
        self._rung = False

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._hear.fileno()

    def close(self) -> None:
        """Let go of both ends."""
        self._hear.close()
        self._push.close()
