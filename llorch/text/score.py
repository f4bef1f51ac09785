"""How likely a model finds a text: `llorch.CausalLM.score`."""

import dataclasses
import decimal
import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llorch import _core
from llorch.text.batch import CHUNK, Prompt, encode
from llorch.text.protocol import Model, context_of
from llorch.text.sampling import EXACT, log_probabilities, whole

Progress = Callable[[int, int], object]  # done, of how many

SCORED = 64  # positions whose logits are looked at together


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """How likely a model finds a text.

    ids : list of int
        Its n tokens.
    log_probabilities : float64 array (n - 1,)
        Natural logarithms: of each token from the second on, by those before it. The first has nothing before it.
    """

    ids: list[int]
    log_probabilities: NDArray[np.float64]

    @cached_property
    def log_likelihood(self) -> float:
        """Their exact sum, rounded once to float64."""
        return _core._in_fpenv(math.fsum, self.log_probabilities.tolist())

    @cached_property
    def perplexity(self) -> float:
        """exp(-log_likelihood / (n - 1)): the quotient in float64, and the float64 nearest to its exponential."""
        return _core._in_fpenv(_perplexity, self.log_likelihood, len(self.log_probabilities))


def _perplexity(log_likelihood: float, count: int) -> float:
    return float(EXACT.exp(decimal.Decimal(-log_likelihood / count)))


def score(model: Model, text: Prompt, *, stride: int | None = None, progress: Progress | None = None) -> Score:
    """See `llorch.CausalLM.score`."""
    ids = encode(model, text, "text")
    context, count = context_of(model), len(ids)
    if stride is not None and whole(stride, "stride", 1) >= context:
        raise ValueError(f"stride is {stride}, it must be less than {context}, the context")
    if count < 2:
        raise ValueError("text has 1 token, it must have at least 2: the first has nothing before it")
    if stride is None and count > context:
        raise ValueError(
            f"text has {count} tokens, the context only {context}: give stride, and it is scored in windows, each of "
            "which begins so many tokens later"
        )
    cache = model.new_cache(min(count, context))
    parts = []
    scored = 1  # tokens that have their log-probability, and the first
    for begin in range(0, count, stride or count):
        end = min(begin + context, count)
        cache.truncate(0)
        for first in range(begin, scored - 1, CHUNK):  # what the window has of tokens that others scored
            model.step([ids[first : min(first + CHUNK, scored - 1)]], [cache])
        for first in range(scored - 1, end - 1, SCORED):
            last = min(first + SCORED, end - 1)
            logits = model.forward(ids[first:last], cache)
            parts.append(_core._in_fpenv(log_probabilities, logits, ids[first + 1 : last + 1]))
            if progress is not None:
                progress(last, count - 1)
        scored = end
        if end == count:
            break
    return Score(ids, np.concatenate(parts))
