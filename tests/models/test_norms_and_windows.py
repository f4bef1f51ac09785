"""Gemma 2, Gemma 3, OLMo 2, GPT-NeoX, StarCoder2: every logit against the oracle, every way to cut the work, GGUF, the
ladder, transformers."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from gpt2_models import cast, tensors_of
from helpers import assert_same_bits, num_threads, rng, same_bits
from norms_and_windows import CASES, EVERY, PLAIN, SAID_BY_GGUF, SMALL, load, metadata
from random_models import by_reference, random_tensors, save, write_gguf

import llorch
from llorch import reference, validate
from llorch.cli import main
from llorch.models import gemma3
from llorch.models.gemma2 import Gemma2Config
from llorch.testing import use_isa
from llorch.validate.ladder import selftest
from llorch.validate.ladder.compare import compare_dumps
from llorch.validate.ladder.dumps import Dump
from llorch.validate.ladder.network import Float64, Specified
from llorch.validate.ladder.sources import Model


def made(folder, name, switch="plain", dtype="float32", seed=0):
    """A random model in Hugging Face's format, and its float32 tensors."""
    case = CASES[name]
    tensors = random_tensors(case.family, case.config(switch), seed)
    return load(save(folder, case.with_switch(switch), cast(tensors, dtype), case.prefix)), tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: made(folder / name, name)[0] for name in PLAIN}


def ids_of(length, seed=0):
    return rng(11, seed, length).integers(0, SMALL["vocab_size"], length)


def in_chunks(model, ids, lengths):
    cache, parts, first = model.new_cache(), [], 0
    for length in lengths:
        parts.append(model.forward(ids[first : first + length], cache))
        first += length
    assert first == len(ids) == cache.length
    return np.concatenate(parts)


# ---- the oracle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "switch"), EVERY)
def test_oracle_with_each_switch(tmp_path, models, name, switch):
    """Past every window; and a switch that were ignored by both would give the bits of the model without it."""
    model = models[name] if switch == "plain" else made(tmp_path / "m", name, switch)[0]
    ids = ids_of(21)
    wanted = by_reference(model, ids)
    for isa in llorch.available_isas():
        with use_isa(isa):
            assert_same_bits(model.forward(ids), wanted, isa)
    if switch != "plain":
        assert not same_bits(models[name].forward(ids), wanted)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_oracle_of_16_bits(tmp_path, name, dtype):
    model, tensors = made(tmp_path / "m", name, dtype=dtype)
    ids = ids_of(15)
    assert model.dtype == dtype
    assert_same_bits(model.forward(ids), by_reference(model, ids))
    case = CASES[name]  # the same from a wider file that is rounded when it is loaded
    wide = save(tmp_path / "wide", case.entries, tensors, case.prefix)
    assert_same_bits(llorch.CausalLM.from_pretrained(wide, dtype=dtype).forward(ids), model.forward(ids))


@pytest.mark.parametrize("name", PLAIN)
def test_oracle_past_a_block(models, name):
    """More than 128 positions, so that attention has a second block; also with the cache, token by token."""
    ids = ids_of(131)
    wanted = by_reference(models[name], ids)
    assert_same_bits(models[name].forward(ids), wanted)
    assert_same_bits(in_chunks(models[name], ids, [1] * 131), wanted)


# ---- every way to cut the work -------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_chunks_and_batches(models, name):
    model, ids = models[name], ids_of(40)
    at_once = model.forward(ids)
    for lengths in ([1, 39], [6, 1, 1, 32], [20, 20]):
        assert_same_bits(in_chunks(model, ids, lengths), at_once)
    others = [ids_of(length, seed=1) for length in (3, 55, 17)]
    caches = [model.new_cache() for _ in range(4)]
    got = model.step([others[0], ids, *others[1:]], caches)
    assert_same_bits(got[1], at_once[-1])
    assert_same_bits(got[0], model.forward(others[0])[-1])
    more = model.step([[1], [2], [3], [4]], caches)
    assert_same_bits(more[1], model.forward([*ids, 2])[-1])


@pytest.mark.parametrize("name", PLAIN)
def test_threads_and_instruction_sets(models, name):
    ids = ids_of(40)
    wanted = models[name].forward(ids)
    for isa in llorch.available_isas():
        for threads in (1, 2, 5):
            with use_isa(isa), num_threads(threads):
                assert_same_bits(models[name].forward(ids), wanted, f"{isa}, {threads} threads")


