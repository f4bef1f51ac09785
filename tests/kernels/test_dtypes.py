"""float16 and bfloat16: widened exactly, rounded once; other producers of arrays; types that are refused."""

import array
import ctypes

import ml_dtypes
import numpy as np
import pytest
from helpers import SEAMS, assert_same_bits, normal

import llorch
from llorch import reference

BF16 = np.dtype(ml_dtypes.bfloat16)
HALVES = (np.dtype(np.float16), BF16)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_oracle(isa, dtype):
    for n in SEAMS:
        x, r = normal(4, n, seed=n).astype(dtype), normal(4, n, seed=2).astype(dtype)
        for w, b in ((normal(n, seed=3), normal(n, seed=4)), (normal(n, seed=3).astype(dtype), None),
                     (None, normal(n, seed=4).astype(HALVES[0])), (None, None)):  # fmt: skip
            got = llorch.layer_norm(x, w, b)
            assert_same_bits(got, reference.layer_norm(x, w, b), f"n={n}")
            assert_same_bits(llorch.rms_norm(x, w), reference.rms_norm(x, w), f"n={n}")
            for g, v in zip(llorch.add_layer_norm(x, r, w, b), reference.add_layer_norm(x, r, w, b), strict=True):
                assert_same_bits(g, v, f"n={n}")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_value_in_and_out(isa, dtype):
    """All 65,536 encodings, as rows that hold just that value, so that its widening and rounding shows."""
    every = np.arange(65536, dtype=np.uint16).view(dtype)
    zeros = np.zeros(65536, dtype)
    total = llorch.add_layer_norm(every[:, None], zeros[:, None])[1][:, 0]
    with np.errstate(invalid="ignore"):  # some of them are signalling NaNs
        wanted = reference.narrow(reference.widen(every) + np.float32(0), dtype)
    assert_same_bits(total, wanted)
    # as weights they scale a row of ones: x = +-1 gives t = +-1/sqrt(1 + eps) = +-1 for eps 0
    x = np.resize(np.float32([1, -1]), 65536)
    assert_same_bits(llorch.layer_norm(x, every, eps=0.0), reference.layer_norm(x, every, eps=0.0))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rounding_ties(isa, dtype):
    """Outputs near ties of the 16-bit type: weight steers float32 results through all their low bits."""
    n = 65536
    x = np.resize(np.float32([1, -1]), n)
    fine = (np.float32(1) + np.arange(n, dtype=np.float32) * np.float32(2**-17)) * np.resize(
        np.float32([1, 2.0**-14, 2.0**-20, 2.0**-24, 65504 / 2, 2.0**-25]), n
    )
    x16 = x.astype(dtype)
    assert_same_bits(llorch.layer_norm(x16, fine, eps=0.0), reference.layer_norm(x16, fine, eps=0.0))


def test_narrow_is_numpy_and_ml_dtypes():
    """The oracle's own rounding against two other implementations."""
    bits = np.concatenate(
        [np.arange(0, 2**32, 65521, dtype=np.uint32), np.arange(0x33000000, 0x33900000, 97, np.uint32)]
    )
    v = bits.view(np.float32)
    with np.errstate(all="ignore"):
        assert_same_bits(reference.narrow(v, BF16), v.astype(BF16))


def test_bfloat16_layouts(isa):
    x = normal(5, 6, 130).astype(BF16)
    for view in (x[:, ::2, :65], x[:, :, ::2], x.transpose(1, 0, 2)[..., :65]):
        assert_same_bits(llorch.layer_norm(view), reference.layer_norm(view.copy()))
    out = np.zeros((5, 6, 140), BF16)[:, :, :130]
    assert llorch.layer_norm(x, out=out) is out
    assert_same_bits(out.copy(), reference.layer_norm(x))


def test_other_buffers():
    x = normal(6)
    wanted = reference.layer_norm(x)
    for other in (memoryview(x), array.array("f", x), memoryview(x.tobytes()).cast("f")):
        assert_same_bits(llorch.layer_norm(other), wanted)
    out = array.array("f", bytes(24))
    assert llorch.layer_norm(x, out=out) is out
    assert_same_bits(np.array(out, np.float32), wanted)


