"""Generated text: what the oracle chooses, alone as in any batch; where it ends; scores; what is refused, and when."""

import json
import math
import shutil
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits, num_threads, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import llorch
from llorch import reference
from llorch.text import batch as module
from llorch.text.generate import Faces
from llorch.text.sampling import log_probabilities

generate, stream, generate_batch, score = (
    Faces.generate,
    Faces.stream,
    Faces.generate_batch,
    Faces.score,
)  # of any model
MODEL = llorch.GPT2.from_pretrained("shakespeare-1m")
CONTEXT = MODEL.config.n_positions
END = MODEL.config.eos_token_id
PROMPTS = ["ROMEO:", "O", "KING RICHARD III:\nNow is the winter of our discontent", "What, ho!\n\n", "JULIET:\nO Romeo"]
GREEDY = {}
SAMPLED = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 5}


class Scripted:
    """The model, but what it chooses is given, by position: from behind the first token on. Counts its work."""

    def __init__(self, follows):
        self.follows = MODEL.tokenizer.encode(follows) if isinstance(follows, str) else follows
        self.fed = self.widest = self.steps = 0

    def __getattr__(self, name):
        return getattr(MODEL, name)

    def step(self, chunks, caches):
        logits = MODEL.step(chunks, caches)
        self.steps += 1
        self.fed += sum(map(len, chunks))
        self.widest = max(self.widest, len(chunks))
        for row, cache in zip(logits, caches, strict=True):
            row[self.follows[cache.length - 1]] = 1e6
        return logits


class Untouchable:
    """Fails if anything is computed."""

    def __getattr__(self, name):
        assert name not in ("step", "forward"), "work before the arguments were checked"
        return getattr(MODEL, name)


# ---- bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [GREEDY, SAMPLED, {"temperature": 1.0, "seed": 0}], ids=["greedy", "all", "plain"])
def test_is_the_oracles_choice_from_uncached_logits(options):
    """Every token once more, from the logits of the whole text before it."""
    parameters = {k: v for k, v in options.items() if k != "seed"} | {"seed": options.get("seed", 0)}
    for prompt in PROMPTS[:3]:
        ids = MODEL.tokenizer.encode(prompt)
        new = generate(MODEL, ids, 25, **options)
        assert len(new) == 25
        for id in new:
            assert id == reference.next_token(MODEL.forward(ids)[-1], len(ids), ids, **parameters)
            ids.append(id)
        assert generate(MODEL, prompt, 25, **options) == MODEL.tokenizer.decode(new)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_batch_is_one_by_one(options):
    mixed = [*PROMPTS, MODEL.tokenizer.encode(PROMPTS[2]), [17], np.arange(200) % 97 + 1]
    alone = [generate(MODEL, prompt, 30, **options) for prompt in mixed]
    assert [type(result) for result in alone] == [str] * 5 + [list] * 3
    for size in (1, 2, 3, 32):
        assert generate_batch(MODEL, mixed, 30, batch_size=size, **options) == alone, size
    with num_threads(2):
        assert generate_batch(MODEL, mixed[::-1], 30, **options) == alone[::-1]
    assert MODEL.generate_batch(mixed, 30, **options) == alone
    assert [MODEL.generate(prompt, 30, **options) for prompt in mixed] == alone


def test_a_shared_stream_of_random_numbers_would_be_seen(monkeypatch):
    """Negative control: drawing from one generator in turn, as is usual, a batch is not one by one."""
    shared = np.random.default_rng(0)

    def draw(logits, parameters, position, seen, missing, begin):
        return int(np.searchsorted(np.cumsum(llorch.softmax(logits)), shared.random(), side="right"))

    monkeypatch.setattr(module, "next_token", draw)
    together = generate_batch(MODEL, PROMPTS, 20)
    shared = np.random.default_rng(0)
    assert together != [generate(MODEL, prompt, 20) for prompt in PROMPTS]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_prompts_may_be_read_in_any_chunks(monkeypatch, chunk):
    wanted = generate_batch(MODEL, PROMPTS, 12, **SAMPLED)
    monkeypatch.setattr(module, "CHUNK", chunk)
    assert generate_batch(MODEL, PROMPTS, 12, **SAMPLED) == wanted
    assert [generate(MODEL, prompt, 12, **SAMPLED) for prompt in PROMPTS] == wanted


