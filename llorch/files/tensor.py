"""A tensor of a file: where its bytes are, in what format, and a reader that brings them into memory."""

import math
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from llorch._text import printable, shown

LARGEST = 2**63  # bytes, and values along an axis: what NumPy counts up to
MOST_AXES = 32  # NumPy 1's limit


class Format(NamedTuple):
    """How values are stored.

    values, nbytes : of a block; a plain number is a block of one.
    numpy : NumPy's name of a plain number, None for a format of blocks.
    read : False for one that is known by name alone: a file may have it, reading such a tensor is an error.
    """

    values: int
    nbytes: int
    numpy: str | None = None
    read: bool = True


# Plain numbers, by the names of safetensors; GGUF has some of them under the same names.
# https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs
PLAIN = {
    "F64": Format(1, 8, "float64"),
    "F32": Format(1, 4, "float32"),
    "F16": Format(1, 2, "float16"),
    "BF16": Format(1, 2, "bfloat16"),
    "I64": Format(1, 8, "int64"),
    "I32": Format(1, 4, "int32"),
    "I16": Format(1, 2, "int16"),
    "I8": Format(1, 1, "int8"),
    "U64": Format(1, 8, "uint64"),
    "U32": Format(1, 4, "uint32"),
    "U16": Format(1, 2, "uint16"),
    "U8": Format(1, 1, "uint8"),
    "BOOL": Format(1, 1, "bool"),
    "C64": Format(1, 8, read=False),
    "F8_E5M2": Format(1, 1, read=False),
    "F8_E4M3": Format(1, 1, read=False),
    "F8_E8M0": Format(1, 1, read=False),
    "F6_E2M3": Format(4, 3, read=False),
    "F6_E3M2": Format(4, 3, read=False),
    "F4": Format(2, 1, read=False),
}

# GGML's blocks: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
BLOCKS = {
    "Q8_0": Format(32, 34),
    "Q4_0": Format(32, 18),
    "Q4_1": Format(32, 20),
    "Q5_0": Format(32, 22),
    "Q5_1": Format(32, 24),
    "Q2_K": Format(256, 84),
    "Q3_K": Format(256, 110),
    "Q4_K": Format(256, 144),
    "Q5_K": Format(256, 176),
    "Q6_K": Format(256, 210),
    "MXFP4": Format(32, 17),
    "Q8_1": Format(32, 40, read=False),
    "Q8_K": Format(256, 292, read=False),
    "Q1_0": Format(128, 18, read=False),
    "NVFP4": Format(64, 36, read=False),
    "IQ1_S": Format(256, 50, read=False),
    "IQ1_M": Format(256, 56, read=False),
    "IQ2_XXS": Format(256, 66, read=False),
    "IQ2_XS": Format(256, 74, read=False),
    "IQ2_S": Format(256, 82, read=False),
    "IQ3_XXS": Format(256, 98, read=False),
    "IQ3_S": Format(256, 110, read=False),
    "IQ4_NL": Format(32, 18, read=False),
    "IQ4_XS": Format(256, 136, read=False),
    "TQ1_0": Format(256, 54, read=False),
    "TQ2_0": Format(256, 66, read=False),
    "Q4_0_4_4": Format(32, 18, read=False),
    "Q4_0_4_8": Format(32, 18, read=False),
    "Q4_0_8_8": Format(32, 18, read=False),
    "IQ4_NL_4_4": Format(32, 18, read=False),
    "IQ4_NL_4_8": Format(32, 18, read=False),
    "IQ4_NL_8_8": Format(32, 18, read=False),
}

FORMATS = PLAIN | BLOCKS
READABLE = tuple(name for name, format in FORMATS.items() if format.read)


class Entry(NamedTuple):
    """A tensor of a file, by what the file's header says, which has been checked.

    begin, end : bytes from the beginning of the file. format : a name in FORMATS, or one that only the file knows.
    shape : in NumPy's order; of a format of blocks in values, the last axis in whole blocks.
    """

    name: str
    file: Path
    begin: int
    end: int
    format: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin

    @property
    def place(self) -> str:
        """File and name, as an error begins."""
        return f"{printable(str(self.file))}: tensor {shown(self.name)}"

    @property
    def dtype(self) -> str:
        return self.format


