"""llorch.torch: modules of PyTorch and transformers, each row with the same bits in any batch; PyTorch's own change."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
from helpers import num_threads

import llorch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch.nn.functional as F  # noqa: E402
from torch_modules import Calls  # noqa: E402

from llorch.torch import exact, operators, report  # noqa: E402
from llorch.torch.functions import Exact  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
E, T = 96, 24  # values in a row, tokens


@pytest.fixture(autouse=True)
def inference():
    """No gradients, two threads each, numbers of chance that are the same in every run."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def gpt2(**more):
    c = {
        "n_layer": 2,
        "n_embd": E,
        "n_head": 4,
        "vocab_size": 131,
        "n_positions": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**c | more)).eval()


def llama(**more):
    c = {
        "hidden_size": E,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 131,
    }
    c |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**c | more)).eval()


def bert(**more):
    c = {
        "hidden_size": E,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 131,
    }
    return transformers.BertModel(transformers.BertConfig(**c | more)).eval()


def encoder(**more):
    c = {"d_model": E, "nhead": 4, "dim_feedforward": 160, "batch_first": True, "activation": "gelu"}
    return torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(**c | more), 2).eval()


MODELS = {"gpt2": gpt2, "llama": llama, "bert": bert, "encoder": encoder}


def some(name, *shape):
    """An input of a model: ids, or rows."""
    return torch.randn(*shape, E) if name == "encoder" else torch.randint(1, 131, shape)


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def bits(tensor):
    return tensor.contiguous().view(torch.int32 if tensor.dtype is torch.float32 else torch.int16)


def same(a, b):
    return a.shape == b.shape and torch.equal(bits(a), bits(b))


def near(got, wanted, tolerance=2e-5):
    assert got.shape == wanted.shape and got.dtype is wanted.dtype
    worst = (got - wanted).abs().max().item() / max(1, wanted.abs().max().item()) if wanted.numel() else 0
    assert worst < tolerance, f"{worst:.3g} away from PyTorch"


def changes(module, x):
    """Whether the rows of a batch have other bits alone, or two by two."""
    whole = first(module(x))
    return any(not same(first(module(x[i : i + n])), whole[i : i + n]) for n in (1, 2) for i in range(0, len(x), n))


# ---- models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_near_pytorch_and_the_same_in_any_batch_and_with_any_threads(name):
    module = MODELS[name]()
    made = exact(module, strict=True)
    x = some(name, 6, T)
    y = first(made(x))
    near(y, first(module(x)))
    assert not changes(made, x)
    assert not changes(made, x[torch.randperm(6)])
    assert same(first(made(x.flip(0))).flip(0), y)
    with num_threads(1):
        torch.set_num_threads(1)
        assert same(first(made(x)), y)
    assert type(made) is not type(module) and isinstance(made, type(module))


