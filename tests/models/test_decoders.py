"""Every decoder of tests/families.py: its text, every way to cut the work, its files, transformers."""

import dataclasses
import json

import numpy as np
import pytest
from families import (
    ALL,
    BESIDE,
    CASES,
    GGUF,
    GRAPHS,
    GROUPED,
    LONG,
    TINY,
    by_text,
    entries_of,
    family_of,
    ids_of,
    made,
    write,
    write_file,
)
from gpt2_models import cast
from helpers import assert_same_bits, not_greedy, num_threads, same_bits
from random_models import by_reference, decoder_metadata, random_tensors

import llorch
from llorch import validate
from llorch.models import registry
from llorch.receipts import digests
from llorch.testing import use_isa
from llorch.validate.ladder.network import Float64, Kernels, Specified
from llorch.validate.ladder.sources import Model


@pytest.fixture(scope="module", params=GRAPHS, ids="-".join)
def tiny(request, tmp_path_factory):
    return request.param, write(tmp_path_factory.mktemp("tiny") / "model", *request.param)


def test_every_decoder_is_here():
    """But GPT-2 and Llama, which have files of their own."""
    decoders = {family.name for family in registry.families() if family.kind == "decoder"}
    assert {family_of(name).name for name in CASES} == decoders - {"GPT-2", "Llama"}


# ---- the text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "switch"), ALL)
def test_the_engine_has_the_texts_bits(tmp_path, name, switch):
    """With every switch, on every instruction set, by one thread and two. Negative control: a switch changes something;
    one that were ignored would pass if engine and text both ignored it."""
    model, ids, wanted = write(tmp_path / "model", name, switch), ids_of(), by_text(name, switch)
    for isa in llorch.available_isas():
        for threads in (1, 2):
            with use_isa(isa), num_threads(threads):
                assert_same_bits(model.forward(ids), wanted, f"{isa}, {threads} threads")
    if switch != "plain":
        assert np.abs(wanted - by_text(name)).max() > 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_the_engine_has_the_texts_bits_in_16_bits(tmp_path, name, dtype):
    """The file's, and those of a wider file that is rounded when it is loaded."""
    _, _, tensors = made(name)
    model, ids = write(tmp_path / "m", name, tensors=cast(tensors, dtype)), ids_of(15)
    assert model.dtype == dtype
    assert_same_bits(model.forward(ids), by_reference(model, ids))
    assert_same_bits(write(tmp_path / "wide", name, dtype=dtype).forward(ids), model.forward(ids))


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


# ---- every way to cut the work -------------------------------------------------------------------------


def test_threads_and_instruction_sets(tiny):
    made_as, model = tiny
    ids, wanted = ids_of(40), by_text(*made_as, 40)
    for isa in llorch.available_isas():
        for threads in (1, 2, 5):
            with use_isa(isa), num_threads(threads):
                assert_same_bits(model.forward(ids), wanted, f"{isa}, {threads} threads")


def test_chunks_and_steps(tiny):
    _, model = tiny
    ids = ids_of(40)
    wanted = model.forward(ids)
    for lengths in ([1] * 40, [7, 1, 20, 12], [1, 39], [39, 1], [20, 20], [6, 1, 1, 32]):
        cache, first = model.new_cache(), 0
        for length in lengths:
            got = model.forward(ids[first : first + length], cache)
            assert_same_bits(got, wanted[first : first + length], f"{lengths} at {first}")
            first += length
        assert first == cache.length == 40


def test_past_a_block_of_the_cache(tiny):
    """More than 128 positions, so that attention has a second block and a window begins inside one."""
    made_as, model = tiny
    ids, wanted = ids_of(LONG), by_text(*made_as, LONG)
    assert_same_bits(model.forward(ids), wanted)
    for first in (0, 126):
        cache = model.new_cache()
        if first:
            model.forward(ids[:first], cache)
        for i in range(first, LONG):
            assert_same_bits(model.forward(ids[i : i + 1], cache), wanted[i : i + 1])


