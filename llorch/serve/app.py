"""The application: routes, who may call them, and what becomes of a request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import llorch
from llorch import receipts
from llorch._text import counted, printable, shown
from llorch.serve import answers, requests
from llorch.serve.engine import Engine, Stopped, Ticket
from llorch.serve.requests import Asked, Refusal, called
from llorch.text import batch as batches
from llorch.text import chat as chats
from llorch.text.batch import Batch, QueueFull, Sequence
from llorch.text.protocol import context_of

if TYPE_CHECKING:
    from llorch.text.causal_lm import CausalLM
    from llorch.text.text_encoder import TextEncoder

KEY = "LLORCH_API_KEY"
OPEN = ("/", "/health")  # need no key
RECEIPTS = 1000  # the last ones are kept


@dataclass(frozen=True)
class Settings:
    """What the server is told. Bytes, tokens and numbers are upper bounds.

    name, embedding_name : what the models are called. memory : of keys and values. default_tokens : of an answer, where
    a request doesn't say. hosts : names that a request may use for this server; None for any.
    """

    name: str = ""
    embedding_name: str = ""
    max_sequences: int = 64
    max_tokens_per_step: int = 320
    memory: int = 2 << 30
    max_waiting: int = 256
    max_body: int = 4 << 20
    max_prompt: int | None = None
    default_tokens: int = 1024
    key: str = field(default_factory=lambda: os.environ.get(KEY, ""))
    hosts: tuple[str, ...] | None = None


class Server:
    """Models, the engine, and what is counted. cut : sequences that the server's end interrupted."""

    def __init__(
        self, settings: Settings, model: CausalLM | None, encoder: TextEncoder | None, stopping: Callable[[], bool]
    ) -> None:
        self.settings, self.model, self.encoder, self.stopping = settings, model, encoder, stopping
        self.engine: Engine | None = None
        self.cut = 0
        self.requests: dict[tuple[str, int], int] = {}
        self.receipts: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.started = int(time.time())
        self.fingerprint = f"llorch-{llorch.__version__}"
        self._embedding = ThreadPoolExecutor(1, "llorch embeddings")

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        if self.model is not None:
            s = self.settings
            batch = Batch(self.model, s.max_sequences, s.max_tokens_per_step, s.memory, s.max_waiting)
            self.engine = Engine(batch, asyncio.get_running_loop())
        try:
            yield
        finally:
            if self.engine is not None:
                self.engine.close()
            self._embedding.shutdown(cancel_futures=True)

    # ---- completions -----------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        model, engine = self._decoder()
        body = await self._body(request)
        name = requests.model_of(body, frozenset([self.settings.name]))
        messages, asked = requests.chat(body)

        def prepared() -> list[Sequence]:
            ids = called(lambda: chats.chat_prompt(model, messages, chats.Asked()), "messages")
            return self._sequences(model, ids, asked, model.chat_end_ids, "messages", range(asked.n))

        sequences = await asyncio.to_thread(prepared)
        form = answers.Chat(name, self.fingerprint, model.tokenizer, asked.logprobs is not None)
        return await self._answer(request, engine, form, asked, sequences)

    async def text(self, request: Request) -> Response:
        model, engine = self._decoder()
        body = await self._body(request)
        name = requests.model_of(body, frozenset([self.settings.name]))
        prompts, asked = requests.text(body)

        def prepared() -> list[Sequence]:
            made = []
            for i, prompt in enumerate(prompts):
                places = range(i * asked.n, (i + 1) * asked.n)
                made += self._sequences(model, prompt, asked, frozenset(), "prompt", places)
            return made

        sequences = await asyncio.to_thread(prepared)
        form = answers.Text(name, self.fingerprint, model.tokenizer, asked.logprobs is not None)
        return await self._answer(request, engine, form, asked, sequences)

    def _decoder(self) -> tuple[CausalLM, Engine]:
        if self.model is None or self.engine is None:
            raise Refusal("the model here gives embeddings, no text", status=404, code="model_not_found")
        return self.model, self.engine

    @property
    def _positions(self) -> int:
        """The most of one sequence that memory has room for."""
        assert self.model is not None
        return self.settings.memory // self.model.cache_nbytes(1) * 128

    def _sequences(
        self, model: CausalLM, prompt: str | list[int], asked: Asked, ends: frozenset[int], name: str, places: range
    ) -> list[Sequence]:
        """A prompt's choices. places : of the choices in the answer."""
        ids = called(lambda: batches.encode(model, prompt, name), name)
        most, context = self.settings.max_prompt, context_of(model)
        if most is not None and len(ids) > most:
            raise Refusal(f"{name} has {counted(len(ids), 'token')}, at most {most} are taken here", name,
                          "context_length_exceeded")  # fmt: skip
        if len(ids) + (asked.most or 1) > context:
            raise Refusal(
                f"the model's context is {context} tokens: {name} has {len(ids)}, and {asked.most or 1} are asked for",
                name,
                "context_length_exceeded",
            )
        new = asked.most
        if new is None:
            new = min(self.settings.default_tokens, context - len(ids), max(1, self._positions - len(ids)))
        if asked.schema is not None:
            schema = asked.schema
            called(lambda: model.guide.check(schema), "response_format")

        def made(place: int) -> Sequence:
            request = batches.Request(
                ids,
                new,
                asked.choice(place),
                [*asked.stop, *ends],
                name,
                as_text=True,
                continues=isinstance(prompt, str),
                logprobs=asked.logprobs,
                schema=asked.schema,
                links=asked.receipt,
            )
            return Sequence(model, request)

        return [called(lambda place=place: made(place), name) for place in places]  # type: ignore[misc]

    async def _answer(
        self, request: Request, engine: Engine, form: answers.Form, asked: Asked, sequences: list[Sequence]
    ) -> Response:
        tickets: list[Ticket] = []
        try:
            for sequence in sequences:
                tickets.append(await engine.add(sequence))
        except BaseException as error:
            self._drop(engine, tickets)
            raise self._refused(error) from error
        choices = [answers.Choice(i, sequence.parameters.seed) for i, sequence in enumerate(sequences)]
        if asked.stream:
            pieces = self._pieces(engine, form, asked, tickets, choices)
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)

        async def collect(ticket: Ticket, choice: answers.Choice) -> None:
            async for event in ticket:
                choice.take(event)
            await self._receipt(asked, form, ticket, choice)

        work: asyncio.Future[Any] = asyncio.gather(*map(collect, tickets, choices))
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnect
            await work
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            raise self._refused(error) from error
        finally:
            gone.cancel()
            work.cancel()
            self._drop(engine, tickets)
        return JSONResponse(form.whole(choices, _usage(sequences, asked.n)))

    async def _pieces(
        self,
        engine: Engine,
        form: answers.Form,
        asked: Asked,
        tickets: list[Ticket],
        choices: list[answers.Choice],
    ) -> AsyncIterator[bytes]:
        """Server-sent events. Who stops listening ends the sequences."""
        queue: asyncio.Queue[tuple[int, batches.Event | BaseException]] = asyncio.Queue()

        async def read(place: int) -> None:
            try:
                async for event in tickets[place]:
                    queue.put_nowait((place, event))
            except Exception as error:
                queue.put_nowait((place, error))

        readers = [asyncio.ensure_future(read(place)) for place in range(len(tickets))]
        try:
            for choice in choices:
                for piece in form.first(choice):
                    yield _event(piece)
            left = len(choices)
            while left:
                ready = [await queue.get()]
                while not queue.empty():
                    ready.append(queue.get_nowait())
                pieces: list[bytes] = []
                for place, event in ready:
                    if isinstance(event, BaseException):
                        yield b"".join(pieces) + _event(self.told(self._refused(event)).body)
                        return
                    choice = choices[place]
                    tokens = choice.take(event)
                    if event.reason is not None:
                        left -= 1
                        try:
                            await self._receipt(asked, form, tickets[place], choice)
                        except Exception as error:
                            pieces.append(_event(form.piece(choice, event.text or "", tokens)))
                            yield b"".join(pieces) + _event(self.told(self._refused(error)).body)
                            return
                    if event.text or tokens or event.reason is not None:
                        pieces.append(_event(form.piece(choice, event.text or "", tokens)))
                if pieces:
                    yield b"".join(pieces)
                    await asyncio.sleep(0)  # others' turn: neither the queue nor a write that fits has to wait
            if asked.usage:
                yield _event(form.usage(_usage([ticket.sequence for ticket in tickets], asked.n)))
            yield b"data: [DONE]\n\n"
        finally:
            for reader in readers:
                reader.cancel()
            self._drop(engine, tickets)

    def _drop(self, engine: Engine, tickets: list[Ticket]) -> None:
        """Ends what hasn't ended."""
        for ticket in tickets:
            if ticket.sequence.reason is None:
                self.cut += self.stopping()
                engine.cancel(ticket)

    def _refused(self, error: BaseException) -> Any:
        """What is raised in its place: a Refusal of what a request, the queue or the memory can cause."""
        if isinstance(error, QueueFull):
            return Refusal(str(error), code="queue_full", status=429)
        if isinstance(error, Stopped):
            return Refusal(str(error), status=503)
        if isinstance(error, ValueError):
            return Refusal(str(error))
        if isinstance(error, MemoryError):
            return Refusal("the server has no memory for this now", status=503)
        return error

    def told(self, error: BaseException) -> Refusal:
        """What the client is told of an error: where files lie here is none of its business."""
        if not isinstance(error, Refusal):
            return Refusal(f"the server failed: {type(error).__name__}", status=500)
        for model in (self.model, self.encoder):
            if model is not None and (path := printable(str(model.path))) in str(error):
                error = Refusal(str(error).replace(path, "the model"), error.param, error.code, error.status)
        return error

    async def _receipt(self, asked: Asked, form: answers.Form, ticket: Ticket, choice: answers.Choice) -> None:
        """Makes a choice's receipt, where one was asked for."""
        if not asked.receipt or choice.reason not in ("stop", "length"):
            return
        choice.receipt = f"{form.id}-{choice.index}"
        self.receipts[choice.receipt] = await asyncio.to_thread(receipts.make, self.model, ticket.sequence)
        while len(self.receipts) > RECEIPTS:
            self.receipts.popitem(last=False)

    # ---- embeddings, models, health ----------------------------------------------------------------------

    async def embeddings(self, request: Request) -> Response:
        encoder = self.encoder
        if encoder is None:
            raise Refusal("no model here gives embeddings: start the server with --embeddings", status=404,
                          code="model_not_found")  # fmt: skip
        body = await self._body(request)
        name = requests.model_of(body, frozenset([self.settings.embedding_name]))
        texts, how = requests.embeddings(body)

        def work() -> tuple[Any, int]:
            return encoder.encode(texts), sum(map(len, encoder._inputs(texts).ids))

        loop = asyncio.get_running_loop()
        rows, count = await loop.run_in_executor(self._embedding, functools.partial(called, work, "input"))
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": row.tolist()
                if how == "float"
                else base64.b64encode(row.astype("<f4").tobytes()).decode("ascii"),
            }
            for i, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})

    def _models(self) -> list[dict[str, Any]]:
        """Each says beside the API's own whether it writes text, and then whether it holds conversations."""
        more: list[tuple[str, dict[str, Any]]] = []
        if self.model is not None:
            more.append((self.settings.name, {"chat": bool(self.model.chat_templates.templates)}))
        if self.encoder is not None:
            more.append((self.settings.embedding_name, {}))
        return [
            {"id": name, "object": "model", "created": self.started, "owned_by": "llorch"} | said for name, said in more
        ]

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._models()})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        for model in self._models():
            if model["id"] == name:
                return JSONResponse(model)
        raise Refusal(f"there is no model {shown(name)} here", "model", "model_not_found", 404)

    async def receipt(self, request: Request) -> Response:
        found = self.receipts.get(request.path_params["id"])
        if found is None:
            raise Refusal("there is no such receipt: the last ones alone are kept", "id", "not_found", 404)
        form = request.query_params.get("format", "receipt")
        if form not in ("receipt", "in-toto"):
            raise Refusal("format must be receipt or in-toto", "format")
        return Response(
            receipts.dumps(found if form == "receipt" else receipts.statement(found)), media_type="application/json"
        )

    async def health(self, request: Request) -> Response:
        stopping = self.stopping()
        return JSONResponse({"status": "stopping" if stopping else "ok"}, 503 if stopping else 200)

    async def metrics(self, request: Request) -> Response:
        registry = CollectorRegistry()
        registry.register(_Counters(self))
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self, request: Request) -> Response:
        text = files("llorch.serve").joinpath("page.html").read_text("utf-8")
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(text, headers={"Content-Security-Policy": policy + "; img-src data:; base-uri 'none'"})

    async def _body(self, request: Request) -> dict[str, Any]:
        """The body's object, read no further than it may be long."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal("the body must be of type application/json", status=415)
        raw, most = bytearray(), self.settings.max_body
        async for part in request.stream():
            raw += part
            if len(raw) > most:
                raise Refusal(f"the body has more than {most} bytes", status=413)
        return requests.parse(bytes(raw))


class _Counters(Collector):
    """What Prometheus is told."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def collect(self) -> Any:
        counted = CounterMetricFamily("llorch_requests", "Requests by path and status.", labels=["path", "status"])
        for (path, status), count in sorted(self.server.requests.items()):
            counted.add_metric([path, str(status)], count)
        yield counted
        engine = self.server.engine
        if engine is None:
            return
        for name, what, value in (
            ("llorch_steps", "Steps of the model.", engine.steps),
            ("llorch_step_seconds", "Time in steps.", engine.busy),
            ("llorch_new_tokens", "New tokens.", engine.tokens),
            ("llorch_prompt_tokens", "Prompt tokens of ended sequences.", engine.prompt_tokens),
            ("llorch_reused_prompt_tokens", "Of these, not read anew.", engine.reused_tokens),
        ):
            yield CounterMetricFamily(name, what, value)
        batch = engine.batch
        for name, what, value in (
            ("llorch_sequences", "Sequences that are active.", len(batch) - batch.waiting),
            ("llorch_waiting_sequences", "Sequences that wait for room.", batch.waiting),
            ("llorch_memory_reserved_bytes", "Of keys and values, for active sequences.", batch.memory_reserved),
            ("llorch_memory_kept_bytes", "Of keys and values, for prompts that begin alike.", batch.memory_kept),
        ):
            yield GaugeMetricFamily(name, what, value)