def test_pytorch_changes_with_the_batch():
    """The control: of four models of a usual width, on one token each, none keeps its bits in PyTorch."""
    wide = {"n_embd": 384, "hidden_size": 384, "d_model": 384}
    for name, key in (("gpt2", "n_embd"), ("bert", "hidden_size"), ("encoder", "d_model")):
        module = MODELS[name](**{key: wide[key]})
        x = torch.randn(5, 1, 384) if name == "encoder" else some(name, 5, 1)
        with torch.inference_mode():
            assert changes(module, x), name
            assert not changes(exact(module), x), name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_bit(name, side):
    module = MODELS[name]()
    made = exact(module, strict=True)
    x = some(name, 3, T)
    mask = torch.ones(3, T, dtype=torch.long)
    for i, n in enumerate((5, 0, 11)):
        mask[i, slice(0, n) if side == "left" else slice(T - n, T)] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given = {"src_key_padding_mask": mask == 0} if name == "encoder" else {"attention_mask": mask}
    if name != "encoder":
        given["position_ids"] = positions
    got, wanted = first(made(x, **given)), first(module(x, **given))
    for i in range(3):
        seen = mask[i].bool()
        near(got[i, seen], wanted[i, seen])
        assert same(got[i, seen], first(made(x[i : i + 1, seen]))[0])
    assert not report(made).left


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_with_a_cache_has_the_bits_of_the_whole_text(name, attention):
    module = MODELS[name](attn_implementation=attention)
    made = exact(module, strict=True)
    x = some(name, 1, 9)
    given = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    answer = made.generate(x, output_logits=True, return_dict_in_generate=True, **given)
    whole = first(made(answer.sequences))
    assert same(torch.stack(answer.logits, 1), whole[:, 8:-1])
    assert torch.equal(answer.sequences, module.generate(x, **given))
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), x], 1)  # a shorter prompt beside a longer
    both = torch.cat([padded, some(name, 1, 13)])
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[0, :4] = 0
    if attention == "sdpa":  # the other adds to the scores of padding, which then has a place in the sums
        together = made.generate(both, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **given)
        assert same(torch.stack(together.logits, 1)[:1], torch.stack(answer.logits, 1))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_16_bits(name, dtype):
    module = MODELS[name]().to(getattr(torch, dtype))
    made = exact(module, strict=True)
    x = some(name, 4, 7)
    if name == "encoder":
        x = x.to(getattr(torch, dtype))
    near(first(made(x)), first(module(x)), 0.06 if dtype == "bfloat16" else 0.01)
    assert not changes(made, x)


# ---- attention ----------------------------------------------------------------------------------------------


def windowed(n, width):
    return torch.ones(n, n, dtype=torch.bool).tril() & torch.ones(n, n, dtype=torch.bool).triu(1 - width)


MASKS = {
    "none": lambda: None,
    "full": lambda: torch.ones(10, 10, dtype=torch.bool),
    "causal": lambda: torch.ones(10, 10, dtype=torch.bool).tril(),
    "padded left and causal": lambda: torch.ones(10, 10, dtype=torch.bool).tril() & (torch.arange(10) > 3),
    "right, of each sequence": lambda: torch.arange(10) < torch.tensor([10, 4, 1])[:, None, None, None],
    "hole": lambda: (torch.arange(10) != 4)[None].expand(10, 10),
    "window": lambda: windowed(10, 3),
    "prefix": lambda: torch.ones(10, 10, dtype=torch.bool).tril() | (torch.arange(10) < 4),
    "blocks": lambda: (torch.arange(10)[:, None] // 4) == (torch.arange(10) // 4),
    "chance": lambda: torch.rand(3, 1, 10, 10) < 0.5,
    "chance, of each head": lambda: torch.rand(3, 4, 10, 10) < 0.5,
    "none seen": lambda: torch.zeros(10, 10, dtype=torch.bool),
    "numbers": lambda: torch.randn(10, 10),
    "numbers of each head": lambda: torch.randn(4, 10, 10),
    "minus infinity": lambda: torch.zeros(10, 10).masked_fill(torch.rand(10, 10) < 0.4, -torch.inf),
    "least": lambda: torch.zeros(3, 1, 10, 10).masked_fill(
        torch.rand(3, 1, 10, 10) < 0.6, torch.finfo(torch.float32).min
    ),
    "least everywhere": lambda: torch.full((10, 10), torch.finfo(torch.float32).min),
    "-10000": lambda: ((torch.arange(10) > 6) * -10000.0)[None],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [4, 2, 1])
def test_attention_under_every_kind_of_mask(mask, heads):
    q, k, v = torch.randn(3, 4, 10, 16), torch.randn(3, heads, 10, 16), torch.randn(3, heads, 10, 16)
    given = {"attn_mask": MASKS[mask](), "enable_gqa": heads != 4}
    with Exact(strict=True):
        got = F.scaled_dot_product_attention(q, k, v, **given)
        third = given | {"attn_mask": given["attn_mask"]}
        if (m := given["attn_mask"]) is not None and m.ndim == 4 and len(m) == 3:
            third["attn_mask"] = m[2:]
        alone = F.scaled_dot_product_attention(q[2:], k[2:], v[2:], **third)
    near(got, F.scaled_dot_product_attention(q, k, v, **given))
    assert same(alone, got[2:])


@pytest.mark.parametrize(("Tq", "Tk"), [(5, 5), (3, 7), (7, 3), (1, 6), (4, 0)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_other_shapes(Tq, Tk, causal):
    for leading in ((), (2,), (2, 3), (2, 1, 3)):
        q, k = torch.randn(*leading, Tq, 8), torch.randn(*leading, Tk, 8)
        for width in (8, 5, 11):
            v = torch.randn(*leading, Tk, width)
            with Exact(strict=True):
                got = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3)
            near(got, F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3))


def test_a_masked_key_does_not_exist():
    """A query's bits are those of its keys alone, whatever lies between them."""
    q, k, v = torch.randn(1, 2, 6, 16), torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16)
    seen = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    k[:, :, ~seen], v[:, :, ~seen] = torch.nan, torch.inf
    with Exact(strict=True):
        masked = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[None, None, None])
        alone = F.scaled_dot_product_attention(q, k[:, :, seen], v[:, :, seen])
    assert same(masked, alone)


