"""The scheduler: sequences come, go and fail between steps, and no other sequence notices."""

import numpy as np
import pytest

import llorch
from llorch.text.batch import Batch, Event, QueueFull, Request
from llorch.text.prefixes import Prefixes
from llorch.text.sampling import SamplingParameters

MODEL = llorch.CausalLM.from_pretrained("shakespeare-1m")
PROMPTS = ["ROMEO:", "O", "KING RICHARD III:\nNow is the winter of our discontent", [5, 6, 7], [3] * 40]
WAYS = [
    SamplingParameters(),
    SamplingParameters(0.9, top_k=50, top_p=0.95, seed=1),
    SamplingParameters(repetition_penalty=1.5),
    SamplingParameters(1.3, seed=2),
    SamplingParameters(1.0, top_p=0.5, seed=3),
]


def alone(prompt, parameters, count):
    options = {name: value for name, value in vars(parameters).items() if value is not None}
    return MODEL.generate(prompt, count, **options)


def pieces(prompt, events, id):
    found = [piece for event in events if event.id == id for piece in event.pieces]
    return "".join(found) if isinstance(prompt, str) else found


@pytest.mark.parametrize(("most", "chunk"), [(1, 256), (2, 3), (32, 7), (3, 256)])
def test_each_request_has_its_own_parameters_and_time(most, chunk):
    """One added before each step: every one is what it is alone."""
    batch, events, ids = Batch(MODEL, most, chunk), [], []
    for prompt, parameters in zip(PROMPTS, WAYS, strict=True):
        ids.append(batch.add(Request(prompt, 12, parameters)))
        events += batch.step()
    while batch:
        events += batch.step()
    for id, prompt, parameters in zip(ids, PROMPTS, WAYS, strict=True):
        assert pieces(prompt, events, id) == alone(prompt, parameters, 12)
        last = [event for event in events if event.id == id][-1]
        assert last.reason == "length" and last.error is None
    assert len(batch) == 0 and batch.step() == []


def test_what_is_cancelled_is_gone_and_nothing_else_changes():
    batch = Batch(MODEL, 2)
    ids = [batch.add(Request(prompt, 12, way)) for prompt, way in zip(PROMPTS[:4], WAYS, strict=False)]
    events = batch.step() + batch.step()
    assert batch.cancel(ids[0]) and batch.cancel(ids[3]) and len(batch) == 2  # one under way, one that waits
    assert not batch.cancel(ids[0]) and not batch.cancel(99)
    while batch:
        events += (new := batch.step())
        assert {event.id for event in new} <= {ids[1], ids[2]}
    for i in (1, 2):
        assert pieces(PROMPTS[i], events, ids[i]) == alone(PROMPTS[i], WAYS[i], 12)


def test_a_request_for_nothing_ends_at_once():
    batch = Batch(MODEL)
    first, second = batch.add(Request("O", 0)), batch.add(Request([1], 1))
    events = batch.step()
    assert events[0] == Event(first, 0, reason="length") and events[1].id == second and len(batch) == 0


class Faulty:
    """A model that fails as it is told to, or gives one sequence logits of NaN."""

    def __init__(self):
        self.error, self.broken = None, None

    def __getattr__(self, name):
        return getattr(MODEL, name)

    def step(self, chunks, caches):
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        logits = MODEL.step(chunks, caches)
        if self.broken is not None:
            logits[self.broken] = np.nan
        return logits


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_a_step_that_fails_can_be_tried_again(error):
    model = Faulty()
    batch, events = Batch(model), []
    ids = [batch.add(Request(prompt, 6, way)) for prompt, way in zip(PROMPTS, WAYS, strict=True)]
    for i in range(20):
        if i in (0, 2):
            model.error = error
            with pytest.raises(type(error)):
                batch.step()
        events += batch.step()
    for id, prompt, way in zip(ids, PROMPTS, WAYS, strict=True):
        assert pieces(prompt, events, id) == alone(prompt, way, 6)


