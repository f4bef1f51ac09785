"""`compare` reads anybody's dump: names, layouts, parts, and what is no dump at all."""

import base64
import contextlib
import json
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
import threadpoolctl
from click.testing import CliRunner
from ladders import PROMPT, copied, dump_with, embedded, network, right
from safetensors.numpy import save_file

from llorch import validate
from llorch.cli import main
from llorch.validate.kernels import determinism
from llorch.validate.ladder import dumps, faults, rungs, selftest
from llorch.validate.ladder.compare import compare_dumps
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.layouts import align
from llorch.validate.ladder.names import Names, canonical
from llorch.validate.ladder.network import Kernels
from llorch.validate.report import json as as_json
from llorch.validate.report.picture import picture

E, H, D, N = 128, 4, 32, 4
NAMES = Names.of(embedded().graph)
NAMES = Names.of(embedded().graph)


def against(arrays, names=None, diagnose=False):
    return compare_dumps(Dump(arrays, {}, "theirs"), right(), network() if diagnose else None, names)


def statuses(result):
    return {row.tensor.name: row.status for row in result.rows if row.status != "absent"}


# ---- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("transformer.h.3.ln_1", "h.3.ln_1"),
        ("model.transformer.h.0.attn.c_attn", "h.0.attn.qkv"),
        ("transformer.h.1.attn", "h.1.attn.c_proj"),
        ("transformer.h.1.mlp", "h.1.mlp.c_proj"),
        ("transformer.h.2", "h.2"),
        ("h.2.ln_1.output", "h.2.ln_1"),
        ("transformer.ln_f", "ln_f"),
        ("lm_head", "logits"),
        ("transformer.drop", "embed"),
        ("hidden_states.0", "embed"),
        ("hidden_states.2", "h.1"),
        ("hidden_states.4", "ln_f"),
        ("past_key_values.2.key", "h.2.attn.cache_k"),
        ("attn_norm-0", "h.0.ln_1"),
        ("Qcur-3", "h.3.attn.q"),
        ("kqv_out-1", "h.1.attn.context|h.1.attn.c_proj"),  # by the version
        ("ffn_inp-1", "h.1.residual"),
        ("ffn_out-1", "h.1.mlp.c_proj"),
        ("l_out-2", "h.2"),
        ("result_norm", "ln_f"),
        ("result_output", "logits"),
        ("inpL", "embed"),
        ("blk.1.attn_norm", "h.1.ln_1"),
        ("blk.1.ffn_up", "h.1.mlp.c_fc"),
        ("layers.0.attn.q_proj", "h.0.attn.q"),
        ("layer_2.ln_2", "h.2.ln_2"),
        ("preatt", "*.attn.scores"),
        ("residual3", "*."),
        ("input_ids", "ids"),
        ("h.9.ln_1", None),
        ("h.0.attn.rotary", None),
        ("kq-0", "h.0.attn.kq"),  # llama.cpp's is before scale and mask
        ("transformer_layer_2/self_attention/query:0", "h.2.attn.q"),
        ("transformer_layer_2/feedforward_intermediate_dense", "h.2.mlp.c_fc"),
        ("something", None),
    ],
)
def test_names_of_engines(theirs, ours):
    assert canonical(theirs, NAMES) == ours


def test_every_name_of_the_ladder_is_its_own():
    for tensor in rungs.tensors(embedded(), 4):
        assert canonical(tensor.name, NAMES) == tensor.name


def test_a_map_goes_before_what_would_be_guessed():
    arrays = {"first norm": right().arrays["h.0.ln_1"], "h.0.ln_2": right().arrays["h.1.ln_2"]}
    result = against(arrays, {"first norm": "h.0.ln_1", "h.0.ln_2": "h.1.ln_2"})
    assert statuses(result) == {"h.0.ln_1": "ok", "h.1.ln_2": "ok"}
    with pytest.raises(ValueError, match="the map names absent, theirs doesn't have it"):
        against(arrays, {"absent": "h.0.ln_1"})
    with pytest.raises(ValueError, match=r"gives first norm the name h\.7\.ln_1, which is not the ladder's"):
        against(arrays, {"first norm": "h.7.ln_1"})


# ---- layouts -------------------------------------------------------------------------------------------------


def test_the_right_dump_is_right():
    result = compare_dumps(copied(right()), right(), network())
    assert result.holds and result.compared == len(result.rows) and result.first is result.diagnosis is None
    assert {row.absolute for row in result.rows} == {0.0}, "the same bits are no distance away"


