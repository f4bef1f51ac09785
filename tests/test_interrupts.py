"""Ctrl-C: an import isn't torn, a command ends with status 130. SIGINT comes at the very import that is named."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import types

import pytest

import llorch
from llorch import _interrupts

# SIGINT when the import of a module begins, so many times.
RAISES = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background may ignore it
class Raises:
    left = {times}
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and self.left:
            self.left -= 1
            signal.raise_signal(signal.SIGINT)
            if self.left:
                signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Raises())
"""
UNPROTECTED = """
import types
class Held:
    def __enter__(self): pass
    def __exit__(self, *error): pass
nothing = types.ModuleType("llorch._interrupts")
nothing.held = Held
sys.modules["llorch._interrupts"] = nothing
"""
HANDLERLESS = """
from llorch import _interrupts
_interrupts.Command.begin = lambda self: None
"""


def python(code, *arguments):
    """The code in a process of its own, in which llorch isn't imported yet."""
    found = {"PYTHONPATH": os.path.dirname(os.path.dirname(llorch.__file__))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, **found},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def at_import(module, code, times=1):
    return python(RAISES.format(module=module, times=times) + textwrap.dedent(code))


# ---- import llorch ------------------------------------------------------------------------------------------


def test_without_inspect_the_import_is_an_error():
    """Cython's start of a module uses the module inspect without a look whether it is there."""
    status, _, shown = python("import sys; sys.modules['inspect'] = None; import llorch")
    assert status == 1 and shown.splitlines()[-1].startswith("ModuleNotFoundError: import of inspect halted")


@pytest.mark.parametrize("module", ["numpy", "numpy._core._multiarray_umath", "inspect", "llorch._core", "datetime"])
def test_an_interrupted_import_is_a_keyboard_interrupt(module):
    status, out, shown = at_import(module, "import llorch; print('imported')")
    assert status == -signal.SIGINT and out == ""
    assert shown.splitlines()[-1] == "KeyboardInterrupt" and "Error" not in shown


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interrupt_beside_the_mask_leaves_nothing_blocked(call):
    """pthread_sigmask does what it is asked for, and only then raises what came just before."""
    code = f"""
    import _signal
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    real, calls = _signal.pthread_sigmask, 0
    def interrupted(how, what):
        global calls
        before, calls = real(how, what), calls + 1
        if calls == {call}:
            raise KeyboardInterrupt
        return before
    _signal.pthread_sigmask = interrupted
    try:
        import llorch
    except KeyboardInterrupt:
        print(*real(_signal.SIG_BLOCK, []))
        raise
    """
    status, out, shown = python(code)
    assert status == -signal.SIGINT and out.split() == []  # 130 where SIGINT is still blocked at the end
    assert shown.splitlines()[-1] == "KeyboardInterrupt"


def test_an_unprotected_import_would_be_torn():
    """Negative control: the import stops in the middle, NumPy's with an error of its own making."""
    status, _, shown = at_import("datetime", UNPROTECTED + "import llorch")
    assert not (status == -signal.SIGINT and "in __exit__" in shown)
    whole = at_import("datetime", "import llorch")[2]
    assert "in __exit__" in whole and "numpy" not in whole


def test_an_interrupted_import_can_be_repeated():
    code = """
        try:
            import llorch
        except KeyboardInterrupt:
            print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        import numpy, llorch
        from llorch import reference
        print(llorch.layer_norm(numpy.ones((1, 4), numpy.float32)), reference is llorch.reference)
    """
    status, out, shown = at_import("llorch._core", code)
    assert (status, shown) == (0, "") and out == "interrupted True\n[[0. 0. 0. 0.]] True\n"


@pytest.mark.parametrize("handler", ["custom", "ignored", "default"])
def test_the_handler_of_before_gets_it_and_is_there_again(handler):
    code = f"""
        got = []
        def custom(*what):
            got.append(what)
        handler = dict(custom=custom, ignored=signal.SIG_IGN, default=signal.SIG_DFL)["{handler}"]
        signal.signal(signal.SIGINT, handler)
        import llorch
        print(len(got), signal.getsignal(signal.SIGINT) == handler)
    """
    status, out, shown = at_import("llorch._core", code)
    if handler == "default":  # as the system does it: at once
        assert (status, out, shown) == (-signal.SIGINT, "", "")
    else:
        assert (status, shown) == (0, "") and out == f"{int(handler == 'custom')} True\n"


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch):
    """A program that embeds Python has its own: getsignal gives None, which can't be set again."""
    calls = []
    theirs = types.SimpleNamespace(SIGINT=2, getsignal=lambda number: None, signal=lambda *what: calls.append(what))
    theirs.default_int_handler = signal.default_int_handler
    monkeypatch.setattr(_interrupts, "signal", theirs)
    with _interrupts.held():
        pass
    _interrupts.Command().begin()
    assert calls == []


def test_other_threads_import_without_a_handler():
    code = """
        import threading
        found = []
        def work():
            import llorch
            found.append(llorch.isa())
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print(len(found))
    """
    assert python(code) == (0, "1\n", "")


