"""`compare` reads anybody's dump: names, layouts, parts, and what is no dump at all."""

import json

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from ladders import PROMPT, copied, dump_with, embedded, network, right
from safetensors.numpy import save_file

from llorch import validate
from llorch.cli import main
from llorch.validation import dumps, ladder
from llorch.validation.compare import compare_dumps
from llorch.validation.dumps import Dump, canonical

E, H, D, N = 128, 4, 32, 4


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
        ("kqv_out-1", "h.1.attn.context"),
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
        ("kq-0", None),  # llama.cpp's is before scale and mask
        ("something", None),
    ],
)
def test_names_of_engines(theirs, ours):
    assert canonical(theirs, N) == ours


def test_every_name_of_the_ladder_is_its_own():
    for tensor in ladder.tensors(embedded().config, 4):
        assert canonical(tensor.name, N) == tensor.name


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


# ---- partial dumps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kept, first",
    [
        ({"h.0", "h.1", "h.2", "h.3"}, "h.1"),
        ({"logits"}, "logits"),
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


@pytest.mark.parametrize(
    "key", ["no-mask", "position-plus-1", "heads-interleaved", "ln_f-skipped", "head-not-transposed"]
)
def test_logits_alone_are_enough_for_the_diagnosis(key):
    blocks = range(N) if key in ("no-mask", "heads-interleaved") else ()
    result = against({"lm_head": dump_with(key, *blocks).arrays["logits"][None]}, diagnose=True)
    assert (result.first.tensor.name, result.diagnosis.key) == ("logits", key)
    assert result.diagnosis.layers == tuple(blocks)


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
        assert result.first.tensor.name == name and result.diagnosis is None and result.tried > 50


def test_two_faults_are_not_taken_for_one():
    from llorch.validation import faults
    from llorch.validation.trace import Kernels

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
    from llorch.validation import faults
    from llorch.validation.trace import Kernels

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
    assert "Diagnosis: the activation is gelu (erf), not gelu_new, in block 0 and every one after it" in text
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