def test_a_sequence_that_fails_leaves_the_others():
    model = Faulty()
    batch = Batch(model)
    ids = [batch.add(Request(prompt, 6, way)) for prompt, way in zip(PROMPTS[:3], WAYS, strict=False)]
    events = batch.step()
    model.broken = 1
    events += batch.step()
    model.broken = None
    failed = [event for event in events if event.reason == "error"]
    assert [event.id for event in failed] == [ids[1]] and "NaN" in str(failed[0].error) and len(batch) == 2
    while batch:
        events += batch.step()
    for i in (0, 2):
        assert pieces(PROMPTS[i], events, ids[i]) == alone(PROMPTS[i], WAYS[i], 6)
    model.broken = 0
    with pytest.raises(ValueError, match="NaN"):
        llorch.CausalLM.generate(model, "O", 3)


def test_what_is_wrong_is_said_when_it_is_added():
    batch = Batch(MODEL)
    with pytest.raises(ValueError, match="it is empty"):
        batch.add(Request("", 3, name="it"))
    with pytest.raises(ValueError, match="max_sequences must be at least 1, got 0"):
        Batch(MODEL, 0)
    with pytest.raises(TypeError, match="max_tokens_per_step must be an integer"):
        Batch(MODEL, max_tokens_per_step=1.5)
    assert len(batch) == 0


# ---- turns, and memory ------------------------------------------------------------------------------------


class Watched:
    """A model that notes how many tokens each call had of each sequence."""

    def __init__(self):
        self.steps = []

    def __getattr__(self, name):
        return getattr(MODEL, name)

    def step(self, chunks, caches):
        self.steps.append([len(chunk) for chunk in chunks])
        return MODEL.step(chunks, caches)


def run(batch, requests):
    """What each adds, and all events."""
    ids, events = [batch.add(request) for request in requests], []
    while batch:
        events += batch.step()
        if batch.memory is not None:
            assert batch.memory_reserved + batch.memory_kept <= batch.memory
    return [pieces(request.prompt, events, id) for request, id in zip(requests, ids, strict=True)], events


