"""`llorch serve`."""

import contextlib
import gc
import logging
import signal
import socket
from typing import Any

import click

import llorch
from llorch._text import counted
from llorch.commands import common

LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Older versions of starlette take "[" for the host of "[::1]:8000". No name begins so, and an address is never rebound.
PAGES = ("localhost", "127.0.0.1", "[::1]", "[")


@click.command("serve", short_help="Answer over HTTP, as OpenAI's API does; the load changes no bit.")
@click.argument("model", default=common.EMBEDDED)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--name", help="What the model is called. Without it: its file's or folder's name.")
@click.option("--embeddings", metavar="MODEL", help="A second model, for /v1/embeddings.")
@click.option(
    "--sequences", type=click.IntRange(1, 4096), default=64, show_default=True, help="At most so many at a time."
)
@click.option(
    "--step-tokens",
    type=click.IntRange(1, 65536),
    default=320,
    show_default=True,
    help="Tokens of one step: longer prompts are read in pieces, between others' tokens.",
)
@click.option("--memory", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True,
              help="For keys and values, in GB.")  # fmt: skip
@click.option("--queue", type=click.IntRange(0), default=256, show_default=True, help="At most so many sequences wait.")
@click.option("--max-prompt", type=click.IntRange(1), help="Tokens of a prompt. Without it: the model's context.")
@click.option("--max-body", type=click.IntRange(1), default=4 << 20, show_default=True, help="Bytes of a request.")
@click.option(
    "--default-tokens",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="New tokens of an answer at most, where a request doesn't say.",
)
@click.option(
    "--shutdown-seconds",
    type=click.IntRange(0),
    default=30,
    show_default=True,
    help="What runs has so long to finish once the server is told to end.",
)
@common.dtype_option
@common.compute_option
@common.threads_option
def command(
    model: str,
    host: str,
    port: int,
    name: str | None,
    embeddings: str | None,
    sequences: int,
    step_tokens: int,
    memory: float,
    queue: int,
    max_prompt: int | None,
    max_body: int,
    default_tokens: int,
    shutdown_seconds: int,
    dtype: str | None,
    compute: str,
) -> None:
    """Answer over HTTP with MODEL: a folder, a .gguf file, or an id on Hugging Face's hub.

    /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/models are OpenAI's API; a page to chat is at /. An
    answer's bits are those of the same request alone. With LLORCH_API_KEY set, requests need this key.
    """
    try:
        import uvicorn

        from llorch.serve import app
    except ModuleNotFoundError as error:
        raise common.Failure(f'the server needs the package {error.name}: pip install "llorch[serve]"') from None
    decoder, encoder = _models(model, embeddings, dtype, compute)
    with common.failures():
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise common.Failure(f"can't listen at {host}, port {port}: {error.strerror}") from None
    # A stream's pieces are small, and each is to leave at once. The sockets of connections inherit it.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if decoder is not None:
        with common.failures():
            decoder.tokenizer, decoder.chat_end_ids, decoder.missing_ids  # noqa: B018  what is broken is said now
    settings = app.Settings(
        name=name or _name(decoder),
        embedding_name=_name(encoder) if decoder is not None else name or _name(encoder),
        max_sequences=sequences,
        max_tokens_per_step=step_tokens,
        memory=int(memory * 1e9),
        max_waiting=queue,
        max_body=max_body,
        max_prompt=max_prompt,
        default_tokens=default_tokens,
        hosts=PAGES if host in LOOPBACK else None,
    )
    server: Any = None
    state = app.Server(settings, decoder, encoder, lambda: server.should_exit)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every write to a client that has gone
    config = uvicorn.Config(
        app.application(state),
        log_level="critical",
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=shutdown_seconds,
        timeout_keep_alive=60,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # it would raise them again at the end, and no word come after
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, server.handle_exit)
    address = f"[{host}]" if ":" in host else host
    common.echo(f"http://{address}:{listening.getsockname()[1]}  {settings.name or settings.embedding_name}")
    gc.collect()
    gc.freeze()  # the model's objects stay: no collection need look at them
    server.run(sockets=[listening])
    if state.cut:
        common.echo(
            f"cut off, as it had not ended within {shutdown_seconds} s: {counted(state.cut, 'answer')}", err=True
        )


def _models(model: str, embeddings: str | None, dtype: str | None, compute: str) -> tuple[Any, Any]:
    """The decoder and the encoder. Either may be MODEL."""
    from llorch.models import registry

    with common.failures():
        if registry.family_of(registry.open_known(model)).kind == "encoder":
            if embeddings is not None:
                raise common.Failure(f"{model} gives embeddings itself: --embeddings is for a second model")
            return None, llorch.TextEncoder.from_pretrained(model, dtype=dtype, compute=compute)
        decoder = llorch.CausalLM.from_pretrained(model, dtype=dtype, compute=compute)
        encoder = None if embeddings is None else llorch.TextEncoder.from_pretrained(embeddings)
        return decoder, encoder


def _name(model: Any) -> str:
    if model is None:
        return ""
    name: str = model.path.name
    return name.removesuffix(".gguf")
