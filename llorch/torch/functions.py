"""Which of PyTorch's functions run on llorch, which may stay as they are, and the mode that decides it call by call.

A function may stay where it only moves values, or where every value of its result is rounded once, or a fixed number of
times, by IEEE's rules: then neither the batch nor the machine can change a bit. Any other function on floating-point
values that has no kernel here stays in PyTorch too, but is named: sums and products, whose order PyTorch chooses by
shape and threads, and functions whose last values of an array are computed by other code than the rest.
"""

import math
import operator
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llorch.torch import operators, threads
from llorch.torch.arrays import NAMES, supported

# ---- what may stay ------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return text.split()


MOVES = _words("""
    view reshape transpose permute contiguous clone detach to type type_as float half bfloat16 double int long short
    bool char byte cpu expand expand_as repeat repeat_interleave tile cat concat concatenate stack hstack vstack dstack
    split split_with_sizes tensor_split chunk unbind unflatten flatten ravel squeeze unsqueeze select narrow slice
    index_select index gather take take_along_dim scatter index_put index_copy index_fill masked_fill masked_scatter
    masked_select select_scatter slice_scatter where roll flip fliplr flipud rot90 pad constant_pad_nd tril triu diag
    diagonal diag_embed new_empty new_zeros new_ones new_full new_tensor zeros zeros_like ones ones_like full full_like
    empty empty_like empty_strided empty_permuted eye fill zero copy size dim numel nelement ndimension stride
    storage_offset data_ptr untyped_storage element_size item tolist numpy is_contiguous is_floating_point is_complex
    is_nonzero is_inference is_same_size is_set_to is_shared is_pinned is_signed view_as reshape_as broadcast_to
    broadcast_tensors meshgrid t adjoint swapaxes swapdims moveaxis movedim unfold as_strided resolve_conj resolve_neg
    alias lift_fresh lift_fresh_copy detach_copy view_copy result_type get_device requires_grad_ retain_grad
    register_hook tensor as_tensor asarray from_numpy scalar_tensor sym_size sym_numel one_hot tril_indices triu_indices
    _to_copy _unsafe_view _reshape_alias _shape_as_tensor _local_scalar_dense _assert _assert_async
    _assert_tensor_metadata atleast_1d atleast_2d atleast_3d block_diag combinations cartesian_prod pixel_shuffle
    pixel_unshuffle channel_shuffle unsafe_split unsafe_chunk data_copy __getitem__ __setitem__ __len__ __bool__ __int__
    __float__ __index__ __repr__ __format__ __iter__ __contains__ __array__ __dlpack__ __dlpack_device__ __hash__
    __deepcopy__ __reduce_ex__ __get__ __set__ __dir__ is_tensor is_storage is_grad_enabled _set_grad_enabled
    is_inference_mode_enabled is_autocast_enabled get_default_dtype get_default_device
    _nested_tensor_from_mask_left_aligned
""")
COMPARES = _words("""
    eq ne lt le gt ge equal not_equal less less_equal greater greater_equal isnan isinf isfinite isneginf isposinf
    isclose allclose isin logical_and logical_or logical_not logical_xor any all argmax argmin fmax fmin sort argsort
    topk kthvalue median searchsorted bucketize nonzero unique unique_consecutive count_nonzero signbit sign sgn
""")
ROUNDED = _words("""
    neg negative fabs positive relu relu_ leaky_relu prelu threshold hardtanh relu6 floor ceil round trunc frac fix
    floor_divide nan_to_num copysign
""")
RANDOM_IF_TRAINING = _words("dropout alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d dropout3d")

_OWNERS = (torch, torch.Tensor, F, torch._C._nn, torch._C._VariableFunctions, torch.special, torch.functional, operator)


