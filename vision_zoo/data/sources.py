"""Where images come from: the pump that fetches batches of them ahead of time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

B = TypeVar("B")
T = TypeVar("T")


def pump(
    fetch: Callable[[B], T], batches: Iterable[B], threads: int, ahead: int, *, take_turns: bool = False
) -> Iterator[T]:
    """What `fetch` makes of each batch, in order, made ahead of time by threads.

    Args:
        fetch: decodes a batch; PIL and NumPy do so without holding the interpreter.
        batches: what is fetched, such as indices; drawn as far ahead as batches are fetched.
        threads: how many fetch at once; 0 fetches in the calling thread, when a batch is asked for.
        ahead: batches that are begun before their turn, at least 1.
        take_turns: fetch `ahead` batches, hand them out, and only then begin the next ones. For a network on the same
            processors, whose threads and these would wait for each other.
    """
    if not threads:
        yield from map(fetch, batches)
        return
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, "decode")
    try:
        for batch in batches:
            pending.append(pool.submit(fetch, batch))
            if len(pending) >= ahead:
                yield from [pending.popleft().result() for _ in range(len(pending) if take_turns else 1)]
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
