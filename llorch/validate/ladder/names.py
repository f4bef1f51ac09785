"""The ladder's names for what engines call their tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llorch.models.graph import Graph, Parameter, Step
from llorch.validate.ladder.rungs import block_name, kinds

# Engines' names for a block's tensors, without case and punctuation: Hugging Face's modules, nanoGPT, llama.cpp's
# graph and GGUF's tensors, llm.c's buffers, and what people call them in ports to Rust.
KINDS = {
    "ln_1": "ln_1 ln1 attn_norm input_layernorm norm1 norm_1 attention_norm",
    "attn.qkv": "attn.c_attn c_attn qkv attn_qkv attn.qkv wqkv bqkv attn.qkv_proj qkv_proj self_attn.qkv "
    "self_attn.qkv_proj",
    "attn.q": "attn.q q attn_q Qcur query attn.query attn.q_proj q_proj self_attn.q_proj attention.q attention.q_proj "
    "attention.query wq attention.wq",
    "attn.k": "attn.k k attn_k Kcur key attn.key attn.k_proj k_proj self_attn.k_proj attention.k attention.k_proj "
    "attention.key wk attention.wk",
    "attn.v": "attn.v v attn_v Vcur value attn.value attn.v_proj v_proj self_attn.v_proj attention.v attention.v_proj "
    "attention.value wv attention.wv",
    "attn.cache_k": "attn.cache_k cache_k k_cache attn.k_cache key_cache cache.k cache.key past_key kv_cache.k "
    "kv_cache.key",
    "attn.cache_v": "attn.cache_v cache_v v_cache attn.v_cache value_cache cache.v cache.value past_value kv_cache.v "
    "kv_cache.value",
    "attn.scores": "attn.scores scores attn_scores preatt attention_scores",
    "attn.context": "attn.context context kqv_out atty attn.atty attn.heads attn.merged",
    "attn.c_proj": "attn.c_proj attn attn_out attn_output attproj attn.out attn.output attn.o_proj attn.resid_dropout "
    "self_attn attention attention_output wo attention.wo",
    "residual": "residual ffn_inp residual2 resid_mid",
    "ln_2": "ln_2 ln2 ffn_norm post_attention_layernorm norm2 norm_2",
    "mlp.c_fc": "mlp.c_fc c_fc ffn_up fch mlp.fc1 mlp.fc_in",
    "mlp.act": "mlp.act act ffn_gelu fch_gelu mlp.gelu gelu mlp.activation mlp.act_fn act_fn",
    "mlp.gate": "mlp.gate w1 feed_forward.w1 feed_forward.gate_proj",
    "mlp.up": "mlp.up w3 feed_forward.w3 feed_forward.up_proj",
    "mlp.c_proj": "mlp.c_proj mlp ffn ffn_out ffn_down fcproj mlp.fc2 mlp.fc_out mlp.dropout feed_forward mlp_out w2 "
    "feed_forward.w2 feed_forward.down_proj",
    "": "l_out residual3 out output block_output resid_post",
}
GLOBAL = {
    "ids": "ids input_ids tokens token_ids prompt_ids inp_tokens",
    "embed": "embed embd inpL encoded drop embedding embeddings hidden_states.0 inputs_embeds tok_embeddings "
    "embed_tokens",
    "ln_f": "ln_f lnf result_norm norm final_norm output_norm final_layernorm",
    "logits": "logits lm_head result_output output lm_logits",
    "last_logits": "last_logits logits_last final_logits",
    "argmax": "argmax next_token next_id",
    "probs": "probs probabilities softmax",
    "generated": "generated generated_ids new_ids new_tokens generated_tokens",
}
LONGEST = 200  # characters: no engine has longer names, and what is looked at must not take long
NUMBER = "[0-9]{1,5}"  # of a block: a file may have thousands of digits there, or those of another script
PREFIX = re.compile(r"(transformer|model|language_model|module|gpt2|gpt_neox|gpt|backbone)\.", re.IGNORECASE)
LAYER = tuple(
    re.compile(pattern.replace("NUMBER", NUMBER), re.IGNORECASE | re.ASCII)
    for pattern in (
        r"(?:h|blocks?|layers?|blk|block)[._\[]?(?P<layer>NUMBER)\]?(?:[._](?P<kind>.*))?",
        r"(?:past_key_values|past|kv_cache|kv|cache)[._](?P<layer>NUMBER)[._](?P<kind>keys?|values?|k|v)",
        r"(?P<kind>[a-z_]\w*?)-(?P<layer>NUMBER)",
    )
)


def squashed(name: str) -> str:
    """Without case and punctuation; "" for one with letters or digits of another script, which is no engine's name."""
    return re.sub(r"[^a-z0-9]", "", name.lower()) if name.isascii() else ""


