"""GGUF files for the tests, written field by field, so that any field can be wrong. By the format's own description,
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; llorch.files is not used."""

import struct

LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10


def string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def packed(kind, value):
    """A metadata value; an array is (kind of its elements, list), bytes are taken as they are."""
    if kind in LETTERS and not isinstance(value, bytes):
        return struct.pack("<" + LETTERS[kind], value)
    if kind == STRING:
        return string(value)
    if kind == ARRAY and not isinstance(value, bytes):
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(packed(inner, each) for each in values)
    return value


def pair(key, kind, value):
    return string(key) + struct.pack("<I", kind) + packed(kind, value)


def tensor(name, dims, kind, offset):
    """Dims in GGUF's order: the innermost first."""
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def header(pairs, tensors, *, version=3, magic=b"GGUF", tensor_count=None, key_count=None):
    """pairs : (key, kind, value), or bytes. tensors : (name, dims, kind, offset), or bytes."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if key_count is None else key_count,
    )
    head = magic + struct.pack("<IQQ", version, *counts)
    fields = [each if isinstance(each, bytes) else pair(*each) for each in pairs]
    fields += [each if isinstance(each, bytes) else tensor(*each) for each in tensors]
    return head + b"".join(fields)


def whole(head, data=b"", alignment=32):
    return head + bytes(-len(head) % alignment) + data


def write(path, pairs=(), tensors=(), data=b"", *, alignment=32, **options):
    path.write_bytes(whole(header(list(pairs), list(tensors), **options), data, alignment))
    return path
