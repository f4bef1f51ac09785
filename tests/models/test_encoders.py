"""Every encoder of tests/encoders.py: its text, batches of any sort, its files, its classifier, transformers."""

import dataclasses
import json
import re
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from encoders import (
    ALL,
    CASES,
    GGUF,
    LABELS,
    TINY,
    by_text,
    entries_of,
    family_of,
    made,
    save,
    write,
    write_classifier,
    write_file,
)
from helpers import assert_same_bits, minilm, num_threads, rng, same_bits

import llorch
from llorch import cli, reference, validate
from llorch.models import encoder_engine
from llorch.models.encoder_engine import Classifier, Encoder
from llorch.testing import use_isa

LENGTHS = (5, 24, 1, 133, 17)  # one is longer than a block of attention


def text_of(length, seed=0, types=2):
    """Ids and types of a text."""
    made = rng(16, seed, length)
    return made.integers(0, 67, length), made.integers(0, types, length)


def types_of(name, switch):
    return max(1, made(name, switch)[1].type_vocab_size)


@pytest.fixture(scope="module", params=CASES)
def tiny(request, tmp_path_factory):
    return request.param, write(tmp_path_factory.mktemp("tiny") / "model", request.param)


@pytest.mark.parametrize(("name", "switch"), ALL)
def test_the_engine_has_the_texts_bits(tmp_path, name, switch):
    """With every switch, on every instruction set, by one thread and two."""
    model = write(tmp_path / "model", name, switch)
    ids, types = text_of(24, types=types_of(name, switch))
    wanted = by_text(name, switch, ids, types)
    for isa in llorch.available_isas():
        for threads in (1, 2):
            with use_isa(isa), num_threads(threads):
                assert_same_bits(model.forward(ids, types), wanted, f"{isa}, {threads} threads")
    assert_same_bits(model.forward(ids), by_text(name, switch, ids))


def test_a_long_text(tiny):
    """More than 128 positions: attention has a second block."""
    name, model = tiny
    ids, types = text_of(150, types=types_of(name, "plain"))
    assert_same_bits(model.forward(ids, types), by_text(name, "plain", ids, types))


@pytest.mark.parametrize("name", CASES)
def test_each_switch_changes_something(name):
    """Negative control: a switch that were ignored would pass if engine and text both ignored it."""

    def got_of(switch):
        ids, types = text_of(24, types=types_of(name, switch))
        return by_text(name, switch, ids, types)

    plain = got_of("plain")
    for switch in CASES[name].switches:
        got = got_of(switch)
        assert got.shape != plain.shape or np.abs(got - plain).max() > 1e-3, switch


@pytest.mark.parametrize("name", CASES)
def test_what_is_changed_is_seen(tmp_path, name):
    """Negative controls on the same tensors: a causal mask, positions off by one, types exchanged, other entries."""
    tensors, (ids, types) = made(name)[2], text_of(24, types=types_of(name, "plain"))
    plain = write(tmp_path / "plain", name)
    right = plain.forward(ids, types)
    for control, entries in CASES[name].controls.items():
        assert not same_bits(write(tmp_path / control, name, entries=entries).forward(ids, types), right), control
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_engine.Engine, "_graph", classmethod(lambda cls, family, c: causal(family.graph(c))))
        assert not same_bits(write(tmp_path / "causal", name).forward(ids, types), right)
    places = "embeddings.position_embeddings.weight"
    if places in tensors:
        moved = tensors | {places: np.roll(tensors[places], 1, axis=0)}
        assert not same_bits(write(tmp_path / "moved", name, tensors=moved).forward(ids, types), right)
    else:
        assert not same_bits(plain.forward(ids[::-1], types[::-1])[::-1], right)
    if plain.types > 1:
        assert not same_bits(plain.forward(ids, 1 - types), right)


