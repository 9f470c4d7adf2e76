"""The plots of a comparison as SVG: error by step, by position and by head.  Colours come from the page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator

from refimpl.conformance import steps
from refimpl.conformance.compare import Comparison, Step

_WIDTH, _HEIGHT = 960, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 40
#: Where the scale of errors ends; an error of 0 is drawn at the lower end.
_LEAST, _MOST = -17, 2
#: Cells of a heat map beyond which only every n-th is drawn.
_MOST_CELLS = 160


def by_step(made: Comparison) -> str:
    """A line of B's error, one of our own float32 run's, and one of what is allowed, over the steps in order."""
    known = [step for step in made.steps if step.error is not None]
    if not known:
        return ""
    parts = [_axes(known)]
    for css, label, values in (
        ("allowed", "allowed", [step.limit for step in known]),
        ("own", "our float32", [step.own for step in known]),
        ("found", "B", [step.error for step in known]),
    ):
        points = [
            f"{_x(index, len(known)):.1f},{_y(value):.1f}"
            for index, value in enumerate(values)
            if value is not None
        ]
        if points:
            parts.append(
                f'<polyline class="{css}" points="{" ".join(points)}"><title>{label}</title></polyline>'
            )
    for index, step in enumerate(known):
        css = "dot" if step.is_fine else "dot bad"
        parts.append(
            f'<circle class="{css}" cx="{_x(index, len(known)):.1f}" cy="{_y(step.error):.1f}" r="3">'
            f"<title>{_e(step.name)}: {step.error:.2e} ({step.verdict})</title></circle>"
        )
    return _svg(_WIDTH, _HEIGHT, "error of each step, relative to the largest value", parts)


def _axes(known: list[Step]) -> str:
    parts = []
    for exponent in range(-16, _MOST + 1, 3):
        y = _y(10.0**exponent)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">1e{exponent}</text>'
        )
    last = None
    for index, step in enumerate(known):
        layer, _ = steps.layer_and_step(step.name)
        if layer is not None and layer != last:
            x = _x(index, len(known))
            parts.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
            )
            parts.append(f'<text x="{x + 3:.1f}" y="{_HEIGHT - _BOTTOM + 16}">{layer}</text>')
        last = layer
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">layer</text>')
    return "".join(parts)


def _x(index: int, count: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (index + 0.5) / count


def _y(value: float | None) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - _part(value or 0.0))


def _part(value: float) -> float:
    """Where an error lies on the scale, from 0 to 1."""
    exponent = math.log10(value) if value > 0 else _LEAST
    return (min(max(exponent, _LEAST), _MOST) - _LEAST) / (_MOST - _LEAST)


def by_position(made: Comparison) -> str:
    """A heat map: the end of each layer against the position of the token."""
    rows = [
        step for step in made.steps if step.positions and steps.layer_and_step(step.name)[1] in ("", "logits")
    ]
    rows = rows or [step for step in made.steps if step.positions][:40]
    return _heat_map([(step, step.positions) for step in rows], "position")


def by_head(made: Comparison) -> str:
    """A heat map: what attention does in each layer against the head."""
    rows = [step for step in made.steps if step.heads and step.name.split("@")[0].endswith("probabilities")]
    rows = rows or [step for step in made.steps if step.heads]
    return _heat_map([(step, step.heads) for step in rows[:80]], "head")


def _heat_map(rows: list[tuple[Step, list[float]]], across: str) -> str:
    if not rows:
        return ""
    longest = max(len(values) for _, values in rows)
    stride = -(-longest // _MOST_CELLS)
    left, height = 330, 18
    width = (_WIDTH - left - _RIGHT) / -(-longest // stride)
    parts = []
    for row, (step, values) in enumerate(rows):
        y = row * height
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{_e(step.name[-46:])}</text>')
        limit = step.limit or 0.0
        for cell, start in enumerate(range(0, len(values), stride)):
            error = max(values[start : start + stride])
            # Within what is allowed a cell keeps the colour of rounding.
            css = "bad" if error > limit else "fine"
            shade = 0.25 + 0.75 * _part(error)
            parts.append(
                f'<rect class="{css}" x="{left + cell * width:.1f}" y="{y + 1}" width="{max(width - 1, 1):.1f}" '
                f'height="{height - 2}" fill-opacity="{shade:.2f}"><title>{_e(step.name)}, {across} {start}: '
                f"{error:.2e}</title></rect>"
            )
    bottom = len(rows) * height + 16
    parts.append(f'<text x="{left}" y="{bottom}">{across} 0</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{bottom}" text-anchor="end">{across} {longest - 1}</text>')
    return _svg(_WIDTH, bottom + 6, f"error of each {across}", parts)


def _svg(width: int, height: float, label: str, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_e(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _e(text: str) -> str:
    return html.escape(text, quote=True)


def legend() -> Iterator[str]:
    yield '<p class="legend"><span class="found">B</span> <span class="own">our own float32 run</span> '
    yield '<span class="allowed">allowed</span> errors are relative to the largest right value of the step</p>'
