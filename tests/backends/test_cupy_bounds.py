"""That kernels read nothing outside of their arrays: each array ends where memory that may not be touched begins.

It runs in a process of its own, which a wrong read would end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_on_cpu.runner import compiler

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="needs g++, which compiles the kernels for the CPU"
)

HEAD = """
import ctypes, mmap
import numpy as np
from refimpl.backends.cupy.modules import source
from tests.cuda_on_cpu.runner import run_kernel

rng, i32, kept = np.random.default_rng(0), np.int32, []
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

def at_the_end(array):
    pages = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    area = mmap.mmap(-1, pages + mmap.PAGESIZE)
    kept.append(area)
    whole = np.frombuffer(area, np.uint8)
    assert protect(whole.ctypes.data + pages, mmap.PAGESIZE, 0) == 0
    place = whole[pages - array.nbytes : pages].view(array.dtype).reshape(array.shape)
    place[...] = array
    return place

def weights(form, out, length):
    if form == "signed char":
        codes = rng.integers(-127, 128, (out, length)).astype(np.int8)
        return at_the_end(codes), at_the_end(np.ones(out, np.float32)), None, i32(0), i32(out), i32(length)
    if form == "nf4":
        packed = rng.integers(0, 256, -(-out * length // 2)).astype(np.uint8)
        units = np.ones(-(-out * length // 64), np.float32)
        table = np.arange(16, dtype=np.float32)
        return (*map(at_the_end, (packed, units, table)), i32(6), i32(out), i32(length))
    kind = np.float32 if form == "float" else np.uint16
    return at_the_end(np.ones((out, length), kind)), None, None, i32(0), i32(out), i32(length)

def unknown(rows, *shape):
    return at_the_end(np.full((rows, *shape), np.nan, np.float32))
"""

PRODUCTS = """
for form in ("float", "float16", "signed char", "nf4"):
    for name, stages, length in (("matvec", ", 4", 2080), ("matvec", ", 4", 32), ("matvec_unaligned", "", 333)):
        for rows, splits in ((3, 1), (4, 4)):
            x, y = at_the_end(np.ones((rows, length), np.float32)), unknown(rows, 5)
            bias = at_the_end(np.ones(5, np.float32))
            run_kernel(
                source("products"), f"{name}<{form}, 4, 4{stages}>", (-(-2 * splits // 8),), (256,),
                *weights(form, 5, length), x, bias, y, i32(rows), i32(splits), shared_mem=8 * 4 * 4 * 640,
            )
            assert np.isfinite(y).all()
    for quads, length in (("true", 36), ("false", 35)):
        y = unknown(2, length)
        run_kernel(
            source("products"), f"widen_rows<{form}, float, {quads}>", (1,), (256,),
            *weights(form, 7, length), i32(5), i32(2), y,
        )
        assert np.isfinite(y).all()
"""

ELEMENTWISE = """
text = source("elementwise")
for form in ("float", "nf4"):
    for quads, length in (("true", 36), ("false", 35)):
        ids, y = at_the_end(np.array([6, 7, -1, 1 << 40, 0])), unknown(5, length)
        run_kernel(text, f"embedding<{form}, {quads}>", (5,), (256,), *weights(form, 7, length), ids, y)
        np.testing.assert_array_equal(np.isnan(y).all(axis=1), [False, True, True, True, False])
        assert np.isfinite(y[[0, 4]]).all()
for name, threads, hidden in (("layer_norm<float, 1>", 32, 36), ("layer_norm_unaligned<float>", 256, 35)):
    given = [at_the_end(np.ones(shape, np.float32)) for shape in ((2, hidden), hidden, hidden)]
    y = unknown(2, hidden)
    run_kernel(text, name, (2,), (threads,), *given, np.float32(1e-5), i32(hidden), y)
    assert np.isfinite(y).all()
for quads in ("true", "false"):
    y = unknown(1, 36 if quads == "true" else 35)
    x = at_the_end(np.ones(y.size, np.float32))
    run_kernel(text, f"activate<gelu, float, {quads}>", (1,), (256,), x, np.int64(y.size), y)
    assert np.isfinite(y).all()
x, y = at_the_end(np.ones((2, 77), np.float32)), at_the_end(np.full(2, -1))
run_kernel(text, "likeliest<float>", (2,), (96,), x, np.int64(77), i32(77), y)
assert (y == 0).all()
x, angles = (at_the_end(np.ones(shape, np.float32)) for shape in ((1, 2, 3, 10), (1, 3, 3)))
y = unknown(1, 2, 3, 10)
sizes = [np.int64(n) for n in (60, 30, 10)]
run_kernel(text, "rotary<float, float>", (1,), (256,), x, *sizes, angles, angles, np.int64(0),
           *map(i32, (3, 2, 3, 10)), np.int64(6), y)
assert np.isfinite(y).all()
"""  # fmt: skip


@pytest.mark.parametrize("script", [PRODUCTS, ELEMENTWISE], ids=["products", "elementwise"])
def test_nothing_outside_is_read(script):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", HEAD + script], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:] or f"ended by signal {-result.returncode}"
