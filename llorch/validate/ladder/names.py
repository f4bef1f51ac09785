"""The ladder's names for what engines call their tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from llorch.models.graph import Graph, Parameter, Step
from llorch.validate.ladder.rungs import block_name, kinds

# Engines' names for a block's tensors, without case and punctuation: Hugging Face's modules (MLX, Candle and mistral.rs
# keep them), nanoGPT, llama.cpp's graph and GGUF's tensors, llm.c's buffers, Meta's names (tinygrad keeps them),
# KerasHub's layers, and what people call them in ports to Rust. One name may be several kinds': a graph's own is meant.
KINDS = {
    "ln_1": "ln_1 ln1 attn_norm input_layernorm norm1 norm_1 attention_norm self_attention_layernorm",
    "attn.qkv": "attn.c_attn c_attn qkv attn_qkv attn.qkv wqkv bqkv attn.qkv_proj qkv_proj self_attn.qkv "
    "self_attn.qkv_proj",
    "attn.q": "attn.q q attn_q self_attention.query query attn.query attn.q_proj q_proj self_attn.q_proj "
    "attention.q attention.q_proj "
    "attention.query wq attention.wq",
    "attn.k": "attn.k k attn_k self_attention.key key attn.key attn.k_proj k_proj self_attn.k_proj attention.k "
    "attention.k_proj "
    "attention.key wk attention.wk",
    "attn.v": "attn.v v attn_v self_attention.value Vcur value attn.value attn.v_proj v_proj self_attn.v_proj "
    "attention.v attention.v_proj "
    "attention.value wv attention.wv",
    "attn.q_norm": "attn.q_norm q_norm self_attn.q_norm Qcur_normed",
    "attn.k_norm": "attn.k_norm k_norm self_attn.k_norm Kcur_normed",
    "attn.q_rope": "attn.q_rope q_rope Qcur_rope rotated_q q_rot query_rope q_embed",
    "attn.k_rope": "attn.k_rope k_rope Kcur_rope rotated_k k_rot key_rope k_embed",
    "attn.cache_k": "attn.cache_k cache_k k_cache attn.k_cache key_cache cache.k cache.key past_key kv_cache.k "
    "kv_cache.key",
    "attn.cache_v": "attn.cache_v cache_v v_cache attn.v_cache value_cache cache.v cache.value past_value kv_cache.v "
    "kv_cache.value",
    "attn.scores": "attn.scores scores attn_scores preatt attention_scores",
    "attn.context": "attn.context context kqv kqv_merged kqv_merged_cont __fattn__ atty attn.atty attn.heads "
    "attn.merged",
    "attn.c_proj": "attn.c_proj attn attn_out attn_output attproj attn.out attn.output attn.o_proj attn.resid_dropout "
    "self_attn attention attention_output wo attention.wo "
    "self_attention self_attention.attention_output",
    "residual": "residual ffn_inp residual2 resid_mid sa_out",
    "ln_2": "ln_2 ln2 ffn_norm post_attention_layernorm norm2 norm_2 feedforward_layernorm",
    "mlp.c_fc": "mlp.c_fc c_fc ffn_up ffn_up_b fch mlp.fc1 mlp.fc_in feedforward_intermediate_dense",
    "mlp.act": "mlp.act act ffn_gelu ffn_gelu_erf ffn_silu ffn_relu fch_gelu mlp.gelu gelu mlp.activation "
    "mlp.act_fn act_fn",
    "mlp.gate": "mlp.gate w1 feed_forward.w1 feed_forward.gate_proj ffn_gate ffn_gate_b feedforward_gate_dense",
    "mlp.up": "mlp.up w3 feed_forward.w3 feed_forward.up_proj ffn_up ffn_up_b feedforward_intermediate_dense",
    "mlp.gate_up": "mlp.gate_up mlp.gate_up_proj gate_up_proj gate_up ffn_gate_up w13",
    "mlp.product": "mlp.product product ffn_swiglu ffn_geglu ffn_geglu_erf ffn_reglu ffn_gate_par",
    "mlp.c_proj": "mlp.c_proj mlp ffn ffn_out ffn_down fcproj mlp.fc2 mlp.fc_out mlp.dropout feed_forward mlp_out w2 "
    "feed_forward.w2 feed_forward.down_proj feedforward_output_dense",
    "attn.norm": "attn.norm attn_post_norm post_attention_norm",
    "mlp.norm": "mlp.norm ffn_post_norm post_ffw_norm",
    "": "l_out residual3 out output block_output resid_post",
}
GLOBAL = {
    "ids": "ids input_ids tokens token_ids prompt_ids inp_tokens",
    "embed": "embed embd inpL encoded drop embedding embeddings hidden_states.0 inputs_embeds tok_embeddings "
    "embed_tokens inp_embd inp_scaled token_embedding",
    "ln_f": "ln_f lnf result_norm norm final_norm output_norm final_layernorm sequence_output_layernorm",
    "logits": "logits lm_head result_output output lm_logits",
    "last_logits": "last_logits logits_last final_logits",
    "argmax": "argmax next_token next_id",
    "probs": "probs probabilities softmax",
    "pooled": "pooled pooling mean_pooled pooled_output result_pooled sentence_embedding text_embedding",
    "sentence_embedding": "sentence_embedding text_embedding result_norm_embd normalized embeddings_normalized",
    "generated": "generated generated_ids new_ids new_tokens generated_tokens",
}
# Names that stand for one tensor or for another, by the version or the moment: llama.cpp calls queries and keys the
# same before and after the rotation, and kqv_out was once the attention's output. What it is, the values tell.
EITHER = {
    "qcur": ("attn.q", "attn.q_norm", "attn.q_rope"),
    "kcur": ("attn.k", "attn.k_norm", "attn.k_rope"),
    "kqvout": ("attn.context", "attn.c_proj"),
}
WEIGHTS = "attn.weights"  # the softmax of the scores: of no ladder, as llorch doesn't keep it, but in dumps
PRODUCT = "attn.kq"  # llama.cpp's kq: scores before their scale and their mask
LONGEST = 200  # characters: no engine has longer names, and what is looked at must not take long
NUMBER = "[0-9]{1,5}"  # of a block: a file may have thousands of digits there, or those of another script
PREFIX = re.compile(
    r"(transformer|model|language_model|module|gpt2|gpt_neox|gpt|backbone|encoder|decoder|bert|roberta|distilbert|mpnet"
    r"|nomic_bert)\.",
    re.IGNORECASE,
)
LAYER = tuple(
    re.compile(pattern.replace("NUMBER", NUMBER), re.IGNORECASE | re.ASCII)
    for pattern in (
        r"(?:h|blocks?|(?:transformer_)?layers?|blk|block)[._\[]?(?P<layer>NUMBER)\]?(?:[._](?P<kind>.*))?",
        r"(?:past_key_values|past|kv_cache|kv|cache)[._](?P<layer>NUMBER)[._](?P<kind>keys?|values?|k|v)",
        r"(?P<kind>[a-z_]\w*?)-(?P<layer>NUMBER)",
    )
)


@lru_cache(4096)
def squashed(name: str) -> str:
    """Without case and punctuation; "" for one with letters or digits of another script, which is no engine's name."""
    return re.sub(r"[^a-z0-9]", "", name.lower()) if name.isascii() else ""


