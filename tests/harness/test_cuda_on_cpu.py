"""The emulator that runs the kernels of the cupy backend on the CPU: does it compute as a GPU does, and does it notice
what a GPU would not forgive?"""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.cuda_on_cpu import runner
from tests.cuda_on_cpu.runner import CompileError, KernelError, compile_kernels, compiler, run_kernel

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++")

REPOSITORY = Path(__file__).parents[2]
TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

TEXT = r"""
#include "device.cuh"

template <class T> __global__ void widen_all(const T* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = widen(x[i]);
}

template <class T> __global__ void narrow_all(const float* x, T* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = narrow<T>(x[i]);
}

__device__ float warp_sum(float x) {
    for (int lanes = 16; lanes; lanes /= 2) x += shuffle_xor(x, lanes);
    return x;
}

__global__ void __launch_bounds__(256) total(const float* x, float* y, int n) {
    __shared__ float part[8];
    float sum = 0;
    for (int i = threadIdx.x + blockIdx.x * blockDim.x; i < n; i += blockDim.x * gridDim.x) sum += x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = warp_sum(threadIdx.x < 8 ? part[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0) y[blockIdx.x] = sum;
    }
}

// Reverses every block's numbers by dynamic shared memory; what it found there before goes to `old`.
__global__ void reverse(const int* x, int* y, int* old) {
    extern __shared__ float4 shared[];
    __shared__ int other[4];
    int* own = (int*)shared;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    old[i] = own[threadIdx.x] & other[threadIdx.x % 4];
    __syncthreads();
    own[threadIdx.x] = x[i];
    other[threadIdx.x % 4] = 0;
    __syncthreads();
    y[i] = own[blockDim.x - 1 - threadIdx.x];
}

template <class T> __global__ void multiply(const T* a, const T* b, float* d) {
    unsigned left[4], right[2];
    float sum[4];
    int group = threadIdx.x / 4, place = threadIdx.x % 4 * 2;
    for (int i = 0; i < 4; i++) {
        left[i] = *(const unsigned*)(a + (group + i % 2 * 8) * 16 + place + i / 2 * 8);
        sum[i] = d[(group + i / 2 * 8) * 8 + place + i % 2];
    }
    for (int i = 0; i < 2; i++) right[i] = *(const unsigned*)(b + group * 16 + place + i * 8);
    mma_16x8x16(sum, left, right, T());
    for (int i = 0; i < 4; i++) d[(group + i / 2 * 8) * 8 + place + i % 2] = sum[i];
}

// [32, 8] numbers of 16 bits: what every lane gets of the four matrices, straight and transposed.
__global__ void load(const uint4* x, unsigned* straight, unsigned* transposed) {
    __shared__ uint4 rows[32];
    rows[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    unsigned to[4];
    load_matrix_x4(to, &rows[threadIdx.x]);
    for (int i = 0; i < 4; i++) straight[threadIdx.x * 4 + i] = to[i];
    load_matrix_x4_transposed(to, &rows[threadIdx.x]);
    for (int i = 0; i < 4; i++) transposed[threadIdx.x * 4 + i] = to[i];
}

// early[0]: what lies in shared memory before the copy was waited for; late: after.
__global__ void copies(const uint4* x, unsigned* early, unsigned* late) {
    __shared__ uint4 own[3];
    if (threadIdx.x == 0) {
        for (int i = 0; i < 3; i++) {
            copy_async16(&own[i], x + i, i != 1);
            copy_async_commit();
        }
        early[0] = own[0].x;
        copy_async_wait<1>();
        early[1] = own[2].x;
        for (int i = 0; i < 2; i++) late[i] = own[i].x;
        copy_async_wait<0>();
        late[2] = own[2].x;
    }
}

__global__ void exchanges(int* y) {
    int lane = threadIdx.x;
    y[lane] = shuffle(lane * 10, lane ^ 5);
    y[32 + lane] = shuffle_down(lane, 4);
    y[64 + lane] = vote_any(lane == 7) * 4 + vote_all(lane < 32) * 2 + vote_all(lane < 31);
}

__global__ void last_block(int* y) { *y = blockIdx.x; }
__global__ void last_thread(int* y) { *y = threadIdx.x; }

__global__ void some_leave(int* y, int leave) {
    if ((int)threadIdx.x < leave) return;
    __syncthreads();
    y[threadIdx.x] = 1;
}
__global__ void two_barriers(int* y) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        y[threadIdx.x] = 0;
        __syncthreads();
    }
}
__global__ void half_a_warp(int* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = shuffle_xor(1, 1);
}
__global__ void not_waited_for(const uint4* x) {
    __shared__ uint4 own[1];
    copy_async16(own, x);
    copy_async_commit();
}
__global__ void misaligned(float* y) { *(float4*)y = *(float4*)(y + 1); }
__global__ void beyond_array(float* y, int i) {
    __shared__ float own[8];
    own[i] = 1;
    y[0] = own[i];
}
__global__ void beyond_shared(float* y) {
    extern __shared__ float4 shared[];
    ((float*)shared)[threadIdx.x] = y[0];
}
__global__ void gives_up() { __trap(); }
"""

