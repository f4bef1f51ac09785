"""`llorch.CrossEncoder`: scores of pairs are the oracle's in bits, whatever their batch."""

import json

import numpy as np
import pytest
from helpers import assert_same_bits, num_threads, rng, same_bits
from sentence_models import TEXTS, WORDS, save, tensors_of

import llorch
from llorch import reference
from llorch.text import tokenizer_files

PAIRS = [*zip(TEXTS, TEXTS[::-1], strict=True), ("a " * 60, "the " * 60), ("", ""), ("hello", "world " * 100)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("cross") / "model", classifier=True)


@pytest.fixture(scope="module")
def model(folder):
    return llorch.CrossEncoder.from_pretrained(folder)


def tokens_of(folder, pair, length=90):
    """[CLS] a [SEP] b [SEP], by hand: the longer of the two loses its end, and both where each is more than half."""
    library = tokenizer_files.load(folder).library
    a, b = (list(library.encode(text, add_special_tokens=False).ids) for text in pair)
    room, (short, long) = length - 3, sorted((a, b), key=len)
    if len(a) + len(b) > room:
        less = min(len(short), room // 2)
        del short[less:], long[room - less :]
    cls, sep = WORDS.index("[CLS]"), WORDS.index("[SEP]")
    return [cls, *a, sep, *b, sep], [0] * (len(a) + 2) + [1] * (len(b) + 1)


@pytest.fixture(scope="module")
def logits(folder):
    text = reference.Bert(*tensors_of({"id2label": {"0": "L"}}, classifier=True))
    return np.stack([text.classify(*tokens_of(folder, pair)) for pair in PAIRS])


def test_the_oracles_bits_in_any_company(model, logits):
    wanted = reference.sigmoid(logits)[:, 0]
    order = rng(2).permutation(len(PAIRS))
    for threads in (1, 2):
        with num_threads(threads):
            for size in (1, 5, 32):
                assert_same_bits(model.predict(PAIRS, batch_size=size), wanted, f"{size} together")
                assert_same_bits(model.predict((PAIRS[i] for i in order), batch_size=size), wanted[order])
    assert_same_bits(np.float32([model.predict(pair) for pair in PAIRS]), wanted, "alone")
    assert_same_bits(model.predict(list(map(list, PAIRS))), wanted, "lists")
    assert model.predict([]).shape == (0,) and model.max_length == 90
    assert not same_bits(wanted, model.predict([pair[::-1] for pair in PAIRS])), "the order in a pair counts"


@pytest.mark.parametrize(
    ("config", "settings", "function"),
    [
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, {}, lambda x: x),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}, {}, reference.tanh),
        ({}, {"activation_fn": "torch.nn.modules.linear.Identity"}, lambda x: x),
    ],
)
def test_the_files_name_a_function(tmp_path, logits, config, settings, function):
    small = {"config_sentence_transformers": settings} if settings else {}
    model = llorch.CrossEncoder.from_pretrained(save(tmp_path / "m", config, classifier=True, **small))
    assert_same_bits(model.predict(PAIRS), function(logits)[:, 0])


def test_several_labels(tmp_path):
    labels = {"id2label": {"0": "no", "1": "yes", "2": "maybe"}}
    model = llorch.CrossEncoder.from_pretrained(save(tmp_path / "m", labels, classifier=True))
    text = reference.Bert(*tensors_of(labels, classifier=True))
    wanted = np.stack([text.classify(*tokens_of(tmp_path / "m", pair)) for pair in PAIRS[:4]])
    assert_same_bits(model.predict(PAIRS[:4]), wanted)
    assert_same_bits(model.predict(PAIRS[0]), wanted[0])
    with pytest.raises(ValueError, match="the model has 3 labels, documents are ranked by one"):
        model.rank("a", TEXTS)


def test_rank(model):
    scores = model.predict([("hello", text) for text in TEXTS])
    ranked = model.rank("hello", TEXTS)
    assert [place for place, _ in ranked] == np.argsort(-scores, kind="stable").tolist()
    assert [score for _, score in ranked] == sorted(scores.tolist(), reverse=True)
    assert model.rank("hello", iter(TEXTS), top_k=3) == ranked[:3]
    assert [place for place, _ in model.rank("hello", ["a", "b", "a"])] in ([0, 2, 1], [1, 0, 2]), "equals in order"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.predict([("a",)]), TypeError, r"pairs\[0\] must be a pair of texts, got tuple of 1"),
        (lambda m: m.predict(["ab"]), TypeError, r"pairs\[0\] must be a pair of texts, got str"),
        (lambda m: m.predict([("a", "b"), ("a", 3)]), TypeError, r"pairs\[1\]\[1\] must be a str, got int"),
        (lambda m: m.predict([("a", "\udc00")]), ValueError, r"pairs\[0\]\[1\] has the lone surrogate"),
        (lambda m: m.predict(3), TypeError, "pairs must be texts, got int"),
        (lambda m: m.rank("a", "b"), TypeError, "documents must be an iterable of str, got one str"),
        (lambda m: m.rank("a", ["b"], top_k=0), ValueError, "top_k"),
    ],
)
def test_message(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


def test_an_encoder_without_a_classifier_is_told_from_one(tmp_path):
    folder = save(tmp_path / "m", {"architectures": ["BertModel"]})
    message = r"classifier\.weight, classifier\.bias \(by config\.json, the files are of BertModel\)"
    with pytest.raises(ValueError, match=message):
        llorch.CrossEncoder.from_pretrained(folder)


def test_a_length_that_special_tokens_fill_is_refused(tmp_path):
    """Of less room than that, the library makes a pair that isn't cut at all."""
    for length, refused in ((3, True), (4, False)):
        folder = save(tmp_path / "m", classifier=True, tokenizer_config={"model_max_length": length})
        model = llorch.CrossEncoder.from_pretrained(folder)
        if refused:
            with pytest.raises(ValueError, match="the length is 3, it must be at least 4: special tokens and one"):
                model.predict([("a a", "a a")])
        else:
            assert len(model._inputs([("a a", "a a")]).ids[0]) == 4


def test_an_unknown_function_is_refused(tmp_path):
    folder = save(tmp_path / "m", {"sentence_transformers": {"activation_fn": "mine.Softer"}}, classifier=True)
    with pytest.raises(ValueError, match=r"activation_fn is mine\.Softer, llorch has torch's Identity, Tanh"):
        llorch.CrossEncoder.from_pretrained(folder)


def test_transformers(folder, logits):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    library = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    found = []
    for pair in PAIRS:
        inputs = library([pair], truncation=True, max_length=90, return_tensors="pt")
        ids, types = tokens_of(folder, pair)
        assert inputs["input_ids"][0].tolist() == ids and inputs["token_type_ids"][0].tolist() == types, pair
        with torch.no_grad():
            found.append(theirs(**inputs).logits[0].numpy())
    assert json.loads((folder / "config.json").read_text())["id2label"] == {"0": "LABEL_0"}
    assert np.abs(np.stack(found) - logits).max() < 2e-5 * max(logits.std(), 1)