def test_a_bias_by_distance_is_seen(tmp_path):
    """Negative controls: another sign, other signs of the distance, other heads, buckets moved by one; none at all."""
    tensors, (ids, _) = made("mpnet")[2], text_of(140)
    right = write(tmp_path / "right", "mpnet").forward(ids)
    name = "encoder.relative_attention_bias.weight"
    table = tensors[name]
    for i, other in enumerate((-table, np.roll(table, 16, 0), table[:, ::-1], np.roll(table, 1, 0), table * 0)):
        changed = write(tmp_path / str(i), "mpnet", tensors=tensors | {name: np.ascontiguousarray(other)})
        assert not same_bits(changed.forward(ids), right), i
    far = table.copy()
    far[15] += 1  # of distances of 91 and more
    changed = write(tmp_path / "far", "mpnet", tensors=tensors | {name: far})
    assert_same_bits(changed.forward(ids[:91]), write(tmp_path / "near", "mpnet").forward(ids[:91]))
    assert not same_bits(changed.forward(ids[:92]), write(tmp_path / "past", "mpnet").forward(ids[:92]))


def causal(graph):
    """A graph whose queries see no later position."""

    def changed(step):
        if step.op != "scores":
            return step
        return dataclasses.replace(step, options={**step.options, "causal": True})

    return dataclasses.replace(graph, blocks=tuple(tuple(map(changed, steps)) for steps in graph.blocks))


def test_a_batch_in_any_order(tiny, monkeypatch):
    """A text alone has the bits that it has among others, wherever it stands, and in parts of any size."""
    name, model = tiny
    texts = [text_of(length, seed, types_of(name, "plain")) for seed, length in enumerate(LENGTHS)]
    alone = [model.forward(*text) for text in texts]
    for together in (encoder_engine.TOGETHER, 1, 40 * 4 * model._plan("all").row_floats):
        monkeypatch.setattr(encoder_engine, "TOGETHER", together)
        for order in ([0, 1, 2, 3, 4], [3, 2, 4, 1, 0], [2, 2, 0]):
            for threads in (1, 2):
                with num_threads(threads):
                    ids, types = zip(*(texts[i] for i in order), strict=True)
                    batch = model.forward_batch(ids, types)
                    first = model.first_batch(ids, types)
                    last, mean = (model._vectors(ids, types, rows) for rows in ("last", "mean"))
                for row, i in enumerate(order):
                    what, rows = f"{i} of {order}, {threads} threads", alone[i]
                    assert_same_bits(batch[row], rows, what)
                    assert_same_bits(first[row], rows[0], f"the first row of {what}")
                    assert_same_bits(last[row], rows[-1], f"the last row of {what}")
                    assert_same_bits(mean[row], reference.mean_pool(rows, [len(rows)])[0], f"the mean of {what}")
        long = [i for i, length in enumerate(LENGTHS) if length > 4]
        late = model._vectors(*zip(*(texts[i] for i in long), strict=True), "mean", skip=4)
        for row, i in enumerate(long):
            wanted = reference.mean_pool(alone[i], [len(alone[i])], skip=4)[0]
            assert_same_bits(late[row], wanted, f"the mean of {i} but for its first rows")
    with pytest.raises(ValueError, match="chunk 2 has 1 positions, of which 1 stay out of the mean: none is left"):
        model._vectors(*zip(*texts, strict=True), "mean", skip=1)


def test_a_neighbour_that_is_no_number(tmp_path):
    """A text whose hidden state is NaN throughout leaves its neighbours as they are."""
    tensors = {key: values.copy() for key, values in made("bert")[2].items()}
    tensors["embeddings.word_embeddings.weight"][13] = np.nan
    model = write(tmp_path / "model", "bert", tensors=tensors)
    ids = [np.full(20, 3), np.full(7, 13), np.arange(12)]
    got = model.forward_batch(ids)
    assert np.isnan(got[1]).all()
    assert_same_bits(got[0], model.forward(ids[0]))
    assert_same_bits(got[2], model.forward(ids[2]))


