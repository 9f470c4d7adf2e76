"""Changing a model that is loaded: its precision and device, its embeddings, its vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from refimpl.backends import dtype_name, get_backend, to_dtype
from refimpl.backends.base import Backend
from refimpl.backends.quantized import QuantizedMatrix
from refimpl.config_base import PreTrainedConfig
from refimpl.errors import BackendError, InputError, quote
from refimpl.inputs import host_array
from refimpl.layers import Embedding, Linear, Module
from refimpl.memory import refuse_too_large

Array = Any

_DEVICES = ("cpu", "cuda")
_DTYPES = ("float64", "float32", "float16", "bfloat16")


class ChangeableModel(Module):
    """What can be changed in a model.  Each change is made in the model itself; a failed one changes nothing."""

    config: PreTrainedConfig
    #: The dtype in which the model was asked for: a processor keeps 16 bits and computes in float32, a GPU does not.
    _asked_dtype: Any = None

    # --- precision and device ------------------------------------------------------------------

    def half(self) -> Self:
        """Keep the large matrices in float16.  Raises: CheckpointValueError for a number that it cannot hold."""
        return self.to("float16")

    def bfloat16(self) -> Self:
        """Keep the large matrices in bfloat16."""
        return self.to("bfloat16")

    def float(self) -> Self:
        """Keep the large matrices in float32, and compute in it."""
        return self.to("float32")

    def double(self) -> Self:
        """Keep the large matrices in float64, and compute in it."""
        return self.to("float64")

    def cuda(self, device: int | str | None = None) -> Self:
        """Move to a GPU.  Raises: BackendError where there is none."""
        return self.to("cuda" if device is None else f"cuda:{device}" if isinstance(device, int) else device)

    def cpu(self) -> Self:
        """Move to the host."""
        return self.to("cpu")

    def to(self, *targets: Any, device: str | None = None, dtype: Any = None) -> Self:
        """Move to a device, and keep the weights in a dtype: `.to("cuda")`, `.to("float16")`, `.to("cpu", np.float32)`.

        On a processor float16 and bfloat16 say how the large matrices are kept; the computation stays in float32. On
        a GPU matrix products are of 16 bits then, and a model that was half on a processor becomes so when it moves
        to a GPU. Quantized matrices stay quantized.
        Raises: BackendError for a device or dtype that is not available here; ResourceLimitError for a GPU that is
            too small.
        """
        for target in targets:
            if isinstance(target, str) and target.partition(":")[0] in _DEVICES:
                device = target
            elif isinstance(target, str) and target not in _DTYPES:
                raise BackendError(
                    "neither a device nor a dtype",
                    where="to",
                    found=quote(target),
                    allowed=", ".join((*_DEVICES, "cuda:N", *_DTYPES)),
                )
            else:
                dtype = target
        if device is not None and not isinstance(device, str):
            raise BackendError("not a device", where="to", found=quote(device), allowed='"cpu", or "cuda:N"')
        backend = self._backend_for(device, dtype)
        weight_dtype = None if dtype is None else to_dtype(dtype_name(dtype))
        parameters, free = list(self.named_parameters()), backend.free_memory()
        if free is not None:
            weights = [getattr(parameter.owner, parameter.name) for parameter in parameters]
            needed = sum(_bytes_in(weight, weight_dtype) for weight in weights)
            refuse_too_large(needed, type(self).__name__, None, backend.device, free)
        changed = {}
        for parameter in parameters:
            array = self.backend.to_numpy(getattr(parameter.owner, parameter.name))
            changed[parameter] = parameter.packed(array, weight_dtype, backend)
        for module in _modules(self):
            module.backend = backend
        rotary = self.base_model.rotary_emb  # type: ignore[attr-defined]
        self.base_model.rotary_emb = type(rotary)(backend, rotary.config)  # type: ignore[attr-defined]
        for parameter, array in changed.items():
            setattr(parameter.owner, parameter.name, array)
        self._asked_dtype = self._asked_dtype if dtype is None else dtype
        return self

    def _backend_for(self, device: str | None, dtype: Any) -> Backend:
        """This model's backend, or another one if device or compute dtype ask for it."""
        here = self.backend.device
        wanted = here if device is None else device
        stays = wanted.partition(":")[0] == here.partition(":")[0]
        if dtype is None and stays and wanted in (here, here.partition(":")[0]):
            return self.backend
        if not stays:
            asked = self._asked_dtype if dtype is None else dtype
            is_half = asked is not None and dtype_name(asked) in ("float16", "bfloat16")
            return get_backend(device=wanted, dtype=asked if is_half else dtype or self.backend.dtype)
        compute = self.backend.dtype if dtype is None else dtype
        rounded, kept_in = self.backend.matmul_dtype, self.backend.cache_dtype
        # Rounding that came with the weights' dtype goes with it.
        if dtype_name(compute) == "float64" or (dtype is not None and kept_in is not None):
            rounded = None
        threads = self.backend.threads
        return get_backend(
            self.backend.name, dtype=compute, device=wanted, threads=threads, matmul_dtype=rounded
        )

    # --- embeddings and vocabulary -------------------------------------------------------------

    def get_input_embeddings(self) -> Embedding:
        """The embedding of the token ids; its `weight` is [vocab, hidden]."""
        return self.base_model.embed_in  # type: ignore[attr-defined]

    def set_input_embeddings(self, value: Any) -> None:
        """Use another embedding: an `Embedding`, or an array [vocab, hidden] of this model's size."""
        weight = value.weight if isinstance(value, Embedding) else value
        self._set_matrix(self.get_input_embeddings(), host_array(weight, "value", "f"))

    def get_output_embeddings(self) -> Linear | None:
        """The dense layer that gives the logits; None for a model without that head."""
        return getattr(self, "embed_out", None)

    def set_output_embeddings(self, value: Any) -> None:
        """Use another output head: a `Linear`, or an array [vocab, hidden].  Raises: InputError if there is none."""
        head = self.get_output_embeddings()
        if head is None:
            raise InputError("this model has no output embeddings", where=type(self).__name__)
        if "weight" not in head._shapes:
            raise InputError(
                "the output head is the input embedding (tie_word_embeddings)",
                where=type(self).__name__,
                hint="Use set_input_embeddings, or load the model with tie_word_embeddings=False.",
            )
        weight = value.weight if isinstance(value, Linear) else value
        self._set_matrix(head, host_array(weight, "value", "f"))

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> Embedding:
        """Change the size of the vocabulary: rows are cut off at the end or added; the config follows.

        new_num_tokens: how many; None: as many as there are (of use with `pad_to_multiple_of`).
        pad_to_multiple_of: round up to a multiple.
        mean_resizing: new rows are the mean of the old ones (a token that is as likely as any other); otherwise
            they are random, with deviation `config.initializer_range`.

        Returns the embedding.  Raises: InputError for an impossible size; ConfigError for one that a special
            token of the config does not fit in.
        """
        size = self._checked_size(new_num_tokens, pad_to_multiple_of)
        embedding, head = self.get_input_embeddings(), self.get_output_embeddings()
        own = [m for m in (embedding, head) if m is not None and "weight" in m._shapes]
        if any(isinstance(module.weight, QuantizedMatrix) for module in own):
            raise InputError(
                "a quantized matrix cannot get or lose rows",
                where="resize_token_embeddings",
                hint="Resize the model before its weights are quantized.",
            )
        self.config.update({"vocab_size": size})
        rng = np.random.default_rng(0)
        for module in own:
            weight = self.backend.to_numpy(module.weight)
            if len(weight) != size:
                rows = self._new_rows(weight, size - len(weight), mean_resizing, rng)
                module._shapes["weight"] = ((size, weight.shape[1]), None)
                self._set_matrix(module, np.concatenate([weight[:size], rows]))
        return embedding

    def _checked_size(self, new_num_tokens: Any, multiple: Any) -> int:
        size = len(self.get_input_embeddings().weight) if new_num_tokens is None else new_num_tokens
        multiple = 1 if multiple is None else multiple
        for name, value, most in (
            ("new_num_tokens", size, 1 << 22),
            ("pad_to_multiple_of", multiple, 1 << 16),
        ):
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or not 1 <= value <= most:
                raise InputError(
                    "not a possible size", where=name, found=quote(value), allowed=f"1 to {most}"
                )
        return -(-int(size) // int(multiple)) * int(multiple)

    def _new_rows(self, weight: np.ndarray, count: int, mean: bool, rng: np.random.Generator) -> np.ndarray:
        shape = (max(count, 0), weight.shape[1])
        if mean:
            rows = np.broadcast_to(weight.astype(np.float64).mean(axis=0), shape)
        else:
            rows = rng.normal(0.0, self.config.initializer_range, shape)  # type: ignore[attr-defined]
        return rows.astype(weight.dtype)

    def _set_matrix(self, module: Embedding | Linear, weight: np.ndarray) -> None:
        parameter = next(p for p in self.named_parameters() if p.owner is module and p.name == "weight")
        if weight.shape != parameter.shape:
            raise InputError(
                "wrong shape",
                where="value",
                found=str(list(weight.shape)),
                allowed=str(list(parameter.shape)),
                hint="resize_token_embeddings changes the size of the vocabulary.",
            )
        old = module.weight
        kept = None if isinstance(old, QuantizedMatrix) else self.backend.to_numpy(old).dtype
        parameter.assign(np.array(weight), kept)  # copied: the caller's array stays the caller's

    def prune_heads(self, heads_to_prune: Any) -> None:
        """Not offered.  Raises: InputError, which says what to do instead."""
        raise InputError(
            "heads cannot be taken out of a model here",
            where="prune_heads",
            hint="head_mask in a forward call takes away what a head contributes.",
        )


def _bytes_in(weight: Any, dtype: np.dtype | None) -> int:
    """What a weight takes on a device, kept in `dtype` where it is a matrix of floats."""
    if isinstance(weight, QuantizedMatrix) or dtype is None or len(weight.shape) != 2:
        return weight.nbytes
    return math.prod(weight.shape) * dtype.itemsize


def _modules(module: Module) -> Iterator[Any]:
    """`module` and everything in it that holds a backend."""
    yield module
    for part in vars(module).values():
        for item in part if isinstance(part, list) else [part]:
            if isinstance(item, Module):
                yield from _modules(item)
