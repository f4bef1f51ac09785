"""A file that is written whole, or stays as it was."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

FILL = 1 << 20  # bytes that no file system finds room for, where it had none for less


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a new, empty file beside `path`; after the body it takes the place of `path`.

    Where anything fails, `path` is as it was, and nothing is left beside it. A link is followed. Permissions are those
    of the file that was there, else those of any new file.

    OSError names `path`. ValueError where there is something else than a file.
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        raise ValueError(f"{path} isn't a regular file")
    part = place.with_name(f".{secrets.token_hex(8)}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE((place if place.exists() else part).stat().st_mode)
        yield part
        part.chmod(mode)
        os.replace(part, place)
    except OSError as error:
        number, why = error.errno, error.strerror
        if number is None:
            number, why = _refusal(part) or (None, str(error))
        elif error.filename not in (None, str(part)):
            raise
        raise OSError(number, why, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


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