# ---- functions ----------------------------------------------------------------------------------------------

X = torch.linspace(-9, 9, 7 * 33).reshape(7, 33)
W = torch.linspace(-1, 1, 33 * 5).reshape(5, 33)
FUNCTIONS = {
    "linear": lambda x: F.linear(x, W, W[:, 0]),
    "matmul": lambda x: x @ W.T,
    "matmul, batched": lambda x: torch.matmul(x[:, None] * W, W.T),
    "vectors": lambda x: (x @ W[0], W @ x[0])[0],
    "addmm": lambda x: torch.addmm(W[:, 0], x, W.T),
    "addmm, scaled": lambda x: torch.addmm(x[:, :5], x, W.T, beta=0.5, alpha=2),
    "baddbmm": lambda x: torch.baddbmm(x[:, None, :5], x[:, None], W.T.expand(len(x), 33, 5)),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, W),
    "softmax": lambda x: x.softmax(-1) + F.softmax(x, dim=0),
    "layer_norm": lambda x: F.layer_norm(x, (33,), W[0], W[1]),
    "rms_norm": lambda x: F.rms_norm(x, (33,), W[0]),
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": lambda x: F.silu(x),
    "sigmoid": lambda x: x.sigmoid(),
    "tanh": lambda x: torch.tanh(x),
    "exp": lambda x: x.exp(),
    "erf": lambda x: torch.erf(x),
    "cos": lambda x: torch.cos(x * 9),
    "sin": lambda x: torch.sin(x * 9),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 1),
    "sum": lambda x: x.sum(1) + x.mean(-1),
    "mean": lambda x: x.reshape(-1, 3, 11).mean((1, 2), keepdim=True),
    "norm": lambda x: F.normalize(x, dim=1),
    "embedding": lambda x: F.embedding((x[:, 0] > 0).long(), W),
    "in place": lambda x: F.silu(x.clone(), inplace=True).sigmoid_(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_run_on_llorch_and_are_the_same_in_any_batch(name):
    function = FUNCTIONS[name]
    mode = Exact(strict=True)
    mode.covered = type(mode.left)()
    with mode:
        got = function(X)
    assert mode.covered, "nothing ran on llorch"
    near(got, function(X), 3e-5)
    if name not in ("softmax",):  # one of its is over the batch
        with mode:
            assert same(function(X[3:4]), got[3:4])


def test_pytorchs_functions_change_with_their_place():
    """The control: the same values, alone and in an array, which PyTorch computes by other code at its end."""
    x = torch.randn(1003)
    for function in (F.gelu, F.silu, torch.sigmoid):
        alone = torch.cat([function(x[i : i + 1].clone()) for i in range(len(x))])
        assert not same(alone, function(x))
        with Exact(strict=True):
            assert same(torch.cat([function(x[i : i + 1].clone()) for i in range(len(x))]), function(x))


def test_cosine_and_sine_are_correctly_rounded():
    x = torch.cat(
        [torch.randn(500) * 10 ** torch.linspace(-8, 6, 500), torch.tensor([0.0, -0.0, 1e-40, torch.inf, torch.nan])]
    )
    for name, function in (("cos", np.cos), ("sin", np.sin)):
        with np.errstate(invalid="ignore"):
            wanted = function(x.double().numpy()).astype(np.float32)
        assert np.array_equal(operators.unary(x, name).numpy(), wanted, equal_nan=True)
    with pytest.raises(ValueError, match="below 2\\*\\*24"):
        operators.unary(torch.tensor([2.0**24]), "sin")


# ---- what modules are ---------------------------------------------------------------------------------------


class Norm(torch.nn.Module):
    def __init__(self, added):
        super().__init__()
        self.scale, self.added, self.eps = torch.nn.Parameter(torch.ones(E)), added, 1e-3

    def forward(self, x):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * (self.scale + self.added)


class Centred(Norm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


def test_a_familys_own_modules_are_known_by_what_they_compute():
    from transformers import activations

    x = torch.randn(5, E)
    for module, function in (
        (Norm(0), "rms_norm"),
        (Norm(1), "rms_norm"),
        (activations.NewGELUActivation(), "gelu"),
        (activations.GELUActivation(use_gelu_python=True), "gelu"),
        (activations.SiLUActivation(), "silu"),
        (activations.QuickGELUActivation(), "sigmoid"),  # by its parts
        (Centred(0), "mean"),
    ):
        made = exact(module, strict=True)
        near(made(x), module(x))
        assert set(report(made, x).covered) >= {function}
        assert ("rms_norm" in report(made, x).covered) == (function == "rms_norm")


def test_what_is_not_covered_is_named_or_refused():
    module = torch.nn.Sequential(torch.nn.Linear(E, E), torch.nn.Softplus(), torch.nn.Conv1d(7, 7, 3))
    x = torch.randn(2, 7, E)
    made = exact(module)
    near(made(x), module(x))
    left = report(made).left
    assert left == {("1", "softplus"): 1, ("2", "conv1d: convolution"): 1}
    assert "conv1d: convolution in 2  stays in PyTorch" in str(report(made, x))
    with pytest.raises(NotImplementedError, match="softplus in 1 has no kernel in llorch"):
        exact(module, strict=True)(x)
    module = exact(torch.nn.Linear(4, 4), strict=True)
    with pytest.raises(TypeError, match=r"module must come from llorch.torch.exact, got a Linear"):
        report(torch.nn.Linear(2, 2))
    with pytest.raises(NotImplementedError, match=r"linear of float64 on cpu, float32 on cpu"), Exact(strict=True):
        F.linear(torch.ones(2, 4, dtype=torch.float64), module.weight)


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module, got int"):
        exact(3)
    with pytest.raises(TypeError, match="parameter weight is float64, it must be float32, bfloat16 or float16"):
        exact(torch.nn.Linear(2, 2).double())
    with pytest.raises(TypeError, match="parameter weight is on meta, it must be on the CPU"):
        exact(torch.nn.Linear(2, 2, device="meta"))
    with pytest.raises(TypeError, match=r"module itself is a torch.fx.GraphModule"):
        exact(torch.fx.symbolic_trace(torch.nn.Linear(2, 2)))
    patched = torch.nn.Sequential(torch.nn.Linear(2, 2))
    patched[0].forward = lambda x: x
    with pytest.raises(TypeError, match="module 0 has a forward of its own"):
        exact(patched)
    made = exact(encoder())
    x = torch.randn(1, 3, E)
    with torch.enable_grad(), pytest.raises(RuntimeError, match=r"requires grad.*inference_mode"):
        made(x)
    with torch.enable_grad():  # nothing that requires grad
        made.requires_grad_(False)(x)
        with pytest.raises(RuntimeError, match=r"got a tensor of shape \(3, 1, 96\) that requires grad"):
            made(x.requires_grad_())
    with pytest.raises(RuntimeError, match=r"dropout of 0\.1 is on.*call eval"):
        made.train()(x.detach())
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="autocast is on"):
        made.eval()(x.detach())
    with torch.enable_grad(), pytest.raises(RuntimeError, match=r"llorch.torch: softmax got a tensor"):
        torch.ops.llorch.softmax(torch.ones(3, requires_grad=True), 0)


def test_a_copy_shares_memory_and_follows_what_is_written():
    module = gpt2()
    made = exact(module)
    assert made.lm_head.weight is made.transformer.wte.weight  # still tied
    assert made.lm_head.weight.data_ptr() == module.lm_head.weight.data_ptr()
    assert made.state_dict().keys() == module.state_dict().keys()
    x = some("gpt2", 2, 5)
    y = first(made(x))
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), exact(made), made.to(torch.float32)):
        assert type(other) is type(made) and same(first(other(x)), y)
    other = copy.deepcopy(made)
    other.load_state_dict({name: value * 1.5 for name, value in module.state_dict().items()})
    assert same(first(made(x)), y)
    changed = gpt2()
    changed.load_state_dict(other.state_dict())
    assert same(first(other(x)), first(exact(changed)(x))) and not same(first(other(x)), y)
    made.lm_head.weight.mul_(2)  # in place: the module it is a copy of sees it too
    near(first(made(x)), first(module(x)))


