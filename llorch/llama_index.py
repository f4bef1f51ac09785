"""llorch's embeddings in LlamaIndex: `LlorchEmbedding`, for its indices. docs/sentence_transformers.md says more.

>>> from llorch.llama_index import LlorchEmbedding
>>> Settings.embed_model = LlorchEmbedding("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
"""

import asyncio
from pathlib import Path
from typing import Any

import llorch

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import PrivateAttr
except ImportError:
    raise ImportError(
        'llorch.llama_index needs the package llama-index-core: pip install "llorch[llama-index]"'
    ) from None


class LlorchEmbedding(BaseEmbedding):  # type: ignore[misc]
    """`llorch.TextEncoder` as LlamaIndex's embedding: a text's embedding has the same bits alone and in any batch.

    model : a TextEncoder, or what `llorch.TextEncoder.from_pretrained` takes. embed_batch_size : texts that LlamaIndex
    gives at a time. normalize_embeddings : as `llorch.TextEncoder.encode` has it. model_name : what is loaded without
    model, else how it is called in LlamaIndex's events. Queries and documents get the model's prompts for them, where
    it has such. Other arguments are LlamaIndex's.

    `to_dict` has the model as its model_name alone, by which `from_dict` loads it; pickled, it holds the path and what
    was set in the model, and loads it again.

    Errors are those of `from_pretrained` and `encode`; TypeError for neither a model nor a model_name.
    """

    normalize_embeddings: bool | None = None
    _model: llorch.TextEncoder = PrivateAttr()

    def __init__(
        self,
        model: str | Path | llorch.TextEncoder | None = None,
        *,
        model_name: str | None = None,
        embed_batch_size: int = 32,
        normalize_embeddings: bool | None = None,
        **options: Any,
    ) -> None:
        given = model_name if model is None else model
        if given is None:
            raise TypeError("model must be given: a TextEncoder, a path or a hub id")
        encoder = given if isinstance(given, llorch.TextEncoder) else llorch.TextEncoder.from_pretrained(given)
        super().__init__(
            model_name=str(encoder._opened if given is encoder else given) if model_name is None else model_name,
            embed_batch_size=embed_batch_size,
            normalize_embeddings=normalize_embeddings,
            **options,
        )
        self._model = encoder

    def __setstate__(self, state: dict[str, Any]) -> None:
        # LlamaIndex's would load model_name, which may be any name, and lose what was set in the model.
        self.__init__(state["__pydantic_private__"]["_model"], **state["__dict__"])  # type: ignore[misc]

    @classmethod
    def class_name(cls) -> str:
        return "LlorchEmbedding"

    def _encode(self, texts: list[str], prompt_name: str | None) -> list[list[float]]:
        found: list[list[float]] = self._model.encode(
            texts,
            batch_size=self.embed_batch_size,
            normalize_embeddings=self.normalize_embeddings,
            prompt_name=prompt_name,
        ).tolist()
        return found

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._encode([query], self._model.query_prompt())[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._encode(texts, self._model.document_prompt())

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
