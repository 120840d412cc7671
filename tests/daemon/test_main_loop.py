"""Parts of the main loop that timing hides: links that come and go together."""

import selectors
import socket

from agent.daemon.main_loop import _follow


def test_a_new_link_may_have_the_number_of_another_s_old_one():
    with selectors.DefaultSelector() as selector:
        pairs = [socket.socketpair() for _ in range(2)]
        registered = [None, None]
        _follow(selector, registered, [pairs[0][0], pairs[1][0]])
        numbers = [pair[0].fileno() for pair in pairs]
        for pair in reversed(pairs):
            pair[0].close()
        fresh = [socket.socketpair(), socket.socketpair()]
        links = [
            next(end for pair in fresh for end in pair if end.fileno() == number)
            for number in reversed(numbers)
        ]
        _follow(selector, registered, links)
        assert registered == links
        assert {key.data: key.fileobj for key in selector.get_map().values()} == dict(
            enumerate(links)
        )
        _follow(selector, registered, [None, links[1]])
        assert [key.data for key in selector.get_map().values()] == [1]
        for end in (*fresh[0], *fresh[1], pairs[0][1], pairs[1][1]):
            end.close()
