"""`llorch dump`."""

from pathlib import Path

import click

from llorch.commands import common
from llorch.commands.options import ids_option, prompt_option, writable


@click.command("dump", short_help="Write every tensor of the ladder for a prompt.")
@common.model_option()
@prompt_option
@ids_option
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    callback=writable,
    metavar="FILE.safetensors",
    help="The file to write.",
)
@click.option(
    "--source",
    type=click.Choice(["llorch", "oracle", "transformers"]),
    default="llorch",
    show_default=True,
    help="Who computes it.",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@common.threads_option
def command(model: str, prompt: str, ids: tuple[int, ...] | None, output: Path, source: str, force: bool) -> None:
    """Write every tensor of the ladder for a prompt: what `llorch compare` compares an engine's dump with."""
    if output.exists() and not force:
        raise common.Failure(f"{output} is there already: name another file, or give --force")
    from llorch.validate.ladder.run import dump

    with common.failures():
        trace = dump(output, model, common.text_of(prompt), ids=ids, source=source)
    size = sum(values.nbytes for values in trace.values())
    common.echo(f"{output}: {len(trace)} tensors, {size:,} bytes, {common.tokens(len(trace['ids']))}")
