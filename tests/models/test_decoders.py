"""Every decoder of tests/families.py: its text, every way to cut the work, its files, transformers."""

import dataclasses
import json

import numpy as np
import pytest
from families import ALL, CASES, GGUF, GRAPHS, TINY, by_text, entries_of, family_of, made, write, write_file
from helpers import assert_same_bits, not_greedy, num_threads, rng, same_bits
from random_models import decoder_metadata

import llorch
from llorch import reference, validate
from llorch.models import decoder
from llorch.models.parts import Attention, Block, Gated, Norm
from llorch.testing import use_isa
from llorch.validate.ladder.names import Names, canonical

LENGTH = 24  # past every window and original context that the cases have, but phi3's "short" and "partly long"


def ids_of(length=LENGTH, seed=0):
    return rng(15, seed, length).integers(0, 67, length)


@pytest.fixture(scope="module", params=GRAPHS, ids="-".join)
def tiny(request, tmp_path_factory):
    return request.param, write(tmp_path_factory.mktemp("tiny") / "model", *request.param)


@pytest.mark.parametrize(("name", "switch"), ALL)
def test_the_engine_has_the_texts_bits(tmp_path, name, switch):
    """With every switch, on every instruction set, by one thread and two."""
    model, ids = write(tmp_path / "model", name, switch), ids_of()
    wanted = by_text(name, switch, ids)
    for isa in llorch.available_isas():
        for threads in (1, 2):
            with use_isa(isa), num_threads(threads):
                assert_same_bits(model.forward(ids), wanted, f"{isa}, {threads} threads")


@pytest.mark.parametrize("name", CASES)
def test_each_switch_changes_something(name):
    """Negative control: a switch that were ignored would pass if engine and text both ignored it."""
    ids = ids_of()
    plain = by_text(name, "plain", ids)
    for switch in CASES[name].switches:
        assert np.abs(by_text(name, switch, ids) - plain).max() > 1e-4, switch


@pytest.mark.parametrize("name", CASES)
def test_what_is_changed_is_seen(tmp_path, name):
    """Negative control: another window or another rotation, and norms whose weights are exchanged, on the same
    tensors."""
    ids, case, (_, _, tensors) = ids_of(), CASES[name], made(name)
    plain = write(tmp_path / "plain", name).forward(ids)
    for control, entries in case.controls.items():
        assert not same_bits(write(tmp_path / control, name, entries=entries).forward(ids), plain), control
    for norm in case.norms:
        changed = {key: value[::-1].copy() if key.endswith(norm) else value for key, value in tensors.items()}
        assert any(key.endswith(norm) for key in tensors)
        assert not same_bits(write(tmp_path / norm, name, tensors=changed).forward(ids), plain), norm


def test_chunks_and_steps(tiny):
    _, model = tiny
    ids = ids_of(40)
    wanted = model.forward(ids)
    for lengths in ([1] * 40, [7, 1, 20, 12], [39, 1]):
        cache, first = model.new_cache(), 0
        for length in lengths:
            got = model.forward(ids[first : first + length], cache)
            assert_same_bits(got, wanted[first : first + length], f"{lengths} at {first}")
            first += length


def test_past_a_block_of_the_cache(tiny):
    """More than 128 positions, so that attention has a second block and a window begins inside one."""
    made_as, model = tiny
    ids = ids_of(133)
    wanted = by_text(*made_as, ids)
    assert_same_bits(model.forward(ids), wanted)
    cache = model.new_cache()
    model.forward(ids[:126], cache)
    for i in range(126, 133):
        assert_same_bits(model.forward(ids[i : i + 1], cache), wanted[i : i + 1])


def test_a_batch_of_several_lengths(tiny):
    _, model = tiny
    texts = [ids_of(length, seed=length) for length in (3, 40, 1, 17)]
    caches = [model.new_cache() for _ in texts]
    got = model.step(texts, caches)
    for row, ids in zip(got, texts, strict=True):
        assert_same_bits(row, model.forward(ids)[-1])
    got = model.step([[i] for i in range(4)], caches)
    for i, ids in enumerate(texts):
        assert_same_bits(got[i], model.forward([*ids, i])[-1])


@pytest.mark.parametrize(("name", "switch"), GGUF)
def test_gguf_has_the_bits_of_safetensors(tmp_path, name, switch):
    folder, ids = write(tmp_path / "model", name, switch), ids_of()
    file = write_file(tmp_path / "model.gguf", name, switch)
    assert_same_bits(file.forward(ids), folder.forward(ids))


@pytest.mark.parametrize("name", CASES)
def test_gguf_blocks_have_the_bits_of_their_values(tmp_path, name):
    """Also where one weight is queries, keys and values, or gate and up."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0

    def quantise(key, values):
        return (gguf.quants.quantize(values, kind), kind) if values.ndim > 1 else (values, None)

    file = write_file(tmp_path / "m.gguf", name, "wide", quantise=quantise)
    _, _, tensors = made(name, "wide")
    values = {
        key: gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind) if value.ndim > 1 else value
        for key, value in tensors.items()
    }
    ids = ids_of()
    assert_same_bits(file.forward(ids), write(tmp_path / "values", name, "wide", tensors=values).forward(ids))
    assert not same_bits(file.forward(ids), write(tmp_path / "raw", name, "wide").forward(ids))


@pytest.mark.parametrize("name", CASES)
def test_whose_queries_and_keys_gguf_has_interleaved(name):
    """llama.cpp's converter permutes those of its Llama, and of what is derived from it. Files that the tests write and
    llorch reads in the same wrong order would agree."""
    family, config, _ = made(name)
    found = {p.name: p.interleaved for p in family.graph(config).block_parameters if p.interleaved}
    permuted = {"self_attn.q_proj.weight": "H", "self_attn.k_proj.weight": "G"}
    assert found == (permuted if name in ("mistral", "smollm3", "granite") else {})


@pytest.mark.parametrize("name", CASES)
def test_gguf_names_are_the_packages(name):
    """Every tensor's name is one that gguf has for the architecture."""
    gguf = pytest.importorskip("gguf")
    case, (family, config, _) = CASES[name], made(name)
    arch = next(arch for arch, label in gguf.MODEL_ARCH_NAMES.items() if label == case.architecture)
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    for _, theirs, _ in family.graph(config).all_parameters():
        part = theirs.rpartition(".")[0]
        assert part in known or ".".join(["blk", "{bid}", *part.split(".")[2:]]) in known, theirs


