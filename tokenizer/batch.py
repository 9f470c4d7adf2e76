"""From rows of ids to a batch: truncation, padding, masks and arrays.

Nothing here knows how a text becomes ids.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refimpl.errors import InputError, quote

PADDING = ("longest", "max_length", "do_not_pad")
TRUNCATION = ("longest_first", "only_first", "only_second", "do_not_truncate")

# A tokenizer without a length limit says so with a number this large.
NO_LIMIT = int(1e30)
LARGE = int(1e20)

_FILL_BESIDE_IDS = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
_OVERFLOW = {"overflowing_tokens": [], "num_truncated_tokens": 0}


class BatchEncoding(dict[str, Any]):
    """What a tokenizer returns: a dict whose keys are attributes too, ready for `model(**encoding)`.

    One text gives `input_ids` `[seq]` as a list; a list of texts gives `[batch, seq]`; arrays are int64
    and always `[batch, seq]`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this encoding has no {name}; it has {', '.join(self)}") from None


@dataclass(frozen=True)
class Options:
    """The settings of one call, checked and with their defaults filled in."""

    padding: str
    truncation: str
    max_length: int | None
    stride: int
    pad_to_multiple_of: int | None
    padding_side: str
    truncation_side: str
    return_tensors: str | None


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
) -> Options:
    """The options of a call, with True and None replaced by what they stand for.

    `max_length` alone asks for truncation; without it the limit of the model is taken, and where that
    is unknown too neither truncation nor padding to the maximum takes place.
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
        return_tensors=_check_tensors(return_tensors),
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


def _check_tensors(kind: str | None) -> str | None:
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


def is_batch(text: Any, is_split_into_words: bool) -> bool:
    """Whether `text` is several texts: a list of str, of lists of ids, of pairs, or of lists of words."""
    if not isinstance(text, list | tuple):
        return False
    if not text:
        return not is_split_into_words
    return isinstance(text[0], list | tuple) or (isinstance(text[0], str) and not is_split_into_words)


def pairs(text: Sequence[Any], text_pair: Any, is_split_into_words: bool) -> list[tuple[Any, Any]]:
    """The rows of a batch as (text, second text or None); a row may itself be a pair of texts.

    Of texts that are split into words only a tuple is a pair; a list is the words of one text.
    """
    if text_pair is not None:
        if not isinstance(text_pair, list | tuple) or len(text_pair) != len(text):
            raise InputError("text_pair is not a batch of the size of text", found=quote(text_pair))
        return list(zip(text, text_pair, strict=True))
    return [_pair(row, is_split_into_words) for row in text]


def _pair(row: Any, is_split_into_words: bool) -> tuple[Any, Any]:
    if isinstance(row, str) or not isinstance(row, list | tuple) or not row or isinstance(row[0], int):
        return row, None
    if len(row) == 2 and (isinstance(row, tuple) or not is_split_into_words):
        return row[0], row[1]
    if len(row) == 1:
        return row[0], None
    if is_split_into_words:
        return row, None
    raise InputError("a row of the batch is neither a text nor a pair of texts", found=quote(row))


def truncate(
    ids: list[int], pair_ids: list[int] | None, excess: int, options: Options
) -> tuple[list[int], list[int] | None, list[int]]:
    """`ids` and `pair_ids` shorter by `excess` ids together, and the ids cut off with `stride` more.

    Of a pair, `longest_first` shortens the longer row down to the other, then both in turn; what it
    cuts off is not returned.
    """
    if options.truncation == "longest_first" and pair_ids is not None:
        first, second = _share_out(len(ids), len(pair_ids), excess)
        return _cut(ids, first, options), _cut(pair_ids, second, options), []
    if options.truncation in ("only_first", "longest_first"):
        return _cut(ids, excess, options), pair_ids, _cut_off(ids, excess, options)
    if pair_ids:
        return ids, _cut(pair_ids, excess, options), _cut_off(pair_ids, excess, options)
    return ids, pair_ids, []


def _share_out(first: int, second: int, excess: int) -> tuple[int, int]:
    """How much of `excess` each row of a pair loses; the longer one (or the second) loses the odd id."""
    level = min(abs(first - second), excess)
    half = (excess - level) // 2
    rest = excess - level - half
    return (level + half, rest) if first > second else (half, level + rest)


def _cut(ids: list[int], count: int, options: Options) -> list[int]:
    if options.truncation_side == "left":
        return ids[count:]
    return ids[: max(len(ids) - count, 0)]


def _cut_off(ids: list[int], count: int, options: Options) -> list[int]:
    window = min(len(ids), count + options.stride)
    return ids[:window] if options.truncation_side == "left" else ids[len(ids) - window :]


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows with the same keys -> one column per key. A row that lost no ids has no overflow to show."""
    keys = dict.fromkeys(key for row in rows for key in row)
    try:
        return {
            key: [row.get(key, _OVERFLOW[key]) if key in _OVERFLOW else row[key] for row in rows]
            for key in keys
        }
    except KeyError as error:
        raise InputError(f"some rows of the batch have no {error.args[0]}") from error


