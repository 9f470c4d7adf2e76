"""Recording what a model computes on the way: `with model.trace() as t: model(ids)`.

Entering puts a recorder in the place of each part, which calls the part and keeps what it gave; leaving
puts the parts back.  The text of the model knows nothing of it, and without a trace nothing is paid.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from refimpl.conformance import steps
from refimpl.conformance.recorders import Receiver, Recorder, Recorders
from refimpl.conformance.trace_data import Call, Trace
from refimpl.errors import InputError, quote

__all__ = ["Call", "Receiver", "Trace", "about", "replay", "tracing"]

_entering = threading.Lock()


@contextmanager
def tracing(
    model: Any, names: Iterable[str] | str | None = None, receive: Receiver | None = None
) -> Iterator[Trace]:
    """Record the steps of `model` that `names` chooses (patterns with `*`; None: all) until the block is left.

    receive: is given each array instead of the trace; what it raises ends the call of the model.

    Raises: InputError for a pattern that fits nothing, for a model that is being traced already (also as part of
        another), and for a call from a second thread.
    """
    base = model.base_model
    chosen = steps.select(names, steps.names_of(model))
    with _entering:
        if isinstance(base.final_layer_norm, Recorder):
            raise InputError(
                "the model is being traced already",
                where=type(model).__name__,
                hint="Leave the other trace first, or load the model a second time.",
            )
        trace = Trace(about=about(model))
        recorders = Recorders(model, set(chosen), trace, receive)
        recorders.install()
    try:
        yield trace
    finally:
        recorders.remove()


def about(model: Any) -> dict[str, Any]:
    """What a trace says of the model that it was taken of."""
    from refimpl import __version__

    return {
        "version": __version__,
        "model": model.name_or_path,
        "model_class": type(model).__name__,
        "config": model.config.to_dict(),
        "rotary_ndims": model.config.rotary_ndims,
        "backend": model.backend.name,
        "dtype": str(np.dtype(model.dtype)),
        "weight_dtype": _narrow_weights(model),
        "matmul_dtype": model.backend.matmul_dtype,
    }


def _narrow_weights(model: Any) -> str | None:
    """The dtype of the dense layers where it is a narrow one: float16, bfloat16, int8 or nf4."""
    name = str(model.base_model.layers[0].attention.dense.weight.dtype)
    return None if name in ("float32", "float64") else name


def replay(
    model: Any,
    calls: Iterable[Call],
    names: Iterable[str] | str | None = None,
    receive: Receiver | None = None,
) -> Trace:
    """Make the calls of a trace again, with another model or precision.

    Raises: InputError for a call that was given more than ids, positions and a mask of padding.
    """
    cache: Any = None
    with tracing(model, names, receive) as trace:
        for number, call in enumerate(calls):
            if not call.repeatable:
                raise InputError(
                    "this call cannot be made again: not only ids, positions and padding went into it",
                    where=f"call {number}",
                    found=quote(call.past),
                )
            out = model(
                call.input_ids,
                attention_mask=call.attention_mask,
                position_ids=call.position_ids,
                past_key_values=cache if call.past else None,
                use_cache=True,
                return_dict=True,
            )
            cache = getattr(out, "past_key_values", None)
    return trace
