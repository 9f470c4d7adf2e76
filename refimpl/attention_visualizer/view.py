"""What the attention visualizer found: which query may look at which key, and if not, why."""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refimpl.cli.terminal import display_width
from refimpl.errors import InputError, quote
from refimpl.files import write_atomically

if TYPE_CHECKING:
    from refimpl.tokenizer.base import PreTrainedTokenizer

# In a sentence about a token.
_LONGEST_NAMED = 60

_SUFFIXES = (".svg", ".html", ".htm")


class Kind(IntEnum):
    """What a key is to a query."""

    VISIBLE = 0
    CACHED = 1
    WEIGHTED = 2
    LATER = 3
    PADDING = 4
    MASKED = 5


#: The legend.
MEANINGS = {
    Kind.VISIBLE: "visible",
    Kind.CACHED: "visible, in the cache",
    Kind.WEIGHTED: "visible, with a number added to its score",
    Kind.LATER: "hidden by the causal rule",
    Kind.PADDING: "hidden as padding",
    Kind.MASKED: "hidden by the mask that was given",
}

_SENTENCES = {
    Kind.VISIBLE: "{query} sees {key}",
    Kind.CACHED: "{query} sees {key}",
    Kind.WEIGHTED: "{query} sees {key}, {added:+.4g} added to the score",
    Kind.LATER: "{query} does not see {key}: it comes later",
    Kind.PADDING: "{query} does not see {key}: it is padding",
    Kind.MASKED: "{query} does not see {key}: the mask hides it",
}


