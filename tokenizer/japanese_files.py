"""The two files of the Japanese tokenizer: `vocab.txt` and `emoji.json`.

`vocab.txt` has one id per line, the first line being id 0.  A line holds one or more spellings of a
word, separated by commas; decoding writes the first.  `emoji.json` has the tables `emoji` (emoji or
emoticon -> tag such as `<|emoji1|>`) and `emoji_inv` (tag -> the one emoji that decoding writes).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl.errors import TokenizerFileError, quote
from refimpl.json_reader import read_json_object, read_text
from refimpl.tokenizer.text_files import MAX_JSON_BYTES, MAX_VOCAB_BYTES

MAX_LINES = 1_000_000
MAX_WORD_LENGTH = 256
MAX_EMOJI = 10_000
MAX_EMOJI_LENGTH = 32

TEXT_TAGS = ("<SP>", "<BR>", "<TAB>", "<KIGOU>", "<U2000U2BFF>")
CLEAN_TEXT_TAGS = ("<URL>", "<EMAIL>", "<TEL>", "<DATE>", "<PRICE>", "<BLOCK>")

# The bytes 0xc0, 0xc1 and 0xf5 to 0xff do not occur in UTF-8; the published file has no <|byte255|>.
UTF8_BYTES = [value for value in range(0xF5) if value not in (0xC0, 0xC1)]

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_BYTE_TAG = re.compile(r"<\|byte(0|[1-9][0-9]{0,2})\|>")
# Every line that `_check_line` could refuse, but for the byte order mark of the first, and few others.
_SUSPECT = re.compile(rf"^$|[\x00-\x1f\x7f-\x9f]|[^,]{{{MAX_WORD_LENGTH + 1}}}|<\|byte")
_EMOJI_TAG = re.compile(r"<\|emoji[0-9]{1,6}\|>")
_LONGEST_TAG = len("<|emoji123456|>")


@dataclass(frozen=True)
class Vocabulary:
    """`vocab.txt`, read."""

    lines: list[list[str]]  # id -> its spellings
    words: dict[str, int]  # spelling -> id; of a word on two lines the last line counts
    entries: dict[str, int]  # whole line -> id
    longest: int  # the length of the longest spelling


@dataclass(frozen=True)
class EmojiTable:
    """`emoji.json`, read: in the order of the file, which decides what is replaced first."""

    tags: dict[str, str]  # emoji -> tag
    emoji: dict[str, str]  # tag -> emoji


def byte_tag(value: int) -> str:
    """The word that stands for one byte: `<|byte227|>`."""
    return f"<|byte{value}|>"


def byte_of_tag(word: str) -> int | None:
    """The byte for which a word stands, or None when it is no byte word."""
    found = _BYTE_TAG.fullmatch(word)
    return int(found[1]) if found and int(found[1]) < 256 else None


def read_vocabulary(path: str | os.PathLike[str], keep_comma: bool, needed: tuple[str, ...]) -> Vocabulary:
    """`vocab.txt` as spellings and ids.

    The line "," is the word for the comma.  transformers splits it into two empty spellings unless it
    is the last line and has no line end, and so loses the word: `keep_comma=False` does the same.
    Raises: TokenizerFileError (attribute `line`, counted from 1), MissingFileError, ResourceLimitError.
    """
    path = Path(path)
    text = read_text(path, TokenizerFileError, MAX_VOCAB_BYTES).replace("\r\n", "\n").replace("\r", "\n")
    raw = text.split("\n")
    ended = raw[-1] == ""
    if ended:
        raw.pop()
    if not raw or len(raw) > MAX_LINES:
        raise TokenizerFileError(
            "wrong number of lines", where=path, found=len(raw), allowed=f"1 to {MAX_LINES}"
        )
    lines: list[list[str]] = []
    words: dict[str, int] = {}
    for index, line in enumerate(raw):
        if index == 0 or _SUSPECT.search(line):
            _check_line(line, path, index + 1)
        whole = line == "," and (keep_comma or (index == len(raw) - 1 and not ended))
        spellings = [line] if whole else line.split(",")
        lines.append(spellings)
        for spelling in spellings:
            words[spelling] = index
    missing = [word for word in needed if word not in words]
    if missing:
        raise TokenizerFileError(
            "words that the tokenizer needs are missing",
            where=path,
            found=", ".join(missing[:10]),
            missing=missing,
        )
    return Vocabulary(lines, words, dict(zip(raw, range(len(raw)), strict=True)), max(map(len, words)))


def _check_line(line: str, path: Path, number: int) -> None:
    def fail(what: str, allowed: str) -> None:
        raise TokenizerFileError(
            what, where=f"{path}, line {number}", found=quote(line), allowed=allowed, line=number
        )

    if not line:
        fail("the line is empty", "a word on every line")
    if number == 1 and line[0] == "\ufeff":
        fail("the file begins with a byte order mark", "UTF-8 without one")
    if _CONTROL.search(line):
        fail("the line holds a control character", "words without control characters")
    for word in line.split(","):
        if len(word) > MAX_WORD_LENGTH:
            fail("the word is too long", f"{MAX_WORD_LENGTH} characters")
        if word.startswith("<|byte") and word.endswith("|>") and byte_of_tag(word) is None:
            fail("this is not the word of a byte", "<|byte0|> to <|byte255|>")


def read_emoji_table(path: str | os.PathLike[str], vocabulary: Vocabulary) -> EmojiTable:
    """`emoji.json`, checked so that replacing emoji by tags cannot feed on itself.

    Raises: TokenizerFileError, MissingFileError, ResourceLimitError.
    """
    path = Path(path)
    content = read_json_object(path, TokenizerFileError, MAX_JSON_BYTES)
    tags, emoji = (_text_table(content, name, path) for name in ("emoji", "emoji_inv"))
    distinct = set(tags.values())
    for tag in [*distinct, *emoji]:
        if not _EMOJI_TAG.fullmatch(tag):
            raise TokenizerFileError(
                "this is not the tag of emoji",
                where=path,
                found=quote(tag),
                allowed="<|emoji1|> and the like",
            )
    ranges = [(start, end) for end in range(1, _LONGEST_TAG + 1) for start in range(end)]
    parts = {tag[start:end] for tag in distinct for start, end in ranges}
    for key in tags:
        if not 1 <= len(key) <= MAX_EMOJI_LENGTH or key in parts:
            raise TokenizerFileError(
                "this cannot stand for an emoji",
                where=path,
                found=quote(key),
                allowed=f"1 to {MAX_EMOJI_LENGTH} characters that are not part of a tag",
            )
    for number, spellings in enumerate(vocabulary.lines):
        if spellings[0].startswith("<|emoji") and spellings[0].endswith("|>") and spellings[0] not in emoji:
            raise TokenizerFileError(
                f"emoji_inv has no emoji for a word of the vocabulary (id {number})",
                where=path,
                found=quote(spellings[0]),
            )
    return EmojiTable(tags, emoji)


def _text_table(content: dict[str, Any], name: str, path: Path) -> dict[str, str]:
    table = content.get(name)
    if not isinstance(table, dict) or len(table) > MAX_EMOJI:
        raise TokenizerFileError(
            f'there is no table "{name}"',
            where=path,
            found=quote(table),
            allowed=f"an object of at most {MAX_EMOJI} texts",
        )
    for key, value in table.items():
        if not isinstance(value, str):
            raise TokenizerFileError(f"{name}: {quote(key)} is not a text", where=path, found=quote(value))
    return table
