"""`refimpl tokenize --explain` on a terminal: what was changed first, the tokens with their reasons, the merges."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from refimpl.cli import terminal
from refimpl.cli.tokenize import printable, quoted, shown_text

if TYPE_CHECKING:
    from refimpl.tokenizer.explanation import Change, Explanation, Step

# A word may be as long as the text, and what is left of it is written once for each merge.
MOST_MERGES = 200
MOST_SYMBOLS = 48
LONGEST_TEXT = 200

# A column beside others is no narrower than this, and all but the last no wider than that.
_NARROWEST, _WIDEST = 24, 28


def report(explanation: Explanation) -> str:
    """The explanation as tables that fit the terminal; whole lines where nobody knows a width."""
    width = shutil.get_terminal_size((0, 0)).columns or None
    parts = []
    changes = summed_changes(explanation)
    if changes:
        rows = [[quoted(change.old), quoted(change.new), str(c), change.rule] for change, c in changes]
        parts.append(wrapped_table([["replaced", "by", "times", "rule"], *rows], width, right=(2,)))
    rows = [row for step in explanation.steps for row in _token_rows(step)]
    parts.append(wrapped_table([["id", "token", "text", "why"], *rows], width, right=(0,)))
    parts += _merge_tables(explanation, width)
    return "\n".join(parts)


def summed_changes(explanation: Explanation) -> list[tuple[Change, int]]:
    """Every change once, with how often it was made in all pieces."""
    counts: dict[tuple[str, str, str], tuple[Change, int]] = {}
    for piece in explanation.pieces:
        for change in piece.changes:
            key = (change.rule, change.old, change.new)
            counts[key] = (change, counts[key][1] + change.count if key in counts else change.count)
    return list(counts.values())


def clipped(text: str) -> str:
    """`text` in quotation marks, not too long to be looked at."""
    if len(text) <= LONGEST_TEXT:
        return quoted(text)
    return f"{quoted(text[:LONGEST_TEXT])}… ({len(text):,} characters)"


def states(step: Step) -> list[list[tuple[str, bool]]] | None:
    """The symbols of a word after each of its merges, and whether each is the new one; None for a long word."""
    from refimpl.tokenizer.byte_level import to_characters

    data = step.text.encode("utf-8")
    if len(data) > MOST_SYMBOLS:
        return None
    symbols = dict(enumerate(to_characters(data)))
    found = []
    for merge in step.merges:
        after = next((place for place in symbols if place > merge.start), merge.start)
        del symbols[after]
        symbols[merge.start] = merge.token
        symbols = dict(sorted(symbols.items()))
        found.append([(symbol, place == merge.start) for place, symbol in symbols.items()])
    # Bytes that have no token may be fused before anything is merged: then this is not how it went.
    ended = list(symbols.values()) == [token.token for token in step.tokens]
    return found if ended else None


def _token_rows(step: Step) -> Iterator[list[str]]:
    """A row for each token; the reason of all is in the first."""
    why = step.reason
    if len(step.candidates) > 1:
        why += ": " + ", ".join(
            f"{printable(c.token)} {c.id}" for c in sorted(step.candidates, key=lambda c: c.id)
        )
    elif step.kind == "range" or len(step.tokens) > 1:
        why = f"{clipped(step.text)}: {why}"
    for token in step.tokens:
        yield [str(token.id), printable(token.token), shown_text(token.data, token.text), why]
        why = ""


def _merge_tables(explanation: Explanation, width: int | None) -> Iterator[str]:
    """The merges of every word that has any, once for each word."""
    for step in {step.text: step for step in explanation.steps if step.merges}.values():
        known = states(step)
        rows = []
        for index, merge in enumerate(step.merges[:MOST_MERGES]):
            left = " ".join(printable(symbol) for symbol, _ in known[index]) if known else ""
            pair = f"{printable(merge.left)} + {printable(merge.right)}"
            rows.append([str(merge.rank), pair, str(merge.id), left or printable(merge.token)])
        heading = ["rank", "merge", "id", "what is left" if known else "token"]
        table = wrapped_table([heading, *rows], width, right=(0, 2))
        rest = len(step.merges) - len(rows)
        more = f"… and {rest:,} more merges\n" if rest else ""
        yield f"{clipped(step.text)}\n{table}{more}"


def wrapped_table(rows: list[list[str]], width: int | None, right: tuple[int, ...] = ()) -> str:
    """As `terminal.table`, with long cells broken so that no line is wider than `width`.

    Where that leaves too little room for the last column, it stands under the others, indented.
    """
    if width is None:
        return terminal.table(rows, right)
    widths = [max(map(terminal.display_width, column)) for column in zip(*rows, strict=True)]
    widths = [min(one, _WIDEST) for one in widths[:-1]] + widths[-1:]
    room = width - sum(widths[:-1]) - 2 * len(widths[:-1])
    if room < min(_NARROWEST, widths[-1]):
        return "".join(
            "  ".join(cell for cell in row[:-1] if cell)
            + "\n"
            + "".join(f"    {line}\n" for line in wrap(row[-1], max(width - 4, 2)) if line)
            for row in rows
        )
    widths[-1] = min(widths[-1], room)
    lines: list[tuple[str, ...]] = []
    for row in rows:
        cells = [wrap(cell, one) for cell, one in zip(row, widths, strict=True)]
        height = max(map(len, cells))
        lines += zip(*(cell + [""] * (height - len(cell)) for cell in cells), strict=True)
    # A row of blanks as wide as the columns keeps them apart the same way everywhere.
    padded = terminal.table([*map(list, lines), [" " * one for one in widths]], right)
    return padded[: padded.rindex("\n", 0, -1) + 1]


def wrap(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, broken at spaces where there are any. At least one line."""
    lines, line, used = [], "", 0
    for character in text:
        size = terminal.display_width(character)
        if line and used + size > width:
            head, space, tail = line.rpartition(" ")
            keep = character != " " and space and head.strip()
            lines.append(head if keep else line)
            line = tail if keep else ""
            used = terminal.display_width(line)
            if character == " ":
                continue
        line, used = line + character, used + size
    return [*lines, line]
