"""`llorch dump`."""

from pathlib import Path

import click

from llorch.commands import common
from llorch.commands.options import check_new, ids_option, output_option, prompt_option


def _plants(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from llorch.validate.ladder.plants import PLANTS

        width = max(map(len, PLANTS))
        common.echo("\n".join(f"{key:{width}}  {fault.says}" for key, fault in PLANTS.items()))
        context.exit()


@click.command("dump", short_help="Write every tensor of the ladder for a prompt.")
@click.argument("folder", required=False, metavar="[MODEL]")
@common.model_option(None, " The same as the argument. [default: shakespeare-1m]")
@prompt_option
@ids_option
@output_option("FILE.safetensors", "The file to write.")
@click.option(
    "--from",
    "source",
    type=click.Choice(["llorch", "oracle", "transformers"]),
    default="llorch",
    show_default=True,
    help="Who computes it.",
)
@click.option("--plant", metavar="FAULT[:BLOCK]", help="Make this mistake in transformers' modules first.")
@click.option(
    "--list-plants", is_flag=True, is_eager=True, expose_value=False, callback=_plants, help="List these mistakes."
)
@common.compute_option
@common.threads_option
def command(
    folder: str | None,
    model: str | None,
    prompt: str,
    ids: tuple[int, ...] | None,
    output: Path,
    source: str,
    plant: str | None,
    force: bool,
    compute: str,
) -> None:
    """Write every tensor of the ladder for a prompt: what `llorch compare` compares an engine's dump with.

    MODEL is a folder, a .gguf file or an id on Hugging Face's hub. --from transformers runs transformers, with hooks on
    its modules, and writes what it computes.
    """
    if folder is not None and model is not None:
        raise click.UsageError("MODEL and --model are the same, give one of them")
    if plant is not None and source != "transformers":
        raise click.UsageError("--plant makes mistakes in transformers' modules, it needs --from transformers")
    check_new(output, force)
    from llorch.validate.ladder.run import dump

    given = folder or model or common.EMBEDDED
    with common.failures():
        trace = dump(output, given, common.text_of(prompt), ids=ids, source=source, plant=plant, compute=compute)
    size = sum(values.nbytes for values in trace.values())
    common.echo(f"{output}: {len(trace)} tensors, {size:,} bytes, {common.tokens(len(trace['ids']))}")
