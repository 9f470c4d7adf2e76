"""What `worker.py` loads to measure the limits of a GPU: reading, copying, multiplying, and copies from the host.

The host looks at the clock when the device is done, before and after several passes in a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from refimpl.backends import get_backend, to_dtype

# Every word once, added up: a sum of whole numbers may be computed in any order.  Four loads of 16 bytes are under
# way in each thread, which is what hides the latency of memory.
_READING = r"""
__device__ unsigned sum_of_four(uint4 word) { return word.x + word.y + word.z + word.w; }

__global__ void __launch_bounds__(256) sum_of(const uint4* words, long long count, unsigned* sums) {
    const long long step = (long long)gridDim.x * blockDim.x;
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned total = 0;
    long long at = thread;
    for (; at + 3 * step < count; at += 4 * step) {
        const uint4 a = words[at], b = words[at + step], c = words[at + 2 * step], d = words[at + 3 * step];
        total += sum_of_four(a) + sum_of_four(b) + sum_of_four(c) + sum_of_four(d);
    }
    for (; at < count; at += step) total += sum_of_four(words[at]);
    sums[thread] = total;
}
"""
_THREADS, _BLOCKS = 256, 8  # of a block, and of each multiprocessor: all the threads that it can hold

# Numbers of cuBLAS and of cudaDataType_t: the type of the factors, and of the sums.
_TRANSPOSED, _AS_IT_IS, _DEFAULT_ALGORITHM = 1, 0, -1
_DATA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_COMPUTE = {"float32": 68, "tf32": 77, "float16": 68, "bfloat16": 68, "float64": 70}

# A prime: no row of a matrix begins where another does.
_PERIOD = 1_048_573


def begin(options: dict[str, Any]) -> None:
    """Import what the backend needs, and find the device."""
    get_backend("cupy", device=options["device"])


def prepare(model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
    """Without a model. `options`: as `GPU_LIMITS_SCALE` of `model_limits.py`, `device` and `gemm_dtype`."""
    backend = get_backend("cupy", device=options["device"])
    cupy = import_module("cupy")
    index = int(backend.device.partition(":")[2])
    device = cupy.cuda.Device(index)
    device.use()
    limits = DeviceLimits(cupy, device, options)
    name = cupy.cuda.runtime.getDeviceProperties(index)["name"]
    return {
        "what": name.decode() if isinstance(name, bytes) else str(name),
        "versions": {"cupy": cupy.__version__, "numpy": np.__version__},
        "threads": threads,
        "facts": {"bytes": limits.bytes},
        "operations": {
            "read": lambda item: limits.read(),
            "copy": lambda item: limits.copy(),
            "gemm": lambda item: limits.gemm(options["gemm_dtype"]),
            "pinned": lambda item: limits.upload(True),
            "pageable": lambda item: limits.upload(False),
        },
    }


class DeviceLimits:
    """What one device can do; every method gives the rate of each of `repeat` passes."""

    def __init__(self, cupy: Any, device: Any, options: dict[str, Any]):
        self._cupy, self._device = cupy, device
        self._size, self._repeat, self._times = options["size"], options["repeat"], options["times"]
        free = int(device.mem_info[0])
        # Of whole words of 16 bytes; two such pieces of memory are needed, and a peer may want some.
        self.bytes = min(options["bytes"], free // 8) // 16 * 16

    def read(self) -> list[float]:
        """Bytes per second that a kernel reads which only adds them up. Raises: ArithmeticError: it did not."""
        cupy = self._cupy
        module = cupy.RawModule(
            code=_READING, backend="nvrtc", options=("-std=c++17",), name_expressions=("sum_of",)
        )
        kernel = module.get_function("sum_of")
        blocks = _BLOCKS * int(self._device.attributes["MultiProcessorCount"])
        words = cupy.ones(self.bytes // 4, np.uint32)
        sums = cupy.zeros(blocks * _THREADS, np.uint32)
        arguments = (words, np.int64(self.bytes // 16), sums)
        rates = self._rates(self.bytes, lambda: kernel((blocks,), (_THREADS,), arguments))
        total = int(cupy.asnumpy(sums).sum(dtype=np.int64))
        if total != words.size:
            raise ArithmeticError(f"the sum of {words.size} ones is {total}")
        return rates

    def copy(self) -> list[float]:
        """Bytes per second of a copy by the driver: those that are read and those that are written."""
        cupy = self._cupy
        source, target = (cupy.ones(self.bytes // 4, np.uint32) for _ in range(2))
        return self._rates(2 * self.bytes, lambda: cupy.copyto(target, source))

    def gemm(self, dtype: str) -> list[float]:
        """Operations per second of the product of two matrices [size, size] by cuBLAS.

        Factors of 16 bits are multiplied both with a result of float32, as our models have it, and with one of 16
        bits, as others do; sums are in float32.  float32 is not rounded (no TF32).
        """
        cupy, size = self._cupy, self._size
        kept = "float32" if dtype == "tf32" else dtype
        block = np.random.default_rng(0).standard_normal(min(_PERIOD, size * size), dtype=np.float32)
        host = np.resize(block, (size, size))  # real numbers: zeros would take less power, and so less time
        left = cupy.asarray(host).astype(to_dtype(kept))
        right = left.copy()
        one, zero = (np.full(1, value, np.float64 if kept == "float64" else np.float32) for value in (1, 0))
        rates = []
        for result in dict.fromkeys((kept if kept == "float64" else "float32", kept)):
            product = cupy.empty((size, size), to_dtype(result))

            def multiply(product: Any = product, result: str = result) -> None:
                cupy.cuda.cublas.gemmEx(
                    *(self._device.cublas_handle, _TRANSPOSED, _AS_IT_IS, size, size, size),
                    *(one.ctypes.data, left.data.ptr, _DATA_TYPES[kept], size),
                    *(right.data.ptr, _DATA_TYPES[kept], size),
                    *(zero.ctypes.data, product.data.ptr, _DATA_TYPES[result], size),
                    *(_COMPUTE[dtype], _DEFAULT_ALGORITHM),
                )

            rates += self._rates(2 * size**3, multiply)
        return rates

    def upload(self, pinned: bool) -> list[float]:
        """Bytes per second from the host: from memory that is pinned, or from any other."""
        cupy, count = self._cupy, max(1, self.bytes // 2)
        host = np.empty(count, np.uint8)
        if pinned:
            host = np.frombuffer(cupy.cuda.alloc_pinned_memory(count), np.uint8, count)
        host[...] = 1  # every page is there
        target = cupy.empty(count, np.uint8)
        stream = cupy.cuda.get_current_stream()
        return self._rates(count, lambda: target.set(host, stream=stream), times=1)

    def _rates(self, amount: int, call: Callable[[], Any], times: int | None = None) -> list[float]:
        times = times or self._times
        rates = []
        for _ in range(self._repeat + 1):
            self._device.synchronize()
            began = time.perf_counter()
            for _ in range(times):
                call()
            self._device.synchronize()
            rates.append(amount * times / (time.perf_counter() - began))
        return rates[1:]  # the first one warms up
