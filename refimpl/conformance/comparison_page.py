"""A comparison as one page that needs no network and no script.  All text goes through `_e`."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from typing import Any

from refimpl.conformance import comparison_plots as plots
from refimpl.conformance.compare import Comparison, Step
from refimpl.conformance.comparison_report import reason
from refimpl.conformance.measures import ULP_CLASSES

# Browsers get slow on pages with tens of thousands of rows.
MOST_STEPS = 5_000

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
:root{--ink:#1d2328;--soft:#5b6670;--line:#dde2e6;--page:#fbfbfa;--card:#fff;--note:#fff4d6;--fine:#0f6b3c;
--bad:#b3261e;--found:#0b5cad;--own:#8a5a00;--badbg:#fde7e4}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa6b1;--line:#333c44;--page:#14181b;--card:#1b2024;
--note:#3b3212;--fine:#8be0af;--bad:#ff9d92;--found:#86bcff;--own:#e6b85c;--badbg:#4a201c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1.5rem clamp(1rem,4vw,2.5rem) 3rem;background:var(--page);color:var(--ink);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
code,td,.n{font-variant-numeric:tabular-nums}
code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.92em;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .8rem}
h2{font-size:1.15rem;margin:2.2rem 0 .7rem}
.facts{display:flex;flex-wrap:wrap;gap:.6rem 2rem;margin:0}
.facts dt{color:var(--soft);font-size:.85rem}
.facts dd{margin:0;font-weight:600;overflow-wrap:anywhere}
.note{background:var(--note);border-radius:.5rem;padding:.7rem 1rem;margin:1rem 0 0}
.wide{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.6rem}
table{border-collapse:collapse;width:100%}
th,td{padding:.25rem .8rem .25rem 0;text-align:left;white-space:nowrap;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:500;font-size:.85rem}
.n{text-align:right}
tr.departs td,tr.unreadable td{background:var(--badbg)}
tr.first td:first-child::before{content:"→ ";color:var(--bad);font-weight:700}
svg{width:100%;height:auto;font:11px ui-monospace,Menlo,Consolas,monospace}
svg text{fill:var(--soft)}
.grid{stroke:var(--line)}
polyline{fill:none;stroke-width:1.5}
polyline.found{stroke:var(--found)}polyline.own{stroke:var(--own)}
polyline.allowed{stroke:var(--fine);stroke-dasharray:5 4}
.dot{fill:var(--found)}.dot.bad{fill:var(--bad)}
rect.fine{fill:var(--fine)}rect.bad{fill:var(--bad)}
.legend{color:var(--soft);font-size:.92rem}
.legend span::before{content:"— ";font-weight:700}
.legend .found{color:var(--found)}.legend .own{color:var(--own)}.legend .allowed{color:var(--fine)}
footer{margin-top:2.5rem;color:var(--soft);font-size:.9rem}
"""


def page(made: Comparison, a: str, b: str, about: dict[str, Any]) -> str:
    """The page, to be written in UTF-8.

    a, b: what was compared, as the user called it; about: what the trace says of its model.
    """
    first = made.first
    title = "Everything agrees" if first is None else "B departs"
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="generator" content="refimpl compare --html">',
        f"<title>{title}: {_e(b)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        "<header>",
        f"<h1>{title}</h1>",
        *_facts(made, a, b, about),
        "</header>",
        "<main>",
        *_notes(made),
        *_plot("steps", "Error by layer", plots.by_step(made), "".join(plots.legend())),
        *_plot("positions", "Error by position", plots.by_position(made)),
        *_plot("heads", "Error by head", plots.by_head(made)),
        *_logits(made),
        *_table(made),
        *_ulps(made),
        "</main>",
        "<footer><p>Made by <code>refimpl compare --html</code>.</p></footer>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _e(text: Any) -> str:
    return html.escape(str(text), quote=True)


def _facts(made: Comparison, a: str, b: str, about: dict[str, Any]) -> Iterator[str]:
    counts = Counter(step.verdict for step in made.steps)
    facts = {
        "A": a,
        "B": b,
        "model": about.get("model", ""),
        "judged by": made.judged_by,
        "B is taken for": made.precision,
        "steps": ", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
    }
    if made.first is not None:
        facts["first departure"] = made.first.name
    yield '<dl class="facts">'
    yield from (f"<div><dt>{name}</dt><dd>{_e(value)}</dd></div>" for name, value in facts.items())
    yield "</dl>"


