"""Answers of a shape that is asked for: which ids may come next, by llguidance, as a mask on the logits.

The mask is a function of the schema, the tokenizer and the tokens so far, so an answer stays a function of its own
request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llorch._text import shown

if TYPE_CHECKING:
    from llorch.text.tokenizer import Tokenizer


class Guide:
    """What a model's tokenizer can spell.

    ends : ids that end a text; one of them can come where the text may end. ImportError without llguidance; ValueError
    for a tokenizer that it can't read.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Iterable[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise ImportError('a schema needs the package llguidance: pip install "llorch[serve]"') from None
        self._library, self._vocab_size = llguidance, vocab_size
        text, end_ids = tokenizer.library.to_str(), sorted(ends)
        self._tokenizer = tokenizer.call(
            "be used with a schema",
            lambda: llguidance.LLTokenizer(text, n_vocab=vocab_size, eos_token=end_ids or None),
        )

    def check(self, schema: str) -> str:
        """A JSON schema as the grammar that llguidance makes of it. ValueError says what it doesn't support."""
        try:
            json.loads(schema)
            grammar: str = self._library.LLMatcher.grammar_from_json_schema(schema)
            problem = self._library.LLMatcher.validate_grammar(grammar, self._tokenizer)
        except (ValueError, RecursionError) as error:
            problem = str(error)
        if problem:
            raise ValueError(f"the JSON schema can't be used: {shown(problem)}")
        return grammar

    def constraint(self, schema: str) -> Constraint:
        """For one text, from its beginning."""
        return Constraint(self._library.LLMatcher(self._tokenizer, self.check(schema), log_level=0), self._vocab_size)


class Constraint:
    """A text on its way."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def forbidden(self) -> NDArray[np.intp]:
        """The ids that can't come next, rising."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(words, bitorder="little")[: self._vocab_size]
        return np.flatnonzero(allowed == 0)

    def push(self, id: int) -> None:
        """The id that came."""
        self._matcher.consume_token(id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"the JSON schema can't be followed further: {shown(self._matcher.get_error())}")
