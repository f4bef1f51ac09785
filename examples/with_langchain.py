"""LangChain's vector store on llorch's embeddings: the vectors don't depend on how the texts came in.

    pip install ".[langchain]"
    python examples/with_langchain.py

The model is a small one of random weights, written here.
"""

import tempfile
from pathlib import Path

from langchain_core.vectorstores import InMemoryVectorStore

from llorch.langchain import LlorchEmbeddings
from llorch.models.shapes import write_random_encoder

TEXTS = ["the weather is lovely today", "so sunny outside", "he drove to the stadium", "and sat in the front row"]
WORDS = sorted({word for text in TEXTS for word in text.split()})


with tempfile.TemporaryDirectory() as name:
    write_random_encoder(Path(name), WORDS)
    embeddings = LlorchEmbeddings(name)
    together, one_by_one = InMemoryVectorStore(embeddings), InMemoryVectorStore(embeddings)
    together.add_texts(TEXTS)
    for text in reversed(TEXTS):
        one_by_one.add_texts([text])
    found = together.as_retriever(search_kwargs={"k": 2}).invoke("lovely weather")
    print("nearest to the query:", *(document.page_content for document in found), sep="\n  ")
    vectors = [{each["text"]: each["vector"] for each in store.store.values()} for store in (together, one_by_one)]
    assert vectors[0] == vectors[1], "a text's vector depends on what it came in with"
    print(f"{len(TEXTS)} texts: the same vectors, added together and one by one.")
