"""`llorch compare-weights`: a right conversion gives no complaint, and each planted change is found by its name."""

import functools
import json

import families
import numpy as np
import pytest
from click.testing import CliRunner
from encoders import CASES as ENCODERS
from encoders import made as made_encoder
from encoders import save as save_encoder
from encoders import write_file as write_encoder_file
from helpers import rng
from random_models import LLAMA, interleaved, llama_metadata, random_tensors, save, write_gguf

import llorch
from llorch.cli import main
from llorch.models import llama
from llorch.validate.weights import formats, relations
from llorch.validate.weights.compare import compare_weights
from llorch.validate.weights.values import Values, fit

SAME = {"same bits", "same values", "rounded", "quantised"}


@functools.cache
def made(name, switch="plain"):
    if name in ENCODERS:
        return made_encoder(name, switch)
    if name == "llama":
        entries = LLAMA | {"tie_word_embeddings": False, "hidden_size": 96, "intermediate_size": 64}
        config = llama.LlamaConfig.from_dict(entries)
        return llama.FAMILY, config, random_tensors(llama.FAMILY, config)
    return families.made(name, switch)


def entries_of(name, switch="plain"):
    if name == "llama":
        return LLAMA | {"tie_word_embeddings": False, "hidden_size": 96, "intermediate_size": 64}
    return families.entries_of(name, switch)


def folder(path, name, switch="plain", tensors=None):
    """A model on disk, whose engine isn't made."""
    family, _, kept = made(name, switch)
    given = kept if tensors is None else tensors
    if name in ENCODERS:
        return save_encoder(path, name, ENCODERS[name].entries, given)
    return save(path, entries_of(name, switch), given, family.prefixes[-1])


def gguf_file(path, name, switch="plain", tensors=None, **options):
    if name in ENCODERS:
        write_encoder_file(path, name, switch, **options)
        return path
    family, config, kept = made(name, switch)
    if name == "llama":
        metadata, extra = llama_metadata(config), {}
    else:
        metadata, extra = families.metadata_of(name, config), families.CASES[name].tensors(config)
    given = kept if tensors is None else tensors
    return write_gguf(path, family, config, given, family.architectures[0], metadata, extra=extra, **options)


def changed(name, change, switch="plain"):
    """The tensors of a model, some of them exchanged for others."""
    tensors = dict(made(name, switch)[2])
    for key, values in change(tensors).items():
        tensors[key] = np.ascontiguousarray(values)
    return tensors


def quantise(kind):
    import gguf

    quant = gguf.GGMLQuantizationType[kind]

    def of(name, values):
        plain = values.ndim != 2 or values.shape[-1] % 32
        return (values, None) if plain else (gguf.quants.quantize(values, quant), quant)

    return of


# ---- what is right ------------------------------------------------------------------------------------------------

RIGHT = ["llama", "gemma3", "olmo2", "phi3", "gpt_neox", "bert", "roberta", "modernbert"]


