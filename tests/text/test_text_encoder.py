"""`llorch.TextEncoder`: embeddings are the oracle's in bits, whatever their batch; sentence-transformers' files."""

import functools
import json
import pickle
import shutil
import tracemalloc

import encoders
import numpy as np
import pytest
from helpers import assert_same_bits, in_threads, num_threads, rng, same_bits
from random_models import write_gguf
from sentence_models import (
    MODULES,
    POOLING,
    TEXTS,
    WORDS,
    gguf_words,
    save,
    tensors_of,
    write_dense,
    write_modules,
)

import llorch
from llorch import reference
from llorch.models import bert
from llorch.testing import use_isa
from llorch.text import sentence_files, text_encoder, tokenizer_files

CONFIG, TENSORS = tensors_of()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return save(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def model(plain):
    return llorch.TextEncoder.from_pretrained(plain)


@pytest.fixture
def folder(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "model")


def ids_of(text, length=90, prompt=""):
    """[CLS] text [SEP], by hand."""
    ids = LIBRARY.encode(prompt + text, add_special_tokens=False).ids[: length - 2]
    return [WORDS.index("[CLS]"), *ids, WORDS.index("[SEP]")]


@pytest.fixture(scope="module", autouse=True)
def library(plain):
    global LIBRARY
    LIBRARY = tokenizer_files.load(plain).library


TEXT = reference.Bert(CONFIG, TENSORS)


@functools.cache
def states_of(ids):
    return TEXT.forward(ids)


def states(text, **options):
    return states_of(tuple(ids_of(text, **options)))


def mean(text, skip=0, **options):
    h = states(text, **options)
    return reference.mean_pool(h, [len(h)], skip=skip)[0]


# ---- bits --------------------------------------------------------------------------------------------------


def test_a_plain_folder_gives_the_mean_of_the_oracle(isa, model):
    got = model.encode(TEXTS)
    assert got.dtype == np.float32 and got.shape == (len(TEXTS), 40) and got.flags.c_contiguous
    assert_same_bits(got, np.stack([mean(text) for text in TEXTS]))
    normalized = model.encode(TEXTS, normalize_embeddings=True)
    assert_same_bits(normalized, reference.normalize(got))


def test_no_bit_depends_on_the_company(model):
    wanted = model.encode(TEXTS)
    order = rng(1).permutation(len(TEXTS) * 3) % len(TEXTS)
    for threads in (1, 2):
        with num_threads(threads):
            for size in (1, 2, 7, 32):
                assert_same_bits(model.encode(TEXTS, batch_size=size), wanted, f"{size} together, {threads} threads")
                got = model.encode((TEXTS[i] for i in order), batch_size=size)
                assert_same_bits(got, wanted[order], f"in another order, {size} together, {threads} threads")
    for text, row in zip(TEXTS, wanted, strict=True):
        assert_same_bits(model.encode(text), row, "alone")


def test_a_mean_over_padding_would_be_seen(model):
    """Negative control: NumPy's sum of the same hidden states has other bits where a batch pads them."""
    h = [np.ascontiguousarray(model.forward(ids_of(text)).T) for text in TEXTS]
    alone = np.stack([each.sum(axis=1) for each in h])
    padded = np.stack([np.pad(each, ((0, 0), (0, 90 - each.shape[1]))).sum(axis=1) for each in h])
    assert np.abs(padded - alone).max() < 1e-4 and not same_bits(padded, alone)


def test_several_callers_at_once(model):
    wanted = model.encode(TEXTS).tobytes()
    wrong = []
    in_threads(lambda: wrong.extend(1 for _ in range(5) if model.encode(TEXTS, batch_size=3).tobytes() != wanted))
    assert not wrong


# ---- sentence-transformers' files --------------------------------------------------------------------------


def test_modules(folder):
    write_modules(folder)
    model = llorch.TextEncoder.from_pretrained(folder)
    got = model.encode(TEXTS)
    assert_same_bits(got, reference.normalize(np.stack([mean(text) for text in TEXTS])))
    for said in (True, False):
        assert_same_bits(model.encode(TEXTS, normalize_embeddings=said), got, "its own Normalize, once")
    assert model.similarity_fn_name == "cosine" and model.prompts == {} and model.default_prompt_name is None


@pytest.mark.parametrize(
    ("config", "pooled"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda h: h[0]),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, lambda h: h[-1]),
        ({"pooling_mode": "lasttoken"}, lambda h: h[-1]),
        ({"pooling_mode": ["cls"]}, lambda h: h[0]),
        ({}, lambda h: reference.mean_pool(h, [len(h)])[0]),
    ],
)
def test_pooling(folder, config, pooled):
    write_modules(folder, {"Transformer": ("", None), "Pooling": ("1_Pooling", config)})
    model = llorch.TextEncoder.from_pretrained(folder)
    wanted = np.stack([pooled(states(text)) for text in TEXTS])
    for size in (3, 32):
        assert_same_bits(model.encode(TEXTS, batch_size=size), wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("torch.nn.modules.activation.Tanh", reference.tanh),
        ("torch.nn.modules.linear.Identity", lambda x: x),
        ("torch.nn.GELU", reference.gelu),
    ],
)
def test_dense(folder, bias, name, function):
    tensors = write_dense(folder / "2_Dense", name, bias=bias)
    write_modules(folder, MODULES | {"Normalize": ("3_Normalize", None)} | {"Dense": ("2_Dense", None)})
    found = json.loads((folder / "modules.json").read_text())
    found[2]["idx"], found[3]["idx"] = found[3]["idx"], found[2]["idx"]  # which sentence-transformers doesn't read
    (folder / "modules.json").write_text(json.dumps([*found[:2], found[3], found[2]]))
    model = llorch.TextEncoder.from_pretrained(folder)
    m = np.stack([mean(text) for text in TEXTS])
    y = function(reference.linear(m, tensors["linear.weight"].T, tensors.get("linear.bias")))
    assert_same_bits(model.encode(TEXTS), reference.normalize(y))
    assert model.embedding_dimension == 24 and model.encode(TEXTS[0]).shape == (24,)


