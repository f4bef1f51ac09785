"""A file that is written whole, or stays as it was."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

FILL = 1 << 20  # bytes that no file system finds room for, where it had none for less


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a new, empty file beside `path`; after the body it takes the place of `path`.

    Where anything fails, `path` is as it was, and nothing is left beside it. A link is followed. Permissions are those
    of the file that was there, else those of any new file.

    OSError names `path`, unless it names another file. ValueError where there is something else than a file.
    """
    part = None
    try:
        place = Path(os.path.realpath(path))
        if place.exists() and not place.is_file():
            raise ValueError(f"{path} isn't a regular file")
        part = _beside(place)
        mode = stat.S_IMODE((place if place.exists() else part).stat().st_mode)
        yield part
        part.chmod(mode)
        os.replace(part, place)
    except OSError as error:
        if part is not None and error.filename not in (None, str(part)):
            raise
        said = (error.errno, error.strerror)
        if part is not None and error.errno is None:
            said = _refusal(part) or (None, str(error))
        raise OSError(*said, str(path)) from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                part.unlink()


def check_replaceable(path: Path) -> None:
    """Tries what `replacing` needs, and leaves nothing. Errors are those that it has."""
    with contextlib.suppress(_Given), replacing(path):
        raise _Given


class _Given(Exception):
    """The end of a body that has nothing to write."""


def _beside(place: Path) -> Path:
    """A new file in the folder of place."""
    part = place.with_name(f".{os.urandom(8).hex()}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return part


def _refusal(part: Path) -> tuple[int | None, str | None] | None:
    """Why a file can't become longer: NumPy and safetensors say of a write only that it failed."""
    try:
        with part.open("ab", buffering=0) as file:
            left = FILL
            while left:
                left -= file.write(bytes(left))
    except OSError as error:
        return error.errno, error.strerror
    return None
