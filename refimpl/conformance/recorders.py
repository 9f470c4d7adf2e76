"""The recorders of a trace: what stands in the place of each part while it is recorded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from refimpl.arrays import to_numpy
from refimpl.backends.mask import AttentionMask
from refimpl.conformance import steps
from refimpl.conformance.trace_data import Call, Trace
from refimpl.errors import InputError
from refimpl.layers import Module

Array = Any

#: Takes a name and an array as soon as it is computed.
Receiver = Callable[[str, np.ndarray], None]


class Recorder(Module):
    """Stands in the place of a part, calls it, and shows what came of it."""

    def __init__(self, part: Any, seen: Callable[[tuple[Any, ...], dict[str, Any]], Callable[[Any], None]]):
        self.__dict__.update(_part=part, _seen=seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_part"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._part, name, value)

    def named_parameters(self, prefix: str = "") -> Any:
        return self._part.named_parameters(prefix) if isinstance(self._part, Module) else iter(())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        after = self._seen(args, kwargs)
        result = self._part(*args, **kwargs)
        after(result)
        return result


class _AttentionOps:
    """The backend of one attention, whose rotations and products are shown."""

    def __init__(self, backend: Any, recorders: Recorders, path: str):
        self._backend, self._recorders, self._path = backend, recorders, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def rotary(self, x: Array, cos: Array, sin: Array) -> Array:
        keep, which = self._recorders.keep, self._recorders.next_rotated()
        keep(f"{self._path}.{which}", x)
        rotated = self._backend.rotary(x, cos, sin)
        keep(f"{self._path}.{which}_rotated", rotated)
        return rotated

    def attention(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: AttentionMask,
        scale: float,
        need_weights: bool = False,
    ) -> tuple[Array, Array | None]:
        keep, path, new = self._recorders.keep, self._path, query.shape[2]
        keep(f"{path}.value", value[:, :, value.shape[2] - new :])
        if key.shape[2] > new:
            keep(f"{path}.all_keys", key)
            keep(f"{path}.all_values", value)
        if self._recorders.wants(f"{path}.scores"):
            # As the definition has them: a faster backend never holds them.
            dtype = self._backend.dtype
            rows, columns = query.astype(dtype, copy=False), key.astype(dtype, copy=False).swapaxes(-1, -2)
            scores = self._backend.xp.matmul(rows, columns) * scale
            keep(f"{path}.scores", scores if mask.bias is None else scores + mask.bias)
        shown = self._recorders.wants(f"{path}.probabilities")
        context, weights = self._backend.attention(query, key, value, mask, scale, need_weights or shown)
        if shown:
            keep(f"{path}.probabilities", weights)
        return context, weights if need_weights else None


class Recorders:
    """All recorders of one trace, and what they know of each other."""

    def __init__(self, model: Any, wanted: set[str], trace: Trace, receive: Receiver | None):
        self.model, self.wanted, self.trace, self.receive = model, wanted, trace, receive
        self._base = f"{model.base_model_prefix}."
        self._replaced: list[tuple[Any, Any, Any]] = []
        self._thread: int | None = None
        self._embedded: tuple[Array | None, Array] | None = None
        self._rotations = 0
        self._layer_input: Array = None
        self._dense_result: Array = None

    # --- in and out ----------------------------------------------------------------------------

    def install(self) -> None:
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def _install(self) -> None:
        base = self.model.base_model
        self._replace(base, "embed_in", self._embedding)
        self._replace(base, "rotary_emb", self._tables)
        for index in range(len(base.layers)):
            layer, path = base.layers[index], f"{self._base}layers.{index}"
            for name in ("input_layernorm", "post_attention_layernorm"):
                self._replace(layer, name, self._result(f"{path}.{name}"))
            for name in ("dense_h_to_4h", "act", "dense_4h_to_h"):
                self._replace(layer.mlp, name, self._result(f"{path}.mlp.{name}"))
            attention = layer.attention
            self._replace(attention, "query_key_value", self._result(f"{path}.attention.query_key_value"))
            self._replace(attention, "dense", self._dense(f"{path}.attention"))
            self._remember(attention, "backend", _AttentionOps(attention.backend, self, f"{path}.attention"))
            self._replace(layer, "attention", self._attention(layer, path))
            self._replace(base.layers, index, self._layer(path))
        self._replace(base, "final_layer_norm", self._result(f"{self._base}final_layer_norm"))
        for head, results in steps.HEADS.items():
            if hasattr(self.model, head):
                self._replace(self.model, head, self._head(results))

    def remove(self) -> None:
        for owner, name, part in reversed(self._replaced):
            _put(owner, name, part)
        self._replaced.clear()

    def _replace(self, owner: Any, name: Any, seen: Any) -> None:
        part = _get(owner, name)
        # A part may ask to be recorded inside (see `variants`): what it does itself is no part of the step.
        while getattr(part, "recorded_inside", False):
            owner, name, part = part, "part", part.part
        self._remember(owner, name, Recorder(part, seen))

    def _remember(self, owner: Any, name: Any, replacement: Any) -> None:
        self._replaced.append((owner, name, _get(owner, name)))
        _put(owner, name, replacement)

    # --- keeping -------------------------------------------------------------------------------

    def wants(self, name: str) -> bool:
        return name in self.wanted

    def keep(self, name: str, array: Array) -> None:
        if name not in self.wanted:
            return
        name = steps.join_call(name, max(len(self.trace.calls) - 1, 0))
        # Copied: a cache writes into its storage, and what the model was given may be the caller's.
        copied = np.array(to_numpy(array), order="C")
        if self.receive is not None:
            self.receive(name, copied)
        else:
            self.trace.arrays[name] = copied

    def next_rotated(self) -> str:
        """An attention rotates the query first, then the key."""
        self._rotations += 1
        return "query" if self._rotations == 1 else "key"

    # --- what each kind of part shows ------------------------------------------------------------

    def _result(self, path: str) -> Any:
        return lambda args, kwargs: lambda result: self.keep(path, result)

    def _embedding(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def after(result: Array) -> None:
            # Kept when the call goes on: a mask or cache that is refused makes no call.
            self._embedded = (args[0], result)

        return after

    def _tables(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The rotary tables come right after the checks of a call: with them it has begun."""
        if self._thread not in (None, threading.get_ident()):
            raise InputError(
                "two threads use a model that is being traced",
                where=type(self.model).__name__,
                hint="Trace the calls of one thread, or load the model a second time.",
            )
        self._thread = threading.get_ident()
        call = Call(position_ids=np.array(to_numpy(args[0])))
        self.trace.calls.append(call)
        if self._embedded is not None:
            ids, embedded = self._embedded
            call.input_ids = np.array(to_numpy(ids))
            self.keep(f"{self._base}embed_in", embedded)

        def after(result: tuple[Array, Array]) -> None:
            for name, table in zip(("cos", "sin"), result, strict=True):
                self.keep(f"{self._base}rotary_emb.{name}", table)

        return after

    def _layer(self, path: str) -> Any:
        def seen(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._layer_input = args[0]
            if path == f"{self._base}layers.0":
                self._note_inputs(args[0], kwargs)
            return lambda result: self.keep(path, result[0])

        return seen

    def _note_inputs(self, hidden_states: Array, attending: dict[str, Any]) -> None:
        call, mask = self.trace.calls[-1], attending["mask"]
        call.past = mask.offset
        if mask.key_visible is not None:
            call.attention_mask = np.array(to_numpy(mask.key_visible)).astype(np.int64)
        if self._embedded is None or self._embedded[1] is not hidden_states:
            # Embeddings were given, or the ids belong to a call before, which was refused.
            call.input_ids = None
            self.trace.arrays.pop(steps.join_call(f"{self._base}embed_in", len(self.trace.calls) - 1), None)
            self.keep(f"{self._base}inputs_embeds", hidden_states)
        others = (mask.bias, attending["head_mask"])
        known = sum(earlier.seq for earlier in self.trace.calls[:-1])
        fresh = call.past in (0, known)
        call.repeatable = call.input_ids is not None and fresh and all(one is None for one in others)

    def _attention(self, layer: Any, path: str) -> Any:
        def seen(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._rotations = 0

            def after(result: tuple[Array, Array | None]) -> None:
                attended = result[0]
                if getattr(layer, "is_last", False):
                    bias = layer.attention.dense_bias
                    attended = attended + bias
                    self.keep(f"{path}.attention.dense_bias", self._dense_result + bias)
                # The sum is the layer's own; nothing shows it, so it is made once more, in the same way.
                if self.wants(f"{path}.after_attention"):
                    self.keep(f"{path}.after_attention", self._layer_input + attended)

            return after

        return seen

    def _dense(self, path: str) -> Any:
        def seen(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self.keep(f"{path}.context", args[0])

            def after(result: Array) -> None:
                self._dense_result = result
                self.keep(f"{path}.dense", result)

            return after

        return seen

    def _head(self, results: tuple[str, ...]) -> Any:
        def after(result: Array) -> None:
            if len(results) == 1:
                self.keep(results[0], result)
                return
            for index, name in enumerate(results):
                self.keep(name, result[..., index])

        return lambda args, kwargs: after


def _get(owner: Any, name: Any) -> Any:
    return owner[name] if isinstance(name, int) else getattr(owner, name)


def _put(owner: Any, name: Any, part: Any) -> None:
    if isinstance(name, int):
        owner[name] = part
    else:
        setattr(owner, name, part)
