"""An attention mask as an SVG picture that is complete by itself: no script, no other file.

Everything that comes from a text, a vocabulary or a name goes through `_e`.  Colours are classes, written out for
light and for dark: many readers of SVG know no variables.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refimpl.attention_visualizer.view import MEANINGS, Kind, Selection, clipped
from refimpl.cli.terminal import display_width

if TYPE_CHECKING:
    from refimpl.attention_visualizer.view import AttentionMaskView

#: Along each side. What is left out beyond it the picture says.
MOST_TOKENS = 256
#: Texts, and cells of all texts together; texts that would go beyond it are left out.
MOST_TEXTS = 64
MOST_CELLS = 1 << 18
#: Up to so many every cell can be pointed at; in larger pictures neighbours of one kind are one.
MOST_SINGLE_CELLS = 20_000

_CELL = 18
_MARGIN = 12
_LINE = 18
# What a half-width character takes at 12 pixels; a little more than in most fonts of fixed width.
_LETTER = 7.4
_LONGEST_LABEL = 18
_LONGEST_TITLE = 200
_LONGEST_NAME = 60
_SLANT = 45

_CLASSES = {
    Kind.VISIBLE: "am-v",
    Kind.CACHED: "am-c",
    Kind.WEIGHTED: "am-v",
    Kind.LATER: "am-l",
    Kind.PADDING: "am-p",
    Kind.MASKED: "am-x",
}

# Seen is dark and hidden is pale (the other way round on a dark page): also without colours.
STYLE = (
    ".am-page{fill:#fbfbfa}.am-t{fill:#1d2328;font-size:12px;white-space:pre;font-family:ui-monospace,"
    '"SF Mono",Menlo,Consolas,"DejaVu Sans Mono","Noto Sans Mono CJK JP","Noto Sans JP",monospace}'
    ".am-h{font-weight:bold}.am-s{fill:#5b6670}.am-f{fill-opacity:.5}"
    ".am-v{fill:#17805a}.am-c{fill:#2463b4}.am-l{fill:#e4e8eb}.am-p{fill:#f2d58c}.am-x{fill:#f2beb6}"
    ".am-g{stroke:#fbfbfa;stroke-width:1;fill:none;pointer-events:none}"
    "rect:hover{stroke:#1d2328;stroke-width:1.5}.am-page:hover{stroke:none}"
    "@media (prefers-color-scheme:dark){.am-page{fill:#14181b}.am-t{fill:#e6e9ec}.am-s{fill:#9aa6b1}"
    ".am-v{fill:#45c48f}.am-c{fill:#6fabf2}.am-l{fill:#262d33}.am-p{fill:#61501c}.am-x{fill:#642f2a}"
    ".am-g{stroke:#14181b}rect:hover{stroke:#e6e9ec}}"
)


@dataclass(frozen=True)
class Plan:
    """What of a mask is drawn, and how finely."""

    rows: Selection
    columns: Selection
    texts: int
    is_single: bool

    @classmethod
    def of(cls, view: AttentionMaskView) -> Plan:
        batch, q_seq, kv_seq = view.shape
        rows, columns = Selection.of(q_seq, MOST_TOKENS), Selection.of(kv_seq, MOST_TOKENS)
        cells = len(rows.indices) * len(columns.indices)
        texts = min(batch, max(MOST_CELLS // cells, 1), MOST_TEXTS)
        return cls(rows, columns, texts, texts * cells <= MOST_SINGLE_CELLS)

    def notes(self, batch: int) -> list[str]:
        """What is left out, in words."""
        parts = [part for part in (self.columns.note("keys"), self.rows.note("queries")) if part]
        if self.texts < batch:
            parts.append(f"{self.texts:,} of {batch:,} texts")
        return [f"Shown are {part}." for part in parts]


@dataclass(frozen=True)
class Drawing:
    """Elements, and how much room they take."""

    elements: list[str]
    width: float
    height: float


def document(view: AttentionMaskView) -> str:
    """The picture, to be written in UTF-8."""
    plan = Plan.of(view)
    batch = view.shape[0]
    drawings = [grid(view, plan, item) for item in range(plan.texts)]
    title = f"Attention mask of {clipped(view.name, _LONGEST_NAME, '…')} ({view.model_type})"
    lines = [*plan.notes(batch)]
    body = [_text(title, _MARGIN, _MARGIN + 12, "am-h")]
    y = _MARGIN + _LINE + 6.0
    width = display_width(title) * _LETTER * 1.08
    for item, drawing in enumerate(drawings):
        note = view.blind_note(item)
        heads = ([f"Text {item + 1} of {batch}"] if batch > 1 else []) + ([note] if note else [])
        for head in heads:
            y += _LINE
            body.append(_text(head, _MARGIN, y))
            width = max(width, display_width(head) * _LETTER)
        body.append(f'<g transform="translate({_MARGIN} {y:g})">')
        body += drawing.elements
        body.append("</g>")
        y += drawing.height + _LINE
        width = max(width, drawing.width)
    for kind in kinds_of(view, plan):
        body.append(swatch(kind, _MARGIN, y))
        body.append(_text(MEANINGS[kind], _MARGIN + 20, y + 11))
        width = max(width, 20 + len(MEANINGS[kind]) * _LETTER)
        y += _LINE + 4
    for line in lines:
        y += _LINE
        body.append(_text(line, _MARGIN, y, "am-s"))
        width = max(width, len(line) * _LETTER)
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            opening(width + 2 * _MARGIN, y + _MARGIN, title, view),
            f"<style>{STYLE}</style>",
            '<rect class="am-page" width="100%" height="100%"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def opening(width: float, height: float, title: str, view: AttentionMaskView) -> str:
    """The first tag of a picture."""
    wide, high = math.ceil(width), math.ceil(height)
    # Han characters look different in Japanese.
    language = ' xml:lang="ja" lang="ja"' if "japanese" in view.model_type else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" '
        f'role="img" aria-label="{_e(title)}"{language}>'
    )


def swatch(kind: Kind, x: float, y: float) -> str:
    """A square of the legend."""
    faded = ' fill-opacity="0.5"' if kind == Kind.WEIGHTED else ""
    return f'<rect x="{x:g}" y="{y:g}" width="14" height="14" class="{_CLASSES[kind]}"{faded}/>'


def kinds_of(view: AttentionMaskView, plan: Plan) -> list[Kind]:
    """The kinds that a picture shows."""
    rows, columns = plan.rows.indices, plan.columns.indices
    found = {
        kind for item in range(plan.texts) for kind in np.unique(view.kinds(item, rows, columns)).tolist()
    }
    return [Kind(kind) for kind in sorted(found)]


def grid(view: AttentionMaskView, plan: Plan, item: int) -> Drawing:
    """The cells of one text, with the tokens on both sides; its upper left corner is at 0, 0."""
    rows, columns = plan.rows, plan.columns
    queries = [_label(view.texts[item][row]) for row in rows.indices.tolist()]
    keys = [_label(view.key_text(item, column)) for column in columns.indices.tolist()]
    digits = len(str(int(rows.indices[-1]))) * _LETTER
    left = digits + max(map(display_width, queries)) * _LETTER + 14
    slanted = max(map(display_width, keys)) * _LETTER * math.sin(math.radians(_SLANT))
    top = slanted + 16
    across, down = _positions(columns, left), _positions(rows, top)
    elements = list(_labels(view, plan, item, (queries, keys), (left, top, digits), (across, down)))
    elements += _cells(view, plan, item, across, down)
    elements.append(_lines(across, down))
    right, bottom = across[-1] + _CELL, down[-1] + _CELL
    for gap, mark, place in (
        (columns.gap, "⋯", lambda at: (across[at] - _CELL / 2, top - 6)),
        (rows.gap, "⋮", lambda at: (left - 10, down[at] - 5)),
    ):
        if gap is not None:
            elements.append(_text(mark, *place(gap), "am-s", 'text-anchor="middle"'))
    return Drawing(elements, right + slanted + 8, bottom + 4)


def _positions(selection: Selection, start: float) -> list[float]:
    """Where each row or column begins; a place stays empty where others are left out."""
    gap = len(selection.indices) if selection.gap is None else selection.gap
    return [start + (place + (place >= gap)) * _CELL for place in range(len(selection.indices))]


def _labels(
    view: AttentionMaskView,
    plan: Plan,
    item: int,
    shown: tuple[list[str], list[str]],
    corner: tuple[float, float, float],
    places: tuple[list[float], list[float]],
) -> Iterator[str]:
    """The tokens: queries on the left with their numbers, keys slanted above."""
    (queries, keys), (left, top, digits), (across, down) = shown, corner, places
    padding = view.padding[item]
    for row, label, y in zip(plan.rows.indices.tolist(), queries, down, strict=True):
        faded = "am-f" if padding[view.past + row] else ""
        full = _full(view.texts[item][row], label)
        yield _text(str(row), digits, y + 13, f"am-s {faded}".strip(), 'text-anchor="end"')
        yield _text(label, left - 6, y + 13, faded, 'text-anchor="end"', full)
    for column, label, x in zip(plan.columns.indices.tolist(), keys, across, strict=True):
        classes = " ".join(["am-s"] * (column < view.past) + ["am-f"] * bool(padding[column]))
        full = _full(view.key_text(item, column), label)
        turned = f'transform="rotate(-{_SLANT} {x + 12:g} {top - 5:g})"'
        yield _text(label, x + 12, top - 5, classes, turned, full)


def _cells(
    view: AttentionMaskView, plan: Plan, item: int, across: list[float], down: list[float]
) -> Iterator[str]:
    """The cells as rectangles, each with a sentence for whoever points at it."""
    rows, columns = plan.rows.indices, plan.columns.indices
    kinds, added = view.kinds(item, rows, columns), view.added(item, rows, columns)
    strengths = view.strengths(item, rows, columns)
    numbers = columns.tolist()
    for place, (row, y) in enumerate(zip(rows.tolist(), down, strict=True)):
        starts = _starts(kinds[place], added[place], plan)
        ends = [*starts[1:], len(numbers)]
        for start, end in zip(starts, ends, strict=True):
            kind, number = int(kinds[place, start]), float(added[place, start])
            faded = ""
            if kind == Kind.WEIGHTED:
                faded = f' fill-opacity="{0.2 + 0.8 * float(strengths[place, start]):.2f}"'
            sentence = view.sentence(kind, item, row, numbers[start], number)
            if end - start > 1:
                sentence += f" (and {end - start - 1} more, to column {numbers[end - 1]})"
            width = across[end - 1] + _CELL - across[start]
            yield (
                f'<rect x="{across[start]:g}" y="{y:g}" width="{width:g}" height="{_CELL}" '
                f'class="{_CLASSES[Kind(kind)]}"{faded}><title>{_e(sentence)}</title></rect>'
            )


def _starts(kinds: np.ndarray, added: np.ndarray, plan: Plan) -> list[int]:
    """Where rectangles begin in a row: at every cell, or where something changes."""
    if plan.is_single:
        return list(range(len(kinds)))
    seen = np.where(kinds == Kind.WEIGHTED, added, 0)
    is_new = np.r_[True, (kinds[1:] != kinds[:-1]) | (seen[1:] != seen[:-1])]
    if plan.columns.gap is not None:
        is_new[plan.columns.gap] = True
    return np.flatnonzero(is_new).tolist()


def _lines(across: list[float], down: list[float]) -> str:
    """Lines in the colour of the page, which keep the cells apart."""
    left, top = across[0], down[0]
    wide, high = across[-1] + _CELL - left, down[-1] + _CELL - top
    upright = "".join(f"M{x:g} {top:g}v{high:g}" for x in across[1:])
    level = "".join(f"M{left:g} {y:g}h{wide:g}" for y in down[1:])
    return f'<path class="am-g" d="M{left:g} {top:g}{upright}{level}"/>'


def _label(text: str) -> str:
    return clipped(text, _LONGEST_LABEL, "…").replace(" ", "␣")


def _full(text: str, label: str) -> str:
    """What a cut label shows to whoever points at it."""
    return clipped(text, _LONGEST_TITLE, "…") if label.endswith("…") else ""


def _text(text: str, x: float, y: float, classes: str = "", attributes: str = "", full: str = "") -> str:
    title = f"<title>{_e(full)}</title>" if full else ""
    names = f"am-t {classes}".strip()
    return (
        f'<text x="{round(x, 1):g}" y="{round(y, 1):g}" class="{names}"{" " * bool(attributes)}{attributes}>'
        f"{title}{_e(text)}</text>"
    )


def _e(text: str) -> str:
    return html.escape(text, quote=True)
