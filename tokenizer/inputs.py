"""What a call of a tokenizer is about: the forms in which texts, pairs of texts and many of them are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refimpl.errors import InputError, quote

Inputs = tuple[list[tuple[Any, Any]], bool]


def pairs(text: Any, text_pair: Any, is_split_into_words: bool) -> Inputs:
    """What a call is about, as (text, second text or None) for each row, and whether it was a single one.

    Several texts are a list of str, of lists of ids, of pairs, or of lists of words.  A row may itself be a pair
    of texts; of texts that are split into words only a tuple is a pair, a list is the words of one text.
    Raises: InputError.
    """
    if not _is_batch(text, is_split_into_words):
        return [(text, text_pair)], True
    if text_pair is not None:
        return list(zip(text, _as_many(text_pair, text), strict=True)), False
    return [_pair(row, is_split_into_words) for row in text], False


def _is_batch(text: Any, is_split_into_words: bool) -> bool:
    if not isinstance(text, list | tuple):
        return False
    if not text:
        return not is_split_into_words
    return isinstance(text[0], list | tuple) or (isinstance(text[0], str) and not is_split_into_words)


def _as_many(text_pair: Any, text: Sequence[Any]) -> Sequence[Any]:
    if not isinstance(text_pair, list | tuple) or len(text_pair) != len(text):
        raise InputError("text_pair is not a batch of the size of text", found=quote(text_pair))
    return text_pair


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


def pairs_of_str(text: Any, text_pair: Any, is_split_into_words: bool) -> Inputs:
    """`pairs` as tokenizers over the `tokenizers` package have it: every text is a str, or a list of words.

    An empty second text is none beside a single text, but counts in a batch.
    Raises: InputError.
    """
    is_batch = isinstance(text, list | tuple) and (
        not is_split_into_words or (len(text) > 0 and isinstance(text[0], list | tuple))
    )
    if not is_batch:
        rows = [(text, text_pair or None)]
    elif text_pair is not None:
        rows = list(zip(text, _as_many(text_pair, text), strict=True))
    else:
        rows = [
            (row[0], row[1])
            if isinstance(row, list | tuple) and len(row) == 2 and not _is_text(row, is_split_into_words)
            else (row, None)
            for row in text
        ]
    for one, other in rows:
        missing = other is None and (not is_batch or text_pair is None)
        if not _is_text(one, is_split_into_words) or not (missing or _is_text(other, is_split_into_words)):
            raise InputError(
                "the text cannot be read",
                found=quote(one if missing else (one, other)),
                allowed="a list of str" if is_split_into_words else "str, a pair of str, or a list of these",
            )
    return rows, not is_batch


def _is_text(text: Any, is_split_into_words: bool) -> bool:
    if is_split_into_words:
        return isinstance(text, list | tuple) and all(isinstance(word, str) for word in text)
    return isinstance(text, str)