class OnlyDLPack:
    """An array that speaks DLPack alone."""

    def __init__(self, a, versioned=True):
        self.a, self.versioned = a, versioned

    def __dlpack__(self, **keywords):
        if keywords and not self.versioned:
            raise TypeError("unexpected keyword")
        return self.a.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.a.__dlpack_device__()


@pytest.mark.parametrize("versioned", (True, False))
def test_dlpack(versioned):
    x = normal(4, 6, 100)
    for view in (x, x[:, ::2], x[:, :, ::3], x.transpose(1, 0, 2), x.astype(np.float16)):
        assert_same_bits(llorch.layer_norm(OnlyDLPack(view, versioned)), reference.layer_norm(view.copy()))
    out = np.zeros_like(x)
    llorch.layer_norm(OnlyDLPack(x, versioned), out=OnlyDLPack(out, versioned))
    assert_same_bits(out, reference.layer_norm(x))
    with pytest.raises(TypeError, match="x is float64"):
        llorch.layer_norm(OnlyDLPack(x.astype(np.float64)))
    with pytest.raises(TypeError, match="x has elements of type int32"):
        llorch.layer_norm(OnlyDLPack(np.zeros(4, np.int32)))


def test_what_dlpack_cannot_give_is_named():
    class Refuses(OnlyDLPack):
        def __dlpack__(self, **keywords):
            raise self.a

    for error in (BufferError("on meta"), RuntimeError("in CSR")):
        with pytest.raises(ValueError, match=f"residual is a Refuses that can't be shared by DLPack: {error}"):
            llorch.add_layer_norm(normal(2, 3), Refuses(error))


def test_torch_tensors_without_plain_memory():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    for tensor in (
        torch.empty(2, 3, device="meta"),
        torch.eye(3).to_sparse(),
        torch.zeros(2, 3, dtype=torch.complex64).conj(),
        torch.zeros(2, 3, requires_grad=True),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^x is a Tensor that can't be shared by DLPack: "):
            llorch.layer_norm(tensor)


def test_ctypes_arrays():
    """Their buffers come without strides."""
    x = normal(2, 3)
    c = (ctypes.c_float * 3 * 2).from_buffer(x.copy())
    assert_same_bits(llorch.exp(c), reference.exp(x))
    assert_same_bits(
        llorch.layer_norm(c, (ctypes.c_float * 3)(1, 2, 3)), reference.layer_norm(x, np.float32([1, 2, 3]))
    )
    out = (ctypes.c_float * 3 * 2)()
    assert llorch.softmax(x, out=out) is out
    assert_same_bits(np.ctypeslib.as_array(out), reference.softmax(x))
    assert llorch.exp((ctypes.c_float * 0)()).shape == (0,)
    assert llorch.exp(ctypes.c_float(0)) == 1


def test_dlpack_read_only_out():
    frozen = np.zeros((2, 3), np.float32)
    frozen.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match=r"read-?only"):
        llorch.layer_norm(np.ones((2, 3), np.float32), out=OnlyDLPack(frozen))


def test_torch_tensors():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    x = normal(4, 64)
    t = torch.from_numpy(x)
    assert_same_bits(llorch.layer_norm(t), reference.layer_norm(x))
    negative = torch.complex(t, t).conj().imag  # a view of the memory of t, and the bit that says minus
    with pytest.raises(ValueError, match=r"x has its negative bit set.*x\.resolve_neg\(\)"):
        llorch.layer_norm(negative)
    assert_same_bits(llorch.tanh(negative.resolve_neg()), reference.tanh(-x))
    for dtype, numpy_dtype in ((torch.bfloat16, BF16), (torch.float16, np.dtype(np.float16))):
        h = x.astype(numpy_dtype)
        assert_same_bits(llorch.layer_norm(t.to(dtype)), reference.layer_norm(h))
        out = torch.empty(4, 64, dtype=dtype)
        assert llorch.layer_norm(t.to(dtype), out=out) is out
        assert_same_bits(out.view(torch.int16).numpy().view(numpy_dtype), reference.layer_norm(h))
