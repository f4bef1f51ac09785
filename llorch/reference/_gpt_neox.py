"""GPT-NeoX, as Pythia has it too, the whole model, as specified."""

from llorch.reference._attention import attention
from llorch.reference._decoder import Array, Decoder
from llorch.reference._gate import activation
from llorch.reference._norm import layer_norm
from llorch.reference._rope import rope


class GPTNeoX(Decoder):
    """See `llorch.CausalLM`.

    config has Hugging Face's names as attributes: an `llorch.models.gpt_neox.GPTNeoXConfig`. tensors are the arrays of
    model.safetensors by name, without "gpt_neox.", embed_out.weight as lm_head.weight: matrices (out, in), float32,
    float16 or bfloat16, which widen exactly. lm_head.weight is embed_in.weight where it isn't there, and a layer of the
    attention has a bias where there is one.
    """

    EMBEDDING, LAST_NORM = "embed_in", "final_layer_norm"

    def block(self, h: Array, layer: int, cos: Array, sin: Array) -> Array:
        a = self.attention(self.norm(h, f"layers.{layer}.input_layernorm"), layer, cos, sin)
        if self.config.use_parallel_residual:
            return (self.feed_forward(self.norm(h, f"layers.{layer}.post_attention_layernorm"), layer) + a) + h
        h = a + h
        return self.feed_forward(self.norm(h, f"layers.{layer}.post_attention_layernorm"), layer) + h

    def attention(self, x: Array, layer: int, cos: Array, sin: Array) -> Array:
        """Causal attention of block `layer`: x (T, E) to (T, E). The first values of each head are rotated."""
        H, D = self.config.num_attention_heads, self.config.head_dim
        y = self.linear(x, f"layers.{layer}.attention.query_key_value")
        q, k, v = y.reshape(x.shape[0], H, 3, D).transpose(2, 1, 0, 3)  # head by head: its q, its k, its v
        y = attention(rope(q, cos, sin), rope(k, cos, sin), v)
        return self.linear(self.merged(y), f"layers.{layer}.attention.dense")

    def feed_forward(self, x: Array, layer: int) -> Array:
        """The feed-forward layer of block `layer`: x (T, E) to (T, E)."""
        y = activation(self.linear(x, f"layers.{layer}.mlp.dense_h_to_4h"), self.config.hidden_act)
        return self.linear(y, f"layers.{layer}.mlp.dense_4h_to_h")

    def norm(self, x: Array, name: str) -> Array:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(x, weight, bias, eps=self.config.layer_norm_eps)
