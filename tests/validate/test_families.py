"""The ladder is read from a family's graph: Llama from a folder and from GGUF, and a family that llorch hasn't."""

import json

import numpy as np
import pytest
import toy
from click.testing import CliRunner
from helpers import assert_same_bits, same_bits
from ladders import IDS, llama, of_llama_cpp, side_by_side
from random_models import LLAMA, llama_metadata, random_llama, random_tensors, save, tensors_of, write_gguf

from llorch import reference, validate
from llorch.cli import main
from llorch.models import registry
from llorch.models.llama import FAMILY as LLAMA_FAMILY
from llorch.models.llama import LlamaConfig
from llorch.validate.ladder import dumps, faults, rungs, selftest, sources
from llorch.validate.ladder.compare import compare_dumps
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.names import Names, canonical
from llorch.validate.ladder.network import Float64, Kernels, Specified
from llorch.validate.ladder.sources import Model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def right():
    return selftest.right_dump(llama().network, IDS)


def against(arrays, right, names=None):
    return compare_dumps(Dump(arrays, {}, "theirs"), right, llama().network, names)


# ---- the ladder and its sources ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entries", [{}, {"rope_scaling": LLAMA3, "attention_bias": True, "tie_word_embeddings": False}]
)
def test_the_traced_llama_is_the_text(tmp_path, entries):
    random_llama(tmp_path / "m", entries)
    model = Model(tmp_path / "m")
    wanted = reference.Llama(model.config, tensors_of(model.engine)).forward(IDS)
    traced = model.network.run(IDS, Specified())
    assert_same_bits(traced["logits"], wanted)
    for name, values in model.network.run(IDS, Kernels()).items():
        assert_same_bits(values, traced[name], name)
    exact = model.network.run(IDS, Float64())["logits"]
    assert 0 < np.abs(exact - wanted).max() < 1e-4


@pytest.mark.parametrize("entries", [{}, {"num_key_value_heads": 6, "rope_scaling": LLAMA3, "attention_bias": True}])
def test_a_llamas_ladder_holds(tmp_path, entries):
    random_llama(tmp_path / "m", entries)
    found = validate.run_ladder(tmp_path / "m", ids=IDS, peer=False)
    assert found.holds and found.missing == "not asked for"
    assert [result.tensor.name for result in found.tensors] == [t.name for t in rungs.tensors(Model(tmp_path / "m"), 7)]
    assert {"h.0.attn.q_rope", "h.1.attn.cache_k", "h.1.attn.scores", "h.0.mlp.product", "h.1", "ln_f"} <= {
        result.tensor.name for result in found.tensors
    }


def test_transformers_stands_beside_a_llama(tmp_path):
    pytest.importorskip("transformers")
    random_llama(tmp_path / "m", {"rope_scaling": LLAMA3, "attention_bias": True, "tie_word_embeddings": False})
    found = validate.run_ladder(tmp_path / "m", ids=IDS)
    assert found.holds and found.missing == ""
    assert {result.peer.status for result in found.tensors} == {"ok"}
    assert max(result.peer.absolute for result in found.tensors) > 0  # another implementation indeed


def test_a_wrong_llama_is_found_beside_transformers(tmp_path, monkeypatch):
    """The negative control: transformers with another base of the rotation."""
    transformers = pytest.importorskip("transformers")
    original = transformers.LlamaForCausalLM.from_pretrained

    def load(*arguments, **options):
        model = original(*arguments, **options)
        model.model.rotary_emb.inv_freq *= 1.5
        return model

    random_llama(tmp_path / "m")
    monkeypatch.setattr(transformers.LlamaForCausalLM, "from_pretrained", load)
    found = validate.run_ladder(tmp_path / "m", ids=IDS)
    assert found.peer.first.tensor.name == "h.0.attn.q_rope" and not found.holds
    assert all(result.differing == 0 for result in found.tensors)