@pytest.mark.parametrize("name", RIGHT)
def test_a_conversion_gives_no_complaint(tmp_path, name):
    """To GGUF, with the rows, sums and axes that it wants, and to another engine's file with matrices transposed."""
    given = folder(tmp_path / "hf", name)
    file = gguf_file(tmp_path / "model.gguf", name)
    for a, b in ((given, file), (file, given), (given, given)):
        found = compare_weights(a, b)
        assert found.alike is True and not found.notes and found.unknown == ([], [])
        assert {row.verdict for row in found.rows} <= {"same bits", "part"}
    tensors = {key.replace(".weight", "/kernel"): v.T if v.ndim == 2 else v for key, v in made(name)[2].items()}
    np.savez(tmp_path / "own.npz", **tensors)
    found = compare_weights(given, tmp_path / "own.npz")
    assert found.alike is True and found.unknown == ([], [])
    assert any(row.verdict == "transposed" for row in found.rows)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_quantised_file_is_within_its_formats_error(tmp_path, kind):
    given = folder(tmp_path / "hf", "llama")
    file = gguf_file(tmp_path / "model.gguf", "llama", quantise=quantise(kind))
    found = compare_weights(given, file)
    assert found.alike is True
    quantised = [row for row in found.rows if row.verdict == "quantised"]
    assert len(quantised) == 16 and {row.formats for row in quantised} == {("F32", kind)}
    assert all(0.5 < row.fit.worst <= 1 for row in quantised)
    other = gguf_file(tmp_path / "other.gguf", "llama", quantise=quantise("Q8_0"))
    assert compare_weights(file, other).alike is True  # of the same weights, rounded in two ways


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_a_value_beyond_its_formats_error_is_told(tmp_path, kind):
    """The control: one value of one matrix, by a step of its block."""
    given = folder(tmp_path / "hf", "llama")
    file = gguf_file(tmp_path / "model.gguf", "llama", quantise=quantise(kind))
    tensors = changed("llama", lambda t: {"layers.1.mlp.up_proj.weight": t["layers.1.mlp.up_proj.weight"].copy()})
    row = tensors["layers.1.mlp.up_proj.weight"][7]
    row[40] = np.float32(0.5) * row[40] + np.float32(0.5) * row[32:64].max()  # within the range of its block
    assert abs(row[40] - made("llama")[2]["layers.1.mlp.up_proj.weight"][7, 40]) > 0.02
    other = folder(tmp_path / "other", "llama", tensors=tensors)
    assert compare_weights(given, file).alike is True
    found = compare_weights(other, file)
    assert [row.name for row in found.rows if not row.alike] == ["layers.1.mlp.up_proj.weight"]
    assert found.first.fit.first == (7, 40) and found.first.fit.wrong == 1


def test_sixteen_bits_round(tmp_path):
    given = folder(tmp_path / "hf", "llama")
    halves = {key: values.astype(np.float16) for key, values in made("llama")[2].items()}
    other = folder(tmp_path / "half", "llama", tensors=halves)
    found = compare_weights(given, other)
    assert found.alike is True and {row.verdict for row in found.rows} == {"rounded"}
    np.savez(tmp_path / "wide.npz", **{key: values.astype(np.float32) for key, values in halves.items()})
    found = compare_weights(other, tmp_path / "wide.npz")
    assert found.alike is True and {row.verdict for row in found.rows} == {"same values"}
    assert compare_weights(given, tmp_path / "wide.npz").alike is False  # float32 has nothing to round


# ---- what is wrong ------------------------------------------------------------------------------------------------

Q, K, V, O = (f"layers.1.self_attn.{letter}_proj.weight" for letter in "qkvo")
GATE, UP = "layers.1.mlp.gate_proj.weight", "layers.1.mlp.up_proj.weight"
NORM = "layers.1.input_layernorm.weight"


def heads(values, order, count=6):
    return values.reshape(count, -1, *values.shape[1:])[list(order)].reshape(values.shape)


def shuffled(values):
    return values[rng(3).permutation(len(values))]


