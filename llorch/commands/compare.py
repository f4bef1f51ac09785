"""`llorch compare`."""

from pathlib import Path

import click

from llorch._text import shown
from llorch.commands import common
from llorch.commands.options import file_option, layers_option


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        theirs, equals, ours = value.partition("=")
        if not (theirs and equals and ours):
            raise click.BadParameter(f"{value!r} must be THEIRS=OURS, such as layer0.norm=h.0.ln_1")
        if theirs in found:
            raise click.BadParameter(f"{shown(theirs)} is mapped twice, to {shown(found[theirs])} and {shown(ours)}")
        found[theirs] = ours
    return found


@click.command("compare", short_help="Find the first wrong tensor in any engine's dump.")
@click.argument("theirs", type=click.Path(path_type=Path))
@click.argument("ours", type=click.Path(path_type=Path))
@click.option(
    "--model",
    help="The model of both, as `llorch dump` takes it: faults are tried in it. [default: the dump's own]",
)
@click.option(
    "--map",
    "names",
    multiple=True,
    callback=_pairs,
    metavar="THEIRS=OURS",
    help="A name that isn't known (repeatable).",
)
@layers_option(None)
@file_option("--json", "json_path", "FILE", "Write everything found to this file.")
@file_option("--report", "report_path", "FILE.html", "Write a page with the ladder and the errors drawn.")
@click.pass_context
def command(
    context: click.Context,
    theirs: Path,
    ours: Path,
    model: str | None,
    names: dict[str, str],
    layers: frozenset[int] | None,
    json_path: Path | None,
    report_path: Path | None,
) -> None:
    """Find the first wrong tensor in THEIRS, any engine's dump, and what was done wrong to it.

    THEIRS is a .safetensors or .npz file with as many of the ladder's tensors as there are, or the text that
    llama.cpp's llama-eval-callback prints; OURS is what `llorch dump` wrote for the same model and prompt.
    docs/validator.md has the names.

    The exit status is 0 if all that is there agrees, 1 if not.
    """
    for option, path in (("--json", json_path), ("--report", report_path)):
        if path is not None and path.exists() and any(dump.exists() and path.samefile(dump) for dump in (theirs, ours)):
            raise click.UsageError(f"{option} {shown(str(path))} is one of the dumps, it must be another file")
    from llorch.validate.ladder import dumps
    from llorch.validate.ladder.compare import compare
    from llorch.validate.ladder.sources import Model
    from llorch.validate.report import html, json, terminal

    with common.failures(), common.progress("trying faults") as progress:
        mine = dumps.read(ours)
        at_hand = Model(model) if model is not None else None
        if at_hand is None and mine.metadata.get("model") == common.EMBEDDED:
            embedded = Model(common.EMBEDDED)  # a folder may have its name
            at_hand = embedded if mine.metadata.get("model_sha256", embedded.sha256) == embedded.sha256 else None
        their_dump = dumps.read(theirs)
        result = compare(their_dump, mine, model=at_hand, names=names, progress=progress)
    if layers is None:
        layers = frozenset({(result.first.tensor.layer if result.first else None) or 0})
    with common.results() as console:
        terminal.show_comparison(result, console, layers or None)
    if json_path is not None:
        common.save(json_path, json.text(json.of_comparison(result)))
    if report_path is not None:
        with common.failures():
            content = html.of_comparison(result, their_dump, mine, at_hand, names)
        common.save(report_path, content)
    context.exit(0 if result.holds else 1)
