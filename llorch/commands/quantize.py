"""`llorch quantize`."""

from pathlib import Path

import click

from llorch.commands import common
from llorch.commands.options import check_new, output_option
from llorch.files import open_model
from llorch.files.requantize import requantize, summary

formats = click.Choice(common.INTEGERS, case_sensitive=False)


@click.command("quantize", short_help="Write a GGUF file with its weights in fewer bits.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--to", "format", required=True, type=formats, help="The format of the matrices.")
@click.option(
    "--head", type=formats, help="Another format for the matrix that gives the logits, which needs more bits."
)
@output_option("FILE.gguf", "The file to write.")
@common.threads_option
def command(model: Path, format: str, head: str | None, output: Path, force: bool) -> None:
    """Write the model of a GGUF file with its matrices in another format, for llorch, llama.cpp and transformers.

    Metadata and tokenizer are copied, vectors stay float32. The same bytes come out on every machine. A matrix whose
    rows aren't whole blocks gets the nearest format that fits, as the output says.
    """
    check_new(output, force)
    if model.is_dir():
        raise common.Failure(
            f"{model} is a folder: llorch quantize reads GGUF files (llama.cpp's converter makes them)"
        )
    with common.failures(), common.ended_tidily(), common.progress(f"quantising to {format}", size=True) as advance:
        choices = requantize(model, output, format.upper(), head.upper() if head else None, advance)
    common.echo(f"{output}: {common.many(len(choices), 'tensor')}, {output.stat().st_size:,} bytes")
    for line in summary(choices, format.upper()):
        common.echo(f"  {line}")
    if problem := _problem(output):
        common.echo(f"  llorch can't run it: {problem}")


def _problem(path: Path) -> str:
    """Why llorch doesn't run the model of a file, as `llorch info` says it; "" if it does."""
    from llorch.models import loading
    from llorch.models.registry import config_of, family_of

    try:
        source = open_model(path)
        family = family_of(source)
        loading.find(source, family, family.graph(config_of(source, family)))
    except (ValueError, TypeError) as error:
        return str(error)
    return ""