PLANTS = {
    "pairs": (lambda t: {Q: interleaved(t[Q], 6)}, Q, "permuted", "side by side, A in halves"),
    "halves": (
        lambda t: {K: interleaved(interleaved(interleaved(t[K], 2), 2), 2)},
        K,
        "permuted",
        "in halves, A side by side",
    ),
    "heads": (lambda t: {Q: heads(t[Q], (3, 0, 1, 2, 5, 4))}, Q, "permuted", "heads in the order 3, 0, 1, 2, 5, 4"),
    "columns": (lambda t: {O: heads(t[O].T, (5, 4, 3, 2, 1, 0)).T}, O, "permuted", "columns in another order"),
    "rows": (lambda t: {UP: shuffled(t[UP])}, UP, "permuted", "rows in another order"),
    "two rows": (lambda t: {UP: t[UP][[1, 0, *range(2, 64)]]}, UP, "permuted", "rows 0 and 1 are exchanged"),
    "reversed": (lambda t: {NORM: t[NORM][::-1]}, NORM, "permuted", "values in reverse order"),
    "transposed": (lambda t: {O: t[O].T}, O, "transposed", "rows and columns"),
    "scaled": (lambda t: {Q: t[Q] * np.float32(0.25)}, Q, "scaled", "every value times 0.25"),
    "negated": (lambda t: {V: -t[V]}, V, "scaled", "times -1"),
    "a norm folded in": (lambda t: {UP: t[UP] * t[NORM]}, UP, "scaled", "every column times a factor of its own"),
    "1 + w": (lambda t: {NORM: t[NORM] + np.float32(1)}, NORM, "shifted", "1 + w, where A has w"),
    "without 1 +": (lambda t: {NORM: t[NORM] - np.float32(1)}, NORM, "shifted", "w, where A has 1 + w"),
    "another's": (lambda t: {GATE: t[UP], UP: t[GATE]}, GATE, "another's", f"it is A's {UP}"),
    "another block's": (lambda t: {V: t[V.replace("1", "0", 1)]}, V, "another's", "it is A's layers.0"),
    "zeros": (lambda t: {O: np.zeros_like(t[O])}, O, "different", "B has zeros alone"),
    "not finite": (lambda t: {O: np.where(t[O] == t[O].max(), np.nan, t[O])}, O, "different", "1 of 9,216 values"),
    "one value": (lambda t: {NORM: np.where(np.arange(96) == 17, 0, t[NORM])}, NORM, "different", "first at [17]"),
    "random": (lambda t: {K: rng(9).standard_normal(t[K].shape).astype(np.float32)}, K, "different", "first at [0, 0]"),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_change_is_found_by_its_name(tmp_path, plant):
    change, first, verdict, words = PLANTS[plant]
    given = folder(tmp_path / "hf", "llama")
    found = compare_weights(given, folder(tmp_path / "wrong", "llama", tensors=changed("llama", change)))
    wrong = {row.name: row for row in found.rows if row.alike is not True}
    touched = {key for key in change(made("llama")[2])}
    assert found.alike is False and set(wrong) == touched
    assert wrong[first].verdict == verdict and words in wrong[first].says
    assert all(row.verdict in SAME for row in found.rows if row.name not in touched)


@pytest.mark.parametrize("plant", ["pairs", "heads", "columns", "rows", "transposed", "scaled", "another's"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_a_change_is_found_in_a_quantised_file(tmp_path, plant, kind):
    """Where no value has the bits of another."""
    change, first, verdict, _ = PLANTS[plant]
    given = folder(tmp_path / "hf", "llama")
    file = gguf_file(tmp_path / "model.gguf", "llama", tensors=changed("llama", change), quantise=quantise(kind))
    found = compare_weights(given, file)
    wrong = {row.name: row for row in found.rows if row.alike is not True}
    assert set(wrong) == set(change(made("llama")[2])) and wrong[first].verdict == verdict


def unpermuted(t):
    """As a converter writes queries and keys that forgets GGUF's pairs: `write_gguf` lays halves side by side once."""
    return {name: back(back(t[name], 6 if ".q_" in name else 2), 0) for name in t if ".q_proj" in name or ".k_" in name}


def back(values, count):
    """Pairs side by side to halves."""
    if not count:
        return values
    return values.reshape(count, values.shape[0] // count // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)


def test_pairs_of_a_gguf_file_that_were_left_or_laid_out_twice(tmp_path):
    given = folder(tmp_path / "hf", "llama")
    tensors = changed("llama", unpermuted)
    left = gguf_file(tmp_path / "left.gguf", "llama", tensors=tensors)
    for a, b, letter in ((given, left, "B"), (left, given, "A")):
        found = compare_weights(a, b)
        wrong = [row for row in found.rows if row.alike is False]
        assert [row.name.split(".")[-2] for row in wrong] == ["q_proj", "k_proj"] * 2
        assert all(f"are in halves in {letter}, as in Hugging Face's files" in row.says for row in wrong)
    twice = changed("llama", lambda t: {Q: interleaved(t[Q], 6)})
    found = compare_weights(given, gguf_file(tmp_path / "twice.gguf", "llama", tensors=twice))
    assert [row.name for row in found.rows if row.alike is False] == [Q]
    assert "the rotated pairs of B were laid side by side twice" in found.first.says


def test_gemmas_norms_without_1_in_a_gguf_file(tmp_path):
    """Which is where GGUF has the sum."""
    given = folder(tmp_path / "hf", "gemma2")
    norms = [key for key in made("gemma2")[2] if "norm" in key]
    lacking = changed("gemma2", lambda t: {key: t[key] - np.float32(1) for key in norms})
    found = compare_weights(given, gguf_file(tmp_path / "model.gguf", "gemma2", tensors=lacking))
    wrong = [row for row in found.rows if row.alike is False]
    assert {row.name for row in wrong} == set(norms)
    assert {(row.verdict, row.says) for row in wrong} == {("shifted", "w, where A has 1 + w")}


FUSED = {
    "kqv": ("phi3", lambda w: w[[*range(48, 64), *range(48), *range(64, 80)]], "in the order k, q, v"),
    "up gate": ("phi3", lambda w: np.concatenate(np.split(w, 2)[::-1]), "in the order up, gate"),
    "by heads": ("gpt_neox", lambda w: w.reshape(6, 3, 8, -1).swapaxes(0, 1).reshape(w.shape), "first all queries"),
}


@pytest.mark.parametrize("case", FUSED)
def test_parts_of_a_fused_layer_in_another_order(tmp_path, case):
    name, change, words = FUSED[case]
    key = next(
        k
        for k in made(name)[2]
        if k.startswith("layers.1")
        and ("gate_up" if "up" in case else "_key_" if name == "gpt_neox" else "qkv") in k
        and k.endswith("weight")
    )
    given = folder(tmp_path / "hf", name)
    wrong = folder(tmp_path / "wrong", name, tensors=changed(name, lambda t: {key: change(t[key])}))
    found = compare_weights(given, wrong)
    assert [row.name for row in found.rows if row.alike is False] == [key]
    assert found.first.verdict == "permuted" and words in found.first.says


# ---- another engine's file -----------------------------------------------------------------------------------------


def meta(tensors):
    """A Llama under the names of its first files, rotated pairs side by side."""
    names = {"self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv"}
    names |= {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3"}
    names |= {"mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm"}
    names |= {"post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings", "lm_head": "output"}
    found = {}
    for key, values in tensors.items():
        if ".q_proj" in key or ".k_proj" in key:
            values = interleaved(values, 6 if ".q_proj" in key else 2)
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        found[key] = values
    return found


def test_an_engines_own_layout_is_no_difference_if_all_blocks_have_it(tmp_path):
    given = folder(tmp_path / "hf", "llama")
    tensors = meta(made("llama")[2])
    np.savez(tmp_path / "own.npz", **tensors)
    found = compare_weights(given, tmp_path / "own.npz")
    assert found.alike is True and found.unknown == ([], [])
    assert {row.name for row in found.rows if row.verdict == "permuted"} == {
        f"layers.{i}.self_attn.{letter}_proj.weight" for i in (0, 1) for letter in "qk"
    }
    tensors["layers.1.attention.wq.weight"] = made("llama")[2][Q]
    np.savez(tmp_path / "odd.npz", **tensors)
    found = compare_weights(given, tmp_path / "odd.npz")
    odd = [row for row in found.rows if row.alike is False]
    assert {row.kind for row in odd} == {"self_attn.q_proj.weight"}
    assert "blocks" in odd[0].says


def test_layers_that_one_file_has_whole_and_the_other_in_parts(tmp_path):
    """Both ways: queries, keys and values of a Llama in one, those of a Phi-3 apart, also gate and up."""
    t = dict(made("llama")[2])
    whole = {}
    for i in (0, 1):
        parts = [t.pop(f"layers.{i}.self_attn.{letter}_proj.weight") for letter in "qkv"]
        whole[f"layers.{i}.self_attn.qkv_proj.weight"] = np.concatenate(parts)
        whole[f"layers.{i}.mlp.gate_up_proj.weight"] = np.concatenate(
            [t.pop(f"layers.{i}.mlp.{name}_proj.weight") for name in ("gate", "up")]
        )
    np.savez(tmp_path / "whole.npz", **t, **whole)
    found = compare_weights(folder(tmp_path / "hf", "llama"), tmp_path / "whole.npz")
    assert found.alike is True and sum(row.joined for row in found.rows) == 4 and found.unknown == ([], [])

    t = dict(made("phi3")[2])
    apart = {}
    for i in range(3):
        parts = np.split(t.pop(f"layers.{i}.self_attn.qkv_proj.weight"), [48, 64])
        apart |= {f"layers.{i}.self_attn.{letter}_proj.weight": part for letter, part in zip("qkv", parts, strict=True)}
    wrong = apart | {V: apart[V][::-1]}
    for extra, alike in ((apart, True), (wrong, False)):
        np.savez(tmp_path / "apart.npz", **t, **extra)
        found = compare_weights(folder(tmp_path / "phi3", "phi3"), tmp_path / "apart.npz")
        assert found.alike is alike and sum(row.joined for row in found.rows) == 3
    assert found.first.name == "layers.1.self_attn.qkv_proj.weight"


def test_heads_of_keys_that_were_repeated(tmp_path):
    given = folder(tmp_path / "hf", "llama")
    t = dict(made("llama")[2])
    for i in (0, 1):
        for letter in "kv":
            key = f"layers.{i}.self_attn.{letter}_proj.weight"
            t[key] = np.repeat(t[key].reshape(2, 16, 96), 3, axis=0).reshape(96, 96)
    np.savez(tmp_path / "own.npz", **t)
    found = compare_weights(given, tmp_path / "own.npz")
    assert found.alike is True and sum(row.verdict == "repeated" for row in found.rows) == 4


def test_what_cant_be_told(tmp_path):
    """A tensor that isn't there by a known name, while others have none; without any unknown it is missing."""
    given = folder(tmp_path / "hf", "llama")
    t = dict(made("llama")[2])
    wq = t.pop(Q)
    np.savez(tmp_path / "odd.npz", **t, what_is_this=wq)
    found = compare_weights(given, tmp_path / "odd.npz")
    assert found.alike is None and found.unknown == ([], ["what_is_this"])
    np.savez(tmp_path / "less.npz", **t)
    assert compare_weights(given, tmp_path / "less.npz").alike is False


def test_missing_and_additional_tensors_of_a_model(tmp_path):
    given = folder(tmp_path / "hf", "llama")
    t = dict(made("llama")[2])
    t["layers.0.self_attn.q_proj.bias"] = np.zeros(96, np.float32)
    del t[UP]
    found = compare_weights(given, folder(tmp_path / "wrong", "llama", tensors=t))
    wrong = {row.name: row.says for row in found.rows if row.alike is False}
    assert wrong == {UP: "B doesn't have it", "layers.0.self_attn.q_proj.bias": "A doesn't have it"}
    del t["lm_head.weight"]
    found = compare_weights(given, folder(tmp_path / "tied", "llama", tensors=t))
    assert "lm_head.weight" in {row.name for row in found.rows if row.alike is False}


def test_what_the_files_say_besides(tmp_path):
    given = folder(tmp_path / "hf", "llama")
    other = folder(tmp_path / "other", "llama")
    entries = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(entries | {"rope_theta": 500000.0, "rms_norm_eps": 1e-5}))
    found = compare_weights(given, other)
    assert found.alike is True
    assert any("the rotation's base is 10000 in A, 500000 in B" in note for note in found.notes)
    assert any("eps of ln_1 is 1e-06 in A, 1e-05 in B" in note for note in found.notes)


# ---- the bound, the order, the command -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4"])
def test_the_grid_of_a_block(kind):
    """Every value lies in its block's range, on the grid: moving a quant by one moves its value by a step."""
    from llorch import _core
    from llorch.files.tensor import BLOCKS

    values, nbytes = BLOCKS[kind][:2]
    raw = rng(1).integers(0, 256, (4, 2 * nbytes), dtype=np.uint8).reshape(8, nbytes)
    layout = formats.LAYOUTS[kind]
    for at in (layout.d, layout.dmin):
        if at is not None:
            raw[:, at : at + 2] = np.float16(0.01).tobytes()[0], np.float16(0.01).tobytes()[1]
    if kind == "MXFP4":
        raw[:, 0] = 120
    raw = raw.reshape(4, 2 * nbytes)
    x = _core.dequantize(raw, kind, (4, 2 * values))
    grid = formats.of_blocks(raw, kind, x.shape, x)
    assert (grid.low <= x + 1e-9).all() and (x - 1e-9 <= grid.high).all()
    between = np.diff(np.unique(x.reshape(-1, 16 if kind in ("Q2_K", "Q3_K", "Q6_K") else 32)[0]))
    steps = 2 * grid.half.reshape(-1)[:16]
    assert (between >= steps.min() * 0.85).all()
    a, b = Values(x + np.float32(0.4) * (2 * grid.half).astype(np.float32), "F32"), Values(x, kind, raw)
    assert fit(Values(x, "F32"), b).equal and fit(a, b).holds
    assert not fit(Values(x + 3 * grid.half.astype(np.float32), "F32"), b).holds


@pytest.mark.parametrize("kind", list(formats.LAYOUTS))
@pytest.mark.parametrize("uneven", [False, True])
def test_a_quantiser_stays_within_the_bound(kind, uneven):
    """Of weights whose sub-blocks are alike, and of some that differ by e^6, which K-quants' scales can't all say."""
    x = rng(6).standard_normal((16, 512)) * 0.02
    x *= np.exp(2 * rng(7).standard_normal((16, 32))).repeat(16, axis=1) if uneven else 1
    x = x.astype(np.float32)
    raw = llorch.quantize(x, kind)
    y = Values(llorch.dequantize(raw, kind, x.shape), kind, raw)
    found = fit(Values(x, "F32"), y)
    assert found.holds and 0.5 < found.worst <= 1.02  # a value beyond the range may be cut off by 1.01 of its bound
    assert not fit(Values(x * np.float32(1.3), "F32"), y).holds
    assert not fit(Values(np.roll(x, 1, axis=1), "F32"), y).holds


def test_orders_in_words():
    n = np.arange(12)
    assert relations.describe(n[::-1], "rows") == "rows in reverse order"
    assert relations.describe(np.roll(n, -3), "rows") == "rows are turned around by 3"
    assert relations.describe(n.reshape(3, 4)[[2, 0, 1]].ravel(), "rows", [4]) == "heads in the order 2, 0, 1"
    inside = (n.reshape(3, 4)[:, [0, 2, 1, 3]]).ravel()
    assert relations.describe(inside, "rows", [4]) == "in each head, rows in the order 0, 2, 1, 3"


def test_names_that_a_terminal_would_obey(tmp_path):
    """In another engine's file, and in a model's: they are shown escaped."""
    given = folder(tmp_path / "hf", "llama")
    evil = dict(made("llama")[2]) | {"\x1b[2J\u202ename": np.zeros(3, np.float32)}
    np.savez(tmp_path / "own.npz", **evil)
    for other in (tmp_path / "own.npz", folder(tmp_path / "wrong", "llama", tensors=evil)):
        found = CliRunner().invoke(main, ["compare-weights", str(given), str(other)])
        assert r"\x1b[2J\u202ename" in found.output and "\x1b[2J" not in found.output and "\u202e" not in found.output


def test_the_command(tmp_path):
    given = folder(tmp_path / "hf", "llama")
    wrong = folder(tmp_path / "wrong", "llama", tensors=changed("llama", PLANTS["transposed"][0]))
    run = CliRunner().invoke
    found = run(main, ["compare-weights", str(given), str(given)])
    assert found.exit_code == 0 and "21 tensors: all alike" in found.output
    found = run(main, ["compare-weights", str(given), str(wrong), "--json", str(tmp_path / "found.json")])
    assert found.exit_code == 1 and f"{O}: transposed: rows and columns exchanged" in found.output
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["first_difference"] == O and content["alike"] is False and len(content["tensors"]) == 21
    found = run(main, ["compare-weights", str(given), str(tmp_path / "nothing")])
    assert found.exit_code == 2
    np.savez(tmp_path / "own.npz", x=np.zeros(3))
    found = run(main, ["compare-weights", str(tmp_path / "own.npz"), str(tmp_path / "own.npz")])
    assert found.exit_code == 2 and "says what model it is" in found.output