def test_a_batch_of_several_lengths(tiny):
    _, model = tiny
    texts = [ids_of(length, seed=length) for length in (3, 40, 1, 17, 55)]
    caches = [model.new_cache() for _ in texts]
    got = model.step(texts, caches)
    for row, ids in zip(got, texts, strict=True):
        assert_same_bits(row, model.forward(ids)[-1])
    got = model.step([[i] for i in range(5)], caches)
    for i, ids in enumerate(texts):
        assert_same_bits(got[i], model.forward([*ids, i])[-1])


def test_another_token_is_seen(tiny):
    """Negative control of the above: by what comes after it, and by nothing before."""
    _, model = tiny
    ids = ids_of(30)
    changed = ids.copy()
    changed[7] = (changed[7] + 1) % TINY["vocab_size"]
    a, b = model.forward(ids), model.forward(changed)
    assert_same_bits(a[:7], b[:7])
    assert not any(same_bits(a[i], b[i]) for i in range(7, 13))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.window])
def test_a_window_ends(tmp_path, name):
    """Of one layer with a window of five, what stands behind it doesn't see the token."""
    entries, family = CASES[name].window, family_of(name)
    tensors = random_tensors(family, family.config(entries_of(name) | entries))
    model = write(tmp_path / "m", name, entries=entries, tensors=tensors)
    ids = ids_of(12)
    changed = ids.copy()
    changed[3] = (changed[3] + 1) % TINY["vocab_size"]
    a, b = model.forward(ids), model.forward(changed)
    assert [same_bits(a[i], b[i]) for i in range(12)] == [True] * 3 + [False] * 5 + [True] * 4


def test_trace_is_the_graph(tiny):
    """Unfused, every step is there by its name and shape, and the logits have the bits of the fused plan."""
    _, model = tiny
    ids, seen = ids_of(9), {}
    logits = model.forward(ids, trace=lambda key, values: seen.__setitem__(key, values.copy()))
    assert_same_bits(logits, model.forward(ids))
    for layer, steps in enumerate(model.graph.blocks):
        for step in steps:
            if step.op != "scores":
                key = f"h.{layer}.{step.name}" if step.name else f"h.{layer}"
                assert seen[key].shape == model.graph.shape(step.axes, 9), key


# ---- GGUF ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "switch"), GGUF)
def test_gguf_has_the_bits_of_safetensors(tmp_path, name, switch):
    pytest.importorskip("gguf")
    folder, ids = write(tmp_path / "model", name, switch), ids_of()
    file = write_file(tmp_path / "model.gguf", name, switch)
    assert_same_bits(file.forward(ids), folder.forward(ids))
    assert digests.tensors(file) == digests.tensors(folder)
    assert digests.graph(file.graph, file.config.context) == digests.graph(folder.graph, folder.config.context)
    if switch == CASES[name].said[0]:
        assert validate.run_ladder(file.path, ids=ids[:9].tolist(), peer=False).holds


@pytest.mark.parametrize("name", CASES)
def test_gguf_blocks_have_the_bits_of_their_values(tmp_path, name):
    """Also where one weight is queries, keys and values, or gate and up; and by 16-bit integers those of the graph."""
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
    integers = llorch.CausalLM.from_pretrained(file.path, compute="int16").forward(ids)
    assert_same_bits(integers, Model(file.path, "int16").network.run(ids, Kernels())["logits"])
    assert not same_bits(integers, file.forward(ids))


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
    family, config, tensors = made(name)
    arch = next(arch for arch, label in gguf.MODEL_ARCH_NAMES.items() if label == family.architectures[0])
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    names = {ours: theirs for ours, theirs, _ in family.graph(config).all_parameters()}
    for theirs in map(names.get, tensors):
        part = theirs.rpartition(".")[0]
        assert part in known or ".".join(["blk", "{bid}", *part.split(".")[2:]]) in known, theirs


# ---- the ladder and transformers -----------------------------------------------------------------------


