"""Work that goes on in a thread while others wait for something else: results in order, and bounded in number."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # items under way besides the one in hand: one that is done and one that is worked on


def in_order(thread: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int = AHEAD) -> Iterator[R]:
    """Yields `work` of each item, in their order, done in `thread` up to `ahead` items before it is asked for.

    thread: of one worker, which takes the items one after the other. Raises what `work` raised, as it is.
    """
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(thread.submit(work, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
