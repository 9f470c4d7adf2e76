"""Batches: the columns of rows, the padding of rows that are given, and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refimpl.errors import InputError, quote
from refimpl.tokenizer.encoding import Encoding
from refimpl.tokenizer.options import Options, as_integer
from refimpl.tokenizer.rows import Cut

_FILL_BESIDE_IDS = {"attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
_OVERFLOW = {"overflowing_tokens": [], "num_truncated_tokens": 0}


def columns_of_rows(
    rows: list[Encoding], cuts: list[Cut], options: Options, single: bool, pad_type: int
) -> dict[str, Any]:
    """The columns of the tokenizers whose overflow is rows, in the order of transformers."""
    columns = _common_columns(rows, options, pad_type, with_mask=True)
    if "length" in options.returned:
        columns["length"] = [len(row) for row in rows]
    if "overflowing_tokens" in options.returned:
        columns["overflow_to_sample_mapping"] = [n for n, cut in enumerate(cuts) for _ in cut.rows]
    elif single and options.return_tensors is None:
        return {key: column[0] if isinstance(column[0], list) else column for key, column in columns.items()}
    return columns


def columns_beside_overflow(
    rows: list[Encoding], cuts: list[Cut], options: Options, single: bool, pad_type: int
) -> dict[str, Any]:
    """The columns of the tokenizers whose overflow stands beside the rows, in the order of transformers.

    The length is that after padding for a single text, and that before it in a batch.
    """
    columns = _common_columns(rows, options, pad_type, with_mask=False)
    if "overflowing_tokens" in options.returned and any(cut.lost for cut in cuts):
        columns["overflowing_tokens"] = [cut.lost for cut in cuts]
        columns["num_truncated_tokens"] = [cut.excess if cut.lost else 0 for cut in cuts]
    masks = [row.attention_mask for row in rows]
    lengths = [len(row) for row in rows] if single else list(map(sum, masks))
    late: dict[str, list[Any]] = (
        {"attention_mask": masks, "length": lengths}
        if single
        else {"length": lengths, "attention_mask": masks}
    )
    columns |= {key: column for key, column in late.items() if key in options.returned}
    return (
        {key: column[0] for key, column in columns.items()}
        if single and not options.return_tensors
        else columns
    )


def _common_columns(
    rows: list[Encoding], options: Options, pad_type: int, with_mask: bool
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"input_ids": [row.ids for row in rows]}
    if "token_type_ids" in options.returned:
        columns["token_type_ids"] = [row.type_ids(pad_type) for row in rows]
    if with_mask and "attention_mask" in options.returned:
        columns["attention_mask"] = [row.attention_mask for row in rows]
    if "special_tokens_mask" in options.returned:
        columns["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
    if "offsets_mapping" in options.returned:
        columns["offset_mapping"] = [row.offsets for row in rows]
    return columns


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


def pad_row(
    row: dict[str, Any], length: int, side: str, pad_id: int | None, pad_type: int = 0
) -> dict[str, Any]:
    """`row` with `input_ids` filled up to `length` with `pad_id`, and the masks beside it to match."""
    missing = length - len(row["input_ids"])
    if missing <= 0:
        return row
    fill = {"input_ids": pad_id, **_FILL_BESIDE_IDS, "token_type_ids": pad_type}
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