def test_an_older_folder_has_its_transformer_in_another(tmp_path):
    save(tmp_path / "model" / "0_Transformer", sentence_roberta_config={"max_seq_length": 9})
    write_modules(tmp_path / "model", MODULES | {"Transformer": ("0_Transformer", None)})
    model = llorch.TextEncoder.from_pretrained(tmp_path / "model")
    assert model.max_seq_length == 9
    for each in (model, pickle.loads(pickle.dumps(model))):
        assert_same_bits(each.encode(TEXTS), reference.normalize(np.stack([mean(text, length=9) for text in TEXTS])))


def test_prompts(folder):
    prompts = {"query": "query ", "passage": "passage ", "none": ""}
    config = {"prompts": prompts, "default_prompt_name": "passage", "similarity_fn_name": "dot"}
    write_modules(folder, config_sentence_transformers=config)
    model = llorch.TextEncoder.from_pretrained(folder)
    plain, query = model.encode(TEXTS, prompt_name="none"), model.encode(TEXTS, prompt_name="query")
    assert_same_bits(query, reference.normalize(np.stack([mean(text, prompt="query ") for text in TEXTS])))
    assert_same_bits(plain, reference.normalize(np.stack([mean(text) for text in TEXTS])))
    assert_same_bits(model.encode(TEXTS), model.encode(TEXTS, prompt_name="passage"), "the default")
    assert_same_bits(model.encode(TEXTS, prompt="query ", prompt_name="passage"), query)
    assert model.query_prompt() == "query" and model.document_prompt() == "passage"
    assert not same_bits(plain, query)
    with pytest.raises(ValueError, match="prompt_name is 'other', the model's prompts are 'query', 'passage', 'none'"):
        model.encode(TEXTS, prompt_name="other")
    assert_same_bits(model.similarity(plain, query[:3]), reference.linear(plain, query[:3].T))


def test_embeddings_may_be_cut(folder):
    write_modules(folder, config_sentence_transformers={"truncate_dim": 24})
    model = llorch.TextEncoder.from_pretrained(folder)
    whole = model.encode(TEXTS, truncate_dim=99)
    assert model.truncate_dim == 24 and model.embedding_dimension == 24 and whole.shape == (len(TEXTS), 40)
    assert_same_bits(model.encode(TEXTS, batch_size=3), whole[:, :24], "behind the Normalize")
    assert_same_bits(model.encode(TEXTS[0], truncate_dim=7), whole[0, :7])
    again = model.encode(TEXTS, normalize_embeddings=True)
    assert_same_bits(again, reference.normalize(whole[:, :24]), "what was cut is divided by its own length")
    assert_same_bits(model.encode(TEXTS, truncate_dim=40, normalize_embeddings=True), whole, "once")
    wanted = reference.linear(reference.normalize(again), reference.normalize(again[:1]).T)
    assert_same_bits(model.similarity(again, again[0]), wanted)
    with pytest.raises(ValueError, match="truncate_dim must be at least 1, got 0"):
        model.encode(TEXTS, truncate_dim=0)
    (folder / "config_sentence_transformers.json").write_text('{"truncate_dim": 0}')
    with pytest.raises(ValueError, match="truncate_dim is 0, it must be an int of at least 1"):
        llorch.TextEncoder.from_pretrained(folder)