def layouts():
    a = right().arrays
    T = len(right().ids)
    q, k, v = (a[f"h.1.attn.{letter}"] for letter in "qkv")
    fused = np.stack([q, k, v]).transpose(2, 0, 1, 3)  # (T, 3, H, D)
    room = np.zeros((H, 64, D), np.float32)
    room[:, :T] = k
    scores = np.where(np.isinf(a["h.1.attn.scores"]), np.float32(-1e4) + np.float32(1), a["h.1.attn.scores"])
    padded = np.full((1, H, T, 32), -np.inf, np.float32)
    padded[0, ..., :T] = a["h.1.attn.scores"]
    return {
        "a batch axis": ({"h.1.ln_1": a["h.1.ln_1"][None]}, {"h.1.ln_1"}),
        "transposed": ({"h.1.ln_1": a["h.1.ln_1"].T}, {"h.1.ln_1"}),
        "flat": ({"h.1.ln_1": a["h.1.ln_1"].reshape(-1)}, {"h.1.ln_1"}),
        "last position": ({"h.1.ln_1": a["h.1.ln_1"][-1:]}, {"h.1.ln_1"}),
        "fused": ({"h.1.attn.c_attn": fused.reshape(1, T, 3 * E)}, {f"h.1.attn.{x}" for x in "qkv"}),
        "fused, transposed": ({"h.1.attn.c_attn": fused.reshape(T, 3 * E).T}, {f"h.1.attn.{x}" for x in "qkv"}),
        "fused, thirds first": ({"h.1.attn.c_attn": np.stack([q, k, v])}, {f"h.1.attn.{x}" for x in "qkv"}),
        "fused, last position": ({"h.1.attn.c_attn": fused[-1].reshape(-1)}, {f"h.1.attn.{x}" for x in "qkv"}),
        "heads second": ({"h.1.attn.q": q.transpose(1, 0, 2)}, {"h.1.attn.q"}),
        "heads side by side": ({"h.1.attn.q": q.transpose(1, 0, 2).reshape(T, E)}, {"h.1.attn.q"}),
        "keys transposed": ({"h.1.attn.k": k.transpose(0, 2, 1)}, {"h.1.attn.k"}),
        "other heads": ({"h.1.attn.q": q.transpose(1, 0, 2).reshape(T, 8, 16).swapaxes(0, 1)}, {"h.1.attn.q"}),
        "a cache with room": ({"cache.1.key": room[None]}, {"h.1.attn.cache_k"}),
        "a cache, heads second": ({"cache.1.key": room.swapaxes(0, 1)}, {"h.1.attn.cache_k"}),
        "finite masks": ({"h.1.attn.scores": scores}, {"h.1.attn.scores"}),
        "no masked scores": ({"h.1.attn.scores": np.nan_to_num(a["h.1.attn.scores"], neginf=0)}, {"h.1.attn.scores"}),
        "room for scores": ({"h.1.attn.scores": padded}, {"h.1.attn.scores"}),
        "context in heads": ({"atty": np.stack([
            a[f"h.{i}.attn.context"].reshape(T, H, D).swapaxes(0, 1) for i in range(N)])},
            {f"h.{i}.attn.context" for i in range(N)}),
        "all blocks in one": ({"ln1": np.stack([a[f"h.{i}.ln_1"] for i in range(N)])[:, None]},
                              {f"h.{i}.ln_1" for i in range(N)}),
        "a padded vocabulary": ({"logits": np.pad(a["logits"], ((0, 0), (0, 64)))}, {"logits"}),
        "last logits": ({"logits": a["logits"][-1:]}, {"last_logits"}),
        "float64": ({"h.1.ln_1": a["h.1.ln_1"].astype(np.float64)}, {"h.1.ln_1"}),
        "new tokens after the prompt": ({"generated": np.concatenate([a["ids"], a["generated"]])}, {"generated"}),
        "ids of int32": ({"ids": a["ids"].astype(np.int32)[None]}, {"ids"}),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(layouts()))
def test_layouts_are_lined_up(name):
    arrays, wanted = layouts()[name]
    result = against(arrays)
    assert statuses(result) == dict.fromkeys(wanted, "ok"), [row.how for row in result.rows if row.status == "diverges"]


@pytest.mark.parametrize("name", [name for name in layouts() if "mask" not in name and "new tokens" not in name])
def test_a_wrong_value_shows_in_every_layout(name):
    """The negative control: lining up may not make a wrong tensor right."""
    arrays, _ = layouts()[name]
    changed = {key: values.copy() for key, values in arrays.items()}
    for values in changed.values():
        view = values.reshape(-1) if values.flags.c_contiguous else values
        view[(0,) * view.ndim if view.ndim > 1 else 0] += 1
    assert not against(changed).holds


# ---- what is compared with what ------------------------------------------------------------------------------


def test_the_cache_is_their_own_keys_bit_for_bit():
    theirs = copied(right())
    for letter in "kv":
        for part in ("", "cache_"):
            theirs.arrays[f"h.2.attn.{part}{letter}"] += np.float32(2e-6)
    assert compare_dumps(theirs, right()).holds  # another engine's own noise
    theirs.arrays["h.2.attn.cache_v"][1, 3, 5] += np.float32(2e-6)
    result = compare_dumps(theirs, right())
    assert result.first.tensor.name == "h.2.attn.cache_v" and result.first.against == "their h.2.attn.v"
    del theirs.arrays["h.2.attn.v"]
    assert compare_dumps(theirs, right()).holds  # nothing left to hold it against but ours, within 1e-4


def test_last_logits_are_their_own_last_row():
    theirs = copied(right())
    theirs.arrays["logits"] += np.float32(1e-5)
    assert compare_dumps(theirs, right()).first.tensor.name == "last_logits"
    theirs.arrays["last_logits"] = theirs.arrays["logits"][-1]
    assert compare_dumps(theirs, right()).holds


def test_tolerances_are_at_their_bounds():
    for name, bound in (("h.0.ln_1", 1e-5), ("logits", 1e-3), ("h.3", 1e-4)):
        for factor, good in ((0.8, True), (1.3, False)):
            values = right().arrays[name].astype(np.float64)
            row = np.sqrt((values**2).mean(axis=-1)) if name != "logits" else 1
            values[..., 3] += factor * bound * np.maximum(1, row)
            assert against({name: values}).holds == good, (name, factor)


def test_other_prompts_are_said_first():
    theirs = copied(right())
    theirs.arrays["ids"][2] += 1
    result = compare_dumps(theirs, right(), network())
    assert result.first.tensor.name == "ids" and result.diagnosis is None
    assert result.notes == ["the prompts differ: nothing after them can agree"]