def _notes(made: Comparison) -> Iterator[str]:
    if made.named is not None and made.first is not None:
        names = " and ".join(made.named.names)
        extent = "every step" if made.named.everything else f"the steps until {made.named.until}"
        yield (
            f'<p class="note" role="note"><code>{_e(made.first.name)}</code> matches the variant '
            f"<strong>{_e(names)}</strong> to {made.named.error:.0e}: {_e(made.named.what)}. "
            f"It explains {_e(extent)}.</p>"
        )
        if made.named.same:
            others = ", ".join(" and ".join(one) for one in made.named.same)
            yield f'<p class="note" role="note">The same numbers on this model give: {_e(others)}.</p>'
    elif made.looked:
        yield '<p class="note" role="note">No variant gives these numbers.</p>'
    for note in made.notes:
        yield f'<p class="note" role="note">{_e(note)}</p>'


def _plot(key: str, title: str, svg: str, more: str = "") -> Iterator[str]:
    if svg:
        yield f'<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2>'
        yield f'<div class="wide">{svg}</div>{more}</section>'


def _logits(made: Comparison) -> Iterator[str]:
    shown = [step for step in made.steps if step.logits is not None]
    if not shown:
        return
    yield '<section aria-labelledby="logits"><h2 id="logits">The next token</h2><div class="wide"><table><thead><tr>'
    names = (
        "KL (nats)",
        "largest KL",
        "top-1",
        "top-5",
        "smallest margin",
        "largest margin lost",
        "positions",
    )
    yield f'<th scope="col">step</th>{"".join(f"<th scope=col class=n>{name}</th>" for name in names)}'
    yield "</tr></thead><tbody>"
    for step in shown:
        one = step.logits
        assert one is not None
        cells = (
            f"{one.kl_mean:.2e}", f"{one.kl_max:.2e}", f"{one.top1:.1%}", f"{one.top5:.1%}",
            f"{one.smallest_margin:.2e}", f"{one.largest_lost_margin:.2e}", str(one.positions),
        )  # fmt: skip
        yield f"<tr><td><code>{_e(step.name)}</code></td>{_cells(cells)}</tr>"
    yield "</tbody></table></div></section>"


def _cells(cells: tuple[str, ...]) -> str:
    return "".join(f'<td class="n">{cell}</td>' for cell in cells)


def _table(made: Comparison) -> Iterator[str]:
    yield '<section aria-labelledby="all"><h2 id="all">Step by step</h2><div class="wide"><table><thead><tr>'
    yield '<th scope="col">step</th><th scope="col">verdict</th>'
    names = ("error", "allowed", "our float32", "max abs", "max rel", "RMSE", "NMSE", "cosine")
    yield f"{''.join(f'<th scope=col class=n>{name}</th>' for name in names)}</tr></thead><tbody>"
    for step in made.steps[:MOST_STEPS]:
        css = f"{step.verdict} first" if step is made.first else step.verdict
        yield f'<tr class="{css}"><td><code>{_e(step.name)}</code></td><td>{_e(step.verdict)}</td>{_figures(step)}</tr>'
    yield "</tbody></table></div>"
    if len(made.steps) > MOST_STEPS:
        yield f"<p>… and {len(made.steps) - MOST_STEPS:,} more steps; <code>--json</code> has all of them.</p>"
    yield "</section>"


def _figures(step: Step) -> str:
    one = step.difference
    if one is None:
        return f'<td colspan="8">{_e(reason(step))}</td>'
    numbers = (step.error, step.limit, step.own, one.max_abs, one.max_rel, one.rmse, one.nmse)
    shown = tuple("" if number is None else f"{number:.2e}" for number in numbers)
    return _cells((*shown, "" if one.cosine is None else f"{one.cosine:.8f}"))


def _ulps(made: Comparison) -> Iterator[str]:
    known = [step for step in made.steps if step.difference is not None][:MOST_STEPS]
    if not known:
        return
    yield '<section aria-labelledby="ulps"><h2 id="ulps">Distance in float32 numbers (ULP)</h2>'
    yield '<div class="wide"><table><thead><tr><th scope="col">step</th>'
    names = [*(f"≤ {most}" for most in ULP_CLASSES), f"> {ULP_CLASSES[-1]}"]
    yield f"{''.join(f'<th scope=col class=n>{name}</th>' for name in names)}</tr></thead><tbody>"
    for step in known:
        assert step.difference is not None
        counts = tuple(f"{count:,}" for count in step.difference.ulps)
        yield f"<tr><td><code>{_e(step.name)}</code></td>{_cells(counts)}</tr>"
    yield "</tbody></table></div></section>"
