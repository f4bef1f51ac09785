"""LlamaIndex on llorch's embeddings: the vectors don't depend on how the texts came in.

    pip install ".[llama-index]"
    python examples/with_llama_index.py

The model is a small one of random weights, written here; the language model is LlamaIndex's mock, which gives back what
it is asked.
"""

import tempfile
from pathlib import Path

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.llms import MockLLM

from llorch.llama_index import LlorchEmbedding
from llorch.models.shapes import write_random_encoder

TEXTS = ["the weather is lovely today", "so sunny outside", "he drove to the stadium", "and sat in the front row"]
WORDS = sorted({word for text in TEXTS for word in text.split()})


def vectors(index):
    """Of each text, out of the store that LlamaIndex keeps in memory."""
    found = index.vector_store.data.embedding_dict
    return {index.docstore.get_node(key).text: vector for key, vector in found.items()}


with tempfile.TemporaryDirectory() as name:
    write_random_encoder(Path(name), WORDS)
    embedding = LlorchEmbedding(name)
    together = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], embed_model=embedding)
    one_by_one = VectorStoreIndex([], embed_model=embedding)
    for text in reversed(TEXTS):
        one_by_one.insert(Document(text=text))
    answer = together.as_query_engine(llm=MockLLM(), similarity_top_k=2).query("lovely weather")
    print("nearest to the query:", *(source.node.text for source in answer.source_nodes), sep="\n  ")
    assert vectors(together) == vectors(one_by_one), "a text's vector depends on what it came in with"
    print(f"{len(TEXTS)} texts: the same vectors, added together and one by one.")
