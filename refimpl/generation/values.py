"""Which values the options of `generate()` may have.

A check takes the name of an option and a value, and returns the value as it is kept; it raises InputError for
one that means nothing.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import Any

from refimpl.errors import InputError, quote

Check = Callable[[str, Any], Any]

_LARGEST = 1e9  # beyond it a factor only makes infinities


def refused(name: str, value: Any, allowed: str) -> InputError:
    return InputError("not a possible value", where=name, found=quote(value), allowed=allowed)


def whole(low: int, meaning: str | None = None) -> Check:
    """A whole number of at least `low` and below 2**31."""
    allowed = f"a whole number of at least {low}" + (f" ({meaning})" if meaning else "")

    def check(name: str, value: Any) -> int:
        number = _index(value)
        if number is None or not low <= number < 1 << 31:
            raise refused(name, value, allowed)
        return number

    return check


def real(fits: Callable[[float], bool], allowed: str) -> Check:
    """A finite number that fits."""

    def check(name: str, value: Any) -> Any:
        if not _is_real(value) or not math.isfinite(value) or not fits(value):
            raise refused(name, value, allowed)
        return value

    return check


def factor(meaning: str) -> Check:
    return real(lambda value: 0 < value < _LARGEST, f"a number above 0 ({meaning})")


def temperature(name: str, value: Any) -> Any:
    allowed = "a number of at least 0 (0: always the likeliest token)"
    return real(lambda number: 0 <= number < _LARGEST, allowed)(name, value)


#: Of a probability that would keep nothing at 0, and keeps everything at 1.
share = real(lambda value: 0 < value <= 1, "a number above 0 and at most 1")
#: Of a threshold that rules nothing out at 0.
threshold = real(lambda value: 0 <= value <= 1, "a number from 0 to 1")
cutoff = real(lambda value: 0 <= value < 1, "a number of at least 0 and below 1")
not_negative = real(lambda value: value >= 0, "a number of at least 0")


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise refused(name, value, "True or False")
    return value


def one_of(*allowed: str) -> Check:
    """One of some words."""

    def check(name: str, value: Any) -> str:
        if value not in allowed:
            raise refused(name, value, ", ".join(allowed))
        return value

    return check


def early_stopping(name: str, value: Any) -> bool | str:
    if not isinstance(value, bool) and value != "never":
        raise refused(name, value, 'True, False or "never"')
    return value


def special_token(name: str, value: Any) -> int:
    """An id; a negative one is no token's, which some files say of what they do not have."""
    number = _index(value)
    if number is None or abs(number) >= 1 << 31:
        raise InputError(
            "not a possible value of a special token",
            where=name,
            found=quote(value),
            allowed="a whole number",
        )
    return number


def special_tokens(name: str, value: Any) -> int | list[int]:
    """An id or a list of them."""
    if isinstance(value, list | tuple):
        return [special_token(name, token_id) for token_id in value]
    return special_token(name, value)


def token_ids(name: str, value: Any) -> list[int]:
    """A list of ids, which may be empty."""
    ids = [_index(token_id) for token_id in value] if isinstance(value, list | tuple) else [None]
    if any(token_id is None or token_id < 0 for token_id in ids):
        raise refused(name, value, "a list of token ids")
    return ids  # type: ignore[return-value]


def sequences(name: str, value: Any) -> list[list[int]]:
    """A list of sequences of ids, none of them empty."""
    if not isinstance(value, list | tuple) or not all(isinstance(one, list | tuple) and one for one in value):
        raise refused(name, value, "a list of lists of token ids, none of these empty")
    return [token_ids(name, one) for one in value]


def biased_sequences(name: str, value: Any) -> list[list[Any]]:
    """{(id, ...): bias} or [[[id, ...], bias], ...] -> the latter, which JSON can hold."""
    allowed = "{(id, ...): bias, ...} or [[[id, ...], bias], ...]; a bias is a number, or -inf"
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list | tuple):
        raise refused(name, value, allowed)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise refused(name, value, allowed)
    for _, bias in pairs:
        if not _is_real(bias) or math.isnan(bias) or bias == math.inf:
            raise refused(name, value, allowed)
    ids = sequences(name, [sequence for sequence, _ in pairs])
    return [[sequence, float(bias)] for sequence, (_, bias) in zip(ids, pairs, strict=True)]


def decay(name: str, value: Any) -> list[Any]:
    """(start, factor)"""
    allowed = "[start, factor]: new tokens before it begins, and a factor above 0 for each further one"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise refused(name, value, allowed)
    start, growth = _index(value[0]), value[1]
    if start is None or start < 0 or not _is_real(growth) or not 0 < growth < _LARGEST:
        raise refused(name, value, allowed)
    return [start, float(growth)]


def strings(name: str, value: Any) -> str | list[str]:
    """A string or a list of them, none empty."""
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one for one in value):
        raise refused(name, value, "a string or a list of strings, none of them empty")
    return list(value)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _index(value: Any) -> int | None:
    """A whole number of any type as one of Python; None for everything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