def test_text_continues_as_if_it_had_not_stopped():
    """A position's draw is its own: 10 tokens and 20 more are the 30."""
    ids = MODEL.tokenizer.encode(PROMPTS[0])
    whole = generate(MODEL, ids, 30, **SAMPLED)
    first = generate(MODEL, ids, 10, **SAMPLED)
    assert first + generate(MODEL, ids + first, 20, **SAMPLED) == whole


def test_every_16_bit_type(isa):
    for dtype in ("float32", "bfloat16", "float16"):
        model = llorch.GPT2.from_pretrained("shakespeare-1m", dtype=dtype)
        alone = [generate(model, prompt, 10, **SAMPLED) for prompt in PROMPTS[:3]]
        assert generate_batch(model, PROMPTS[:3], 10, **SAMPLED) == alone


@pytest.mark.network
def test_the_published_continuation():
    """llama-orch's checkpoint 12: the real GPT-2 Medium, end to end."""
    model = llorch.GPT2.from_pretrained("openai-community/gpt2-medium")
    assert model.generate("Hello.", 10) == " I'm a little late to the party, but"


# ---- seeds ------------------------------------------------------------------------------------------------


def test_seeds():
    options = {"temperature": 1.0}
    one, two = (generate(MODEL, PROMPTS[0], 20, seed=seed, **options) for seed in (1, 2))
    assert one != two
    assert generate_batch(MODEL, [PROMPTS[0]] * 3, 20, seed=[1, 2, 1], **options) == [one, two, one]
    assert generate_batch(MODEL, [PROMPTS[0]] * 2, 20, seed=2, **options) == [two, two], "equal prompts, equal texts"
    assert len(set(generate_batch(MODEL, [PROMPTS[0]] * 3, 20, **options))) == 3, "a fresh seed for each"
    fresh = stream(MODEL, PROMPTS[0], 20, **options)
    text = "".join(fresh)
    assert text == generate(MODEL, PROMPTS[0], 20, seed=fresh.seed, **options)
    assert stream(MODEL, PROMPTS[0], 20).seed is None


# ---- the end ----------------------------------------------------------------------------------------------

TEXT = "Hark! What light?\nThe end. \U0001f600 THE END."


@pytest.mark.parametrize(
    ("stop", "wanted", "reason"),
    [
        (None, TEXT, "length"),
        ("light", "Hark! What ", "stop"),
        ("ark! What li", "H", "stop"),  # over several tokens
        ("ar", "H", "stop"),  # inside of one, or two
        ("\n", "Hark! What light?", "stop"),
        (["end.", "?", "nothing"], "Hark! What light", "stop"),
        ("H", "", "stop"),
        ("\U0001f600", "Hark! What light?\nThe end. ", "stop"),
        ("THE END.\n", TEXT, "length"),  # held back to the last, and never completed
        (["What light!", "Hark? "], TEXT, "length"),  # begun, but not what comes
        (TEXT, "", "stop"),
        (MODEL.tokenizer.encode("\n")[0], "Hark! What light?", "stop"),
        ([np.int64(MODEL.tokenizer.encode("\n")[0]), "What"], "Hark! ", "stop"),
    ],
)
def test_stop(stop, wanted, reason):
    model = Scripted(TEXT)
    pieces = stream(model, "O", len(model.follows), stop=stop)
    got = list(pieces)
    assert "".join(got) == wanted and pieces.finish_reason == reason
    assert "" not in got and all("\ufffd" not in piece for piece in got)
    assert generate(model, "O", len(model.follows), stop=stop) == wanted
    assert generate_batch(model, ["O", "O"], len(model.follows), stop=stop) == [wanted, wanted]


def test_nothing_is_given_that_may_become_a_stop_string():
    model = Scripted("abcabd")
    pieces = stream(model, "O", 6, stop="abd")
    assert "".join(pieces) == "abc"