def test_a_gguf_files_ladder_holds_and_is_the_folders(tmp_path):
    config = LlamaConfig.from_dict(LLAMA)
    tensors = random_tensors(LLAMA_FAMILY, config)
    save(tmp_path / "m", LLAMA, tensors)
    write_gguf(tmp_path / "m.gguf", LLAMA_FAMILY, config, tensors, "llama", llama_metadata(config))
    found = validate.run_ladder(tmp_path / "m.gguf", ids=IDS, peer=False)
    assert found.holds and found.missing == "not asked for"
    a, b = (sources.trace_oracle(Model(tmp_path / name), IDS) for name in ("m", "m.gguf"))
    for name, values in a.items():
        assert_same_bits(b[name], values, name)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_a_quantised_gguf_files_ladder_holds(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    config = LlamaConfig.from_dict(LLAMA | {"hidden_size": 64, "num_attention_heads": 8, "intermediate_size": 96})
    tensors = random_tensors(LLAMA_FAMILY, config)
    types = gguf.GGMLQuantizationType

    def quantise(name, values):
        return (gguf.quants.quantize(values, types[kind]), types[kind]) if values.ndim > 1 else (values, None)

    write_gguf(tmp_path / "q.gguf", LLAMA_FAMILY, config, tensors, "llama", llama_metadata(config), quantise)
    assert validate.run_ladder(tmp_path / "q.gguf", ids=IDS, peer=False).holds


@pytest.mark.parametrize("right", [True, False])
def test_transformers_stands_beside_a_gguf_file(tmp_path, right):
    """The negative control: of a file with the factors of the rotation, which transformers leaves out."""
    for name in ("transformers", "accelerate", "gguf"):
        pytest.importorskip(name)
    heads = LLAMA["num_attention_heads"]
    config = LlamaConfig.from_dict(LLAMA | {"head_dim": LLAMA["hidden_size"] // heads})
    tensors, metadata = random_tensors(LLAMA_FAMILY, config), llama_metadata(config)
    metadata["llama.vocab_size"] = LLAMA["vocab_size"]
    extra = None if right else {"rope_freqs.weight": np.full(config.head_dim // 2, 2, np.float32)}
    write_gguf(tmp_path / "m.gguf", LLAMA_FAMILY, config, tensors, "llama", metadata, extra=extra)
    found = validate.run_ladder(tmp_path / "m.gguf", ids=IDS)
    assert all(result.differing == 0 for result in found.tensors)
    if not right:
        assert found.holds and found.missing == "it doesn't read all that this GGUF file says"
        return
    assert found.holds and found.missing == ""
    assert {result.peer.status for result in found.tensors} == {"ok"}
    assert max(result.peer.absolute for result in found.tensors) > 0


def test_the_command_on_a_gguf_file(tmp_path):
    config = LlamaConfig.from_dict(LLAMA)
    tensors = random_tensors(LLAMA_FAMILY, config)
    write_gguf(tmp_path / "m.gguf", LLAMA_FAMILY, config, tensors, "llama", llama_metadata(config))
    page, data = tmp_path / "p.html", tmp_path / "p.json"
    arguments = [
        "validate",
        "--model",
        tmp_path / "m.gguf",
        "--ids",
        "1,2,3",
        "--no-peer",
        "--report",
        page,
        "--json",
        data,
    ]
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "llorch = oracle: 46 of 46 tensors, bit for bit" in result.output
    assert "transformers: not asked for" in " ".join(result.output.split())
    assert json.loads(data.read_text())["holds"] and "h.1.mlp.product" in page.read_text()


def test_one_wrong_bit_of_a_llama_is_named(tmp_path, monkeypatch):
    random_llama(tmp_path / "m")
    model = Model(tmp_path / "m")
    traced = sources.trace_engine(model, IDS)
    traced["h.1.attn.k_rope"][1, 2, 3] = np.nextafter(traced["h.1.attn.k_rope"][1, 2, 3], np.float32(9))
    monkeypatch.setattr("llorch.validate.ladder.run.trace_engine", lambda *a: traced)
    found = validate.run_ladder(model, ids=IDS, peer=False)
    assert not found.holds and found.first.name == "h.1.attn.k_rope"


def test_a_family_that_llorch_does_not_have(tmp_path, monkeypatch):
    """A window, a norm of its own place, a softcap, a factor of the embedding: by its table alone."""
    monkeypatch.setattr(registry, "_registered", list(registry._registered))
    registry.register(toy.FAMILY)
    save(tmp_path / "m", {"model_type": "toy"}, random_tensors(toy.FAMILY, toy.ToyConfig()), "")
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    found = validate.run_ladder(tmp_path / "m", ids=ids)
    assert found.holds and found.missing in ("it has no Toy", "torch, transformers not installed")
    assert {"h.0.attn.norm", "h.1.mlp.norm", "h.1.attn.scores"} <= {result.tensor.name for result in found.tensors}
    model = Model(tmp_path / "m")
    scores = model.network.run(ids, Specified())["h.1.attn.scores"]
    assert np.isneginf(scores[:, 8, 2]).all() and np.isfinite(scores[:, 8, 3:9]).all()  # a window of 6
    assert_same_bits(
        model.network.run(ids, Specified())["logits"], toy.Toy(model.config, tensors_of(model.engine)).forward(ids)
    )


# ---- dumps of other engines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("model.embed_tokens", "embed"),
        ("model.layers.1.input_layernorm", "h.1.ln_1"),
        ("model.layers.0.self_attn.q_proj", "h.0.attn.q"),
        ("model.layers.0.self_attn.v_proj", "h.0.attn.v"),
        ("model.layers.0.self_attn.o_proj", "h.0.attn.c_proj"),
        ("model.layers.0.self_attn", "h.0.attn.c_proj"),
        ("model.layers.0.post_attention_layernorm", "h.0.ln_2"),
        ("model.layers.1.mlp.gate_proj", "h.1.mlp.gate"),
        ("model.layers.1.mlp.up_proj", "h.1.mlp.up"),
        ("model.layers.1.mlp.act_fn", "h.1.mlp.act"),
        ("model.layers.1.mlp.down_proj", "h.1.mlp.c_proj"),
        ("model.layers.1.mlp", "h.1.mlp.c_proj"),
        ("model.layers.1", "h.1"),
        ("model.norm", "ln_f"),
        ("lm_head", "logits"),
        ("blk.1.attn_norm", "h.1.ln_1"),
        ("blk.1.ffn_gate", "h.1.mlp.gate"),
        ("ffn_up-1", "h.1.mlp.up"),
        ("ffn_norm-0", "h.0.ln_2"),
        ("l_out-1", "h.1"),
        ("Qcur-0", "h.0.attn.q|h.0.attn.q_rope"),  # llama.cpp's name before and after the rotation
        ("Kcur_rope-1", "h.1.attn.k_rope"),
        ("kq-1", "h.1.attn.kq"),
        ("kqv-1", "h.1.attn.context"),
        ("attn_out-1", "h.1.attn.c_proj"),
        ("ffn_swiglu-1", "h.1.mlp.product"),
        ("ffn_gate_b-1", "h.1.mlp.gate"),
        ("Qcur-0 (view)", None),
        ("layers.0.attention.wq", "h.0.attn.q"),
        ("layers.0.feed_forward.w3", "h.0.mlp.up"),
        ("layers.0.feed_forward.w2", "h.0.mlp.c_proj"),
        ("tok_embeddings", "embed"),
        ("model.layers.0.mlp.gate_up_proj", "h.0.mlp.gate_up"),
        ("transformer_layer_0/self_attention/key", "h.0.attn.k"),
        ("transformer_layer_0/feedforward_intermediate_dense", "h.0.mlp.up"),
        ("transformer_layer_0/feedforward_gate_dense", "h.0.mlp.gate"),
        ("sequence_output_layernorm", "ln_f"),
        ("hidden_states.1", "h.0"),
        ("hidden_states.2", "ln_f"),
        ("past_key_values.1.key", "h.1.attn.cache_k"),
        ("h.0.mlp.c_fc", None),
        ("h.2.ln_1", None),
    ],
)
def test_names_of_a_llama(theirs, ours):
    assert canonical(theirs, Names.of(llama().graph)) == ours


def test_every_name_of_a_llamas_ladder_is_its_own():
    names = Names.of(llama().graph)
    for tensor in rungs.tensors(llama(), 4):
        assert canonical(tensor.name, names) == tensor.name


def test_llama_cpps_tensors_agree(right):
    """Rotated pairs side by side, one name before and after the rotation, products before their scale and mask."""
    a, T = right.arrays, len(IDS)
    result = against(of_llama_cpp(a, T), right)
    rows = {row.tensor.name: row for row in result.rows if row.status != "absent"}
    kinds = ("attn.q", "attn.q_rope", "attn.k_rope", "attn.v", "attn.scores", "attn.context", "attn.c_proj")
    assert result.holds and set(rows) == {
        *(f"h.{i}.{kind}" for i in (0, 1) for kind in (*kinds, "mlp.product")), "h.0", "h.1", "ln_f",
    }  # fmt: skip
    assert rows["h.1.attn.q"].source == "Qcur-1" and "pairs lay side by side" in rows["h.1.attn.q"].note
    assert rows["h.0.attn.k_rope"].source == "Kcur-0" and result.unknown == ["norm"]
    noisy = against(of_llama_cpp(a, T, 0.01), right)  # as of 8-bit activations: no tensor is taken for another
    assert noisy.first.tensor.name == "h.0.attn.q" and all(row.relative < 0.03 for row in noisy.rows)
    assert {row.tensor.name for row in noisy.rows if row.status != "absent"} == set(rows)


def test_pairs_that_were_left_by_mistake_are_not_another_layout(right):
    """Rows of q as GGUF has them, rotated as halves: the first that is wrong is q itself."""
    network = llama().network.copy()
    for block in network.blocks:
        weight = block.weights["self_attn.q_proj.weight"]
        block.weights["self_attn.q_proj.weight"] = (
            side_by_side(weight.reshape(6, -1, 48).swapaxes(1, 2)).swapaxes(1, 2).reshape(weight.shape)
        )
        bias = block.weights["self_attn.q_proj.bias"]
        block.weights["self_attn.q_proj.bias"] = side_by_side(bias.reshape(6, 1, -1)).reshape(-1)
    wrong = network.run(IDS, Kernels())
    first = against(wrong, right).first
    assert first.tensor.name == "h.0.attn.q"


def test_heads_of_keys_that_are_repeated_and_gate_and_up_in_one(right):
    a, T = right.arrays, len(IDS)
    k, v, gate, up = (a[f"h.0.{kind}"] for kind in ("attn.k", "attn.v", "mlp.gate", "mlp.up"))
    turned = np.stack([gate, up], axis=-1).reshape(T, -1)
    for arrays in (
        {"layers.0.self_attn.k_proj": np.repeat(k, 3, axis=0), "layers.0.self_attn.v_proj": np.tile(v, (3, 1, 1))},
        {"layers.0.self_attn.k_proj": np.repeat(k, 3, axis=0).transpose(1, 0, 2).reshape(1, T, -1)},
        {"layers.0.mlp.gate_up_proj": np.concatenate([gate, up], axis=1)[None]},
        {"h.0.mlp.gate_up": turned},
    ):
        result = against(arrays, right)
        assert result.holds and result.compared == (1 if [*arrays] == ["layers.0.self_attn.k_proj"] else 2)
    odd = np.repeat(k, 3, axis=0)
    odd[4] += 1  # a copy that isn't one
    assert against({"layers.0.self_attn.k_proj": odd}, right).first.tensor.name == "h.0.attn.k"
    swapped = against({"layers.0.mlp.gate_up_proj": np.concatenate([up, gate], axis=1)}, right)
    assert swapped.first.tensor.name == "h.0.mlp.gate"
    wide = np.concatenate([gate, up, up], axis=1)
    assert against({"layers.0.mlp.gate_up_proj": wide}, right).first.note.startswith("it has shape")


def test_a_llamas_dump_in_other_layouts_agrees(right):
    a, T = right.arrays, len(IDS)
    q, k, v = (a[f"h.0.attn.{letter}"].transpose(1, 0, 2).reshape(T, -1) for letter in "qkv")
    fused = np.concatenate([q, k, v], axis=1)
    for arrays, wanted in (
        ({"model.layers.0.self_attn.q_proj": q[None], "layers.0.self_attn.k_proj": k}, {"h.0.attn.q", "h.0.attn.k"}),
        ({"layers.0.self_attn.qkv": fused[None]}, {f"h.0.attn.{x}" for x in "qkv"}),
        ({"layers.0.self_attn.qkv": fused.T}, {f"h.0.attn.{x}" for x in "qkv"}),
        ({"past_key_values.1.key": a["h.1.attn.cache_k"][None]}, {"h.1.attn.cache_k"}),
        ({"model.layers.1": a["h.1"][None], "lm_head": a["logits"][-1:]}, {"h.1", "last_logits"}),
    ):
        result = against(arrays, right)
        found = {row.tensor.name: row.status for row in result.rows if row.status != "absent"}
        assert found == dict.fromkeys(wanted, "ok")
        wrong = {name: values.copy() for name, values in arrays.items()}
        next(iter(wrong.values()))[..., 0] += 1
        assert not against(wrong, right).holds


def test_the_rotation_by_pairs_for_halves_is_named(right):
    """What people get from a GGUF file that they read as it lies."""
    theirs = faults.by_key(llama().network)["rope-pairs"].inject(llama().network, 0, 1).run(IDS, Kernels())
    result = against(theirs, right)
    assert result.first.tensor.name == "h.0.attn.q_rope"
    assert result.first.tensor.place == "rung 2 (Q, K, V), layer 0"
    assert result.diagnosis.key == "rope-pairs" and result.diagnosis.layers == (0, 1)


def test_the_cache_of_a_llama_is_their_own_rotated_keys(right):
    theirs = {name: values.copy() for name, values in right.arrays.items()}
    theirs["h.1.attn.cache_k"] += np.float32(2e-6)
    first = against(theirs, right).first
    assert first.tensor.name == "h.1.attn.cache_k" and first.against == "their h.1.attn.k_rope"
    del theirs["h.1.attn.k_rope"]
    assert against(theirs, right).holds


def test_a_dump_of_a_llama_says_what_it_is(tmp_path):
    random_llama(tmp_path / "m", {"rope_scaling": LLAMA3})
    trace = validate.dump(tmp_path / "d.safetensors", tmp_path / "m", ids=IDS)
    found = dumps.read(tmp_path / "d.safetensors")
    model = Model(tmp_path / "m")
    assert found.metadata["model_type"] == "llama" and found.config == model.config and found.graph == model.graph
    assert all(same_bits(found.arrays[name], values) for name, values in trace.items())
    result = validate.compare(tmp_path / "d.safetensors", tmp_path / "d.safetensors", model=tmp_path / "m")
    assert result.holds and result.compared == len(result.rows) == 46
