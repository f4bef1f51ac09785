"""The scheduler: sequences come, go and fail between steps, and no other sequence notices."""

import numpy as np
import pytest

import llorch
from llorch.text.batch import Batch, Event, Request
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
    with pytest.raises(TypeError, match="chunk must be an integer"):
        Batch(MODEL, chunk=1.5)
    assert len(batch) == 0
