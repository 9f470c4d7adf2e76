"""From encoded texts to rows: truncation and padding, in the two ways in which tokenizers do it.

transformers has two families of tokenizers, and models come with either.  Those in Python (the Japanese one)
return what truncation cuts off as a list of ids beside the row; those over the `tokenizers` package make further
rows of it, `stride` tokens of each standing in the next one too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from refimpl.errors import InputError, ResourceLimitError
from refimpl.tokenizer.encoding import Encoding, TextEncoding
from refimpl.tokenizer.options import Options

# One text (or pair) becomes at most this many rows.
MAX_ROWS = 1_000_000

# One call adds at most this many ids of padding: half a gigabyte of list.
MAX_PADDING = 1 << 26

Pair = tuple[TextEncoding, TextEncoding | None]


class Cut(NamedTuple):
    """What truncation makes of a text or a pair: the rows, and with one row the ids that it lost."""

    rows: list[Pair]
    lost: list[int] = []  # noqa: RUF012  (never changed)
    excess: int = 0


# ---- one row, and what was cut off beside it


def shorten(first: TextEncoding, second: TextEncoding | None, special: int, options: Options) -> Cut:
    """One row that is, with `special` more ids, at most `max_length` long.

    The ids cut off come with `stride` more of those before them.  Of a pair, `longest_first` shortens the
    longer text down to the other, then both in turn; what it cuts off is not returned.
    Raises: InputError when just that is asked for.
    """
    if (
        "overflowing_tokens" in options.returned
        and options.truncation == "longest_first"
        and second is not None
    ):
        raise InputError(
            'truncation="longest_first" of a pair returns no overflowing tokens',
            allowed='truncation="only_first" or "only_second"',
        )
    excess = (
        len(first.ids) + (len(second.ids) if second is not None else 0) + special - (options.max_length or 0)
    )
    if options.truncation == "do_not_truncate" or not options.max_length or excess <= 0:
        return Cut([(first, second)])
    return Cut(*remove(first, second, excess, options), excess)


def remove(
    first: TextEncoding, second: TextEncoding | None, count: int, options: Options
) -> tuple[list[Pair], list[int]]:
    """The text or pair without `count` of its ids, and the ids cut off."""
    if options.truncation == "longest_first" and second is not None:
        from_first, from_second = _share_out(len(first.ids), len(second.ids), count)
        return [(_without(first, from_first, options), _without(second, from_second, options))], []
    if options.truncation in ("only_first", "longest_first"):
        return [(_without(first, count, options), second)], _lost(first, count, options)
    if second is not None and second.ids:
        return [(first, _without(second, count, options))], _lost(second, count, options)
    return [(first, second)], []


def _share_out(first: int, second: int, excess: int) -> tuple[int, int]:
    """How much of `excess` each text of a pair loses; the longer one (or the second) loses the odd id."""
    level = min(abs(first - second), excess)
    half = (excess - level) // 2
    rest = excess - level - half
    return (level + half, rest) if first > second else (half, level + rest)


def _without(text: TextEncoding, count: int, options: Options) -> TextEncoding:
    length = len(text.ids)
    if options.truncation_side == "left":
        return text.part(min(count, length), length)
    return text.part(0, max(length - count, 0))


def _lost(text: TextEncoding, count: int, options: Options) -> list[int]:
    window = min(len(text.ids), count + options.stride)
    return text.ids[:window] if options.truncation_side == "left" else text.ids[len(text.ids) - window :]


# ---- further rows


def check_stride(special: int, options: Options) -> None:
    """Raises: InputError when `stride` leaves no room in rows of `max_length` with `special` ids around a text."""
    room = (options.max_length or 0) - special
    if options.truncation != "do_not_truncate" and 0 <= room < options.stride:
        raise _stride_error(options.stride, room)


def _stride_error(stride: int, room: int) -> InputError:
    return InputError(
        "the stride leaves no room for new tokens",
        found=f"stride {stride}",
        allowed=f"less than the {room} tokens of a row that are not special",
    )


def cut_into_rows(first: TextEncoding, second: TextEncoding | None, special: int, options: Options) -> Cut:
    """As many rows as it takes, each with `special` more ids at most `max_length` long.

    A `max_length` that has no room even for the special ids does not truncate; one that has room for nothing
    else gives an empty row, and all the text as the next row.  The rows of a pair are all combinations: the
    first parts of both, each further part of the first text with every part of the second, and the first part
    of the first text with each further part of the second.
    Raises: InputError (no second text to cut, a text too short to make up for the other, a stride too long),
        ResourceLimitError.
    """
    room = (options.max_length or 0) - special
    lengths = len(first.ids), len(second.ids) if second is not None else 0
    if options.truncation == "do_not_truncate" or room < 0 or (room and sum(lengths) <= room):
        return Cut([(first, second)])
    sizes = _sizes(*lengths, room, second is not None, options.truncation)
    every = "overflowing_tokens" in options.returned
    firsts = _windows(first, sizes[0], every, options)
    if second is None:
        return Cut([(part, None) for part in firsts])
    seconds = _windows(second, sizes[1], every, options)
    if len(firsts) * len(seconds) > MAX_ROWS:
        raise ResourceLimitError(
            "a pair would become too many rows", found=len(firsts) * len(seconds), allowed=MAX_ROWS
        )
    return Cut(
        [
            (firsts[0], seconds[0]),
            *((part, other) for part in firsts[1:] for other in seconds),
            *((firsts[0], other) for other in seconds[1:]),
        ]
    )


def _sizes(first: int, second: int, room: int, is_pair: bool, truncation: str) -> tuple[int, int]:
    """How many tokens of each text a row has."""
    if room == 0:
        return 0, 0
    if truncation == "longest_first":
        if not is_pair:
            return room, 0
        shorter, longer = sorted((first, second))
        longer = shorter if shorter > room else max(shorter, room - shorter)
        if shorter + longer > room:
            shorter, longer = room // 2, room - room // 2
        return (longer, shorter) if first > second else (shorter, longer)
    if truncation == "only_second" and not is_pair:
        raise InputError('truncation="only_second" needs a second text')
    cut, kept = (first, second) if truncation == "only_first" else (second, first)
    if cut <= first + second - room:
        raise InputError(
            f'truncation="{truncation}" cannot make the row short enough',
            found=f"{kept} tokens of the other text",
            allowed=f"at most {room - 1}",
            hint='truncation="longest_first" shortens both.',
        )
    return (room - second, second) if truncation == "only_first" else (first, room - first)


def _windows(text: TextEncoding, size: int, every: bool, options: Options) -> list[TextEncoding]:
    """Parts of `size` tokens, from the side that truncation keeps; only the first unless `every` is wanted."""
    length = len(text.ids)
    if size >= length:
        return [text]
    if size == 0:
        return [text.part(0, 0), text] if every else [text.part(0, 0)]
    step = size - options.stride
    if step <= 0:
        raise _stride_error(options.stride, size)
    count = -(-(length - size) // step) + 1 if every else 1
    if count > MAX_ROWS:
        raise ResourceLimitError("a text would become too many rows", found=count, allowed=MAX_ROWS)
    starts = [number * step for number in range(count)]
    if options.truncation_side == "left":
        return [text.part(max(length - start - size, 0), length - start) for start in starts]
    return [text.part(start, min(start + size, length)) for start in starts]


# ---- rows to one length


def pad_rows(rows: list[Encoding], main: list[Encoding], pad_id: int | None, options: Options) -> None:
    """Pads `rows` to `max_length`, or to the longest of `main` (those that are not made of what was cut off).

    Raises: InputError without a token to pad with; ResourceLimitError.
    """
    if options.padding == "do_not_pad":
        return
    check_pad_id(pad_id, options)
    length = padded_length([len(row) for row in main], len(rows), options)
    for row in rows:
        row.pad(length, options.padding_side, pad_id or 0)


def check_pad_id(pad_id: int | None, options: Options) -> None:
    """Raises: InputError when there is something to pad and no token to pad with."""
    if options.padding != "do_not_pad" and pad_id is None:
        raise InputError(
            "there is no token to pad with", hint="Set one: tokenizer.pad_token = tokenizer.eos_token"
        )


def padded_length(lengths: Sequence[int], rows: int, options: Options) -> int:
    """The length to which the rows of a batch are padded (rows that are longer stay as they are).

    Raises: ResourceLimitError when that would take more than MAX_PADDING ids in all `rows`.
    """
    if options.padding == "do_not_pad":
        return 0
    length = options.max_length if options.padding == "max_length" else max(lengths, default=0)
    multiple = options.pad_to_multiple_of or 1
    length = -(-(length or 0) // multiple) * multiple
    if rows * (length - max(lengths, default=0)) > MAX_PADDING:
        raise ResourceLimitError(
            "padding would add too many ids",
            found=f"{rows} rows of {length}",
            allowed=f"{MAX_PADDING} ids of padding",
            hint="Is max_length (or the tokenizer's model_max_length) what you meant?",
        )
    return length
