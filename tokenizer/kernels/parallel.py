"""A large batch on several threads: the kernels run without Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from refimpl.errors import InputError, quote
from refimpl.tokenizer.encoding import TextEncoding

# A thread is worth starting for about a millisecond of work.
_CHARACTERS_PER_THREAD = 50_000

Encode = Callable[[Sequence[str]], list[TextEncoding]]


def encode_in_parallel(encode: Encode, texts: Sequence[str], threads: int | None) -> list[TextEncoding]:
    """`encode(texts)`, done in parts by at most `threads` threads (None: one for every processor)."""
    wanted = processors() if threads is None else threads
    characters = sum(map(len, texts))
    count = min(wanted, characters // _CHARACTERS_PER_THREAD, len(texts))
    if count < 2:
        return encode(texts)
    from concurrent.futures import ThreadPoolExecutor

    parts = _equal_parts(texts, characters, count)
    with ThreadPoolExecutor(count) as pool:
        return [encoding for part in pool.map(encode, parts) for encoding in part]


def check_threads(threads: int | None) -> int | None:
    """`threads` when it is a number of threads, or None. Raises: InputError."""
    if threads is not None and (type(threads) is not int or threads < 1):
        raise InputError("threads is wrong", found=quote(threads), allowed="an int from 1, or None")
    return threads


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _equal_parts(texts: Sequence[str], characters: int, count: int) -> list[Sequence[str]]:
    """The texts in `count` parts, in order, each with about the same number of characters."""
    parts: list[Sequence[str]] = []
    start = seen = 0
    for index, text in enumerate(texts):
        seen += len(text)
        if seen * count >= characters * (len(parts) + 1):
            parts.append(texts[start : index + 1])
            start = index + 1
    return [*parts, texts[start:]] if start < len(texts) else parts