def test_last_logits_alone_are_held_to_the_number_itself():
    """As logits are: a row of large ones may not be further off for it."""
    last = right().arrays["last_logits"]
    assert np.sqrt((last**2).mean()) > 2
    for name, values in (("last_logits", last), ("logits", last[None])):
        for factor, good in ((0.8, True), (1.5, False)):
            assert against({name: values + np.float32(factor * 1e-3)}).holds == good, (name, factor)


def test_the_tolerance_that_was_used_is_the_one_that_is_shown():
    result = against({"cache.1.key": right().arrays["h.1.attn.cache_k"] + np.float32(1e-6)})
    row = next(row for row in result.rows if row.status != "absent")
    assert (row.status, row.allowed) == ("ok", 1e-4)
    assert as_json.of_row(row)["tolerance"] == 1e-4
    theirs = copied(right())
    assert {row.allowed for row in compare_dumps(theirs, right()).rows if row.tensor.rung.name == "cache"} == {0.0}


# ---- partial dumps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kept, first",
    [
        ({"h.0", "h.1", "h.2", "h.3"}, "h.1"),
        ({"h.0", "logits"}, "logits"),
        ({"h.1.mlp.act"}, "h.1.mlp.act"),
        ({"h.0.ln_1", "h.1.ln_2", "h.1.mlp.c_proj", "ln_f"}, "h.1.mlp.c_proj"),
        ({"probs"}, "probs"),
    ],
)
def test_part_of_a_dump_is_enough_for_the_diagnosis(kept, first):
    """gelu with erf in block 1 alone, found by whatever there is behind it."""
    theirs = dump_with("activation-gelu", 1)
    result = against({name: theirs.arrays[name] for name in kept}, diagnose=True)
    assert result.first.tensor.name == first
    assert (result.diagnosis.key, result.diagnosis.layers) == ("activation-gelu", (1,))


@pytest.mark.parametrize("key", ["no-mask", "position-plus-1", "ln_f-skipped", "head-not-transposed"])
def test_logits_alone_are_enough_for_the_diagnosis(key):
    blocks = range(N) if key == "no-mask" else ()
    result = against({"lm_head": dump_with(key, *blocks).arrays["logits"][None]}, diagnose=True)
    assert (result.first.tensor.name, result.diagnosis.key) == ("logits", key)
    assert result.diagnosis.layers == tuple(blocks)


def test_a_diagnosis_of_a_small_model_has_one_thread_of_blas():
    """Two would wait for each other whenever another process has a core; afterwards there are as many as before."""

    def threads():
        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        seen = []
        theirs = dump_with("ln_f-skipped")
        compare_dumps(theirs, right(), network(), progress=lambda *_: seen.append(threads()))
        assert len(seen) > 5 and all(one == {1} for one in seen)
        assert threads() == {2}


def test_an_unknown_fault_gets_no_name():
    """Noise, a shifted tensor, another matrix: nothing is made up."""
    for name, change in {
        "h.1.attn.q": lambda x: x + np.float32(0.01),
        "h.2.mlp.act": lambda x: np.roll(x, 1, axis=-1),
        "h.0.attn.scores": lambda x: x * np.float32(0.9),
        "h.3": lambda x: x + np.random.default_rng(1).standard_normal(x.shape).astype(np.float32) * 0.01,
    }.items():
        theirs = copied(right())
        theirs.arrays[name] = change(theirs.arrays[name])
        result = compare_dumps(theirs, right(), network())
        assert result.first.tensor.name == name and result.diagnosis is None and result.tried > 9, result.diagnosis


@pytest.mark.parametrize(
    "key, names",
    [
        ("no-wpe", ["embed"]),
        ("cache-next-slot", ["h.0.attn.cache_k", "h.0.attn.cache_v"]),
        ("ln_f-skipped", ["ln_f"]),
        ("activation-gelu", ["h.0.mlp.act"]),
        ("mask-plus-1", ["h.0.attn.scores"]),
    ],
)
def test_a_fault_whose_consequences_are_absent_is_not_named(key, names):
    """One tensor looks like a fault's, but all that would be wrong with it is right: the dump is, not the engine."""
    faulty = dump_with(key, *((0,) if names[0].startswith("h.") else ())).arrays
    result = compare_dumps(
        Dump(copied(right()).arrays | {name: faulty[name] for name in names}, {}, "theirs"), right(), network()
    )
    assert result.first.tensor.name == names[0] and result.diagnosis is None


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 12])
def test_logits_in_another_order_are_told_from_a_head_that_was_never_loaded(tokens):
    """Their Gram matrix is the right one, and they are not correlated with it."""
    ids = right().ids[:tokens]
    ours = selftest.right_dump(network(), ids)
    order = np.random.default_rng(5).permutation(ours.arrays["logits"].shape[1])
    logits = ours.arrays["logits"][:, order]
    for there in ({"logits": logits}, {"ln_f": ours.arrays["ln_f"], "logits": logits}):
        result = compare_dumps(Dump(there, {}, "theirs"), ours, network())
        assert result.first.tensor.name in ("logits", "last_logits")
        assert result.diagnosis is None or result.diagnosis.key == "logits-order-of-channels", result.diagnosis
        assert (result.diagnosis is None) == (tokens == 1)


def test_two_faults_are_not_taken_for_one():
    known = faults.by_key(network())
    both = known["activation-gelu"].inject(known["no-scale"].inject(network(), 1), 2)
    result = compare_dumps(Dump(both.run(right().ids, Kernels()), {}, "theirs"), right(), network())
    assert (result.first.tensor.name, result.diagnosis.key) == ("h.1.attn.scores", "no-scale")


