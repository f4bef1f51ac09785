"""The choice of the next token is the oracle's, for every input; what it means; what it refuses."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from helpers import normal, rng
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import llorch
from llorch import reference
from llorch.reference import _sampling
from llorch.text.sampling import SamplingParameters, next_token, uniform

ALL = dict(temperature=0.8, top_k=5, top_p=0.7, repetition_penalty=1.3, seed=1)
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def oracle(logits, parameters, position, seen=(), missing=(), begin=0):
    options = {"seed": 0} | {k: v for k, v in vars(parameters).items() if v is not None}
    return reference.next_token(logits, position, seen, missing=missing, begin=begin, **options)


# ---- the generator ----------------------------------------------------------------------------------------


def test_philox_gives_the_published_words():
    """The first known answer of Random123's kat_vectors: counter and key 0."""
    words = "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"
    assert reference.philox(0, 0) == tuple(int(word, 16) for word in words.split())


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@example(0, 0)
@example(2**64 - 1, 2**64 - 1)
def test_philox_is_numpys(seed, position):
    counted = np.random.Philox(key=seed, counter=(position - 1) % 2**256).random_raw(4)  # it counts up first
    assert reference.philox(seed, position) == tuple(map(int, counted))
    assert uniform(seed, position) == _sampling._uniform(seed, position) < 1


# ---- the oracle -------------------------------------------------------------------------------------------

logits = hnp.arrays(
    np.float32,
    st.integers(1, 90),
    elements=st.one_of(
        st.floats(-30, 30, width=32), st.integers(-3, 3), st.sampled_from([-np.inf, -0.0, 0.0, 1e-45, 3e38, -3e38])
    ),
)
parameters = st.builds(
    SamplingParameters,
    temperature=st.one_of(st.just(0), st.floats(1e-3, 10), st.sampled_from([1e-45, 1e-30, 1.0, 3e38])),
    top_k=st.one_of(st.none(), st.integers(1, 100)),
    top_p=st.one_of(st.none(), st.floats(1e-6, 1), st.sampled_from([5e-324, 0.5, 1.0])),
    repetition_penalty=st.one_of(st.none(), st.floats(0.5, 2), st.sampled_from([1e-30, 1e30])),
    seed=st.integers(0, 2**64 - 1),
    presence_penalty=st.one_of(st.none(), st.floats(-2, 2), st.sampled_from([1e-45, -1e37])),
    frequency_penalty=st.one_of(st.none(), st.floats(-2, 2), st.sampled_from([0.1, -1e37])),
)


@settings(max_examples=600)
@given(logits, parameters, st.integers(0, 2**64 - 1), st.data())
def test_is_the_oracle(l, parameters, position, data):
    ids = st.integers(0, l.size - 1)
    seen, missing = data.draw(st.lists(ids, max_size=5)), data.draw(st.lists(ids, max_size=9, unique=True))
    places, begin = np.array(missing, np.intp), data.draw(st.integers(0, len(seen)))
    try:
        wanted = oracle(l, parameters, position, seen, missing, begin)
    except ValueError as error:
        with pytest.raises(ValueError) as caught:
            next_token(l, parameters, position, seen, places, begin)
        assert str(caught.value) == str(error)
    else:
        got = next_token(l, parameters, position, seen, places, begin)
        assert got == wanted and type(got) is int and got not in missing


def test_is_the_oracle_for_a_large_vocabulary():
    """A flat distribution, whose nucleus is thousands of tokens, and one of many equals."""
    flat = normal(9001, scale=0.1)
    for l in (flat, np.round(flat * 20).astype(np.float32)):
        for options in ({}, {"top_k": 700}, {"top_p": 0.9}, {"top_k": 3000, "top_p": 0.3}, {"top_p": 0.001}):
            parameters = SamplingParameters(temperature=0.9, seed=7, **options)
            assert next_token(l, parameters, 11) == oracle(l, parameters, 11), options


