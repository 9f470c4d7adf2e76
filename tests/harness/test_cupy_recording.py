"""The stand-in for the module `cupy` while a stream captures: does a recorded graph do what CUDA's would?"""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_cpu.runner import compiler

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs g++")

TEXT = r"""
template <class T> __global__ void scale(const T* x, T* y, T factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factor;
}
"""


def scale(cp):
    name = "scale<float>"
    return cp.RawModule(code=TEXT, options=("-std=c++17",), name_expressions=(name,)).get_function(name)


def test_a_graph_computes_again_in_the_same_memory(gpu, cp):
    kernel, stream, pool = scale(cp), cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    x, kept = cp.arange(4, dtype="float32"), cp.zeros(4, "float32")
    with stream, cp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        doubled = cp.empty_like(x)
        kernel((1,), (32,), (x, doubled, np.float32(2), np.int32(4)))
        answer = (doubled + 1).reshape(2, 2).sum(axis=1)
        kept += doubled
        graph = stream.end_capture()
    assert np.isnan(answer.get()).all()  # nothing has run yet
    assert kept.get().sum() == 0
    address = answer.data.ptr
    for shift in (0, 10):
        x[...] = cp.arange(4, dtype="float32") + shift
        graph.launch(stream)
        np.testing.assert_array_equal(answer.get(), [4 + 4 * shift, 12 + 4 * shift])
    assert answer.data.ptr == address
    np.testing.assert_array_equal(kept.get(), [20, 24, 28, 32])
    assert (gpu.replays, len(gpu.launches)) == (2, 1)


@pytest.mark.parametrize("own_pool", [True, False])
def test_a_graph_goes_wrong_whose_memory_was_given_to_others(cp, own_pool):
    stream, pool = cp.cuda.Stream(non_blocking=True), cp.cuda.MemoryPool()
    x = cp.ones(4, "float32")
    with stream, cp.cuda.using_allocator(pool.malloc if own_pool else cp.get_default_memory_pool().malloc):
        stream.begin_capture()
        answer = x + 1
        graph = stream.end_capture()
    address = answer.data.ptr
    del answer
    other = cp.zeros(4, "float32")
    graph.launch()
    assert (other.data.ptr == address) is not own_pool
    assert other.get().any() != own_pool


def test_a_graph_goes_wrong_that_reads_what_was_freed(cp):
    stream, x = cp.cuda.Stream(non_blocking=True), cp.ones(4, "float32")
    with stream:
        stream.begin_capture()
        answer = x + 1
        graph = stream.end_capture()
    graph.launch()
    assert (answer.get() == 2).all()
    del x
    graph.launch()
    assert np.isnan(answer.get()).all()


@pytest.mark.parametrize(
    "wait",
    [
        lambda cp, x: x.get(),
        lambda cp, x: bool(x[0]),
        lambda cp, x: x[x > 0],
        lambda cp, x: cp.asarray(np.ones(3)),
        lambda cp, x: cp.asnumpy(x),
        lambda cp, x: cp.cuda.get_current_stream().synchronize(),
        lambda cp, x: cp.cuda.Device().synchronize(),
        lambda cp, x: scale(cp),
    ],
)
def test_nothing_may_wait_while_a_stream_captures(cp, wait):
    x, stream = cp.ones(3), cp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="not permitted when stream is capturing"):
            wait(cp, x)
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureInvalidated"):
            stream.end_capture()
    x.get()


def test_streams_that_cannot_capture(cp):
    with pytest.raises(RuntimeError, match="default"):
        cp.cuda.get_current_stream().begin_capture()
    blocking = cp.cuda.Stream()
    blocking.begin_capture()
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureImplicit"):
        cp.ones(3)  # on the default stream, which waits for the other
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError):
        blocking.end_capture()