# ---- hostile dumps -------------------------------------------------------------------------------------------


def test_nan_and_infinity_diverge():
    for value in (np.nan, np.inf, -np.inf):
        for name in ("h.1.ln_1", "h.1.attn.scores", "h.1.attn.cache_k", "logits", "probs"):
            theirs = copied(right())
            theirs.arrays[name][..., 0] = value
            result = compare_dumps(theirs, right(), network())
            assert result.first.tensor.name == name, (value, name)
            assert json.dumps(result.first.how)
    theirs = {name: np.full_like(values, np.nan) for name, values in right().arrays.items() if values.dtype.kind == "f"}
    assert against(theirs, diagnose=True).first.tensor.name == "embed"


@pytest.mark.parametrize("shape", [(7, 3), (0,), (12, 129), (2, 12, 128), (), (12, 64), (1,) * 9 + (5,), (2,) * 10])
def test_a_wrong_shape_is_named(shape):
    result = against({"h.0.ln_1": np.zeros(shape, np.float32), "h.1.attn.c_attn": np.zeros(shape, np.float32)})
    assert result.first.tensor.name == "h.0.ln_1"
    assert f"it has shape {shape}, it must be (12, 128) (T, E)" in result.first.how


@pytest.mark.parametrize("name", ["ids", "argmax", "generated"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, 2**30, 7.5])
def test_tokens_that_are_no_ids_diverge(name, value):
    theirs = np.full(right().arrays[name].shape, value)
    first = against({name: theirs}).first
    assert first.tensor.name == name
    assert f": {int(value) if np.isfinite(value) and value % 1 == 0 else value}, ours has " in first.how


def test_numbers_beyond_float32_diverge_without_warnings():
    for name in ("embed", "h.1.attn.k", "h.1.attn.scores", "logits", "last_logits", "probs"):
        for value in (1e300, -1.7e308, np.longdouble("1e4000")):
            theirs = {key: values.copy() for key, values in right().arrays.items()}
            theirs[name] = theirs[name].astype(np.asarray(value).dtype)
            theirs[name][..., 0] = value
            theirs[name][..., 1] = -value
            assert against(theirs).first.tensor.name == name


def test_three_positions_of_three_parts():
    """(T, 3, H, D) and (3, T, H, D) have the same shape for three tokens."""
    ours = selftest.right_dump(network(), right().ids[:3])
    thirds = np.stack([ours.arrays[f"h.1.attn.{letter}"].transpose(1, 0, 2) for letter in "qkv"])  # (3, T, H, D)
    for fused in (
        thirds,
        thirds.transpose(1, 0, 2, 3),
        thirds.reshape(3, 3, E),
        thirds.reshape(3, 3, E).swapaxes(0, 1),
    ):
        result = compare_dumps(Dump({"h.1.attn.c_attn": fused}, {}, "theirs"), ours)
        assert result.holds and result.compared == 3
        wrong = fused.copy()
        wrong[0, 1] += 1
        assert not compare_dumps(Dump({"h.1.attn.c_attn": wrong}, {}, "theirs"), ours).holds


def test_a_second_tensor_for_the_same_is_not_passed_over_in_silence():
    ln = right().arrays["h.0.ln_1"]
    result = against({"h.0.ln_1": ln, "transformer.h.0.ln_1": ln + 1, "model.h.0.ln_1": ln[None]})
    assert result.notes == [
        "not compared, another tensor is read for the same and has other values: transformer.h.0.ln_1"
    ]
    assert against({"h.0.ln_1": ln, "x": ln + 1}, {"x": "h.0.ln_1"}).first is not None


def test_maps_that_say_nothing_or_two_things_are_refused():
    arrays = {"a": right().arrays["h.0.ln_1"], "b": right().arrays["h.0.ln_1"], "logits": right().arrays["logits"]}
    for name in ("h.9.attn.qkv", "attn.qkv", "foo.attn.qkv", "*.attn.qkv", "h.0xattn.qkv"):
        with pytest.raises(ValueError, match=f"gives a the name {re.escape(name)}, which is not the ladder's"):
            against(arrays, {"a": name})
    with pytest.raises(ValueError, match=r"the map gives both a and b the name h\.0\.ln_1"):
        against(arrays, {"a": "h.0.ln_1", "b": "h.0.ln_1"})


def test_no_known_name_says_what_came_and_what_is_needed():
    with pytest.raises(
        ValueError, match=r"theirs has no tensor whose name is known: it has foo, bar; known are .*h\.0\.ln_1"
    ):
        against({"foo": np.zeros(3), "bar": np.zeros(3)})


def test_unknown_names_are_listed():
    result = against({"foo": np.zeros(3), "h.0.ln_1": right().arrays["h.0.ln_1"], "ln1": np.zeros((9, 2))})
    assert result.unknown == ["foo", "ln1"] and result.holds