@dataclass(frozen=True, eq=False, repr=False)
class AttentionMaskView:
    """The mask of one text or of several, as numbers, as text and as a picture.

    Keys 0 to past - 1 are tokens of a cache, of which only the number is known; key `past + i` is query `i`.
    """

    #: The model, and its type.
    name: str
    model_type: str
    #: [batch][q_seq]: as the tokenizer calls them, and what they stand for, made printable.
    tokens: list[list[str]]
    texts: list[list[str]]
    #: bool [batch, q_seq, kv_seq]: whether the query may look at the key.
    visible: np.ndarray
    #: bool [batch, kv_seq]
    padding: np.ndarray
    #: [batch, q_seq, kv_seq], added to the scores by a mask of four dimensions, which replaces the causal rule;
    #: None without one.
    bias: np.ndarray | None = None
    #: The number of keys in the cache.
    past: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(batch, q_seq, kv_seq)"""
        batch, q_seq, kv_seq = self.visible.shape
        return batch, q_seq, kv_seq

    def text(self, width: int | None = None, *, color: bool = False, encoding: str = "utf-8") -> str:
        """The mask as lines of at most `width` columns (default: those of the terminal, or 100).

        What does not fit is left out in the middle, and the last lines say so. `color`: with the escapes that
        terminals colour by. What `encoding` has no character for is written in ASCII.
        """
        from refimpl.attention_visualizer.text import render

        return render(self, width, color, encoding)

    def svg(self) -> str:
        """The mask as a picture, complete by itself; beyond 256 queries or keys the middle is left out."""
        from refimpl.attention_visualizer.svg import document

        return document(self)

    def html(self) -> str:
        """The same as a page, with a list of what every token sees; it needs no network and no script."""
        from refimpl.attention_visualizer.html import page

        return page(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `svg()` or `html()`, as the end of the name says.  Raises: InputError, SaveError"""
        return write_atomically(path, self.svg() if check_picture_name(path) == ".svg" else self.html())

    def _repr_svg_(self) -> str:
        return self.svg()

    def __repr__(self) -> str:
        batch, q_seq, kv_seq = self.shape
        return f"<AttentionMaskView of {self.name}: batch {batch}, {q_seq} queries, {kv_seq} keys>"

    # --- for those who draw it -----------------------------------------------------------------

    def kinds(self, item: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """`Kind` of each pair in text `item`: uint8 [rows, columns]"""
        cells = np.ix_(rows, columns)
        cached = columns < self.past
        seen = np.where(cached, Kind.CACHED, Kind.VISIBLE)
        if self.bias is None:
            hidden = np.where(self.padding[item, columns], Kind.PADDING, Kind.LATER)
        else:
            hidden = np.full(len(columns), Kind.MASKED)
        kinds = np.where(self.visible[item][cells], seen, hidden).astype(np.uint8)
        if self.bias is not None:
            kinds[(self.bias[item][cells] != 0) & self.visible[item][cells]] = Kind.WEIGHTED
        return kinds

    def added(self, item: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """What the mask adds to each score: [rows, columns]"""
        if self.bias is None:
            return np.zeros((len(rows), len(columns)))
        return self.bias[item][np.ix_(rows, columns)]

    def strengths(self, item: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """By how much that lowers a weight against the least lowered of its row: [rows, columns], 0 to 1"""
        if self.bias is None:
            return np.ones((len(rows), len(columns)))
        peak = self.bias[item][rows].max(axis=1, keepdims=True)
        with np.errstate(all="ignore"):
            return np.exp(self.added(item, rows, columns) - peak)

    def key_text(self, item: int, column: int) -> str:
        """What stands beside a column."""
        return f"[{column}]" if column < self.past else self.texts[item][column - self.past]

    def sentence(self, kind: int, item: int, row: int, column: int, added: float) -> str:
        """A cell in words: `'猫' sees '吾輩'`"""
        key = f"cached token {column}" if column < self.past else f"'{self.texts[item][column - self.past]}'"
        return _SENTENCES[Kind(kind)].format(query=f"'{self.texts[item][row]}'", key=key, added=added)

    def blind_rows(self, item: int) -> np.ndarray:
        """The queries to which a mask of four dimensions shows nothing: the softmax then weighs all keys alike."""
        if self.bias is None:
            return np.zeros(0, int)
        padded = self.padding[item, self.past :]
        return np.flatnonzero(~self.visible[item].any(axis=1) & ~padded)

    def blind_note(self, item: int) -> str | None:
        """A sentence about `blind_rows`, if there are any."""
        rows = self.blind_rows(item)
        if not len(rows):
            return None
        named = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        which = f"row {named} is" if len(rows) == 1 else f"rows {named} are"
        return f"All of {which} hidden: the model then looks at every key alike."


@dataclass(frozen=True)
class Selection:
    """Which of many rows or columns are drawn: all, or the first and the last ones."""

    indices: np.ndarray
    #: The position in `indices` before which others are left out; None: nothing is left out.
    gap: int | None
    count: int

    @classmethod
    def of(cls, count: int, room: int) -> Selection:
        """At most `room` of `count`, the place that says what is missing included."""
        if count <= room:
            return cls(np.arange(count), None, count)
        head = room // 2
        tail = max(room - 1 - head, 1)
        return cls(np.r_[0:head, count - tail : count], head, count)

    def note(self, what: str) -> str | None:
        """A few words about what is left out, if anything is."""
        if self.gap is None:
            return None
        tail = self.indices[self.gap]
        return f"{len(self.indices):,} of {self.count:,} {what} (0 to {self.gap - 1}, {tail} to {self.count - 1})"


def check_picture_name(path: str | os.PathLike[str]) -> str:
    """The end of the name of a picture.  Raises: InputError if it is not one of those that can be written"""
    if not isinstance(path, str | os.PathLike):
        raise InputError("not a path", where="save", found=quote(path))
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(
            "not a kind of picture", where=path, found=quote(suffix), allowed=", ".join(_SUFFIXES)
        )
    return suffix


def token_texts(tokenizer: PreTrainedTokenizer, ids: list[int]) -> list[str]:
    """What each id stands for, made printable; part of a character as its bytes: `\\xe7\\x8c`."""
    known = {index: _token_text(tokenizer.token_bytes(index)) for index in set(ids)}
    return [known[index] for index in ids]


def _token_text(data: bytes) -> str:
    try:
        return printable(data.decode("utf-8"))
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in data)


def printable(text: str) -> str:
    """`text` with everything escaped that does not show, turns the writing round or leans on what is before it."""
    escaped = "".join("\\\\" if c == "\\" else c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    if escaped and unicodedata.category(escaped[0]) in ("Mn", "Me", "Mc"):
        escaped = json.dumps(escaped[0])[1:-1] + escaped[1:]
    return escaped


def clipped(text: str, width: int, mark: str) -> str:
    """`text`, or its beginning with `mark`, in at most `width` columns."""
    if display_width(text) <= width and len(text) <= 4 * width:
        return text
    kept, room = "", width - display_width(mark)
    for character in text[: 4 * width]:
        room -= display_width(character)
        if room < 0:
            break
        kept += character
    return kept + mark
