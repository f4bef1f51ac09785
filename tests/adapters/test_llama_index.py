"""`llorch.llama_index`: TextEncoder's bits in LlamaIndex, alone and in any batch."""

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

WORDS = [text for text in TEXTS if text]  # LlamaIndex makes no node of an empty text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("llama_index")
    write_random_encoder(made, ["hello", "world", "the", "sun"], {"query": "query ", "passage": "the "})
    return made


@pytest.fixture(scope="module")
def embedding(folder):
    pytest.importorskip("llama_index.core")
    from llorch.llama_index import LlorchEmbedding

    return LlorchEmbedding(folder, embed_batch_size=3)


def test_the_encoders_bits(folder, embedding):
    encoder = llorch.TextEncoder.from_pretrained(folder)
    wanted = encoder.encode(TEXTS, prompt_name="passage")
    assert_same_bits(np.array(embedding.get_text_embedding_batch(TEXTS), np.float32), wanted)
    assert_same_bits(np.array(embedding.get_text_embedding(TEXTS[4]), np.float32), wanted[4])
    query = encoder.encode(TEXTS[4], prompt_name="query")
    assert_same_bits(np.array(embedding.get_query_embedding(TEXTS[4]), np.float32), query)
    assert asyncio.run(embedding.aget_text_embedding_batch(TEXTS)) == wanted.tolist()
    assert asyncio.run(embedding.aget_text_embedding("a")) == embedding.get_text_embedding("a")
    assert asyncio.run(embedding.aget_query_embedding("a")) == embedding.get_query_embedding("a")
    assert embedding.model_name == str(folder) and embedding.class_name() == "LlorchEmbedding"
    plain = type(embedding)(encoder, normalize_embeddings=True, model_name="tiny")
    assert plain.get_text_embedding("a") == embedding.get_text_embedding("a") and plain.model_name == "tiny"


def test_a_round_trip(folder, embedding, caplog):
    kind = type(embedding)
    for other in (kind.from_dict(embedding.to_dict()), kind.from_json(embedding.to_json())):
        assert other.get_text_embedding_batch(TEXTS) == embedding.get_text_embedding_batch(TEXTS)
        assert other.to_dict() == embedding.to_dict()
    encoder = llorch.TextEncoder.from_pretrained(folder)
    encoder.max_seq_length = 5
    short = kind(encoder, model_name="tiny", embed_batch_size=3)
    wanted = short.get_text_embedding_batch(TEXTS)
    assert wanted != embedding.get_text_embedding_batch(TEXTS)
    for other in (copy.deepcopy(short), pickle.loads(pickle.dumps(short))):
        assert other.get_text_embedding_batch(TEXTS) == wanted and other.to_dict() == short.to_dict()
    assert not caplog.records, "LlamaIndex warns of what it leaves out"
    with pytest.raises(TypeError, match="model must be given: a TextEncoder, a path or a hub id"):
        kind()


def test_an_index(embedding):
    from llama_index.core import MockEmbedding, VectorStoreIndex
    from llama_index.core.llms import MockLLM
    from llama_index.core.schema import TextNode

    nodes = [TextNode(text=text, id_=str(i)) for i, text in enumerate(WORDS)]
    index = VectorStoreIndex(nodes, embed_model=embedding)
    other = VectorStoreIndex([], embed_model=embedding)
    for i, text in reversed(list(enumerate(WORDS))):
        other.insert_nodes([TextNode(text=text, id_=str(i))])
    vectors = index.vector_store.data.embedding_dict
    assert vectors == other.vector_store.data.embedding_dict and len(vectors) == len(WORDS)
    found = index.as_retriever(similarity_top_k=3).retrieve("the sun")
    encoder = embedding._model
    near = encoder.similarity(encoder.encode("the sun", prompt_name="query"), np.array(list(vectors.values()), "f4"))
    best = np.argsort(-near[0])[:3]
    assert [each.node.id_ for each in found] == [list(vectors)[i] for i in best]
    assert np.abs([each.score for each in found] - near[0, best]).max() < 1e-6
    answer = index.as_query_engine(llm=MockLLM(), similarity_top_k=1).query("the sun")
    assert answer.source_nodes[0].node.text == found[0].node.text and found[0].node.text in str(answer)
    mock = VectorStoreIndex(nodes, embed_model=MockEmbedding(embed_dim=64))
    assert mock.vector_store.data.embedding_dict != vectors


def test_without_llama_index(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_index.core.base.embeddings.base", None)
    monkeypatch.delitem(sys.modules, "llorch.llama_index", raising=False)
    with pytest.raises(ImportError, match=r'needs the package llama-index-core: pip install "llorch\[llama-index\]"'):
        import llorch.llama_index  # noqa: F401
