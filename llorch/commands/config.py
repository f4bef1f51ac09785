"""`llorch config`."""

import click

from llorch._config import config_lines
from llorch.commands import common


@click.command("config")
def command() -> None:
    """Print compiler, instruction sets, threads and versions."""
    for line in config_lines():
        common.echo(line)
