"""Wrong forms of single operations: what a classic mistake gives for the inputs of a case, in float64.

The names are those of `golden/README.md` and of `refimpl.conformance.variants`, where the mistake has one there too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from refimpl.backends import get_backend
from refimpl.backends.activations import ACTIVATIONS
from refimpl.config import GPTNeoXConfig, GPTNeoXJapaneseConfig
from refimpl.errors import RefimplError
from refimpl.rotary import RotaryEmbedding

Arrays = dict[str, np.ndarray]

#: (arguments, tensors) -> outputs; None where the case has no place for the mistake.
Wrong = Callable[[Mapping[str, Any], Arrays], Arrays | None]


def wrong_outputs(
    operation: str, arguments: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Arrays]]:
    """What each known mistake gives: its name, and output -> array of float64.

    tensors: the inputs of the case, in any dtype.  A mistake that the inputs have no place for is left out.
    """
    given = {
        name: array.astype(np.float64) if array.dtype.kind == "f" else array
        for name, array in tensors.items()
    }
    for name, wrong in WRONG.get(operation, {}).items():
        with np.errstate(all="ignore"):
            try:
                outputs = wrong(arguments, given)
            except RefimplError:  # settings that do not go together
                continue
        if outputs is not None:
            yield name, outputs


def rotary_config(arguments: Mapping[str, Any]) -> GPTNeoXConfig | GPTNeoXJapaneseConfig:
    """The config that the arguments of the operation `rotary_tables` stand for.  Raises: ConfigError."""
    shape = {"hidden_size": 2 * arguments["head_dim"], "num_attention_heads": 2}
    if "rope_parameters" in arguments:
        more = {name: arguments[name] for name in ("rope_parameters", "max_position_embeddings")}
        return GPTNeoXConfig(**shape, **more)
    spelt = {name: arguments[name] for name in ("rotary_pct", "rotary_emb_base")}
    return GPTNeoXJapaneseConfig(**shape, **spelt)


# --- activation ----------------------------------------------------------------------------------


def _activation(name: str) -> Wrong:
    def wrong(arguments: Mapping[str, Any], given: Arrays) -> Arrays:
        return {"y": ACTIVATIONS[name](get_backend("numpy", dtype="float64"), given["x"])}

    return wrong


# --- layer norm ----------------------------------------------------------------------------------


def _layer_norm(normed: Callable[[np.ndarray, float], np.ndarray]) -> Wrong:
    """`normed`: (x, eps) -> x before weight and bias."""

    def wrong(arguments: Mapping[str, Any], given: Arrays) -> Arrays:
        return {"y": normed(given["x"], arguments["eps"]) * given["weight"] + given["bias"]}

    return wrong


def _centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=-1, keepdims=True)


def _variance(x: np.ndarray, ddof: int = 0) -> np.ndarray:
    return x.var(axis=-1, keepdims=True, ddof=ddof)


def _right_norm(x: np.ndarray, eps: float) -> np.ndarray:
    return _centred(x) / np.sqrt(_variance(x) + eps)


def _other_eps(other: float) -> Wrong:
    return _layer_norm(lambda x, eps: _right_norm(x, other))


def _no_norm_bias(arguments: Mapping[str, Any], given: Arrays) -> Arrays:
    return {"y": _right_norm(given["x"], arguments["eps"]) * given["weight"]}


def _one_plus_weight(arguments: Mapping[str, Any], given: Arrays) -> Arrays:
    return {"y": _right_norm(given["x"], arguments["eps"]) * (1 + given["weight"]) + given["bias"]}


# --- linear, softmax -----------------------------------------------------------------------------


def _transposed(arguments: Mapping[str, Any], given: Arrays) -> Arrays:
    """The numbers of [out, in] read as if they lay as [in, out]."""
    weight = given["weight"]
    return {"y": given["x"] @ weight.reshape(weight.shape[::-1]) + given.get("bias", 0.0)}


def _no_bias(arguments: Mapping[str, Any], given: Arrays) -> Arrays | None:
    return {"y": given["x"] @ given["weight"].T} if "bias" in given else None


def _softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


# --- rotary --------------------------------------------------------------------------------------


def _rotated(pairs: Callable[[np.ndarray], tuple[Any, Any]], turn: float = 1.0) -> Wrong:
    """`pairs`: width -> where the first and the second dimension of each pair lie."""

    def wrong(arguments: Mapping[str, Any], given: Arrays) -> Arrays:
        x, cos, sin = given["x"], given["cos"][:, None], turn * given["sin"][:, None]
        first, second = pairs(np.arange(x.shape[-1])[: 2 * cos.shape[-1]])
        y = x.copy()
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., second] * cos + x[..., first] * sin
        return {"y": y}

    return wrong


def _halves(places: np.ndarray) -> tuple[Any, Any]:
    return places[: len(places) // 2], places[len(places) // 2 :]


def _neighbours(places: np.ndarray) -> tuple[Any, Any]:
    return places[0::2], places[1::2]


def _at_the_end(arguments: Mapping[str, Any], given: Arrays) -> Arrays | None:
    rest = given["x"].shape[-1] - 2 * given["cos"].shape[-1]
    if not rest:
        return None
    turned = {**given, "x": np.roll(given["x"], -rest, axis=-1)}
    return {"y": np.roll(get_backend("numpy", dtype="float64").rotary(**turned), rest, axis=-1)}


# --- rotary tables -------------------------------------------------------------------------------


def _tables(change: Callable[[Any, dict[str, Any], np.ndarray], tuple[np.ndarray, Any] | None]) -> Wrong:
    """`change`: (config, its rope_parameters, position_ids) -> other positions, and the length to choose
    frequencies by (None: the text's); it may change the parameters.  None: there is no place for the mistake."""

    def wrong(arguments: Mapping[str, Any], given: Arrays) -> Arrays | None:
        config = copy.deepcopy(rotary_config(arguments))
        changed = change(config, config.rope_parameters, given["position_ids"])
        if changed is None:
            return None
        positions, length = changed
        tables = RotaryEmbedding(get_backend("numpy", dtype="float64"), config)
        if length is not None:
            tables.fixed = tables._frequencies(length)
        cos, sin = tables(positions)
        return {"cos": cos, "sin": sin}

    return wrong


def _with(**settings: Any) -> Wrong:
    """Other settings; where the config has them already there is no mistake."""

    def change(config: Any, rope: dict[str, Any], positions: np.ndarray) -> tuple[np.ndarray, Any] | None:
        if all(rope.get(name) == value for name, value in settings.items()):
            return None
        rope.update(settings)
        return positions, None

    return _tables(change)


def _rotated_part(part: float) -> Wrong:
    """Another part of each head, where that can be done."""

    def change(config: Any, rope: dict[str, Any], positions: np.ndarray) -> tuple[np.ndarray, Any] | None:
        width = int(config.head_dim * part)
        smallest = 4 if rope["rope_type"] == "dynamic" else 2
        if width in (config.rotary_ndims, 0) or width < smallest or width % 2:
            return None
        if rope["rope_type"] == "longrope":  # one divisor for each frequency
            return None
        rope["partial_rotary_factor"] = part
        return positions, None

    return _tables(change)


def _over_head(config: Any, rope: dict[str, Any], positions: np.ndarray) -> tuple[np.ndarray, Any] | None:
    """base ** (-2 i / head_dim) is another base with the exponent over the rotated width."""
    if config.rotary_ndims == config.head_dim:
        return None
    rope["rope_theta"] = float(rope["rope_theta"]) ** (config.rotary_ndims / config.head_dim)
    return positions, None


def _factor_left_out(
    config: Any, rope: dict[str, Any], positions: np.ndarray
) -> tuple[np.ndarray, Any] | None:
    if rope["rope_type"] not in ("yarn", "longrope"):
        return None
    rope["attention_factor"] = 1.0
    return positions, None


def _one_list(length: int) -> Wrong:
    def change(config: Any, rope: dict[str, Any], positions: np.ndarray) -> tuple[np.ndarray, Any] | None:
        return (positions, length) if rope["rope_type"] == "longrope" else None

    return _tables(change)


def _right_tables(arguments: Mapping[str, Any], positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = RotaryEmbedding(get_backend("numpy", dtype="float64"), rotary_config(arguments))(positions)
    return cos, sin


def _backwards_tables(arguments: Mapping[str, Any], given: Arrays) -> Arrays:
    cos, sin = _right_tables(arguments, given["position_ids"])
    return {"cos": cos, "sin": -sin}


def _swapped_tables(arguments: Mapping[str, Any], given: Arrays) -> Arrays:
    cos, sin = _right_tables(arguments, given["position_ids"])
    return {"cos": sin, "sin": cos}


def _doubled_tables(arguments: Mapping[str, Any], given: Arrays) -> Arrays:
    cos, sin = _right_tables(arguments, given["position_ids"])
    return {"cos": np.concatenate([cos, cos], axis=-1), "sin": np.concatenate([sin, sin], axis=-1)}


def _tables_for_each_row(arguments: Mapping[str, Any], given: Arrays) -> Arrays:
    rows = [_right_tables(arguments, row[None]) for row in given["position_ids"]]
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(("cos", "sin"))}


# --- attention -----------------------------------------------------------------------------------


def _attention(
    scale: Callable[[float, int], float] = lambda scale, width: scale,
    offset: Callable[[int], int] = lambda past: past,
    padding: bool = True,
    axis: int = -1,
    mask_first: bool = False,
) -> Wrong:
    """`scale`: (the right one, head_dim) -> another; `offset`: (past) -> another; `padding`: whether it is hidden (of
    a mask with numbers: whether it is added); `axis` of the softmax; `mask_first`: the mask is scaled too."""

    def wrong(arguments: Mapping[str, Any], given: Arrays) -> Arrays | None:
        query, key, past = given["query"], given["key"], arguments.get("past")
        if past is None and offset(0) != 0:
            return None
        scores = query @ key.swapaxes(-1, -2)
        factor = scale(arguments["scale"], query.shape[-1])
        if past is None:
            mask = given["mask"] if padding else np.zeros(())
            scores = (scores + mask) * factor if mask_first else scores * factor + mask
        else:
            places = [np.arange(length) for length in scores.shape[-2:]]
            visible = (places[1] <= places[0][:, None] + offset(past))[None, None]
            if padding and "key_visible" in given:
                visible = visible & given["key_visible"][:, None, None]
            # A query that sees nothing weighs all keys alike, as with the smallest number for a mask.
            scores = np.where(visible, scores * factor, np.finfo(np.float32).min)
        weights = _softmax(scores, axis)
        return {"context": weights @ given["value"], "weights": weights}

    return wrong


_FAR = 1 << 20  # beyond any text

#: operation -> mistake -> what it gives
WRONG: dict[str, dict[str, Wrong]] = {
    "activation": {
        "tanh-gelu": _activation("gelu_new"),
        "erf-gelu": _activation("gelu"),
        "quick-gelu": _activation("quick_gelu"),
        "silu": _activation("silu"),
        "relu": _activation("relu"),
    },
    "layer_norm": {
        "unbiased-variance": _layer_norm(lambda x, eps: _centred(x) / np.sqrt(_variance(x, 1) + eps)),
        "eps-outside-root": _layer_norm(lambda x, eps: _centred(x) / (np.sqrt(_variance(x)) + eps)),
        "rms-norm": _layer_norm(lambda x, eps: x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)),
        "no-norm-bias": _no_norm_bias,
        "one-plus-weight": _one_plus_weight,
        "default-eps": _other_eps(1e-5),
        "llama-eps": _other_eps(1e-6),
        "tiny-eps": _other_eps(1e-12),
    },
    "linear": {"transposed-weight": _transposed, "no-bias": _no_bias},
    "softmax": {"softmax-over-rows": lambda arguments, given: {"y": _softmax(given["x"], 0)}},
    "rotary": {
        "interleaved-rotary": _rotated(_neighbours),
        "backwards-rotary": _rotated(_halves, -1.0),
        "backwards-interleaved-rotary": _rotated(_neighbours, -1.0),
        "rotary-at-the-end": _at_the_end,
        "no-rotary": lambda arguments, given: {"y": given["x"]},
    },
    "rotary_tables": {
        "exponent-over-head": _tables(_over_head),
        "default-base": _with(rope_theta=10000),
        "whole-rotary": _rotated_part(1.0),
        "quarter-rotary": _rotated_part(0.25),
        "no-rope-scaling": _with(rope_type="default"),
        "no-attention-factor": _tables(_factor_left_out),
        "always-short-factors": _one_list(1),
        "always-long-factors": _one_list(_FAR),
        "tables-for-each-row": _tables_for_each_row,
        "positions-from-one": _tables(lambda config, rope, positions: (positions + 1, None)),
        "backwards-rotary": _backwards_tables,
        "cos-sin-swapped": _swapped_tables,
        "tables-twice": _doubled_tables,
    },
    "attention": {
        "unscaled-attention": _attention(scale=lambda scale, width: 1.0),
        "doubly-scaled-attention": _attention(scale=lambda scale, width: scale * scale),
        "mask-sees-next": _attention(offset=lambda past: past + 1),
        "mask-misses-itself": _attention(offset=lambda past: past - 1),
        "no-causal-mask": _attention(offset=lambda past: past + _FAR),
        "mask-without-past": _attention(offset=lambda past: 0),
        "padding-visible": _attention(padding=False),
        "mask-scaled": _attention(mask_first=True),
        "softmax-over-queries": _attention(axis=-2),
    },
}

#: What those mean that `golden/README.md` and the variants of models do not have.
MEANINGS = {
    "transposed-weight": "the numbers of the weight read as [in, out] instead of [out, in]",
    "no-bias": "the bias left out",
    "softmax-over-rows": "softmax over the first axis instead of the last",
    "softmax-over-queries": "softmax over the queries instead of the keys",
    "backwards-interleaved-rotary": "neighbouring dimensions rotated, and by the negative angle",
    "cos-sin-swapped": "cos and sin take each other's place",
    "tables-twice": "cos and sin given twice, for both halves",
    "mask-scaled": "the mask multiplied by the scale too",
}
