"""Masks as lines of text: everything stands where it belongs, and nothing is wider than the terminal."""

from __future__ import annotations

import re

import numpy as np
import pytest

from refimpl.attention_visualizer.view import AttentionMaskView, Selection, clipped, printable
from refimpl.cli.terminal import display_width


def view_of(
    texts: list[list[str]], past: int = 0, padding: list[list[int]] | None = None, **changes
) -> AttentionMaskView:
    """The causal mask of tokens that need no tokenizer."""
    batch, q_seq = len(texts), len(texts[0])
    kv_seq = past + q_seq
    padded = np.zeros((batch, kv_seq), bool) if padding is None else np.array(padding, bool)
    visible = np.tril(np.ones((q_seq, kv_seq), bool), past) & ~padded[:, None, :]
    return AttentionMaskView(
        **{
            "name": "toy",
            "model_type": "gpt_neox_japanese",
            "tokens": texts,
            "texts": texts,
            "visible": visible,
            "padding": padded,
            "past": past,
            **changes,
        }
    )


def test_a_small_mask():
    expected = """\
Attention mask of toy (gpt_neox_japanese)
Each row is a token that looks, each column one that it may look at.

         [   で
         0 吾あ␣
         ] 輩るa
0 吾輩   c ◼ . .
1 である c ◼ ◼ .
2 ␣a     c ◼ ◼ ◼

◼ visible   c visible, in the cache   . hidden by the causal rule
"""
    assert view_of([["吾輩", "である", " a"]], past=1).text(width=100) == expected


def test_padding_and_several_texts():
    view = view_of([["a", "b"], ["p", "c"]], padding=[[0, 0], [1, 0]])
    expected = """\
Text 1 of 2
    a b
0 a ◼ .
1 b ◼ ◼

Text 2 of 2
    p c
0 p p .
1 c p ◼

◼ visible   . hidden by the causal rule   p hidden as padding
"""
    assert view.text(width=100).split("\n\n", 1)[1] == expected


def test_a_mask_with_numbers():
    bias = np.array([[[0, -np.inf, -np.inf], [-0.5, 0, -np.inf], [-5, 3, 2]]])
    view = view_of([["a", "b", "c"]], visible=np.isfinite(bias), bias=bias)
    expected = """\
    a b c
0 a ◼ x x
1 b 6 ◼ x
2 c 0 9 3

◼ visible   0-9 visible, with a number added to its score   x hidden by the mask that was given
0-9: tenths of e to the number that is added, against the largest of the row
"""
    assert view.text(width=100).split("\n\n", 1)[1] == expected


def test_colours_are_all_that_they_add():
    view = view_of([["a", "猫", "p"]], past=1, padding=[[0, 0, 0, 1]])
    coloured = view.text(width=100, color=True)
    assert "\x1b[36mc \x1b[0m\x1b[32m◼ ◼ \x1b[0m\x1b[33mp\x1b[0m\n" in coloured
    assert re.sub("\x1b\\[[0-9]*m", "", coloured) == view.text(width=100)


def columns_of(line: str) -> dict[int, str]:
    """{column of the terminal: character}"""
    found, column = {}, 0
    for character in line:
        found[column] = character
        column += display_width(character)
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "ascii"])
@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
def test_everything_is_aligned(encoding, width):
    tokens = ["吾輩", "は", "cat", "𠮟", "か\u3099", "\\u0007", "x" * 60, "☕", "é"] * 6
    view = view_of([tokens, tokens], past=7)
    text = view.text(width=width, encoding=encoding)
    assert text.encode(encoding).decode(encoding) == text
    signs = "◼c." if encoding == "utf-8" else "#c."
    grid = [line for line in text.split("\n") if re.match(r" *\d+ \S+ +[◼#c.]", line)]
    assert len(grid) == 2 * 47
    lasts = {max(columns_of(line)) for line in grid}
    assert len(lasts) == 1
    for line in grid:
        places = columns_of(line)
        cells = {column: sign for column, sign in places.items() if (max(lasts) - column) % 2 == 0}
        shown = 4 if width <= 20 else min((width - min(max(width // 3, 4), 14) - 4) // 2, 61)
        run = [cells[max(lasts) - 2 * back] for back in range(shown)]
        assert set(run) <= set(signs + "⋯~"), line
    if width >= 40:
        assert max(display_width(line) for line in text.split("\n")) <= max(width, 72)
        assert max(map(display_width, grid)) <= width


def test_what_is_left_out_is_said():
    text = view_of([[str(i % 10) for i in range(500)]] * 12).text(width=40)
    assert "Shown are 16 of 500 keys (0 to 7, 492 to 499).\n" in text
    assert "Shown are 47 of 500 queries (0 to 23, 477 to 499).\n" in text
    assert "Shown are 8 of 12 texts.\n" in text
    assert "\n    ⋮\n" in text
    assert "\n  0 0 ◼ . . . . . . . ⋯ . . . . . . . .\n" in text
    assert "\n499 9 ◼ ◼ ◼ ◼ ◼ ◼ ◼ ◼ ⋯ ◼ ◼ ◼ ◼ ◼ ◼ ◼ ◼\n" in text
    assert "Shown" not in view_of([["a"] * 20]).text(width=80)


def test_the_width_of_the_terminal_is_the_default(monkeypatch):
    view = view_of([["a"] * 90])
    monkeypatch.setenv("COLUMNS", "50")
    assert view.text() == view.text(width=50)
    monkeypatch.setenv("COLUMNS", "120")
    assert view.text() == view.text(width=120) != view.text(width=50)


@pytest.mark.parametrize(
    ("count", "room", "indices", "gap"),
    [
        (3, 3, [0, 1, 2], None),
        (1, 9, [0], None),
        (5, 4, [0, 1, 4], 2),
        (9, 5, [0, 1, 7, 8], 2),
        (9, 2, [0, 8], 1),
    ],
)
def test_the_middle_is_left_out(count, room, indices, gap):
    selection = Selection.of(count, room)
    assert (selection.indices.tolist(), selection.gap) == (indices, gap)
    assert (selection.note("keys") is None) == (gap is None)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("猫 a", "猫 a"),
        ("\x1b[2J\n", "\\u001b[2J\\n"),
        ("a\\n", "a\\\\n"),
        ("\u202e\u2066\u200b\ufeff", "\\u202e\\u2066\\u200b\\ufeff"),
        ("\u3099か\u3099", "\\u3099か\u3099"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\udb40\\udc01"),
        ("\uffff\x00", "\\uffff\\u0000"),
        ("", ""),
    ],
)
def test_what_does_not_show_is_escaped(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab~"),
        ("吾輩は", 6, "吾輩は"),
        ("吾輩は", 5, "吾輩~"),
        ("吾輩は", 4, "吾~"),
        ("a" + "\u0301" * 500, 5, "a" + "\u0301" * 19 + "~"),
    ],
)
def test_long_labels_are_cut(text, width, shown):
    assert clipped(text, width, "~") == shown
