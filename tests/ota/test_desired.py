"""Orders: which are read, which count, which are ignored with which code (A22)."""

import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.updates import MOST_DESIRED_BYTES, Desired
from agent.ota.desired import MOST_UNREAD, Orders, check_news, parse_desired
from agent.ota.refusal import RefusalError
from agent.ota.state import Order, State

GOOD = {"deployment_id": "r1", "counter": 5, "name": "ssd", "version": "1.4.0"}


def raw(**fields) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


def without(*names) -> bytes:
    return json.dumps({name: value for name, value in GOOD.items() if name not in names}).encode()


def code_of(content: bytes) -> str:
    with pytest.raises(RefusalError) as caught:
        parse_desired(content)
    assert caught.value.is_final
    return caught.value.code


def test_an_order_is_read():
    desired = parse_desired(raw(pinned=True, engine="door"))
    assert (desired.name, desired.version, desired.action) == ("ssd", "1.4.0", "run")
    assert (desired.engine, desired.pinned, desired.counter) == ("door", True, 5)
    assert parse_desired(b'{"deployment_id":"x","counter":1,"action":"factory"}').name is None


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (raw(name="n" * 5000), "E_SIZE"),
        (b" " * (MOST_DESIRED_BYTES + 1), "E_SIZE"),
        (b"{" * 1_000_000, "E_SIZE"),
        (b"[" * 4096, "E_JSON"),
        (b"null", "E_JSON"),
        (b"", "E_JSON"),
        (b"\xff\xfe", "E_JSON"),
        (raw()[:-1], "E_JSON"),
        (raw() + b"x", "E_JSON"),
        (b'{"counter":6,' + raw()[1:], "E_JSON"),  # a key twice
        (raw(counter=2**70), "E_JSON"),
        (raw(counter=0), "E_JSON"),
        (raw(counter=1.5), "E_JSON"),
        (raw(counter=True), "E_JSON"),
        (raw(extra=1), "E_JSON"),
        (raw(schema="edge-agent/desired/2"), "E_JSON"),
        (raw(action="delete"), "E_JSON"),
        (raw(name="../x"), "E_JSON"),
        (raw(version="1/2"), "E_JSON"),
        (raw(version="1\n"), "E_JSON"),
        (raw(deployment_id=""), "E_JSON"),
        (raw(deployment_id=None), "E_JSON"),
        (without("counter"), "E_JSON"),
        (without("name", "version"), "E_DESIRED"),
        (without("version"), "E_DESIRED"),
        (raw(action="rollback", version=None), "E_DESIRED"),
        (raw(action="factory"), "E_DESIRED"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_order_is_refused(content, code):
    began = time.thread_time()
    assert code_of(content) == code
    assert time.thread_time() - began < 1


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from([*GOOD, "action", "engine", "pinned", "x"]), inner, max_size=6
    ),
    max_leaves=12,
).map(lambda document: json.dumps(document).encode()))  # fmt: skip
def test_whatever_comes_is_an_order_or_refused(content):
    try:
        assert isinstance(parse_desired(content), Desired)
    except RefusalError as refusal:
        assert refusal.code in ("E_JSON", "E_SIZE", "E_DESIRED")


def orders(*messages, state=None, engines=("",)):
    made = Orders(engines)
    for content, scope in messages:
        made.put(content, scope)
    made.read(state or State(), at=1.0)
    return made


def taken(content, scope="device") -> State:
    order = Order(desired=parse_desired(content), scope=scope)
    engine = order.engine
    return State(orders={engine: order}, counters={engine: order.desired.counter})


def next_of(made, state=None, engine=""):
    order = made.next(state or State(), engine)
    return order and (order.desired.counter, order.scope)


def ignored_of(made):
    return made.ignored and (made.ignored.code, made.ignored.deployment_id)


def test_newest_counts_and_of_equal_ones_the_boards_own():
    assert next_of(orders((raw(counter=5), "device"), (raw(counter=6), "group"))) == (6, "group")
    assert next_of(orders((raw(counter=7), "device"), (raw(counter=6), "group"))) == (7, "device")
    assert next_of(orders((raw(counter=6), "group"), (raw(counter=6), "device"))) == (6, "device")
    # Whatever the order in which they come.
    later = orders((raw(counter=9), "group"), (raw(counter=8), "group"))
    assert next_of(later) == (9, "group")
    assert ignored_of(later) == ("E_REPLAY", "r1")


def test_the_boards_own_replaces_a_groups_with_the_same_counter():
    state = taken(raw(counter=5), "group")
    assert next_of(orders((raw(counter=5, version="2"), "device"), state=state), state) == (
        5,
        "device",
    )
    # And not the other way round.
    state = taken(raw(counter=5), "device")
    made = orders((raw(counter=5, version="2"), "group"), state=state)
    assert next_of(made, state) is None
    assert ignored_of(made) == ("E_CONFLICT", "r1")


