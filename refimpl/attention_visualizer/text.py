"""An attention mask as lines of text: a grid with tokens above and beside it, in colours on request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from refimpl.attention_visualizer.view import MEANINGS, Kind, Selection, clipped
from refimpl.cli.terminal import display_width

if TYPE_CHECKING:
    from refimpl.attention_visualizer.view import AttentionMaskView

MOST_TEXTS = 8
MOST_ROWS = 48

_WIDTH_OF_A_PIPE = 100
_FEWEST_COLUMNS = 4
_LONGEST_LABEL = 14
_HIGHEST_HEADER = 8

#: The sign and the colour of each kind. No sign may be wider on a Japanese terminal than elsewhere.
_SIGNS = {
    Kind.VISIBLE: ("◼", "32"),
    Kind.CACHED: ("c", "36"),
    Kind.WEIGHTED: ("0-9", "32"),
    Kind.LATER: (".", "2"),
    Kind.PADDING: ("p", "33"),
    Kind.MASKED: ("x", "31"),
}
#: Signs of an encoding that lacks the first.
_ASCII = {"◼": "#", "⋯": "~", "⋮": ":", "␣": "_"}


def render(view: AttentionMaskView, width: int | None, color: bool, encoding: str) -> str:
    """What `AttentionMaskView.text` returns."""
    return _Writer(view, width, color, encoding).report()


class _Writer:
    def __init__(self, view: AttentionMaskView, width: int | None, color: bool, encoding: str):
        self.view = view
        self.width = width or shutil.get_terminal_size((_WIDTH_OF_A_PIPE, 0)).columns
        self.color = color
        self.encoding = encoding
        self.is_rich = all(map(self._fits, _ASCII))

    def report(self) -> str:
        view = self.view
        batch, q_seq, kv_seq = view.shape
        shown = min(batch, MOST_TEXTS)
        room = max(self.width // 3, 4)
        labels = [
            [self._label(text, min(room, _LONGEST_LABEL)) for text in row] for row in view.texts[:shown]
        ]
        left = len(str(q_seq - 1)) + 1 + max(display_width(label) for row in labels for label in row) + 1
        rows = Selection.of(q_seq, MOST_ROWS)
        columns = Selection.of(kv_seq, max((self.width - left) // 2, _FEWEST_COLUMNS))

        name = self._encodable(view.name)
        lines = [
            f"Attention mask of {clipped(name, max(self.width - 40, 8), self._sign('⋯'))} ({view.model_type})"
        ]
        lines.append("Each row is a token that looks, each column one that it may look at.")
        kinds_seen: set[int] = set()
        for item in range(shown):
            lines += ["", f"Text {item + 1} of {batch}"] if batch > 1 else [""]
            kinds = view.kinds(item, rows.indices, columns.indices)
            kinds_seen.update(np.unique(kinds).tolist())
            lines += self._header(item, columns, left)
            lines += self._rows(item, rows, columns, kinds, labels[item], left)
            note = view.blind_note(item)
            lines += [note] if note else []
        lines += ["", *self._legend(sorted(kinds_seen)), *self._notes(rows, columns, batch, shown)]
        return "\n".join(lines) + "\n"

    # --- the grid ------------------------------------------------------------------------------

    def _header(self, item: int, columns: Selection, left: int) -> Iterator[str]:
        """The keys, each written downwards above its column; Japanese fills the two places of a column."""
        stacks = [self._stack(self.view.key_text(item, column)) for column in columns.indices.tolist()]
        height = max(map(len, stacks))
        faded = self.view.padding[item, columns.indices].tolist()
        for level in range(height):
            cells = []
            for stack, is_faded in zip(stacks, faded, strict=True):
                place = level - (height - len(stack))
                unit = stack[place] if place >= 0 else ""
                shown = self._painted(unit, "2") if is_faded and unit else unit
                cells.append(shown + " " * (2 - display_width(unit)))
            if columns.gap is not None:
                cells.insert(columns.gap, "  ")
            yield (" " * left + "".join(cells)).rstrip()

    def _rows(
        self,
        item: int,
        rows: Selection,
        columns: Selection,
        kinds: np.ndarray,
        labels: Sequence[str],
        left: int,
    ) -> Iterator[str]:
        view = self.view
        digits = len(str(view.shape[1] - 1))
        # What the sign of a weighted key is depends on the strength; all others are known.
        strengths = (view.strengths(item, rows.indices, columns.indices) * 10).astype(int).clip(0, 9)
        for place, row in enumerate(rows.indices.tolist()):
            if place == rows.gap:
                yield " " * digits + " " + self._sign("⋮")
            label = labels[row]
            label += " " * (left - digits - 2 - display_width(label))
            if view.padding[item, view.past + row]:
                label = self._painted(label, "2")
            tenths = strengths[place].tolist()
            cells = self._cells(kinds[place].tolist(), tenths, columns.gap)
            yield f"{row:>{digits}} {label} {cells}"

    def _cells(self, kinds: list[int], tenths: list[int], gap: int | None) -> str:
        """A row of the grid; neighbours of one colour share the escapes."""
        pieces: list[tuple[str, str]] = []
        for column, (kind, tenth) in enumerate(zip(kinds, tenths, strict=True)):
            if column == gap:
                pieces.append(("", self._sign("⋯") + " "))
            sign, colour = _SIGNS[Kind(kind)]
            shown = (str(tenth) if kind == Kind.WEIGHTED else self._sign(sign)) + " "
            if pieces and pieces[-1][0] == colour:
                shown = pieces.pop()[1] + shown
            pieces.append((colour, shown))
        colour, last = pieces.pop()
        return "".join(self._painted(text, c) for c, text in [*pieces, (colour, last.rstrip())])

    # --- below it ------------------------------------------------------------------------------

    def _legend(self, kinds: list[int]) -> list[str]:
        """The kinds that appear, as many in a line as fit."""
        lines: list[str] = []
        used = 0
        for kind in map(Kind, kinds):
            sign, colour = _SIGNS[kind]
            sign = self._sign(sign)
            length = len(sign) + 1 + len(MEANINGS[kind])
            entry = f"{self._painted(sign, colour)} {MEANINGS[kind]}"
            if lines and used + 3 + length <= self.width:
                lines[-1] += "   " + entry
                used += 3 + length
            else:
                lines.append(entry)
                used = length
        if Kind.WEIGHTED in kinds:
            lines.append("0-9: tenths of e to the number that is added, against the largest of the row")
        return lines

    def _notes(self, rows: Selection, columns: Selection, batch: int, shown: int) -> list[str]:
        parts = [part for part in (columns.note("keys"), rows.note("queries")) if part]
        if shown < batch:
            parts.append(f"{shown} of {batch:,} texts")
        if not parts:
            return []
        return [f"Shown are {part}." for part in parts] + ['More is in a picture: save="mask.html".']

    # --- characters ----------------------------------------------------------------------------

    def _stack(self, text: str) -> list[str]:
        """A label as what stands in one place each: a character with the marks that combine with it."""
        units: list[str] = []
        for character in self._spaces(self._encodable(text[: 4 * _HIGHEST_HEADER])):
            if units and not display_width(character):
                units[-1] += character
            else:
                units.append(character)
        if len(units) > _HIGHEST_HEADER or len(text) > 4 * _HIGHEST_HEADER:
            units = [*units[: _HIGHEST_HEADER - 1], self._sign("⋮")]
        return units

    def _label(self, text: str, width: int) -> str:
        return self._spaces(clipped(self._encodable(text[: 4 * width + 1]), width, self._sign("⋯")))

    def _spaces(self, text: str) -> str:
        return text.replace(" ", self._sign("␣"))

    def _sign(self, sign: str) -> str:
        return sign if self.is_rich else _ASCII.get(sign, sign)

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self.color and colour else text

    def _fits(self, character: str) -> bool:
        try:
            character.encode(self.encoding)
        except (UnicodeError, LookupError):
            return False
        return True

    def _encodable(self, text: str) -> str:
        if self._fits(text):
            return text
        return "".join(c if self._fits(c) else json.dumps(c)[1:-1] for c in text)
