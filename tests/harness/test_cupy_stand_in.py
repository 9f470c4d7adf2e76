"""The stand-in for the module `cupy`: is it as strict as CuPy, and does it offer nothing that CuPy has not?"""

from __future__ import annotations

import importlib.util
import inspect
import sys

import ml_dtypes
import numpy as np
import pytest

from tests.cuda_on_cpu import functions
from tests.cuda_on_cpu.runner import KernelError, compiler
from tests.cuda_on_cpu.stand_in import cuda_on_cpu, make_modules

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++")

TEXT = r"""
template <class T> __global__ void scale(const T* x, T* y, T factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factor;
}
template <int BYTES> __global__ void much_shared(float* y) {
    extern __shared__ float4 shared[];
    float* own = (float*)shared;
    own[BYTES / 4 - 1] = 3;
    y[0] = own[BYTES / 4 - 1];
}
__global__ void writes_behind(float* y, int n) { y[n] = 1; }
"""


def scale(cp, kind="float"):
    names = (f"scale<{kind}>", "much_shared<65536>", "writes_behind")
    module = cp.RawModule(code=TEXT, backend="nvrtc", options=("-std=c++17",), name_expressions=names)
    return module.get_function(names[0])


# --- arrays ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mix",
    [
        lambda cp, x, host: np.asarray(x),
        lambda cp, x, host: np.array([x]),
        lambda cp, x, host: x + host,
        lambda cp, x, host: host + x,
        lambda cp, x, host: np.add(x, host),
        lambda cp, x, host: cp.maximum(x, host),
        lambda cp, x, host: cp.where(x > 1, host, x),
        lambda cp, x, host: cp.concatenate([x, host]),
        lambda cp, x, host: cp.exp([1.0]),
        lambda cp, x, host: x[np.array([0])],
        lambda cp, x, host: x.__setitem__(0, host),
        lambda cp, x, host: x.__iadd__(host),
        lambda cp, x, host: cp.sum(host),
        lambda cp, x, host: cp.concatenate([x, x], where=True),
        lambda cp, x, host: cp.max(x, initial=0),
    ],
)
def test_no_array_of_the_host_takes_part(cp, mix):
    x, host = cp.ones((2, 3), "float32"), np.ones((2, 3), np.float32)
    with pytest.raises(TypeError):
        mix(cp, x, host)


def test_scalars_take_part_and_have_numpys_types(cp):
    x = cp.ones(3, "float32")
    assert (x * 2.5).dtype == np.float32
    assert (np.float32(2) * x).dtype == np.float32
    assert (x + np.float64(1)).dtype == np.float64
    assert (x > 0).dtype == bool
    assert x.sum().shape == ()
    assert isinstance(x.sum(), cp.ndarray)
    assert isinstance(x[0], cp.ndarray)
    assert np.exp(x).dtype == np.float32
    assert isinstance(np.exp(x), cp.ndarray)
    assert cp.arange(3).dtype == np.int64
    narrow = x.astype(ml_dtypes.bfloat16)
    assert (narrow * 2.5).dtype == narrow.dtype == (narrow @ narrow).dtype
    assert (narrow * x).dtype == np.float32
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cp.asarray(np.array(["text"]))


def test_waiting_is_counted(gpu, cp):
    x = cp.asarray(np.arange(6.0, dtype=np.float32).reshape(2, 3))
    assert (gpu.uploads, gpu.synchronizations) == (1, 0)
    cp.matmul(x, x.T).sum(axis=0)[:1].astype("float16")
    x[x > 2] = 0
    assert gpu.synchronizations == 0
    answers = [x.get(), cp.asnumpy(x), bool(x[0, 0]), int(x[0, 1]), float(x[0, 2]), x[0, 0].item(), x[x > 0]]
    assert gpu.synchronizations == len(answers)
    np.testing.assert_array_equal(answers[0], [[0, 1, 2], [0, 0, 0]])


def test_views_share_memory_and_new_memory_is_poison(cp):
    x = cp.zeros((2, 3, 4), "float32")
    x.transpose(2, 0, 1)[1, 1][2] = 5
    x.reshape(6, 4)[:, 2:].swapaxes(0, 1)[1] += 7
    wanted = np.zeros((2, 3, 4), np.float32)
    wanted[1, 2, 1] = 5
    wanted[..., 3] = 7
    np.testing.assert_array_equal(x.get(), wanted)
    assert x[1].data.ptr == x.data.ptr + 48
    assert np.isnan(cp.empty(3, "float16").get()).all()
    assert x.astype("float32", copy=False) is x
    # Kernels of CuPy write contiguous arrays where NumPy keeps the order of what it reads.
    assert (x.T + 1).flags.c_contiguous
    assert not x.T.flags.c_contiguous


