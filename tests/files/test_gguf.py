"""GGUF files: what gguf's own writer writes, what a hostile writer does, and parts of split ones."""

import math
import os
import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_files import ARRAY, BOOL, FLOAT32, INT32, STRING, UINT32, UINT64, header, string, whole, write
from helpers import rng, smollm2
from hypothesis import given, settings
from hypothesis import strategies as st

from llorch.files import FORMATS, Reader
from llorch.files import gguf as ours
from llorch.files.gguf import Strings, read_gguf, read_gguf_model
from llorch.files.tensor import READABLE

ARCH = ("general.architecture", STRING, "llama")
F32 = 0


def fault(path, message):
    """Reading it is a ValueError of one line that names the file."""
    with pytest.raises(ValueError, match=message) as caught:
        read_gguf(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and text.isprintable() and len(text) < 1000
    return text


# ---- as gguf writes and reads them ---------------------------------------------------------------------


def by_gguf(path, values, arrays, alignment=32):
    writer = gguf.GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for key, (kind, value) in values.items():
        writer.add_key_value(key, value, kind)
    for name, (array, raw) in arrays.items():
        writer.add_tensor(name, array, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


TYPES = gguf.GGUFValueType
VALUES = {
    "a.uint8": (TYPES.UINT8, 255),
    "a.int8": (TYPES.INT8, -128),
    "a.uint16": (TYPES.UINT16, 65535),
    "a.int16": (TYPES.INT16, -32768),
    "a.uint32": (TYPES.UINT32, 2**32 - 1),
    "a.int32": (TYPES.INT32, -(2**31)),
    "a.uint64": (TYPES.UINT64, 2**64 - 1),
    "a.int64": (TYPES.INT64, -(2**63)),
    "a.float32": (TYPES.FLOAT32, float(np.float32(1e-5))),
    "a.float64": (TYPES.FLOAT64, 1e-5),
    "a.true": (TYPES.BOOL, True),
    "a.false": (TYPES.BOOL, False),
    "a.string": (TYPES.STRING, "Ünïcode \U0001f600\0 with a zero"),
    "a.empty": (TYPES.STRING, ""),
    "a.ints": (TYPES.ARRAY, [1, -2, 3]),
    "a.floats": (TYPES.ARRAY, [0.5, 1.25]),
    "a.bools": (TYPES.ARRAY, [True, False]),
    "a.strings": (TYPES.ARRAY, ["a", "", "ß", "\U0001f600"]),
}


def blocks(format, rows, width):
    values, nbytes = FORMATS[format][:2]
    return rng(nbytes).integers(0, 256, (rows, width // values * nbytes), np.uint8)


def test_as_gguf_writes_it(tmp_path):
    kinds = {kind.name: kind for kind in GGMLQuantizationType}
    arrays = {
        "vector": (rng(1).standard_normal(7).astype(np.float32), None),
        "matrix": (rng(2).standard_normal((3, 64)).astype(np.float16), None),
        "cube": (rng(3).standard_normal((2, 3, 5)).astype(np.float64), None),
        "whole": (np.arange(-3, 9, dtype=np.int32).reshape(3, 4), None),
        "half": (rng(4).integers(0, 2**16, (4, 6), np.uint16).view(np.uint8), kinds["BF16"]),
    }
    quantised = [name for name in GGML_QUANT_SIZES if GGML_QUANT_SIZES[name][0] > 1]
    arrays |= {f"blk.{kind.name}": (blocks(kind.name, 2, 512), kind) for kind in quantised}
    path = by_gguf(tmp_path / "x.gguf", VALUES, arrays)
    metadata, entries = read_gguf(path)
    assert metadata.pop("general.architecture") == "llama"
    assert metadata == {key: value for key, (_, value) in VALUES.items()}
    types = {key: type(value) for key, (_, value) in VALUES.items()} | {"a.strings": Strings}
    assert {key: type(metadata[key]) for key in VALUES} == types
    theirs = {found.name: found for found in gguf.GGUFReader(path).tensors}
    assert entries.keys() == theirs.keys() == arrays.keys()
    reader = Reader()
    for name, entry in entries.items():
        assert entry.name == name and entry.file == path and entry.format == theirs[name].tensor_type.name
        assert entry.shape == tuple(theirs[name].shape[::-1].tolist())
        assert (entry.begin, entry.nbytes) == (theirs[name].data_offset, theirs[name].n_bytes)
        if entry.format in READABLE:
            assert reader.read(entry).tobytes() == arrays[name][0].tobytes()
    assert (reader.array(entries["cube"]) == arrays["cube"][0]).all()
    assert reader.array(entries["half"]).view(np.uint16).shape == (4, 6)
    assert {entry.format for entry in entries.values()} >= {"F32", "BF16", "Q4_K", "IQ2_XXS", "TQ1_0", "MXFP4"}


def test_formats_are_those_of_gguf():
    """Numbers, names and sizes of blocks, but for those that GGML has given up."""
    for kind, (values, nbytes) in GGML_QUANT_SIZES.items():
        assert ours.FORMATS[int(kind)] == kind.name
        assert FORMATS[kind.name][:2] == (values, nbytes)
    gone = {name for number, name in ours.FORMATS.items() if number not in [int(kind) for kind in GGML_QUANT_SIZES]}
    assert gone == {name for name in FORMATS if name.endswith(("_4_4", "_4_8", "_8_8"))}


@pytest.mark.parametrize("format", sorted(set(ours.FORMATS.values()) - set(READABLE)))
def test_formats_that_are_refused_when_a_tensor_is_read(tmp_path, format):
    number = next(number for number, name in ours.FORMATS.items() if name == format)
    values, nbytes = FORMATS[format][:2]
    _, entries = read_gguf(write(tmp_path / "x.gguf", [ARCH], [("a.b", [values], number, 0)], bytes(nbytes)))
    with pytest.raises(ValueError, match=rf"x\.gguf: tensor a\.b is {format}, it must be one of F64, .*, MXFP4$"):
        Reader().read(entries["a.b"])


def test_blocks_are_no_array(tmp_path):
    _, entries = read_gguf(write(tmp_path / "x.gguf", [ARCH], [("a", [32], 8, 0)], bytes(34)))
    with pytest.raises(ValueError, match="tensor a is Q8_0, which has blocks and no plain numbers"):
        Reader().array(entries["a"])
    assert Reader().read(entries["a"]).nbytes == 34


def test_versions(tmp_path):
    two = read_gguf(write(tmp_path / "x.gguf", [ARCH], version=2))
    assert two == read_gguf(write(tmp_path / "x.gguf", [ARCH], version=3)) == ({ARCH[0]: "llama"}, {})
    for version in (0, 1, 4, 2**31 + 1):
        fault(write(tmp_path / "x.gguf", [ARCH], version=version), f"is GGUF version {version}, llorch reads 2 and 3")
    big = gguf.GGUFWriter(tmp_path / "y.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    big.write_header_to_file()
    big.write_kv_data_to_file()
    big.close()
    fault(tmp_path / "y.gguf", "is a big-endian GGUF file, llorch reads little-endian ones")


def test_alignment(tmp_path):
    """Of the file's own, whatever its type, and of tensors that don't keep it."""
    values = rng(5).standard_normal((2, 3, 4)).astype(np.float32)
    for alignment in (8, 32, 1024):
        path = by_gguf(
            tmp_path / f"{alignment}.gguf",
            {},
            {"a": (values[0], None), "b": (values[1], None)},
            alignment,
        )
        _, entries = read_gguf(path)
        theirs = {found.name: found.data_offset for found in gguf.GGUFReader(path).tensors}
        assert {name: entry.begin for name, entry in entries.items()} == theirs
        assert all((Reader().array(entries[name]) == each).all() for name, each in zip("ab", values, strict=True))
    for wrong in (0, 3, 48, 2**22, 2**31, 2**32 - 1):
        path = write(tmp_path / "x.gguf", [("general.alignment", UINT32, wrong)])
        fault(path, f"general.alignment is {wrong}, it must be a power of two")
    fault(write(tmp_path / "x.gguf", [("general.alignment", STRING, "32")]), "general.alignment is 32, it must be a")
    fault(write(tmp_path / "x.gguf", [("general.alignment", FLOAT32, 32.0)]), "general.alignment is 32.0, it must be a")


def test_arrays_of_arrays(tmp_path):
    nested = (ARRAY, [(INT32, [1, 2]), (STRING, ["a"]), (ARRAY, [(BOOL, [True])])])
    metadata, _ = read_gguf(write(tmp_path / "x.gguf", [("a", ARRAY, nested)]))
    assert metadata == {"a": [[1, 2], ["a"], [[True]]]}


def test_bytes_that_are_not_utf8(tmp_path):
    """Kept in values, where a token may be any bytes; refused in names."""
    raw = bytes(range(256))
    path = write(tmp_path / "x.gguf", [("a", STRING, raw), ("b", ARRAY, (STRING, [b"ok", b"\xff", "ß"]))])
    metadata, _ = read_gguf(path)
    assert metadata["a"].encode(errors="surrogateescape") == raw
    assert metadata["b"] == ["ok", "\udcff", "ß"]
    fault(write(tmp_path / "x.gguf", [(b"a\xff", BOOL, True)]), r"a metadata key is not UTF-8: a\\xff")
    fault(write(tmp_path / "x.gguf", [], [(b"a\xff", [1], F32, 0)], bytes(4)), r"a tensor's name is not UTF-8: a\\xff")


def test_strings_are_a_sequence(tmp_path):
    """Each is found by itself, without those before it."""
    tokens = [("é" * (i % 5) + str(i)).encode() + b"\xff" * (i % 7 == 0) for i in range(500)]
    texts = [token.decode(errors="surrogateescape") for token in tokens]
    metadata, _ = read_gguf(write(tmp_path / "x.gguf", [("a", ARRAY, (STRING, tokens)), ("b", ARRAY, (STRING, []))]))
    found = metadata["a"]
    assert (len(found), list(found), found[3:9], list(metadata["b"])) == (500, texts, texts[3:9], [])
    assert [found[i] for i in range(-500, 500)] == texts + texts and texts[7] in found and found.index(texts[9]) == 9
    assert found == texts and texts == found and found == found[:] and repr(found) == repr(texts)
    assert found != [*texts[:-1], "other"] and found != texts[:-1] and found != metadata["b"] and metadata["b"] == []
    for place in (500, -501):
        with pytest.raises(IndexError):
            found[place]


@pytest.mark.parametrize(
    "dims, shape", (([], ()), ([1], (1,)), ([3, 2], (2, 3)), ([0], (0,)), ([1, 2, 3, 0], (0, 3, 2, 1)))
)
def test_shapes(tmp_path, dims, shape):
    values = np.arange(math.prod(shape), dtype=np.float32)
    path = write(tmp_path / "x.gguf", [ARCH], [("a", dims, F32, 0)], values.tobytes())
    _, entries = read_gguf(path)
    assert entries["a"].shape == shape
    assert Reader().array(entries["a"]).tolist() == values.reshape(shape).tolist()


def test_a_header_in_pieces(tmp_path, monkeypatch):
    """One that is longer than what is read at first is the same."""
    tokens = [f"token {i}" for i in range(1000)]
    path = write(
        tmp_path / "x.gguf",
        [ARCH, ("tokens", ARRAY, (STRING, tokens)), ("scores", ARRAY, (FLOAT32, list(range(1000))))],
        [(f"blk.{i}", [8], F32, 32 * i) for i in range(100)],
        bytes(3200),
    )
    wanted = read_gguf(path)
    assert wanted[0]["tokens"] == tokens and len(wanted[1]) == 100
    for first in (4, 24, 1000, 5000, 20_000):
        monkeypatch.setattr(ours, "FIRST_READ", first)
        assert read_gguf(path) == wanted
    monkeypatch.setattr(ours, "LONGEST_HEADER", 10_000)
    fault(path, "has a header of more than 10000 bytes")


@pytest.mark.weights
def test_real_weights(capsys):
    """SmolLM2's file is read as gguf reads it, in a small part of the time."""
    path = smollm2()
    begin = time.perf_counter()
    metadata, entries = read_gguf(path)
    taken = time.perf_counter() - begin
    begin = time.perf_counter()
    theirs = gguf.GGUFReader(path)
    assert taken < (time.perf_counter() - begin) / 5
    fields = {key: found.contents() for key, found in theirs.fields.items() if not key.startswith("GGUF.")}
    assert metadata == fields and len(metadata["tokenizer.ggml.tokens"]) == 49152
    assert entries.keys() == {found.name for found in theirs.tensors}
    reader = Reader()
    for found in theirs.tensors:
        entry = entries[found.name]
        assert entry.format == found.tensor_type.name and entry.shape == tuple(found.shape[::-1].tolist())
        assert entry.begin == found.data_offset
        assert (reader.read(entry) == found.data.view(np.uint8).reshape(-1)).all()


# ---- hostile files -------------------------------------------------------------------------------------

HUGE = (2**31, 2**32 - 1, 2**32, 2**60, 2**63 - 1, 2**63, 2**64 - 1)


@pytest.mark.parametrize("huge", HUGE)
def test_huge_counts(tmp_path, huge):
    """Nothing is made of a number before the file is known to hold it."""
    q = struct.pack("<Q", huge)
    path = tmp_path / "x.gguf"
    fault(write(path, [ARCH], tensor_count=huge), f"announces a number of tensors of {huge}, which takes")
    fault(write(path, [ARCH], key_count=huge), f"announces a number of metadata keys of {huge}, which takes")
    fault(write(path, [q + b"a"]), f"announces a length of a metadata key of {huge}, which takes")
    fault(write(path, [string("a") + struct.pack("<I", STRING) + q]), r"is cut off: metadata key a ends at byte \d+")
    for kind in (0, 4, 7, 8, 9, 12):
        array = string("a") + struct.pack("<IIQ", ARRAY, kind, huge)
        fault(write(path, [array]), f"announces an array, metadata key a, of {huge}, which takes")
    strings = string("a") + struct.pack("<IIQ", ARRAY, STRING, 2) + string("b") + q
    fault(write(path, [strings]), r"is cut off: metadata key a ends at byte \d+, the file at \d+")
    fault(write(path, [], [q + b"a" * 24]), f"announces a length of a tensor's name of {huge}, which takes")
    fault(write(path, [], [("a", [huge], F32, 0)], bytes(64)), "tensor a (ends at byte|has shape)")
    fault(write(path, [], [("a", [huge, huge, huge, huge], F32, 0)], bytes(64)), "tensor a (ends at byte|has shape)")
    fault(write(path, [], [("a", [0, huge, huge, huge], F32, 0)], bytes(64)), "tensor a has shape")
    offset = huge // 32 * 32
    fault(write(path, [], [("a", [1], F32, offset)], bytes(64)), f"tensor a ends at byte .*, the file at {160}|cut off")
    fault(write(path, [], [("a", [0], F32, offset)], bytes(64)), "tensor a ends at byte .*: it is cut off")


@pytest.mark.parametrize("axes", (5, 255, 2**31, 2**32 - 1))
def test_absurd_axes(tmp_path, axes):
    named = string("a") + struct.pack("<I", axes)
    fault(write(tmp_path / "x.gguf", [], [named + bytes(64)]), f"tensor a has {axes} axes, at most 4 are allowed")


@pytest.mark.parametrize(
    "pairs, tensors, data, message",
    (
        ([ARCH, ARCH], [], 0, "metadata key general.architecture is there twice"),
        ([("a", 13, b"")], [], 0, "metadata key a has values of type 13, GGUF has 0 to 12"),
        ([("a", ARRAY, struct.pack("<IQ", 13, 0))], [], 0, "metadata key a has values of type 13, GGUF has 0 to 12"),
        ([("a", BOOL, b"\2")], [], 0, "metadata key a is a truth value of 2, it must be 0 or 1"),
        ([("a", ARRAY, (BOOL, [b"\0", b"\xff"]))], [], 0, "metadata key a is a truth value of 255, it must be 0 or 1"),
        ([], [("a", [1], F32, 0), ("a", [1], F32, 32)], 64, "tensor a is there twice"),
        ([], [("a", [8], F32, 0), ("b", [8], F32, 0)], 64, "tensor b begins at byte .*: it overlaps the tensor before"),
        ([], [("a", [16], F32, 0), ("b", [8], F32, 32)], 64, "tensor b begins at byte .*: it overlaps the tensor befo"),
        (
            [],
            [("b", [1], F32, 32), ("a", [9], F32, 0)],
            64,
            "tensor b begins at byte .*: it overlaps the tensor before",
        ),
        ([], [("a", [8], F32, 4)], 64, "tensor a has offset 4, it must be a multiple of general.alignment, 32"),
        ([], [("a", [17], F32, 0)], 64, "tensor a ends at byte .*, the file at .*: it is cut off"),
        ([], [("a", [1], F32, 64)], 64, "tensor a ends at byte .*, the file at .*: it is cut off"),
        ([], [("a", [33], 2, 0)], 64, r"tensor a is Q4_0 \(33,\), its last axis must have a multiple of 32 values"),
        ([], [("a", [16, 2], 8, 0)], 64, r"tensor a is Q8_0 \(2, 16\), its last axis must have a multiple of 32 val"),
        ([], [("a", [1], 4, 0)], 64, "tensor a is of GGML's type 4, which llorch doesn't know"),
        ([], [("a", [1], 2**32 - 1, 0)], 64, "tensor a is of GGML's type 4294967295, which llorch doesn't know"),
    ),
)
def test_hostile_fields(tmp_path, pairs, tensors, data, message):
    fault(write(tmp_path / "x.gguf", pairs, tensors, bytes(data)), message)


def test_arrays_too_deep(tmp_path):
    deep = (INT32, [1])
    for _ in range(3):
        deep = (ARRAY, [deep])
    assert read_gguf(write(tmp_path / "x.gguf", [("a", ARRAY, deep)]))[0] == {"a": [[[[1]]]]}
    message = "metadata key a has arrays in arrays, more than 4 deep"
    fault(write(tmp_path / "x.gguf", [("a", ARRAY, (ARRAY, [deep]))]), message)
    fault(write(tmp_path / "x.gguf", [("a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 100_000)]), message)


def test_too_many(tmp_path, monkeypatch):
    """What a file does hold, but which would take many times its bytes as Python's objects."""
    for name, most in (("MOST_KEYS", 2), ("MOST_TENSORS", 2), ("MOST_VALUES", 5)):
        monkeypatch.setattr(ours, name, most)
    path = tmp_path / "x.gguf"
    pairs = [(f"{i}", BOOL, True) for i in range(3)]
    read_gguf(write(path, pairs[:2]))
    fault(write(path, pairs), "announces a number of metadata keys of 3, at most 2 are allowed")
    tensors = [(f"{i}", [1], F32, 32 * i) for i in range(3)]
    read_gguf(write(path, [], tensors[:2], bytes(96)))
    fault(write(path, [], tensors, bytes(96)), "announces a number of tensors of 3, at most 2 are allowed")
    arrays = [("a", ARRAY, (BOOL, [True, False, True, False])), ("b", ARRAY, (STRING, ["x"]))]
    read_gguf(write(path, arrays))
    arrays[1] = ("b", ARRAY, (STRING, ["x", "y"]))
    fault(write(path, arrays), "announces an array, metadata key b, of 2, at most 1 are allowed")
    monkeypatch.undo()
    monkeypatch.setattr(ours, "MOST_VALUES", 2 * ours.WEIGHT_OF_ARRAY + 2)
    nested = [("a", ARRAY, (ARRAY, [(BOOL, [True]), (BOOL, [False])]))]
    read_gguf(write(path, nested))
    fault(
        write(path, [("b", BOOL, True), ("c", ARRAY, (BOOL, [True] * 3)), *nested]),
        "key a, of 2, at most 1 are allowed",
    )


@pytest.mark.parametrize("begin", (b"", b"G", b"GGU", b"GGML", b"\x80\x02", b"PK\3\4", b"{}", bytes(64)))
def test_no_gguf(tmp_path, begin):
    (tmp_path / "x.gguf").write_bytes(begin)
    fault(tmp_path / "x.gguf", "is not a GGUF file: it begins with b'")


NAMES = "a\x1b[31m", "\x07bell", "abc\u202edef", "two\nlines", "a\u2028b", "x" * 100_000


@pytest.mark.parametrize("name", NAMES)
def test_names_are_escaped(tmp_path, name):
    path = tmp_path / "x.gguf"
    for pairs, tensors in (
        ([(name, BOOL, b"\2")], []),
        ([(name, 99, b"")], []),
        ([(name, BOOL, True)] * 2, []),
        ([(name, ARRAY, (4, []))] * 2, []),
        ([], [(name, [2], F32, 1)]),
        ([], [(name, [2], F32, 0)] * 2),
        ([], [(name, [2], F32, 0), ("b", [2], F32, 0)]),
        ([], [(name, [2**50], F32, 0)]),
        ([("general.alignment", STRING, name)], []),
        ([("split.count", STRING, name)], []),
        ([("split.count", UINT32, 2), ("split.no", STRING, name)], []),
    ):
        write(path, pairs, tensors, bytes(64))
        with pytest.raises(ValueError) as caught:
            read_gguf_model(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


# ---- mutations of a file -------------------------------------------------------------------------------

PAIRS = [
    ARCH,
    ("general.alignment", UINT32, 32),
    ("n", UINT64, 7),
    ("eps", FLOAT32, 1e-5),
    ("flag", BOOL, True),
    ("tokens", ARRAY, (STRING, ["a", "bc", "", "ß"])),
    ("types", ARRAY, (INT32, [1, 1, 3, 6])),
    ("bools", ARRAY, (BOOL, [True, False])),
    ("nested", ARRAY, (ARRAY, [(INT32, [1]), (STRING, ["x"])])),
]
TENSORS = [
    ("tok", [32, 2], 8, 0),
    ("norm", [8], 0, 96),
    ("ffn", [256, 1], 12, 128),
    ("one", [], 0, 288),
    ("o", [0], 1, 320),
]
HEAD = header(PAIRS, TENSORS)
VALID = whole(HEAD, rng(9).bytes(320))
FIELDS = [i for i in range(4, len(HEAD) - 8)]
NUMBERS = st.sampled_from((0, 1, 2, 3, 7, 8, 9, 12, 13, 255, 256, 65536, 2**22, 2**24, *HUGE))


def measured(work):
    """The peak of memory and the seconds that work takes."""
    tracemalloc.start()
    try:
        begin = time.perf_counter()
        work()
        return tracemalloc.get_traced_memory()[1], time.perf_counter() - begin
    finally:
        tracemalloc.stop()


def examine(path):
    """A valid reading, whose tensors all lie in the file, or a ValueError that names it."""
    size = path.stat().st_size
    try:
        metadata, entries = read_gguf(path)
    except ValueError as error:
        assert str(error).startswith(str(path)) and str(error).isprintable()
        return False
    assert all(isinstance(key, str) for key in metadata)
    taken = []
    for name, entry in entries.items():
        assert entry.name == name and 0 < entry.begin <= entry.end
        assert entry.end <= size or not entry.nbytes
        assert math.prod(entry.shape) * FORMATS[entry.format].nbytes == entry.nbytes * FORMATS[entry.format].values
        if FORMATS[entry.format].read:
            assert Reader().read(entry).nbytes == entry.nbytes
        if FORMATS[entry.format].numpy:
            assert Reader().array(entry).shape == entry.shape
        taken += [(entry.begin, entry.end)] if entry.nbytes else []
    assert all(a[1] <= b[0] for a, b in zip(sorted(taken), sorted(taken)[1:], strict=False))
    return True


def bounded(path):
    memory, seconds = measured(lambda: examine(path))
    assert memory < 50 * path.stat().st_size + 200_000 and seconds < 5


def test_the_measure_sees_what_is_too_much(tmp_path):
    """Negative control: a block of the file's announced size, as a careless reader would make it."""
    memory, _ = measured(lambda: np.zeros(2**24, np.uint8))
    assert memory > 50 * len(VALID) + 200_000


def test_the_file_to_be_mutated_is_valid(tmp_path):
    (tmp_path / "x.gguf").write_bytes(VALID)
    assert examine(tmp_path / "x.gguf")
    assert len(read_gguf(tmp_path / "x.gguf")[0]) == len(PAIRS)


def test_every_truncation(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(VALID)
    for size in reversed(range(len(VALID))):
        os.truncate(path, size)  # a file system may take milliseconds to write a file anew
        fault(path, "cut off" if size >= 4 else "is not a GGUF file")


@settings(max_examples=400)
@given(st.data())
def test_mutations(tmp_path_factory, data):
    """Bytes changed, numbers overwritten, parts left out, repeated or cut off: an error that names the file or a valid
    reading, in bounded memory and time."""
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    raw = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1) | st.sampled_from(FIELDS))
        match data.draw(st.sampled_from(("byte", "u32", "u64", "delete", "insert", "cut"))):
            case "byte":
                raw[at : at + 1] = [data.draw(st.integers(0, 255))]
            case "u32":
                raw[at : at + 4] = struct.pack("<I", data.draw(NUMBERS) % 2**32)
            case "u64":
                raw[at : at + 8] = struct.pack("<Q", data.draw(NUMBERS))
            case "delete":
                del raw[at : at + data.draw(st.integers(1, 16))]
            case "insert":
                raw[at:at] = data.draw(st.binary(max_size=16))
            case "cut":
                del raw[at:]
        if not raw:
            break
    path.write_bytes(raw)
    bounded(path)


@pytest.mark.parametrize("number", (0, 1, 2, 8, 9, 255, 2**22, *HUGE))
@pytest.mark.parametrize("width", ("I", "Q"))
def test_every_number_overwritten(tmp_path, number, width):
    path, field = tmp_path / "x.gguf", struct.pack("<" + width, number % 2 ** (8 * struct.calcsize("<" + width)))
    path.write_bytes(VALID)
    with path.open("r+b", buffering=0) as file:
        for at in range(4, len(HEAD) - len(field) + 1):
            os.pwrite(file.fileno(), field, at)
            examine(path)
            os.pwrite(file.fileno(), VALID[at : at + len(field)], at)
    assert path.read_bytes() == VALID


# ---- split files ---------------------------------------------------------------------------------------


def split(folder, parts=3, *, name="m-{:05}-of-{:05}.gguf", total=None, change=None):
    """A file of parts as gguf-split writes it: the first has all metadata and, here, no tensors."""
    files = []
    for i in range(parts):
        pairs = {"split.no": (2, i), "split.count": (2, parts), "split.tensors.count": (INT32, total or parts - 1)}
        pairs |= (change or {}).get(i, {})
        more = [ARCH] if i == 0 else []
        tensors = [(f"blk.{i}", [2, 3], F32, 0)] if i else []
        path = folder / name.format(i + 1, parts)
        data = np.full(6, i, np.float32).tobytes() if i else b""
        files.append(write(path, [*more, *((k, *v) for k, v in pairs.items())], tensors, data))
    return files


@pytest.mark.parametrize("given", (0, 1, 2))
def test_a_split_file(tmp_path, given):
    files = split(tmp_path)
    metadata, entries, found = read_gguf_model(files[given])
    assert metadata["general.architecture"] == "llama" and found == files
    assert {name: entry.file for name, entry in entries.items()} == {"blk.1": files[1], "blk.2": files[2]}
    assert [Reader().array(entries[f"blk.{i}"]).tolist() for i in (1, 2)] == [[[i] * 2] * 3 for i in (1, 2)]


def test_as_gguf_splits_it(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    arrays = {f"blk.{i}": rng(i).standard_normal((2, 3)).astype(np.float32) for i in range(5)}
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = sorted(tmp_path.glob("*.gguf"))
    metadata, entries, found = read_gguf_model(files[1])
    assert found == files and len(files) == 3 and metadata["split.tensors.count"] == 5
    assert all((Reader().array(entries[name]) == values).all() for name, values in arrays.items())


def test_parts_that_are_missing(tmp_path):
    files = split(tmp_path, 8)
    for path in (files[1], files[2]):
        path.unlink()
    message = (
        r"-00001-of-00008\.gguf is part 1 of 8; missing beside it: m-00002-of-00008\.gguf, m-00003-of-00008\.gguf$"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read_gguf_model(files[0])
    for path in files[3:7]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"part 8 of 8; missing beside it: m-00002\S+, .* and 2 more$"):
        read_gguf_model(files[7])


@pytest.mark.parametrize(
    "change, message",
    (
        ({1: {"split.no": (2, 2)}}, "split.no is 2, it must be 1: not a part of m-00001-of-00003.gguf"),
        ({1: {"split.count": (2, 4)}}, "split.count is 4, it must be 3: not a part of m-00001-of-00003.gguf"),
        ({2: {"split.count": (STRING, "3")}}, "split.count is 3, it must be 3: not a part of"),
        ({0: {"split.no": (2, 3)}}, "split.no is 3 and split.count 3, not a part of a file"),
        ({0: {"split.no": (INT32, -1)}}, "split.no is -1 and split.count 3, not a part of a file"),
        ({0: {"split.no": (BOOL, False)}}, "split.no is False and split.count 3, not a part of a file"),
        ({0: {"split.count": (FLOAT32, 3.0)}}, "split.no is 0 and split.count 3.0, not a part of a file"),
        ({0: {"split.count": (UINT64, 2**63)}}, "is part 1 of 9223372036854775808, its name must end in -00001-of-922"),
        ({0: {"split.tensors.count": (INT32, 7)}}, "split.tensors.count is 7, the parts have 2 tensors"),
    ),
)
def test_parts_that_do_not_belong_together(tmp_path, change, message):
    files = split(tmp_path, change=change)
    with pytest.raises(ValueError, match=message):
        read_gguf_model(files[0])


def test_a_tensor_in_two_parts(tmp_path):
    files = split(tmp_path)
    write(files[2], [("split.no", 2, 2), ("split.count", 2, 3)], [("blk.1", [1], F32, 0)], bytes(4))
    with pytest.raises(
        ValueError, match=r"00003-of-00003\.gguf: tensor blk\.1 is there twice, also in m-00002-of-00003"
    ):
        read_gguf_model(files[0])


def test_a_part_under_another_name(tmp_path):
    files = split(tmp_path)
    moved = files[0].rename(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match=r"is part 1 of 3, its name must end in -00001-of-00003\.gguf"):
        read_gguf_model(moved)


def test_a_split_of_one(tmp_path):
    for count in (0, 1):
        path = write(tmp_path / "x.gguf", [("split.count", 2, count)], [("a", [1], F32, 0)], bytes(4))
        assert read_gguf_model(path)[2] == [path]
