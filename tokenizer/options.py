"""The settings of a call of a tokenizer: what is allowed, and what True, None and "nothing said" stand for."""

from __future__ import annotations

import operator
import warnings
from dataclasses import dataclass
from typing import Any

from refimpl.errors import InputError, quote

PADDING = ("longest", "max_length", "do_not_pad")
TRUNCATION = ("longest_first", "only_first", "only_second", "do_not_truncate")

# A tokenizer without a length limit says so with a number this large.
NO_LIMIT = int(1e30)
LARGE = int(1e20)


@dataclass(slots=True)
class Options:
    """The settings of one call, checked and with their defaults filled in."""

    padding: str = "do_not_pad"
    truncation: str = "do_not_truncate"
    max_length: int | None = None
    stride: int = 0
    pad_to_multiple_of: int | None = None
    padding_side: str = "right"
    truncation_side: str = "right"
    return_tensors: str | None = None
    add_special_tokens: bool = True
    is_split_into_words: bool = False
    split_special_tokens: bool | None = None
    surrogates: str | None = None
    verbose: bool = True
    returned: frozenset[str] = frozenset()  # of the names in RETURNED, those that the caller wants


RETURNED = (
    "token_type_ids",
    "attention_mask",
    "overflowing_tokens",
    "special_tokens_mask",
    "offsets_mapping",
    "length",
)


def resolve_options(
    *,
    padding: bool | str | None,
    truncation: bool | str | None,
    max_length: int | None,
    stride: int,
    pad_to_multiple_of: int | None,
    padding_side: str,
    truncation_side: str,
    return_tensors: str | None,
    model_max_length: int,
    **others: Any,
) -> Options:
    """The options of a call, with True and None replaced by what they stand for.

    `max_length` alone asks for truncation; without it the limit of the model is taken, and where that
    is unknown too neither truncation nor padding to the maximum takes place.  `others` go into the
    options as they are.
    Raises: InputError for a value that is not allowed.
    """
    max_length = _check_count("max_length", max_length, 0)
    pad_to_multiple_of = _check_count("pad_to_multiple_of", pad_to_multiple_of, 1)
    if max_length is not None and padding is False and truncation is None:
        truncation = "longest_first"
    elif max_length is not None and padding is True and truncation in (None, False, "do_not_truncate"):
        warnings.warn(
            "max_length is ignored: padding=True pads to the longest row and nothing truncates; "
            'padding="max_length" pads to max_length',
            stacklevel=4,
        )
    padding = _check_choice("padding", padding, PADDING)
    truncation = _check_choice("truncation", truncation, TRUNCATION)
    if max_length is None and model_max_length <= LARGE:
        if padding == "max_length" or truncation != "do_not_truncate":
            max_length = model_max_length
    elif max_length is None:
        padding = "do_not_pad" if padding == "max_length" else padding
        truncation = "do_not_truncate"
    both = padding != "do_not_pad" and truncation != "do_not_truncate"
    if both and max_length and pad_to_multiple_of and max_length % pad_to_multiple_of:
        raise InputError(
            "padding would make the rows longer than truncation allows",
            found=f"max_length {max_length} with pad_to_multiple_of {pad_to_multiple_of}",
            allowed="a max_length that is a multiple of pad_to_multiple_of",
        )
    return Options(
        padding=padding,
        truncation=truncation,
        max_length=max_length,
        stride=_check_count("stride", stride, 0) or 0,
        pad_to_multiple_of=pad_to_multiple_of,
        padding_side=check_side("padding_side", padding_side),
        truncation_side=check_side("truncation_side", truncation_side),
        return_tensors=check_tensors(return_tensors),
        **others,
    )


def _check_choice(name: str, value: bool | str | None, choices: tuple[str, ...]) -> str:
    """The first choice for True and the last for False or None: so the tuples are ordered."""
    if value is None or isinstance(value, bool):
        return choices[0] if value else choices[-1]
    if value not in choices:
        raise InputError(
            f"{name} is unknown", found=quote(value), allowed=f"True, False, {', '.join(choices)}"
        )
    return value


def _check_count(name: str, value: int | None, least: int) -> int | None:
    if value is None:
        return None
    number = as_integer(value)
    if number is None or number < least:
        raise InputError(f"{name} is not a count", found=quote(value), allowed=f"an int from {least}")
    return number


def check_side(name: str, side: str) -> str:
    """`side` when it is a side. Raises: InputError."""
    if side not in ("left", "right"):
        raise InputError(f"{name} is not a side", found=quote(side), allowed='"left" or "right"')
    return side


def check_tensors(kind: str | None) -> str | None:
    if kind not in (None, "np"):
        raise InputError(
            "return_tensors names a kind of array that is not made here",
            found=quote(kind),
            allowed='"np" (NumPy) or None (lists)',
            hint='Write return_tensors="np".',
        )
    return kind


def as_integer(value: Any) -> int | None:
    """`value` as an int when it is an integer of any kind (a bool is not), else None."""
    if type(value) is int:
        return value
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
