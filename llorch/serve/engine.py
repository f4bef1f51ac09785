"""The scheduler in a thread of its own, and its events on the event loop.

The loop hands sequences over and gets events back; neither waits for the other. A step's events come in one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from llorch.text.batch import Batch, Event, Sequence


class Stopped(RuntimeError):
    """The server takes nothing more."""


class Ticket:
    """A sequence that was handed over: its events, as they come."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.id: int | None = None
        self.added: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self.events.get()
            if event.error is not None:
                raise event.error
            yield event
            if event.reason is not None:
                return


class Engine:
    """Runs a batch. Made on the event loop.

    steps, tokens, prompt_tokens, reused_tokens, busy : counters since the start; busy in seconds.
    """

    def __init__(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        self.batch, self.loop = batch, loop
        self.steps = self.tokens = self.prompt_tokens = self.reused_tokens = 0
        self.busy = 0.0
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stop = False
        self._tickets: dict[int, Ticket] = {}  # of this thread
        self._thread = threading.Thread(target=self._run, name="llorch engine", daemon=True)
        self._thread.start()

    async def add(self, sequence: Sequence) -> Ticket:
        """Hands a sequence over. What `Batch.admit` raises comes here; Stopped when the server ends."""
        ticket = Ticket(sequence)
        self._do(lambda: self._admit(ticket))
        try:
            await ticket.added
        except asyncio.CancelledError:
            self.cancel(ticket)
            raise
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Ends a sequence before the next step; nothing if it has ended."""
        self._do(lambda: self._cancel(ticket))

    def close(self) -> None:
        """Ends the thread after its step."""
        with self._wake:
            self._stop = True
            self._wake.notify()
        self._thread.join()

    def _do(self, job: Callable[[], None]) -> None:
        with self._wake:
            self._jobs.append(job)
            self._wake.notify()

    # ---- in the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._jobs or self.batch or self._stop):
                    self._wake.wait()
                jobs, self._jobs = self._jobs, deque()
                stop = self._stop
            for job in jobs:
                job()
            if stop:
                for ticket in self._tickets.values():
                    self._tell([(ticket, _failed(ticket, Stopped("the server was stopped")))])
                return
            if self.batch:
                self._step()

    def _step(self) -> None:
        begin = time.perf_counter()
        try:
            events = self.batch.step()
        except Exception as error:  # no memory to work in: who is in the batch is told, and the server goes on
            events = []
            for id, ticket in list(self._tickets.items()):
                if self.batch.cancel(id):
                    events.append(_failed(ticket, error))
        self.busy += time.perf_counter() - begin
        self.steps += 1
        told = []
        for event in events:
            ticket = self._tickets[event.id]
            self.tokens += event.token is not None
            told.append((ticket, event))
            if event.reason is not None:
                sequence = ticket.sequence
                self.prompt_tokens += event.read
                self.reused_tokens += sequence.reused
                del self._tickets[event.id]
        self._tell(told)

    def _admit(self, ticket: Ticket) -> None:
        try:
            if self._stop:
                raise Stopped("the server is being stopped")
            ticket.id = self.batch.admit(ticket.sequence)
            self._tickets[ticket.id] = ticket
        except Exception as error:
            self._call(_settle, ticket.added, error)
        else:
            self._call(_settle, ticket.added, None)

    def _cancel(self, ticket: Ticket) -> None:
        if ticket.id is not None and self._tickets.pop(ticket.id, None) is not None:
            self.batch.cancel(ticket.id)

    def _tell(self, told: list[tuple[Ticket, Event]]) -> None:
        def put() -> None:
            for ticket, event in told:
                ticket.events.put_nowait(event)

        if told:
            self._call(put)

    def _call(self, function: Callable[..., object], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody listens
            self.loop.call_soon_threadsafe(function, *arguments)


def _failed(ticket: Ticket, error: Exception) -> Event:
    return Event(ticket.id or 0, 0, reason="error", error=error)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