def test_types_of_some(tmp_path):
    model = write(tmp_path / "model", "bert")
    ids, types = text_of(9)
    got = model.forward_batch([ids, ids, ids], [None, types, [0] * 9])
    assert_same_bits(got[0], model.forward(ids))
    assert_same_bits(got[2], got[0])
    assert_same_bits(got[1], model.forward(ids, types))
    assert model.forward_batch([]) == [] and model.first_batch([]).shape == (0, 48)


def test_several_threads_at_once(tiny):
    _, model = tiny
    texts = [text_of(length)[0] for length in LENGTHS]
    wanted = [model.forward(text) for text in texts]
    wrong = []

    def work():
        for _ in range(5):
            found = model.forward_batch(texts)
            wrong.extend(i for i, got in enumerate(found) if not same_bits(got, wanted[i]))

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_trace_shows_every_step(tiny):
    _, model = tiny
    seen = {}
    ids, _ = text_of(9)
    hidden = model.forward(ids, trace=lambda step, values: seen.setdefault(step, values.copy()))
    assert_same_bits(hidden, model.forward(ids))
    assert_same_bits(seen[last_of(model)], hidden)
    steps = {step.name for step in model.graph.before} | {
        f"h.{i}.{step.name}".removesuffix(".")
        for i, block in enumerate(model.graph.blocks)
        for step in block
        if step.op != "scores"
    }
    assert set(seen) >= steps - {"types", "places"}  # which are added as they are read


# ---- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "switch"), GGUF)
def test_gguf_has_the_bits_of_safetensors(tmp_path, name, switch):
    folder = write(tmp_path / "model", name, switch)
    file = write_file(tmp_path / "model.gguf", name, switch)
    ids, types = text_of(24, types=types_of(name, switch))
    assert_same_bits(file.forward(ids, types), folder.forward(ids, types))
    assert file.config.context == folder.config.context


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_single_type_whose_axis_gguf_has_dropped(tmp_path, name):
    """As converters have done, of a RoBERTa's table of one row."""
    switch = "one type" if name == "bert" else "plain"

    def dropped(key, values):
        return (values[0] if "token_type" in key else values), None

    file = write_file(tmp_path / "m.gguf", name, switch, quantise=dropped)
    assert file.types == 1 and file.source.tensors["token_types.weight"].shape == (48,)
    assert_same_bits(file.forward([1, 2, 3]), write(tmp_path / "m", name, switch).forward([1, 2, 3]))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "wide" in case.switches])