@pytest.mark.parametrize("name", PLAIN)
def test_another_token_is_seen_up_to_the_window(models, name):
    """Negative control of the above; of one layer with a window, what stands behind it doesn't see the token."""
    ids = ids_of(30)
    changed = ids.copy()
    changed[7] = (changed[7] + 1) % SMALL["vocab_size"]
    a, b = models[name].forward(ids), models[name].forward(changed)
    assert_same_bits(a[:7], b[:7])
    assert not any(same_bits(a[i], b[i]) for i in range(7, 13))


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "starcoder2"])
def test_a_window_ends(tmp_path, name):
    case = CASES[name]
    entries = case.entries | {"num_hidden_layers": 1, "sliding_window": 5}
    tensors = random_tensors(case.family, case.family.config(entries))
    model = load(save(tmp_path / "m", entries, tensors, case.prefix))
    ids = ids_of(12)
    changed = ids.copy()
    changed[3] = (changed[3] + 1) % SMALL["vocab_size"]
    a, b = model.forward(ids), model.forward(changed)
    assert [same_bits(a[i], b[i]) for i in range(12)] == [True] * 3 + [False] * 5 + [True] * 4


@pytest.mark.parametrize("name", PLAIN)
def test_trace_is_the_graph(models, name):
    """Unfused, every step is there by its name and shape, and the logits have the bits of the fused plan."""
    model, ids, seen = models[name], ids_of(9), {}
    logits = model.forward(ids, trace=lambda key, values: seen.__setitem__(key, values.copy()))
    assert_same_bits(logits, model.forward(ids))
    for layer, steps in enumerate(model.graph.blocks):
        for step in steps:
            if step.op != "scores":
                key = f"h.{layer}.{step.name}" if step.name else f"h.{layer}"
                assert seen[key].shape == model.graph.shape(step.axes, 9), key


# ---- the ladder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_the_ladder_holds(models, name):
    ids = ids_of(12).tolist()
    found = validate.run_ladder(models[name].path, ids=ids, peer=False)
    assert found.holds
    network = Model(models[name].path).network
    wanted = by_reference(models[name], ids)
    assert_same_bits(network.run(ids, Specified())["logits"], wanted)
    assert 0 < np.abs(network.run(ids, Float64())["logits"] - wanted).max() < 1e-4 * wanted.std()


@pytest.mark.parametrize("name", PLAIN)
def test_transformers_stands_beside_the_ladder(models, name):
    pytest.importorskip("transformers", exc_type=ImportError)
    found = validate.run_ladder(models[name].path, ids=ids_of(12).tolist())
    assert found.holds and found.missing == ""
    absent = {result.tensor.kind for result in found.tensors if result.peer.status != "ok"}
    assert absent == ({"branches"} if name == "gpt_neox" else set())  # a sum that no module of theirs makes


def test_a_dump_of_a_neox_may_have_heads_side_by_side(models):
    """What its fused layer makes lies as the file's rows do, or all queries first: both are read, a wrong one isn't."""
    network, ids = Model(models["gpt_neox"].path).network, ids_of(9).tolist()
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


# ---- GGUF ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "switch"), SAID_BY_GGUF)
def test_gguf_has_the_bits_of_safetensors(tmp_path, name, switch):
    pytest.importorskip("gguf")
    case, config = CASES[name], CASES[name].config(switch)
    folder, tensors = made(tmp_path / "m", name, switch)
    architecture = case.family.architectures[0]
    path = write_gguf(tmp_path / "m.gguf", case.family, config, tensors, architecture, metadata(name, config))
    ids = ids_of(21)
    file = load(path)
    assert_same_bits(file.forward(ids), folder.forward(ids))
    if switch == "plain":
        assert validate.run_ladder(path, ids=ids[:9].tolist(), peer=False).holds


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt_neox"])
def test_gguf_blocks_have_the_bits_of_their_values(tmp_path, name):
    """The embedding's blocks are float32 values: so is the factor's type."""
    gguf = pytest.importorskip("gguf")
    case, kind, values = CASES[name], gguf.GGMLQuantizationType.Q8_0, {}
    entries = case.entries | {"hidden_size": 96, "intermediate_size": 64}
    config = case.family.config(entries)
    tensors = random_tensors(case.family, config)

    def quantise(key, array):
        if array.ndim == 1:
            return array, None
        blocks = gguf.quants.quantize(array, kind)
        values[key] = gguf.quants.dequantize(blocks, kind)
        return blocks, kind

    architecture = case.family.architectures[0]
    path = write_gguf(tmp_path / "q", case.family, config, tensors, architecture, metadata(name, config), quantise)
    for key in values:
        if "query_key_value" in key:  # rows of values as Hugging Face has them
            values[key] = values[key].reshape(3, 6, 16, -1).swapaxes(0, 1).reshape(values[key].shape)
    found = {key: np.ascontiguousarray(array) for key, array in (tensors | values).items()}
    ids = ids_of(15)
    assert_same_bits(load(path).forward(ids), load(save(tmp_path / "m", entries, found, case.prefix)).forward(ids))