def size(shape: tuple[int, ...], format: str) -> int:
    """Bytes of a tensor of this shape and format, which must be in FORMATS.

    ValueError, without the tensor's name, for a shape that NumPy can't have or that has no whole number of blocks.
    """
    if len(shape) > MOST_AXES or any(length >= LARGEST for length in shape):
        raise ValueError(f"has shape {shown(shape)}, which no array can have")
    if 0 in shape and 8 * math.prod(length for length in shape if length) >= LARGEST:
        raise ValueError(f"has shape {shown(shape)}, which no array can have")  # NumPy's rule, though it is empty
    values, nbytes = FORMATS[format][:2]
    blocks, whole = (shape[-1] if shape else 1, "last axis") if format in BLOCKS else (math.prod(shape), "tensor")
    if blocks % values:  # safetensors packs F4 and F6 over the whole tensor
        raise ValueError(f"is {format} {shown(shape)}, its {whole} must have a multiple of {values} values")
    return math.prod(shape) // values * nbytes


class Reader:
    """Reads tensors, each into the memory of the one before: never more than the largest tensor's bytes.

    room : bytes of memory to begin with, for who knows that nothing larger comes: memory that is given back for a
    slightly larger one is not always used again.

    In a `with` the last tensor's file stays open until its end: for who reads many parts of one.
    """

    def __init__(self, room: int = 0) -> None:
        self._room = np.empty(room, np.uint8)
        self._file: FileIO | None = None
        self._path: Path | None = None
        self._keeps = False

    def __enter__(self) -> Self:
        self._keeps = True
        return self

    def __exit__(self, *error: object) -> None:
        self._keeps = False
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._path = None

    def _open(self, path: Path) -> FileIO:
        if self._file is None or self._path != path:
            self._close()
            self._file, self._path = path.open("rb", buffering=0), path
        return self._file

    def forget(self) -> None:
        """Gives the memory back."""
        self._room = np.empty(0, np.uint8)

    def read(self, entry: Entry, first: int = 0, count: int | None = None) -> NDArray[np.uint8]:
        """The bytes of a tensor as the file has them, or `count` of them from its byte `first` on; valid until the
        next call.

        ValueError names the tensor: one of a format that isn't read, or cut off since the header was read.
        """
        format = FORMATS.get(entry.format)
        if format is None or not format.read:
            raise ValueError(f"{entry.place} is {shown(entry.format)}, it must be one of {', '.join(READABLE)}")
        count = entry.nbytes - first if count is None else count
        if first < 0 or count < 0 or first + count > entry.nbytes:
            raise ValueError(f"{entry.place} has {entry.nbytes} bytes, not {count} from byte {first} on")
        if not count:
            return self._room[:0]
        if count > self._room.nbytes:
            self.forget()  # the old, before the new is there
            self._room = np.empty(count, np.uint8)
        into = memoryview(self._room.data)[:count]
        try:
            file = self._open(entry.file)
            file.seek(entry.begin + first)
            while len(into):  # the system reads at most 2 GB at a time
                read = file.readinto(into)
                if not read:
                    raise ValueError(f"{entry.place} is cut off: the file has become shorter")
                into = into[read:]
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(entry.file)) from error
        finally:
            if not self._keeps:
                self._close()
        return self._room[:count]

    def array(self, entry: Entry) -> NDArray[Any]:
        """The values of a tensor of plain numbers, in its own type; valid until the next call.

        bfloat16 is the type of the package ml_dtypes: ModuleNotFoundError without it. ValueError for a format of
        blocks, whose values are `llorch.reference`'s and the kernels' business, and as `read` has them.
        """
        if entry.format in BLOCKS:
            raise ValueError(f"{entry.place} is {entry.format}, which has blocks and no plain numbers")
        return self._numbers(entry, self.read(entry), entry.shape)

    def rows(self, entry: Entry, first: int, count: int) -> NDArray[Any]:
        """`count` rows of a matrix from its row `first` on, valid until the next call: plain numbers as `array` has
        them, or the bytes of blocks, uint8 (count, bytes of a row). Errors as `read` and `array`."""
        bytes_of_row = entry.nbytes // entry.shape[0]
        data = self.read(entry, first * bytes_of_row, count * bytes_of_row)
        if entry.format in BLOCKS:
            return data.reshape(count, bytes_of_row)
        return self._numbers(entry, data, (count, entry.shape[1]))

    def _numbers(self, entry: Entry, data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[Any]:
        kind: Any = FORMATS[entry.format].numpy
        if kind == "bfloat16":
            try:
                import ml_dtypes
            except ImportError:
                raise ModuleNotFoundError(
                    f"tensor {shown(entry.name)} is bfloat16, which needs the package ml_dtypes: "
                    'pip install "llorch[models]"'
                ) from None
            kind = ml_dtypes.bfloat16
        values: NDArray[Any] = data.view(np.dtype(kind)).reshape(shape)
        return values