def test_gguf_blocks_have_the_bits_of_their_values(tmp_path, name):
    """Also of the tables that are added."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0

    def quantise(key, values):
        return (gguf.quants.quantize(values, kind), kind) if values.ndim > 1 else (values, None)

    file = write_file(tmp_path / "m.gguf", name, "wide", quantise=quantise)
    tensors = made(name, "wide")[2]
    values = {
        key: gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind) if value.ndim > 1 else value
        for key, value in tensors.items()
    }
    ids, _ = text_of(24)
    assert_same_bits(file.forward(ids), write(tmp_path / "values", name, "wide", tensors=values).forward(ids))
    assert not same_bits(file.forward(ids), write(tmp_path / "raw", name, "wide").forward(ids))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.architecture])
def test_gguf_names_are_ggufs(name):
    """Files that the tests write and llorch reads by the same wrong names would agree."""
    gguf = pytest.importorskip("gguf")
    case = CASES[name]
    family, config, _ = case.as_gguf(*made(name))
    kind = next(kind for kind, known in gguf.MODEL_ARCH_NAMES.items() if known == case.architecture)
    known = {gguf.TENSOR_NAMES[one] for one in gguf.MODEL_TENSORS[kind]}
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for theirs, short, _ in family.graph(config).all_parameters():
        assert re.sub(r"^blk\.\d+", "blk.{bid}", short.rpartition(".")[0]) in known
        assert names.get_name(theirs, (".weight", ".bias")) == short


def test_old_names_of_norms(tmp_path):
    """The first BERTs have gamma and beta."""
    tensors = made("bert")[2]
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in tensors.items()
    }
    assert old.keys() != tensors.keys()
    ids, types = text_of(9)
    assert_same_bits(
        write(tmp_path / "old", "bert", tensors=old).forward(ids, types),
        write(tmp_path / "new", "bert").forward(ids, types),
    )


def test_what_else_a_file_has(tmp_path):
    """A pooler belongs to every BERT and goes without a word; a head of another task is said."""
    tensors = made("bert")[2]
    more = {"pooler.dense.weight": np.zeros((48, 48), np.float32), "cls.predictions.bias": np.zeros(67, np.float32)}
    with pytest.warns(UserWarning, match=r"another task than the hidden state: bert.cls.predictions.bias$"):
        model = write(tmp_path / "m", "bert", tensors=tensors | more)
    assert_same_bits(model.forward([1, 2]), write(tmp_path / "plain", "bert").forward([1, 2]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights(tmp_path, dtype):
    """Every parameter is rounded once, tables and norms too: the text has the same bits on rounded tensors."""
    _, config, tensors = made("bert")
    folder = save(tmp_path / "m", "bert", entries_of("bert"), tensors)
    ids, types = text_of(24)
    rounded = {key: llorch.cast(llorch.cast(value, dtype), "float32") for key, value in tensors.items()}
    wanted = reference.Bert(config, rounded).forward(ids, types)
    model = Encoder.from_pretrained(folder, dtype=dtype)
    assert model.dtype == dtype
    assert_same_bits(model.forward(ids, types), wanted)
    assert not same_bits(wanted, reference.Bert(config, tensors).forward(ids, types))


@pytest.mark.parametrize(("name", "switch"), ALL)
def test_a_configuration_can_be_written_and_read(name, switch):
    family, config, _ = made(name, switch)
    assert family.config(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_the_first_entries_of_nomic_bert():
    first = {
        "n_embd": 48, "n_inner": 80, "n_layer": 2, "n_head": 6, "n_positions": 300, "vocab_size": 67,
        "activation_function": "swiglu", "layer_norm_epsilon": 1e-12, "rotary_emb_base": 1000, "qkv_proj_bias": False,
        "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
    }  # fmt: skip
    family = family_of("nomic_bert")
    assert family.config(first) == made("nomic_bert")[1]
    for name, value in {"qkv_proj_bias": True, "rotary_emb_fraction": 0.5, "rotary_emb_interleaved": True}.items():
        with pytest.raises(ValueError, match=f"{name} is {value}: llorch's Nomic BERT doesn't support it"):
            family.config(first | {name: value})


# ---- the classifier -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LABELS)
def test_a_classifier_has_its_texts_bits(tmp_path, name):
    family, config, tensors = made(name, labels=True)
    model, text = write_classifier(tmp_path / "m", name), getattr(reference, family.reference)(config, tensors)
    texts = [text_of(length, seed, types_of(name, "plain")) for seed, length in enumerate((5, 24, 1))]
    wanted = [text.classify(*one) for one in texts]
    ids, types = zip(*texts, strict=True)
    for isa in llorch.available_isas():
        with use_isa(isa):
            assert_same_bits(model.forward_batch(ids, types), np.stack(wanted), isa)
    assert_same_bits(model.forward(*texts[1]), wanted[1])
    assert model.forward_batch([]).shape == (0, 1)
    assert not same_bits(wanted[0], wanted[1])


def test_a_classifier_that_isnt_there(tmp_path):
    write(tmp_path / "bert", "bert")
    with pytest.raises(ValueError, match=r"tensors are missing: pooler.dense.weight, .* classifier.bias"):
        Classifier.from_pretrained(tmp_path / "bert")
    write(tmp_path / "nomic", "nomic_bert")
    with pytest.raises(ValueError, match="a classifier of a Nomic BERT isn't supported"):
        Classifier.from_pretrained(tmp_path / "nomic")
    pytest.importorskip("gguf")
    write_file(tmp_path / "m.gguf", "bert")
    with pytest.raises(ValueError, match="a classifier of a BERT from GGUF isn't supported"):
        Classifier.from_pretrained(tmp_path / "m.gguf")


def test_info(tmp_path):
    """Nothing is kept from text to text, so there is no cache to tell of."""
    tensors = made("bert")[2] | {"pooler.dense.bias": np.zeros(48, np.float32)}
    save(tmp_path / "m", "bert", entries_of("bert"), tensors)
    result = CliRunner().invoke(cli.main, ["info", str(tmp_path / "m")])
    assert result.exit_code == 0
    assert re.search(r"^family: +BERT, an encoder$", result.stdout, re.M) and "cache" not in result.stdout
    assert re.search(r"^left out, bert.pooler.dense.bias: +not needed$", result.stdout, re.M)


# ---- what is refused ------------------------------------------------------------------------------------------


def test_a_kind_of_model_that_isnt_asked_for(tmp_path):
    write(tmp_path / "bert", "bert")
    with pytest.raises(ValueError, match=r"BERT is an encoder.*, not a decoder.*: it is run by llorch.TextEncoder"):
        llorch.CausalLM.from_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"GPT-2 is a decoder.*, not an encoder.*: it is run by llorch.CausalLM"):
        Encoder.from_pretrained("shakespeare-1m")


@pytest.mark.parametrize(
    ("ids", "types", "error", "message"),
    [
        ([], None, ValueError, "ids is empty"),
        ("text", None, TypeError, "ids must be token ids, got a str"),
        ([1, 67], None, IndexError, r"ids\[1\] is 67, ids must be in \[0, 67\)"),
        ([1.0], None, TypeError, "ids must be ints, got float64"),
        ([1] * 301, None, ValueError, "ids has 301 tokens, the model has 300 positions"),
        ([1, 2], [0], ValueError, r"token_types has shape \(1,\), it must be that of ids, \(2,\)"),
        ([1, 2], [0, 2], IndexError, r"token_types\[1\] is 2, types must be in \[0, 2\)"),
        ([1, 2], [0, -1], IndexError, r"token_types\[1\] is -1"),
        ([1, 2], [0, 1.0], TypeError, "token_types must be ints, got float64"),
        ([1, 2], [0, True], TypeError, r"token_types\[1\] is True, types must be ints"),
        ([1, True], None, TypeError, r"ids\[1\] is True, ids must be ints"),
        ([1, 2], "01", TypeError, "token_types must be ints, got a str"),
    ],
)
def test_what_goes_in_is_checked(tmp_path, ids, types, error, message):
    model = write(tmp_path / "m", "bert")
    with pytest.raises(error, match=message):
        model.forward(ids, types)
    named = message.replace("ids is", r"ids\[1\] is").replace("ids must be token", r"ids\[1\] must be token")
    with pytest.raises(error, match=named if "is empty" in message else None):
        model.forward_batch([[1], ids], [None, types])


def test_texts_and_types_that_arent_as_many(tmp_path):
    model = write(tmp_path / "m", "distilbert")
    for wrong in ("ab", 5, None):
        with pytest.raises(TypeError, match="ids must be a sequence, an entry for each text, got"):
            model.forward_batch(wrong)
    with pytest.raises(TypeError, match="token_types must be a sequence, an entry for each text, got int"):
        model.first_batch([[1]], 0)
    with pytest.raises(ValueError, match="there are 2 texts in ids and 1 in token_types"):
        model.forward_batch([[1], [2]], [None])
    with pytest.raises(IndexError, match=r"token_types\[0\]\[0\] is 1, types must be in \[0, 1\)"):
        model.forward_batch([[1]], [[1]])
    assert_same_bits(model.forward([1], [0]), model.forward([1]))


def test_a_text_of_a_roberta_ends_before_its_table(tmp_path):
    model = write(tmp_path / "m", "roberta")
    assert model.config.context == 298
    assert_same_bits(model.forward([1] * 298)[:0], np.empty((0, 48), np.float32))
    with pytest.raises(ValueError, match="ids has 299 tokens, the model has 298 positions"):
        model.forward([1] * 299)


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("bert", {"is_decoder": True}, "is_decoder is True: llorch's BERT doesn't support it"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ("bert", {"hidden_size": 50}, "hidden_size is 50, without head_dim it must be a multiple of"),
        ("bert", {"head_dim": 4}, "head_dim is 4, it must be hidden_size / num_attention_heads, 48 / 6"),
        ("bert", {"type_vocab_size": -1}, "type_vocab_size is -1, it must be at least 0"),
        ("bert", {"hidden_act": "mish"}, "hidden_act is 'mish', llorch has"),
        ("distilbert", {"type_vocab_size": 2}, "type_vocab_size is 2: llorch's DistilBERT"),
        ("roberta", {"pad_token_id": 299}, r"pad_token_id is 299, it must be in \[0, 298\]"),
        ("roberta", {"pad_token_id": None}, "pad_token_id must be an int"),
        ("nomic_bert", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ("nomic_bert", {"num_attention_heads": 16}, "head_dim is 3, it must be even"),
        ("mpnet", {"type_vocab_size": 2}, "type_vocab_size is 2: llorch's MPNet"),
        (
            "mpnet",
            {"relative_attention_num_buckets": 31},
            "relative_attention_num_buckets is 31, it must be at least 32",
        ),
        ("mpnet", {"relative_attention_num_buckets": "32"}, "relative_attention_num_buckets must be an int, got '32'"),
        ("mpnet", {"max_position_embeddings": 2}, "max_position_embeddings is 2, it must be at least 3"),
        ("modernbert", {"num_attention_heads": 16}, "head_dim is 3, it must be even"),
        ("modernbert", {"local_attention": 1}, "local_attention is 1, it must be at least 2"),
        ("modernbert", {"local_rope_theta": None}, "local_rope_theta must be a number"),
        ("modernbert", {"global_rope_theta": 0}, "global_rope_theta is 0, it must be positive"),
        ("modernbert", {"layer_types": ["full_attention"]}, "layer_types must be a list of 3"),
        ("modernbert", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "ModernBERT scales no angles"),
        ("modernbert", {"rope_parameters": {"local": {}}}, "rope_parameters has 'local', it must have full_attention"),
        ("modernbert", {"hidden_activation": "mish"}, "hidden_activation is 'mish'"),
    ],
)
def test_what_isnt_supported_is_refused_by_name(tmp_path, name, entries, message):
    with pytest.raises((ValueError, TypeError), match=message):
        write(tmp_path / "model", name, entries=entries)


def test_labels_are_counted_as_transformers_does():
    family = family_of("bert")
    assert family.config(TINY).num_labels == 2
    assert family.config(TINY | {"id2label": {"0": "LABEL_0"}}).num_labels == 1
    with pytest.raises(ValueError, match="num_labels is 0"):
        family.config(TINY | {"num_labels": 0})


def test_the_ladder_holds(tiny):
    """llorch and its oracle, tensor by tensor, up to the last hidden state and what is pooled of it."""
    found = validate.run_ladder(tiny[1].path, ids=text_of(20)[0].tolist(), peer=False)
    assert found.holds and found.generated == []
    names = [result.tensor.name for result in found.tensors]
    assert names[0] == "ids" and {"embed", "h.0.attn.scores", "h.1.residual"} < set(names)
    assert names[-2:] == [last_of(tiny[1]), "pooled"]
    steps = {
        f"h.{i}.{step.name}"
        for i, block in enumerate(tiny[1].graph.blocks)
        for step in block
        if step.op == "layer_norm"
    }
    assert {name.removesuffix(".") for name in steps} <= set(names)  # of a block that lacks one, the others'


def last_of(model):
    """The ladder's name of the hidden state."""
    return model.graph.after[-1].name if model.graph.after else f"h.{model.config.layers - 1}"


