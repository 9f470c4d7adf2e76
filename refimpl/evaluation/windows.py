"""Which tokens of a long text a model reads together, and which of them are scored."""

from __future__ import annotations

from typing import NamedTuple

from refimpl.errors import InputError


class Window(NamedTuple):
    """Tokens `start` to `end` (exclusive) of the text are read together; those from `first` on are scored."""

    start: int
    end: int
    first: int

    @property
    def scored(self) -> int:
        return self.end - self.first


def chunk_windows(count: int, context: int) -> list[Window]:
    """llama.cpp's way: the text in pieces that do not overlap, of which the second half is scored.

    Of each piece of `context` tokens, numbered from 0, those from `context // 2 + 1` on are scored: each has seen at
    least half a piece.  What is left at the end of the text is not read.

    Raises: InputError for a text of less than one piece.
    Source: llama.cpp, tools/perplexity/README.md
    """
    if context < 3:
        raise InputError(
            "too short to score anything", where="context", found=str(context), allowed="3 or more"
        )
    if count < context:
        raise InputError(
            "the text is shorter than one piece",
            found=f"{count} tokens",
            allowed=f"{context} or more",
            hint="Make the context shorter, or let windows slide over the text by giving a stride.",
        )
    starts = range(0, count - context + 1, context)
    return [Window(start, start + context, start + context // 2 + 1) for start in starts]


def sliding_windows(count: int, context: int, stride: int) -> list[Window]:
    """transformers' way: a window of `context` tokens moves on by `stride`, and scores what is new in it.

    Every token is scored once, but for those that begin a window and have nothing before them: the first of the text,
    and with a stride of the whole context the first of each window.

    Raises: InputError for a stride that would leave tokens out, or a text of less than two tokens.
    Source: https://huggingface.co/docs/transformers/v5.5.3/en/perplexity
    """
    if context < 2:
        raise InputError(
            "too short to score anything", where="context", found=str(context), allowed="2 or more"
        )
    if not 1 <= stride <= context:
        allowed = f"1 to the context, {context}"
        raise InputError("no possible step", where="stride", found=str(stride), allowed=allowed)
    if count < 2:
        raise InputError("the text is too short", found=f"{count} tokens", allowed="2 or more")
    windows, read = [], 0
    for start in range(0, count, stride):
        end = min(start + context, count)
        window = Window(start, end, max(read, start + 1))
        if window.scored:
            windows.append(window)
        read = end
        if end == count:
            break
    return windows