def test_a_long_prompt_stops_nobody():
    """Each sequence that has begun gets its token in every step, and no step is longer than was asked for."""
    model = Watched()
    batch = Batch(model, 8, 16)
    first = [batch.add(Request(prompt, 60)) for prompt in PROMPTS[:3]]
    for _ in range(6):
        batch.step()
    long = [batch.add(Request([7] * 150, 3)), batch.add(Request([8] * 90, 3))]
    model.steps.clear()
    events = []
    while not any(event.id == long[1] and event.token is not None for event in events):
        now = batch.step()
        assert {event.id for event in now} >= set(first) and all(e.token is not None for e in now if e.id in first)
        events += now
    assert max(map(sum, model.steps)) == 16
    told = [event.id for event in events if event.token is not None and event.id in long]
    assert told[0] == long[0], "first come, first served"
    assert len(model.steps) <= -(-240 // 12) + 1, "all the room is used"


def test_who_waits_begins_in_order():
    """A long request isn't passed by short ones that would fit beside what runs."""
    block = MODEL.cache_nbytes(1)
    batch = Batch(MODEL, 8, memory=2 * block)
    ids = [batch.add(Request([1] * n, 3)) for n in (100, 200, 5)]
    assert {event.id for event in batch.step()} == {ids[0]} and batch.waiting == 2
    order = []
    while batch:
        order += [event.id for event in batch.step() if event.reason]
    assert order == ids


def test_memory_is_known_before():
    cache = MODEL.new_cache()
    for count in (1, 127, 1, 70):
        MODEL.forward([3] * count, cache)
        assert cache.nbytes == MODEL.cache_nbytes(cache.length)
    block = MODEL.cache_nbytes(1)
    batch = Batch(MODEL, 2, memory=block, max_waiting=1)
    with pytest.raises(ValueError, match=r"have 129 tokens, whose keys and values take .* bytes: more than memory"):
        batch.add(Request([1] * 100, 29))
    batch.add(Request([1] * 100, 20))
    batch.add(Request([1] * 100, 20))  # waits
    with pytest.raises(QueueFull, match="the queue has its 1 sequence: try again later"):
        batch.add(Request([1], 1))
    batch.cancel(1)
    batch.add(Request([1], 1))
    assert len(batch) == 2 and not Batch(MODEL, memory=block).memory_reserved


TALK = [(i * 7) % 900 + 5 for i in range(240)]


def alike(beginnings=(0, 1, 100, 128, 129, 200, 239)):
    """Prompts that have beginnings of one text in common, then go their own way."""
    return [Request(TALK[:n] + [n % 50 + 6] * 10, 4, WAYS[i % len(WAYS)]) for i, n in enumerate(beginnings)]


@pytest.mark.parametrize("blocks", [3, 4, 9, 60])
def test_a_cold_cache_and_a_warm_one_give_the_same_bits(blocks):
    requests = alike() + alike()[::-1] + [Request(TALK, 4)] * 2
    wanted = [alone(request.prompt, request.parameters, request.max_new_tokens) for request in requests]
    model = Watched()
    batch = Batch(model, 3, 64, blocks * MODEL.cache_nbytes(1))
    assert run(batch, requests)[0] == wanted
    read = sum(map(sum, model.steps))
    model.steps.clear()
    assert run(batch, requests)[0] == wanted
    again = sum(map(sum, model.steps))
    new = sum(request.max_new_tokens for request in requests)
    assert blocks < 60 or again < new + 2 * len(requests), "all is there, but each last token"
    assert read < sum(len(request.prompt) for request in requests), "beginnings are shared"


def test_the_bits_are_those_of_the_beginning():
    """Negative control: with the keys and values of another beginning the text is another."""
    request = Request(TALK[:200] + [9] * 20, 12)
    wanted = alone(request.prompt, request.parameters, 12)
    batch = Batch(MODEL, memory=9 * MODEL.cache_nbytes(1))
    other = MODEL.new_cache()
    MODEL.forward(TALK[:199][::-1], other)
    batch._prefixes.keep(TALK[:199], other, set(), 9)
    assert run(batch, [request])[0] != [wanted]


def test_what_is_cancelled_gives_its_memory_back():
    batch = Batch(MODEL, 4, 32, 12 * MODEL.cache_nbytes(1))
    ids = [batch.add(request) for request in alike()[4:]]
    for _ in range(4):
        batch.step()
    assert batch.memory_reserved
    assert all(batch.cancel(id) for id in ids) and not batch and not batch.memory_reserved
    last = alike()[-1]
    assert run(batch, [last])[0] == [alone(last.prompt, last.parameters, 4)]


def test_what_was_not_used_for_longest_is_forgotten_first():
    class Cache:
        def fork(self):
            return Cache()

        def truncate(self, length):
            self.length = length

    tree = Prefixes()
    a, b, c = [1] * 200, [2] * 200, [3] * 200
    for ids in (a, b):
        tree.keep(ids, Cache(), set(), 4)
    assert tree.blocks == 4 and tree.find([*a, 7])[1] == 200
    tree.keep(c, Cache(), set(), 4)
    assert [tree.find(ids)[1] for ids in (a, b, c)] == [200, 0, 200] and tree.blocks == 4
    tree.keep([1] * 260, Cache(), tree.find(a)[2], 5)  # the longer takes the place of the shorter
    assert tree.find([1] * 260)[1] == 260 and tree.blocks == 5
    tree.keep([*[1] * 130, 9], Cache(), set(), 5)  # beside another's block all of its own count
    assert tree.blocks == 5 and tree.find([*[1] * 130, 9])[1] == 131 and tree.find(c)[1] == 0
    tree.shrink(0)
    assert tree.blocks == len(tree) == 0 and tree.find(a) == (None, 0, set())