def test_packed_weights_go_with_their_module():
    from llorch.torch import weights

    before = len(weights._packs)
    made = exact(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)))
    made(torch.ones(1, 8))
    assert len(weights._packs) == before + 2
    made(torch.ones(3, 8))
    assert len(weights._packs) == before + 2
    del made
    assert len(weights._packs) == before


def test_hooks_and_threads():
    module = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU())
    seen = []
    module[0].register_forward_hook(lambda m, args, y: seen.append(y))
    made = exact(module)
    x = torch.randn(2, 8)
    y = made(x)
    assert len(seen) == 1 and same(made[1](seen[0]), y)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["encoder", "gpt2"])
def test_compile_and_export_see_the_operators(name):
    module = encoder(norm_first=True) if name == "encoder" else gpt2(n_layer=1)
    made = exact(module, strict=True)
    x = some(name, 2, 6)
    given = {} if name == "encoder" else {"use_cache": False, "return_dict": False}
    wanted = first(made(x, **given))

    def operators_of(graph):
        return {str(node.target).split(".")[1] for node in graph.nodes if str(node.target).startswith("llorch.")}

    exported = torch.export.export(made, (x,), given)
    assert same(first(exported.module()(x, **given)), wanted)
    assert operators_of(exported.graph) >= {"linear", "attention", "layer_norm", "unary"}
    assert not [n for n in exported.graph.nodes if str(n.target) in ("aten.linear.default", "aten.addmm.default")]
    if name == "encoder":
        graphs = []

        def backend(graph, _):
            graphs.append(graph.graph)
            return graph.forward

        assert same(torch.compile(made, backend=backend, fullgraph=True)(x), wanted)
        assert [operators_of(g) for g in graphs] == [operators_of(exported.graph)]


