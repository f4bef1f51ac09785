"""`llorch config`."""

import click

import llorch
from llorch.commands import common


@click.command("config")
def command() -> None:
    """Print compiler, instruction sets, threads and versions."""
    for name, value in llorch.config().items():
        common.echo(f"{name + ':':21}{', '.join(value) if isinstance(value, tuple) else value}")
