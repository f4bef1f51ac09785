"""`llorch search`."""

import heapq
import json
from collections import deque

import click

from llorch.commands import common, texts


@click.command("search", short_help="Find the lines of a file that are nearest to a query.")
@click.argument("file")
@click.argument("query")
@common.model_option(required=True)
@click.option("-n", "--number", type=click.IntRange(1), default=10, show_default=True, help="How many lines to show.")
@texts.field_option
@texts.batch_option
@common.json_option
@common.dtype_option
@common.compute_option
@common.threads_option
def command(
    file: str,
    query: str,
    model: str,
    number: int,
    field: str | None,
    batch_size: int,
    as_json: bool,
    dtype: str | None,
    compute: str,
) -> None:
    """The lines of FILE, "-" for standard input, that are nearest to QUERY, with their scores.

    Empty lines are passed over. The model's prompts for queries and for documents go before them, where it has such. Of
    lines with the same score the first comes first.
    """
    encoder = texts.load(model, dtype, compute)
    lines: deque[str] = deque()
    best: list[tuple[float, int, str]] = []  # a heap: the least is what goes first
    with common.failures():
        asked = encoder.encode(query, prompt_name=encoder.query_prompt())
        batches = encoder.encode_stream(
            texts.watched(texts.Texts(file, field), lines.append),
            batch_size=batch_size,
            show_progress_bar=True,
            prompt_name=encoder.document_prompt(),
        )
        count = 0
        for rows in batches:
            for score in encoder.similarity(asked, rows)[0].tolist():
                line, count = lines.popleft(), count + 1
                if score != score:
                    raise ValueError(f"the score of line {count} is not a number: no line is nearer than it or farther")
                if line.strip():
                    push = heapq.heappushpop if len(best) == number else heapq.heappush
                    push(best, (score, -count, line))
    found = [(score, -place, line) for score, place, line in sorted(best, reverse=True)]
    if as_json:
        entries = [{"score": score, "line": place, "text": line} for score, place, line in found]
        common.echo(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    if not found:
        common.echo("no line has a text", err=True)
    wide = len(str(max((place for _, place, _ in found), default=0)))
    for score, place, line in found:
        common.echo(f"{score:7.4f}  {place:{wide}}  {line}")
