"""What encoding one text gives, before rows are truncated, joined and padded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """The ids of one text; on request, where each stands in the text and to which word it belongs.

    `offsets` are `(start, end)` in characters (code points) of the text that was given, end exclusive.
    `words` number the pieces into which the tokenizer cuts a text before it looks at its vocabulary, from 0;
    a token never belongs to two.  Either is None where nobody asked for it; all lists have one length.
    """

    ids: list[int]
    offsets: list[tuple[int, int]] | None = None
    words: list[int] | None = None
