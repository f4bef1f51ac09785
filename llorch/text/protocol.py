"""What text needs of a model. Any family's engine has it; so has a stand-in in a test."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llorch.text.chat import Kept
    from llorch.text.grammar import Guide
    from llorch.text.sampling import SamplingParameters
    from llorch.text.template import ChatTemplates
    from llorch.text.tokenizer import Tokenizer

Ids = Sequence[int] | NDArray[Any]
Logits = NDArray[np.float32]


class Model(Protocol):
    """config has vocab_size, bos_token_id, and the context's length; a cache has one sequence's keys and values."""

    @property
    def config(self) -> Any: ...
    @property
    def path(self) -> Path: ...
    @property
    def tokenizer(self) -> "Tokenizer": ...
    @property
    def end_ids(self) -> frozenset[int]: ...
    @property
    def guide(self) -> "Guide": ...
    @property
    def missing_ids(self) -> NDArray[np.intp]: ...
    def new_cache(self, capacity: int | None = None) -> Any: ...
    def cache_nbytes(self, positions: int) -> int: ...
    def forward(self, ids: Ids, cache: Any = None) -> Logits: ...
    def step(self, chunks: Sequence[Ids], caches: Sequence[Any]) -> Logits: ...
    def forward_batch(self, chunks: Sequence[Ids], caches: Sequence[Any]) -> Logits: ...
    def _ids(self, ids: Ids, name: str) -> NDArray[Any]: ...


class ChatModel(Model, Protocol):
    """What a conversation needs beside it."""

    @property
    def chat_templates(self) -> "ChatTemplates": ...
    @property
    def chat_end_ids(self) -> frozenset[int]: ...
    @property
    def chat_sampling(self) -> "SamplingParameters": ...
    @property
    def kept(self) -> "Kept": ...


def context_of(model: Model) -> int:
    """The most positions of a sequence."""
    config = model.config
    length: int = config.context if hasattr(config, "context") else config.n_positions
    return length
