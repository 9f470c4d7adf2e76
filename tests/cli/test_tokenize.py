"""`refimpl tokenize`: the table, ids, JSON, and ids back to text."""

from __future__ import annotations

import json

import pytest

from refimpl.cli import common
from refimpl.cli.tokenize import quoted, read_ids, shown_text
from refimpl.errors import InputError
from tests.cli.conftest import LINES
from tests.cli.test_main import error_of

TEXT = "吾輩は猫 🍣"
WORDS = ["吾輩", "は", "猫", "<SP>", "<|byte240|>", "<|byte159|>", "<|byte141|>", "<|byte163|>"]
IDS = [LINES.index(word) for word in WORDS]


def test_the_table_is_aligned_for_wide_characters(inside, model):
    result = inside("tokenize", TEXT, "-m", model)
    assert result.returncode == 0
    expected = """\
 id  token        text
  0  吾輩         "吾輩"
  3  は           "は"
  4  猫           "猫"
 17  <SP>         " "
269  <|byte240|>  f0
188  <|byte159|>  9f
170  <|byte141|>  8d
192  <|byte163|>  a3 = "🍣"
"""
    assert result.stdout.decode() == expected
    assert result.stderr == b"8 tokens for 6 characters\n"


def test_ids_and_back(inside, model):
    ids = inside("tokenize", TEXT, "-m", model, "--ids").stdout
    assert ids.decode() == " ".join(map(str, IDS)) + "\n"
    back = inside("tokenize", "--decode", "-m", model, "--compat", "original", stdin=ids)
    assert back.stdout.decode() == TEXT + "\n"
    again = inside("tokenize", "--decode", *map(str, IDS), "-m", model, "--compat", "original")
    assert again.stdout == back.stdout
    assert again.stderr == b""


def test_decoding_is_by_default_as_in_transformers(inside, model):
    result = inside("tokenize", "--decode", *map(str, IDS), "-m", model)
    assert result.stdout.decode() == "吾輩は猫 " + "\ufffd" * 4 + "\n"


def test_json(inside, model):
    value = json.loads(inside("tokenize", TEXT, "-m", model, "--json").stdout)
    texts = ["吾輩", "は", "猫", " ", "", "", "", "🍣"]
    assert value == {"text": TEXT, "ids": IDS, "tokens": WORDS, "texts": texts}
    value = json.loads(inside("tokenize", "-d", "0", "3", "-m", model, "--json").stdout)
    assert value == {"ids": [0, 3], "text": "吾輩は"}


def test_special_tokens_show(inside, model):
    value = json.loads(inside("tokenize", "猫<|endoftext|>", "-m", model, "--json").stdout)
    assert value["ids"] == [LINES.index("猫"), LINES.index("<|endoftext|>")]
    assert value["texts"] == value["tokens"] == ["猫", "<|endoftext|>"]


def test_clean_text_and_compat_reach_the_tokenizer(inside, model):
    cleaned = inside("tokenize", "猫 https://example.com", "-m", model, "--clean", "--ids").stdout
    assert cleaned.decode().split() == [str(LINES.index(word)) for word in ("猫", "<SP>", "<URL>")]
    assert "compat is unknown; found 'new'" in error_of(
        inside("tokenize", "猫", "-m", model, "--compat", "new"), 2
    )


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_text_from_standard_input(inside, model, arguments):
    result = inside("tokenize", *arguments, "-m", model, "--ids", stdin="吾輩\n".encode())
    assert result.stdout == b"0\n"


def test_text_from_a_file(inside, model, tmp_path):
    (tmp_path / "text.txt").write_bytes("吾輩\r\n猫\r\n".encode())
    result = inside("tokenize", "-f", tmp_path / "text.txt", "-m", model, "--ids")
    assert result.stdout.decode().split() == [str(LINES.index(word)) for word in ("吾輩", "<BR>", "猫")]


def test_no_tokens(inside, model):
    result = inside("tokenize", "", "-m", model)
    assert (result.returncode, result.stdout.decode()) == (0, "id  token  text\n")
    assert inside("tokenize", "", "-m", model, "--ids").stdout == b"\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--decode", "999999"], "position 0: this is not the id of a token; found int 999999"),
        (["--decode", "1", "-5"], "position 1: this is not the id of a token; found int -5"),
        (["--decode", "0", "1.5"], "position 1: ids are whole numbers; found '1.5'"),
        (["--decode", "猫"], "position 0: ids are whole numbers; found '猫'"),
        (["--decode", "0", "1" * 5000], "position 1: ids are whole numbers"),
        (["吾輩", "猫"], "more than one text; found '猫'"),
        (["猫", "--ids", "--json"], "--ids and --json contradict each other"),
        (["--decode", "0", "--ids"], "--ids and --decode contradict each other"),
        (["猫", "--file", "x"], "not both"),
    ],
)
def test_wrong_calls(inside, model, arguments, expected):
    assert expected in error_of(inside("tokenize", "-m", model, *arguments), 2)


def test_input_that_is_not_utf8(inside, model):
    assert "not UTF-8 at byte 3; found 0xff" in error_of(
        inside("tokenize", "-m", model, stdin="猫".encode() + b"\xff"), 2
    )


def test_too_much_input(inside, model, monkeypatch):
    monkeypatch.setattr(common, "MAX_TEXT_BYTES", 8)
    assert inside("tokenize", "-m", model, stdin=b"a" * 8).returncode == 0
    assert "standard input: the text is too long; allowed: 8 bytes" in error_of(
        inside("tokenize", "-m", model, stdin=b"a" * 9), 1
    )


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("1 2 3", [1, 2, 3]),
        ("[1, 2,\n3]\n", [1, 2, 3]),
        ("[ 1,2 ]", [1, 2]),
        (" 1\t2 ", [1, 2]),
        ("", []),
        ("[]", []),
        ("-1", [-1]),
    ],
)
def test_how_ids_may_be_written(text, ids):
    assert read_ids(text) == ids


@pytest.mark.parametrize("text", ["1;2", "[[1]]", "１", "0x10", "1_000", "1 --"])
def test_what_is_no_list_of_ids(text):
    with pytest.raises(InputError):
        read_ids(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("猫", '"猫"'),
        (" ", '" "'),
        ("\n", '"\\n"'),
        ("\x1b", '"\\u001b"'),
        ("\x9b", '"\\u009b"'),
        ("\u202e", '"\\u202e"'),
        ("\u3000", '"\\u3000"'),
        ('"\\', '"\\"\\\\"'),
    ],
)
def test_nothing_invisible_in_quotation_marks(text, shown):
    assert quoted(text) == shown
    assert json.loads(shown) == text


def test_a_character_that_was_broken_off():
    assert shown_text(b"\xe3", "") == "e3"
    assert shown_text("猫".encode(), "\ufffd猫") == 'e7 8c ab = "\ufffd猫"'