def test_a_prompt_may_stay_out_of_the_mean(folder):
    write_modules(folder, MODULES | {"Pooling": ("1_Pooling", POOLING | {"include_prompt": False})},
                  sentence_bert_config={"max_seq_length": 20})  # fmt: skip
    model = llorch.TextEncoder.from_pretrained(folder)
    skip = 1 + len(LIBRARY.encode("query ", add_special_tokens=False).ids)  # [CLS] too, not [SEP]
    wanted = np.stack([mean(text, skip=skip, length=20, prompt="query ") for text in TEXTS])
    assert_same_bits(model.encode(TEXTS, prompt="query "), reference.normalize(wanted))
    assert not same_bits(reference.normalize(np.stack([mean(t, length=20, prompt="query ") for t in TEXTS])),
                         reference.normalize(wanted))  # fmt: skip
    with pytest.raises(ValueError, match="a text has 3 tokens with its prompt, of which the prompt's 5 stay out"):
        model.encode(["o"], prompt="hell")  # together it is one token


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", [], "modules.json: the first module is missing, it must be a Transformer"),
        ("modules.json", {"a": 1}, "must be a list of modules"),
        ("modules.json", [{"idx": 0, "type": "mine.Transformer", "path": ""}], "isn't sentence-transformers' own"),
        (
            "modules.json",
            [{"idx": 0, "type": "sentence_transformers.models.Transformer", "path": "../x"}],
            "must lie in",
        ),
        ("modules.json", [{"idx": 0, "type": "sentence_transformers.models.CNN", "path": ""}], "first module is a CNN"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling by max isn't supported"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "pooling by mean and cls isn't supported"),
        ("1_Pooling/config.json", {"pooling_mode": 3}, "pooling by 3 isn't supported"),
        ("1_Pooling/config.json", {"pooling_mode": [["mean"]]}, r"pooling by \['mean'\] isn't supported"),
        ("1_Pooling/config.json", {"pooling_mode": []}, r"pooling by \[\] isn't supported"),
        ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": False}, "include_prompt false isn't"),
        ("1_Pooling/config.json", {"include_prompt": "no"}, "include_prompt is no, it must be true or false"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task is fill-mask"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type is SparseEncoder"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts must be texts by their names"),
        ("config_sentence_transformers.json", {"prompts": {"a": "\ud800"}}, r"prompts\['a'\] has the lone surrogate"),
        ("config_sentence_transformers.json", {"default_prompt_name": "a"}, "default_prompt_name is a"),
        ("config_sentence_transformers.json", {"default_prompt_name": ["a"]}, r"default_prompt_name is \['a'\]"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "similarity_fn_name is maxsim"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "module_input_name is token_embeddings"),
        ("2_Dense/config.json", {"activation_function": "mine.Tanh"}, "activation_function is mine.Tanh, llorch has"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Softplus"}, "activation_function is torch.nn.Soft"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual isn't supported"),
        (
            "2_Dense/config.json",
            {"bias": False},
            "has the tensors linear.bias, linear.weight; a Dense has linear.weight",
        ),
        ("2_Dense/config.json", {"in_features": 41}, r"linear.weight .*has shape \(24, 40\), .* makes it \(24, 41\)"),
    ],
)
def test_what_is_asked_for_and_not_supported_is_named(folder, file, content, message):
    modules = dict(MODULES)
    if "Dense" in file:
        write_dense(folder / "2_Dense")
        modules = {"Transformer": ("", None), "Pooling": ("1_Pooling", POOLING), "Dense": ("2_Dense", None)}
        content = json.loads((folder / "2_Dense" / "config.json").read_text()) | content
    write_modules(folder, modules)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        sentence_files.load(folder)


