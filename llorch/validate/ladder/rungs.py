"""The ladder: every tensor of GPT-2 inference that is compared, in the order in which it is computed.

T positions of the prompt, E n_embd, H n_head, D = E / H, F the feed-forward width, V vocab_size. docs/validator.md has
the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llorch.models.gpt2 import GPT2Config

NEW_TOKENS = 10
EXACT = 0.0
DEEP = 8  # blocks; PyTorch's own noise reaches 1.1e-5 after 15 of GPT-2 Medium's shape


@dataclass(frozen=True)
class Rung:
    """A checkpoint.

    number : 1 .. 12; 0 is what comes before the first.
    tolerance : of the absolute difference, EXACT for equal values. Where `scaled`, it is multiplied by the root mean
        square of the row (the last axis) if that is more than 1: float32 itself gives an error in proportion.
    """

    number: int
    title: str
    tolerance: float
    scaled: bool = True


RUNGS = (
    Rung(0, "token ids and embeddings", 1e-5),
    Rung(1, "LayerNorm before attention", 1e-5),
    Rung(2, "Q, K, V", 1e-4),
    Rung(3, "KV cache", EXACT),
    Rung(4, "attention scores, scaled and masked", 1e-4),
    Rung(5, "attention output", 1e-4),
    Rung(6, "feed-forward output", 1e-4),
    Rung(7, "block output", 1e-4),
    Rung(8, "logits", 1e-3, scaled=False),
    Rung(9, "logits of the last position", EXACT, scaled=False),
    Rung(10, "argmax", EXACT),
    Rung(11, "probabilities", 1e-6, scaled=False),
    Rung(12, f"text of {NEW_TOKENS} greedy tokens", EXACT),
)


@dataclass(frozen=True)
class Kind:
    """One sort of tensor: `axes` are letters for its shape, `row` by row the last axis."""

    name: str  # what follows "h.{layer}." in a block's
    rung: int
    axes: str
    what: str
    tolerance: float | None = None  # where it isn't the rung's
    dtype: str = "float32"


BEFORE = (
    Kind("ids", 0, "T", "token ids of the prompt", EXACT, "int64"),
    Kind("embed", 0, "TE", "wte[id] + wpe[position]"),
)
BLOCK = (
    Kind("ln_1", 1, "TE", "LayerNorm of the block's input"),
    Kind("attn.q", 2, "HTD", "queries"),
    Kind("attn.k", 2, "HTD", "keys"),
    Kind("attn.v", 2, "HTD", "values"),
    Kind("attn.cache_k", 3, "HTD", "keys in the cache after the prompt: attn.k, bit for bit"),
    Kind("attn.cache_v", 3, "HTD", "values in the cache after the prompt: attn.v, bit for bit"),
    Kind("attn.scores", 4, "HTS", "q k' scale; -inf where query t may not see position s"),
    Kind("attn.context", 5, "TE", "softmax(scores) v, the heads side by side"),
    Kind("attn.c_proj", 5, "TE", "attention output: context through c_proj"),
    Kind("residual", 5, "TE", "the block's input + attn.c_proj"),
    Kind("ln_2", 6, "TE", "LayerNorm of residual"),
    Kind("mlp.c_fc", 6, "TF", "before the activation"),
    Kind("mlp.act", 6, "TF", "after the activation"),
    Kind("mlp.c_proj", 6, "TE", "feed-forward output"),
    Kind("", 7, "TE", "the block's output: residual + mlp.c_proj"),
)
AFTER = (
    Kind("ln_f", 8, "TE", "the final LayerNorm", 1e-4),
    Kind("logits", 8, "TV", "ln_f through the head, which is wte where it is tied"),
    Kind("last_logits", 9, "V", "logits of the last position: the last row of logits, bit for bit"),
    Kind("argmax", 10, "", "lowest id among the largest of last_logits", EXACT, "int64"),
    Kind("probs", 11, "V", "softmax(last_logits)"),
    Kind("generated", 12, "N", f"{NEW_TOKENS} greedy tokens (as many as the context has room for)", EXACT, "int64"),
)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the ladder for one model and prompt.

    shape : what a dump of llorch has. layer : None outside the blocks. kind : its name within the block.
    """

    name: str
    kind: str
    layer: int | None
    rung: Rung
    axes: str
    shape: tuple[int, ...]
    what: str
    tolerance: float
    dtype: str

    @property
    def place(self) -> str:
        """For people: "rung 4 (attention scores, scaled and masked), layer 3"."""
        layer = "" if self.layer is None else f", layer {self.layer}"
        return f"rung {self.rung.number} ({self.rung.title}){layer}"


def block_name(layer: int, kind: str = "") -> str:
    """h.3.attn.q, or h.3 for the output of the block."""
    return f"h.{layer}.{kind}" if kind else f"h.{layer}"


def split_name(name: str) -> tuple[int | None, str]:
    """(3, "attn.q") of h.3.attn.q; (None, "logits") of logits."""
    match = re.fullmatch(r"h\.(\d+)(?:\.(.*))?", name)
    return (int(match[1]), match[2] or "") if match else (None, name)


def new_tokens(config: GPT2Config, T: int) -> int:
    """How many tokens the last rung has: NEW_TOKENS, or what the context has room for."""
    return max(0, min(NEW_TOKENS, config.n_positions - T))


def tensors(config: GPT2Config, T: int) -> list[Tensor]:
    """Every tensor for a prompt of T tokens, in the order in which it is computed."""
    sizes = {
        "T": T,
        "S": T,
        "E": config.n_embd,
        "H": config.n_head,
        "D": config.head_dim,
        "F": config.inner,
        "V": config.vocab_size,
        "N": new_tokens(config, T),
    }

    def make(kind: Kind, layer: int | None) -> Tensor:
        rung = RUNGS[kind.rung]
        tolerance = rung.tolerance if kind.tolerance is None else kind.tolerance
        if kind.name == "ln_1" and layer:  # its input brings the noise of all blocks before
            tolerance *= max(1.0, (layer + 1) / DEEP)
        return Tensor(
            kind.name if layer is None else block_name(layer, kind.name),
            kind.name,
            layer,
            rung,
            kind.axes,
            tuple(sizes[axis] for axis in kind.axes),
            kind.what,
            tolerance,
            kind.dtype,
        )

    blocks = [make(kind, layer) for layer in range(config.n_layer) for kind in BLOCK]
    return [*(make(kind, None) for kind in BEFORE), *blocks, *(make(kind, None) for kind in AFTER)]
