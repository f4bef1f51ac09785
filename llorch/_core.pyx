# cython: language_level=3, binding=True, embedsignature=False, freethreading_compatible=True
"""The compiled core: checks, allocation and one call without the GIL. No float arithmetic happens here.

Arrays come in by the buffer protocol, raw (typed memoryviews cost three times as much), or by DLPack. One included
file a family (core/*.pxi), so that there is one module and no call between modules on the way to a kernel.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

import operator
import os

import numpy as np


cdef extern from "llorch.h" nogil:
    int LL_F32, LL_F16, LL_BF16, LL_MAX_THREADS
    size_t LL_MAX_ROW
    ctypedef struct ll_weight:
        const void *data
        int format, packed, compute
        Py_ssize_t k_stride, n_stride
        size_t K, N
    void ll_widen(const void *, int, float *, size_t)

cdef extern from "formats.h" nogil:
    int LL_DTYPES, LL_FORMATS, LL_MXFP4
    ctypedef struct ll_format:
        const char *name
        size_t values, bytes
    const ll_format *ll_formats
    void ll_dequantize(const void *blocks, int format, size_t values, float *y)
    ctypedef struct ll_quantize_args:
        const void *x
        void *y
        Py_ssize_t x_stride
        size_t rows, n
        int dtype, format
    size_t ll_quantize_rows(const ll_quantize_args *a)


include "core/operand.pxi"
include "core/norm.pxi"
include "core/linear.pxi"
include "core/softmax.pxi"
include "core/attention.pxi"
include "core/cache.pxi"
include "core/select.pxi"
include "core/pool.pxi"
include "core/unary.pxi"
include "core/gate.pxi"
include "core/rope.pxi"
include "core/formats.pxi"
include "core/plan.pxi"
include "core/control.pxi"