def test_a_module_behind_the_pooling_that_is_not_known(folder):
    write_modules(folder, MODULES | {"LayerNorm": ("3_LayerNorm", {})})
    with pytest.raises(ValueError, match="LayerNorm behind the Pooling isn't supported, Dense and Normalize are"):
        llorch.TextEncoder.from_pretrained(folder)


def test_two_denses_that_do_not_fit(folder):
    write_dense(folder / "2_Dense")
    write_modules(folder, {"Transformer": ("", None), "Pooling": ("1_Pooling", POOLING), "Dense": ("2_Dense", None)})
    found = json.loads((folder / "modules.json").read_text())
    found.append(found[2] | {"idx": 3})
    (folder / "modules.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="a Dense takes 40 values, it gets 24"):
        llorch.TextEncoder.from_pretrained(folder)


def test_a_dense_as_a_pickle_is_refused(folder):
    write_dense(folder / "2_Dense")
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    write_modules(folder, {"Transformer": ("", None), "Pooling": ("1_Pooling", POOLING), "Dense": ("2_Dense", None)})
    with pytest.raises(ValueError, match="pickle only"):
        llorch.TextEncoder.from_pretrained(folder)


# ---- texts -------------------------------------------------------------------------------------------------


def test_lengths(folder):
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 30}')
    model = llorch.TextEncoder.from_pretrained(folder)
    assert model.max_seq_length == 30
    assert_same_bits(model.encode(TEXTS), np.stack([mean(text, length=30) for text in TEXTS]))
    model.max_seq_length = 5
    assert_same_bits(model.encode(TEXTS), np.stack([mean(text, length=5) for text in TEXTS]))
    assert model.tokenizer.encode(TEXTS[3]) == LIBRARY.encode(TEXTS[3], add_special_tokens=False).ids, "not cut"
    for length, message in ((91, "the model has 90 positions"), (2, "it must be at least 3"), (0, "max_seq_length")):
        with pytest.raises(ValueError, match=message):
            model.max_seq_length = length
    write_modules(folder, sentence_bert_config={"max_seq_length": 500})
    assert llorch.TextEncoder.from_pretrained(folder).max_seq_length == 90, "the positions that there are"
    (folder / "tokenizer_config.json").write_text('{"truncation_side": "left"}')
    model = llorch.TextEncoder.from_pretrained(folder)
    model.max_seq_length = 6
    ids, _ = model._inputs([TEXTS[9]])
    whole = LIBRARY.encode(TEXTS[9], add_special_tokens=False).ids
    assert ids == [[2, *whole[-4:], 3]]


def test_a_length_that_is_set_while_another_thread_reads_the_tokenizer(plain, monkeypatch):
    model, real = llorch.TextEncoder.from_pretrained(plain), text_encoder.inputs_of

    def slow(*arguments, **options):
        monkeypatch.setattr(text_encoder, "inputs_of", real)
        made = real(*arguments, **options)
        model.max_seq_length = 5  # what another thread may do meanwhile
        return made

    monkeypatch.setattr(text_encoder, "inputs_of", slow)
    assert_same_bits(model.encode(TEXTS[3]), mean(TEXTS[3], length=5))
    assert model.max_seq_length == 5


def test_what_a_tokenizers_file_says_of_padding_and_truncation_is_not_done(folder):
    library = tokenizer_files.load(folder).library
    library.enable_padding(length=64)
    library.enable_truncation(7)
    library.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    model = llorch.TextEncoder.from_pretrained(folder)
    assert_same_bits(model.encode(TEXTS), np.stack([mean(text) for text in TEXTS]))


def test_lower_case(folder):
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = llorch.TextEncoder.from_pretrained(folder)
    write_modules(folder, sentence_bert_config={"do_lower_case": True})
    lower = llorch.TextEncoder.from_pretrained(folder)
    assert cased._inputs(["Hello"]).ids == [[2, 1, 3]]
    assert lower._inputs(["Hello"]).ids == [[2, WORDS.index("hello"), 3]]


def test_a_tokenizer_without_special_tokens_is_refused(folder):
    library = tokenizer_files.load(folder).library
    made = json.loads(library.to_str()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match="adds no special tokens to a text"):
        llorch.TextEncoder.from_pretrained(folder).encode("a")


