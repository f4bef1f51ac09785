"""`llorch config`."""

import click

import llorch


@click.command("config")
def command() -> None:
    """Print compiler, instruction sets, threads and versions."""
    llorch.show_config()