def test_the_ladder_holds(tiny):
    """With transformers beside it where that is there."""
    (name, switch), model = tiny
    found = validate.run_ladder(model.path, ids=ids_of(20).tolist())
    assert found.holds
    network, ids, wanted = Model(model.path).network, ids_of(12), by_text(name, switch, 12)
    assert_same_bits(network.run(ids, Specified())["logits"], wanted)
    assert 0 < np.abs(network.run(ids, Float64())["logits"] - wanted).max() < 1e-4 * wanted.std()
    if found.missing:
        pytest.skip(found.missing)
    absent = {result.tensor.kind for result in found.tensors if result.peer.status != "ok"}
    assert absent == set(CASES[name].unseen.get(switch, ()))


def beside_transformers(folder, name, switch, dtype="float32"):
    """A model that transformers makes and saves, theirs and ours of that file."""
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
    theirs.to(getattr(torch, dtype)).save_pretrained(folder / "model")
    if dtype != "float32":  # what isn't a parameter is of the file's type only where it is loaded from it
        theirs = type(theirs).from_pretrained(folder / "model", attn_implementation="eager").float().eval()
    return torch, theirs, llorch.CausalLM.from_pretrained(folder / "model")


@pytest.mark.parametrize(("name", "switch"), BESIDE)
def test_transformers(tmp_path, name, switch):
    """Logits within 2e-5 of their standard deviation; then 64 greedy tokens, where its two largest logits aren't nearer
    than 1e-4."""
    torch, theirs, model = beside_transformers(tmp_path, name, switch)
    ids = ids_of(40)
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids[None])).logits[0].numpy()
        assert np.abs(model.forward(ids) - wanted).max() <= 2e-5 * wanted.std()
        prompt = ids_of(17).tolist()  # past the original context of longrope, where transformers takes the other list
        text = [*prompt, *model.generate(prompt, 64)]
        rows = theirs(torch.tensor([text])).logits[0].numpy()
    assert not_greedy(rows, text, 17) == []


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_transformers_in_bfloat16(tmp_path, name):
    """The factor of the embedding is rounded as transformers rounds it when it loads such a file."""
    torch, theirs, model = beside_transformers(tmp_path, name, "plain", "bfloat16")
    assert model.dtype == "bfloat16"
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids_of(40)[None])).logits[0].numpy()
    assert np.abs(model.forward(ids_of(40)) - wanted).max() <= 2e-5 * wanted.std()


# ---- configurations ------------------------------------------------------------------------------------


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
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types must be a list of 3"),
        (
            "gemma2",
            {"layer_types": ["chunked_attention", "full_attention", "x"]},
            "layer_types has 'chunked_attention'",
        ),
        ("gemma2", {"sliding_window": None}, "layer_types has sliding_attention, but sliding_window .* says no window"),
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
def test_what_isnt_supported_is_refused_by_name(tmp_path, name, entries, message):
    with pytest.raises((ValueError, TypeError), match=message):
        write(tmp_path / "model", name, entries=entries)


@pytest.mark.parametrize("name", ["llama", "qwen2", "smollm3"])
def test_a_window_or_a_scale_in_gguf_where_the_family_has_no_word_for_it(name):
    family = family_of(name)
    metadata = {"general.architecture": name, **decoder_metadata(family.config(TINY | GROUPED), name)}
    shapes = {"token_embd.weight": (67, 48)}
    assert family.config_of_gguf(metadata, shapes).vocab_size == 67
    with pytest.raises(ValueError, match=rf"{name}.attention.sliding_window is 9: llorch's .* has 0"):
        family.config_of_gguf(metadata | {f"{name}.attention.sliding_window": 9}, shapes)
    for scale in (0.0, float(np.float32(8**-0.5))):
        assert family.config_of_gguf(metadata | {f"{name}.attention.scale": scale}, shapes).width_of_head == 8
    with pytest.raises(ValueError, match=rf"{name}.attention.scale is 0.25: llorch's .* has 0.353553"):
        family.config_of_gguf(metadata | {f"{name}.attention.scale": 0.25}, shapes)


@pytest.mark.parametrize(("name", "switch"), ALL)
def test_a_configuration_can_be_written_and_read(name, switch):
    """As a dump does it, whose ladder is then read from it."""
    family, config, _ = made(name, switch)
    assert family.config(json.loads(json.dumps(dataclasses.asdict(config)))) == config