def test_results(model):
    assert model.encode([]).shape == (0, 40) and model.encode(iter(())).shape == (0, 40)
    assert model.encode(("",), batch_size=10**30).shape == (1, 40)
    half = model.encode(TEXTS, output_dtype="float16")
    assert_same_bits(half, reference.cast(model.encode(TEXTS), "float16"))
    brain = model.encode(TEXTS, output_dtype="bfloat16")
    assert_same_bits(brain, llorch.cast(model.encode(TEXTS), "bfloat16"))
    assert_same_bits(model.encode(np.array(TEXTS)), model.encode(TEXTS))
    a = model.encode(TEXTS)
    assert_same_bits(model.similarity(a, a[:2]),
                     reference.linear(reference.normalize(a), reference.normalize(a[:2]).T))  # fmt: skip
    assert_same_bits(model.similarity(a[0], a[1]), model.similarity(a, a)[:1, 1:2])


class Counting:
    def __init__(self):
        self.taken = 0

    def __iter__(self):
        for text in TEXTS:
            self.taken += 1
            yield text


def test_a_stream_takes_no_more_than_it_needs(model):
    texts = Counting()
    stream = model.encode_stream(texts, batch_size=4)
    assert texts.taken == 0
    first = next(stream)
    assert texts.taken == 4 and first.shape == (4, 40)
    assert_same_bits(np.concatenate([first, *stream]), model.encode(TEXTS))


@pytest.mark.parametrize("batch_size", [1, 3, 64, 100])
def test_texts_of_a_list_are_made_tokens_together(model, monkeypatch, batch_size):
    """Some batches of them, but for long ones: the bits are those of an iterator, which is read batch by batch."""
    texts, made = [*TEXTS, TEXTS[1] * 3] * 12, []
    wanted = model.encode(iter(texts), batch_size=batch_size)
    library_call = type(model._inputs).__call__

    def call(self, several):
        made.append(len(several))
        return library_call(self, several)

    monkeypatch.setattr(type(model._inputs), "__call__", call)
    assert_same_bits(model.encode(texts, batch_size=batch_size), wanted)
    assert sum(made) == len(texts) and made[0] == max(64 // batch_size, 1) * batch_size
    made.clear()
    monkeypatch.setattr("llorch.text.inputs.AHEAD_CHARACTERS", 10)
    assert_same_bits(model.encode(tuple(texts), batch_size=batch_size), wanted)
    assert made[0] == batch_size


def test_a_bad_text_of_a_list_loses_no_batch_before_it(model):
    stream = model.encode_stream([*TEXTS[:5], 7], batch_size=2)
    assert [len(next(stream)), len(next(stream))] == [2, 2]
    with pytest.raises(TypeError, match=r"sentences\[5\] must be a str, got int"):
        next(stream)


def test_memory_of_texts_that_are_not_counted(model, monkeypatch):
    """The result grows in place: at no time is there a second copy of it."""
    monkeypatch.setattr("llorch.text.text_encoder.GROWTH", 1 << 20)
    monkeypatch.setattr(type(model), "_pooled", lambda self, made, skip: np.ones((len(made.ids), 40), np.float32))
    tracemalloc.start()
    rows = model.encode((TEXTS[0] for _ in range(40000)), batch_size=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.shape == (40000, 40) and (rows == 1).all()
    assert peak < 1.4 * rows.nbytes


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encode(["a", 3]), TypeError, r"sentences\[1\] must be a str, got int"),
        (lambda m: m.encode(["a"] * 40 + [b"a"]), TypeError, r"sentences\[40\] must be a str, got bytes"),
        (lambda m: m.encode(["\ud800"]), ValueError, r"sentences\[0\] has the lone surrogate"),
        (lambda m: m.encode(3), TypeError, "sentences must be texts, got int"),
        (lambda m: m.encode(b"a"), TypeError, "sentences must be texts, got bytes"),
        (lambda m: m.encode(["a"], batch_size=0), ValueError, "batch_size"),
        (lambda m: m.encode(["a"], batch_size=1.5), TypeError, "batch_size"),
        (lambda m: m.encode(["a"], output_dtype="int8"), ValueError, "output_dtype must be 'float32'.*got 'int8'"),
        (lambda m: m.encode(["a"], prompt=3), TypeError, "prompt must be a str, got int"),
        (lambda m: m.encode(["a"], prompt_name="q"), ValueError, "prompt_name is 'q', the model's prompts are none"),
        (lambda m: m.encode_stream(["a"], batch_size=0), ValueError, "batch_size"),
        (lambda m: m.encode_stream("a"), TypeError, "sentences must be an iterable of str, got one str"),
        (
            lambda m: m.similarity(np.zeros(41, np.float32), np.zeros(40, np.float32)),
            ValueError,
            r"a has shape \(41,\), it must be \(n, E\) or \(E,\) with E up to 40",
        ),
        (
            lambda m: m.similarity(np.zeros((2, 39), np.float32), np.zeros(40, np.float32)),
            ValueError,
            "a has 39 values a row, b has 40",
        ),
        (lambda m: m.similarity(np.zeros(40), np.zeros(40)), TypeError, "a is float64"),
    ],
)
def test_message(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


def test_other_models_are_told_where_they_belong(plain):
    with pytest.raises(ValueError, match=r"llorch\.TextEncoder"):
        llorch.CausalLM.from_pretrained(plain)
    with pytest.raises(ValueError, match=r"llorch\.CausalLM"):
        llorch.TextEncoder.from_pretrained("shakespeare-1m")


# ---- every family -------------------------------------------------------------------------------------------

LETTERS = [chr(c) for c in range(97, 123)]
SPELLING = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]


