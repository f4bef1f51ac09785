"""The command line: one group, whose commands are in llorch/commands. Needs click and rich (see llorch/__main__.py)."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

import llorch
from llorch import _interrupts
from llorch._interrupts import INTERRUPTED
from llorch._text import printable

COMMANDS = (
    *("generate", "chat", "serve", "verify", "score", "embed", "search", "info"),
    *("quantize", "bench", "validate", "dump", "compare", "compare-weights", "kernels", "config"),
)


class Commands(click.Group):
    """Imports a command when it is asked for; says what is wrong in one line, without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        with _interrupts.at_once():
            try:
                command: click.Command = importlib.import_module(
                    f"llorch.commands.{cmd_name.replace('-', '_')}"
                ).command
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] != "rich":
                    raise
                message = 'the command line needs the package rich: pip install "llorch[models]"'
                raise click.ClickException(message) from None
        return command

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Exit status: 0; 1 if something failed; 2 for a command line that can't be understood; 130 after Ctrl-C."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                status = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            status = error.exit_code
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            name = context.command_path if context else "llorch"
            hint = f" (see {name} --help)" if isinstance(error, click.UsageError) else ""
            _say(f"{name}: {error.format_message()}{hint}")
            status = error.exit_code
        except click.Abort:
            status = INTERRUPTED
        except OSError as error:  # of click's own words; commands tell theirs
            if not _is_of_echo(error):
                raise
            _say(f"llorch: standard output: {error.strerror}")
            status = 1
        sys.exit(status if isinstance(status, int) else 0)


def _is_of_echo(error: BaseException) -> bool:
    """Whether it was raised where click writes."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_code is click.echo.__code__


def _say(text: str) -> None:
    """A line on stderr. Whatever a terminal would obey is shown escaped: names and values come from files."""
    click.echo(printable(" ".join(text.split())), err=True)


def _show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """What the library says in passing."""
    _say(f"llorch: {message}")


def _show_version(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    """As click.version_option does, for which every command would read the package's metadata: a sixth of its time."""
    if asked and not context.resilient_parsing:
        click.echo(f"{context.find_root().info_name}, version {llorch.__version__}")
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Transformer inference whose every output bit is specified, and the tools to prove it."""