def test_memory_that_was_freed_is_given_again_with_other_contents(cp):
    x = cp.ones(1000, "float32")
    address = x.data.ptr
    pool = cp.get_default_memory_pool()
    assert pool.used_bytes() == 4096
    assert pool.free_bytes() == 0
    del x
    assert pool.used_bytes() == 0
    assert pool.free_bytes() == 4096
    again = cp.empty(1000, "float32")
    assert again.data.ptr == address
    assert np.isnan(again.get()).all()
    with cp.cuda.using_allocator(cp.cuda.MemoryPool().malloc):
        del again
        assert cp.empty(1000, "float32").data.ptr != address


def test_memory_can_run_out(gpu, cp):
    gpu.memory = 1 << 20
    x = cp.zeros(1 << 17, "float32")
    with pytest.raises(cp.cuda.memory.OutOfMemoryError):
        cp.zeros(1 << 18, "float32")
    assert cp.cuda.Device().mem_info == (1 << 19, 1 << 20)
    del x
    cp.zeros(1 << 18, "float32")  # what was free in the pool is given back for it


def test_devices(gpu, cp):
    gpu.devices = 2
    x = cp.ones(3)
    with cp.cuda.Device(1):
        y = cp.ones(3)
        with pytest.raises(ValueError, match="must be same as the current device"):
            x + y
    assert (x.device.id, y.device.id, cp.cuda.runtime.getDevice()) == (0, 1, 0)
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidDevice"):
        cp.cuda.Device(2).use()
    gpu.devices = 0
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorNoDevice"):
        cp.cuda.runtime.getDeviceCount()


# --- kernels -----------------------------------------------------------------------------------------


def test_kernels_run_on_arrays(gpu, cp):
    x = cp.arange(10, dtype="float32")
    y = cp.empty_like(x)
    scale(cp)((2,), (8,), (x, y, np.float32(3), np.int32(10)))
    np.testing.assert_array_equal(y.get(), np.arange(10) * 3)
    assert gpu.launches == ["scale<float>"]
    for arguments in [(x, y, 3.0, np.int32(10)), (x, y.astype("float64"), np.float32(3), np.int32(10))]:
        with pytest.raises(KernelError):
            scale(cp)((2,), (8,), arguments)
    with pytest.raises(TypeError):
        scale(cp)((2,), (8,), (np.ones(10, np.float32), y, np.float32(3), np.int32(10)))


def test_what_a_kernel_may_not_do(gpu, cp):
    names = ("much_shared<65536>", "writes_behind")
    module = cp.RawModule(code=TEXT, options=("--std=c++17",), name_expressions=names)
    much, behind = map(module.get_function, names)
    y = cp.empty(3, "float32")
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        much((1,), (1,), (y,), shared_mem=65536)
    much.max_dynamic_shared_size_bytes = 65536
    much((1,), (1,), (y,), shared_mem=65536)
    assert y[0].item() == 3
    gpu.compute_capability = "75"
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        much.max_dynamic_shared_size_bytes = 65537
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="outside of 12 bytes"):
        behind((1,), (1,), (y, np.int32(3)))
    with pytest.raises(ValueError, match="C\\+\\+ standard"):
        cp.RawModule(code=TEXT, name_expressions=names)
    with pytest.raises(cp.cuda.compiler.CompileException):
        cp.RawModule(code="nonsense", options=("-std=c++17",), name_expressions=names).compile()


# --- products ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "into", "exact"),
    [
        ("float32", "float32", 1e-6),
        ("float16", "float32", 1e-6),
        ("bfloat16", "float32", 1e-6),
        ("bfloat16", "bfloat16", 1e-2),
        ("float64", "float64", 1e-14),
    ],
)
@pytest.mark.parametrize("transposed", [False, True])
def test_products(gpu, cp, kind, into, exact, transposed):
    """y [rows, out] = x [rows, in] @ weight.T, by rows: for cuBLAS, columns [out, rows] = weight @ x."""
    from cupy_backends.cuda.libs import cublas

    dtypes = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(s).astype(dtypes.get(kind, kind)) for s in ((3, 8), (5, 8)))
    x, weight = cp.asarray(a), cp.asarray(b.T.copy() if transposed else b)
    y = cp.empty((3, 5), dtypes.get(into, into))
    runtime = cp.cuda.runtime
    types = {"float16": 2, "bfloat16": 14, "float32": 0, "float64": 1}
    assert types["bfloat16"] == runtime.CUDA_R_16BF
    assert types["float16"] == runtime.CUDA_R_16F
    sums = np.float64 if kind == "float64" else np.float32
    one, nothing = np.array(2, sums), np.array(0, sums)
    cublas.gemmEx(
        *(cp.cuda.Device().cublas_handle, cublas.CUBLAS_OP_N if transposed else cublas.CUBLAS_OP_T),
        *(cublas.CUBLAS_OP_N, 5, 3, 8, one.ctypes.data, weight.data.ptr, types[kind], 5 if transposed else 8),
        *(x.data.ptr, types[kind], 8, nothing.ctypes.data, y.data.ptr, types[into], 5),
        cublas.CUBLAS_COMPUTE_64F if kind == "float64" else cublas.CUBLAS_COMPUTE_32F,
        cublas.CUBLAS_GEMM_DEFAULT,
    )
    wanted = 2 * a.astype(np.float64) @ b.astype(np.float64).T
    assert np.abs(y.get().astype(np.float64) - wanted).max() < exact * np.abs(wanted).max()
    assert gpu.products[0]["k"] == 8


