"""A repository whose word has expired is said to be stale although nobody orders anything: A05."""

from agent.contract.updates import Floors
from agent.ota.freshness import AGAIN_S, EVERY_S, FIRST_S, JITTER_S, WITHIN_S, Freshness
from agent.ota.steps import Refused, Succeeded, Working

FROZEN = Refused(code="E_FREEZE", message="has expired (12.0 days ago)")


class Repository:
    """Answers each question with the next of `replies`; its own step."""

    def __init__(self, *replies):
        self.replies, self.asked, self.stopped = list(replies), 0, 0

    def list_all(self, floors):
        assert floors == Floors(root_version=3)
        self.asked += 1
        if isinstance(self.replies[0], OSError):
            raise self.replies.pop(0)
        return self

    def poll(self):
        return self.replies[0] if isinstance(self.replies[0], Working) else self.replies.pop(0)

    def stop(self):
        self.stopped += 1


def day(freshness, now, *, is_free=True, steps=3):
    for at in range(steps):
        freshness.check(now + at, Floors(root_version=3), is_free=is_free)


def test_it_is_asked_once_a_day_and_what_it_says_stands_until_it_says_otherwise():
    no_network = Refused(code="E_NET", message="?", is_final=False)
    repository = Repository(Succeeded(), FROZEN, no_network, Succeeded(), FROZEN)
    freshness = Freshness(repository, lambda: 0.5)
    day(freshness, 0.0)
    assert repository.asked == 0, "not while everything starts"
    now = FIRST_S + JITTER_S / 2
    day(freshness, now)
    day(freshness, now + EVERY_S / 2)
    assert (repository.asked, freshness.problem) == (1, None)
    now += EVERY_S + JITTER_S
    day(freshness, now)
    assert freshness.problem == "E_FREEZE has expired (12.0 days ago)"
    # What is wrong is looked at more often, until it is mended.
    now += AGAIN_S + JITTER_S
    day(freshness, now)
    assert repository.asked == 3
    assert freshness.problem is not None, "a network that is away makes it no fresher"
    now += AGAIN_S + JITTER_S
    day(freshness, now)
    assert (repository.asked, freshness.problem) == (4, None)
    day(freshness, now + EVERY_S / 2)
    assert repository.asked == 4


def test_orders_come_first_and_nothing_is_waited_for_for_ever():
    repository = Repository(Working())
    freshness = Freshness(repository, lambda: 0.0)
    day(freshness, 0.0)
    day(freshness, FIRST_S, is_free=False)
    assert repository.asked == 0
    day(freshness, FIRST_S + 10)
    day(freshness, FIRST_S + 20, is_free=False, steps=1)
    assert (repository.asked, repository.stopped) == (1, 1)
    later = FIRST_S + 2 * EVERY_S
    day(freshness, later)
    day(freshness, later + WITHIN_S)
    assert (repository.asked, repository.stopped) == (2, 2)
    freshness.stop()
    assert repository.stopped == 2


def test_without_memory_for_a_process_it_is_asked_the_next_day():
    repository = Repository(OSError("no memory"), FROZEN)
    freshness = Freshness(repository, lambda: 0.0)
    day(freshness, 0.0)
    day(freshness, FIRST_S)
    assert (repository.asked, freshness.problem) == (1, None)
    day(freshness, FIRST_S + EVERY_S + 10)
    assert freshness.problem is not None