@settings(max_examples=60)
@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_are_found_where_they_first_stand(text, stops):
    """Tokens are single letters: the text ends with the first letter that completes a stop string."""
    letters = [MODEL.tokenizer.encode(letter)[0] for letter in text]
    wanted = text
    for end in range(1, len(text) + 1):
        places = [at for stop in stops if (at := text[:end].find(stop)) >= 0]
        if places:
            wanted = text[: min(places)]
            break
    assert generate(Scripted(letters), "O", len(letters), stop=stops) == wanted


def test_the_end_of_text_ends_it():
    model = Scripted([5, 6, END, 7])
    pieces = stream(model, [1], 4)
    assert list(pieces) == [5, 6] == pieces.ids and pieces.finish_reason == "stop"
    assert generate(model, "O", 4) == MODEL.tokenizer.decode([5, 6])
    assert generate(model, [1], 4, stop=[6]) == [5]
    assert generate(Scripted([END]), "O", 1) == ""


def test_a_character_cut_off_by_the_end_comes_broken_as_in_decode():
    ids = MODEL.tokenizer.encode("x\U0001f600")[:3]
    assert generate(Scripted(ids), "O", 3) == MODEL.tokenizer.decode(ids) == "x\ufffd"
    assert generate(Scripted([*ids, END]), "O", 4) == "x\ufffd"


def test_the_context_may_be_filled():
    prompt = [7] * (CONTEXT - 3)
    assert len(generate(MODEL, prompt, 3)) == 3
    with pytest.raises(ValueError, match=f"prompt has 253 tokens, the context {CONTEXT}: max_new_tokens can be at mos"):
        generate(Untouchable(), prompt, 4)
    assert generate(MODEL, [7] * CONTEXT, 0) == []
    assert generate(MODEL, "O", 0) == ""
    assert generate_batch(MODEL, [], 5) == []


# ---- ids without a token ---------------------------------------------------------------------------------


class Lacking(Scripted):
    """A model whose tokenizer lacks the given ids; its logits are the largest there."""

    def __init__(self, missing):
        super().__init__([])
        self.missing_ids = np.array(missing, np.intp)

    def step(self, chunks, caches):
        logits = MODEL.step(chunks, caches)
        logits[:, self.missing_ids] = 1e4
        return logits


@pytest.mark.parametrize("options", [GREEDY, SAMPLED, {"temperature": 5.0, "seed": 3}], ids=["greedy", "all", "hot"])
def test_an_id_without_a_token_is_never_chosen(options):
    missing = [7, 8, 9, *range(500, 700)]
    model = Lacking(missing)
    parameters = {"seed": 0} | options
    ids = MODEL.tokenizer.encode(PROMPTS[0])
    new = generate(model, ids, 25, **options)
    assert new and not set(new) & set(missing)
    assert generate(model, PROMPTS[0], 25, **options) == MODEL.tokenizer.decode(new)
    assert generate_batch(model, [ids, ids], 25, **options) == [new, new]
    for id in new:
        logits = model.step([ids], [MODEL.new_cache()])[0]
        assert id == reference.next_token(logits, len(ids), ids, missing=missing, **parameters)
        assert reference.next_token(logits, len(ids), ids, **parameters) in missing, "negative control"
        ids.append(id)


def padded(folder, more=64):
    """The embedded model with rows of the embedding that no token has, and of large logits."""
    shutil.copytree(MODEL.path, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("wte.weight"))
    rows = np.broadcast_to(np.asarray(3, tensors[name].dtype), (more, tensors[name].shape[1]))
    save_file(tensors | {name: np.concatenate([tensors[name], rows])}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + more}))
    return folder


def test_a_padded_vocabulary(tmp_path):
    model = llorch.CausalLM.from_pretrained(padded(tmp_path / "padded"))
    assert model.forward([5, 6]).shape == (2, 1024 + 64)
    with pytest.warns(UserWarning, match="the model has 1088 ids, 64 have no token, such as 1024: these are never ch"):
        assert model.generate(PROMPTS[0], 10) == MODEL.generate(PROMPTS[0], 10)
    for options in ({}, SAMPLED):  # said once: another warning would be an error here
        assert max(model.generate([5, 6], 30, **options)) < 1024
    assert MODEL.missing_ids.size == 0


