"""What one family of decoders has that no other has, and what its files leave open."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from families import CASES, by_text, entries_of, ids_of, made, metadata_of, write, write_file
from gpt2_models import cast
from helpers import assert_same_bits, rng, same_bits
from random_models import decoder_metadata, save
from safetensors.numpy import load_file, save_file

import llorch
from llorch import reference
from llorch.cli import main
from llorch.models import decoder, gemma3
from llorch.models.gemma2 import Gemma2Config
from llorch.models.parts import Attention, Block, Gated, Norm
from llorch.validate.ladder import selftest
from llorch.validate.ladder.compare import compare_dumps
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.names import Names, canonical
from llorch.validate.ladder.sources import Model

load = llorch.CausalLM.from_pretrained


# ---- Gemma ---------------------------------------------------------------------------------------------


def test_the_parts_of_a_gemma_tell():
    """Negative controls: the oracle without the 1 of a norm, with all layers alike, without the factor of the embedding
    or with one base for all layers has other bits."""
    ids = ids_of(21)
    for name, text in (("gemma2", reference.Gemma2), ("gemma3", reference.Gemma3)):
        (_, config, tensors), wanted = made(name), by_text(name, length=21)
        one = "layers.1.post_feedforward_layernorm.weight"
        assert not same_bits(text(config, tensors | {one: tensors[one] - np.float32(1)}).forward(ids), wanted)
        plain = text(config, tensors)
        plain.factor = np.float32(1)
        assert not same_bits(plain.forward(ids), wanted)
    again = type(config).from_dict(entries_of("gemma3") | {"rope_local_base_freq": config.rope_theta})
    assert not same_bits(reference.Gemma3(again, tensors).forward(ids), wanted)


def test_the_factor_has_the_type_of_the_embedding(tmp_path):
    """sqrt(48) is 6.928...: 6.9375 in bfloat16. The same numbers in float32 are multiplied by another."""
    narrow = cast(made("gemma2")[2], "bfloat16")
    exact = {name: reference.widen(values) for name, values in narrow.items()}
    found = {}
    for tensors in (narrow, exact):
        model = write(tmp_path / "m", "gemma2", tensors=tensors)
        model.forward([5], trace=lambda name, values, m=model: found.setdefault((m.dtype, name), values.copy()))
    row = exact["embed_tokens.weight"][5:6]
    assert_same_bits(found["bfloat16", "embed"], row * np.float32(6.9375))
    assert_same_bits(found["float32", "embed"], row * np.float32(48**0.5))


def test_gguf_says_what_a_models_scores_are_divided_by():
    """Not at all: the number of layers tells the one model where it isn't the width of a head."""
    shapes = {"token_embd.weight": (67, 4608)}
    entries = {"block_count": 46, "embedding_length": 4608, "attention.head_count": 32, "attention.key_length": 128}
    entries |= {"feed_forward_length": 8, "context_length": 8, "attention.layer_norm_rms_epsilon": 1e-6}
    found = {"general.architecture": "gemma2"} | {f"gemma2.{key}": value for key, value in entries.items()}
    config = Gemma2Config.from_gguf(found, shapes)
    assert (config.query_pre_attn_scalar, config.sliding_window, config.layer_types[:2]) == (
        144, 4096, ("sliding_attention", "full_attention"),
    )  # fmt: skip
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50, 30)
    assert Gemma2Config.from_gguf(found | {"gemma2.block_count": 42}, shapes).query_pre_attn_scalar == 128
    kinds = [i % 3 == 0 for i in range(46)]
    other = Gemma2Config.from_gguf(found | {"gemma2.attention.sliding_window_pattern": kinds}, shapes)
    assert [kind == "sliding_attention" for kind in other.layer_types] == kinds
    with pytest.raises(ValueError, match=r"gemma2.attention.scale is 0.5"):
        Gemma2Config.from_gguf(found | {"gemma2.attention.scale": 0.5}, shapes)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_of_a_gemma3_of_text_and_images(tmp_path, prefix):
    """Its configuration lies within, its names have a prefix, and what is for images is left out and said once."""
    ids, tensors = ids_of(15), made("gemma3")[2]
    model = write(tmp_path / "text", "gemma3")
    entries = {
        "model_type": "gemma3",
        "text_config": entries_of("gemma3") | {"eos_token_id": 1},
        "eos_token_id": [1, 106],
        "vision_config": {},
    }
    parts = [f"vision_tower.vision_model.encoder.layers.{i}.layer_norm1.bias" for i in range(20)]
    images = {
        f"{prefix.removesuffix('language_model.') if prefix.startswith('model') else ''}{name}": np.ones(3, np.float32)
        for name in (*parts, "multi_modal_projector.mm_soft_emb_norm.weight")
    }
    folder = tmp_path / "both"
    save(folder, entries, tensors, prefix)
    save_file(load_file(folder / "model.safetensors") | images, folder / "model.safetensors")
    with pytest.warns(UserWarning, match="vision_tower") as said:
        both = load(folder)
    assert len(said) == 1 and set(both.left_out) == set(images)
    assert both.config.eos_token_ids == (1, 106)
    assert_same_bits(both.forward(ids), model.forward(ids))
    said = CliRunner().invoke(main, ["info", str(folder)]).output
    assert said.count("a head of another task") == 8 and "and 13 more" in said
    found = json.loads(CliRunner().invoke(main, ["info", "--json", str(folder)]).output)
    assert set(found["left_out"]) == set(images)


