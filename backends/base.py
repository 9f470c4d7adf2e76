"""What a backend is: an array namespace, and the closed list of operations that models are made of.

The methods of `Backend` are the definitions.  They are written for reading, over any namespace `xp`
that speaks the Python array API, in any float dtype; in float64 they are the oracle.  A faster
backend derives from `Backend` and overrides an operation, with the same name, arguments and shapes,
and is tested against the text below.

Shapes are written in words: [batch, seq, hidden], [batch, heads, seq, head_dim]; weights [out, in].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refimpl.backends.activations import ACTIVATIONS
from refimpl.backends.erf import erfc
from refimpl.backends.mask import AttentionMask
from refimpl.backends.panels import PanelMatrix, out_of_panels, unpacked_bytes
from refimpl.backends.quantized import QuantizedMatrix

Array = Any

#: The closed list. Model code calls these and nothing else of a backend.
OPERATIONS = ("embedding", "linear", "layer_norm", "activation", "rotary", "softmax", "attention")


class Backend:
    """One way to compute: `xp`, a compute dtype, a device, and the operations.

    Attributes:
        name: "numpy", "numba" or "cupy".
        xp: the array namespace; `backend.xp.zeros(...)` is an array of this backend.
        dtype: the compute dtype, that of activations, norms, the cache and the logits.
        device: "cpu", or "cuda:N".
        copies_weights: whether `weight` copies a matrix that is already in the wanted dtype.
        matmul_dtype: to what `linear` may round its factors; None: it rounds nothing.
        cache_dtype: in what keys and values are kept where nobody says; None: as they are computed.
    """

    name: str
    xp: Any
    device: str = "cpu"
    copies_weights: bool = False
    matmul_dtype: str | None = None
    cache_dtype: np.dtype | None = None
    threads: int | None = None  # as they were asked for

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype

    def __repr__(self) -> str:
        products = "" if self.matmul_dtype is None else f", products in {self.matmul_dtype}"
        return f"<{self.name} backend, {self.dtype}{products}, {self.device}>"

    # --- arrays in and out ---------------------------------------------------------------------

    def asarray(self, array: Array, dtype: Any = None) -> Array:
        """`array` (of the host or of this backend) as an array of this backend; no copy if it is one."""
        return self.xp.asarray(array, dtype=dtype)

    def weight(self, array: np.ndarray | PanelMatrix | QuantizedMatrix, weight_dtype: Any = None) -> Array:
        """A large matrix [out, in] in the form in which `linear` and `embedding` read it.

        `weight_dtype` None keeps it as it is, without a copy where that is possible.  A quantized matrix stays so in
        any case; one in panels is unpacked where they are not read.  CheckpointValueError for NaN that is seen.
        """
        if isinstance(array, QuantizedMatrix):
            return array.map_arrays(lambda part: self.asarray(out_of_panels(part)))
        return self.asarray(out_of_panels(array), dtype=weight_dtype)

    def copied_bytes(self, array: np.ndarray | PanelMatrix | QuantizedMatrix) -> int:
        """What `weight` allocates for a matrix of the host that is in the wanted dtype."""
        return unpacked_bytes(array) or (array.nbytes if self.copies_weights else 0)

    def to_numpy(self, array: Array) -> Any:
        """`array` on the host; a quantized matrix stays quantized."""
        if isinstance(array, QuantizedMatrix):
            return array.map_arrays(self.to_numpy)
        return np.asarray(array)

    def synchronize(self) -> None:
        """Wait until everything asked for has been computed."""

    def free_memory(self) -> int | None:
        """Bytes that its device can still give; None: it computes in the memory of the host."""
        return None

    # --- the operations ------------------------------------------------------------------------

    def embedding(self, ids: Array, weight: Array) -> Array:
        """Look up one row for each id.  [batch, seq], [vocab, hidden] -> [batch, seq, hidden]

        Of a quantized weight (see `quantized.py`) only these rows are widened.
        """
        return weight[ids].astype(self.dtype)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """x @ weight.T (+ bias).  [..., in], [out, in], [out] -> [..., out]

        A weight kept in a narrower dtype, or quantized, is widened to the compute dtype first: no
        rounding is added.
        """
        y = self.xp.matmul(x, weight.astype(self.dtype, copy=False).T)
        return y if bias is None else y + bias

    def layer_norm(self, x: Array, weight: Array, bias: Array, eps: float) -> Array:
        """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (arXiv:1607.06450).

        [..., hidden], [hidden], [hidden] -> [..., hidden].  The variance is the biased one.
        """
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred / self.xp.sqrt(variance + eps) * weight + bias

    def activation(self, x: Array, name: str, parameters: tuple[Array, ...] = ()) -> Array:
        """The activation function of that name, elementwise (see `activations.py`).  [...] -> [...]"""
        return ACTIVATIONS[name](self, x, *parameters)

    def rotary(self, x: Array, cos: Array, sin: Array) -> Array:
        """Rotate pairs of dimensions by an angle that grows with the position (arXiv:2104.09864).

        [batch, heads, seq, head_dim], 2 x [batch or 1, seq, rotary_dim / 2] -> [batch, heads, seq, head_dim]

        Dimension i is paired with i + rotary_dim / 2 (halves, not neighbours); what lies beyond
        rotary_dim passes unchanged.
        """
        half = cos.shape[-1]
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        cos, sin = cos[:, None], sin[:, None]  # the same for every head
        return self.xp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)

    def softmax(self, scores: Array, visible: Array | None = None) -> Array:
        """exp(scores) / sum(exp(scores)) over the last axis.  [..., n] -> [..., n]

        Where `visible` is false the result is 0.  A row that sees nothing is all zeros, never NaN.
        """
        xp = self.xp
        if visible is not None:
            scores = xp.where(visible, scores, -xp.inf)
        peak = scores.max(axis=-1, keepdims=True)
        exponentials = xp.exp(scores - xp.where(xp.isfinite(peak), peak, 0))
        total = exponentials.sum(axis=-1, keepdims=True)
        return exponentials / xp.where(total > 0, total, 1)

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: AttentionMask,
        scale: float,
        need_weights: bool = False,
    ) -> tuple[Array, Array | None]:
        """softmax(scale * query @ key.T, where visible) @ value  (arXiv:1706.03762).

        query [batch, heads, q_seq, head_dim], key and value [batch, heads, kv_seq, head_dim], maybe in 16 bits
        -> context [batch, heads, q_seq, head_dim], and the weights [batch, heads, q_seq, kv_seq]
        if they are needed (a faster backend need not have held them).
        """
        xp = self.xp
        key, value = key.astype(self.dtype, copy=False), value.astype(self.dtype, copy=False)
        scores = xp.matmul(query, key.swapaxes(-1, -2)) * scale
        if mask.bias is not None:
            scores = scores + mask.bias
        weights = self.softmax(scores, mask.visible(xp, query.shape[2], key.shape[2]))
        return xp.matmul(weights, value), weights if need_weights else None

    # --- no operations of their own: for the cache, and for the definitions of some activations ---

    def store(self, key_storage: Array, value_storage: Array, key: Array, value: Array, at: int) -> None:
        """Write 2 x [batch, heads, new, head_dim] into a cache's storage from position `at`, rounded to its dtype."""
        end = at + key.shape[2]
        key_storage[:, :, at:end], value_storage[:, :, at:end] = key, value

    def erfc(self, x: Array) -> Array:
        """The complementary error function, elementwise."""
        return erfc(self.xp, x)
