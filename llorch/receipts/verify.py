"""Whether a receipt is true: one prefill over prompt and output, then every choice is drawn again from the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llorch._text import counted
from llorch.receipts import digests
from llorch.receipts.record import CONTRACT, FORMAT, PARAMETERS, PARTS, Receipt, part
from llorch.text import batch as batches
from llorch.text.batch import CHUNK, Request, Sequence
from llorch.text.protocol import context_of
from llorch.text.sampling import SamplingParameters

LOGITS = 1 << 24  # at a time: the more positions together, the fewer times the weights are read
EQUAL, OTHER, UNKNOWN = 0, 1, 2


@dataclass(frozen=True)
class Verdict:
    """status : 0 equal, 1 not, 2 can't tell. position : of the first new token that isn't, from 0; None for none.
    what : "model", "prompt", "parameters", "output", "bits", or "" where it is equal. message : for people."""

    status: int
    what: str
    position: int | None
    message: str


def verify(receipt: Receipt, model: Any) -> Verdict:
    """Replays a receipt on a model, at any instruction set, number of threads and batch.

    `llorch.receipts.loads` reads one. Takes the time of a prefill, and memory for a cache of its tokens.
    """
    own = {"format": FORMAT, "contract": CONTRACT, "compute": model.compute}
    own |= digests.of_model(model)
    for name, value in own.items():
        if receipt[name] != value:
            return Verdict(UNKNOWN, "model", None, f"can't tell: {name} is {receipt[name]}, here it is {value}")
    changed = next((name for name, fields in PARTS.items() if part(receipt, fields) != receipt[name]), None)
    if changed is not None:
        what = changed.removesuffix("_sha256")
        at = _replay(receipt, model).position
        where = "" if at is None else f"; the new token {at} is the first that isn't the model's"
        return Verdict(OTHER, what, at, f"{what}: its fields aren't those that {changed} was made of{where}")
    return _replay(receipt, model)


def _request(receipt: Receipt) -> Request:
    names = [name for name in PARAMETERS if name in SamplingParameters.__dataclass_fields__]
    parameters = SamplingParameters(**{name: receipt[name] for name in names})
    return Request(
        receipt["prompt"],
        receipt["max_new_tokens"],
        parameters,
        receipt["stop"],
        as_text=receipt["text"] is not None,
        schema=receipt["schema"],
        links=True,
        continues=receipt["continues"],
    )


def _replay(receipt: Receipt, model: Any) -> Verdict:
    output, chain = receipt["output"], receipt["chain"]
    steps = len(output) + (receipt["end"] is not None)
    if len(chain) != steps:
        message = f"bits: the chain has {counted(len(chain), 'link')} for {counted(steps, 'choice')}"
        return Verdict(OTHER, "bits", min(len(chain), steps), message)
    try:
        sequence = Sequence(model, _request(receipt))
        tokens = batches.encode(model, [*receipt["prompt"], *output], "prompt and output")
        if len(tokens) > context_of(model):
            raise ValueError(f"prompt and output have {counted(len(tokens), 'token')}, more than the model's context")
    except (ValueError, TypeError, IndexError) as error:
        return Verdict(OTHER, "parameters", None, f"parameters: no model makes such an answer: {error}")
    sequence.ends = frozenset(receipt["end_ids"])
    assert sequence.links is not None
    wanted = [*output, None]
    place = 0
    for logits in _logits(model, tokens[: len(tokens) - (receipt["end"] is None)], len(receipt["prompt"])):
        for row in logits:
            if sequence.reason is not None:
                return _ended(receipt, sequence, place)
            try:
                token, _ = sequence.choose(row)
            except ValueError as error:
                return Verdict(OTHER, "bits", place, f"bits: no token can be chosen at {place}: {error}")
            if sequence.links[place].hex() != chain[place]:
                if place and chain[place - 1] == sequence.links[place - 1].hex():
                    why = f"after the same {counted(place, 'token')}, the logits have other bits"
                else:
                    why = "the logits of the first new token have other bits"
                return Verdict(OTHER, "bits", place, f"bits: {why} at the new token {place}")
            if token != wanted[place]:
                return _drawn(receipt, model, place, token)
            place += 1
    if sequence.reason is None or (sequence.reason, sequence.end) != (receipt["finish_reason"], receipt["end"]):
        return _ended(receipt, sequence, place)
    if receipt["text"] is not None and sequence.told != receipt["text"]:
        return Verdict(OTHER, "output", place, "output: the text isn't that of the tokens")
    count = counted(len(output), "token")
    return Verdict(EQUAL, "", None, f"equal: {count}, each drawn again from logits of the same bits")


def _ended(receipt: Receipt, sequence: Sequence, place: int) -> Verdict:
    said = f"{sequence.reason or 'none'}, where the receipt has {receipt['finish_reason']}"
    return Verdict(OTHER, "output", place, f"output: the answer's end is another: {said}, after {place} choices")


def _drawn(receipt: Receipt, model: Any, place: int, token: int | None) -> Verdict:
    """Another token than the receipt's was drawn from logits of the same bits: which of the two was changed, shows the
    next link, if there is one. It has the bits of the token that came."""
    output, prompt = receipt["output"], receipt["prompt"]
    text = f"the new token {place} is {_shown(output, place)}, the logits give {'an end' if token is None else token}"
    if place + 1 < len(receipt["chain"]) and place < len(output):
        tokens = [*prompt, *output[: place + 1]]
        (logits,) = _logits(model, tokens, len(tokens))
        before = bytes.fromhex(receipt["chain"][place])
        if batches.link(before, logits[0]).hex() == receipt["chain"][place + 1]:
            return Verdict(OTHER, "parameters", place, f"parameters: {text}, and the chain goes on with the receipt's")
    return Verdict(OTHER, "output", place, f"output: {text}")


def _shown(output: list[int], place: int) -> str:
    return str(output[place]) if place < len(output) else "an end"


def _logits(model: Any, tokens: list[int], prompt: int) -> Any:
    """The logits from the prompt's last token on, some rows at a time."""
    cache = model.new_cache(len(tokens))
    for first in range(0, prompt - 1, CHUNK):
        model.step([tokens[first : min(first + CHUNK, prompt - 1)]], [cache])
    rows = max(16, min(CHUNK, LOGITS // model.config.vocab_size))
    for first in range(prompt - 1, len(tokens), rows):
        yield model.forward(tokens[first : first + rows], cache)
