"""`CausalLM.score_continuations` has the bits of `score`, in any batch and order, and reads what is shared once."""

import numpy as np
import pytest
from helpers import assert_same_bits, num_threads, rng, same_bits
from random_models import random_llama

import llorch
from llorch.text import score


@pytest.fixture(scope="module")
def model():
    return llorch.CausalLM.from_pretrained("shakespeare-1m")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return random_llama(tmp_path_factory.mktemp("llama") / "m")


def some_pairs(size, most):
    """Questions with several answers behind the same examples, parts of each other, one token, equal pairs."""
    random = rng(41)

    def ids(count):
        return random.integers(size, size=count).tolist()

    shots, pairs = ids(70), []
    for begin in (0, 40, 70, 70):
        context = shots[:begin] + ids(int(random.integers(1, 20)))
        pairs += [(context, ids(count)) for count in (1, 1, 3, 6)]
    pairs.append((shots[:1], shots[1:]))  # a context that ends within the others'
    pairs.append((pairs[0][0] + pairs[2][1], ids(4)))  # one that goes on as a continuation does
    pairs.append(([7], ids(most - 1)))
    return [*pairs, pairs[3], (np.array(pairs[5][0]), np.array(pairs[5][1]))]


def wanted(model, pairs):
    found = []
    for context, continuation in pairs:
        ids = [*context, *continuation]
        greedy = model.forward(ids[:-1])[len(context) - 1 :].argmax(axis=1).tolist() == list(continuation)
        found.append((model.score(ids).log_probabilities[len(context) - 1 :], greedy))
    return found


@pytest.mark.parametrize("which", ["model", "llama"])
def test_they_are_scores_in_any_batch_and_order(which, request):
    model = request.getfixturevalue(which)
    pairs = some_pairs(model.config.vocab_size, 200)
    alone = wanted(model, pairs)
    for batch_size, threads in ((1, 1), (2, 2), (7, 1), (64, 2)):
        order = rng(batch_size).permutation(len(pairs)).tolist()
        with num_threads(threads):
            found = model.score_continuations([pairs[i] for i in order], batch_size=batch_size)
        for i, one in zip(order, found, strict=True):
            assert_same_bits(one.log_probabilities, alone[i][0])
            assert one.greedy == alone[i][1]
            assert one.log_likelihood == score.exact_sum([alone[i][0]])


def test_what_is_greedy_is_said_to_be(model):
    prompt = model.tokenizer.encode("ROMEO:\nI ")
    answer = model.generate(prompt, 6)
    worse = [*answer[:-1], (answer[-1] + 1) % model.config.vocab_size]
    assert [one.greedy for one in model.score_continuations([(prompt, answer), (prompt, worse)])] == [True, False]


def test_another_context_has_other_bits(model):  # the negative control
    pairs = some_pairs(model.config.vocab_size, 200)
    ours = model.score_continuations(pairs)
    changed = model.score_continuations([([(context[0] + 1) % 1024, *context[1:]], after) for context, after in pairs])
    assert not any(same_bits(a.log_probabilities, b.log_probabilities) for a, b in zip(ours, changed, strict=True))


def read(model, monkeypatch, pairs, **options):
    """How many tokens the model reads for them, and in how many calls."""
    counts = []
    for name in ("step", "forward_batch"):
        method = getattr(type(model), name)

        def counted(self, chunks, caches, method=method):
            counts.append(sum(map(len, chunks)))
            return method(self, chunks, caches)

        monkeypatch.setattr(type(model), name, counted)
    model.score_continuations(pairs, **options)
    monkeypatch.undo()
    return sum(counts), len(counts)


def test_what_pairs_begin_with_is_read_once(model, monkeypatch):
    random = rng(5)
    context = random.integers(1024, size=100).tolist()
    answers = [[i, *random.integers(1024, size=4).tolist()] for i in range(4)]
    letters = [[i] for i in range(4)]
    assert read(model, monkeypatch, [(context, one) for one in answers])[0] == 100 + 4 * 4
    assert read(model, monkeypatch, [(context, one) for one in letters]) == (100, 1)
    shots = [(context + [300 + i] * 10, one) for i in range(5) for one in letters]
    assert read(model, monkeypatch, shots)[0] == 100 + 5 * 10
    assert read(model, monkeypatch, shots, batch_size=1)[0] == 100 + 5 * 10
    assert read(model, monkeypatch, [([i, *context], one) for i, one in enumerate(letters)])[0] == 4 * 101


def test_progress_and_nothing(model):
    seen = []
    model.score_continuations([([1], [2, 3]), ([1], [4])], progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]
    assert model.score_continuations([]) == []


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([([1], [2]), ([], [2])], ValueError, r"pairs\[1\]'s context is empty"),
        ([([1], [])], ValueError, r"pairs\[0\]'s continuation is empty"),
        ([([1], [1024])], IndexError, r"pairs\[0\]'s continuation\[0\] is 1024"),
        ([("a", [1])], TypeError, r"pairs\[0\]'s context must be token ids"),
        ([([1] * 200, [2] * 58)], ValueError, r"pairs\[0\] has 258 tokens"),
        ([3], TypeError, r"pairs\[0\] must be a context and a continuation"),
    ],
)
def test_bad_pairs(model, pairs, error, message):
    with pytest.raises(error, match=message):
        score.continuations(model, pairs)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        score.continuations(model, [([1], [2])], 0)


def test_the_longest_that_fits(model):
    (found,) = model.score_continuations([([1] * 200, [2] * 57)])
    assert len(found.log_probabilities) == 57


def test_forward_batch_is_forward(model):
    chunks = [[1, 2, 3], [4], [5, 6]]
    caches = [model.new_cache() for _ in chunks]
    logits = model.forward_batch(chunks, caches)
    assert_same_bits(logits, np.concatenate([model.forward(chunk) for chunk in chunks]))
    assert [len(cache) for cache in caches] == [3, 1, 2]
    assert model.forward_batch([], []).shape == (0, 1024)
    with pytest.raises(ValueError, match="3 chunks and 2 caches"):
        model.forward_batch(chunks, caches[:2])
