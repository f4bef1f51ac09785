"""What decoders share: the base of their configurations, and their graph, blocks of `llorch.models.parts` between the
embedding and the head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llorch.models import config as check
from llorch.models.config import TransformerConfig
from llorch.models.graph import Graph, Parameter, Rope, Step
from llorch.models.parts import Block, Norm, parameters_of, steps_of


@dataclass(frozen=True)
class DecoderConfig(TransformerConfig):
    """Sizes and switches of a decoder, checked when made.

    Attributes
    ----------
    num_key_value_heads : int or None
        Heads of keys and values, a divisor of num_attention_heads; None is as many.
    rope_theta : float
        The base of the rotations.
    rope_scaling : mapping or None
        Hugging Face's entries (rope_type llama3, linear, yarn, longrope), or GGUF's factors.
    tie_word_embeddings : bool
        Whether the head is the embedding where the file has none.

    The others, and the errors: as `llorch.models.config.TransformerConfig` has them.
    """

    num_key_value_heads: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        heads = check.size(self.num_attention_heads, "num_attention_heads")
        if heads % check.size(self.num_key_value_heads, "num_key_value_heads"):
            raise ValueError(
                f"num_attention_heads is {heads}, it must be a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}"
            )
        super().__post_init__()

    @classmethod
    def entries_of_gguf(cls, get: check.GGUF, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return super().entries_of_gguf(get, shapes) | {
            "num_key_value_heads": get("attention.head_count_kv", None),
            "tie_word_embeddings": "output.weight" not in shapes,
        }


def graph(
    c: DecoderConfig,
    blocks: Sequence[Block],
    norm: Norm,
    *,
    ropes: Mapping[str, Rope] | None = None,
    factor: float = 1.0,
    rounded: bool = False,
    softcap: float | None = None,
    divisor: float = 1.0,
    embed: str = "embed_tokens",
    head: str = "lm_head",
    prefix: str = "layers.",
) -> Graph:
    """Embedding, blocks, norm and head.

    norm : the last one. ropes : tables by name; None: one, "main", that of the configuration. factor : what rows of the
    embedding are multiplied by; rounded : to the type of the embedding first. softcap : of the logits; divisor : of
    them, where they have no softcap. embed, head : names of those weights. prefix : of blocks.
    """
    H, G, D = c.num_attention_heads, c.num_key_value_heads, c.width_of_head
    assert G is not None
    F = c.intermediate_size
    sizes = {"E": c.hidden_size, "V": c.vocab_size, "P": c.max_position_embeddings, "F": F, "U": 2 * F}
    sizes |= {"H": H, "G": G, "D": D, "Q": H * D, "R": G * D, "W": (H + 2 * G) * D}
    steps, inside = steps_of(blocks, H, G, F), parameters_of(blocks, c.NAME)
    row, options = f"{embed}[id]", {}
    if factor != 1.0:
        row, options = f"{row} * {factor:.6g}", {"factor": factor, "rounded": rounded}
    before = (Step("embed", "embedding", ("ids",), "TE", "embed", row, embed, options=options),)
    what = f"ln_f through the head, which is {embed} where it is tied"
    if softcap is not None and divisor != 1:
        raise ValueError(f"softcap is {softcap} and divisor {divisor}: it isn't said which of them comes first")
    finish: tuple[str, str, dict[str, float]] | None = None  # what the head's output goes through
    if softcap is not None:
        finish = "softcap", f"{softcap} * tanh(head / {softcap})", {"cap": softcap}
    elif divisor != 1:
        finish = "divide", f"head / {divisor:.6g}", {"divisor": divisor}
    logits = "head" if finish else "logits"
    after = [
        Step("ln_f", norm.op, ("x",), "TE", "final_norm", f"the final {norm.title}", norm.weight,
             options=norm.step("", "x", "", "").options),
        Step(logits, "linear", ("ln_f",), "TV", "logits", what, head),
    ]  # fmt: skip
    if finish:
        op, what, number = finish
        after.append(Step("logits", op, ("head",), "TV", "logits", what, options=number))
    outside = (
        Parameter(f"{embed}.weight", "VE", "token_embd.weight"),
        *norm.parameters("output_norm"),
        Parameter(
            f"{head}.weight", "VE", "output.weight", optional=f"{embed}.weight" if c.tie_word_embeddings else None
        ),
    )
    tables = {"main": c.rope()} if ropes is None else ropes
    return Graph(sizes, before, steps, tuple(after), outside, inside, prefix, tables)
