"""Orders from the broker: which are read, which count, and why one does not.

An order is believed by nobody: it points at a version, and what that is, and whether it may run
here, the repository's signatures and this board's own tests say. So all that a forged one can do
is ask for a version that is good anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from agent.contract.updates import MOST_DESIRED_BYTES, Desired, IgnoredOrder
from agent.ota.refusal import RefusalError
from agent.ota.state import Order, Scope, State
from agent.ota.strict_json import decode

# A topic's newest message is the one that counts, so of a flood the oldest go unread.
MOST_UNREAD = 16


def parse_desired(raw: bytes) -> Desired:
    """Return the order of a message.

    Raises:
        RefusalError: E_SIZE, E_JSON, or E_DESIRED: well formed, but it makes no sense.
    """
    desired = decode(raw, Desired, most_bytes=MOST_DESIRED_BYTES, where="desired")
    if desired.action == "run" and (desired.name is None or desired.version is None):
        raise RefusalError("E_DESIRED", "desired: action run needs a name and a version")
    if desired.action == "factory" and (desired.name or desired.version):
        raise RefusalError("E_DESIRED", "desired: action factory has no name and no version")
    if (desired.name is None) != (desired.version is None):
        raise RefusalError("E_DESIRED", "desired: name and version come together")
    return desired


def check_news(state: State, order: Order) -> bool:
    """Return whether an order is to be taken up; False: it was, or was overtaken, and is retained.

    Of orders with the same counter the board's own is the newer one.

    Raises:
        RefusalError: E_REPLAY, E_CONFLICT.
    """
    desired = order.desired
    newest = state.counters.get(desired.engine, 0)
    if desired.counter > newest:
        return True
    known = state.orders.get(desired.engine)
    if desired.counter < newest:
        if known is not None and known.scope != order.scope:
            return False  # the other topic's retained one, which was overtaken
        raise RefusalError("E_REPLAY", f"counter {desired.counter} is older than {newest}")
    if known is None or known.desired.counter != newest:
        return True  # its counter alone outlived damage of the disk
    if known.desired == desired:
        return False
    if order.scope == "device" and known.scope == "group":
        return True
    raise RefusalError("E_CONFLICT", f"counter {newest} has been used for another order")


@dataclass(slots=True)
class Orders:
    """Messages that came, and what they add up to for each engine.

    `put` may be called on any thread; all else belongs to one.
    """

    engines: Collection[str]  # by name in [models]; empty for [model]
    ignored: IgnoredOrder | None = None  # the last one
    dropped: int = 0  # of floods, unread
    _unread: dict[Scope, deque[bytes]] = field(
        default_factory=lambda: {
            "device": deque(maxlen=MOST_UNREAD),
            "group": deque(maxlen=MOST_UNREAD),
        }
    )
    # The newest of each, taken up or not.
    _newest: dict[tuple[str, Scope], Order] = field(default_factory=dict)

    def put(self, raw: bytes, scope: Scope) -> None:
        """Keep a message until `read`. One that is emptied, as retained ones are, asks nothing."""
        if not raw:
            return
        unread = self._unread[scope]
        if len(unread) == MOST_UNREAD:
            self.dropped += 1
        # Of what is far too long no more is kept than tells that it is.
        unread.append(bytes(raw[: MOST_DESIRED_BYTES + 1]))

    def read(self, state: State, at: float) -> None:
        """Look at what came since the last call: at no more than `MOST_UNREAD` of either scope.

        at: Unix seconds
        """
        for scope, unread in self._unread.items():
            for _ in range(len(unread)):
                self._read(state, unread.popleft(), scope, at)

    def next(self, state: State, engine: str) -> Order | None:
        """Return the order that is to be taken up for an engine, if there is one.

        The highest counter counts; of equal ones the board's own; and where its own last word
        says so, no group's at all.
        """
        own = self._fresh(state, engine, "device")
        group = self._fresh(state, engine, "group")
        if group is None or self._is_pinned(state, engine, own):
            return own
        if own is None or group.desired.counter > own.desired.counter:
            return group
        return own

    def _read(self, state: State, raw: bytes, scope: Scope, at: float) -> None:
        try:
            order = Order(desired=parse_desired(raw), scope=scope)
        except RefusalError as refusal:
            self._ignore(refusal, None, at)
            return
        try:
            self._note(state, order)
        except RefusalError as refusal:
            self._ignore(refusal, order.desired.deployment_id, at)

    def _note(self, state: State, order: Order) -> None:
        engine = order.desired.engine
        if engine not in self.engines:
            there = ", ".join(repr(name) for name in sorted(self.engines))
            raise RefusalError("E_ENGINE", f"no engine {engine!r} here; there is {there}")
        if not check_news(state, order):
            return
        known = self._newest.get((engine, order.scope))
        if known is not None and order.desired.counter <= known.desired.counter:
            if known == order:
                return
            if order.desired.counter == known.desired.counter:
                raise RefusalError("E_CONFLICT", "has the counter of another order")
            raise RefusalError("E_REPLAY", "is older than one that waits")
        self._newest[engine, order.scope] = order
        own = self._fresh(state, engine, "device")
        if order.scope == "group" and self._is_pinned(state, engine, own):
            raise RefusalError("E_PINNED", "this board does not listen to groups for now")

    def _is_pinned(self, state: State, engine: str, own: Order | None) -> bool:
        last = own or state.orders.get(engine)
        return last is not None and last.is_pinned

    def _fresh(self, state: State, engine: str, scope: Scope) -> Order | None:
        order = self._newest.get((engine, scope))
        if order is None:
            return None
        try:
            return order if check_news(state, order) else None
        except RefusalError:
            return None

    def _ignore(self, refusal: RefusalError, deployment_id: str | None, at: float) -> None:
        self.ignored = IgnoredOrder(
            code=refusal.code, message=str(refusal)[:300], deployment_id=deployment_id, at=at
        )