def product(cp, left, right, y, compute, kinds=(0, 0, 0), leading=4):
    from cupy_backends.cuda.libs import cublas

    one, nothing = np.float32(1), np.zeros(1, np.float32)
    scalar = np.array(one)
    cublas.gemmEx(
        *(
            cp.cuda.Device().cublas_handle,
            0,
            0,
            4,
            4,
            4,
            scalar.ctypes.data,
            left.data.ptr,
            kinds[0],
            leading,
        ),
        *(right.data.ptr, kinds[1], 4, nothing.ctypes.data, y.data.ptr, kinds[2], 4, compute, -1),
    )


def test_products_in_tf32_are_rounded(gpu, cp):
    from cupy_backends.cuda.libs import cublas

    x, y = cp.full((4, 4), 1 + 2**-12, "float32"), cp.empty((4, 4), "float32")
    product(cp, x, x, y, cublas.CUBLAS_COMPUTE_32F)
    assert y[0, 0].item() > 4
    product(cp, x, x, y, cublas.CUBLAS_COMPUTE_32F_FAST_TF32)
    assert y[0, 0].item() == 4
    cublas.setMathMode(cp.cuda.Device().cublas_handle, cublas.CUBLAS_TF32_TENSOR_OP_MATH)
    product(cp, x, x, y, cublas.CUBLAS_COMPUTE_32F)
    assert y[0, 0].item() == 4
    assert gpu.math_modes == [cublas.CUBLAS_TF32_TENSOR_OP_MATH]


def test_products_that_cublas_refuses(cp):
    from cupy_backends.cuda.libs import cublas

    x, y = cp.ones((4, 4), "float32"), cp.empty((4, 4), "float32")
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):  # both factors have one type
        product(cp, x.astype("float16"), x, y, cublas.CUBLAS_COMPUTE_32F, kinds=(2, 0, 0))
    with pytest.raises(RuntimeError, match="INVALID_VALUE"):
        product(cp, x, x, y, cublas.CUBLAS_COMPUTE_32F, leading=3)
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        product(cp, x[2:], x, y, cublas.CUBLAS_COMPUTE_32F)


# --- the module --------------------------------------------------------------------------------------


def test_every_trace_is_taken_away():
    before = dict(sys.modules)
    with cuda_on_cpu(version="13.0.0"):
        import cupy

        assert cupy.__version__ == "13.0.0"
        import refimpl.backends.cupy.modules
    roots = ("cupy", "cupy_backends", "refimpl.backends.cupy")
    left = {name for name in sys.modules if any(name == r or name.startswith(r + ".") for r in roots)}
    assert left == {name for name in before if name in left}
    assert all(sys.modules[name] is before[name] for name in left)
    import refimpl.backends

    assert "refimpl.backends.cupy" in sys.modules or not hasattr(refimpl.backends, "cupy")


def has(real, name):
    try:
        return hasattr(real, name)
    except ImportError:
        return True  # CuPy knows the name; the library of CUDA behind it is not installed


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy")
def test_cupy_has_every_name_and_every_parameter_of_the_stand_in():
    import cupy

    modules = make_modules()
    pairs = [
        *(
            (modules["cupy"], cupy),
            (modules["cupy.cuda"], cupy.cuda),
            (modules["cupy"].ndarray, cupy.ndarray),
        ),
        *((getattr(modules["cupy.cuda"], n), getattr(cupy.cuda, n)) for n in ("runtime", "memory", "Stream")),
        *(
            (getattr(modules["cupy.cuda"], n), getattr(cupy.cuda, n))
            for n in ("Device", "Graph", "MemoryPool")
        ),
    ]
    for ours, real in pairs:
        for name in [n for n in vars(ours) if not n.startswith("_") and n != "made"]:
            assert has(real, name) or (inspect.isclass(ours) and name in _OWN), f"{real} has no {name}"
    checked, untold = 0, {*functions.ELEMENTWISE, *functions.METHODS, "amax", "amin"}
    for name, function in vars(modules["cupy"]).items():
        try:
            real = inspect.signature(getattr(cupy, name)).parameters
        except (TypeError, ValueError):
            continue  # no Python function
        if inspect.isfunction(function) and name not in untold:
            ours = inspect.signature(function).parameters
            assert all(n in real or n in ("args", "kwargs") for n in ours), name
            checked += 1
    assert checked > 50


#: Attributes that tests look at and CuPy's objects have not.
_OWN = {"captured", "invalid", "is_null", "device_id", "free", "used"}
