"""`llorch generate`."""

import sys
import time
from pathlib import Path

import click

from llorch.commands import common, options
from llorch.text.protocol import context_of

DEFAULT_LENGTH = 200


@click.command("generate")
@click.argument("prompt")
@common.model_option()
@click.option(
    "-n",
    "--max-new-tokens",
    type=click.IntRange(0),
    help=f"How many, unless the text ends before. Without it: {DEFAULT_LENGTH}, or as the context has room for.",
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=int, help="Draw from the K likeliest tokens.")
@click.option("--top-p", type=float, help="Draw from the likeliest tokens that together have probability P.")
@click.option("--repetition-penalty", type=float, help="More than 1 makes tokens that came before less likely.")
@click.option("--seed", type=int, help="The same seed gives the same text. Without it: a fresh one, which is shown.")
@click.option("--stop", multiple=True, help="Stop before this text (repeatable).")
@options.file_option("--receipt", "receipt", "FILE", "Write a receipt, which `llorch verify` checks.")
@click.option("--in-toto", is_flag=True, help="The receipt of --receipt as an in-toto statement.")
@common.dtype_option
@common.compute_option
@common.threads_option
@click.option("--stats/--no-stats", default=None, help="Tokens per second, on stderr. Default: where it is a terminal.")
def command(
    prompt: str,
    model: str,
    max_new_tokens: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    receipt: Path | None,
    in_toto: bool,
    dtype: str | None,
    compute: str,
    stats: bool | None,
) -> None:
    """Continue PROMPT; the new text goes to stdout as it comes.

    PROMPT "-" is standard input. An empty prompt begins with the model's begin-of-text token. A terminal shows control
    characters in the text escaped, but newlines and tabs; a file or a pipe gets the text as it is.
    """
    if in_toto and receipt is None:
        raise click.UsageError("--in-toto is of a receipt: say where with --receipt FILE")
    prompt = common.text_of(prompt)
    engine = common.load(model, dtype, compute)
    with common.failures(), common.progress("reading the prompt") as progress:
        tokenizer, config = engine.tokenizer, engine.config
        if not tokenizer.prompt(prompt) and config.bos_token_id is not None:
            prompt = tokenizer.decode([config.bos_token_id])
        if max_new_tokens is None:
            max_new_tokens = max(1, min(DEFAULT_LENGTH, context_of(engine) - len(tokenizer.prompt(prompt))))

        pieces = engine.stream(
            prompt,
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            stop=stop,
            seed=seed,
            progress=progress,
            links=receipt is not None,
        )
        if pieces.seed is not None and seed is None:
            common.echo(f"seed {pieces.seed}", err=True)
        out = common.ModelText()
        begin, first = time.perf_counter(), None
        try:
            for piece in pieces:
                first = first or time.perf_counter()
                out.write(piece)
            out.write("\n")
        finally:  # after Ctrl-C too
            if stats or (stats is None and sys.stderr.isatty()):
                end = time.perf_counter()
                common.echo(
                    _summary(len(pieces.prompt_ids), (first or end) - begin, len(pieces.ids), end - begin), err=True
                )

        if receipt is not None:
            from llorch import receipts

            made = receipts.make(engine, pieces.sequence)
            common.save(receipt, receipts.dumps(receipts.statement(made) if in_toto else made))


def _summary(prompt: int, until_first: float, new: int, seconds: float) -> str:
    """The first new token comes with the prompt: the others are what decoding takes."""
    parts = [f"prompt: {common.tokens(prompt)} in {until_first:.2f} s ({prompt / until_first:.0f} tokens/s)"]
    parts += [f"new: {common.tokens(new)} in {seconds:.2f} s"]
    if new > 1 and seconds > until_first:
        parts += [f"decoding: {(new - 1) / (seconds - until_first):.1f} tokens/s"]
    return "\n" + "; ".join(parts)
