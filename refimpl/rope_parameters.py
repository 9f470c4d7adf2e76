"""The rotary settings of a config, in whichever spelling they come.

Version 5 of transformers keeps them in one object,

    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000, "partial_rotary_factor": 0.25}

and versions before in several keys: `rotary_emb_base`, `rotary_pct`, and `rope_scaling` with the rest, where the
type is called `rope_type` or just `type`.  What they mean is in `rotary.py`.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from typing import Any

from refimpl.errors import ConfigError, quote

#: Keys beside the objects: name -> key in `rope_parameters`, in the order in which they are read.
SPELLINGS = {
    "rope_theta": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "original_max_position_embeddings": "original_max_position_embeddings",
    "rotary_emb_base": "rope_theta",
    "rotary_pct": "partial_rotary_factor",
}

#: Those that count only where the object does not say the same.
_ONLY_IF_ABSENT = ("rope_theta", "partial_rotary_factor")

#: What every type has.
_OF_EVERY_TYPE = ("rope_theta", "partial_rotary_factor")

#: The names by which most files know two of the keys.
_EARLIER = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}

#: What belongs to each type beside `rope_theta` and `partial_rotary_factor`: (required, optional).
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "yarn": (
        (),
        (
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor"),
        ("factor", "original_max_position_embeddings", "attention_factor"),
    ),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ("original_max_position_embeddings",)),
}

ROPE_TYPES = tuple(_KEYS)


def read_rope_parameters(settings: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Take every spelling of the rotary settings out of `settings`; what it does not say, `current` says.

    Raises: ConfigError for something that is not an object.
    """
    given: dict[str, Any] | None = None
    for name in ("rope_scaling", "rope_parameters"):
        if name in settings:
            value = settings.pop(name)
            if value is not None and not isinstance(value, dict):
                raise ConfigError("must be an object", where=name, found=quote(value), key=name, value=value)
            given = given or {key: part for key, part in (value or {}).items() if part is not None}
    if given is None:
        parameters = dict(current)
    else:  # base and share stay as they are unless the object has its own
        parameters = {**{key: current[key] for key in _OF_EVERY_TYPE}, **given}
        old_name = parameters.pop("type", None)
        if "rope_type" not in parameters:
            parameters["rope_type"] = old_name or _type_of_none(given)
    for name, key in SPELLINGS.items():
        value = settings.pop(name, None)
        if value is not None and (name not in _ONLY_IF_ABSENT or key not in (given or ())):
            parameters[key] = value
    return parameters


def _type_of_none(given: dict[str, Any]) -> str:
    """An object without a type is of the type "default", unless it has settings that this type has not."""
    others = sorted(str(key) for key in given if key not in _OF_EVERY_TYPE)
    if others:
        raise ConfigError(
            "the rotary settings name no type",
            where="rope_type",
            found=", ".join(others),
            allowed=", ".join(ROPE_TYPES),
            key="rope_type",
            value=None,
        )
    return "default"


def check_rope_parameters(parameters: Any, head_dim: int, max_position_embeddings: int, where: str) -> None:
    """Raise ConfigError unless the frequencies of rotary positions can be computed from `parameters`."""
    for key in _OF_EVERY_TYPE:
        if key not in parameters:
            raise _error("every type needs it", key, None, where, _CHECKS[key][1])
    rope_type = parameters.get("rope_type", "default")
    if not isinstance(rope_type, str) or rope_type not in _KEYS:
        near = difflib.get_close_matches(str(rope_type), ROPE_TYPES, n=1)
        hint = f"Did you mean {near[0]}?" if near else None
        raise _error("unknown rotary type", "rope_type", rope_type, where, ", ".join(ROPE_TYPES), hint)
    required, optional = _KEYS[rope_type]
    for key in required:
        if key not in parameters:
            raise _error(f"the type {rope_type} needs it", key, None, where, _CHECKS[key][1])
    for key in parameters:
        if key in (*required, *optional, "rope_theta", "partial_rotary_factor"):
            is_right, allowed = _CHECKS[key]
            if not is_right(parameters[key]):
                raise _error("not a possible value", key, parameters[key], where, allowed)
        elif key not in ("rope_type", *_CHECKS):
            warnings.warn(f"{where}: {quote(key)} among the rotary settings means nothing here", stacklevel=5)
    rotary_ndims = int(head_dim * parameters["partial_rotary_factor"])
    if rotary_ndims < 2 or rotary_ndims % 2:
        what = f"it rotates {rotary_ndims} of the {head_dim} dimensions of a head"
        allowed = "an even number of at least 2 and at most the head's dimensions"
        raise _error(what, "partial_rotary_factor", parameters["partial_rotary_factor"], where, allowed)
    _check_together(rope_type, parameters, rotary_ndims, where)
    if rope_type == "longrope" and max_position_embeddings < 2:
        what = "the type longrope needs a text of at least 2 tokens"
        raise _error(what, "max_position_embeddings", max_position_embeddings, where)