def _named(names: Iterable[str]) -> Iterable[Any]:
    """Every function of these names: of torch and of tensors, in place, and as an operator of Python."""
    for name in names:
        spelled = [name, f"{name}_"]
        if not name.startswith("_"):
            bare = name.removesuffix("_divide") if name == "floor_divide" else name
            bare = {"true_divide": "truediv", "floor_divide": "floordiv"}.get(name, bare)
            spelled += [f"__{prefix}{bare}__" for prefix in ("", "r", "i")]
        for owner in _OWNERS:
            for one in spelled:
                found = getattr(owner, one, None)
                if callable(found) and not isinstance(
                    found, types.MethodWrapperType
                ):  # a class's own, such as __repr__
                    yield found


# ---- what may stay with some arguments ----------------------------------------------------------------------
# Each takes the arguments of PyTorch's function, and says whether it may.


def _without_alpha(args: Any, kwargs: Any) -> bool:
    """A sum: with another factor than 1 it is a fused multiply-add here and not there."""
    if len(args) > 2 and (isinstance(args[2], torch.Tensor) or args[2] != 1):  # an old order: input, alpha, other
        return False
    return bool(kwargs.get("alpha", 1) == 1)


def _exact_power(args: Any, kwargs: Any) -> bool:
    """A power that is products, of real values."""
    exponent = kwargs.get("exponent", args[1] if len(args) > 1 else None)
    return isinstance(exponent, int | float) and exponent in (1, 2, 3) and _real(args, kwargs)


