"""Which arguments of PyTorch's functions llorch takes, which stay in PyTorch, and which are named: one by one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from helpers import assert_same_bits  # noqa: E402
from torch_modules import Calls  # noqa: E402

from llorch.torch import exact  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def strict(function):
    return exact(Calls(function), strict=True)


def left(function, *given):
    """What a function leaves to PyTorch, by its names."""
    made = exact(Calls(function))
    made(*given)
    return [name for _, name in made._llorch.left]


def same(a, b):
    kind = {torch.float32: torch.int32, torch.float64: torch.int64}.get(a.dtype, torch.int16)
    return (
        a.shape == b.shape and a.dtype is b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))
    )


def near(function, *given, tolerance=1e-5):
    got, wanted = strict(function)(*given), function(*given)
    assert got.shape == wanted.shape and got.dtype is wanted.dtype
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


def depends(function, x):
    """Whether a value's bits in PyTorch, or in an exact copy, depend on its place in the array: (PyTorch, exact)."""
    made = strict(function)

    def one(f):
        whole = f(x)
        return not all(same(f(x[i : i + 1].clone()), whole[i : i + 1]) for i in range(len(x)))

    return one(function), one(made)


@pytest.mark.parametrize("reduce", [torch.sum, torch.mean])
def test_axes_of_reductions_are_pytorchs(reduce):
    x = torch.randn(5, 7, 12)
    for dim in ([], (), None, 1, -1, (0, -1), (0, 1, 2)):
        for keepdim in (False, True):
            near(lambda t, dim=dim, keepdim=keepdim: reduce(t, dim=dim, keepdim=keepdim), x)
    near(lambda t: getattr(t, reduce.__name__)(axis=1, keepdims=True), x)
    near(lambda t: reduce(t, dim=-1), torch.tensor(3.0))
    for dim, error in ((3, IndexError), (-4, IndexError), ((0, 0), RuntimeError), ((0, -3), RuntimeError)):
        refused = lambda t, dim=dim: reduce(t, dim=dim)  # noqa: E731
        for made in (refused, strict(refused)):
            with pytest.raises(error, match=r"(?i)dim"):
                made(x)


def test_norms_of_other_types_are_named():
    x = torch.randn(3, 8)
    near(lambda t: F.normalize(t, dim=-1), x)
    for given in (x.double(), torch.complex(x, x)):
        norm = lambda t: torch.linalg.vector_norm(t, dim=-1)  # noqa: E731
        assert left(norm, given) == [f"linalg_vector_norm: linalg_vector_norm of {given.dtype}"]
        assert torch.equal(exact(Calls(norm))(given), norm(given))
    assert left(lambda t: torch.linalg.vector_norm(t, dtype=torch.float64), x)


def test_biases_at_one_place_of_memory_are_told_apart():
    with torch.inference_mode(False):
        w, both = torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.arange(1.0, 9.0))
    x = torch.randn(2, 6)
    for bias in (lambda b: b[:4], lambda b: b[::2], lambda b: b[:1].expand(4), lambda b: b[:4]):
        near(lambda t, bias=bias: F.linear(t, w, bias(both)), x)


@pytest.mark.parametrize("shape", [(1,), (), (5, 9), (1, 9), (2, 5, 9)])
def test_biases_of_other_shapes(shape):
    x, w = torch.randn(2, 5, 12), torch.randn(9, 12)
    if shape == (5, 9) or shape == (1, 9):
        x = x[0]
    near(F.linear, x, w, torch.randn(shape))
    near(F.linear, x.bfloat16(), w.bfloat16(), torch.randn(shape).bfloat16(), tolerance=0.05)


