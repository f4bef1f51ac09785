"""Safetensors files: what the package writes, and files that are damaged, cut off or hostile."""

import json
import os
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers import rng
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from llorch.files import FORMATS, Entry, Reader
from llorch.files.safetensors import read_header, read_safetensors
from llorch.files.tensor import PLAIN

TYPES = (
    *(np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.bool_),
    *(np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8),
)


def write(path, header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_as_safetensors_writes_it(tmp_path):
    tensors = {np.dtype(t).name: rng(i).integers(0, 2, (2, 3)).astype(t) for i, t in enumerate(TYPES)}
    tensors |= {"scalar": np.array(3, np.float32), "none": np.zeros((0, 5), np.float32)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    metadata, entries = read_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"format": "pt"} and entries == read_header(tmp_path / "x.safetensors")
    assert entries.keys() == tensors.keys()
    reader = Reader()
    for name, values in tensors.items():
        found = reader.array(entries[name])
        assert entries[name].name == name and found.dtype == values.dtype and found.shape == values.shape
        assert found.tobytes() == values.tobytes()
    assert {entries[name].format for name in tensors} == {name for name, format in PLAIN.items() if format.numpy}


@pytest.mark.parametrize("format", sorted(name for name, format in PLAIN.items() if not format.read))
def test_types_that_are_refused_when_a_tensor_is_read(tmp_path, format):
    values, nbytes = FORMATS[format][:2]
    entries = read_header(write(tmp_path / "x", {"a": entry(0, 3 * nbytes, (3, values), format)}, bytes(3 * nbytes)))
    with pytest.raises(ValueError, match=f"x: tensor a is {format}, it must be one of F64, "):
        Reader().read(entries["a"])


def test_a_type_that_only_the_file_knows(tmp_path):
    entries = read_header(write(tmp_path / "x", {"a": entry(0, 5, (7,), "N\x1b5"), "b": entry(5, 13)}, bytes(13)))
    assert Reader().array(entries["b"]).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"x: tensor a is N\\x1b5, it must be one of F64, "):
        Reader().array(entries["a"])


def test_any_order_and_alignment(tmp_path):
    raw = rng(1).bytes(24)
    header = {"b": entry(13, 21, (1,), "I64"), "a": entry(0, 13, (13,), "U8"), "c": entry(21, 24, (3,), "I8")}
    entries = read_header(write(tmp_path / "x", header, raw))
    reader = Reader()
    assert b"".join(reader.array(entries[name]).tobytes() for name in "abc") == raw


# ---- the reader ----------------------------------------------------------------------------------------


def test_parts_of_a_tensor(tmp_path):
    raw = rng(2).bytes(1000)
    (tmp_path / "x").write_bytes(raw)
    place, reader = Entry("a", tmp_path / "x", 100, 900, "U8", (800,)), Reader()
    for first, count in ((0, 800), (0, 1), (799, 1), (17, 300), (800, 0)):
        assert reader.read(place, first, count).tobytes() == raw[100 + first : 100 + first + count]
    for first, count in ((-1, 2), (0, 801), (800, 1), (5, -1)):
        with pytest.raises(ValueError, match=f"tensor a has 800 bytes, not {count} from byte {first} on"):
            reader.read(place, first, count)


def test_a_file_is_open_as_long_as_it_is_read(tmp_path, monkeypatch):
    """While a `with` lasts one file at most; else only within a call."""
    entries = []
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 10)
        entries.append(Entry(name, tmp_path / name, 0, 10, "U8", (10,)))
    opened, real = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode, **how: opened.append(real(path, *mode, **how)) or opened[-1])

    def left():
        return [Path(file.name).name for file in opened if not file.closed]

    a, b = entries
    with Reader() as reader:
        for entry, first in ((a, 0), (a, 5), (b, 2), (b, 3)):
            assert reader.read(entry, first, 3).tobytes() == entry.name.encode() * 3 and left() == [entry.name]
        assert len(opened) == 2
        with pytest.raises(ValueError, match="tensor c is cut off"):
            reader.read(a._replace(name="c", end=11))
    assert not left()
    assert reader.read(a).tobytes() == b"a" * 10 and not left()