def _whole_steps(args: Any, kwargs: Any) -> bool:
    """A range of whole numbers that its type has; others depend on their place and on how many there are."""
    dtype = kwargs.get("dtype")
    numbers = [*args, *(kwargs[name] for name in ("start", "end", "step") if name in kwargs)]
    if (dtype is None and all(isinstance(n, int | torch.SymInt) for n in numbers)) or dtype in _INTEGERS:
        return True
    most = _WHOLE.get(torch.get_default_dtype() if dtype is None else dtype, 0)
    return all(isinstance(n, torch.SymInt) or (n == n // 1 and abs(n) <= most) for n in numbers)


_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_WHOLE = {torch.float32: 2**24, torch.float64: 2**53, torch.float16: 2**11, torch.bfloat16: 2**8}


def _real(args: Any, kwargs: Any) -> bool:
    """A product, a quotient, a root: of complex values it is several roundings, and other ones in an array's last."""
    for one in (*args, *kwargs.values()):
        if isinstance(one, complex) or (isinstance(one, torch.Tensor) and one.is_complex()):
            return False
    return True


def _bounds_are_numbers(args: Any, kwargs: Any) -> bool:
    return not any(isinstance(bound, torch.Tensor) for bound in (*args[1:], *kwargs.values()))


CONDITIONS: dict[str, Callable[[Any, Any], bool]] = {
    **dict.fromkeys(("add", "sub", "subtract", "rsub"), _without_alpha),
    **dict.fromkeys(("pow", "float_power"), _exact_power),
    **dict.fromkeys(_words("mul multiply div divide true_divide square sqrt reciprocal abs absolute"), _real),
    **dict.fromkeys(("clamp", "clip", "clamp_min", "clamp_max"), _bounds_are_numbers),
    "arange": _whole_steps,
}


# ---- what stays, with a sign for its zeros ------------------------------------------------------------------

EXTREMES = _words("max min amax amin aminmax maximum minimum clamp clip clamp_min clamp_max")


def _signed(found: Any) -> Any:
    """PyTorch's result with 0 for -0: of equal zeros its extremes take the one or the other by their place."""
    for one in found if isinstance(found, tuple) else (found,):
        if one.is_floating_point():
            one.add_(0.0)
    return found


# ---- what runs on llorch ------------------------------------------------------------------------------------
# Each takes the arguments of PyTorch's function, and returns Declined where llorch has no kernel for them.


class Declined(Exception):
    """What llorch has no kernel for: why."""


def _take(name: str, *tensors: torch.Tensor | None) -> None:
    if torch.is_grad_enabled():
        operators.check_grad(name, tensors)
    if not supported(*tensors):
        given = [t for t in tensors if t is not None]
        kinds = ", ".join(dict.fromkeys(f"{t.dtype} on {t.device}".removeprefix("torch.") for t in given))
        raise Declined(f"of {kinds}")


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    _take("linear", input, weight, bias)
    if weight.ndim == 1:
        return linear(input, weight[None], None if bias is None else bias.reshape(1))[..., 0]
    if bias is not None and bias.shape != weight.shape[:1]:
        shape = (*input.shape[:-1], weight.shape[0])
        return _scaled(bias.expand(shape), operators.linear(input.float(), weight.float(), None), 1, 1)
    return operators.linear(input, weight, bias)


def matmul(input: torch.Tensor, other: torch.Tensor, *, out: None = None) -> Any:
    _take("matmul", input, other)
    _none("matmul", out=out)
    if other.ndim == 1:
        return matmul(input, other[:, None])[..., 0]
    if input.ndim == 1:
        return matmul(input[None], other)[..., 0, :]
    if other.ndim == 2:
        return operators.linear(input, other.t(), None)
    return operators.matmul(input, other)


def _rmatmul(other: torch.Tensor, input: torch.Tensor) -> Any:
    return matmul(input, other)


def addmm(
    input: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor, *, beta: Any = 1, alpha: Any = 1, out: None = None
) -> Any:
    _take("addmm", input, mat1, mat2)
    _none("addmm", out=out)
    if beta == 1 and alpha == 1 and input.ndim == 1 and input.shape[0] == mat2.shape[1]:
        return operators.linear(mat1, mat2.t(), input)
    if alpha == 0:  # PyTorch doesn't look at the product, which may have infinities
        return _scaled(input, mat1.new_zeros((mat1.shape[0], mat2.shape[1]), dtype=torch.float32), beta, 1)
    return _scaled(input, matmul(mat1.float(), mat2.float()), beta, alpha)


def _scaled(input: torch.Tensor, product: torch.Tensor, beta: Any, alpha: Any) -> Any:
    """input * beta + product * alpha, the product in float32, in the input's type: 16 bits are rounded once."""
    if alpha != 1:
        product = product * alpha
    if beta != 0:
        product = product + (input.float() if beta == 1 else input.float() * beta)
    return product.to(input.dtype)


def baddbmm(
    input: torch.Tensor, batch1: torch.Tensor, batch2: torch.Tensor, *, beta: Any = 1, alpha: Any = 1, out: None = None
) -> Any:
    _take("baddbmm", input, batch1, batch2)
    _none("baddbmm", out=out)
    return _scaled(input, operators.matmul(batch1.float(), batch2.float()), beta, alpha)


def _none(name: str, **given: Any) -> None:
    for argument, value in given.items():
        if value is not None:
            raise Declined(f"with {argument}=")


def softmax(input: torch.Tensor, dim: Any = None, dtype: Any = None, *, axis: Any = None, out: None = None) -> Any:
    _none("softmax", out=out)
    dim = axis if dim is None else dim
    if not isinstance(dim, int):
        raise Declined("without an axis")
    x = input if dtype is None else input.to(dtype)
    _take("softmax", x)
    return operators.softmax(x, dim)


def f_softmax(input: torch.Tensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    return softmax(input, dim, dtype)


def layer_norm(
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    operators.check_grad("layer_norm", (input, weight, bias))
    _take("layer_norm", input)
    return operators.layer_norm(input, _axes(input, normalized_shape), weight, bias, eps)


def rms_norm(input: torch.Tensor, normalized_shape: Any, weight: torch.Tensor | None = None, eps: Any = None) -> Any:
    operators.check_grad("rms_norm", (input, weight))
    _take("rms_norm", input)
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return operators.rms_norm(input, _axes(input, normalized_shape), weight, eps)


def _axes(input: torch.Tensor, normalized_shape: Any) -> int:
    shape = tuple(normalized_shape)
    if not shape or tuple(input.shape[-len(shape) :]) != shape:
        raise ValueError(f"input has shape {tuple(input.shape)}, its last axes must be normalized_shape, {shape}")
    return len(shape)


def embedding(
    input: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    _take("embedding", weight)
    _none("embedding", max_norm=max_norm)
    return operators.embedding(weight, input)


def _c_embedding(weight: torch.Tensor, indices: torch.Tensor, *options: Any, **more: Any) -> Any:
    return embedding(indices, weight)


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    _take("scaled_dot_product_attention", query, key, value)
    operators.check_grad("scaled_dot_product_attention", (attn_mask,))
    if query.shape[-1] == 0:
        raise Declined("of heads without values")
    if dropout_p > 0:
        _refuse_dropout(dropout_p)
    if is_causal and attn_mask is not None:
        raise ValueError("scaled_dot_product_attention got attn_mask and is_causal=True: one of them must go")
    if query.ndim > 2 and not enable_gqa and key.shape[-3] not in (1, query.shape[-3]):
        raise ValueError(
            f"key has {key.shape[-3]} heads, query has {query.shape[-3]}: without enable_gqa=True they must be as many"
        )
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, *NAMES):
        raise Declined(f"with a mask of {attn_mask.dtype}")
    return operators.attention(query, key, value, attn_mask, is_causal, scale)


def _refuse_dropout(p: float) -> None:
    raise RuntimeError(
        f"llorch.torch: dropout of {p:g} is on, and an exact copy is for inference: call eval() on it, "
        "and leave dropout_p at 0"
    )


def dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, train: bool = True
) -> Any:
    if training and train and p > 0:
        _refuse_dropout(p)
    return input


def _unary(name: str) -> Any:
    def function(input: torch.Tensor, *, out: None = None) -> Any:
        _none(name, out=out)
        x = input if input.is_floating_point() else input.to(torch.get_default_dtype())
        _take(name, x)
        return operators.unary(x, name)

    return function


def silu(input: torch.Tensor, inplace: bool = False) -> Any:
    _take("silu", input)
    y = operators.unary(input, "silu")
    return input.copy_(y) if inplace else y


def gelu(input: torch.Tensor, *, approximate: str = "none") -> Any:
    _take("gelu", input)
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"approximate must be none or tanh, got {approximate!r}")
    return operators.unary(input, "gelu_tanh" if approximate == "tanh" else "gelu")


def rsqrt(input: torch.Tensor, *, out: None = None) -> Any:
    _none("rsqrt", out=out)
    _take("rsqrt", input)  # PyTorch's own is rounded twice in some places of a 16-bit array, and once in others
    return input.float().sqrt().reciprocal().to(input.dtype)


def sum_(
    input: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    *,
    axis: Any = None,
    keepdims: bool = False,
    dtype: Any = None,
    out: None = None,
) -> Any:
    _none("sum", out=out)
    x = input if dtype is None else input.to(dtype)
    return _reduced("sum", x, dim if axis is None else axis, keepdim or keepdims)[0]


def mean(
    input: torch.Tensor,
    dim: Any = None,
    keepdim: bool = False,
    *,
    axis: Any = None,
    keepdims: bool = False,
    dtype: Any = None,
    out: None = None,
) -> Any:
    _none("mean", out=out)
    x = input if dtype is None else input.to(dtype)
    wide = x.float() if x.dtype in NAMES else x
    total, count = _reduced("mean", wide, dim if axis is None else axis, keepdim or keepdims)
    return (total / count).to(x.dtype)


def _reduced(name: str, x: torch.Tensor, dim: Any, keepdim: bool) -> tuple[torch.Tensor, int]:
    """The sum, and of how many."""
    if not x.is_floating_point():
        raise Declined(f"of {x.dtype}")
    _take(name, x)
    axes = _reduced_axes(x.ndim, dim)
    if x.ndim == 0:
        return x.clone(), 1
    count = math.prod(x.shape[d] for d in axes)
    rows = x.movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes))
    y = operators.sum_last(rows)
    if keepdim:
        y = y.reshape([1 if d in axes else n for d, n in enumerate(x.shape)])
    return y, count


