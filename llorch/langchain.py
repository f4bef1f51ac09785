"""llorch's embeddings in LangChain: `LlorchEmbeddings`, for vector stores and retrievers. docs/sentence_transformers.md
says more.

>>> from llorch.langchain import LlorchEmbeddings
>>> store = InMemoryVectorStore(LlorchEmbeddings("sentence-transformers/all-MiniLM-L6-v2"))  # doctest: +SKIP
"""

from pathlib import Path

import llorch

try:
    from langchain_core.embeddings import Embeddings
except ImportError:
    raise ImportError('llorch.langchain needs the package langchain-core: pip install "llorch[langchain]"') from None


class LlorchEmbeddings(Embeddings):  # type: ignore[misc]
    """`llorch.TextEncoder` as LangChain's Embeddings: a text's embedding has the same bits alone and in any batch.

    model : a TextEncoder, or what `llorch.TextEncoder.from_pretrained` takes. batch_size, normalize_embeddings : as
    `llorch.TextEncoder.encode` has them. Queries and documents get the model's prompts for them, where it has such.
    Pickled, it holds the model's path, and loads it again.

    Errors are those of `from_pretrained` and `encode`.
    """

    def __init__(
        self,
        model: str | Path | llorch.TextEncoder,
        *,
        batch_size: int = 32,
        normalize_embeddings: bool | None = None,
    ) -> None:
        self.model = model if isinstance(model, llorch.TextEncoder) else llorch.TextEncoder.from_pretrained(model)
        self.batch_size, self.normalize_embeddings = batch_size, normalize_embeddings

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """An embedding of each text, as floats that are float32 values exactly."""
        return self._encode(texts, self.model.document_prompt())

    def embed_query(self, text: str) -> list[float]:
        """The embedding of what is looked for."""
        return self._encode([text], self.model.query_prompt())[0]

    def _encode(self, texts: list[str], prompt_name: str | None) -> list[list[float]]:
        found: list[list[float]] = self.model.encode(
            texts,
            batch_size=self.batch_size,
            normalize_embeddings=self.normalize_embeddings,
            prompt_name=prompt_name,
        ).tolist()
        return found