def test_the_room_is_used_again(tmp_path):
    """Never more than the largest tensor's bytes at once."""
    sizes = (1 << 20, 3 << 20, 2 << 20, 8 << 20, 1)
    (tmp_path / "x").write_bytes(bytes(sum(sizes)))
    at, places = 0, []
    for size in sizes:
        places.append(Entry("a", tmp_path / "x", at, at + size, "U8", (size,)))
        at += size
    reader = Reader()

    def peak(work):
        tracemalloc.start()
        work()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(lambda: [reader.read(place).nbytes for place in places]) < max(sizes) + 100_000
    assert peak(lambda: [reader.read(place).copy() for place in places]) > max(sizes) + 100_000  # negative control
    held = reader.read(places[0])
    assert np.shares_memory(held, reader.read(places[1]))
    reader.forget()
    assert not np.shares_memory(held, reader.read(places[1]))
    reader = Reader(sizes[0])
    held = reader.read(places[4])
    assert np.shares_memory(held, reader.read(places[0]))  # which has room already


def test_a_file_that_becomes_shorter(tmp_path):
    entries = read_header(write(tmp_path / "x", {"a": entry(0, 8)}, bytes(8)))
    os.truncate(tmp_path / "x", entries["a"].begin + 5)
    with pytest.raises(ValueError, match=r"x: tensor a is cut off: the file has become shorter"):
        Reader().array(entries["a"])