def test_what_depends_on_a_values_place_is_named():
    x = torch.randn(77)
    assert left(lambda t: 2**t, x) and left(lambda t: 1**t, x) and left(lambda t: torch.pow(3, t), x)
    assert left(lambda t: torch.pow(2.0, t), torch.arange(5))
    assert not left(lambda t: (t**2, t**3.0, t.pow(1)), x)
    assert left(lambda t: torch.ldexp(t, t), x)
    assert left(lambda t: torch.add(t, 0.3, t * 1.7), x)
    assert left(lambda t: torch.add(t, t, alpha=0.3), x)
    z = torch.complex(x, x)
    for function in (lambda t: t * t, lambda t: t / t, lambda t: t**2, torch.sqrt):
        assert left(function, z) and not left(function, x)
    assert left(lambda t: t * 1j, x)
    assert not left(lambda t: (torch.add(t, t), torch.sub(t, 1.5), 1 - t), x)


def test_ranges_of_whole_numbers_stay():
    for given in ((9,), (2, 9), (9.0,), (0, 9, 2.0), (0, 3.5), (9, 0, -3)):
        whole = all(n == int(n) for n in given)
        assert bool(left(lambda given=given: torch.arange(*given))) is not whole
    assert left(lambda: torch.arange(0, 1, 0.1)) == ["arange"]
    assert left(lambda: torch.arange(0.5, 5))
    assert left(lambda: torch.arange(300, dtype=torch.bfloat16))
    assert not left(lambda: (torch.arange(99, dtype=torch.bfloat16), torch.arange(300, dtype=torch.float16)))
    assert not left(lambda: torch.arange(0, 9.5, dtype=torch.int32))
    assert left(lambda: torch.linspace(0, 1, 9))