@pytest.mark.parametrize(("name", "part"), [("gemma2", "norm"), ("gemma3", "q_norm"), ("gpt_neox", "query_key_value")])
def test_what_gguf_lays_out_otherwise_matters(tmp_path, name, part):
    """Negative control: norms without the 1, or rows as Hugging Face has them, give other logits."""
    pytest.importorskip("gguf")
    case, config = CASES[name], CASES[name].config()
    tensors = random_tensors(case.family, config)
    key = next(key for key in tensors if part in key and key.endswith(".weight"))
    wrong = tensors[key] - np.float32(1)
    if part == "query_key_value":
        wrong = tensors[key].reshape(3, 6, 8, 48).swapaxes(0, 1).reshape(144, 48)  # what writing turns back
    ids, logits = ids_of(15), []
    for i, changed in enumerate(({}, {key: wrong})):
        path = tmp_path / f"{i}.gguf"
        architecture = case.family.architectures[0]
        write_gguf(path, case.family, config, tensors | changed, architecture, metadata(name, config))
        logits.append(load(path).forward(ids))
    assert not same_bits(*logits)


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


# ---- parts that a switch doesn't show ------------------------------------------------------------------


def test_the_parts_of_a_gemma_tell(models):
    """Negative controls: the oracle without the 1 of a norm, with all layers alike, without the factor of the embedding
    or with one base for all layers has other bits."""
    ids = ids_of(21)
    for name, text in (("gemma2", reference.Gemma2), ("gemma3", reference.Gemma3)):
        config, tensors, wanted = models[name].config, tensors_of(models[name]), models[name].forward(ids)
        assert_same_bits(text(config, tensors).forward(ids), wanted)
        one = "layers.1.post_feedforward_layernorm.weight"
        assert not same_bits(text(config, tensors | {one: tensors[one] - np.float32(1)}).forward(ids), wanted)
        plain = text(config, tensors)
        plain.factor = np.float32(1)
        assert not same_bits(plain.forward(ids), wanted)
    again = type(config).from_dict(CASES["gemma3"].entries | {"rope_local_base_freq": config.rope_theta})
    assert not same_bits(reference.Gemma3(again, tensors).forward(ids), wanted)


def test_the_factor_has_the_type_of_the_embedding(tmp_path):
    """sqrt(48) is 6.928...: 6.9375 in bfloat16. The same numbers in float32 are multiplied by another."""
    narrow, _ = made(tmp_path / "narrow", "gemma2", dtype="bfloat16")
    exact = {name: reference.widen(values) for name, values in tensors_of(narrow).items()}
    wide = load(save(tmp_path / "wide", CASES["gemma2"].entries, exact))
    found = {}
    for model in (narrow, wide):
        model.forward([5], trace=lambda name, values, m=model: found.setdefault((m.dtype, name), values.copy()))
    row = exact["embed_tokens.weight"][5:6]
    assert_same_bits(found["bfloat16", "embed"], row * np.float32(6.9375))
    assert_same_bits(found["float32", "embed"], row * np.float32(48**0.5))


