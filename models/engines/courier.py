"""A crew in a background thread that answers requests side by side, for engines that wait for somebody else.

`submit` and `poll` belong to one thread, the crew to another with an event loop of its own. Both hand over in
batches: one wake-up of the loop for all requests submitted meanwhile, one entry in the outbox for all replies of one
turn of the loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Courier(Generic[Question, Answer]):
    """Answers questions under tickets, at most `limit` at a time, in the order of submission.

    Args:
        answer: answers one question; an exception that escapes it is raised by `poll`.
        limit: how many at a time.
    """

    def __init__(self, answer: Callable[[Question], Awaitable[Answer]], limit: int) -> None:
        self._answer = answer
        self._limit = limit
        self._open: set[Hashable] = set()
        self._ready: dict[Hashable, Answer] = {}
        self._outbox: SimpleQueue[list[tuple[Hashable, Answer]] | BaseException] = SimpleQueue()
        self._inbox: deque[tuple[Hashable, Question]] = deque()
        self._woken = False
        self._queue: OrderedDict[Hashable, Question] = OrderedDict()
        self._running: dict[Hashable, asyncio.Task[None]] = {}
        self._crew: set[asyncio.Task[None]] = set()
        self._done: list[tuple[Hashable, Answer]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="extratime-courier", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the background thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def submit(self, ticket: Hashable, question: Question) -> None:
        """Take on a question. Never blocks.

        Raises:
            ValueError: the ticket is already in use.
        """
        if ticket in self._open:
            raise ValueError(f"ticket {ticket!r} is already in use")
        self._open.add(ticket)
        self._inbox.append((ticket, question))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._take)

    def cancel(self, ticket: Hashable) -> tuple[bool, Answer | None]:
        """Drop a ticket: whether anyone had begun with it, and the answer if there is one already."""
        if ticket not in self._open:
            return False, None
        begun = self.call(self._drop(ticket))
        self._absorb(wait=False)
        self._open.discard(ticket)
        return begun, self._ready.pop(ticket, None)

    def poll(self) -> list[tuple[Hashable, Answer]]:
        """Wait for answers. Empty only if nothing is submitted."""
        self._absorb(wait=bool(self._open) and not self._ready)
        answers, self._ready = list(self._ready.items()), {}
        self._open.difference_update(ticket for ticket, _ in answers)
        return answers

    def close(self) -> None:
        """Give up what is in hand and end the thread. May be called again."""
        if not self._loop.is_closed():
            self.call(self._dismiss())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _absorb(self, wait: bool) -> None:
        while wait or not self._outbox.empty():
            batch = self._outbox.get()
            if isinstance(batch, BaseException):
                raise batch
            self._ready.update(batch)
            wait = False

    # What follows runs in the background thread.

    def _take(self) -> None:
        self._woken = False
        while self._inbox:
            ticket, question = self._inbox.popleft()
            self._queue[ticket] = question
        self._staff()

    def _staff(self) -> None:
        for _ in range(min(self._limit - len(self._crew), len(self._queue))):
            worker = self._loop.create_task(self._work())
            self._crew.add(worker)
            worker.add_done_callback(self._leave)

    def _leave(self, worker: asyncio.Task[None]) -> None:
        self._crew.discard(worker)
        if not worker.cancelled() and (error := worker.exception()):
            self._outbox.put(error)
        self._staff()

    async def _work(self) -> None:
        me = asyncio.current_task()
        assert me is not None
        while self._queue:
            ticket, question = self._queue.popitem(last=False)
            self._running[ticket] = me
            try:
                answer = await self._answer(question)
            finally:
                del self._running[ticket]
            self._done.append((ticket, answer))
            if len(self._done) == 1:
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._done:
            self._outbox.put(self._done)
            self._done = []

    async def _drop(self, ticket: Hashable) -> bool:
        self._take()
        if self._queue.pop(ticket, None) is not None:
            return False
        if worker := self._running.get(ticket):
            worker.cancel()
            await asyncio.wait([worker])
        self._flush()
        return True

    async def _dismiss(self) -> None:
        self._inbox.clear()
        self._queue.clear()
        crew = list(self._crew)
        for worker in crew:
            worker.cancel()
        await asyncio.gather(*crew, return_exceptions=True)


class Busy:
    """A context manager of overlapping things; adds to `seconds[kind]` the time during which any of them went on."""

    def __init__(self, seconds: dict[str, float], kind: str) -> None:
        self._seconds, self._kind = seconds, kind
        self._since, self._n = 0.0, 0

    def __enter__(self) -> None:
        if not self._n:
            self._since = time.perf_counter()
        self._n += 1

    def __exit__(self, *_: object) -> None:
        self._n -= 1
        if not self._n:
            self._seconds[self._kind] += time.perf_counter() - self._since