FUSED = "attn.qkv"  # q, k and v in one
GATE_UP = "mlp.gate_up"  # gate and up in one


def _aliases(table: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """The kinds of a graph by what engines may call them."""
    return {squashed(alias): kind for kind, aliases in table.items() if kind in known for alias in aliases.split()}


@dataclass(frozen=True)
class Names:
    """What engines may call the tensors of a graph: kinds of a block and those outside, by their names without case and
    punctuation.

    either : names that may be several kinds of a block.

    To the names above come the ladder's own, and the modules and GGUF tensors of the family's weights: a linear layer's
    output goes by the name of its weight.
    """

    layers: int
    inside: Mapping[str, str]
    outside: Mapping[str, str]
    either: Mapping[str, tuple[str, ...]]
    asked: dict[str, str | None] = field(default_factory=dict, repr=False, compare=False)  # what canonical found

    @classmethod
    def of(cls, graph: Graph) -> Names:
        sorts = kinds(graph)
        inside = {kind.name for kind in sorts.block} | {FUSED}
        if {"mlp.gate", "mlp.up"} <= inside:
            inside.add(GATE_UP)
        outside = {kind.name for kind in (*sorts.before, *sorts.after)}
        found = _of_weights(graph.fullest, graph.block_parameters, inside)
        around = _of_weights((*graph.before, *graph.after), graph.parameters, outside)
        either = {name: mine for name, of in EITHER.items() if (mine := tuple(kind for kind in of if kind in inside))}
        for name in [name for name, of in either.items() if len(of) == 1]:
            found[name] = either.pop(name)[0]
        return cls(
            len(graph.blocks),
            _aliases(KINDS, inside) | found | {squashed(k): k for k in inside if k} | _product(graph),
            _aliases(GLOBAL, outside) | around | {squashed(k): k for k in outside} | _hidden(graph, outside),
            either,
        )


def _hidden(graph: Graph, outside: Collection[str]) -> dict[str, str]:
    """What Hugging Face, sentence-transformers and llama.cpp call an encoder's last hidden state."""
    if graph.decodes:
        return {}
    last = "ln_f" if "ln_f" in outside else block_name(len(graph.blocks) - 1)
    return {squashed(name): last for name in ("last_hidden_state", "token_embeddings", "result_embd")}


def _product(graph: Graph) -> dict[str, str]:
    """What is made of scores, or they of it: their softmax; and kq, where they are that times a scale, and masked."""
    scores = [step for step in graph.fullest if step.op == "scores"]
    plain = all(step.options["softcap"] is None and step.options.get("position_bias") is None for step in scores)
    softmax = dict.fromkeys(("kqsoftmax", "kqsoftmaxext", "attnweights", "attnprobs", "attnsoftmax"), WEIGHTS)
    return (softmax if scores else {}) | ({"kq": PRODUCT} if scores and plain else {})


def _of_weights(steps: Sequence[Step], parameters: Sequence[Parameter], known: Collection[str]) -> dict[str, str]:
    """The names of the weights in both sorts of files, for what they make: a tensor of the ladder, or the heads
    cut from it."""
    gguf = {p.name: p.gguf for p in parameters}
    found = {}
    for step in steps:
        heads = [one.name for one in steps if one.op == "heads" and one.inputs == (step.name,)]
        columns = [one for one in steps if one.op == "columns" and one.inputs == (step.name,)]
        kind = step.name if step.name in known else heads[0] if len(heads) == 1 else FUSED if len(heads) == 3 else None
        kind = GATE_UP if kind is None and len(columns) == 2 else kind
        if step.weight and kind is not None:
            for name in (step.weight, gguf.get(f"{step.weight}.weight", "").removesuffix(".weight")):
                if name:
                    found[squashed(name)] = kind
    return found


def canonical(name: str, names: Names) -> str | None:
    """The ladder's name for an engine's, None if it isn't known; "h.3.attn.qkv" for q, k and v in one; "*.ln_1" for a
    kind of all blocks in one array; "h.3.attn.q|h.3.attn.q_rope" for one of several."""
    if name not in names.asked:
        names.asked[name] = _canonical(name, names)
    return names.asked[name]


def _canonical(name: str, names: Names) -> str | None:
    layers = names.layers
    if len(name) > LONGEST:
        return None
    plain = name.replace("/", ".").removesuffix(":0")
    while match := PREFIX.match(plain):
        plain = plain[match.end() :]
    plain = re.sub(r"\.(output|out)\Z", "", plain) if "." in plain else plain
    if match := re.fullmatch(rf"hidden_states\.({NUMBER})", plain):
        number = int(match[1])
        if number > layers:
            return None
        found = "embed" if number == 0 else "ln_f" if number == layers else block_name(number - 1)
        if number == layers > 0 and found not in names.outside.values():  # of an encoder without a norm there
            return block_name(layers - 1)
        return found if 0 < number < layers or found in names.outside.values() else None
    for i, pattern in enumerate(LAYER):
        if match := pattern.fullmatch(plain):
            layer, kind = int(match["layer"]), match["kind"] or ""
            if i == 1:
                kind = "attn.cache_" + kind[0].lower()
            elif squashed(kind) in names.either and layer < layers:
                return "|".join(block_name(layer, one) for one in names.either[squashed(kind)])
            elif kind:
                kind = names.inside.get(squashed(kind), "?")
            return None if kind == "?" or layer >= layers else block_name(layer, kind)
    short = squashed(plain)
    if short in names.outside:
        return names.outside[short]
    return f"*.{names.inside[short]}" if short in names.inside else None