# ---- configurations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types must be a list of 3"),
        (
            "gemma2",
            {"layer_types": ["full_attention", "chunked_attention", "x"]},
            "layer_types has 'chunked_attention'",
        ),
        (
            "gemma2",
            {"sliding_window": None},
            r"layer_types has sliding_attention, but sliding_window .* says no window",
        ),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0, it must be positive"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0, it must be null or"),
        ("gemma2", {"hidden_activation": "mish"}, "hidden_activation is 'mish'"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0: llorch's Gemma 3"),
        ("gemma3", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("gemma3", {"rope_parameters": {"rope_theta": 3.0}}, "rope_parameters has 'rope_theta'"),
        ("gemma3", {"rope_local_base_freq": 0.0}, "rope_local_base_freq is 0.0"),
        ("gemma3", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ("gpt_neox", {"rotary_pct": 0.4}, "partial_rotary_factor 0.4: 3 values, it must be even"),
        ("gpt_neox", {"num_key_value_heads": 2}, "num_key_value_heads is 2: llorch's GPT-NeoX"),
        ("starcoder2", {"sliding_window": 0}, "sliding_window is 0"),
        ("olmo2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ],
)
def test_what_isnt_supported_is_refused_by_name(name, entries, message):
    with pytest.raises((ValueError, TypeError), match=message):
        CASES[name].family.config(CASES[name].entries | entries)


@pytest.mark.parametrize(("name", "switch"), EVERY)
def test_a_configuration_can_be_written_and_read(name, switch):
    """As a dump does it, whose ladder is then read from it."""
    config = CASES[name].config(switch)
    assert CASES[name].family.config(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_windows_of_an_olmo2_file_are_refused():
    config = CASES["olmo2"].config()
    found = {"general.architecture": "olmo2", "olmo2.attention.sliding_window": 9} | metadata("olmo2", config)
    with pytest.raises(ValueError, match=r"olmo2.attention.sliding_window is 9: llorch's OLMo 2 has no windows"):
        CASES["olmo2"].family.config_of_gguf(found, {"token_embd.weight": (67, 48)})


def test_names_of_a_neox_head(tmp_path):
    """embed_out, as files have it, and lm_head, as transformers calls it since version 5."""
    case, ids = CASES["gpt_neox"], ids_of(9)
    model, tensors = made(tmp_path / "a", "gpt_neox")
    from safetensors.numpy import load_file, save_file

    folder = save(tmp_path / "b", case.entries, tensors, case.prefix)
    found = load_file(folder / "model.safetensors")
    found["embed_out.weight"] = found.pop("lm_head.weight")
    save_file(found, folder / "model.safetensors")
    assert_same_bits(load(folder).forward(ids), model.forward(ids))
    save_file(found | {"lm_head.weight": found["embed_out.weight"]}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head.weight is there twice"):
        load(folder)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_of_a_gemma3_of_text_and_images(tmp_path, prefix):
    """Its configuration lies within, its names have a prefix, and what is for images is left out and said once."""
    case, ids = CASES["gemma3"], ids_of(15)
    model, tensors = made(tmp_path / "text", "gemma3")
    entries = {
        "model_type": "gemma3",
        "text_config": case.entries | {"eos_token_id": 1},
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
    from safetensors.numpy import load_file, save_file

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


# ---- transformers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        ("gemma2", "plain"),
        ("gemma2", "~scalar"),
        ("gemma2", "~layers"),
        ("gemma3", "plain"),
        ("gemma3", "transformers 5"),
        ("gemma3", "cap of the logits"),
        ("olmo2", "plain"),
        ("olmo2", "biases"),
        ("gpt_neox", "plain"),
        ("gpt_neox", "one after the other"),
        ("gpt_neox", "tied"),
        ("starcoder2", "plain"),
        ("starcoder2", "no window"),
    ],
)
def test_transformers(tmp_path, name, switch):
    """Made, saved and run by transformers, loaded here: within 2e-5 of the logits' standard deviation."""
    wanted, model, ids = beside_transformers(tmp_path, name, switch)
    assert np.abs(model.forward(ids) - wanted).max() <= 2e-5 * wanted.std()


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_transformers_in_bfloat16(tmp_path, name):
    """The factor of the embedding is rounded as transformers rounds it when it loads such a file."""
    wanted, model, ids = beside_transformers(tmp_path, name, "plain", "bfloat16")
    assert model.dtype == "bfloat16"
    assert np.abs(model.forward(ids) - wanted).max() <= 2e-5 * wanted.std()


@pytest.mark.parametrize("name", PLAIN)
def test_transformers_greedy_tokens(tmp_path, name):
    """64 tokens, up to where its two largest logits are nearer than 1e-4."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    _, model, ids = beside_transformers(tmp_path, name, "plain")
    theirs = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", attn_implementation="eager"
    )
    ids, ours, cache = ids[:5].tolist(), [], model.new_cache()
    while len(ours) < 64:
        ours.append(int(llorch.argmax(model.step([ours[-1:] or ids], [cache])[0])))
    with torch.no_grad():
        logits = theirs.float().eval()(torch.tensor([ids + ours])).logits[0].numpy()[4:-1]
    for token, row in zip(ours, logits, strict=True):
        assert token == row.argmax() or np.diff(np.sort(row)[-2:])[0] < 1e-4
        if token != row.argmax():
            break


def beside_transformers(folder, name, switch, dtype="float32"):
    """40 positions' logits by transformers, a model of the same file here, the ids."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    entries = {k: v for k, v in CASES[name].with_switch(switch).items() if k != "model_type"}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(CASES[name].entries["model_type"], **entries, initializer_range=0.2)
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, values in theirs.named_parameters():
            if "norm" in key or key.endswith("bias"):
                values += 0.2 * torch.randn(values.shape)
    theirs.to(getattr(torch, dtype)).save_pretrained(folder / "model")
    theirs = type(theirs).from_pretrained(folder / "model", attn_implementation="eager").float().eval()
    model, ids = load(folder / "model"), ids_of(40)
    with torch.no_grad():
        return theirs(torch.tensor(ids[None])).logits[0].numpy(), model, ids


def test_transformers_gemma3_of_text_and_images(tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    text = {k: v for k, v in CASES["gemma3"].entries.items() if k != "model_type"}
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