def test_replays_and_conflicts_are_ignored_with_a_code():
    state = taken(raw(counter=5))
    assert ignored_of(orders((raw(counter=4), "device"), state=state)) == ("E_REPLAY", "r1")
    other = raw(counter=5, version="9", deployment_id="r9")
    assert ignored_of(orders((other, "device"), state=state)) == ("E_CONFLICT", "r9")
    for content in (raw(counter=4), other):
        assert next_of(orders((content, "device"), state=state), state) is None


def test_what_is_retained_comes_again_and_means_nothing():
    state = taken(raw(counter=5))
    again = orders((raw(counter=5), "device"), (raw(counter=3), "group"), state=state)
    assert next_of(again, state) is None
    assert again.ignored is None


def test_an_order_whose_state_was_lost_is_taken_up_once_more():
    lost = State(counters={"": 5})
    assert next_of(orders((raw(counter=5), "device"), state=lost), lost) == (5, "device")
    assert next_of(orders((raw(counter=4), "device"), state=lost), lost) is None


def test_a_pinned_board_does_not_listen_to_groups():
    state = taken(raw(counter=5, pinned=True))
    made = orders((raw(counter=6), "group"), state=state)
    assert next_of(made, state) is None
    assert ignored_of(made) == ("E_PINNED", "r1")
    # Until it is told so: then what the group has said meanwhile counts.
    made.put(raw(counter=7), "device")
    made.read(state, at=1.0)
    assert next_of(made, state) == (7, "device")
    made.put(raw(counter=8), "group")
    made.read(taken(raw(counter=7)), at=1.0)
    assert next_of(made, taken(raw(counter=7))) == (8, "group")
    # A pin that waits holds as well; and no group can pin.
    both = orders((raw(counter=6, pinned=True), "device"), (raw(counter=9), "group"))
    assert next_of(both) == (6, "device")
    state = taken(raw(counter=5, pinned=True), "group")
    assert next_of(orders((raw(counter=6), "group"), state=state), state) == (6, "group")


def test_an_unpinned_board_hears_what_its_group_said_meanwhile():
    state = taken(raw(counter=5, pinned=True))
    made = orders((raw(counter=9), "group"), state=state)
    made.put(raw(counter=7), "device")
    made.read(state, at=1.0)
    assert next_of(made, state) == (9, "group")


def test_other_engines_orders_are_kept_apart():
    made = orders((raw(counter=5), "device"), (raw(counter=3, engine="door"), "device"),
                  (raw(counter=9, engine="gone"), "device"), engines=("", "door"))  # fmt: skip
    assert next_of(made) == (5, "device")
    assert next_of(made, engine="door") == (3, "device")
    assert ignored_of(made) == ("E_ENGINE", "r1")
    assert "'door'" in made.ignored.message


def test_malformed_ones_leave_a_good_one_standing():
    made = orders((raw(), "device"), (b"junk", "device"), (b"x" * 10**6, "group"), (b"", "device"))
    assert next_of(made) == (5, "device")
    assert ignored_of(made) == ("E_SIZE", None)
    assert made.ignored.at == 1.0


def test_a_retained_null_asks_for_nothing():
    made = orders((raw(), "device"), (b"", "device"), (b"", "group"))
    assert next_of(made) == (5, "device")
    assert made.ignored is None


def test_of_a_flood_the_newest_are_read_and_memory_is_bounded():
    made = Orders(("",))
    for counter in range(1, 100_001):
        made.put(raw(counter=counter), "group")
    made.put(raw(counter=3, version="2"), "device")
    assert made.dropped == 100_000 - MOST_UNREAD
    made.read(State(), at=1.0)
    assert next_of(made) == (100_000, "group")
    for _ in range(MOST_UNREAD):
        made.put(b"x" * 10**6, "device")
    held = sum(len(one) for unread in made._unread.values() for one in unread)
    assert held <= 2 * MOST_UNREAD * (MOST_DESIRED_BYTES + 1)


def test_put_from_other_threads():
    made = Orders(("",))
    threads = [
        threading.Thread(
            target=lambda start: [made.put(raw(counter=n), "group") for n in range(start, 2000, 4)],
            args=(start,),
        )
        for start in (1, 2, 3, 4)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        made.read(State(), at=1.0)
    made.read(State(), at=1.0)
    assert made.next(State(), "").desired.counter >= 1980


@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["device", "group"]),
                          st.sampled_from(["1", "2"]), st.booleans()), max_size=8))  # fmt: skip
def test_what_is_taken_up_never_goes_back_and_ends(messages):
    """Whatever comes, counters only grow and nothing is taken up twice."""
    made, state, seen = Orders(("",)), State(), []
    for counter, scope, version, pinned in messages:
        made.put(raw(counter=counter, version=version, pinned=pinned), scope)
        made.read(state, at=1.0)
        for _ in range(3):
            order = made.next(state, "")
            if order is None:
                break
            assert check_news(state, order)
            seen.append((order.desired.counter, order.scope == "device"))
            state = State(orders={"": order}, counters={"": order.desired.counter})
        else:
            raise AssertionError("orders are taken up without end")
    assert seen == sorted(set(seen))
