"""Writes sentencepiece.json.gz: a small vocabulary of SentencePiece's BPE with byte fallback, and ids by SentencePiece.

Needs the package sentencepiece. Run it in tests/ with python -m data.make_sentencepiece.
"""

import gzip
import io
import json
from pathlib import Path

import sentencepiece
from mixed_text import mixed

ROOT = Path(__file__).parent.parent.parent
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
USERS = ("<think>", "\n\n", "\u2581\u2581\u2581")
LINES = 300


def train(**options):
    text = [line for line in (ROOT / "docs/numerics.md").read_text(encoding="utf-8").splitlines() if line.strip()]
    text += [line for line in mixed(4000, seed=5) if "\x00" not in line and "\n" not in line]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=made,
        vocab_size=1800,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.995,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        control_symbols=["<|user|>"],
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


def described(model, users):
    size = model.get_piece_size()
    tokens = [model.id_to_piece(i) for i in range(size)]
    kinds = [
        UNKNOWN if model.is_unknown(i) else CONTROL if model.is_control(i) else BYTE if model.is_byte(i) else NORMAL
        for i in range(size)
    ]
    kinds = [USER_DEFINED if token in users else kind for token, kind in zip(tokens, kinds, strict=True)]
    ids = [model.encode(line) for line in mixed(LINES, seed=9)]
    return {"tokens": tokens, "scores": [model.get_score(i) for i in range(size)], "kinds": kinds, "ids": ids}


if __name__ == "__main__":
    found = {
        "prefix": described(train(), ()),
        "plain": described(train(add_dummy_prefix=False, user_defined_symbols=list(USERS)), USERS),
    }
    made = gzip.compress(json.dumps(found).encode(), 9, mtime=0)
    (Path(__file__).parent / "sentencepiece.json.gz").write_bytes(made)