@pytest.mark.parametrize("change", ["seed", "position", "temperature", "top_k", "top_p", *PENALTIES])
def test_everything_has_a_part(change):
    """Negative control: over 200 rows, another value of each single argument gives other tokens."""
    other = ALL | {"seed": 2, "temperature": 1.6, "top_k": 3, "top_p": 0.3} | dict.fromkeys(PENALTIES, 2.0)
    first = SamplingParameters(**ALL)
    second = SamplingParameters(**ALL | ({change: other[change]} if change != "position" else {}))
    at = 6 if change == "position" else 5
    rows = normal(200, 30, seed=1)
    seen = [0, 7, 8, 9, 20]
    assert [next_token(l, first, 5, seen) for l in rows] != [next_token(l, second, at, seen) for l in rows]
    assert [next_token(l, first, 5, seen) for l in rows] == [oracle(l, first, 5, seen) for l in rows]


# ---- what it means ----------------------------------------------------------------------------------------


def test_greedy_is_the_lowest_of_the_largest():
    assert next_token(np.float32([1, 3, 3, 2]), SamplingParameters(), 4) == 1
    assert next_token(np.float32([1, 3, 3, 2]), SamplingParameters(repetition_penalty=2.0), 4, [1]) == 2
    assert next_token(np.float32([-1, -3]), SamplingParameters(repetition_penalty=4.0), 4, [0, 0]) == 1
    often = SamplingParameters(frequency_penalty=0.5)
    assert next_token(np.float32([5, 4.2]), often, 4, [0, 0], begin=1) == 0  # what the prompt has doesn't count
    assert next_token(np.float32([5, 4.2]), often, 4, [0, 0]) == 1
    assert next_token(np.float32([5, 4.2]), SamplingParameters(presence_penalty=0.5), 4, [0, 0]) == 0
    assert next_token(np.float32([5, 4.2]), SamplingParameters(presence_penalty=1.0), 4, [0, 0]) == 1
    l = np.float32([5, 1])
    next_token(l, SamplingParameters(repetition_penalty=4.0), 4, [0])
    assert l.tolist() == [5, 1], "the caller's logits are left alone"


def test_frequencies_are_the_probabilities():
    """20,000 draws: each count within 5 standard deviations of the multinomial's."""
    l = np.log(np.float32([0.5, 0.25, 0.125, 0.0625, 0.0625]))
    drawn = np.bincount([next_token(l, SamplingParameters(1.0, seed=3), t) for t in range(20000)], minlength=5)
    wanted = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    assert (np.abs(drawn - 20000 * wanted) < 5 * np.sqrt(20000 * wanted * (1 - wanted))).all(), drawn


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 3}, {0, 1, 3}),  # of three equals the lowest id
        ({"top_k": 1}, {1}),
        ({"top_p": 0.4}, {1}),
        ({"top_p": 0.6}, {1, 3}),
        ({"top_p": 0.79}, {0, 1, 3}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"top_k": 4, "top_p": 0.9}, {0, 1, 2, 3}),
    ],
)
def test_what_can_come(options, possible):
    l = np.log(np.float32([0.1, 0.45, 0.1, 0.25, 0.1]))
    drawn = {next_token(l, SamplingParameters(1.0, seed=9, **options), t) for t in range(400)}
    assert drawn == possible


def test_the_impossible_never_comes():
    l = np.float32([-np.inf, 0, -np.inf, -200, 0, -np.inf])
    assert {next_token(l, SamplingParameters(1.0, seed=0), t) for t in range(200)} == {1, 4}


def test_what_is_missing_never_comes():
    """Not where all else is -infinity either, and whatever stands there; the caller's logits are left alone."""
    l = np.float32([np.nan, 2, np.inf, 1])
    for parameters in (SamplingParameters(), SamplingParameters(1.0, seed=0)):
        assert next_token(l, parameters, 4, missing=np.array([0, 1, 2])) == 3
        with pytest.raises(ValueError, match=r"-infinity for every id that can come|must be finite"):
            next_token(np.float32([-np.inf, 5]), parameters, 4, missing=np.array([1]))
    assert np.isnan(l[0]) and l[2] == np.inf


@settings(max_examples=200)
@given(hnp.arrays(np.float32, st.integers(1, 400), elements=st.floats(-90, 90, width=32)))
def test_the_largest_u_finds_a_token(l):
    """u < 1 keeps u * total below total in float64, so the search can't run past the end."""
    total = np.cumsum(llorch.softmax(l).astype(np.float64))[-1]
    assert (1 - 2.0**-53) * total < total


