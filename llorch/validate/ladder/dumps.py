"""Dumps: files of a ladder's tensors. llorch's own are written here, anybody's are read and lined up with them."""

from __future__ import annotations

import itertools
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import llorch
from llorch._text import printable as printable
from llorch.models import loading as weights
from llorch.models.gpt2 import GPT2Config
from llorch.validate.ladder import rungs as ladder
from llorch.validate.ladder.rungs import Tensor, block_name

if TYPE_CHECKING:
    from llorch.validate.ladder.trace import Model, Trace

Array = NDArray[Any]
VERSION = "1"  # of the dump's names and shapes
SWELLS = 100, 1 << 28  # an .npz may unpack to so many times its size, or so many bytes: what is all zeros does
MASKED = -9000.0  # a score at or below this is masked: engines add -1e4, -1e10, the most negative float or -inf

# ---- files ---------------------------------------------------------------------------------------------------

NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}


@dataclass
class Dump:
    """The arrays of a file by name (bfloat16 as float32), and its metadata."""

    arrays: Trace
    metadata: dict[str, str] = field(default_factory=dict)
    name: str = "dump"

    @property
    def config(self) -> GPT2Config:
        """Of a dump of llorch. ValueError if the file doesn't have it."""
        try:
            return GPT2Config.from_dict(json.loads(self.metadata["config"]))
        except (KeyError, ValueError, TypeError, RecursionError):
            raise ValueError(
                f"{self.name} has no configuration in its metadata: it must be a dump that llorch wrote"
            ) from None

    @property
    def ids(self) -> list[int]:
        """The prompt's token ids."""
        if "ids" not in self.arrays or self.arrays["ids"].ndim != 1:
            raise ValueError(f"{self.name} has no tensor ids (T,): it must be a dump that llorch wrote")
        return [int(id) for id in self.arrays["ids"]]


def metadata(model: Model, prompt: str, trace: Trace, source: str = "llorch") -> dict[str, str]:
    """What a dump says about itself."""
    import dataclasses

    text = model.text(trace["generated"])
    return {
        "format": "llorch-ladder",
        "version": VERSION,
        "source": source,
        "llorch": llorch.__version__,
        "prompt": prompt,
        "generated_text": "" if text is None else text,
        "model": model.folder.name,
        "model_sha256": model.sha256,
        "config": json.dumps(dataclasses.asdict(model.config)),
    }