def as_rows(encodings: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """Encodings in any form that `pad` takes -> one dict per row, and whether it was a single row."""
    if (
        isinstance(encodings, list | tuple)
        and encodings
        and all(isinstance(row, Mapping) for row in encodings)
    ):
        columns: Mapping[str, Any] = collate(encodings)
    elif isinstance(encodings, Mapping):
        columns = encodings
    else:
        raise InputError(
            "this is not an encoding", found=quote(encodings), allowed="a dict or a list of dicts"
        )
    lists = {key: _as_lists(column) for key, column in columns.items()}
    ids = lists.get("input_ids")
    if not isinstance(ids, list):
        raise InputError("the encoding has no input_ids", found=quote(encodings))
    if not ids or not isinstance(ids[0], list):
        return [_check_row(lists)], True
    if any(not isinstance(column, list) or len(column) != len(ids) for column in lists.values()):
        raise InputError("the columns have different numbers of rows", found=quote(lists))
    return [
        _check_row({key: column[index] for key, column in lists.items()}) for index in range(len(ids))
    ], False


def _check_row(row: dict[str, Any]) -> dict[str, Any]:
    ids = row["input_ids"]
    if not isinstance(ids, list) or any(as_integer(index) is None for index in ids):
        raise InputError("input_ids is not a list of ints", found=quote(ids))
    for key in row.keys() & _FILL_BESIDE_IDS.keys():
        if not isinstance(row[key], list) or len(row[key]) != len(ids):
            raise InputError(
                f"{key} does not fit input_ids", found=quote(row[key]), allowed=f"{len(ids)} numbers"
            )
    return row


def _as_lists(column: Any) -> Any:
    if hasattr(column, "tolist"):
        return column.tolist()
    return [_as_lists(entry) for entry in column] if isinstance(column, list | tuple) else column


def padded_length(lengths: Iterable[int], options: Options) -> int:
    """The length to which the rows of a batch are padded (rows that are longer stay as they are)."""
    if options.padding == "do_not_pad":
        return 0
    length = options.max_length if options.padding == "max_length" else max(lengths, default=0)
    multiple = options.pad_to_multiple_of or 1
    return -(-(length or 0) // multiple) * multiple


def pad_row(row: dict[str, Any], length: int, side: str, pad_id: int | None) -> dict[str, Any]:
    """`row` with `input_ids` filled up to `length` with `pad_id`, and the masks beside it to match."""
    missing = length - len(row["input_ids"])
    if missing <= 0:
        return row
    fill = {"input_ids": pad_id, **_FILL_BESIDE_IDS}
    padded = dict(row)
    for key in row.keys() & fill.keys():
        filler = [fill[key]] * missing
        padded[key] = [*filler, *row[key]] if side == "left" else [*row[key], *filler]
    return padded


def to_arrays(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Every column as an array `[batch, ...]`, int64 for integers. Overflow, being ragged, is left out.

    Raises: InputError when the rows have different lengths.
    """
    import numpy as np

    arrays = {}
    for key, column in columns.items():
        if key in _OVERFLOW:
            continue
        try:
            array = np.asarray(column)
        except ValueError as error:
            raise InputError(
                f"the rows of {key} have different lengths",
                found=quote(column),
                hint="padding=True makes them equal; truncation=True with max_length makes them shorter.",
            ) from error
        if array.dtype == object:
            raise InputError(f"the values of {key} are no numbers of an array", found=quote(column))
        integers = array.dtype.kind in "iub" or array.size == 0
        arrays[key] = array.astype(np.int64) if integers else array
    return arrays