def _reduced_axes(ndim: int, dim: Any) -> list[int]:
    """The axes of a reduction, each once and counted from 0; all of them where none is given."""
    given = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
    most = max(ndim, 1)  # a tensor without axes has 0 and -1
    for d in given:
        if not -most <= d < most:
            raise IndexError(f"dim must be in {-most} .. {most - 1} for a tensor of {ndim} axes, got {d}")
    axes = sorted({d % most for d in given})
    if len(axes) < len(given):
        raise RuntimeError(f"dim must name each axis once, got {tuple(given)} for a tensor of {ndim} axes")
    return axes or list(range(ndim))


def _in_projection_packed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Queries, keys and values by one weight (3 E, E): PyTorch's function of this name, so that dynamo can trace it."""
    E = q.size(-1)
    if k is v and q is k:
        made = F.linear(q, w, b)
        return [made[..., i * E : (i + 1) * E].contiguous() for i in range(3)]
    biases = (None,) * 3 if b is None else b.chunk(3)
    return [F.linear(x, part, bias) for x, part, bias in zip((q, k, v), w.chunk(3), biases, strict=True)]


def _opened(function: Any) -> Any:
    """A function of PyTorch's written in Python, whose own calls the mode sees."""
    known = dict(function.__globals__) | {
        "has_torch_function": lambda *_: False,
        "has_torch_function_unary": lambda *_: False,
        "has_torch_function_variadic": lambda *_: False,
        "_in_projection_packed": _in_projection_packed,
    }
    opened = types.FunctionType(
        function.__code__, known, function.__name__, function.__defaults__, function.__closure__
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


_multi_head_attention = _opened(F.multi_head_attention_forward)

FUNCTIONS = {
    "exp": _unary("exp"),
    "tanh": _unary("tanh"),
    "erf": _unary("erf"),
    "sigmoid": _unary("sigmoid"),
    "cos": _unary("cos"),
    "sin": _unary("sin"),
    "rsqrt": rsqrt,
    "silu": silu,
    "gelu": gelu,
    "matmul": matmul,
    "mm": matmul,
    "bmm": matmul,
    "mv": matmul,
    "addmm": addmm,
    "baddbmm": baddbmm,
    "softmax": softmax,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "sum": sum_,
    "mean": mean,
    "linear": linear,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
_STAYS, _EXTREME = "stays", "stays, with a sign for its zeros"


class _If(NamedTuple):
    """What stays where its arguments are of some kind."""

    holds: Callable[[Any, Any], bool]
    otherwise: str | None  # as what it stays then; None where it doesn't


def _in_place(function: Any) -> Any:
    def written(input: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        return input.copy_(function(input, *arguments, **more))

    return written


def _table() -> dict[Any, Any]:
    table: dict[Any, Any] = dict.fromkeys(_named((*MOVES, *COMPARES, *ROUNDED)), _STAYS)
    table |= dict.fromkeys(_named(EXTREMES), _EXTREME)
    for name, holds in CONDITIONS.items():
        table |= dict.fromkeys(_named([name]), _If(holds, _EXTREME if name in EXTREMES else None))
    del table[torch.Tensor.__rpow__]  # whose exponent is the tensor
    for name in RANDOM_IF_TRAINING:
        for owner in (F, torch):
            if found := getattr(owner, name, None):
                table[found] = dropout
    for name, function in FUNCTIONS.items():
        for owner in _OWNERS:
            if found := getattr(owner, name, None):
                table[found] = function
            if (found := getattr(owner, f"{name}_", None)) and name not in ("sum", "mean"):
                table[found] = _in_place(function)
    table |= {
        torch.Tensor.__matmul__: matmul,
        torch.Tensor.__rmatmul__: _rmatmul,
        F.softmax: f_softmax,
        F.embedding: embedding,
        torch.embedding: _c_embedding,
        F.multi_head_attention_forward: _multi_head_attention,
    }
    return table


TABLE = _table()


# ---- by operators, for what is a call of one function that makes others inside --------------------------------


def _normed(input: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    y = layer_norm(input, shape, weight, bias, eps)
    lead = (*input.shape[: input.ndim - len(shape)], *(1 for _ in shape))
    return y, input.new_zeros(lead), input.new_zeros(lead)  # mean and 1 / deviation, which only a backward needs


def _flash(
    q: Any, k: Any, v: Any, dropout_p: float = 0.0, is_causal: bool = False, *, attn_mask: Any = None, scale: Any = None
) -> Any:
    y = scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale, True)
    return y, q.new_zeros(q.shape[:-1])


ATEN = FUNCTIONS | {
    "_softmax": lambda x, dim, half_to_float: softmax(x, dim, torch.float32 if half_to_float else None),
    "native_layer_norm": _normed,
    "embedding": _c_embedding,
    "_scaled_dot_product_flash_attention_for_cpu": _flash,
    "linalg_vector_norm": lambda x, ord=2, dim=None, keepdim=False, *, dtype=None: _norm(x, ord, dim, keepdim, dtype),
}
_ATEN_STAYS = {*MOVES, *COMPARES, *ROUNDED}


def _norm(x: torch.Tensor, ord: Any, dim: Any, keepdim: bool, dtype: Any) -> Any:
    if ord != 2:
        raise Declined(f"of order {ord}")
    if not x.is_floating_point():
        raise Declined(f"of {x.dtype}")
    x = x if dtype is None else x.to(dtype)
    if x.dtype not in NAMES:
        raise Declined(f"of {x.dtype}")
    return sum_(x.float() * x.float(), dim, keepdim).sqrt().to(x.dtype)


class _Inside(TorchDispatchMode):  # type: ignore[misc]
    """Runs on llorch what a function of PyTorch's calls inside, and notes what it can't."""

    def __init__(self, mode: "Exact", function: str) -> None:
        super().__init__()
        self.mode, self.function = mode, function

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        bare = name.removesuffix("_") if func._schema.is_mutable else name
        if func.namespace == "llorch":
            return func(*args, **kwargs)
        if not (bare in ATEN or bare in CONDITIONS or bare in EXTREMES or bare in _ATEN_STAYS):
            with self:  # in inference mode, what consists of others comes here whole
                y = func.decompose(*args, **kwargs)
            if y is not NotImplemented:
                return y
        if not _floats(args, kwargs):
            y = func(*args, **kwargs)
            if not _stays(bare, args, kwargs) and _floats(y):  # made of integers, or by chance
                self.mode.leave(name, self.function)
            return y
        if (function := ATEN.get(bare)) is not None:
            try:
                y = function(*args, **kwargs)
            except Declined as why:
                self.mode.leave(f"{name} {why}", self.function)
                return func(*args, **kwargs)
            self.mode.note(name)
            return args[0].copy_(y) if bare != name else y
        if not _stays(bare, args, kwargs):
            self.mode.leave(name, self.function)
        y = func(*args, **kwargs)
        return _signed(y) if bare in EXTREMES else y


def _stays(name: str, args: Any, kwargs: Any) -> bool:
    """Whether one of PyTorch's operators may, with these arguments."""
    if name in _ATEN_STAYS or name in EXTREMES:
        return True
    return name in CONDITIONS and CONDITIONS[name](args, kwargs)


def _floats(*given: Any) -> bool:
    """Whether there is a tensor of floating-point values among them."""
    for one in given:
        if isinstance(one, torch.Tensor):
            if one.is_floating_point() or one.is_complex():
                return True
        elif isinstance(one, list | tuple):
            if _floats(*one):
                return True
        elif isinstance(one, dict) and _floats(*one.values()):
            return True
    return False


# ---- the mode -----------------------------------------------------------------------------------------------


class Exact(TorchFunctionMode):  # type: ignore[misc]
    """While it is active, PyTorch's functions run on llorch where the table says so.

    strict : bool
        What has no kernel, and may not stay, is a NotImplementedError.
    left : Counter
        What stayed in PyTorch: (module, function) and how often.
    covered : Counter or None
        What ran on llorch, where somebody counts.
    """

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self.strict = strict
        self.left: Counter[tuple[str, str]] = Counter()
        self.covered: Counter[str] | None = None

    def __torch_function__(self, func: Any, classes: Any, args: Any = (), kwargs: Any = None) -> Any:
        if type(func) is types.MethodWrapperType:  # an attribute
            return func(*args, **(kwargs or {}))
        entry = TABLE.get(func)
        if entry is _STAYS:
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if type(entry) is _If:
            if entry.holds(args, kwargs):
                return func(*args, **kwargs)
            entry = entry.otherwise
        if entry is _EXTREME:
            return _signed(func(*args, **kwargs))
        if entry is None:
            return self._left(func, args, kwargs, "")
        if entry is _multi_head_attention:
            with self:
                return entry(*args, **kwargs)
        if self.covered is not None and entry is not dropout:
            self.covered[func.__name__] += 1
        try:
            return entry(*args, **kwargs)
        except Declined as why:
            return self._left(func, args, kwargs, f" {why}")

    def _left(self, func: Any, args: Any, kwargs: Any, why: str) -> Any:
        """A function that isn't in the table, or that the table's can't compute with these arguments."""
        name = getattr(func, "__name__", str(func))
        if torch.compiler.is_compiling():
            y = func(*args, **kwargs)
            if _floats(args, kwargs, y):
                self.leave(f"{name}{why}", "")
            return y
        if why:
            if _floats(args, kwargs):
                self.leave(f"{name}{why}", "")
            return threads.with_threads(func, args, kwargs)
        with _Inside(self, name):
            return threads.with_threads(func, args, kwargs)

    def leave(self, name: str, inside: str) -> None:
        """Notes what stays in PyTorch, or refuses it."""
        shown = name if inside in ("", name) else f"{inside}: {name}"
        if torch.compiler.is_compiling():
            if self.strict:
                raise NotImplementedError(_refusal(shown, ""))
            return
        where = _where()
        if self.strict:
            raise NotImplementedError(_refusal(shown, where))
        self.left[where, shown] += 1

    def note(self, name: str) -> None:
        if self.covered is not None:
            self.covered[name] += 1

    def __reduce__(self) -> Any:
        return Exact, (self.strict,)

    def __deepcopy__(self, memo: Any) -> "Exact":
        return Exact(self.strict)


def _refusal(name: str, where: str) -> str:
    return (
        f"llorch.torch: {name}{where and f' in {where}'} has no kernel in llorch, and its bits may change with the "
        "batch or the threads; exact(..., strict=False) leaves it to PyTorch, and llorch.torch.report lists it"
    )


def active() -> bool:
    """Whether this thread is within an exact module's call."""
    for i in range(torch._C._len_torch_function_stack()):  # noqa: SIM110  a generator costs as much as the rest
        if type(torch._C._get_function_stack_at(i)) is Exact:
            return True
    return False


def _where() -> str:
    """The innermost module of those whose calls are running, by its name in the outermost."""
    frame, chain = sys._getframe(1), []
    while frame is not None:
        module = frame.f_locals.get("self") if frame.f_code.co_name != "__torch_function__" else None
        if isinstance(module, torch.nn.Module) and "_llorch" in module.__dict__:
            chain.append(module)
        frame = frame.f_back  # type: ignore[assignment]
    if not chain:
        return ""
    for name, module in chain[-1].named_modules():
        if module is chain[0]:
            return name or type(module).__name__
    return type(chain[0]).__name__