def _usage(sequences: list[Sequence], n: int) -> dict[str, Any]:
    """Tokens of a request: each prompt once, however many choices it has."""
    prompt = sum(len(sequence.prompt_ids) for sequence in sequences[::n])
    new = sum(len(sequence.new_ids) for sequence in sequences)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": sum(sequence.reused for sequence in sequences[::n])},
    }


def _event(piece: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(piece, separators=(",", ":")).encode() + b"\n\n"


async def _gone(request: Request) -> None:
    """Until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ---- the application ---------------------------------------------------------------------------------------


class _Guard:
    """Asks for the key, and counts requests."""

    def __init__(self, app: Any, server: Server) -> None:
        self.app, self.server = app, server
        self.paths = {"/", "/health", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions",
                      "/v1/embeddings"}  # fmt: skip

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]

        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start":
                label = (path if path in self.paths else "other", message["status"])
                self.server.requests[label] = self.server.requests.get(label, 0) + 1
            await send(message)

        key = self.server.settings.key
        if key and path not in OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ")
            if not secrets.compare_digest(given, key.encode()):
                refusal = Refusal("the API key is missing or wrong", code="invalid_api_key", status=401)
                await JSONResponse(refusal.body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, counting)
                return
        await self.app(scope, receive, counting)


async def _refuse(request: Request, error: Exception) -> Response:
    server: Server = request.app.state.server
    refusal = server.told(error)
    headers = {"Retry-After": "1"} if refusal.status in (429, 503) else None
    return JSONResponse(refusal.body, refusal.status, headers)


async def _http(request: Request, error: Exception) -> Response:
    """Paths and methods that aren't there."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {shown(request.url.path)}: {error.detail}"
    return JSONResponse(Refusal(message, status=error.status_code).body, error.status_code, error.headers)


Handler = Callable[[Request], Awaitable[Response]]


def application(server: Server) -> Starlette:
    """The routes of a server."""
    gets: dict[str, Handler] = {
        "/": server.page,
        "/health": server.health,
        "/metrics": server.metrics,
        "/v1/models": server.models,
        "/v1/models/{name:path}": server.one_model,
        "/v1/receipts/{id}": server.receipt,
    }
    posts: dict[str, Handler] = {
        "/v1/chat/completions": server.chat,
        "/v1/completions": server.text,
        "/v1/embeddings": server.embeddings,
    }
    routes = [Route(path, handler, methods=["GET"]) for path, handler in gets.items()]
    routes += [Route(path, handler, methods=["POST"]) for path, handler in posts.items()]
    middleware = [Middleware(_Guard, server=server)]
    if server.settings.hosts is not None:
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(server.settings.hosts)))
    handlers: Any = {Refusal: _refuse, HTTPException: _http, Exception: _refuse}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=server.lifespan)
    app.state.server = server
    return app
