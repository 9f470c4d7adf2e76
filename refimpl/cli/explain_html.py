"""`refimpl tokenize --html`: an explanation as one page that needs no network and no script.

Everything that comes from the text or from a vocabulary goes through `_e` and nothing else does.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from refimpl.cli.explain import MOST_MERGES, clipped, states, summed_changes
from refimpl.cli.explain_style import STYLE
from refimpl.cli.tokenize import printable, quoted, shown_text

if TYPE_CHECKING:
    from refimpl.tokenizer.explanation import Explanation, Merge, Step, Token

# Browsers get slow on pages with tens of thousands of rows, and nobody reads them.
MOST_TOKENS = 5_000
MOST_CHANGES = 200

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

#: kind of a step -> what the page calls it
_KINDS = {
    "smallest": "several words fit",
    "only": "one word fits",
    "tag": "tags",
    "range": "symbols without a word",
    "bytes": "bytes",
    "drawn": "drawn by dropout",
    "merges": "merges",
    "whole": "whole words",
    "added": "added tokens",
}

_HOW = {
    "smallest only tag range drawn": (
        "White space, some dashes and emoji are replaced first. Then, from left to right, the next three "
        "characters are looked up (more of them after <): of the words that fit, the one with the smallest id "
        "wins, not the longest. A tag longer than two characters rules out all others. A character without a "
        "word is a symbol of a range, or its UTF-8 bytes."
    ),
    "merges whole": (
        "The text is normalised and cut into words. A word begins as its UTF-8 bytes, each written as one "
        "character (Ġ is a space). Of all neighbours that a rule joins, those with the lowest rank are joined, "
        "the leftmost of equals, until no rule fits."
    ),
}


def page(explanation: Explanation) -> str:
    """The page, to be written in UTF-8. What is left out behind `MOST_TOKENS` tokens the page says."""
    steps, shown = _shown(explanation)
    total = len(explanation.tokens)
    kinds = Counter(step.kind for step, _ in steps)
    language = "ja" if "Japanese" in explanation.tokenizer else ""
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="generator" content="refimpl tokenize --html">',
        f"<title>Why these tokens? {_e(printable(explanation.text[:40]))}</title>",
        f"<style>{STYLE}{''.join(_filter_rule(kind) for kind in kinds)}</style>",
        "</head>",
        "<body>",
        "<header>",
        "<h1>Why these tokens?</h1>",
        *_facts(explanation, total),
        "</header>",
        "<main>",
        *_note(shown, total),
        *_text(steps, language),
        *_changes(explanation, language),
        *_table(steps, kinds, language),
        "</main>",
        *_how(kinds),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _e(text: str) -> str:
    return html.escape(text, quote=True)


def _shown(explanation: Explanation) -> tuple[list[tuple[Step, list[Token]]], int]:
    """The steps, each with those of its tokens that are shown, and how many tokens these are."""
    steps: list[tuple[Step, list[Token]]] = []
    count = 0
    for step in explanation.steps:
        if count == MOST_TOKENS:
            break
        tokens = step.tokens[: MOST_TOKENS - count]
        steps.append((step, tokens))
        count += len(tokens)
    return steps, count


def _facts(explanation: Explanation, total: int) -> Iterator[str]:
    characters, size = len(explanation.text), len(explanation.text.encode("utf-8"))
    facts = {"tokenizer": _e(explanation.tokenizer), "tokens": f"{total:,}", "characters": f"{characters:,}"}
    facts["UTF-8 bytes"] = f"{size:,}"
    if total:
        facts["characters per token"] = f"{characters / total:.2f}"
    yield '<dl class="facts">'
    yield from (f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    yield "</dl>"


def _note(shown: int, total: int) -> Iterator[str]:
    if shown < total:
        yield (
            f'<p class="note" role="note">This page shows the first <strong>{shown:,}</strong> of {total:,} tokens. '
            "<code>--explain --json</code> has all of them.</p>"
        )


def _text(steps: list[tuple[Step, list[Token]]], language: str) -> Iterator[str]:
    """The tokens as coloured pieces of text, each a link to its row."""
    yield '<section aria-labelledby="text"><h2 id="text">The tokens as text</h2>'
    yield f'<p class="chips" lang="{language}">'
    number = 0
    for index, (_, tokens) in enumerate(steps):
        for token in tokens:
            yield (
                f'<a href="#s{index}" class="c{number % 5}" title="token {number}, id {token.id}">'
                f"{_chip(token)}</a>{'<br>' if token.text.endswith(chr(10)) else '<wbr>'}"
            )
            number += 1
    yield "</p></section>"


def _chip(token: Token) -> str:
    if token.text.encode("utf-8") != token.data:
        return f"<small>{token.data.hex(' ') or '&empty;'}</small>"
    text = token.text.replace(" ", "␣").replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", "⇥")
    return _e(printable(text[:64])) + ("…" if len(text) > 64 else "")


def _changes(explanation: Explanation, language: str) -> Iterator[str]:
    changes = summed_changes(explanation)
    yield '<section aria-labelledby="changes"><h2 id="changes">What was replaced first</h2>'
    if not changes:
        yield "<p>Nothing: the text went on as it was.</p></section>"
        return
    yield '<div class="wide"><table class="small"><thead><tr>'
    yield '<th scope="col">replaced</th><th scope="col">by</th><th scope="col" class="n">times</th>'
    yield '<th scope="col">rule</th>'
    yield f'</tr></thead><tbody lang="{language}">'
    for change, count in changes[:MOST_CHANGES]:
        yield (
            f"<tr><td><code>{_e(clipped(change.old))}</code>{_code_points(change.old)}</td>"
            f"<td><code>{_e(clipped(change.new))}</code>{_code_points(change.new)}</td>"
            f'<td class="n">{count:,}</td><td lang="en">{_e(change.rule)}</td></tr>'
        )
    yield "</tbody></table></div>"
    if len(changes) > MOST_CHANGES:
        yield f"<p>… and {len(changes) - MOST_CHANGES:,} others.</p>"
    yield "</section>"


def _code_points(text: str) -> str:
    """The code points of a short text that is not ASCII: what looks the same may not be the same."""
    if text.isascii() or len(text) > 8:
        return ""
    return f' <small class="cp">{" ".join(f"U+{ord(c):04X}" for c in text)}</small>'


def _table(steps: list[tuple[Step, list[Token]]], kinds: Counter[str], language: str) -> Iterator[str]:
    """A row for each step; without a script the radio buttons choose among them by style sheet alone."""
    yield '<section aria-labelledby="why"><h2 id="why">Step by step</h2>'
    if len(kinds) > 1:
        yield "<fieldset><legend>Show</legend>"
        yield f'<label><input type="radio" name="k" checked> all <b>{len(steps):,}</b></label>'
        for kind, count in kinds.most_common():
            name = f"{_KINDS.get(kind, kind)} <b>{count:,}</b>"
            yield f'<label><input type="radio" name="k" id="k-{kind}"> {name}</label>'
        yield "</fieldset>"
    # The roles say what the elements are where the style sheet lays rows out as cards.
    yield '<table class="steps" role="table"><thead role="rowgroup"><tr role="row">'
    for name in ("token", "text", "id and token", "why"):
        yield f'<th role="columnheader" scope="col">{name}</th>'
    yield '</tr></thead><tbody role="rowgroup">'
    number = 0
    seen: dict[str, int] = {}
    for index, (step, tokens) in enumerate(steps):
        yield f'<tr role="row" id="s{index}" class="{step.kind}">'
        yield f'<th role="rowheader" scope="row">{number}</th>'
        yield f'<td role="cell" class="source" lang="{language}">{_source(step)}</td>'
        yield f'<td role="cell" lang="{language}"><ul class="tokens">'
        yield from (_token(token) for token in tokens)
        if len(tokens) < len(step.tokens):
            yield f'<li lang="en">… and {len(step.tokens) - len(tokens):,} more</li>'
        yield f'</ul></td><td role="cell" class="why">{_e(step.reason)}'
        yield from _candidates(step, language)
        if step.merges and seen.setdefault(step.text, index) == index:
            yield from _merges(step)
        elif step.merges:
            yield f' <a href="#s{seen[step.text]}">as above</a>'
        yield "</td></tr>"
        number += len(tokens)
    yield "</tbody></table></section>"


def _source(step: Step) -> str:
    """The stretch of text, with its code points where the tokens do not show them."""
    decoded = "".join(token.text for token in step.tokens)
    points = _code_points(step.text) if decoded != step.text or len(step.tokens) > len(step.text) else ""
    return f"<code>{_e(clipped(step.text))}</code>{points}"


def _token(token: Token) -> str:
    shown = shown_text(token.data, token.text) if len(token.data) <= 64 else clipped(token.text)
    same = shown == quoted(token.token)
    decoded = "" if same else f' <span class="to"><span aria-hidden="true">→</span> {_e(shown)}</span>'
    name = printable(token.token[:64]) + ("…" if len(token.token) > 64 else "")
    if name != name.strip():
        name = quoted(name)
    return f'<li><span class="id">{token.id}</span> <code>{_e(name)}</code>{decoded}</li>'


def _candidates(step: Step, language: str) -> Iterator[str]:
    if len(step.candidates) < 2:
        return
    won = {token.token for token in step.tokens}
    yield f'<ol class="candidates" lang="{language}">'
    for candidate in sorted(step.candidates, key=lambda one: one.id):
        mark = ' class="won"' if candidate.token in won else ""
        name = _e(printable(candidate.token))
        yield f'<li{mark}><code>{name}</code> <span class="id">{candidate.id}</span></li>'
    yield "</ol>"


def _merges(step: Step) -> Iterator[str]:
    known = states(step)
    merges = step.merges[:MOST_MERGES]
    yield f"<details><summary>{len(step.merges):,} {'merge' if len(step.merges) == 1 else 'merges'}</summary>"
    yield '<div class="wide"><table class="small"><thead><tr>'
    yield '<th scope="col" class="n">rank</th><th scope="col">left + right</th><th scope="col" class="n">id</th>'
    yield f'<th scope="col">{"after it" if known else "token"}</th></tr></thead><tbody>'
    for index, merge in enumerate(merges):
        yield (
            f'<tr><td class="n">{merge.rank:,}</td><td><code>{_e(printable(merge.left))}</code> + '
            f'<code>{_e(printable(merge.right))}</code></td><td class="n">{merge.id}</td>'
            f"<td>{_state(known[index] if known else None, merge)}</td></tr>"
        )
    yield "</tbody></table></div>"
    if len(step.merges) > len(merges):
        yield f"<p>… and {len(step.merges) - len(merges):,} more merges.</p>"
    yield "</details>"


def _state(symbols: list[tuple[str, bool]] | None, merge: Merge) -> str:
    if symbols is None:
        return f"<code>{_e(printable(merge.token))}</code>"
    shown = (f"<mark>{_e(printable(s))}</mark>" if new else _e(printable(s)) for s, new in symbols)
    return f'<code class="state">{" ".join(shown)}</code>'


def _how(kinds: Counter[str]) -> Iterator[str]:
    texts = [text for names, text in _HOW.items() if set(names.split()) & kinds.keys()]
    yield "<footer>"
    yield from (f"<p>{_e(text)}</p>" for text in texts)
    yield "<p>Made by <code>refimpl tokenize --html</code>.</p></footer>"


def _filter_rule(kind: str) -> str:
    return f"body:has(#k-{kind}:checked) .steps tbody>tr:not(.{kind}){{display:none}}"