@pytest.mark.parametrize("name", ["x.npz", "x.safetensors"])
@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"\x00" * 7, "has 7 bytes"),
        (b"\xff" * 64, "announces a header"),
        (b"PK\x03\x04" + b"\x00" * 50, "is not an .npz file that can be read"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "has no tensors"),
        (b"PK\x05\x06" + b"\x00" * 18, "has no tensors"),
        (b"hello, this is some text and no dump", "announces a header"),
    ],
)
def test_files_that_are_no_dumps(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} {message}"):
        dumps.read(path)


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"not an \.npz file that can be read"):
        dumps.read(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", a=np.array(["text"]))
    with pytest.raises(ValueError, match="tensor a is <U4, it must be numbers"):
        dumps.read(tmp_path / "y.npz")


def test_a_cut_off_file(tmp_path):
    dumps.write(tmp_path / "x.safetensors", {"h.0.ln_1": np.zeros((4, 4), np.float32)}, {})
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"h\.0\.ln_1 ends at byte .* it is cut off"):
        dumps.read(tmp_path / "x.safetensors")
    np.savez(tmp_path / "y.npz", a=np.zeros((40, 40)))
    (tmp_path / "y.npz").write_bytes((tmp_path / "y.npz").read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"not an \.npz file that can be read"):
        dumps.read(tmp_path / "y.npz")


def test_a_zip_that_is_no_npz(tmp_path):
    """PyTorch's own files are zips too."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=r"x\.pt: archive/data\.pkl is no array, .*numpy\.savez"):
        dumps.read(tmp_path / "x.pt")


def npy(shape, descr="<f4", data=b""):
    """A .npy file that announces what it likes."""
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize("shape", [(10**13,), (10**30,), (-4,), (2,) * 65, (1 << 62, 4), "ab", (1.5,)])
def test_an_npz_that_announces_too_much(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("a.npy", npy(shape))
    with pytest.raises(ValueError, match=r"x\.npz is not an \.npz file that can be read"):
        dumps.read(tmp_path / "x.npz")


def test_a_broken_compressed_npz(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.random.default_rng(1).standard_normal(300))
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    for at in range(30, 400, 7):
        broken = whole.copy()
        broken[at : at + 5] = b"\xff" * 5
        (tmp_path / "y.npz").write_bytes(broken)
        with contextlib.suppress(ValueError):  # a name may be another and the file still whole
            list(dumps.read(tmp_path / "y.npz").arrays.values())


def test_two_arrays_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("a.npy", npy((1,), data=b"\0" * 4))
        file.writestr("a", npy((1,), data=b"\1" * 4))
    with pytest.raises(ValueError, match=r"x\.npz has two arrays of the name a"):
        dumps.read(tmp_path / "x.npz")


def test_a_file_that_swells_is_refused_before_it_does(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1 << 20, np.float32))
    assert dumps.read(tmp_path / "x.npz").arrays["a"].size == 1 << 20
    with zipfile.ZipFile(tmp_path / "y.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
        member.write(npy((300 << 20,), "|u1"))
        for _ in range(300):
            member.write(bytes(1 << 20))
    with pytest.raises(ValueError, match=r"y\.npz unpacks to 314,57\d,\d{3} bytes from [\d,]+: it may be made to"):
        dumps.read(tmp_path / "y.npz")


def test_a_shape_that_numpy_has_not(tmp_path):
    for shape in ([0, 10**30], [1] * 65 + [0]):
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
        (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(ValueError, match=r"x\.safetensors: tensor a has shape \(.*, which no array can have"):
            dumps.read(tmp_path / "x.safetensors")


def test_types_of_safetensors(tmp_path):
    values = np.array([[1.5, -2.0]], np.float32)
    types = {"f": np.float32, "d": np.float64, "h": np.float16, "b": ml_dtypes.bfloat16, "i": np.int32}
    save_file({name: values.astype(kind) for name, kind in types.items()}, tmp_path / "x.safetensors", {"a": "b"})
    found = dumps.read(tmp_path / "x.safetensors")
    assert found.metadata == {"a": "b"}
    for name in types:
        assert found.arrays[name].tolist() == ([[1, -2]] if name == "i" else [[1.5, -2.0]])
    save_file({"a": np.array([True])}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="tensor a is BOOL, it must be one of BF16"):
        dumps.read(tmp_path / "y.safetensors")


def test_ours_must_be_llorchs():
    with pytest.raises(ValueError, match="ours has no configuration in its metadata"):
        compare_dumps(right(), Dump(right().arrays, {}, "ours"))
    arrays = {name: values for name, values in right().arrays.items() if name != "h.1.ln_2"}
    with pytest.raises(ValueError, match=r"ours has no tensor h\.1\.ln_2"):
        compare_dumps(right(), Dump(arrays, right().metadata, "ours"))
    with pytest.raises(ValueError, match=r"ours: h\.1\.ln_2 has shape \(3,\), it must be \(12, 128\)"):
        compare_dumps(right(), Dump(arrays | {"h.1.ln_2": np.zeros(3)}, right().metadata, "ours"))


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """ours, and the same in transformers' names with a planted bug."""
    folder = tmp_path_factory.mktemp("compare")
    validate.dump(folder / "ours.safetensors", prompt=PROMPT)
    ours = dumps.read(folder / "ours.safetensors")
    model = embedded().network
    fault = faults.by_key(model)["activation-gelu"].inject(model, *range(N))
    trace = fault.run(ours.ids, Kernels())
    np.savez(folder / "bug.npz", **{f"transformer.{name}": trace[name][None] for name in ("h.0", "h.1", "h.0.mlp.act")})
    return folder


