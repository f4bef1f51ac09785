"""`llorch dump`."""

from pathlib import Path

import click

from llorch.commands import common
from llorch.commands.options import check_new, ids_option, output_option, prompt_option


@click.command("dump", short_help="Write every tensor of the ladder for a prompt.")
@common.model_option()
@prompt_option
@ids_option
@output_option("FILE.safetensors", "The file to write.")
@click.option(
    "--source",
    type=click.Choice(["llorch", "oracle", "transformers"]),
    default="llorch",
    show_default=True,
    help="Who computes it.",
)
@common.threads_option
def command(model: str, prompt: str, ids: tuple[int, ...] | None, output: Path, source: str, force: bool) -> None:
    """Write every tensor of the ladder for a prompt: what `llorch compare` compares an engine's dump with."""
    check_new(output, force)
    from llorch.validate.ladder.run import dump

    with common.failures():
        trace = dump(output, model, common.text_of(prompt), ids=ids, source=source)
    size = sum(values.nbytes for values in trace.values())
    common.echo(f"{output}: {len(trace)} tensors, {size:,} bytes, {common.tokens(len(trace['ids']))}")