def _check_together(rope_type: str, parameters: dict[str, Any], rotary_ndims: int, where: str) -> None:
    """What no single value shows."""
    if rope_type == "dynamic" and rotary_ndims <= 2:
        what = f"the type dynamic cannot scale a rotation of {rotary_ndims} dimensions"
        raise _error(what, "partial_rotary_factor", parameters["partial_rotary_factor"], where)
    if rope_type == "longrope":
        for key in ("short_factor", "long_factor"):
            if len(parameters[key]) != rotary_ndims // 2:
                what = f"{len(parameters[key])} numbers for {rotary_ndims // 2} frequencies"
                allowed = "one for each frequency: half the rotated dimensions of a head"
                raise _error(what, key, parameters[key], where, allowed)
    if rope_type == "yarn":
        fast, slow = parameters.get("beta_fast", 32), parameters.get("beta_slow", 1)
        if fast < slow:
            raise _error(f"smaller than beta_slow = {slow}", "beta_fast", fast, where)
        if parameters["rope_theta"] <= 1:
            raise _error("the type yarn needs more than 1", "rope_theta", parameters["rope_theta"], where)
    if rope_type == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        if high <= low:
            raise _error(f"not larger than low_freq_factor = {low}", "high_freq_factor", high, where)


def _error(
    what: str, key: str, value: Any, where: str, allowed: str | None = None, hint: str | None = None
) -> ConfigError:
    found = "nothing" if value is None else quote(value)
    key = _EARLIER.get(key, key)
    name = f"{key} ({SPELLINGS[key]})" if key in _EARLIER.values() else key
    return ConfigError(
        f"{name}: {what}", where=where, found=found, allowed=allowed, hint=hint, key=key, value=value
    )


def _number(least: float, most: float) -> tuple[Callable[[Any], bool], str]:
    def is_right(value: Any) -> bool:
        return type(value) in (int, float) and least <= value <= most

    return is_right, f"a number from {least:g} to {most:g}"


def _numbers(least: float, most: float) -> tuple[Callable[[Any], bool], str]:
    is_number, text = _number(least, most)
    return lambda value: isinstance(value, list) and all(map(is_number, value)), f"a list, each {text}"


#: key -> (test, what is allowed)
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rope_theta": _number(1e-6, 1e18),
    "partial_rotary_factor": _number(1e-6, 1.0),
    "factor": _number(1.0, 1e6),
    "original_max_position_embeddings": (
        lambda value: type(value) is int and 2 <= value <= 1 << 20,
        "a whole number from 2 to 1048576",
    ),
    "attention_factor": _number(0.0, 1e6),
    "beta_fast": _number(1e-6, 1e6),
    "beta_slow": _number(1e-6, 1e6),
    "mscale": _number(0.0, 1e6),
    "mscale_all_dim": _number(0.0, 1e6),
    "truncate": (lambda value: type(value) is bool, "true or false"),
    "short_factor": _numbers(1e-6, 1e6),
    "long_factor": _numbers(1e-6, 1e6),
    "low_freq_factor": _number(1e-6, 1e6),
    "high_freq_factor": _number(1e-6, 1e6),
}
