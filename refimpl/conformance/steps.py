"""The names under which a trace keeps what a model computes: the path of the weight, and the step.

    gpt_neox.layers.3.attention.query_rotated

This is the one list of them; `docs/conformance/trace_and_compare.md` shows it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from refimpl.errors import InputError, quote

PER_TOKEN = ("batch", "seq", "features")
PER_HEAD = ("batch", "heads", "seq", "head_dim")
PER_KEY = ("batch", "heads", "kv_seq", "head_dim")
PER_PAIR = ("batch", "heads", "seq", "kv_seq")

#: Before the layers: step -> its axes.
FIRST = {
    "embed_in": PER_TOKEN,
    "inputs_embeds": PER_TOKEN,
    "rotary_emb.cos": ("batch", "seq", "pairs"),
    "rotary_emb.sin": ("batch", "seq", "pairs"),
}
#: In each layer, in the order of computation.
LAYER = {
    "input_layernorm": PER_TOKEN,
    "attention.query_key_value": PER_TOKEN,
    "attention.query": PER_HEAD,
    "attention.query_rotated": PER_HEAD,
    "attention.key": PER_HEAD,
    "attention.key_rotated": PER_HEAD,
    "attention.value": PER_HEAD,
    "attention.all_keys": PER_KEY,
    "attention.all_values": PER_KEY,
    "attention.scores": PER_PAIR,
    "attention.probabilities": PER_PAIR,
    "attention.context": PER_TOKEN,
    "attention.dense": PER_TOKEN,
    "attention.dense_bias": PER_TOKEN,
    "after_attention": PER_TOKEN,
    "post_attention_layernorm": PER_TOKEN,
    "mlp.dense_h_to_4h": PER_TOKEN,
    "mlp.act": PER_TOKEN,
    "mlp.dense_4h_to_h": PER_TOKEN,
    "": PER_TOKEN,
}
#: After the layers.
LAST = {"final_layer_norm": PER_TOKEN}
#: Attribute of a head -> what its result is called.
HEADS = {
    "embed_out": ("logits",),
    "qa_outputs": ("start_logits", "end_logits"),
    "classifier": ("logits",),
    "score": ("logits",),
}

#: Other names of a step: end of the name -> end of the name under which it is kept.
ALIASES = {
    "attention.rotary_query": "attention.query_rotated",
    "attention.rotary_key": "attention.key_rotated",
    "attention": "attention.dense",
    "mlp": "mlp.dense_4h_to_h",
    "embed_out": "logits",
}
#: Aliases that are a part of what they name: the rotated dimensions of each head.
ROTATED_PART = ("attention.rotary_query", "attention.rotary_key")

_LAYER_NAME = re.compile(r"(?P<before>(?:.+\.)?layers\.)(?P<index>\d+)(?:\.(?P<step>.+))?")
_CALL = re.compile(r"(?P<name>.+)@(?P<call>[1-9]\d*)")


def split_call(name: str) -> tuple[str, int]:
    """`"logits@2"` -> `("logits", 2)`: the step, and the call of the model that it belongs to (0: the first)."""
    match = _CALL.fullmatch(name)
    return (match["name"], int(match["call"])) if match else (name, 0)


def join_call(name: str, call: int) -> str:
    """The other way: `("logits", 2)` -> `"logits@2"`; the first call has no mark."""
    return f"{name}@{call}" if call else name


def layer_and_step(name: str) -> tuple[int | None, str]:
    """`"gpt_neox.layers.3.attention.dense"` -> `(3, "attention.dense")`; `(None, ...)` outside the layers."""
    name, _ = split_call(name)
    match = _LAYER_NAME.fullmatch(name)
    if match:
        return int(match["index"]), match["step"] or ""
    return None, name


def axes_of(name: str, ndim: int | None = None) -> tuple[str, ...]:
    """What the axes of a step are, by its name: of "seq" there is one place for each token of the call.

    ndim: where it is given and fits nothing, no axis has a meaning: `()`.
    """
    layer, step = layer_and_step(name)
    if layer is not None:
        axes = LAYER.get(step, PER_TOKEN)
    elif step in ("start_logits", "end_logits"):
        axes = ("batch", "seq")
    else:
        axes = next((axes for end, axes in {**FIRST, **LAST}.items() if step.endswith(end)), PER_TOKEN)
    return axes if ndim in (None, len(axes)) else ()


def names_of(model: Any) -> list[str]:
    """Every name that a trace of `model` can have, in the order of computation."""
    base, config = f"{model.base_model_prefix}.", model.config
    names = [base + step for step in FIRST]
    for index in range(config.num_hidden_layers):
        layer = model.base_model.layers[index]
        for step in LAYER:
            if step == "attention.dense_bias" and not getattr(layer, "is_last", False):
                continue
            names.append(f"{base}layers.{index}.{step}".removesuffix("."))
    names += [base + step for step in LAST]
    for head, results in HEADS.items():
        if hasattr(model, head):
            names += results
    return names


def kept_name(name: str) -> str:
    """The name under which a step is kept, for one of its other names."""
    name, call = split_call(name)
    for alias, kept in ALIASES.items():
        if name == alias or name.endswith(f".{alias}"):
            return join_call(name.removesuffix(alias) + kept, call)
    return join_call(name, call)


def is_rotated_part(name: str) -> bool:
    return split_call(name)[0].endswith(ROTATED_PART)


def select(patterns: Iterable[str] | str | None, names: Iterable[str]) -> list[str]:
    """Those of `names` that a pattern fits (`*` stands for any text), in their order; None: all of them.

    Raises: InputError for a pattern that fits nothing, with the nearest name.
    """
    every = list(names)
    if patterns is None:
        return every
    chosen: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise InputError("not a pattern of names", where="names", found=quote(pattern), allowed="texts")
        found = {name for name in every if fnmatchcase(name, pattern)}
        found = found or {name for name in every if fnmatchcase(name, kept_name(pattern))}
        if not found:
            raise InputError(
                "no such step in this model",
                where="names",
                found=quote(pattern),
                hint=nearest(pattern, every),
            )
        chosen |= found
    return [name for name in every if name in chosen]


def nearest(name: str, names: Iterable[str]) -> str | None:
    """ "Did you mean ...?" for a name that nothing has; None where nothing is like it."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.3)
    return f"Did you mean {near[0]}?" if near else None


def find(name: str, arrays: Mapping[str, Any]) -> str | None:
    """The name under which `arrays` keeps `name`: itself, another name of it, or without the family before it."""
    if name in arrays:
        return name
    kept = kept_name(name)
    if kept in arrays:
        return kept
    ends = [one for one in arrays if one.endswith(f".{kept}") and one.count(".") == kept.count(".") + 1]
    return ends[0] if len(ends) == 1 else None