def test_without_a_tokenizer_every_id_can_come(tmp_path):
    folder = padded(tmp_path / "padded")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink()
    model = llorch.CausalLM.from_pretrained(folder)
    assert model.missing_ids.size == 0 and len(model.generate([5, 6], 5)) == 5


# ---- tokens that end a text -------------------------------------------------------------------------------


def test_generation_config_has_ends_too(tmp_path):
    shutil.copytree(MODEL.path, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    for entry, wanted in [(None, set()), (7, {7}), ([7, 8], {7, 8})]:
        path.write_text(json.dumps({"eos_token_id": entry}))
        model = llorch.CausalLM.from_pretrained(tmp_path / "model")
        assert model.end_ids == wanted | {END}
    pieces = stream(Scripted([5, 6]), [1], 2)
    assert list(pieces) == [5, 6]
    ends = Scripted([5, 8, 6])
    ends.end_ids = model.end_ids
    pieces = stream(ends, [1], 3)
    assert list(pieces) == [5] and pieces.finish_reason == "stop"
    path.write_text('{"eos_token_id": -1}')
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id is -1"):
        llorch.CausalLM.from_pretrained(tmp_path / "model").generate("O", 1)
    path.write_text('{"eos_token_id": "x"}')
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id is x"):
        llorch.CausalLM.from_pretrained(tmp_path / "model").generate("O", 1)


# ---- work -------------------------------------------------------------------------------------------------


def test_no_padding_and_no_more_than_batch_size():
    model = Scripted(MODEL.tokenizer.encode(TEXT))
    prompts = [[1], [1, 2, 3], [4] * 9, [1, 2]]
    got = generate_batch(model, prompts, 5, batch_size=3)
    assert model.widest == 3
    assert model.fed == sum(map(len, prompts)) + sum(len(ids) - 1 for ids in got), "each token once, but the last"


def test_a_sequence_that_ends_makes_room():
    """The third begins when the first ends, not when both have: 4 steps and not 5."""
    model = Scripted([5, END, 6, 7, 8])
    assert generate_batch(model, [[1], [1, 1, 1], [1]], 3, batch_size=2) == [[5], [6, 7, 8], [5]]
    assert (model.widest, model.steps) == (2, 4)


def test_a_stream_computes_no_more_than_is_asked_for():
    model = Scripted(MODEL.tokenizer.encode("abcdef"))
    pieces = stream(model, [1], 6)
    assert model.fed == 0
    next(pieces)
    assert model.fed == 1
    next(pieces)
    assert model.fed == 2 and len(pieces.ids) == 2 and pieces.finish_reason is None


def test_progress(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    calls = []
    generate_ids = stream(MODEL, [3] * 10, 3, progress=lambda *call: calls.append(call))
    assert len(list(generate_ids)) == 3 and calls == [(4, 10), (8, 10), (10, 10)]
    calls.clear()
    score(MODEL, [3] * 100, progress=lambda *call: calls.append(call))
    assert calls == [(64, 99), (99, 99)]


# ---- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: generate(m, "", 5), ValueError, r"prompt is empty: a model needs .* such as \[0\]"),
        (lambda m: generate(m, [], 5), ValueError, "prompt is empty"),
        (lambda m: generate(m, [1, 1024], 5), IndexError, r"prompt\[1\] is 1024, ids must be in \[0, 1024\)"),
        (lambda m: generate(m, [-1], 5), IndexError, r"prompt\[0\] is -1"),
        (lambda m: generate(m, [1.5], 5), TypeError, "prompt must be ints, got float64"),
        (lambda m: generate(m, ["a", "b"], 5), TypeError, "prompt must be ints, got texts"),
        (lambda m: generate(m, b"x", 5), TypeError, "prompt must be token ids, got a bytes"),
        (lambda m: generate(m, [1] * 300, 5), ValueError, "prompt has 300 tokens, the context only 256"),
        (lambda m: generate(m, [1], 256), ValueError, "prompt has 1 token, the context 256: max_new_tokens can be at"),
        (lambda m: generate(m, [1, True], 5), TypeError, r"prompt\[1\] is True, ids must be ints"),
        (lambda m: generate(m, [np.False_, 2], 5), TypeError, r"prompt\[0\] is False, ids must be ints"),
        (lambda m: score(m, (1, 2, True)), TypeError, r"text\[2\] is True, ids must be ints"),
        (lambda m: generate(m, "O " * 300, 5), ValueError, "prompt has .* tokens, the context only 256"),
        (lambda m: generate(m, "O", 256), ValueError, "max_new_tokens can be at most 255, got 256"),
        (lambda m: generate(m, "O", -1), ValueError, "max_new_tokens must be at least 0, got -1"),
        (lambda m: generate(m, "O", 1.5), TypeError, "max_new_tokens must be an integer, got 1.5"),
        (lambda m: generate(m, "O", 5, temperature=-1), ValueError, "temperature must be"),
        (lambda m: generate(m, "O", 5, top_p=2), ValueError, "top_p must be"),
        (lambda m: generate(m, "O", 5, seed=-3), ValueError, "seed must be in"),
        (lambda m: generate(m, "O", 5, warmth=1), TypeError, "unexpected keyword argument 'warmth'"),
        (lambda m: generate(m, "O", 5, stop=""), ValueError, "stop has an empty string"),
        (lambda m: generate(m, "O", 5, stop=["a", ""]), ValueError, "stop has an empty string"),
        (lambda m: generate(m, "O", 5, stop=1024), ValueError, r"stop, if it isn't a string, must be in \[0, 1024\)"),
        (lambda m: generate(m, "O", 5, stop=1.5), TypeError, "stop, if it isn't a string, must be an integer"),
        (lambda m: generate(m, [1], 5, stop="a"), TypeError, "stop has the string 'a', but prompt is ids"),
        (lambda m: stream(m, "", 5), ValueError, "prompt is empty"),
        (lambda m: stream(m, "O", 5, top_k=0), ValueError, "top_k must be at least 1"),
        (lambda m: generate_batch(m, "O", 5), TypeError, "prompts must be several prompts, got str"),
        (lambda m: generate_batch(m, 3, 5), TypeError, "prompts must be several prompts, got int"),
        (lambda m: generate_batch(m, ["O", ""], 5), ValueError, r"prompts\[1\] is empty"),
        (lambda m: generate_batch(m, ["O", [1, -2]], 5), IndexError, r"prompts\[1\]\[1\] is -2"),
        (lambda m: generate_batch(m, ["O"], 5, seed=[1, 2]), ValueError, "seed has 2 seeds for 1 prompt"),
        (lambda m: generate_batch(m, ["O"], 5, seed="1"), TypeError, "seed must be an integer, got '1'"),
        (lambda m: generate_batch(m, ["O"], 5, batch_size=0), ValueError, "batch_size must be at least 1"),
        (lambda m: score(m, ""), ValueError, "text is empty"),
        (lambda m: score(m, [1]), ValueError, "text has 1 token, it must have at least 2"),
        (lambda m: score(m, [1] * 257), ValueError, "text has 257 tokens, the context only 256: give stride"),
        (lambda m: score(m, [1] * 9, stride=0), ValueError, "stride must be at least 1, got 0"),
        (lambda m: score(m, [1] * 9, stride=256), ValueError, "stride is 256, it must be less than 256, the context"),
        (lambda m: score(m, [1] * 9, stride=2.5), TypeError, "stride must be an integer, got 2.5"),
        (lambda m: score(m, [1, 1024]), IndexError, r"text\[1\] is 1024"),
    ],
)
def test_errors_come_before_any_work(call, error, message):
    with pytest.raises(error, match=message):
        call(Untouchable())


