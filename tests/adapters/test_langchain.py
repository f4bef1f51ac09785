"""`llorch.langchain`: TextEncoder's bits in LangChain, alone and in any batch."""

import asyncio
import copy
import pickle
import sys

import numpy as np
import pytest
from helpers import assert_same_bits
from sentence_models import TEXTS

import llorch
from llorch.models.shapes import write_random_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("langchain")
    write_random_encoder(made, ["hello", "world", "the", "sun"], {"query": "query ", "passage": "the "})
    return made


@pytest.fixture(scope="module")
def embeddings(folder):
    pytest.importorskip("langchain_core")
    from llorch.langchain import LlorchEmbeddings

    return LlorchEmbeddings(folder, batch_size=3)


def float32(rows):
    """Of floats that are float32 values exactly."""
    narrow = np.array(rows, np.float32)
    assert (narrow.astype(np.float64) == np.array(rows)).all()
    return narrow


def test_the_encoders_bits(folder, embeddings):
    encoder = llorch.TextEncoder.from_pretrained(folder)
    wanted = encoder.encode(TEXTS, prompt_name="passage")
    assert_same_bits(float32(embeddings.embed_documents(TEXTS)), wanted)
    assert_same_bits(float32(embeddings.embed_documents(TEXTS[4:5]))[0], wanted[4])
    assert_same_bits(float32(embeddings.embed_query(TEXTS[4])), encoder.encode(TEXTS[4], prompt_name="query"))
    assert embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_documents(TEXTS)) == embeddings.embed_documents(TEXTS)
    assert asyncio.run(embeddings.aembed_query("a")) == embeddings.embed_query("a")
    plain = type(embeddings)(llorch.TextEncoder.from_pretrained(folder), normalize_embeddings=True)
    assert plain.embed_documents(TEXTS) == embeddings.embed_documents(TEXTS)


def test_a_copy_is_loaded_again(folder, embeddings):
    encoder = llorch.TextEncoder.from_pretrained(folder)
    encoder.max_seq_length = 5
    short = type(embeddings)(encoder, batch_size=3)
    wanted = short.embed_documents(TEXTS)
    assert wanted != embeddings.embed_documents(TEXTS)
    for other in (copy.deepcopy(short), pickle.loads(pickle.dumps(short))):
        assert other.embed_documents(TEXTS) == wanted and other.batch_size == 3 and other.model is not encoder


def test_a_vector_store(embeddings):
    from langchain_core.vectorstores import InMemoryVectorStore

    together = InMemoryVectorStore(embeddings)
    together.add_texts(TEXTS, ids=[str(i) for i in range(len(TEXTS))])
    one_by_one = InMemoryVectorStore(embeddings)
    for i, text in reversed(list(enumerate(TEXTS))):
        one_by_one.add_texts([text], ids=[str(i)])
    assert {key: each["vector"] for key, each in together.store.items()} == {
        key: each["vector"] for key, each in one_by_one.store.items()
    }
    near = embeddings.model.similarity(
        embeddings.model.encode("the sun", prompt_name="query"), embeddings.model.encode(TEXTS, prompt_name="passage")
    )
    found = together.similarity_search_with_score("the sun", k=3)
    best = np.argsort(-near[0])[:3]
    assert [document.id for document, _ in found] == [str(i) for i in best]
    assert np.abs([score for _, score in found] - near[0, best]).max() < 1e-6
    assert together.as_retriever(search_kwargs={"k": 1}).invoke("the sun")[0].page_content == TEXTS[best[0]]


def test_without_langchain(monkeypatch):
    monkeypatch.setitem(sys.modules, "langchain_core.embeddings", None)
    monkeypatch.delitem(sys.modules, "llorch.langchain", raising=False)
    with pytest.raises(ImportError, match=r'needs the package langchain-core: pip install "llorch\[langchain\]"'):
        import llorch.langchain  # noqa: F401