ALL = [
    *(f"{name}<{t}>" for name in ("widen_all", "narrow_all", "multiply") for t in TYPES),
    *("total", "reverse", "load", "copies", "exchanges", "last_block", "last_thread", "some_leave"),
    *(
        "two_barriers",
        "half_a_warp",
        "not_waited_for",
        "misaligned",
        "beyond_array",
        "beyond_shared",
        "gives_up",
    ),
]


@pytest.fixture(scope="module")
def kernels():
    return compile_kernels(TEXT, ALL)


@pytest.mark.parametrize("name", TYPES)
def test_every_number_of_16_bits_is_widened_exactly(kernels, name):
    x = np.arange(1 << 16, dtype=np.uint16).view(TYPES[name])
    y = np.empty(x.size, np.float32)
    kernels[f"widen_all<{name}>"].launch((256,), (256,), (x, y, np.int32(x.size)))
    wanted = x.astype(np.float32)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(wanted))


@pytest.mark.parametrize("name", TYPES)
def test_numbers_are_rounded_to_the_nearest_even(kernels, name):
    random = np.random.default_rng(0)
    exact = np.arange(1 << 16, dtype=np.uint16).view(TYPES[name]).astype(np.float32)
    with np.errstate(all="ignore"):
        between = (exact[:-1] + exact[1:]) / 2  # ties
    x = np.concatenate([
        random.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32),
        (random.standard_normal(200_000) * 10.0 ** random.uniform(-9, 6, 200_000)).astype(np.float32),
        between,
        np.array([65504, 65519.996, 65520, -65520, 2**-24, 2**-25, 2**-149, 3.4e38, np.inf, -0.0], np.float32),
    ])  # fmt: skip
    y = np.empty(x.size, TYPES[name])
    kernels[f"narrow_all<{name}>"].launch((-(-x.size // 256),), (256,), (x, y, np.int32(x.size)))
    with np.errstate(all="ignore"):
        wanted = x.astype(TYPES[name])
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(y.view(np.uint16)[numbers], wanted.view(np.uint16)[numbers])
    assert np.isnan(y.astype(np.float32)[~numbers]).all()


@pytest.mark.parametrize("order", [None, 0, 1, 2])
def test_a_sum_over_warps_and_blocks(kernels, order):
    x = np.arange(10_000, dtype=np.float32) % 7
    y = np.empty(12, np.float32)
    kernels["total"].launch((12,), (256,), (x, y, np.int32(x.size)), order=order)
    assert y.sum() == x.sum()


def test_shared_memory_is_each_blocks_own_and_poisoned(kernels):
    x = np.arange(96, dtype=np.int32)
    y, old = np.empty(96, np.int32), np.zeros(96, np.int32)
    kernels["reverse"].launch((3,), (32,), (x, y, old), shared_mem=128)
    np.testing.assert_array_equal(y, x.reshape(3, 32)[:, ::-1].ravel())
    np.testing.assert_array_equal(old, -1)


@pytest.mark.parametrize("name", TYPES)
def test_tensor_cores(kernels, name):
    random = np.random.default_rng(1)
    a, b = (random.standard_normal(shape).astype(TYPES[name]) for shape in ((16, 16), (8, 16)))
    before = random.standard_normal((16, 8)).astype(np.float32)
    d = before.copy()
    kernels[f"multiply<{name}>"].launch((1,), (32,), (a, b, d))
    np.testing.assert_allclose(
        d, before + a.astype(np.float64) @ b.astype(np.float64).T, rtol=1e-5, atol=1e-5
    )


def test_matrices_are_loaded_as_the_tensor_cores_want_them(kernels):
    x = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)  # [matrix, row, column]
    straight, transposed = np.empty((2, 32, 4), np.uint32)
    kernels["load"].launch((1,), (32,), (x, straight, transposed))
    lane = np.arange(32)
    for given, matrices in ((straight, x), (transposed, x.transpose(0, 2, 1))):
        pairs = np.ascontiguousarray(given).view(np.uint16).reshape(32, 4, 2)
        for i in range(2):
            np.testing.assert_array_equal(pairs[:, :, i], matrices[:, lane // 4, lane % 4 * 2 + i].T)


def test_asynchronous_copies_arrive_when_they_are_waited_for(kernels):
    x = np.arange(1, 13, dtype=np.uint32)
    early, late = np.zeros(2, np.uint32), np.zeros(3, np.uint32)
    kernels["copies"].launch((1,), (32,), (x, early, late))
    assert early.tolist() == [0xFFFFFFFF] * 2
    assert late.tolist() == [1, 0, 9]


def test_exchanges_within_a_warp(kernels):
    y = np.empty((3, 32), np.int32)
    kernels["exchanges"].launch((1,), (32,), (y,), order=3)
    lane = np.arange(32)
    np.testing.assert_array_equal(y[0], (lane ^ 5) * 10)
    np.testing.assert_array_equal(y[1], np.where(lane < 28, lane + 4, lane))
    np.testing.assert_array_equal(y[2], 6)


@pytest.mark.parametrize(("name", "grid", "block"), [("last_block", 8, 1), ("last_thread", 1, 128)])
def test_a_kernel_that_relies_on_an_order_shows_it(kernels, name, grid, block):
    def last(order):
        y = np.zeros(1, np.int32)
        kernels[name].launch((grid,), (block,), (y,), order=order)
        return int(y[0])

    assert last(None) == max(grid, block) - 1
    assert len({last(seed) for seed in range(8)}) > 1
    assert last(5) == last(5)


@pytest.mark.parametrize(
    ("name", "block", "arguments", "error"),
    [
        (
            "some_leave",
            64,
            [np.int32(7)],
            "7 of 64 threads of the block ended while others wait at __syncthreads",
        ),
        ("two_barriers", 64, [], "divergence: some threads of the block wait at __syncthreads of line"),
        ("half_a_warp", 32, [], "ended while others wait at shuffle_xor"),
        ("half_a_warp", 16, [], "in a warp of 16 threads: it needs all 32"),
        ("not_waited_for", 1, [], "asynchronous copies that nobody waited for"),
        ("misaligned", 1, [], "misaligned address .* multiple of 16"),
        ("beyond_array", 1, [np.int32(8)], "index 8 outside of the array"),
        ("beyond_shared", 8, [], "wrote beyond its 16 bytes of dynamic shared memory"),
        ("beyond_shared", 1025, [], "no block has this size"),
    ],
)
def test_what_a_gpu_would_not_forgive(kernels, name, block, arguments, error):
    y = np.zeros(64, np.float32 if name in ("misaligned", "beyond_array", "beyond_shared") else np.int32)
    with pytest.raises(KernelError, match=error):
        kernels[name].launch((2,), (block,), (y, *arguments), shared_mem=16)
    kernels["some_leave"].launch(
        (1,), (64,), (np.zeros(64, np.int32), np.int32(0))
    )  # the next launch is well


def test_a_kernel_that_gives_up(kernels):
    with pytest.raises(KernelError, match="__trap"):
        kernels["gives_up"].launch((1,), (1,), ())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([np.zeros(4, np.float32), np.zeros(4, np.float32)], "2 arguments for 3 parameters"),
        ([np.zeros(4, np.float32), np.zeros(4, np.float32), 4], "neither an array nor a NumPy scalar"),
        ([np.zeros(4, np.float32), np.zeros(4, np.float32), np.int64(4)], "has 4 bytes of kind 'i'"),
        ([np.zeros(4, np.float32), np.zeros(4, np.float32), np.float32(4)], "has 4 bytes of kind 'i'"),
        ([np.zeros(4, np.float64), np.zeros(4, np.float32), np.int32(4)], "points to 4 bytes of kind 'f'"),
    ],
)
def test_arguments_have_to_fit(kernels, arguments, error):
    with pytest.raises(KernelError, match=error):
        kernels["total"].launch((1,), (256,), arguments)


def test_a_text_that_is_no_program_is_an_error_that_names_the_line():
    with pytest.raises(CompileError, match="kernels:2:"):
        run_kernel("// a comment\n__global__ void f() { nothing(); }", "f", (1,), (1,))


def test_the_real_header_is_replaced_by_the_twin():
    header = "// device.cuh begin\nasm();\n// x\n// device.cuh end\n"
    text = header + "__global__ void f(float* y) { *y = widen(bfloat16{0x4000}); }"
    y = np.zeros(1, np.float32)
    run_kernel(text, "f", (1,), (1,), y)
    assert y[0] == 2
    assert runner.with_twin(text).count("\n") == text.count("\n")


def declared(path: Path) -> set[tuple[str, str, str, str]]:
    """(template, type, name, parameters) of every function of a header, without the specialisations."""
    text = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
    found = set()
    head = r"(?:template <([^>]*)>\s*)?__device__ (?:__forceinline__|inline) ([\w ]+?) (\w+)"
    pattern = head + r"\(((?:[^()]|\([^()]*\))*)\)"
    for template, kind, name, parameters in re.findall(pattern, text):
        parameters = re.sub(r",\s*int line = __builtin_LINE\(\)", "", parameters)
        found.add((template, kind, name, re.sub(r"\s+", " ", parameters)))
    return found | {("", "struct", name, "") for name in re.findall(r"struct (\w*float16) \{", text)}


def test_both_headers_declare_the_same_names():
    real = declared(REPOSITORY / "backends/cupy/kernels/device.cuh")
    twin = declared(REPOSITORY / "tests/cuda_on_cpu/device.cuh")
    assert {"mma_16x8x16", "widen", "narrow", "shuffle_xor", "copy_async16"} <= {
        name for _, _, name, _ in real
    }
    assert {d for d in twin if "twin::" not in d[2]} == real