def test_extremes_of_zeros_have_no_sign():
    zeros = torch.tensor([0.0, -0.0]).repeat(39)[:77]
    minus, none = -torch.zeros(77), torch.zeros(77)
    for function in (
        lambda t: torch.maximum(t, torch.zeros(())),
        lambda t: torch.minimum(torch.zeros(()), t),
        lambda t: t.clamp(torch.zeros(()), torch.ones(())),
        lambda t: t.clone().clamp_(min=torch.zeros(())),
        lambda t: torch.max(t, torch.zeros(())),
    ):
        assert not depends(function, zeros)[1]
        assert same(strict(function)(minus), none)
    assert depends(lambda t: torch.maximum(t, torch.zeros(())), minus)[0]  # the control
    both = zeros[:66].reshape(6, 11).sign() * torch.randn(6, 11).sign() * 0.0
    for function in (
        lambda t: t.amax(0),
        lambda t: t.amin(0),
        lambda t: t.max(0).values,
        lambda t: t.aminmax(dim=0)[0],
    ):
        assert same(strict(function)(both), torch.zeros(11))
    assert same(strict(torch.max)(both), torch.zeros(()))
    for function in (torch.relu, lambda t: t.clamp(min=0.0), lambda t: t.clamp(0.0, 1.0)):
        assert not depends(function, zeros)[1]
    assert strict(lambda t: t.amax(0))(torch.arange(6).reshape(2, 3)).tolist() == [3, 4, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_with_a_matrix_added_are_rounded_once(dtype):
    a, b, c = torch.randn(8, 64).to(dtype), torch.randn(64, 32).to(dtype), torch.randn(8, 32).to(dtype) * 8
    once = lambda alpha: (c.double() + alpha * (a.double() @ b.double())).float().to(dtype)  # noqa: E731
    assert (strict(torch.addmm)(c, a, b) != once(1)).sum() <= 1  # of 256; one may be at the middle of two in float32
    batched = strict(lambda: torch.baddbmm(c[None], a[None], b[None], alpha=0.125))()
    assert (batched[0] != once(0.125)).sum() <= 1
    assert (c + a @ b != once(1)).sum() > 20  # the control: rounded twice


def test_products_without_a_factor_are_not_looked_at():
    i, inf = torch.randn(3, 5), torch.full((3, 4), torch.inf)
    near(lambda: torch.addmm(i, inf, torch.ones(4, 5), alpha=0))
    near(lambda: torch.addmm(torch.full((3, 5), torch.nan), torch.ones(3, 4), torch.ones(4, 5), beta=0))


def test_cosine_and_sine_of_every_float16_value_are_rounded_once():
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    x = x[x.isfinite()]
    for function, wanted in ((torch.cos, np.cos), (torch.sin, np.sin)):
        y = wanted(x.double().numpy())
        once = y.astype(np.float16)
        assert np.array_equal(strict(function)(x).numpy().view(np.int16), once.view(np.int16))
        assert (y.astype(np.float32).astype(np.float16) != once).any()  # the control
        wide = once.astype(np.float64)
        for side in (np.inf, -np.inf):  # none is near the middle of two values, where float64 might not do
            middle = (wide + np.nextafter(once, np.float16(side)).astype(np.float64)) / 2
            assert (abs(y - middle) > 2.0**-29 * abs(y))[y != 0].all()
    assert strict(torch.cos)(torch.tensor([torch.inf, torch.nan]).half()).isnan().all()


@pytest.mark.parametrize("function", ["cos", "sin"])
def test_cosine_and_sine_of_every_bfloat16_value_are_the_nearest(function):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    x = x[x.isfinite() & (x.abs() < 2**24)]
    wanted = getattr(np, function)(x.double().numpy())
    y = strict(getattr(torch, function))(x)
    assert y.isfinite().all()
    away = abs(y.double().numpy() - wanted)
    for step in (1, -1):
        other = (y.view(torch.int16) + step).view(torch.bfloat16).double().numpy()
        assert not (abs(other - wanted) < away).any()


def test_cosine_and_sine_of_float32_values_near_zero_and_where_the_kernel_ends():
    edges = np.float32([2.0**-100, 2.0**-149, 2.0**-126, 2.0**-13, np.nextafter(np.float32(2**24), np.float32(0))])
    around = [np.nextafter(edges, np.float32(to)) for to in (0, 1)]
    x = np.concatenate([edges, *around, np.float32([0])])
    x = np.concatenate([x, -x])
    for function, wanted in ((torch.cos, np.cos), (torch.sin, np.sin)):
        assert_same_bits(strict(function)(torch.from_numpy(x)).numpy(), wanted(x.astype(np.float64)).astype(np.float32))


def test_what_consists_of_other_functions_is_taken_apart():
    p, q = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    cases = (
        (lambda: torch.einsum("bik,bjk->bij", p, q)),
        (lambda: torch.einsum("bi,bi->b", p[0], q[0, :3])),
        (lambda: F.cosine_similarity(p, q[:, :3], dim=-1)),
        (lambda: torch.mv(p[0], q[0, 0])),
    )
    for case in cases:
        near(case)
        with torch.no_grad():
            near(case)
    assert left(lambda: F.conv1d(p, torch.randn(1, 3, 2))) != []


def test_memory_with_the_other_sign():
    z = torch.randn(2, 6, dtype=torch.complex64).conj().imag
    assert z.is_neg()
    w = torch.randn(4, 6)
    assert same(strict(torch.exp)(z), strict(torch.exp)(z.resolve_neg()))
    assert same(strict(F.linear)(z, w), strict(F.linear)(z.resolve_neg(), w))
    with torch.inference_mode(False):
        weight = torch.nn.Parameter(torch.randn(3, 6, 2))
    whole = torch.view_as_complex(weight)
    for view in (whole.imag, whole.conj().imag):  # at one place of memory
        near(F.linear, torch.randn(2, 6), view)


def test_arguments_that_pytorch_refuses_too():
    x = torch.randn(3)
    with pytest.raises(RuntimeError, match="approximate must be none or tanh, got 'foo'"):
        strict(lambda t: F.gelu(t, approximate="foo"))(x)


def test_attention_of_heads_without_values_is_named():
    q, v = torch.ones(1, 2, 3, 0), torch.ones(1, 2, 3, 5)
    assert left(F.scaled_dot_product_attention, q, q, v) == ["scaled_dot_product_attention of heads without values"]