def write(path: str | Path, trace: Trace, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file. OSError if it can't be written."""
    from safetensors.numpy import save_file

    save_file({name: values.copy(order="C") for name, values in trace.items()}, str(path), metadata=dict(metadata))


def read(path: str | Path) -> Dump:
    """A .safetensors or .npz file.

    FileNotFoundError; ValueError names the file and what is wrong with it: neither of the two, cut off, without
    tensors, a type that isn't a number's. Nothing is unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty: it must be a .safetensors or .npz file")
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    dump = Dump(*(_read_npz(path), {}) if zipped else _read_safetensors(path), name=path.name)
    if not dump.arrays:
        raise ValueError(f"{path} has no tensors")
    return dump


def _read_npz(path: Path) -> Trace:
    arrays, names, size = {}, [], path.stat().st_size
    try:
        with zipfile.ZipFile(path) as file:
            unpacked = sum(member.file_size for member in file.infolist())
        if unpacked <= max(SWELLS[0] * size, SWELLS[1]):
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
                names = found.files
                arrays = {name: found[name] for name in names}
    except Exception as error:  # whatever zipfile, its decompressors and NumPy raise for a file that is broken
        raise ValueError(f"{path} is not an .npz file that can be read: {error or type(error).__name__}") from None
    if unpacked > max(SWELLS[0] * size, SWELLS[1]):
        raise ValueError(f"{path} unpacks to {unpacked:,} bytes from {size:,}: it may be made to fill the memory")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} has two arrays of the name {twice[0]}")
    for name, values in arrays.items():
        if not isinstance(values, np.ndarray):
            raise ValueError(f"{path}: {name} is no array, it must be an .npz file as numpy.savez writes it")
        if values.dtype.kind not in "fiub":
            raise ValueError(f"{path}: tensor {name} is {values.dtype}, it must be numbers")
    return arrays


def _read_safetensors(path: Path) -> tuple[Trace, dict[str, str]]:
    entries, reader, arrays = weights.read_header(path), weights.Reader(), {}
    for name, entry in entries.items():
        data = reader.bytes_of(entry, 0, entry.nbytes, name)
        if entry.dtype == "BF16":
            values = (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif entry.dtype in NUMPY:
            values = data.view(NUMPY[entry.dtype]).copy()
        else:
            raise ValueError(f"{path}: tensor {name} is {entry.dtype}, it must be one of BF16, {', '.join(NUMPY)}")
        try:
            arrays[name] = values.reshape(entry.shape)
        except (ValueError, OverflowError):
            raise ValueError(f"{path}: tensor {name} has shape {entry.shape}, NumPy has no such array") from None
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found = header.get("__metadata__", {})
    return arrays, {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


# ---- names ---------------------------------------------------------------------------------------------------

# Engines' names for a block's tensors, without case and punctuation: Hugging Face's modules, nanoGPT, llama.cpp's
# graph and GGUF's tensors, llm.c's buffers, and what people call them in ports to Rust.
KINDS = {
    "ln_1": "ln_1 ln1 attn_norm input_layernorm norm1 norm_1",
    "attn.qkv": "attn.c_attn c_attn qkv attn_qkv attn.qkv wqkv bqkv attn.qkv_proj",
    "attn.q": "attn.q q attn_q Qcur query attn.query attn.q_proj q_proj",
    "attn.k": "attn.k k attn_k Kcur key attn.key attn.k_proj k_proj",
    "attn.v": "attn.v v attn_v Vcur value attn.value attn.v_proj v_proj",
    "attn.cache_k": "attn.cache_k cache_k k_cache attn.k_cache key_cache cache.k cache.key past_key kv_cache.k "
    "kv_cache.key",
    "attn.cache_v": "attn.cache_v cache_v v_cache attn.v_cache value_cache cache.v cache.value past_value kv_cache.v "
    "kv_cache.value",
    "attn.scores": "attn.scores scores attn_scores preatt attention_scores",
    "attn.context": "attn.context context kqv_out atty attn.atty attn.heads attn.merged",
    "attn.c_proj": "attn.c_proj attn attn_out attn_output attproj attn.out attn.output attn.o_proj attn.resid_dropout "
    "attention attention_output",
    "residual": "residual ffn_inp residual2 resid_mid",
    "ln_2": "ln_2 ln2 ffn_norm post_attention_layernorm norm2 norm_2",
    "mlp.c_fc": "mlp.c_fc c_fc ffn_up fch mlp.fc1 mlp.fc_in",
    "mlp.act": "mlp.act act ffn_gelu fch_gelu mlp.gelu gelu mlp.activation",
    "mlp.c_proj": "mlp.c_proj mlp ffn ffn_out ffn_down fcproj mlp.fc2 mlp.fc_out mlp.dropout feed_forward mlp_out",
    "": "l_out residual3 out output block_output resid_post",
}
GLOBAL = {
    "ids": "ids input_ids tokens token_ids prompt_ids inp_tokens",
    "embed": "embed embd inpL encoded drop embedding embeddings hidden_states.0 inputs_embeds",
    "ln_f": "ln_f lnf result_norm norm final_norm output_norm final_layernorm",
    "logits": "logits lm_head result_output output lm_logits",
    "last_logits": "last_logits logits_last final_logits",
    "argmax": "argmax next_token next_id",
    "probs": "probs probabilities softmax",
    "generated": "generated generated_ids new_ids new_tokens generated_tokens",
}
PREFIX = re.compile(r"^(transformer|model|module|gpt2|gpt|backbone)\.", re.IGNORECASE)
LAYER = (
    re.compile(r"^(?:h|blocks?|layers?|blk|block)[._\[]?(?P<layer>\d+)\]?(?:[._](?P<kind>.*))?$", re.IGNORECASE),
    re.compile(r"^(?:past_key_values|past|kv_cache|kv|cache)[._](?P<layer>\d+)[._](?P<kind>keys?|values?|k|v)$"),
    re.compile(r"^(?P<kind>[A-Za-z_]\w*?)-(?P<layer>\d+)$"),
)


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_KINDS = {_squashed(alias): kind for kind, aliases in KINDS.items() for alias in aliases.split()}
_GLOBAL = {_squashed(alias): name for name, aliases in GLOBAL.items() for alias in aliases.split()}


def canonical(name: str, layers: int) -> str | None:
    """The ladder's name for an engine's, None if it isn't known; "h.3.attn.qkv" for q, k and v in one; "*.ln_1" for a
    kind of all blocks in one array."""
    plain = name
    while PREFIX.match(plain):
        plain = PREFIX.sub("", plain)
    plain = re.sub(r"\.(output|out)$", "", plain) if "." in plain else plain
    if match := re.fullmatch(r"hidden_states\.(\d+)", plain):
        number = int(match[1])
        if number > layers:
            return None
        return "embed" if number == 0 else "ln_f" if number == layers else block_name(number - 1)
    for i, pattern in enumerate(LAYER):
        if match := pattern.match(plain):
            layer, kind = int(match["layer"]), match["kind"] or ""
            if i == 1:
                kind = "attn.cache_" + kind[0]
            elif kind:
                kind = _KINDS.get(_squashed(kind), "?")
            return None if kind == "?" or layer >= layers else block_name(layer, kind)
    squashed = _squashed(plain)
    if squashed in _GLOBAL:
        return _GLOBAL[squashed]
    return f"*.{_KINDS[squashed]}" if squashed in _KINDS else None


# ---- lining up -----------------------------------------------------------------------------------------------


@dataclass
class Aligned:
    """Their tensor in llorch's shape.

    source : their name for it. note : how it was read, where that isn't as it stood. last : only the last position is
    there. fits : False if no reading has llorch's shape; values are as they came then. passed : other tensors of theirs
    for the same, which have other values.
    """

    values: Array
    source: str
    note: str = ""
    last: bool = False
    fits: bool = True
    passed: list[str] = field(default_factory=list)


def align(theirs: Dump, ours: Dump, names: Mapping[str, str] | None = None) -> tuple[dict[str, Aligned], list[str]]:
    """Their tensors by the ladder's names, and their names that are none of the ladder's.

    names: theirs to the ladder's, before anything is guessed. ValueError for one that isn't there, isn't the ladder's,
    or is given twice.
    """
    config, T = ours.config, len(ours.ids)
    wanted = {tensor.name: tensor for tensor in ladder.tensors(config, T)}
    given = dict(names or {})
    known = {*wanted, *(block_name(i, "attn.qkv") for i in range(config.n_layer))}
    first: dict[str, str] = {}
    for source, name in given.items():
        if source not in theirs.arrays:
            raise ValueError(f"the map names {source}, {theirs.name} doesn't have it")
        if name not in known:
            raise ValueError(f"the map gives {source} the name {name}, which is not the ladder's")
        if first.setdefault(name, source) != source:
            raise ValueError(f"the map gives both {first[name]} and {source} the name {name}")
    pieces: list[tuple[int, str, str, Array]] = []  # preference, canonical name, source, values
    unknown = []
    for source, values in theirs.arrays.items():
        found: str | None = given.get(source) or canonical(source, config.n_layer)
        if found is None:
            unknown.append(source)
            continue
        rank = 0 if source in given else 1 if source == found else 2
        if found.startswith("*."):
            if not values.ndim or values.shape[0] != config.n_layer:
                unknown.append(source)
                continue
            stacked = [(block_name(i, found[2:]), values[i]) for i in range(config.n_layer)]
        else:
            stacked = [(found, values)]
        for name, array in stacked:
            if name.endswith("attn.qkv"):
                pieces += [(rank, n, source, part) for n, part in _thirds(name, array, config, ours.arrays, wanted)]
            else:
                pieces.append((rank, name, source, array))
    result: dict[str, Aligned] = {}
    for _, name, source, array in sorted(pieces, key=lambda piece: piece[0]):
        if name == "logits" and T > 1 and array.size == array.shape[-1:][0] if array.ndim else False:
            name = "last_logits"
        read = _line_up(array, wanted[name], ours.arrays[name], config, source)
        chosen = result.setdefault(name, read)
        if chosen is not read and chosen.source not in given and not same_bits(read.values, chosen.values):
            chosen.passed.append(source)
    return result, unknown


def _thirds(
    name: str, values: Array, config: GPT2Config, ours: Trace, wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, Array]]:
    """q, k and v of one array: (T, 3E), (3, T, E), (3, H, T, D), (T, 3, H, D), with a batch axis or flat."""
    prefix, E, T = name.removesuffix("qkv"), config.n_embd, len(ours["ids"])
    s: Array = values.reshape([n for n in values.shape if n != 1] or [1])
    if s.shape == (3 * E, T) and T != 3 * E:
        s = s.T
    parts: Array
    if s.size == 3 * E:
        parts = s.reshape(3, E)
    elif s.size != T * 3 * E:
        parts = np.stack([values] * 3)  # no reading: three tensors of a shape that doesn't fit
    elif s.shape[0] == 3 and s.ndim > 1 and s.shape[-1] != 3 * E:
        parts = s
        if T == s.shape[1] == 3:  # either may be the positions: what is much nearer to ours is
            near, other = (_apart(order, prefix, config, ours, wanted) for order in (s, s.swapaxes(0, 1)))
            parts = s.swapaxes(0, 1) if other < 0.5 * near else s
    else:
        parts = s.reshape(T, 3, E).transpose(1, 0, 2)
    for letter, part in zip("qkv", parts, strict=True):
        yield prefix + letter, part


def _apart(parts: Array, prefix: str, config: GPT2Config, ours: Trace, wanted: Mapping[str, Tensor]) -> float:
    """The distance of q, k and v from ours."""
    found = 0.0
    for letter, part in zip("qkv", parts, strict=True):
        tensor, right = wanted[prefix + letter], ours[prefix + letter]
        found += relative(*comparable(_line_up(part, tensor, right, config, ""), tensor, right)[:2])
    return found


def _readings(values: Array, tensor: Tensor, config: GPT2Config) -> Iterator[tuple[Array, str, bool]]:
    """Ways to see an array as the tensor: (array in its shape, what was done, whether it is the last row alone)."""
    shape, axes = tensor.shape, tensor.axes
    E, H, D = config.n_embd, config.n_head, config.head_dim
    lean = tuple(n for n in shape if n != 1)
    s = values.reshape([n for n in values.shape if n != 1])
    if values.shape == shape:
        yield values, "", False
    if axes in ("", "T", "N"):
        flat = values.reshape(-1)
        if flat.size == int(np.prod(shape)):
            yield flat.reshape(shape), "", False
        if axes == "N" and flat.size > shape[0]:
            yield flat[: shape[0]], f"the first {shape[0]} of {flat.size}", False
            yield flat[-shape[0] :] if shape[0] else flat[:0], f"the last {shape[0]} of {flat.size}", False
        return
    for order in itertools.permutations(range(s.ndim)) if s.ndim == len(lean) else ():
        if axes == "HTS" and order[-2:] != tuple(sorted(order[-2:])):
            continue  # queries and positions are as many: exchanged, they would be another's fault
        if s.transpose(order).shape == lean:
            straight = order == tuple(range(s.ndim))
            yield s.transpose(order).reshape(shape), "" if straight else f"axes taken in the order {order}", False
    if axes == "V" or axes == "TV":
        V = shape[-1]
        if s.ndim in (1, 2) and s.shape[-1] > V and s.shape[:-1] == tuple(n for n in shape[:-1] if n != 1):
            yield s[..., :V].reshape(shape), f"the first {V} of a padded vocabulary of {s.shape[-1]}", False
    if axes == "HTD":
        T = shape[1]
        cached = "cache" in tensor.name
        for part, what in _slots(s, T, E, H, D) if cached else ((s, ""),):
            if part.shape == (T, E) or (T == 1 and part.shape == (E,)):
                yield part.reshape(T, H, D).transpose(1, 0, 2), f"{what}the heads were side by side", False
            elif part.shape == (E, T):
                yield part.T.reshape(T, H, D).transpose(1, 0, 2), f"{what}transposed, heads side by side", False
            elif what and part.shape == shape:
                yield part, what.removesuffix(", "), False
            elif what and part.shape == (T, H, D):
                yield part.transpose(1, 0, 2), f"{what}heads second", False
        if s.ndim == 3 and s.shape[1] == T and s.shape[0] != H and s.shape[0] * s.shape[2] == E:
            whole = s.transpose(1, 0, 2).reshape(T, H, D).transpose(1, 0, 2)
            yield whole, f"there are {s.shape[0]} heads, the model has {H}", False
        if T > 1 and s.size == E:
            yield s.reshape(H, 1, D), "the last position alone", True
    if axes == "HTS":
        T = shape[1]
        t = values.reshape(values.shape[1:]) if values.ndim == 4 and values.shape[0] == 1 else values
        if t.ndim == 3 and t.shape[:2] == (H, T) and t.shape[2] > T:
            yield t[..., :T], f"the first {T} of {t.shape[2]} positions", False
        if T > 1 and s.size == H * T:
            yield s.reshape(H, 1, T), "the last position alone", True
    if axes in ("TE", "TF", "TV"):
        T, W = shape
        if axes == "TE" and s.ndim == 3 and s.size == T * E:
            if s.shape == (H, T, D):
                yield s.transpose(1, 0, 2).reshape(shape), "the heads were apart", False
            if s.shape == (T, H, D):
                yield s.reshape(shape), "the heads were apart", False
        if T > 1 and s.shape == (W,):
            yield s.reshape(1, W), "the last position alone", True
    if s.ndim == 1 and s.size == int(np.prod(shape)):
        yield s.reshape(shape), "flat, row by row", False


def _slots(s: Array, T: int, E: int, H: int, D: int) -> Iterator[tuple[Array, str]]:
    """A cache, and the first T slots of one that has room for more."""
    yield s, ""
    if s.ndim == 3 and s.shape[1] > T and (s.shape[0], s.shape[2]) == (H, D):
        yield s[:, :T], f"the first {T} of {s.shape[1]} slots, "
    if s.ndim == 3 and s.shape[0] > T and s.shape[1:] == (H, D):
        yield s[:T], f"the first {T} of {s.shape[0]} slots, "
    if s.ndim == 2 and s.shape[0] > T and s.shape[1] == E:
        yield s[:T], f"the first {T} of {s.shape[0]} slots, "


def _line_up(values: Array, tensor: Tensor, ours: Array, config: GPT2Config, source: str) -> Aligned:
    """The reading that stands first, unless another is much nearer to ours."""
    best: tuple[float, Aligned] | None = None
    for array, note, last in _readings(values, tensor, config):
        read = Aligned(array, source, note, last)
        distance = relative(*comparable(read, tensor, ours)[:2])
        if best is None or distance < 0.5 * best[0]:
            best = distance, read
    if best is None:
        return Aligned(values, source, fits=False)
    return best[1]


def comparable(read: Aligned, tensor: Tensor, ours: Array) -> tuple[Array, Array, Array]:
    """Theirs and ours in float64, and where they count: masked scores are -inf in both, absent ones count as masked.

    ours may be any array of the tensor's shape, such as what a faulty oracle gives.
    """
    if read.last and ours.ndim >= 2:
        ours = ours[..., -1:, :]
    with np.errstate(all="ignore"):  # what float64 can't hold is infinite
        theirs, mine = read.values.astype(np.float64), ours.astype(np.float64)
    if not read.fits:  # ours may be a faulty oracle's, whose shape is theirs but for axes of 1
        lean = [tuple(n for n in a.shape if n != 1) for a in (theirs, mine)]
        if lean[0] == lean[1]:
            theirs = theirs.reshape(mine.shape)
    if tensor.axes == "HTS":
        with np.errstate(invalid="ignore"):
            masked = mine <= MASKED
            theirs = np.where(theirs <= MASKED, -np.inf, theirs)
            if theirs.shape == mine.shape:  # an engine that never computes a masked score may leave 0 or NaN there
                theirs = np.where(masked & ((theirs == 0) | np.isnan(theirs)), -np.inf, theirs)
            mine = np.where(masked, -np.inf, mine)
    return theirs, mine, np.isfinite(mine)


def differences(theirs: Array, ours: Array) -> Array:
    """|theirs - ours|: 0 where both are the same infinity or NaN, infinite where one alone isn't finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        d = np.abs(theirs - ours)
    same = (theirs == ours) | (np.isnan(theirs) & np.isnan(ours))
    return np.where(same, 0.0, np.where(np.isnan(d), np.inf, d))


def relative(theirs: Array, ours: Array) -> float:
    """The root of the sum of squares of the differences, to that of ours (finite ones); infinite for other shapes."""
    if theirs.shape != ours.shape:
        return float("inf")
    with np.errstate(over="ignore"):
        size = float(np.sqrt(np.sum(np.square(ours, where=np.isfinite(ours), out=np.zeros(ours.shape)))))
        distance = float(np.sqrt(np.sum(np.square(differences(theirs, ours)))))
    return distance / size if size else (0.0 if distance == 0 else float("inf"))


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and not differences(a.astype(np.float64), b.astype(np.float64)).any()


def ulp(ours: Array) -> Array:
    """The unit in the last place of float32 at each of ours, float64."""
    with np.errstate(invalid="ignore", over="ignore"):
        unit: Array = np.spacing(np.abs(ours).astype(np.float32)).astype(np.float64)
    return unit


def names_of(sequence: Sequence[str], most: int = 6) -> str:
    more = f" and {len(sequence) - most} more" if len(sequence) > most else ""
    return ", ".join(map(printable, sequence[:most])) + more