# ---- score ------------------------------------------------------------------------------------------------


def test_score_is_the_oracle(isa):
    ids = MODEL.tokenizer.encode("ROMEO:\nBut, soft! what light through yonder window breaks? " * 6)[:150]
    result = score(MODEL, ids)
    wanted = reference.log_probabilities(MODEL.forward(ids)[:-1], ids[1:])
    assert result.ids == ids
    assert_same_bits(result.log_probabilities, wanted)
    assert result.log_likelihood == math.fsum(wanted)
    with localcontext(prec=60):
        assert result.perplexity == float(Decimal(-math.fsum(wanted) / len(wanted)).exp())


def test_score_of_text_is_that_of_its_ids():
    text = "ROMEO:\nBut, soft!"
    one, other = score(MODEL, text), MODEL.score(MODEL.tokenizer.encode(text))
    assert one.ids == other.ids
    assert_same_bits(one.log_probabilities, other.log_probabilities)


LONG = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer " * 18


def windows(count, stride):
    """transformers' guide, "Perplexity of fixed-length models": of each window begin, end, and tokens that are new."""
    before = 0
    for begin in range(0, count, stride):
        end = min(begin + CONTEXT, count)
        yield begin, end, end - before
        before = end
        if end == count:
            break


@pytest.mark.parametrize("stride", [CONTEXT - 1, CONTEXT // 2, 100])
def test_a_long_text_is_scored_in_windows(stride):
    """Each window once more by the oracle, from uncached logits."""
    ids = MODEL.tokenizer.encode(LONG)
    assert len(ids) > 2 * CONTEXT
    result = score(MODEL, LONG, stride=stride)
    parts = []
    for begin, end, new in windows(len(ids), stride):
        window = ids[begin:end]
        new = min(new, len(window) - 1)  # nothing is before a text's first token
        logits = MODEL.forward(window)[-new - 1 : -1]
        parts.append(reference.log_probabilities(logits, window[-new:]))
    assert_same_bits(result.log_probabilities, np.concatenate(parts))
    assert result.ids == ids and len(result.log_probabilities) == len(ids) - 1


def test_a_stride_changes_nothing_where_all_fits():
    ids = MODEL.tokenizer.encode(LONG)[:CONTEXT]
    assert_same_bits(score(MODEL, ids, stride=7).log_probabilities, score(MODEL, ids).log_probabilities)


def test_windows_have_a_part():
    """Negative control: another stride, other scores, and only where a window has begun anew."""
    ids = MODEL.tokenizer.encode(LONG)[: CONTEXT + 60]
    one, other = (score(MODEL, ids, stride=stride).log_probabilities for stride in (100, 200))
    assert_same_bits(one[: CONTEXT - 1], other[: CONTEXT - 1])
    assert (one[CONTEXT - 1 :] != other[CONTEXT - 1 :]).any()


def test_scoring_needs_the_memory_of_one_window():
    class Watched(Scripted):
        caches, longest = 0, 0

        def new_cache(self, capacity):
            self.caches += 1
            assert capacity <= CONTEXT
            return MODEL.new_cache(capacity)

        def forward(self, ids, cache):
            self.longest = max(self.longest, len(ids))
            return MODEL.forward(ids, cache)

    model, calls = Watched([]), []
    model.step = MODEL.step
    score(model, [5] * 2000, stride=200, progress=lambda *call: calls.append(call))
    assert model.caches == 1 and model.longest <= 64
    assert calls == sorted(set(calls)) and calls[-1] == (1999, 1999)


def test_scores_of_special_logits():
    l = np.float32([[0, 0, -np.inf], [3e38, -3e38, 0], [-0.0, 0.0, -200], [7, 7, 7]])
    got = log_probabilities(l, [2, 1, 2, 0])
    assert_same_bits(got, reference.log_probabilities(l, [2, 1, 2, 0]))
    assert got[0] == -np.inf and got[1] == -2 * float(np.float32(3e38)) and got[3] == -math.log(3)
    big = rng(0).standard_normal((3, 50257)).astype(np.float32) * 5
    assert_same_bits(log_probabilities(big, [1, 2, 50256]), reference.log_probabilities(big, [1, 2, 50256]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_score_nothing(bad):
    with pytest.raises(ValueError, match="logits"):
        log_probabilities(np.float32([[1, 2], [bad, 0]]), [0, 0])


@pytest.mark.parametrize("kind", [llorch.CausalLM, llorch.TextEncoder, llorch.CrossEncoder])
@pytest.mark.parametrize("path", ["shakespeare-1m", Path("shakespeare-1m")])
def test_a_path_is_for_from_pretrained(kind, path):
    with pytest.raises(TypeError, match=rf"a {kind.__name__} is made by {kind.__name__}\.from_pretrained\("):
        kind(path)
