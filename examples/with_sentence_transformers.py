"""A program written for sentence-transformers, on llorch by another import: no embedding changes with the batch.

    pip install ".[sentence-transformers]"
    python examples/with_sentence_transformers.py

The model is a small one of random weights, written here. Where sentence-transformers is installed, the same program
runs on that too.
"""

import logging
import random
import tempfile
from pathlib import Path

import numpy as np

from llorch.models.shapes import write_random_encoder
from llorch.sentence_transformers import SentenceTransformer

WORDS = ["the", "weather", "is", "lovely", "today", "so", "sunny", "outside", "he", "drove", "to", "stadium", "row"]


def program(model, texts):
    """What a program does: embeds documents in batches, then finds the one that is nearest to a query."""
    documents = model.encode_document(texts, batch_size=32)
    query = model.encode_query("sunny weather")
    nearest = model.similarity(query, documents)[0].argmax().item()
    alone = np.stack([model.encode_document(text) for text in texts])
    changed = int((documents.view(np.uint32) != alone.view(np.uint32)).any(axis=1).sum())
    return nearest, changed


draw = random.Random(1)
texts = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 40))) for _ in range(100)]
with tempfile.TemporaryDirectory() as name:
    write_random_encoder(Path(name), WORDS, {"query": "is "})
    nearest, changed = program(SentenceTransformer(name), texts)
    print(f"nearest to the query: {texts[nearest]}")
    print(f"llorch: the batch changes {changed} of {len(texts)} embeddings")
    assert changed == 0
    try:
        import sentence_transformers
    except ImportError:
        pass
    else:
        logging.disable(logging.WARNING)
        theirs, changed = program(sentence_transformers.SentenceTransformer(name, device="cpu"), texts)
        print(f"sentence-transformers: the batch changes {changed} of {len(texts)}")
        assert theirs == nearest, "another document is the nearest"