def test_transformers_gemma3_of_text_and_images(tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    text = {k: v for k, v in entries_of("gemma3").items() if k != "model_type"}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text | {"initializer_range": 0.2}, vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=60, boi_token_index=61, eoi_token_index=62,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.Gemma3ForConditionalGeneration(config).float().eval()
    theirs.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "gemma3"
    with pytest.warns(UserWarning, match="vision_tower"):
        model = load(tmp_path / "model")
    assert isinstance(model.config, gemma3.Gemma3Config)
    ids = rng(12).integers(0, 60, 40)
    theirs = type(theirs).from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids[None])).logits[0].numpy()
    assert np.abs(model.forward(ids) - wanted).max() <= 2e-5 * wanted.std()


# ---- GPT-NeoX, OLMo 2 ----------------------------------------------------------------------------------


def test_a_dump_of_a_neox_may_have_heads_side_by_side(tmp_path):
    """What its fused layer makes lies as the file's rows do, or all queries first: both are read, a wrong one isn't."""
    network, ids = Model(write(tmp_path / "m", "gpt_neox").path).network, ids_of(9).tolist()
    right = selftest.right_dump(network, ids)
    parts = [right.arrays[f"h.1.attn.{letter}"] for letter in "qkv"]  # (H, T, D) each
    by_head = np.stack(parts).transpose(2, 1, 0, 3).reshape(9, -1)
    one_after_the_other = np.stack(parts).transpose(2, 0, 1, 3).reshape(9, -1)
    wrong = np.stack(parts[::-1]).transpose(2, 1, 0, 3).reshape(9, -1)
    for values, holds in ((by_head, True), (one_after_the_other, True), (wrong, False)):
        theirs = Dump({"gpt_neox.layers.1.attention.query_key_value": values[None]}, {}, "theirs")
        result = compare_dumps(theirs, right, network)
        assert {row.tensor.name for row in result.rows if row.status != "absent"} == {f"h.1.attn.{x}" for x in "qkv"}
        assert result.holds == holds