def test_penalty_is_that_of_transformers():
    torch, logits_process = pytest.importorskip("torch"), pytest.importorskip("transformers.generation.logits_process")
    for seed in range(20):
        l = normal(50, seed=seed)
        seen = rng(seed).integers(0, 50, 12)
        theirs = logits_process.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor(seen[None]), torch.tensor(l[None]))
        ours = next_token(l, SamplingParameters(repetition_penalty=1.3), 5, seen.tolist())
        assert ours == int(theirs[0].argmax())


# ---- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -1}, ValueError, "temperature must be 0, or more than 0 and finite in float32, got -1.0"),
        ({"temperature": 1e-60}, ValueError, "temperature must be"),
        ({"temperature": 1e39}, ValueError, "temperature must be"),
        ({"temperature": math.nan}, ValueError, "temperature must be finite, got nan"),
        ({"temperature": 10**400}, ValueError, "temperature must be finite, got int too large for a float"),
        ({"top_p": np.complex64(0.5 + 1j)}, TypeError, "top_p must be a number"),
        ({"temperature": "1"}, TypeError, "temperature must be a number, got '1'"),
        ({"temperature": None}, TypeError, "temperature must be a number, got None"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 1.5}, TypeError, "top_k must be an integer, got 1.5"),
        ({"top_k": True}, TypeError, "top_k must be an integer, got True"),
        ({"top_p": 0}, ValueError, "top_p must be more than 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, ValueError, "top_p must be"),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty must be more than 0"),
        ({"repetition_penalty": math.inf}, ValueError, "repetition_penalty must be finite"),
        ({"presence_penalty": 1e39}, ValueError, "presence_penalty must be finite in float32, got 1e"),
        ({"frequency_penalty": "a"}, TypeError, "frequency_penalty must be a number, got 'a'"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 18446744073709551616\), got -1"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"seed": "x"}, TypeError, "seed must be an integer, got 'x'"),
    ],
)
def test_bad_parameters(options, error, message):
    with pytest.raises(error, match=message):
        SamplingParameters(**options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: next_token(np.float32([1, np.nan]), SamplingParameters(), 1), ValueError, r"logits\[1\] is NaN"),
        (lambda: next_token(np.float32([1, np.nan]), SamplingParameters(**ALL), 1), ValueError, r"logits\[1\] is NaN"),
        (lambda: next_token(np.float32([1, np.inf]), SamplingParameters(**ALL), 1), ValueError, r"logits\[1\], the la"),
        (lambda: next_token(np.float32([-np.inf]), SamplingParameters(**ALL), 1), ValueError, r"logits\[0\], the larg"),
        (lambda: next_token(np.zeros(3), SamplingParameters(), 1), TypeError, "logits is float64"),
        (lambda: next_token(normal(2, 3), SamplingParameters(), 1), ValueError, r"logits has shape \(2, 3\)"),
        (lambda: next_token(normal(3), SamplingParameters(1.0), 1), ValueError, "parameters.seed is None"),
        (lambda: next_token(normal(3), SamplingParameters(**ALL), 1, [3]), IndexError, r"seen has 3, ids must be in"),
        (lambda: next_token(normal(3), SamplingParameters(**ALL), 1, [-1]), IndexError, "seen has -1"),
    ],
)
def test_bad_logits(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_seed_is_drawn_where_it_is_needed():
    assert SamplingParameters().seeded().seed is None
    assert SamplingParameters(1.0, seed=4).seeded().seed == 4
    first, second = (SamplingParameters(1.0).seeded().seed for _ in range(2))
    assert first != second and 0 <= first < 2**32


# ---- the logarithm of the oracle --------------------------------------------------------------------------


@given(st.floats(1, 2**24))
@example(1.0)
@example(2.0)
@example(math.nextafter(1, 2))
@example(2.0**24)
def test_log_is_correctly_rounded(z):
    with localcontext(prec=60):
        assert _sampling.log(z) == float(Decimal(z).ln())