# ---- transformers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_transformers_agrees(tmp_path, name):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    transformers.utils.logging.disable_progress_bar()
    for switch in ("plain", *CASES[name].switches):
        model = write(tmp_path / switch, name, switch)
        peer = getattr(transformers, CASES[name].theirs).from_pretrained(model.path).eval()
        ids, types = text_of(CASES[name].length, types=types_of(name, switch))
        ids = np.where(ids == peer.config.pad_token_id, 7, ids)  # which has no position there
        more = {"token_type_ids": torch.tensor(types)[None]} if model.types else {}
        with torch.no_grad():
            theirs = peer(torch.tensor(ids)[None], **more).last_hidden_state[0].numpy()
        ours = model.forward(ids, types)
        assert np.abs(ours - theirs).max() < 2e-5 * theirs.std(), switch
        assert np.abs(model.forward(ids[::-1], types[::-1]) - theirs).max() > 0.1  # the negative control


def test_the_ladder_stands_beside_transformers(tiny):
    pytest.importorskip("torch", exc_type=ImportError)
    pytest.importorskip("transformers", exc_type=ImportError)
    ids = text_of(20)[0]
    found = validate.run_ladder(tiny[1].path, ids=np.where(ids == 1, 7, ids).tolist())
    assert found.holds and found.missing == ""
    rows = {row.tensor.name: row.status for row in found.peer.rows}
    assert rows["h.1.attn.scores"] == rows[last_of(tiny[1])] == "ok"
    if tiny[0] != "nomic_bert":  # whose modules have other names than its files
        sums = [f"h.0.{step.name}" for step in tiny[1].graph.blocks[0] if step.op == "add" and step.name]
        assert rows["embed"] == "ok" and sums and {rows[name] for name in sums} == {"ok"}