def test_names_of_a_neox_head(tmp_path):
    """embed_out, as files have it, and lm_head, as transformers calls it since version 5."""
    ids, model = ids_of(9), write(tmp_path / "m", "gpt_neox")
    folder, wanted = model.path, model.forward(ids)
    found = load_file(folder / "model.safetensors")
    found["embed_out.weight"] = found.pop("lm_head.weight")
    save_file(found, folder / "model.safetensors")
    assert_same_bits(load(folder).forward(ids), wanted)
    save_file(found | {"lm_head.weight": found["embed_out.weight"]}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head.weight is there twice"):
        load(folder)


def test_windows_of_an_olmo2_file_are_refused():
    family, config, _ = made("olmo2")
    found = {"general.architecture": "olmo2", "olmo2.attention.sliding_window": 9} | metadata_of("olmo2", config)
    with pytest.raises(ValueError, match=r"olmo2.attention.sliding_window is 9: llorch's OLMo 2 has no windows"):
        family.config_of_gguf(found, {"token_embd.weight": (67, 48)})


# ---- what GGUF lays out otherwise ----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "part"), [("gemma2", "norm"), ("gemma3", "q_norm"), ("gpt_neox", "query_key_value")])
def test_what_gguf_lays_out_otherwise_matters(tmp_path, name, part):
    """Negative control: norms without the 1, or rows as Hugging Face has them, give other logits."""
    pytest.importorskip("gguf")
    tensors = made(name)[2]
    key = next(key for key in tensors if part in key and key.endswith(".weight"))
    wrong = tensors[key] - np.float32(1)
    if part == "query_key_value":
        wrong = tensors[key].reshape(3, 6, 8, 48).swapaxes(0, 1).reshape(144, 48)  # what writing turns back
    ids, logits = ids_of(15), []
    for i, changed in enumerate(({}, {key: wrong})):
        logits.append(write_file(tmp_path / f"{i}.gguf", name, tensors=tensors | changed).forward(ids))
    assert not same_bits(*logits)


# ---- Granite -------------------------------------------------------------------------------------------


def test_a_granites_logits_are_divided(tmp_path):
    """Negative control: multiplied by 1 / logits_scaling, some have other bits."""
    _, config, tensors = made("granite")

    class Multiplied(reference.Granite):
        def head(self, x):
            return super(reference.Granite, self).head(x) * (np.float32(1) / np.float32(config.logits_scaling))

    logits = write(tmp_path / "m", "granite").forward(ids_of())
    assert np.abs(Multiplied(config, tensors).forward(ids_of()) - logits).max() < 1e-6
    assert not same_bits(Multiplied(config, tensors).forward(ids_of()), logits)


@pytest.mark.parametrize(("name", "op"), [("granite", "divide"), ("gemma2", "softcap")])
def test_logits_are_finished_where_they_lie(tmp_path, name, op):
    """A second buffer of a row a position and a column a token would double the memory of a long text."""
    calls = write(tmp_path / "m", name)._plan("all").calls
    head, last = calls[-2:]
    assert (head["op"], last["op"]) == ("linear", op) and head["y"] == last["x"] == last["y"]


@pytest.mark.parametrize("name", ["mistral", "phi3"])
def test_gate_and_up_of_one_weight_are_made_with_their_product(tmp_path, name):
    """They would be two thirds of what such a layer needs in memory; a trace has them."""
    model, seen = write(tmp_path / "m", name), {}
    calls = model._plan("all").calls
    layers = [call for call in calls if call.get("gated")]
    assert [call["n"] for call in layers] == [80] * 3 and not any(call["op"] == "gate" for call in calls)
    logits = model.forward(ids_of(), trace=lambda step, tensor: seen.update({step: tensor.copy()}))
    assert_same_bits(model.forward(ids_of()), logits)
    for layer in range(3):
        gate, up, product = (seen[f"h.{layer}.mlp.{name}"] for name in ("gate", "up", "product"))
        assert_same_bits(product, reference.gate(gate, up, activation="silu"))


def test_what_a_granite_of_gguf_leaves_out():
    """llama.cpp's converter writes no multiplier that is 0, and its loader takes the usual scale of the scores then."""
    family, config, _ = made("granite")
    shapes = {"token_embd.weight": (67, 48)}
    found = {"general.architecture": "granite", **decoder_metadata(config, "granite"), "granite.logit_scale": 8.0}
    for entries in ({}, dict.fromkeys(("embedding_scale", "attention.scale", "residual_scale"), 0.0)):
        read = family.config_of_gguf(found | {f"granite.{name}": value for name, value in entries.items()}, shapes)
        assert (read.embedding_multiplier, read.residual_multiplier, read.logits_scaling) == (1, 1, 8)
        assert read.attention_multiplier == 1 / 8**0.5
    assert family.config_of_gguf(found | {"granite.rope.scaling.finetuned": True}, shapes) == read
    with pytest.raises(ValueError, match=r"granite.rope.scaling.finetuned is False: llorch's Granite has True"):
        family.config_of_gguf(found | {"granite.rope.scaling.finetuned": False}, shapes)
    del found["granite.logit_scale"]
    with pytest.raises(ValueError, match=r"the metadata has no granite.logit_scale"):
        family.config_of_gguf(found, shapes)


def test_what_a_head_makes_in_a_dump():
    """Other engines' lm_head is the logits, but where these are divided afterwards."""
    family, config, _ = made("granite")
    assert canonical("lm_head", Names.of(family.graph(config))) == "head"
    plain = dataclasses.replace(config, logits_scaling=1.0)
    assert canonical("lm_head", Names.of(family.graph(plain))) == "logits"


def test_a_graph_whose_logits_are_capped_and_divided():
    _, config, _ = made("granite")
    with pytest.raises(ValueError, match=r"softcap is 3.0 and divisor 2.0"):
        decoder.graph(config, [Block(Attention(), Gated("silu"))], Norm("norm", 1e-5), softcap=3.0, divisor=2.0)


# ---- StableLM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["attn_q_norm", "attn_k_norm"])
def test_norms_of_heads_in_a_stablelm_of_gguf(tmp_path, norm):
    """One of each head of its own, (heads, values): no part has that."""
    case = CASES["stablelm"]
    with pytest.MonkeyPatch.context() as patch:
        extra = {f"blk.0.{norm}.weight": np.ones((6, 8), np.float32)}
        patch.setitem(CASES, "stablelm", dataclasses.replace(case, tensors=lambda c: extra))
        with pytest.raises(ValueError, match=rf"blk.0.{norm}.weight is there: llorch's StableLM doesn't support"):
            write_file(tmp_path / "m.gguf", "stablelm")


@pytest.mark.parametrize(
    "entries", [{"norm_1": None}, {"norm_2": Norm("b", 1e-5)}, {"parallel": True}], ids=["no", "two", "parallel"]
)
def test_a_block_whose_norm_cant_be_shared(entries):
    block = Block(Attention(), Gated("silu"), norm_1=Norm("a", 1e-5), shared_norm=True)
    with pytest.raises(ValueError, match="shared_norm"):
        dataclasses.replace(block, **entries)


# ---- Phi-3 ---------------------------------------------------------------------------------------------


def test_the_first_names_of_longrope():
    """What early Phi-3 files call "su" or "yarn" is longrope."""
    family, config, _ = made("phi3", "long")
    entries = entries_of("phi3", "long")
    for kind in ("su", "yarn", "longrope"):
        scaling = {name: value for name, value in entries["rope_scaling"].items() if name != "rope_type"}
        assert family.config(entries | {"rope_scaling": scaling | {"type": kind}}) == config


def test_a_factor_of_longrope_that_isnt_the_rules(tmp_path):
    """GGUF's factor of cosine and sine is in force where it isn't the rule's own."""
    _, config, tensors = made("phi3", "long")
    scaling = {**config.rope_scaling, "attention_factor": 1.5}
    other = dataclasses.replace(config, rope_scaling=scaling)
    got = reference.Phi3(other, tensors).forward(ids_of())
    assert not same_bits(got, reference.Phi3(config, tensors).forward(ids_of()))
    case = CASES["phi3"]
    with pytest.MonkeyPatch.context() as patch:
        changed = dataclasses.replace(case, metadata=lambda c: case.metadata(c) | {"rope.scaling.attn_factor": 1.5})
        patch.setitem(CASES, "phi3", changed)
        assert_same_bits(write_file(tmp_path / "m.gguf", "phi3", "long").forward(ids_of()), got)
