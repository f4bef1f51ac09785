"""Mistakes that are made on purpose in transformers' own modules, for those who want to see the tool find one.

Unlike `faults`, which change the oracle, these change an engine that llorch has no part in: weights, settings and hooks
of its modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llorch.models import loading
from llorch.models.graph import Step
from llorch.validate.ladder.distance import Array

if TYPE_CHECKING:
    from llorch.validate.ladder.peer import Peer


@dataclass(frozen=True)
class Plant:
    """One mistake. key : its name on the command line. says : what it is. make : in a block, or outside them (layer
    None), and the kind of tensor where it first shows; ValueError where the model has nothing that it could change."""

    key: str
    says: str
    make: Callable[[Peer, Any], str]
    in_block: bool = True


def plant(peer: Peer, key: str, layer: int | None = None) -> str:
    """Makes the mistake in a block, None: in all of them. Returns the kind of tensor where it first shows. ValueError
    for a name that isn't known, a block that isn't there, and a model that can't have it."""
    if key not in PLANTS:
        raise ValueError(f"there is no fault {key!r} to plant, there are {', '.join(PLANTS)}")
    fault, blocks = PLANTS[key], len(peer.graph.blocks)
    if layer is not None and not fault.in_block:
        raise ValueError(f"the fault {key!r} isn't in a block, it can't be planted in block {layer}")
    if layer is not None and not 0 <= layer < blocks:
        raise ValueError(f"the fault {key!r} can't be planted in block {layer}: there are {blocks}, from 0 on")
    if not fault.in_block:
        return fault.make(peer, None)
    shows = [fault.make(peer, i) for i in (range(blocks) if layer is None else (layer,))]
    return shows[0]


# ---- where it is made --------------------------------------------------------------------------------------------


class Rows:
    """Some outputs of a linear layer, whatever else its module makes: their weights (rows, in), to be read and set.
    shows : the first tensor of the ladder that they are in."""

    def __init__(self, module: Any, index: Array, shows: str) -> None:
        self.module, self.index, self.shows = module, index, shows
        weight = module.weight.detach()
        self.transposed = type(module).__name__ == "Conv1D"
        self.view = weight.T if self.transposed else weight

    @property
    def weight(self) -> Any:
        return self.view[self.index].clone()

    @weight.setter
    def weight(self, values: Any) -> None:
        self.view[self.index] = values

    @property
    def bias(self) -> Any:
        return None if self.module.bias is None else self.module.bias.detach()[self.index].clone()

    @bias.setter
    def bias(self, values: Any) -> None:
        if self.module.bias is not None:
            self.module.bias.detach()[self.index] = values


def rows_of(peer: Peer, layer: int, kind: str) -> Rows:
    """Of the layer that makes a tensor of a block. ValueError where the block has none."""
    steps = {step.name: step for step in peer.graph.blocks[layer]}
    step = steps.get(kind)
    first, count, shows = 0, None, kind
    while step is not None and step.op != "linear":
        shows = step.name if step.rung else shows
        if step.op in ("heads", "columns"):
            unit = peer.graph.sizes["D"] if step.op == "heads" else 1
            first, count = step.options["first"] * unit, step.options["count"] * unit
        step = steps.get(step.inputs[0])
    if step is None:
        raise ValueError(f"a {peer.model.family.name} has no tensor {kind} that a layer makes")
    shows = step.name if step.rung else shows
    weight = peer.graph.prefix(layer) + step.weight
    module = peer.of_weight(weight)
    if module is None and count is not None:
        module, first = peer.of_weight(weight, first, count), 0
    if module is None:
        raise ValueError(f"transformers has no module for {weight}")
    outputs = module.weight.shape[1 if type(module).__name__ == "Conv1D" else 0]
    order = np.arange(outputs)
    parameter = peer.parameters[f"{weight}.weight"]
    if parameter.by_head:
        order = loading.arranged(order, parameter, peer.graph, "hf")
    return Rows(module, order[first : outputs if count is None else first + count], shows)