def test_operators_keep_pytorchs_rules():
    x, w = torch.randn(3, 8), torch.randn(5, 8)
    q = torch.randn(1, 2, 4, 8)
    for operator, arguments in (
        ("linear", (x, w, w[:, 0].clone())),
        ("matmul", (x, w.T.contiguous())),
        ("layer_norm", (x, 1, w[0].clone(), None, 1e-5)),
        ("rms_norm", (x, 1, w[0].clone(), 1e-5)),
        ("softmax", (x, 1)),
        ("sum", (x,)),
        ("unary", (x, "gelu")),
        ("embedding", (w, torch.tensor([1, 4]))),
        ("attention", (q, q.clone(), q.clone(), None, True, None)),
    ):
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(getattr(torch.ops.llorch, operator).default, arguments, test_utils=checks)


def test_llorch_has_it_by_name():
    assert llorch.torch.exact is exact
    assert all(a != b for a, b in pairwise(sorted(llorch.torch.__all__)))


# ---- what a module's parts, types and neighbours may be -----------------------------------------------------


def pruned(module):
    from torch.nn.utils import prune

    return prune.l1_unstructured(module, "weight", 0.5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("outermost", [True, False])
def test_weights_that_are_computed(outermost):
    norms = torch.nn.utils.parametrizations
    for change, layer, left in (
        (norms.weight_norm, torch.nn.Linear(8, 4), "_weight_norm"),
        (norms.spectral_norm, torch.nn.Linear(8, 4), "vdot"),
        (torch.nn.utils.weight_norm, torch.nn.Linear(8, 4), None if outermost else "_weight_norm"),
        (pruned, torch.nn.Linear(8, 4), ""),
        (pruned, torch.nn.LayerNorm(8), ""),
        (norms.weight_norm, torch.nn.Embedding(9, 8), "_weight_norm"),
    ):
        with torch.enable_grad():
            module = change(layer).eval()
        x = torch.tensor([[1, 8]]) if isinstance(layer, torch.nn.Embedding) else torch.randn(3, 8)
        module = module if outermost else torch.nn.Sequential(module)
        made = exact(module)
        near(made(x), module(x))
        for name in ("sum", "linear", "layer_norm"):  # the layer itself is on llorch
            assert not [f for _, f in report(made).left if f.startswith(name)]
        if left:
            assert [f for _, f in report(made).left if f.startswith(left)], (change, report(made))


def test_a_familys_modules_keep_its_types():
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    types = (torch.float32, torch.bfloat16, torch.float16)
    for norm in (T5LayerNorm(16), GemmaRMSNorm(16), Norm(1)):
        norm.weight = torch.nn.Parameter(torch.randn(16)) if hasattr(norm, "weight") else None
        norm.scale = torch.nn.Parameter(torch.randn(16)) if hasattr(norm, "scale") else None
        for weight in types:
            module = copy.deepcopy(norm).to(weight)
            made = exact(module, strict=True)
            for given in types:
                x = torch.randn(3, 16).to(given)
                near(made(x), module(x), 2e-5 if weight is given is torch.float32 else 0.02)
                assert same(made(x)[1:2], made(x[1:2]))
                assert ("rms_norm" in report(made, x).covered) == (weight is given)
    wide = Calls(lambda x: F.silu(x.float()))
    assert exact(wide)(torch.ones(3, dtype=torch.bfloat16)).dtype is torch.float32
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    module = transformers.T5ForConditionalGeneration(config).half().eval()
    for name, part in module.named_modules():
        if name.endswith(".wo"):
            part.float()  # as from_pretrained does
    ids = torch.tensor([[3, 4, 5]])
    near(first(exact(module)(ids, decoder_input_ids=ids)), first(module(ids, decoder_input_ids=ids)), 0.02)


def test_a_bound_far_out_is_kept():
    for most, x in ((20, [50.0, 1, -50]), (64504, [65000.0, 1, -9]), (1e25, [3e30, 1, -9])):
        for function in (F.silu, F.gelu):
            module = Calls(lambda x, f=function, m=most: f(x).clamp(max=m))
            near(exact(module)(torch.tensor(x)), module(torch.tensor(x)))


def attend(*args, **kwargs):
    return exact(Calls(lambda: F.scaled_dot_product_attention(*args, **kwargs)), strict=True)()


def test_masks_of_wrong_shapes_are_refused():
    q, k, v = (torch.randn(2, 4, 5, 8) for _ in range(3))
    for shape in ((3, 1, 5, 5), (1, 3, 5, 5), (7, 5), (5, 4), (1, 2, 4, 5, 5)):
        with pytest.raises(ValueError, match=r"attn_mask has shape .* it must broadcast to \(2, 4, 5, 5\)"):
            mask = torch.ones(shape, dtype=torch.bool)
            operators.attention(q, k, v, mask, False, None)
    with pytest.raises(ValueError, match=r"attn_mask has shape \(5, 5\), it must broadcast to \(2, 4, 1, 5\)"):
        attend(q[:, :, -1:], k, v, torch.ones(5, 5))
    mask = torch.rand(2, 4, 5, 5) < 0.5  # of the last of two leading axes
    five = [t.expand(3, 2, 4, 5, 8) for t in (q, k, v)]
    near(attend(*five, mask), F.scaled_dot_product_attention(*five, mask))


def test_a_querys_own_row_of_the_mask_decides():
    """Whatever the masks of other sequences, heads and queries are."""
    n = 150
    i = torch.arange(n)
    q, k, v = (torch.randn(3, 2, n, 16) for _ in range(3))
    mask = torch.zeros(3, 2, n, n).masked_fill(i[:, None] < i, -torch.inf)
    mask[0, :, :, :5] = -torch.inf
    mask[1, 1, :, 3] = -torch.inf
    mask[2, 0, 7, 3] = 0.25
    mask[2, 1, 100:, 9] = 0.5
    k[0, :, 0] = v[0, :, 0] = torch.nan  # nobody sees it
    for given in (mask, mask == 0):
        whole = attend(q, k, v, given)
        assert not whole.isnan().any()
        for b in range(3):
            assert same(attend(q[b:][:1], k[b:][:1], v[b:][:1], given[b:][:1])[0], whole[b])
            for h in range(2):
                rows = slice(90, 120)
                alone = attend(q[b, h, rows], k[b, h], v[b, h], given[b, h, rows])
                assert same(alone, whole[b, h, rows])
    near(whole[1:], F.scaled_dot_product_attention(q, k, v, given)[1:])


def test_keys_between_those_that_are_seen_do_not_exist():
    n, left = 140, 3  # more keys than a block of the sums has
    i = torch.arange(n)
    causal, back = i[:, None] >= i, i[:, None] - i
    q, k, v = (torch.randn(1, 2, n + left, 8) for _ in range(3))
    k[:, :, :left] = v[:, :, :left] = torch.nan
    for seen in (causal & (back % 2 == 0), causal & ((back < 20) | (i < 2)), torch.rand(n, n) < 0.8):
        mask = torch.zeros(n + left, n + left, dtype=torch.bool)
        mask[left:, left:] = seen
        got = attend(q, k, v, mask)[:, :, left:]
        assert same(got, attend(q[:, :, left:], k[:, :, left:], v[:, :, left:], seen))
        near(got, F.scaled_dot_product_attention(q[:, :, left:], k[:, :, left:], v[:, :, left:], seen))
        one = seen[77]
        assert same(
            got[:, :, 77:78], attend(q[:, :, left + 77 :][:, :, :1], *(t[:, :, left:][:, :, one] for t in (k, v)))
        )


def test_autocast_is_refused_by_every_way():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    for module in (
        torch.nn.Linear(8, 8),
        torch.nn.LayerNorm(8),
        LlamaRMSNorm(8),
        transformers.activations.NewGELUActivation(),
    ):
        made = exact(module)
        with torch.autocast("cpu"), pytest.raises(RuntimeError, match="autocast is on"):
            made(torch.ones(2, 8))


def test_threads_after_an_exact_call_inside_what_is_left():
    from llorch.torch import threads

    inner, x = exact(torch.nn.Sequential(torch.nn.Linear(8, 8))), torch.ones(1, 8)
    before = threads.alone()
    try:
        threads.with_threads(inner, (x,), {})
        assert threads.with_threads(torch.get_num_threads, (), {}) == 2
    finally:
        threads.together(before)
    assert torch.get_num_threads() == 2
