"""`refimpl mask`: the same on the command line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from refimpl.attention_visualizer.visualizer import AttentionMaskVisualizer
from refimpl.cli import mask
from refimpl.errors import InputError
from tests.cli.conftest import write_model
from tests.refimpl.test_attention_visualizer import TEXT, Terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("mask") / "toy")


def call(*arguments: object) -> int:
    return mask.run(mask.parser("refimpl mask").parse([str(argument) for argument in arguments]))


def test_the_grid_goes_to_standard_output(folder, capsys):
    assert call(TEXT, "-m", folder) == 0
    shown = capsys.readouterr()
    assert shown.out == AttentionMaskVisualizer(folder).view(TEXT).text()
    assert shown.err == "15 of 25 pairs are visible\n"
    call(TEXT, "-m", folder, "--quiet")
    assert capsys.readouterr().err == ""


def test_options_reach_the_mask(folder, capsys):
    call(TEXT, "猫", "-m", folder, "--past", 2, "--padding-side", "left", "-q")
    expected = AttentionMaskVisualizer(folder).view([TEXT, "猫"], past=2, padding_side="left")
    assert capsys.readouterr().out == expected.text()


def test_a_file_and_a_picture(folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT + "\n", encoding="utf-8")
    picture = tmp_path / "mask.svg"
    call("--file", tmp_path / "text.txt", "-m", folder, "--save", picture, "-q")
    assert capsys.readouterr().out == f"{picture}\n"
    assert picture.read_text(encoding="utf-8") == AttentionMaskVisualizer(folder).view(TEXT).svg()


def test_colours_on_a_terminal(folder, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    call("a\x1b[2Jb", "-m", folder, "-q")
    shown = sys.stdout.getvalue()
    assert "\x1b[32m◼" in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("猫", "--past", "-1"), "--past: -1 is less than 0"),
        (("猫", "--past", "a"), "--past: invalid"),
        (("猫", "--padding-side", "top"), "--padding-side"),
        (("猫", "--save", "mask.png"), "not a kind of picture"),
        (("猫", "は", "--file", "a"), "not both"),
        (("",), "the text has no tokens"),
        (("猫", "--colour"), "unknown option --colour"),
    ],
)
def test_wrong_calls(folder, arguments, expected):
    with pytest.raises(InputError) as caught:
        call(*arguments, "-m", folder)
    assert expected in str(caught.value)