def _norm(peer: Peer, layer: int) -> tuple[Step, Any]:
    """The first norm of a block, and its module."""
    for step in peer.graph.blocks[layer]:
        if step.op in ("layer_norm", "rms_norm"):
            module = peer.of_weight(peer.graph.prefix(layer) + step.weight)
            if module is not None:
                return step, module
    raise ValueError(f"block {layer} of this {peer.model.family.name} has no norm")


# ---- the mistakes ------------------------------------------------------------------------------------------------


def _transposed(peer: Peer, layer: int) -> str:
    rows = rows_of(peer, layer, "attn.c_proj")
    height, width = rows.weight.shape
    if height != width:
        raise ValueError(f"attn.c_proj is {height} x {width}: only a square matrix can be read transposed")
    rows.weight = rows.weight.T
    return rows.shows


def _pairs(peer: Peer, layer: int) -> str:
    if not any(step.op == "rope" for step in peer.graph.blocks[layer]):
        raise ValueError(f"a {peer.model.family.name} has no rotation in block {layer}")
    D, shows = peer.graph.sizes["D"], ""
    for kind in ("attn.q", "attn.k"):
        rows = rows_of(peer, layer, kind)
        shows = shows or rows.shows
        order = np.arange(len(rows.index)).reshape(-1, 2, D // 2).swapaxes(1, 2).reshape(-1)
        weight, bias = rows.weight, rows.bias
        rows.weight = weight[order]
        if bias is not None:
            rows.bias = bias[order]
    return shows


def _exchanged(one: str, other: str) -> Callable[[Peer, Any], str]:
    def make(peer: Peer, layer: int) -> str:
        a, b = rows_of(peer, layer, one), rows_of(peer, layer, other)
        if a.weight.shape != b.weight.shape:
            raise ValueError(f"{one} and {other} have {len(a.index)} and {len(b.index)} outputs")
        (a.weight, b.weight), (x, y) = (b.weight, a.weight), (a.bias, b.bias)
        if x is not None and y is not None:
            a.bias, b.bias = y, x
        return a.shows

    return make


def _heads(peer: Peer, layer: int) -> str:
    rows, D = rows_of(peer, layer, "attn.c_proj"), peer.graph.sizes["D"]
    order = np.arange(rows.weight.shape[1]).reshape(-1, D)[::-1].reshape(-1)
    if len(order) == D:
        raise ValueError("there is one head, it has no order")
    rows.weight = rows.weight[:, order.copy()]
    return "attn.c_proj"


def _no_bias(peer: Peer, layer: int) -> str:
    for step in peer.graph.blocks[layer]:
        if step.op == "heads":
            rows = rows_of(peer, layer, step.name)
            if rows.bias is not None:
                rows.bias = 0.0
                return rows.shows
    raise ValueError(f"the queries, keys and values of this {peer.model.family.name} have no biases")


def _eps(peer: Peer, layer: int) -> str:
    step, module = _norm(peer, layer)
    name = next((name for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)
    if name is None:
        raise ValueError(f"the module of {step.name} has no eps")
    setattr(module, name, 0.1)
    return step.name


def _no_weight(peer: Peer, layer: int) -> str:
    step, module = _norm(peer, layer)
    unit = peer.parameters[f"{peer.graph.prefix(layer)}{step.weight}.weight"].unit
    module.weight.detach().fill_(0.0 if unit else 1.0)
    return step.name


def _one_more(peer: Peer, layer: int) -> str:
    step, module = _norm(peer, layer)
    unit = peer.parameters[f"{peer.graph.prefix(layer)}{step.weight}.weight"].unit
    module.weight.detach().add_(-1.0 if unit else 1.0)
    return step.name


def _bfloat16(peer: Peer, layer: int) -> str:
    import torch

    for step in peer.graph.blocks[layer]:
        if step.op == "linear":
            whole = peer.of_weight(peer.graph.prefix(layer) + step.weight)
            for module in [whole] if whole is not None else [part for part, _ in peer.parts(layer, step)]:
                module.weight.data = module.weight.data.to(torch.bfloat16).float()
    return rows_of(peer, layer, "attn.q").shows


def _activation(peer: Peer, layer: int) -> str:
    import torch

    module = peer.activation(layer)
    if module is None:
        raise ValueError("transformers has no module for the activation")
    module.register_forward_hook(lambda module, inputs, output: torch.relu(inputs[0]), prepend=True)
    return "mlp.act"


def _scale(peer: Peer, layer: int) -> str:
    block = peer.block(layer)
    inside = [] if block is None else [one for one in block.modules() if hasattr(one, "scaling")]
    if not inside or not isinstance(inside[0].scaling, float):
        raise ValueError("transformers' module of attention has no scale that could be left out")
    inside[0].scaling = 1.0
    return "attn.scores"


def _backwards(peer: Peer, layer: None) -> str:
    turned = [module for name, module in peer.modules.items() if name.rpartition(".")[2].startswith("rotary_emb")]
    if not turned:
        raise ValueError(f"a {peer.model.family.name} has no rotation")
    for module in turned:
        module.register_forward_hook(lambda module, inputs, output: (output[0], -output[1]))
    return "attn.q_rope"


def _types(peer: Peer, layer: None) -> str:
    step = next((one for one in peer.graph.before if "token_types" in one.inputs), None)
    module = None if step is None else peer.of_weight(step.weight)
    if module is None:
        raise ValueError(f"a {peer.model.family.name} has no types of tokens")
    module.weight.detach().zero_()
    return "sum"


def _padding(peer: Peer, layer: None) -> str:
    if peer.graph.decodes:
        raise ValueError(f"a {peer.model.family.name} doesn't see what comes behind a position")
    peer.padding = 5
    return "attn.context"


def _pooling(peer: Peer, layer: None) -> str:
    if peer.ending is None:
        raise ValueError(f"a {peer.model.family.name} makes no embedding of a text")
    other = "mean" if peer.ending.pooling == "cls" else "cls"
    peer.ending = replace(peer.ending, pooling=other)
    return "pooled"


def _not_normalised(peer: Peer, layer: None) -> str:
    if peer.ending is None or None not in peer.ending.after:
        raise ValueError("the embedding of this model isn't divided by its length")
    peer.normalises = False
    return "sentence_embedding"


def _embedding(peer: Peer, layer: None) -> str:
    step = next(one for one in peer.graph.before if one.op == "embedding")
    module = peer.of_weight(step.weight)
    if module is None or not hasattr(module, "embed_scale"):
        raise ValueError(f"the embedding of a {peer.model.family.name} isn't scaled by its module")
    module.embed_scale.fill_(1.0)
    return "embed"


PLANTS: dict[str, Plant] = {
    one.key: one
    for one in (
        Plant("transposed", "the attention output's matrix is read transposed", _transposed),
        Plant("pairs", "the rotated pairs of q and k lie side by side, as GGUF's Llamas have them", _pairs),
        Plant("keys-values", "keys and values are exchanged", _exchanged("attn.k", "attn.v")),
        Plant("gate-up", "gate and up are exchanged", _exchanged("mlp.gate", "mlp.up")),
        Plant("heads", "the heads come in reverse order", _heads),
        Plant("no-bias", "the first bias of q, k and v is left out", _no_bias),
        Plant("eps", "the block's first norm has an eps of 0.1", _eps),
        Plant("no-norm-weight", "the weight of the block's first norm is left out", _no_weight),
        Plant("one-plus", "the first norm's weight is 1 + w for w, or w for Gemma's 1 + w", _one_more),
        Plant("activation", "relu in the place of the block's activation", _activation),
        Plant("no-scale", "the scores aren't scaled", _scale),
        Plant("bfloat16", "the block's matrices are rounded to bfloat16", _bfloat16),
        Plant("backwards", "the rotation turns the other way", _backwards, in_block=False),
        Plant("no-types", "the embeddings of the types of tokens are left out", _types, in_block=False),
        Plant("padding", "5 tokens of padding stand behind the prompt, and no mask", _padding, in_block=False),
        Plant("pooling", "the first position for the mean, or the mean for another", _pooling, in_block=False),
        Plant("not-normalised", "the embedding isn't divided by its length", _not_normalised, in_block=False),
        Plant("no-embed-scale", "the embedding isn't scaled", _embedding, in_block=False),
    )
}
