"""What the command line writes, and how wide it is."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from refimpl.cli import terminal
from refimpl.cli.common import readable_size


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_are_shown_on_a_terminal_only(monkeypatch):
    text = "猫\x1b[2J\x07\r\x7f\x9b1m\tある\n"
    for stream, expected in [(io.StringIO(), text), (Terminal(), "猫\\x1b[2J\\x07\\x0d\\x7f\\x9b1m\tある\n")]:
        monkeypatch.setattr(sys, "stdout", stream)
        terminal.write(text)
        assert stream.getvalue() == expected


def test_every_control_character_is_covered():
    for code in [*range(32), *range(127, 160)]:
        expected = chr(code) if code in (9, 10) else f"\\x{code:02x}"
        assert terminal.visible(chr(code)) == expected
    kept = "".join(chr(code) for code in [*range(32, 127), 160, 0x3042, 0x1F363])
    assert terminal.visible(kept) == kept


def test_json_is_one_line_of_valid_unicode(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    value = {"text": "猫\x00\x1b\x7f\x9b\u2028\ud83c", "next": "\n"}
    terminal.write_json(value)
    text = stream.getvalue()
    assert json.loads(text) == value
    assert terminal.visible(text) == text
    assert "猫" in text
    assert len(text.splitlines()) == 1
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 0),
        ("abc", 3),
        ("猫", 2),
        ("ｱ", 1),
        ("Ａ", 2),
        ("か\u3099", 2),
        ("e\u0301", 1),
        ("🍣", 2),
        ("a\u200bb", 2),
    ],
)
def test_width_of_characters(text, width):
    assert terminal.display_width(text) == width


def test_columns_are_aligned():
    assert terminal.table([["1", "猫", "x"], ["234", "ab c", ""]], right=(0,)) == "  1  猫    x\n234  ab c\n"
    assert terminal.table([]) == ""


def test_messages_are_one_line():
    assert terminal.one_line("a\n  b\r\nc\u2028d\te\x1b") == "a b c d e\\x1b"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB"), (1 << 50, "1024.0 TiB")],
)
def test_sizes_for_reading(count, text):
    assert readable_size(count) == text


def test_pipes_are_utf8_whatever_the_locale(environment, command, model):
    changed = {
        **environment,
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
        "LC_ALL": "C",
        "PYTHONCOERCECLOCALE": "0",
    }
    result = subprocess.run(
        [*command, "tokenize", "-m", model],
        input="吾輩".encode(),
        capture_output=True,
        env=changed,
        check=True,
    )
    assert "吾輩" in result.stdout.decode("utf-8")