def invoke(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def test_the_command_finds_a_planted_bug(files):
    result = invoke(
        files / "bug.npz", files / "ours.safetensors", "--json", files / "c.json", "--report", files / "c.html"
    )
    assert result.exit_code == 1, result.output
    text = " ".join(result.output.split())
    assert "First divergence: h.0.mlp.act (their transformer.h.0.mlp.act)" in text
    assert "Diagnosis: the activation is gelu (erf), not gelu_new (tanh), in block 0 and every one after it" in text
    found = json.loads((files / "c.json").read_text())
    assert found["first_divergence"]["name"] == "h.0.mlp.act" and found["diagnosis"]["fault"] == "activation-gelu"
    assert found["diagnosis"]["layers"] == [0, 1, 2, 3]
    page = (files / "c.html").read_text()
    assert "Diagnosis: the activation is gelu (erf)" in page and "first: h.0.mlp.act" in page


def test_the_command_agrees_with_itself(files):
    result = invoke(files / "ours.safetensors", files / "ours.safetensors")
    assert result.exit_code == 0, result.output
    assert "68 of the ladder's 68 tensors compared: all agree" in result.output


def test_the_command_says_what_is_wrong(files, tmp_path):
    ours = files / "ours.safetensors"
    for arguments, status, message in (
        ((tmp_path / "absent.npz", ours), 1, "there is no file"),
        ((ours, files / "bug.npz"), 1, "bug.npz has no configuration"),
        ((files / "bug.npz", ours, "--map", "x"), 2, "must be THEIRS=OURS"),
        ((files / "bug.npz", ours, "--map", "x=y"), 1, "doesn't have it"),
        ((files / "bug.npz", ours, "--model", tmp_path / "none"), 1, "there is no folder"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == status and message in " ".join(result.output.split()), result.output


def test_another_model_is_refused(files, tmp_path):
    from ladders import tiny

    tiny(tmp_path / "m")
    with pytest.raises(ValueError, match=r"ours\.safetensors is of another model"):
        validate.compare(files / "bug.npz", files / "ours.safetensors", model=tmp_path / "m")


@pytest.mark.parametrize(
    "name", ["[/b]norm", "[bold]norm", ":smile:", "a\x1b[31mred", "two\nlines", "\ud800", "<script>alert(1)</script>"]
)
def test_names_are_shown_as_they_are_and_do_nothing(files, tmp_path, name):
    """Neither markup, nor escapes of a terminal, nor HTML, nor half a character."""
    ln = dumps.read(files / "ours.safetensors").arrays["h.0.ln_1"]
    entry = {"dtype": "F32", "shape": list(ln.shape)}
    entries = {
        key: entry | {"data_offsets": [i * ln.nbytes, (i + 1) * ln.nbytes]}
        for i, key in enumerate((name, name + "2", "h.1.ln_1"))
    }
    text = json.dumps({"__metadata__": {name: name, "model_sha256": name}} | entries).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + ln.tobytes() + bytes(2 * ln.nbytes))
    shown = name if name.isprintable() else repr(name)[1:-1]
    for value in ("h.0.ln_1", "h.0.ln_2"):
        names = () if name == "\ud800" else ("--map", f"{name}={value}")  # no command line has half a character
        result = invoke(
            path, files / "ours.safetensors", *names, "--report", tmp_path / "x.html", "--json", tmp_path / "x.json"
        )
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.exception
        assert shown in result.output and "\x1b" not in result.output
        assert "<script" not in (tmp_path / "x.html").read_text()
        assert json.loads((tmp_path / "x.json").read_text())["unknown"][-1] == name + "2"


def test_a_name_is_mapped_once(files):
    ours = files / "ours.safetensors"
    result = invoke(files / "bug.npz", ours, "--map", "a=h.0.ln_1", "--map", "a=h.0.ln_2")
    assert result.exit_code == 2 and "a is mapped twice" in " ".join(result.output.split())


def test_a_model_of_the_embedded_ones_name_is_not_taken_for_it(files, tmp_path):
    ours = dumps.read(files / "ours.safetensors")
    dumps.write(tmp_path / "other.safetensors", ours.arrays, ours.metadata | {"model_sha256": "0" * 64})
    result = invoke(files / "bug.npz", tmp_path / "other.safetensors")
    assert result.exit_code == 1 and "no model was given (--model)" in " ".join(result.output.split()), result.output


@pytest.mark.parametrize("option", ("--json", "--report"))
@pytest.mark.parametrize("which", (0, 1))
def test_a_dump_is_not_overwritten(tmp_path, option, which):
    paths = [tmp_path / "theirs.npz", tmp_path / "ours.npz"]
    for path in paths:
        np.savez(path, ids=np.int64([1]))
    before = [path.read_bytes() for path in paths]
    result = CliRunner().invoke(main, ["compare", *map(str, paths), option, str(paths[which])])
    assert result.exit_code == 2 and f"{option} {paths[which]} is one of the dumps" in result.output
    assert [path.read_bytes() for path in paths] == before


# ---- dumps that want to fill the memory, take for ever, or write on the terminal ---------------------------------


def bomb(path, name="h.0.attn.scores", count=(1 << 28) - 1024, descr="|i1", method=zipfile.ZIP_DEFLATED, level=1):
    """An npz of 1.2 MB whose one member expands to `count` bytes; as shared/cases has it."""
    with (
        zipfile.ZipFile(path, "w", method, compresslevel=level) as archive,
        archive.open(f"{name}.npy", "w", force_zip64=True) as member,
    ):
        itemsize = np.dtype(descr).itemsize
        header = {"descr": descr, "fortran_order": False, "shape": (count // itemsize,)}
        np.lib.format.write_array_header_1_0(member, header)
        piece = bytes(1 << 20)
        for first in range(0, count, 1 << 20):
            member.write(piece[: count - first])
    return path


def measured(work):
    """What work() returns, the processor's seconds it took, and the most memory that Python and NumPy had at once."""
    tracemalloc.start()
    try:
        clock = time.process_time()
        found = work()
        return found, time.process_time() - clock, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    return {name: bomb(folder / f"{i}.npz", name) for i, name in enumerate(("h.0.attn.scores", "preatt", "something"))}


def test_a_bomb_is_refused_from_its_header(bombs):
    path = bombs["h.0.attn.scores"]
    assert path.stat().st_size < 1_300_000
    result, seconds, memory = measured(lambda: compare_dumps(dumps.read(path), right(), network()))
    assert seconds < 2 and memory < 20e6, (seconds, memory)
    assert result.first.tensor.name == "h.0.attn.scores" and result.diagnosis is None and result.tried == 0
    assert result.first.note == "it has shape (268434432,), it must be (4, 12, 12) (H, T, S)"
    assert result.notes == ["refused by the header, more values than the ladder's shape allows: h.0.attn.scores"]


def test_the_command_refuses_a_bomb_in_little_memory(bombs, files):
    """In a process that may have no more than a small dump needs."""
    code = f"""
import resource, sys, time
from llorch.cli import main
from llorch.validate.report import html, json, terminal
from llorch.validate.ladder import compare, sources
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), -1))
clock = time.process_time()
try:
    main(["compare", {str(bombs["h.0.attn.scores"])!r}, {str(files / "ours.safetensors")!r}])
finally:
    print(time.process_time() - clock, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=determinism.child_environment(), capture_output=True, text=True
    )
    assert done.returncode == 1 and "First divergence: h.0.attn.scores" in done.stdout, done.stderr
    assert "refused by the header" in done.stdout
    assert float(done.stderr.splitlines()[-1]) < 2


def test_what_is_not_of_the_ladder_is_not_read(bombs):
    """A member of another name, and one of all blocks that has as many parts as no model has."""
    for name in ("something", "preatt"):
        theirs = dumps.read(bombs[name])
        both = Dump(theirs.arrays, {}, "theirs")

        def work(both=both):
            with pytest.raises(ValueError, match="no tensor whose name is known"):
                compare_dumps(both, right())

        _, seconds, memory = measured(work)
        assert seconds < 2 and memory < 20e6, (name, seconds, memory)


def test_the_bomb_would_be_read_if_it_were_asked_for(tmp_path):
    """The negative control of the measurement: where its shape is possible, its values cost what they cost."""
    path = bomb(tmp_path / "b.npz", count=30 << 20)
    values, _, memory = measured(lambda: dumps.read(path).arrays["h.0.attn.scores"])
    assert values.shape == (30 << 20,) and memory > 30e6


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_that_unpacks_without_bound_is_refused(tmp_path, method):
    path = bomb(tmp_path / "b.npz", count=1 << 20, method=method)
    with pytest.raises(ValueError, match=r"b\.npz is not an \.npz file that can be read: .* is packed by method"):
        dumps.read(path)


def test_a_header_of_npy_that_is_a_bomb_is_refused(tmp_path):
    """The format has room for a header of 4 GB, and NumPy reads it before it looks how long it is."""
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
        member.write(b"\x93NUMPY\x02\x00" + (200 << 20).to_bytes(4, "little"))
        for _ in range(200):
            member.write(b" " * (1 << 20))

    def work():
        with pytest.raises(ValueError, match=r"a\.npy announces a header of 209,715,200 bytes"):
            dumps.read(tmp_path / "b.npz")

    _, seconds, memory = measured(work)
    assert seconds < 2 and memory < 20e6


@pytest.mark.parametrize("text", ["(" * 9000, "{'shape': " + "9" * 6000, "[" * 3000 + "]" * 3000, "{}", "1/0", "()"])
def test_a_header_of_npy_that_is_none(tmp_path, text):
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    with pytest.raises(ValueError, match=r"b\.npz is not an \.npz file that can be read: the header of a\.npy"):
        dumps.read(tmp_path / "b.npz")


def test_a_large_tensor_of_safetensors_is_not_read(tmp_path):
    size = 1 << 28
    entries = {"h.0.ln_1": {"dtype": "I8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(entries).encode()
    with (tmp_path / "b.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + size)  # a hole: it takes no room
    result, seconds, memory = measured(lambda: compare_dumps(dumps.read(tmp_path / "b.safetensors"), right()))
    assert seconds < 2 and memory < 20e6
    assert result.first.note == "it has shape (268435456,), it must be (12, 128) (T, E)"


def test_the_same_tensor_by_very_many_names_is_refused(tmp_path):
    prefix = "model."
    arrays = {prefix * i + "h.0.ln_1": right().arrays["h.0.ln_1"] for i in range(17)}
    with pytest.raises(ValueError, match=r"theirs has 17 tensors for h\.0\.ln_1, at most 16: h\.0\.ln_1, model\.h"):
        against(arrays)
    assert against(dict(list(arrays.items())[:16])).holds


def test_room_that_is_forgiven_is_room_for_the_context():
    """A cache and scores of the model's whole context are read; one more position is not."""
    a = right().arrays
    context = embedded().config.context
    for name, axis in (("h.1.attn.cache_k", 1), ("h.1.attn.scores", 2)):
        for length, read in ((context, True), (context + 1, False)):
            room = np.zeros(tuple(length if i == axis else n for i, n in enumerate(a[name].shape)), np.float32)
            room[tuple(slice(n) for n in a[name].shape)] = a[name]
            result = against({name: room})
            assert result.holds == read
            assert bool(result.notes) != read


@pytest.mark.parametrize("digits", ["1" * 5000, "9" * 6, "١", "²", "-1", "0x1", "1_0"])
@pytest.mark.parametrize("form", ["h.{}.ln_1", "ln_1-{}", "past_key_values.{}.key", "hidden_states.{}", "h[{}].ln_1"])
def test_digits_that_are_no_number_of_a_block(form, digits):
    assert canonical(form.format(digits), NAMES) is None
    result = against({form.format(digits): np.zeros(3), "ln_f": right().arrays["ln_f"]})
    assert result.unknown == [form.format(digits)] and result.holds


def test_a_name_of_a_hundred_million_characters_takes_no_time():
    name = "model." * (10**8 // 6) + "h.0.ln_1"
    clock = time.process_time()
    assert canonical(name, NAMES) is None
    assert time.process_time() - clock < 0.1


EVIL = "x\x1b]0;title\x07\x1b[2Jy\u202ez\u2028\x9b31m"


def controls(text):
    """Characters that no output may have, but ends of lines."""
    return {c for c in text if not c.isprintable() and c != "\n"}


def test_no_control_character_reaches_the_terminal_or_the_page(files, tmp_path):
    """In names, types, metadata and file names; of a dump that agrees, diverges, is refused, or is broken."""
    ln = dumps.read(files / "ours.safetensors").arrays["h.0.ln_1"]
    ours = tmp_path / f"ours{EVIL}.safetensors"
    ours.write_bytes((files / "ours.safetensors").read_bytes())

    def written(entries, metadata=None):
        first, header = 0, {"__metadata__": metadata} if metadata else {}
        for name, dtype in entries.items():
            header[name] = {"dtype": dtype, "shape": list(ln.shape), "data_offsets": [first, first + ln.nbytes]}
            first += ln.nbytes
        text = json.dumps(header).encode()
        path = tmp_path / f"{EVIL}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + ln.tobytes() * len(entries))
        return path

    npz = tmp_path / f"n{EVIL}.npz"
    seen = 0
    meta = {EVIL: EVIL, "model_sha256": EVIL, "prompt": EVIL}
    for make, arguments in (
        (lambda: written({EVIL: "F32", "h.0.ln_1": "F32"}, meta), ()),
        (lambda: written({EVIL: "F32", "h.0.ln_1": "F32"}, meta), ("--map", f"{EVIL}=h.0.ln_2")),
        (lambda: written({EVIL: "F32"}), ("--map", f"{EVIL}=h.0.{EVIL}")),
        (lambda: written({"h.0.ln_1": "F32"}), ("--map", f"{EVIL}2=h.0.ln_1")),
        (lambda: written({"h.0.ln_1": EVIL}), ()),
        (lambda: written({EVIL: "BOOL"}), ()),
        (lambda: written({EVIL: "F32"}), ()),
        (lambda: np.savez(npz, **{EVIL: ln, f"model.{EVIL}": ln, "ln_f": ln}) or npz, ()),
        (lambda: np.savez(npz, **{EVIL: np.array(["text"])}) or npz, ()),
        (lambda: npz.write_bytes(b"PK\x03\x04" + EVIL.encode()) and npz, ()),
        (lambda: tmp_path / f"absent{EVIL}.npz", ()),
    ):
        page, data = tmp_path / "x.html", tmp_path / "x.json"
        result = invoke(make(), ours, *arguments, "--report", page, "--json", data)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        texts = [result.output] + [path.read_text() for path in (page, data) if path.exists()]
        for text in texts:
            assert controls(text) == set(), (arguments, text[-300:])
            seen += r"\x1b]0;title" in text or r"\u001b]0;title" in text
    assert seen > 15  # the negative control: the name was there to be shown


def test_control_characters_would_be_seen():
    assert controls(EVIL) == {"\x1b", "\x07", "\u202e", "\u2028", "\x9b"} and controls("a\nb é") == set()


# ---- the picture of a tensor -----------------------------------------------------------------------------------


def pixels(svg):
    """Of the PNG in it, (rows, columns, 3)."""
    data = base64.b64decode(svg.split("data:image/png;base64,")[1].split('"')[0])
    columns, rows = struct.unpack(">II", data[16:24])
    body = data[data.index(b"IDAT") + 4 : -16]
    return (
        np.frombuffer(zlib.decompress(body), np.uint8).reshape(rows, 1 + 3 * columns)[:, 1:].reshape(rows, columns, 3)
    )


@pytest.mark.parametrize("name, at, place", [("h.1.ln_2", (3, 5), (3, 5)), ("h.1.attn.v", (2, 4, 7), (4, 2 * 32 + 7))])
def test_the_picture_shows_where_the_error_sits(name, at, place):
    theirs = copied(right())
    theirs.arrays[name][at] += np.float32(0.5)
    row = next(row for row in compare_dumps(theirs, right()).rows if row.tensor.name == name)
    read = align(theirs, right())[0][name]
    found = pixels(picture(read, row.tensor, right().arrays[name], row.allowed))
    red = found[..., 0].astype(int) - found[..., 2]
    assert found.shape[:2] == (len(right().ids), 128)
    assert np.unravel_index(red.argmax(), red.shape) == place and (red > 0).sum() == 1


def test_a_wide_tensors_picture_keeps_its_largest_error():
    theirs = copied(right())
    theirs.arrays["logits"][2, 1001] += np.float32(9)
    read = align(theirs, right())[0]["logits"]
    tensor = next(row.tensor for row in compare_dumps(theirs, right()).rows if row.tensor.name == "logits")
    found = pixels(picture(read, tensor, right().arrays["logits"], 1e-3))
    red = found[..., 0].astype(int) - found[..., 2]
    assert found.shape[1] < 1024 and (red > 0).sum() == 1 and abs(red[2].argmax() - 1001 * 960 // 1024) <= 1
