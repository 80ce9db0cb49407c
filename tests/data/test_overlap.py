"""Work ahead of time: in order, bounded, and an error is the one that was raised."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from maep.data.overlap import AHEAD, in_order
from maep.runtime.errors import UserError

SOON = 20.0  # seconds after which a thread that should long have come counts as lost


def test_results_are_in_order_and_made_elsewhere() -> None:
    """By one other thread, one after the other."""
    with ThreadPoolExecutor(1) as thread:
        made = list(in_order(thread, lambda item: (item, threading.get_ident()), range(50)))
    assert [item for item, _ in made] == list(range(50))
    assert len({worker for _, worker in made}) == 1
    assert made[0][1] != threading.get_ident()


def test_no_more_than_asked_for_is_ahead() -> None:
    """What nobody takes is not made: memory is bounded whichever side is slow."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with ThreadPoolExecutor(1) as thread:
        results = in_order(thread, str, items())
        for count in range(1, 10):
            next(results)
            assert len(taken) == count + AHEAD


def test_the_next_is_worked_on_while_one_is_in_hand() -> None:
    """The thread reaches the second item although nobody has asked for it yet."""
    reached = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            reached.set()
        return item

    with ThreadPoolExecutor(1) as thread:
        results = in_order(thread, work, range(3))
        assert next(results) == 0
        assert reached.wait(SOON)


def test_an_error_is_the_one_that_was_raised() -> None:
    """With what was made before it; nothing after it is handed out."""
    problem = UserError("sample 3 is damaged")

    def work(item: int) -> int:
        if item == 3:
            raise problem
        return item

    made = []
    with ThreadPoolExecutor(1) as thread, pytest.raises(UserError) as caught:
        for item in in_order(thread, work, range(10)):
            made.append(item)
    assert caught.value is problem
    assert made == [0, 1, 2]
