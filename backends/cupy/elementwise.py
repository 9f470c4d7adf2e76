"""Layer norm, activations, rotary embedding, embedding, the cache, the greedy choice: what happens between the matrix
products.

All arithmetic is float32. Where a function takes `dtype`, it is that of the result: float32, float16 or bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.backends.cupy.modules import cupy, kernel, multiprocessors, type_name
from refimpl.backends.cupy.products import arguments_of, rows_begin_at_multiples

Array = Any

#: Activations that have a kernel: name in a config -> name there. "prelu" and "xielu", which learn, have none.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_10": "gelu_10",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_fast",
    "gelu_new": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "hardswish": "hardswish",
    "laplace": "laplace",
    "leaky_relu": "leaky_relu",
    "linear": "identity",
    "mish": "mish",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "sqrtsoftplus": "sqrtsoftplus",
    "swish": "silu",
    "tanh": "hyperbolic_tangent",
}

_NARROW = ("float32", "float16", "bfloat16")

#: Up to so many rows of `layer_norm` a block has as many threads as can work; beyond, several blocks share a
#: multiprocessor.
_FEW_ROWS = 64


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, dtype: Any = np.float32) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias of each row.  float32 [..., hidden] -> dtype [..., hidden]

    weight, bias: float32 [hidden]. The variance is that of the centred row, in a second pass.
    """
    cp = cupy()
    x, weight, bias = (cp.ascontiguousarray(array, dtype=np.float32) for array in (x, weight, bias))
    y = cp.empty(x.shape, dtype)
    hidden = x.shape[-1]
    rows = x.size // hidden if hidden else 0
    if rows == 0:
        return y
    name = type_name(y.dtype)
    if hidden % 4 or hidden > 32 * 1024 or _address(x, weight, bias, y) % 16:
        threads, instance = 256, f"layer_norm_unaligned<{name}>"
    else:
        most = 1024 if rows <= _FEW_ROWS else 256
        threads = min(most, -(-hidden // 128) * 32)
        quads = 1 << (-(-hidden // (4 * threads)) - 1).bit_length()
        while quads > 8:
            threads, quads = 2 * threads, quads // 2
        instance = f"layer_norm<{name}, {quads}>"
    kernel("elementwise", instance).launch(
        (rows,), (threads,), x, weight, bias, np.float32(eps), np.int32(hidden), y
    )
    return y


def activation(x: Array, name: str, dtype: Any = np.float32) -> Array:
    """One of `ACTIVATIONS`, number by number.  float32 [...] -> dtype [...]"""
    cp = cupy()
    x = cp.ascontiguousarray(x, dtype=np.float32)
    y = cp.empty(x.shape, dtype)
    if x.size:
        quads = _address(x, y) % 16 == 0
        kernel("elementwise", f"activate<{ACTIVATIONS[name]}, {type_name(y.dtype)}, {_word(quads)}>").launch(
            (_blocks(x.size, 1024),), (256,), x, np.int64(x.size), y
        )
    return y


def rotary(x: Array, cos: Array, sin: Array, dtype: Any = np.float32) -> Array:
    """Turn dimension i and i + rotary_dim / 2 by the angle of their position; the rest passes.

    x [batch, heads, seq, head_dim] in float32 or 16 bits, maybe a view with any strides but that of head_dim;
    cos and sin float32 [batch or 1, seq, rotary_dim / 2] -> dtype [batch, heads, seq, head_dim], contiguous
    """
    cp = cupy()
    x = _narrow(x)
    cos, sin = (cp.ascontiguousarray(angles, dtype=np.float32) for angles in (cos, sin))
    batch, heads, seq, head_dim = x.shape
    half = cos.shape[-1]
    y = cp.empty(x.shape, dtype)
    rows = batch * heads * seq
    if rows:
        kernel("elementwise", f"rotary<{type_name(x.dtype)}, {type_name(y.dtype)}>").launch(
            (-(-rows // 8),),
            (256,),
            x,
            *_strides(x),
            cos,
            sin,
            np.int64(seq * half if cos.shape[0] > 1 else 0),
            *(np.int32(n) for n in (half, heads, seq, head_dim)),
            np.int64(rows),
            y,
        )
    return y


def embedding(ids: Array, weight: Array) -> Array:
    """Rows of a weight in any form, in float32.  int64 [...], [vocab, hidden] -> float32 [..., hidden]

    An id that there is not gives a row of NaN: ids on the device cannot be checked without waiting for it.
    """
    cp = cupy()
    ids = cp.ascontiguousarray(ids, dtype=np.int64)
    form, matrix = arguments_of(weight)
    length = weight.shape[1]
    y = cp.empty((*ids.shape, length), np.float32)
    if y.size:
        quads = rows_begin_at_multiples(form, matrix[0], length, 4) and y.data.ptr % 16 == 0
        kernel("elementwise", f"embedding<{form}, {_word(quads)}>").launch(
            (ids.size,), (256,), *matrix, ids, y
        )
    return y


def store(key_storage: Array, value_storage: Array, key: Array, value: Array, at: Any) -> None:
    """Write new keys and values into a cache's storage from position `at` on, rounded to its dtype; one launch.

    key, value: [batch, heads, new, head_dim], views with any strides but that of head_dim; storage of both: the same
    shape [batch, heads, capacity, head_dim] and dtype; each in float32, float16 or bfloat16.
    at: an int, or int64 [1] on the device. What would lie outside of the storage is not written.
    """
    key, value = _narrow(key), _narrow(value)
    batch, heads, new, head_dim = key.shape
    rows = batch * heads * new
    if not rows:
        return
    if isinstance(at, cupy().ndarray):
        place = at, np.int32(0)
    else:
        place = None, np.int32(min(at, 2**31 - 1))
    types = ", ".join(type_name(array.dtype) for array in (key, value, key_storage))
    arrays: list[Any] = []
    for array in (key, value, key_storage, value_storage):
        arrays += [array, *_strides(array)]
    sizes = heads, new, head_dim, key_storage.shape[2]
    kernel("elementwise", f"store<{types}>").launch(
        (-(-rows // 8), 2), (256,), *arrays, *place, *(np.int32(n) for n in sizes), np.int64(rows)
    )


def likeliest(logits: Array) -> Array:
    """The place of the largest number of each row, the first of equal ones; -1 where it is infinite or NaN, which
    counts as the largest.

    float32, float16 or bfloat16 [..., vocab] -> int64 [...]
    """
    cp = cupy()
    logits = _narrow(logits)
    count = logits.shape[-1]
    flat = logits if logits.ndim == 2 else logits.reshape(-1, count)
    y = cp.empty(flat.shape[0], np.int64)
    if y.size:
        kernel("elementwise", f"likeliest<{type_name(flat.dtype)}>").launch(
            (y.size,),
            (min(1024, -(-count // 32) * 32),),
            flat,
            np.int64(flat.strides[0] // flat.itemsize),
            np.int32(count),
            y,
        )
    return y.reshape(logits.shape[:-1])


def holds_nonfinite(array: Array) -> bool:
    """Whether there is NaN or infinity.  float32, float16 or bfloat16, of any shape.  It waits for the device."""
    cp = cupy()
    array = cp.ascontiguousarray(array)
    found = cp.zeros(1, np.int32)
    if array.size:
        kernel("elementwise", f"find_nonfinite<{type_name(array.dtype)}>").launch(
            (_blocks(array.size, 1024),), (256,), array, np.int64(array.size), found
        )
    return bool(found.get()[0])


def instances(capability: int) -> list[tuple[str, str]]:
    """(file, expression) of every kernel that can be asked for; the compute capability does not matter."""
    types, words = ("float", "float16", "bfloat16"), ("true", "false")
    names = [f"layer_norm<{t}, {quads}>" for t in types for quads in (1, 2, 4, 8)]
    names += [f"{one}<{t}>" for one in ("layer_norm_unaligned", "likeliest", "find_nonfinite") for t in types]
    functions = sorted(set(ACTIVATIONS.values()))
    names += [f"activate<{f}, {t}, {w}>" for f in functions for t in types for w in words]
    names += [f"rotary<{a}, {b}>" for a in types for b in types]
    names += [f"store<{a}, {b}, {c}>" for a in types for b in types for c in types]
    forms = (*types, "signed char", "nf4")
    names += [f"embedding<{form}, {w}>" for form in forms for w in words]
    return [("elementwise", name) for name in names]


# --- on the way to the kernels -----------------------------------------------------------------------


def _narrow(array: Array) -> Array:
    """`array` in a type that the kernels read, with its last dimension contiguous."""
    if array.dtype.name not in _NARROW:
        array = array.astype(np.float32)
    return array if array.strides[-1] == array.itemsize else cupy().ascontiguousarray(array)


def _strides(array: Array) -> tuple[np.int64, ...]:
    """From one to the next of batch, head and position, in numbers."""
    return tuple(np.int64(stride // array.itemsize) for stride in array.strides[:-1])


def _address(*arrays: Array) -> int:
    """A number that is a multiple of 16 only if all addresses are."""
    together = 0
    for array in arrays:
        together |= array.data.ptr
    return together


def _blocks(count: int, each: int) -> int:
    """Blocks for so many numbers: no more than keep all multiprocessors busy, because kernels go on by themselves."""
    return min(-(-count // each), 32 * multiprocessors())


def _word(truth: bool) -> str:
    return "true" if truth else "false"
