"""`llorch compare-weights`."""

from pathlib import Path

import click

from llorch.commands import common
from llorch.commands.options import file_option


class _Unknown(common.Failure):
    """What keeps weights from being compared, or the result from being told."""

    exit_code = 2


@click.command("compare-weights", short_help="Compare the weights of two models, whatever their formats.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--all", "every", is_flag=True, help="Show a line for each tensor, and not one for all that are alike.")
@file_option("--json", "json_path", "FILE", "Write everything found to this file.")
@click.pass_context
def command(context: click.Context, a: Path, b: Path, every: bool, json_path: Path | None) -> None:
    """Compare the weights of A and B, tensor by tensor: the first thing to run after a conversion.

    Each is a folder in Hugging Face's format, a GGUF file, or a .safetensors or .npz file of another engine; one of
    them must say what model it is. A tensor has the same bits, the same values, is rounded or quantised within what its
    format may do, or was permuted, transposed, scaled, put in another's place, or is different: which and how is said.

    The exit status is 0 if the weights are alike, 1 if they differ, 2 if that can't be told.
    """
    from llorch.validate.report import json, terminal
    from llorch.validate.weights.compare import compare_weights

    try:
        with common.failures(), common.progress("comparing weights") as progress:
            result = compare_weights(a, b, progress=progress)
        with common.results() as console:
            terminal.show_weights(result, console, every=every)
        if json_path is not None:
            common.save(json_path, json.text(json.of_weights(result)))
    except common.Failure as failure:
        raise _Unknown(failure.message) from failure
    context.exit({True: 0, False: 1, None: 2}[result.alike])