@pytest.mark.parametrize("name", encoders.CASES)
def test_families(tmp_path, name):
    entries, tensors = encoders.entries_of(name), encoders.made(name)[2]
    folder = encoders.save(tmp_path / name, name, entries, tensors)
    (folder / "vocab.txt").write_text("\n".join([*SPELLING, *(f"[unused{i}]" for i in range(10))]))
    texts = ["the sun shines", ""]
    wanted = []
    for text in texts:
        letters = [SPELLING.index(f"##{c}" if i else c) for word in text.split() for i, c in enumerate(word)]
        h = encoders.by_text(name, "plain", [2, *letters, 3])
        wanted.append(reference.mean_pool(h, [len(h)])[0])
    model = llorch.TextEncoder.from_pretrained(folder)
    for size in (1, 3, 32):
        assert_same_bits(model.encode(texts, batch_size=size), np.stack(wanted), f"{size} together")


# ---- GGUF --------------------------------------------------------------------------------------------------


def gguf_file(path, **entries):
    pytest.importorskip("gguf")
    made = {
        "block_count": CONFIG.num_hidden_layers, "context_length": 90, "embedding_length": 40,
        "feed_forward_length": 72, "attention.head_count": 4, "attention.layer_norm_epsilon": 1e-12,
        "attention.causal": False, "pooling_type": 1,
    }  # fmt: skip
    metadata = {f"bert.{name}": value for name, value in made.items()} | gguf_words(WORDS) | entries
    return write_gguf(path, bert.FAMILY, CONFIG, TENSORS, "bert", metadata)


def test_gguf_is_the_same_in_bits(tmp_path, model):
    wanted = model.encode(TEXTS)
    ours = llorch.TextEncoder.from_pretrained(gguf_file(tmp_path / "model.gguf"))
    assert_same_bits(ours.encode(TEXTS, normalize_embeddings=False), wanted)
    assert_same_bits(ours.encode(TEXTS), reference.normalize(wanted), "as llama.cpp gives it")
    assert ours.max_seq_length == 90
    for kind, row in ((2, 0), (3, -1)):
        ours = llorch.TextEncoder.from_pretrained(gguf_file(tmp_path / "other.gguf", **{"bert.pooling_type": kind}))
        rows = np.stack([states(text)[row] for text in TEXTS])
        assert_same_bits(ours.encode(TEXTS, normalize_embeddings=False), rows)
    for kind, told in ((4, "4"), ([1, 2], r"\[1, 2\]")):
        match = rf"bert.pooling_type is {told}, llorch has 1 \(mean\), 2 \(cls\), 3 \(last\)"
        with pytest.raises(ValueError, match=match):
            llorch.TextEncoder.from_pretrained(gguf_file(tmp_path / "rank.gguf", **{"bert.pooling_type": kind}))


# ---- beside others -----------------------------------------------------------------------------------------


def test_transformers(plain, model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(plain).eval()
    for text in TEXTS:
        with torch.no_grad():
            h = theirs(torch.tensor([ids_of(text)])).last_hidden_state[0].numpy()
        wanted = h.astype(np.float64).mean(axis=0)
        assert np.abs(model.encode(text) - wanted).max() < 2e-5 * h.std()


def test_every_instruction_set_gives_the_same(model):
    wanted = model.encode(TEXTS)
    for name in llorch.available_isas():
        with use_isa(name):
            assert_same_bits(model.encode(TEXTS), wanted, name)
