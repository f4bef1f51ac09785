"""Ctrl-C: our import is never torn in the middle, and a command that it ends has exit status 130 and no traceback.

The first module of ours that runs, so it imports nothing that takes time: until a command's handler is set, Ctrl-C is
still Python's. `_signal` is what the module `signal` wraps, which takes `re` and `enum` along.
"""

from __future__ import annotations

import atexit
import os
import sys

TYPE_CHECKING = False  # as typing has it, without importing typing
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any, NoReturn
else:
    import _signal as signal

INTERRUPTED = 130  # as shells report a program that Ctrl-C ended
SHOW_CURSOR = b"\x1b[?25h"
AGAIN = 0.01  # seconds after which an import that an interrupt waits for is looked at once more


def _set(handler: Any) -> bool:
    """Makes handler that of SIGINT; False where it can't be: handlers are the main thread's."""
    try:
        signal.signal(signal.SIGINT, handler)
    except ValueError:
        return False
    return True


class held:
    """SIGINT waits while the body runs; then it is raised again, to the handler of before.

    For imports of compiled modules. One that KeyboardInterrupt tears is not only lost: modules made by Cython crash
    (they take the module `inspect` without a look whether its import failed), NumPy says that its installation is bad.
    A handler that isn't Python's (SIGINT is ignored, or C's) tears nothing and is left alone.
    """

    def __init__(self) -> None:
        self.came = False
        self.before: Any = None

    def note(self, number: int, frame: FrameType | None) -> None:
        self.came = True

    def __enter__(self) -> None:
        before = signal.getsignal(signal.SIGINT)
        if callable(before) and before != command.handle and _set(self.note):
            self.before = before

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.before is not None and signal.getsignal(signal.SIGINT) == self.note:
            signal.signal(signal.SIGINT, self.before)
        if self.came:
            signal.raise_signal(signal.SIGINT)


def _importing(frame: FrameType | None) -> bool:
    """True if an import is under way in this stack."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


class Command:
    """What Ctrl-C does in the process of `llorch`, from our first line to the end of the interpreter.

    While there is nothing to tidy up (imports, the end) it leaves at once. In a command it raises KeyboardInterrupt, so
    that files are closed and temporary folders removed; where an import is under way, when that is done. A second one
    leaves at once. What others make of the exception, an error or a message of theirs, changes no exit status.
    """

    def __init__(self) -> None:
        self.begun = False
        self.busy = False  # a command runs: KeyboardInterrupt lets it tidy up
        self.came = False
        self.session = False  # it goes on after Ctrl-C, which ends a part of it
        self.armed = False  # there is such a part

    def begin(self) -> None:
        """Sets the handler, unless SIGINT isn't Python's: ignored in the background, or somebody else's."""
        if not self.begun and signal.getsignal(signal.SIGINT) is signal.default_int_handler and _set(self.handle):
            self.begun = True
            # Python gives its own handlers up before it is at its end, then the system's would follow.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
            sys.unraisablehook = self.unraisable

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.came or not self.busy:
            leave()
        if self.session:
            if not self.armed:
                return
            self.armed = False
        else:
            self.came = True
        self.interrupt(number, frame)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Raises KeyboardInterrupt; during an import, later."""
        if not self.busy:
            leave()
        if not _importing(frame):
            raise KeyboardInterrupt
        self.once_more()

    def once_more(self) -> None:
        signal.signal(signal.SIGALRM, self.interrupt)
        signal.setitimer(signal.ITIMER_REAL, AGAIN)

    def unraisable(self, what: sys.UnraisableHookArgs) -> None:
        """A KeyboardInterrupt that came where none can be raised (a finalizer, a callback of C) comes once more."""
        if issubclass(what.exc_type, KeyboardInterrupt) and (self.came or self.session):
            self.once_more()
        else:
            sys.__unraisablehook__(what)

    def run(self, work: Callable[[], object]) -> int | str | None:
        """work(), during which Ctrl-C raises KeyboardInterrupt. How the process is to end, as SystemExit has it."""
        status: int | str | None = 0
        try:
            try:
                self.busy = True
                work()
            finally:
                self.busy = False  # from here on it leaves at once
        except SystemExit as end:
            status = end.code
        except BaseException:  # an error that somebody made of the interrupt, too
            if not self.came:
                raise
        if self.came:
            signal.setitimer(signal.ITIMER_REAL, 0)
            status = INTERRUPTED
        return status


class at_once:
    """While the body runs a command has nothing to tidy up: Ctrl-C needn't wait for the imports in it."""

    def __enter__(self) -> None:
        self.before, command.busy = command.busy, False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        command.busy = self.before


class session:
    """While the body runs Ctrl-C doesn't end the command: it raises KeyboardInterrupt once after each `arm`, and is
    passed over where there is nothing to end, so that pressing it twice ends one thing and not two."""

    def __enter__(self) -> session:
        command.session, command.armed = True, False
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        command.session = command.armed = False

    def arm(self) -> None:
        command.armed = True

    def disarm(self) -> None:
        command.armed = False


def leave() -> NoReturn:
    """The end of the process, at once. A progress bar hides a terminal's cursor: it is shown again."""
    try:
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)
    finally:
        os._exit(INTERRUPTED)


command = Command()
_name = sys.argv[0] if getattr(sys, "argv", None) else ""
is_command = os.path.basename(_name) == "llorch" or (_name == "-m" and "llorch" in sys.orig_argv)
if is_command:  # this process is our command, by its script or by python -m llorch
    command.begin()