def _aliases(table: Mapping[str, str]) -> dict[str, str]:
    return {squashed(alias): kind for kind, aliases in table.items() for alias in aliases.split()}


_KINDS, _GLOBAL = _aliases(KINDS), _aliases(GLOBAL)
FUSED = "attn.qkv"  # q, k and v in one


@dataclass(frozen=True)
class Names:
    """What engines may call the tensors of a graph: kinds of a block and those outside, by their names without case and
    punctuation.

    To the names above come the ladder's own, and the modules and GGUF tensors of the family's weights: a linear layer's
    output goes by the name of its weight.
    """

    layers: int
    inside: Mapping[str, str]
    outside: Mapping[str, str]

    @classmethod
    def of(cls, graph: Graph) -> Names:
        sorts = kinds(graph)
        inside = {kind.name for kind in sorts.block} | {FUSED}
        outside = {kind.name for kind in (*sorts.before, *sorts.after)}
        found = _of_weights(graph.fullest, graph.block_parameters, inside)
        around = _of_weights((*graph.before, *graph.after), graph.parameters, outside)
        static = dict(_KINDS)
        if any(step.op == "rope" for step in graph.fullest):  # llama.cpp has one name for them before and after
            static = {alias: kind for alias, kind in static.items() if alias not in ("qcur", "kcur")}
        return cls(
            len(graph.blocks),
            {a: k for a, k in static.items() if k in inside} | found | {squashed(k): k for k in inside if k},
            {a: k for a, k in _GLOBAL.items() if k in outside} | around | {squashed(k): k for k in outside},
        )


def _of_weights(steps: Sequence[Step], parameters: Sequence[Parameter], known: Collection[str]) -> dict[str, str]:
    """The names of the weights in both sorts of files, for what they make: a tensor of the ladder, or the heads
    cut from it."""
    gguf = {p.name: p.gguf for p in parameters}
    found = {}
    for step in steps:
        heads = [one.name for one in steps if one.op == "heads" and one.inputs == (step.name,)]
        kind = step.name if step.name in known else heads[0] if len(heads) == 1 else FUSED if len(heads) == 3 else None
        if step.weight and kind is not None:
            for name in (step.weight, gguf.get(f"{step.weight}.weight", "").removesuffix(".weight")):
                if name:
                    found[squashed(name)] = kind
    return found


def canonical(name: str, names: Names) -> str | None:
    """The ladder's name for an engine's, None if it isn't known; "h.3.attn.qkv" for q, k and v in one; "*.ln_1" for a
    kind of all blocks in one array."""
    layers = names.layers
    if len(name) > LONGEST:
        return None
    plain = name
    while match := PREFIX.match(plain):
        plain = plain[match.end() :]
    plain = re.sub(r"\.(output|out)\Z", "", plain) if "." in plain else plain
    if match := re.fullmatch(rf"hidden_states\.({NUMBER})", plain):
        number = int(match[1])
        if number > layers:
            return None
        found = "embed" if number == 0 else "ln_f" if number == layers else block_name(number - 1)
        return found if 0 < number < layers or found in names.outside.values() else None
    for i, pattern in enumerate(LAYER):
        if match := pattern.fullmatch(plain):
            layer, kind = int(match["layer"]), match["kind"] or ""
            if i == 1:
                kind = "attn.cache_" + kind[0].lower()
            elif kind:
                kind = names.inside.get(squashed(kind), "?")
            return None if kind == "?" or layer >= layers else block_name(layer, kind)
    short = squashed(plain)
    if short in names.outside:
        return names.outside[short]
    return f"*.{names.inside[short]}" if short in names.inside else None
