"""`vocab.txt` and `emoji.json`: what is read, and every way in which a file can be wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from refimpl.errors import MissingFileError, ResourceLimitError, TokenizerFileError
from refimpl.tokenizer import GPTNeoXJapaneseTokenizer
from refimpl.tokenizer import text_files as limits
from refimpl.tokenizer.japanese_files import read_vocabulary
from refimpl.tokenizer.japanese_text import normalize

EMOJI = {"emoji": {"😀": "<|emoji1|>"}, "emoji_inv": {"<|emoji1|>": "😀"}}
TAGS = ["<SP>", "<BR>", "<TAB>", "<KIGOU>", "<U2000U2BFF>", "<|emoji1|>", "<|endoftext|>", "<|startoftext|>"]


def load(folder: Path, vocab: bytes | list[str] | None = None, emoji: object = EMOJI, **options):
    """A tokenizer of these files; a list is joined to lines, a non-bytes `emoji` is written as JSON."""
    lines = TAGS if vocab is None else vocab
    content = lines if isinstance(lines, bytes) else "\n".join(lines).encode()
    (folder / "vocab.txt").write_bytes(content)
    (folder / "emoji.json").write_bytes(emoji if isinstance(emoji, bytes) else json.dumps(emoji).encode())
    return GPTNeoXJapaneseTokenizer(folder / "vocab.txt", folder / "emoji.json", **options)


def test_a_line_holds_spellings(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, ["応,應", *TAGS])
    assert tokenizer.encode("応應") == [0, 0]
    assert tokenizer.decode([0]) == "応"


def test_of_a_word_on_two_lines_the_last_counts(tmp_path: Path) -> None:
    assert load(tmp_path, ["a", "b,a", *TAGS]).encode("a") == [1]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_read(tmp_path: Path, end: str) -> None:
    content = "".join(line + end for line in ["a", *TAGS]).encode()
    assert len(load(tmp_path, content)) == len(TAGS) + 1


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path: Path) -> None:
    assert load(tmp_path, ["a\u2028b", "c", *TAGS]).encode("c") == [1]


def test_the_comma_as_last_line_without_line_end_is_kept(tmp_path: Path) -> None:
    content = "\n".join([*TAGS, ","]).encode()
    assert load(tmp_path, content).encode(",") == [len(TAGS)]
    assert load(tmp_path, content + b"\n").get_vocab()[","] == len(TAGS)
    assert load(tmp_path, content + b"\n").convert_tokens_to_ids("") == len(TAGS)


def test_original_keeps_the_comma_anywhere(tmp_path: Path) -> None:
    (tmp_path / "v").write_text(",\na,b\n", encoding="utf-8")
    assert read_vocabulary(tmp_path / "v", True, ()).lines == [[","], ["a", "b"]]
    assert read_vocabulary(tmp_path / "v", False, ()).lines == [["", ""], ["a", "b"]]


@pytest.mark.parametrize(
    ("vocab", "line"),
    [
        (["a", "", *TAGS], 2),
        ([*TAGS, "", ""], len(TAGS) + 1),
        (["\ufeffa", *TAGS], 1),
        (["a", "b\x00", *TAGS], 2),
        (["a", "b\x1b", *TAGS], 2),
        (["b\x85", *TAGS], 1),
        (["\t", *TAGS], 1),
        (["a" * 257, *TAGS], 1),
        (["<|byte256|>", *TAGS], 1),
        (["<|byte300|>", *TAGS], 1),
        (["<|byte-1|>", *TAGS], 1),
        (["<|bytexx|>", *TAGS], 1),
        (["<|byte01|>", *TAGS], 1),
        (["<|byte１|>", *TAGS], 1),
        (["a,<|byte|>", *TAGS], 1),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, vocab: list[str], line: int) -> None:
    with pytest.raises(TokenizerFileError, match=rf"line {line}\b") as caught:
        load(tmp_path, vocab)
    assert caught.value.line == line


@pytest.mark.parametrize("missing", ["<SP>", "<BR>", "<TAB>", "<KIGOU>", "<U2000U2BFF>"])
def test_words_that_the_algorithm_needs_are_required(tmp_path: Path, missing: str) -> None:
    with pytest.raises(TokenizerFileError, match="missing") as caught:
        load(tmp_path, [word for word in TAGS if word != missing])
    assert caught.value.missing == [missing]


def test_clean_text_and_original_need_more_words(tmp_path: Path) -> None:
    with pytest.raises(TokenizerFileError, match="<URL>, <EMAIL>"):
        load(tmp_path, do_clean_text=True)
    with pytest.raises(TokenizerFileError, match=r"<\|byte0\|>"):
        load(tmp_path, compat="original")


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff", b"\n".join(b"a" for _ in range(9)) + b"\xe3\x81"])
def test_files_that_are_no_vocabulary_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(TokenizerFileError):
        load(tmp_path, content)


def test_a_byte_that_is_not_utf8_is_located(tmp_path: Path) -> None:
    with pytest.raises(TokenizerFileError, match="byte 2") as caught:
        load(tmp_path, b"ab\xffcd")
    assert caught.value.offset == 2


@pytest.mark.parametrize(
    "emoji",
    [
        b"",
        b"\xff",
        b"{",
        b"[]",
        b'"emoji"',
        b"{}",
        b'{"emoji": {}}',
        b'{"emoji": [], "emoji_inv": {}}',
        b'{"emoji": {}, "emoji_inv": {}}',
        b'{"emoji": {"a": 1}, "emoji_inv": {"<|emoji1|>": "a"}}',
        b'{"emoji": {}, "emoji_inv": {"<|emoji1|>": null}}',
        b'{"emoji": {"\\ud83d": "<|emoji1|>"}, "emoji_inv": {"<|emoji1|>": "a"}}',
        b'{"emoji": {}, "emoji_inv": {"<|emoji1|>": "\\udc00"}}',
        b'{"emoji": {}, "emoji": {}, "emoji_inv": {"<|emoji1|>": "a"}}',
        b'{"emoji": NaN, "emoji_inv": {}}',
        b'{"emoji": ' + b"9" * 5000 + b"}",
        b"[" * 200_000,
        {"emoji": {"": "<|emoji1|>"}, "emoji_inv": {"<|emoji1|>": "a"}},
        {"emoji": {"a": "bb"}, "emoji_inv": {"<|emoji1|>": "a"}},
        {"emoji": {"a" * 33: "<|emoji1|>"}, "emoji_inv": {"<|emoji1|>": "a"}},
        {"emoji": {"<": "<|emoji1|>"}, "emoji_inv": {"<|emoji1|>": "a"}},
        {"emoji": {"moji": "<|emoji1|>"}, "emoji_inv": {"<|emoji1|>": "a"}},
        {"emoji": {}, "emoji_inv": {"<|emoji2|>": "a"}},
        {"emoji": {}, "emoji_inv": {"<|emoji1|>": "a", "b": "c"}},
    ],
)
def test_wrong_emoji_files_are_refused(tmp_path: Path, emoji: object) -> None:
    with pytest.raises(TokenizerFileError, match=r"emoji\.json"):
        load(tmp_path, emoji=emoji)


def test_an_emoji_table_cannot_double_the_text_again_and_again() -> None:
    chain = {chr(0x4E00 + i): chr(0x4E01 + i) * 2 for i in range(60)}
    with pytest.raises(TokenizerFileError, match="grow"):
        normalize("\u4e00", chain)


def test_an_emoji_table_that_matches_where_two_tags_meet_is_stopped(tmp_path: Path) -> None:
    table = {"😀": "<|emoji1|>", "><": "<|emoji1|>", ">|": "<|emoji1|>", "|<": "<|emoji1|>"}
    table |= {f"{'>' * i}<": "<|emoji1|>" for i in range(2, 9)}
    tokenizer = load(tmp_path, emoji={"emoji": table, "emoji_inv": {"<|emoji1|>": "😀"}})
    with pytest.raises(TokenizerFileError, match="grow"):
        tokenizer.encode("😀" * 20_000)


@pytest.mark.parametrize("name", ["vocab.txt", "emoji.json"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(MissingFileError, match=name):
        GPTNeoXJapaneseTokenizer(tmp_path / "vocab.txt", tmp_path / "emoji.json")


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", "a\x00b"):
        with pytest.raises(TokenizerFileError, match=r"not a regular file|cannot be read"):
            GPTNeoXJapaneseTokenizer(path, tmp_path / "emoji.json")


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "vocab.txt", "wb") as file:
        file.truncate(limits.MAX_VOCAB_BYTES + 1)
    with pytest.raises(ResourceLimitError, match="too large"):
        GPTNeoXJapaneseTokenizer(tmp_path / "vocab.txt", tmp_path / "emoji.json")


def test_every_prefix_of_a_vocabulary_is_read_or_refused(tmp_path: Path) -> None:
    content = "\n".join(["応,應", *TAGS, "<|byte3|>"]).encode()
    for end in range(len(content)):
        try:
            load(tmp_path, content[:end])
        except TokenizerFileError:
            continue
        assert end >= content.index(b"\n<|emoji1|>")