def test_the_ladder_holds(tiny):
    _, model = tiny
    found = validate.run_ladder(model.path, ids=ids_of(9).tolist(), peer=False)
    assert found.holds


@pytest.mark.parametrize(("name", "switch"), ALL)
def test_transformers(tmp_path, name, switch):
    """Made, saved and run by transformers, loaded here: within 2e-5 of the logits' standard deviation."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    entries = entries_of(name, switch)
    kind = entries.pop("model_type")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **entries, initializer_range=0.2)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases that show
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path / "model")
    model = llorch.CausalLM.from_pretrained(tmp_path / "model")
    ids = ids_of(40)
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids[None])).logits[0].numpy()
        assert np.abs(model.forward(ids) - wanted).max() <= 2e-5 * wanted.std()
        prompt = ids_of(17).tolist()  # past the original context of longrope, where transformers takes the other list
        text = [*prompt, *model.generate(prompt, 64)]
        rows = theirs(torch.tensor([text])).logits[0].numpy()
    assert not_greedy(rows, text, 17) == []


def test_the_ladder_stands_beside_transformers(tiny):
    pytest.importorskip("torch", exc_type=ImportError)
    pytest.importorskip("transformers", exc_type=ImportError)
    found = validate.run_ladder(tiny[1].path, ids=ids_of(20).tolist())
    assert found.holds and found.missing == ""


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window is 0, it must be at least 1"),
        ("mistral", {"layer_types": ["sliding_attention"] * 3}, "layer_types is .*: llorch's Mistral"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types must be a list of 3, one for each layer"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3}, "layer_types has 'chunked_attention', llorch has"),
        ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3}, "says no window"),
        ("qwen2", {"eos_token_id": -1}, "eos_token_id is -1, a token's id can't be negative"),
        ("qwen2", {"eos_token_id": [2, -5]}, "eos_token_id is -5, a token's id can't be negative"),
        ("qwen3", {"head_dim": 7}, "head_dim is 7, it must be even"),
        ("qwen3", {"use_sliding_window": 1}, "use_sliding_window must be true or false"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers is .* for each of the 4 layers"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
        ("phi3", {"partial_rotary_factor": 0.1}, "head_dim is 8 and partial_rotary_factor 0.1: 0 values"),
        ("phi3", {"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear', Phi-3 has longrope alone"),
        ("phi3", {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "rotations"),
        ("granite", {"logits_scaling": 0.0}, "logits_scaling is 0.0, it must be positive"),
        ("granite", {"residual_multiplier": -0.5}, "residual_multiplier is -0.5, it must be finite in float32 and not"),
        ("granite", {"attention_multiplier": "1"}, "attention_multiplier must be a number, got str"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm is True: llorch's StableLM doesn't support it"),
        ("stablelm", {"head_dim": 12}, "head_dim is 12, it must be hidden_size / num_attention_heads, 48 / 6"),
    ],
)
def test_what_isnt_supported_is_refused_by_name(tmp_path, name, entries, message):
    with pytest.raises((ValueError, TypeError), match=message):
        write(tmp_path / "model", name, entries=entries)


@pytest.mark.parametrize("name", ["llama", "qwen2", "smollm3"])
def test_a_window_or_a_scale_in_gguf_where_the_family_has_no_word_for_it(name):
    family = family_of(name)
    metadata = {"general.architecture": name, **decoder_metadata(family.config(TINY), name)}
    shapes = {"token_embd.weight": (67, 48)}
    assert family.config_of_gguf(metadata, shapes).vocab_size == 67
    with pytest.raises(ValueError, match=rf"{name}.attention.sliding_window is 9: llorch's .* has 0"):
        family.config_of_gguf(metadata | {f"{name}.attention.sliding_window": 9}, shapes)
    for scale in (0.0, float(np.float32(8**-0.5))):
        assert family.config_of_gguf(metadata | {f"{name}.attention.scale": scale}, shapes).width_of_head == 8
    with pytest.raises(ValueError, match=rf"{name}.attention.scale is 0.25: llorch's .* has 0.353553"):
        family.config_of_gguf(metadata | {f"{name}.attention.scale": 0.25}, shapes)


def test_a_granites_logits_are_divided(tmp_path):
    """Negative control: multiplied by 1 / logits_scaling, some have other bits."""
    _, config, tensors = made("granite")

    class Multiplied(reference.Granite):
        def head(self, x):
            return super(reference.Granite, self).head(x) * (np.float32(1) / np.float32(config.logits_scaling))

    logits = write(tmp_path / "m", "granite").forward(ids_of())
    assert np.abs(Multiplied(config, tensors).forward(ids_of()) - logits).max() < 1e-6
    assert not same_bits(Multiplied(config, tensors).forward(ids_of()), logits)


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


@pytest.mark.parametrize(("name", "switch"), ALL)
def test_a_configuration_can_be_written_and_read(name, switch):
    """As a dump does it, whose ladder is then read from it."""
    family, config, _ = made(name, switch)
    assert family.config(json.loads(json.dumps(dataclasses.asdict(config)))) == config


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
