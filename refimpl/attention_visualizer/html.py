"""An attention mask as one page that needs no network and no script: the picture, and the same in words.

Everything that comes from a text, a vocabulary or a name goes through `_e`.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from refimpl.attention_visualizer import svg
from refimpl.attention_visualizer.view import MEANINGS, clipped

if TYPE_CHECKING:
    from refimpl.attention_visualizer.view import AttentionMaskView

#: Stretches of keys that a row of the list in words may have.
MOST_STRETCHES = 12
LONGEST_TOKEN = 200

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root{--ink:#1d2328;--soft:#5b6670;--line:#dde2e6;--page:#fbfbfa;--note:#fff4d6}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa6b1;--line:#333c44;--page:#14181b;--note:#3b3212}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:110rem;padding:1.5rem clamp(1rem,4vw,2.5rem) 3rem;background:var(--page);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI","Noto Sans JP","Hiragino Sans","Yu Gothic UI",sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .8rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.2rem 0 .7rem}
.facts{display:flex;flex-wrap:wrap;gap:.6rem 2rem;margin:0}
.facts dt{color:var(--soft);font-size:.85rem}
.facts dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}
.note{background:var(--note);border-radius:.5rem;padding:.7rem 1rem;margin:1.5rem 0 0;max-width:46rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.4rem;margin:1.5rem 0 0;padding:0;font-size:.92rem}
.legend svg{vertical-align:-.1rem;margin-right:.45rem}
.wide{overflow-x:auto}
.wide svg{display:block}
summary{cursor:pointer;color:var(--soft)}
table{border-collapse:collapse;font-size:.92rem}
th,td{padding:.2rem 1rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-weight:500}
.n{text-align:right;font-weight:400;font-variant-numeric:tabular-nums}
code{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace,"Noto Sans JP";
overflow-wrap:anywhere;white-space:pre-wrap}
footer{margin-top:2.5rem;color:var(--soft);font-size:.9rem;max-width:46rem}
@media print{summary{display:none}}
"""


def page(view: AttentionMaskView) -> str:
    """The page, to be written in UTF-8."""
    plan = svg.Plan.of(view)
    batch = view.shape[0]
    title = f"Attention mask of {clipped(view.name, 60, '…')}"
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="generator" content="refimpl AttentionMaskVisualizer">',
        f"<title>{_e(title)}</title>",
        f"<style>{_STYLE}{svg.STYLE}</style>",
        "</head>",
        "<body>",
        "<header>",
        f"<h1>{_e(title)}</h1>",
        *_facts(view),
        "</header>",
        "<main>",
        *(f'<p class="note" role="note">{_e(note)}</p>' for note in plan.notes(batch)),
        *_legend(view, plan),
        *(line for item in range(plan.texts) for line in _one_text(view, plan, item)),
        "</main>",
        "<footer><p>Each row is a token that looks (a query), each column one that it may look at (a key). "
        "Point at a cell to read it as a sentence. Tokens in brackets are only known by their place in the "
        "cache.</p><p>Made by <code>refimpl.AttentionMaskVisualizer</code>.</p></footer>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _facts(view: AttentionMaskView) -> Iterator[str]:
    batch, q_seq, kv_seq = view.shape
    facts = {
        "type": _e(view.model_type),
        "texts": f"{batch:,}",
        "queries": f"{q_seq:,}",
        "keys": f"{kv_seq:,}",
    }
    if view.past:
        facts["in the cache"] = f"{view.past:,}"
    facts["visible pairs"] = f"{int(view.visible.sum()):,} of {view.visible.size:,}"
    yield '<dl class="facts">'
    yield from (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    yield "</dl>"


def _legend(view: AttentionMaskView, plan: svg.Plan) -> Iterator[str]:
    yield '<ul class="legend">'
    for kind in svg.kinds_of(view, plan):
        yield f'<li><svg width="14" height="14" aria-hidden="true">{svg.swatch(kind, 0, 0)}</svg>{MEANINGS[kind]}</li>'
    yield "</ul>"


def _one_text(view: AttentionMaskView, plan: svg.Plan, item: int) -> Iterator[str]:
    batch = view.shape[0]
    heading = f"Text {item + 1} of {batch}" if batch > 1 else "The mask"
    drawing = svg.grid(view, plan, item)
    yield f'<section aria-labelledby="t{item}"><h2 id="t{item}">{heading}</h2>'
    note = view.blind_note(item)
    if note:
        yield f'<p class="note" role="note">{_e(note)}</p>'
    yield f'<div class="wide" tabindex="0" role="region" aria-labelledby="t{item}">'
    yield svg.opening(drawing.width, drawing.height, f"{heading}: a list in words follows", view)
    yield from drawing.elements
    yield "</svg></div>"
    yield from _in_words(view, plan, item)
    yield "</section>"


def _in_words(view: AttentionMaskView, plan: svg.Plan, item: int) -> Iterator[str]:
    """What each query sees as numbers of keys, for those who do not see the picture."""
    language = ' lang="ja"' if "japanese" in view.model_type else ""
    yield "<details><summary>In words</summary><table><thead><tr>"
    yield '<th scope="col" class="n">row</th><th scope="col">token</th><th scope="col">sees columns</th>'
    yield f'<th scope="col" class="n">in all</th></tr></thead><tbody{language}>'
    for row in plan.rows.indices.tolist():
        seen, token = view.visible[item, row], clipped(view.texts[item][row], LONGEST_TOKEN, "…")
        yield (
            f'<tr><th scope="row" class="n">{row}</th><td><code>{_e(token)}</code></td>'
            f'<td>{_stretches(seen)}</td><td class="n">{int(seen.sum()):,}</td></tr>'
        )
    yield "</tbody></table></details>"


def _stretches(seen: np.ndarray) -> str:
    """[True, True, False, True] -> "0 to 1, 3" """
    edges = np.flatnonzero(np.diff(np.r_[False, seen, False]))
    starts, ends = edges[::2].tolist(), (edges[1::2] - 1).tolist()
    found = [f"{a}" if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True)]
    rest = len(found) - MOST_STRETCHES
    return (
        ", ".join(found[:MOST_STRETCHES]) + (f", and {rest:,} more stretches" if rest > 0 else "") or "none"
    )


def _e(text: str) -> str:
    return html.escape(text, quote=True)