# ---- hostile files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header, data, message",
    (
        (b"", b"", "header that is not JSON"),
        (b"{]", b"", "header that is not JSON"),
        (b"\xff\xfe{}", b"", "header that is not JSON"),
        (b"[" * 900, b"", "header that is not JSON"),
        (b"[" * 100_000, b"", "header of 100000 lists and objects in 100000 bytes, more than tensors' entries"),
        (b'{"a": [' + b"{}," * 10_000 + b"{}]}", b"", "header of 10003 lists and objects in 30011 bytes, more than"),
        (b'{"a": [1.5, 1e300]}', b"", "header .*: it has the number 1.5, which isn't an integer"),
        (b"[]", b"", "header that is a list"),
        (b'{"a": 1' + b"0" * 5000 + b"}", b"", "header that is not JSON"),
        (b'{"a": {}, "a": {}}', b"", "header .*: a is there twice"),
        ({"a": 3}, b"", "the entry of tensor a is a int, it must be an object"),
        ({"a": {}}, b"", "tensor a has dtype None and shape None"),
        ({"a": entry(0, 8, dtype=["F32"])}, b"0" * 8, r"tensor a has dtype \['F32'\] and shape \[2\]"),
        ({"a": entry(0, 8, [-2])}, b"0" * 8, "tensor a has dtype 'F32' and shape .-2."),
        ({"a": entry(0, 8, [2.0])}, b"0" * 8, "it has the number 2.0, which isn't an integer"),
        ({"a": entry(0, 8, [True])}, b"0" * 8, "tensor a has dtype 'F32' and shape .True."),
        ({"a": entry(0, 8) | {"data_offsets": [0]}}, b"0" * 8, "tensor a has data_offsets .0., they must be"),
        ({"a": entry(8, 0)}, b"0" * 8, "tensor a has data_offsets .8, 0., they must be"),
        ({"a": entry(-8, 0)}, b"0" * 8, "tensor a has data_offsets .-8, 0., they must be"),
        ({"a": entry(0, 8)}, b"0" * 7, "tensor a ends at byte .*: it is cut off"),
        ({"a": entry(0, 2**80)}, b"0" * 8, "tensor a ends at byte .*: it is cut off"),
        ({"a": entry(0, 10**4000)}, b"0" * 8, "tensor a ends at byte 1000*[.]{3}, the file at .*: it is cut off"),
        ({"a": entry(0, 8, [3])}, b"0" * 8, r"tensor a is F32 \(3,\) but has 8 bytes"),
        ({"a": entry(0, 8, [2**62, 2**62])}, b"0" * 8, "tensor a is F32 .* but has 8 bytes"),
        ({"a": entry(0, 8, [2**63])}, b"0" * 8, "tensor a has shape .*, which no array can have"),
        ({"a": entry(0, 0, [0, 2**63])}, b"", "tensor a has shape .*, which no array can have"),
        ({"a": entry(0, 0, [0, 2**32, 2**32])}, b"", "tensor a has shape .*, which no array can have"),
        ({"a": entry(0, 8, [1] * 32 + [2])}, b"0" * 8, "tensor a has shape .*, which no array can have"),
        ({"a": entry(0, 8, [10**1000] * 20_000)}, b"0" * 8, "tensor a has shape .*, which no array can have"),
        ({"a": entry(0, 2, [5], "F4")}, b"0" * 2, r"tensor a is F4 \(5,\), its tensor must have a multiple of 2"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"0" * 12, "tensor b .* overlaps the tensor before it"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, b"0" * 8, "tensor b .* overlaps the tensor before it"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, b"0" * 20, "tensor b .* leaves a hole before it"),
        ({"a": entry(0, 8)}, b"0" * 9, "has 1 bytes behind its last tensor"),
    ),
)
def test_hostile_headers(tmp_path, header, data, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_header(write(tmp_path / "x.safetensors", header, data))
    text = str(caught.value)
    assert text.startswith(str(tmp_path)) and len(text) < 1000 and text.isprintable()


@pytest.mark.parametrize("length", (100, 100_000_001, 2**63, 2**64 - 1))
def test_hostile_header_lengths(tmp_path, length):
    with pytest.raises(ValueError, match=f"announces a header of {length} bytes, 2 are there"):
        read_header(write(tmp_path / "x", b"{}", length=length))


NAMES = "a\x1b[31m", "\x07bell", "abc\u202edef", "two\nlines", "a\u2028b", "\ud800", "x" * 100_000


@pytest.mark.parametrize("name", NAMES)
def test_names_are_escaped(tmp_path, name):
    text = json.dumps(name)
    for header, data in (
        ({name: 3}, 0),
        ({name: {}}, 0),
        ({"a": entry(0, 8, name)}, 8),
        ({"a": entry(0, 8) | {"data_offsets": name}}, 8),
        ({"a": {"dtype": [name], "shape": [name]}}, 8),
        ({name: entry(0, 8, [3])}, 8),
        ({name: entry(0, 9)}, 8),
        ({name: entry(1, 9)}, 9),
        ({"a": entry(0, 8), name: entry(4, 12)}, 12),
        (f"{{{text}: 1, {text}: 2}}".encode(), 0),
    ):
        with pytest.raises(ValueError) as caught:
            read_header(write(tmp_path / "x", header, bytes(data)))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    entries = read_header(write(tmp_path / "x", {name: entry(0, 8, (8,), "C64" if name == "a" else name)}, bytes(8)))
    with pytest.raises(ValueError) as caught:
        Reader().read(entries[name])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_lists_in_a_text_are_none(tmp_path):
    text = "[[0,1],{}]" * 4000
    path = write(tmp_path / "x", {"__metadata__": {"a": text, "b": 'a "quoted" \\ word'}, "x": entry(0, 8)}, bytes(8))
    assert read_safetensors(path)[0]["a"] == text


VALID = json.dumps({"__metadata__": {"a": "b"}, "x": entry(0, 8), "y": entry(8, 12, (2, 1), "F16")}).encode()


def test_every_truncation(tmp_path):
    path = write(tmp_path / "x.safetensors", VALID, bytes(12))
    raw = path.read_bytes()
    assert set(read_header(path)) == {"x", "y"}
    for size in reversed(range(len(raw))):
        os.truncate(path, size)  # a file system may take milliseconds to write a file anew
        with pytest.raises(
            ValueError, match="cut off" if size < 8 + len(VALID) else "tensor .* ends .*: it is cut off"
        ):
            read_header(path)


@given(st.data())
def test_mutations(tmp_path_factory, data):
    """Bytes changed, left out or put in: an error that names the file, or tensors that lie in it."""
    raw = bytearray(len(VALID).to_bytes(8, "little") + VALID + bytes(12))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3) | st.sampled_from((b"9", b"-", b'"'))
        )
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(raw)
    try:
        entries = read_header(path)
    except ValueError as error:
        assert str(error).startswith(str(path)) and str(error).isprintable()
        return
    for found in entries.values():
        assert 8 <= found.begin <= found.end <= len(raw)
        if FORMATS.get(found.format, FORMATS["C64"]).read:
            assert Reader().array(found).shape == found.shape