@pytest.mark.parametrize("name", LABELS)
def test_transformers_agrees_on_labels(tmp_path, name):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    model = write_classifier(tmp_path / "m", name)
    made = getattr(transformers, CASES[name].theirs.replace("Model", "ForSequenceClassification"))
    peer = made.from_pretrained(model.path, num_labels=1).eval()
    ids = np.where(text_of(40)[0] == 1, 7, text_of(40)[0])
    with torch.no_grad():
        theirs = peer(torch.tensor(ids)[None]).logits[0].numpy()
    assert np.abs(model.forward(ids) - theirs).max() < 2e-5


@pytest.mark.weights
def test_minilm():
    """all-MiniLM-L6-v2's own weights: beside transformers, and in batches; its tokens beyond an ordinary text too."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    path = minilm()
    model, peer = Encoder.from_pretrained(path), transformers.BertModel.from_pretrained(path).eval()
    assert model.left_out == () and model.config.context == 512
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    texts = [
        "A man is eating food.",
        "The new movie is awesome, and the new opera, which nobody had heard of before, isn't.",
        "",
        "Bits don't depend on their neighbours. " * 40,
        "\u6f22\u5b57 \U0001f600 na\u00efve caf\u00e9 3.14159",
    ]
    ids = [tokenizer(text, truncation=True, max_length=512).input_ids for text in texts] + [list(range(1000, 1512))]
    batch = model.forward_batch(ids)
    for got, one in zip(batch, ids, strict=True):
        with torch.no_grad():
            theirs = peer(torch.tensor([one])).last_hidden_state[0].numpy()
        assert_same_bits(got, model.forward(one))
        assert np.abs(got - theirs).max() < 1e-5
    assert np.abs(model.forward(ids[0], [1] * len(ids[0])) - batch[0]).max() > 0.01  # the negative control