def test_held_keeps_what_comes_and_gives_it_back():
    got = []
    before = signal.signal(signal.SIGINT, lambda *what: got.append(what))
    try:
        handler = signal.getsignal(signal.SIGINT)
        with _interrupts.held():
            signal.raise_signal(signal.SIGINT)
            assert got == [] and signal.getsignal(signal.SIGINT) != handler
        assert len(got) == 1 and signal.getsignal(signal.SIGINT) is handler
        with pytest.raises(ValueError, match="of the body"), _interrupts.held():
            raise ValueError("of the body")
        assert signal.getsignal(signal.SIGINT) is handler and len(got) == 1
        errors = []

        def work():
            try:
                with _interrupts.held():
                    pass
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert errors == [] and signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


# ---- commands -----------------------------------------------------------------------------------------------

COMMAND = "\nsys.argv = ['llorch', 'generate', 'ROMEO:', '-n', '3']\nfrom llorch.__main__ import main\nmain()\n"


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "module", ["llorch._interrupts", "numpy", "llorch._core", "llorch.__main__", "click", "llorch.commands.generate",
               "llorch.models.engine", "tokenizers"],
)  # fmt: skip
def test_a_command_that_is_interrupted_in_an_import(module, times):
    found = at_import(module, COMMAND, times)
    if module == "llorch._interrupts":  # what asks for our first line is not ours yet; Python's own way
        assert found[0] in (130, -signal.SIGINT)
    else:
        assert found[0] == 130 and found[2].strip() == "", found  # the first words may have come


def test_a_command_without_its_handler_would_show_a_traceback():
    """Negative control of the above."""
    status, _, shown = at_import("click", HANDLERLESS + COMMAND)
    assert status != 130 or "Traceback" in shown


def inside(work, after=""):
    """The command's process with something else in the place of the command."""
    return python(
        f"""
        import signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from llorch import _interrupts
        command = _interrupts.command
        command.begin()
        def interrupt():
            signal.raise_signal(signal.SIGINT)
        def work():
{textwrap.indent(textwrap.dedent(work), " " * 12)}
        status = command.run(work)
{textwrap.indent(textwrap.dedent(after), " " * 8)}
        sys.exit(status)
        """
    )


def test_a_command_tidies_up():
    work = """
        try:
            interrupt()
            time.sleep(9)
        finally:
            print("tidy")
    """
    assert inside(work) == (130, "tidy\n", "")


def test_a_second_interrupt_leaves_at_once():
    work = """
        try:
            interrupt()
            time.sleep(9)
        finally:
            interrupt()
            print("never")
    """
    assert inside(work) == (130, "", "")


@pytest.mark.parametrize(
    "work",
    [
        "try:\n    interrupt()\nexcept KeyboardInterrupt:\n    raise ImportError('a bad installation') from None",
        "try:\n    interrupt()\nexcept KeyboardInterrupt:\n    sys.exit(1)",
        "try:\n    interrupt()\nexcept KeyboardInterrupt:\n    pass",
    ],
)
def test_what_others_make_of_it_changes_nothing(work):
    assert inside(work) == (130, "", "")


def test_an_interrupt_where_none_can_be_raised_comes_once_more():
    work = """
        class Last:
            def __del__(self):
                interrupt()
        last = Last()
        del last
        time.sleep(9)
        print("never")
    """
    assert inside(work) == (130, "", "")


def test_an_interrupt_waits_for_the_import_and_not_longer(tmp_path):
    (tmp_path / "slow_module.py").write_text("interrupt()\nfor i in range(20):\n    time.sleep(0.01)\nprint('whole')\n")
    work = f"""
        import builtins
        builtins.interrupt, builtins.time = interrupt, time
        sys.path.insert(0, {str(tmp_path)!r})
        import slow_module
        time.sleep(9)
        print("never")
    """
    assert inside(work) == (130, "whole\n", "")


def test_while_python_ends():
    """After the command Ctrl-C leaves at once; when Python has given its handlers up nothing more is to be ended."""
    assert inside("pass", "interrupt()") == (130, "", "")
    assert inside("pass", "import atexit; atexit.register(interrupt)") == (130, "", "")
    last = """
        import os
        class Last:
            def __del__(self, kill=os.kill, me=os.getpid(), write=os.write):
                kill(me, 2)
                write(1, b"last")
        sys.kept_to_the_end = Last()
    """
    assert inside("pass", last) == (0, "last", "")


def test_other_errors_stay():
    status, _, shown = inside("raise ZeroDivisionError")
    assert status == 1 and shown.endswith("ZeroDivisionError\n")
    assert inside("sys.exit(3)") == (3, "", "") and inside("print(7)") == (0, "7\n", "")


def test_where_it_is_ignored_it_stays_ignored():
    code = """
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        from llorch import _interrupts
        _interrupts.command.begin()
        print(_interrupts.command.run(lambda: signal.raise_signal(signal.SIGINT)))
    """
    assert python(code) == (0, "0\n", "")
