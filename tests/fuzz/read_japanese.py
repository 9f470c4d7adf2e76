"""The readers of `vocab.txt` and of `emoji.json`."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from refimpl.tokenizer import GPTNeoXJapaneseTokenizer, kernels
from refimpl.tokenizer.japanese_files import (
    EmojiTable,
    Vocabulary,
    byte_tag,
    read_emoji_table,
    read_vocabulary,
)
from tests.fuzz.changes import change_json, change_lines
from tests.fuzz.harness import Files, Reader, memory_folder

TAGS = ["<SP>", "<BR>", "<TAB>", "<KIGOU>", "<U2000U2BFF>"]
LINES = [
    "応,應",
    "こん",
    "んに",
    "a",
    "b,ab",
    *TAGS,
    "<|emoji1|>",
    "<|emoji2|>",
    "<|startoftext|>",
    "<|endoftext|>",
]
BYTES = [byte_tag(value) for value in (0x20, 0x61, 0xE3, 0x81, 0x82)]
EMOJI = {
    "emoji": {"(^_^)": "<|emoji2|>", "😀": "<|emoji1|>", "👍🏽": "<|emoji2|>", "👍": "<|emoji2|>"},
    "emoji_inv": {"<|emoji1|>": "😀", "<|emoji2|>": "👍"},
}
VOCABULARIES = [
    "\n".join(LINES),
    "\n".join([*LINES[:8], *BYTES, ",", *LINES[8:]]) + "\n",
    "\r\n".join(["0", "(", *LINES, "<URL>", "㌔"]),
]
WORDS = [
    "<SP>",
    "<",
    ">",
    "|",
    "emoji",
    "<|emoji",
    "<|emoji1|>",
    "<|emoji2|>",
    "<|emoji9999999|>",
    "<|byte0|>",
]

_TEXT = "応 こんに\r\nab(^_^)😀👍🏽<|endoftext|><SP><|emoji1|>,一\u3000é<<|"


def change_vocabulary(draw: random.Random, files: Files) -> Files:
    return {"vocab.txt": change_lines(draw, files["vocab.txt"], LINES + BYTES)}


def swap_emoji(draw: random.Random, tree: Any) -> None:
    """Replaces one emoji by what feeds on what an earlier one gives, or by a random short text."""
    tag = draw.choice(["<|emoji1|>", "<|emoji2|>"])
    alphabet = draw.choice(["<|>", "<|emoji1>", "あ😀ab", "\u200d\ufe0f👍"])
    tree["emoji"]["".join(draw.choices(alphabet, k=draw.randint(1, 4)))] = tag


def chain(draw: random.Random, tree: Any) -> None:
    """Each emoji becomes the next one twice."""
    start = draw.choice((0x41, 0x4E00, 0x1F600))
    tree["emoji"] |= {chr(start + i): chr(start + i + 1) * 2 for i in range(draw.choice((3, 40)))}


def change_emoji(draw: random.Random, files: Files) -> Files:
    return {"emoji.json": change_json(draw, files["emoji.json"], WORDS, (swap_emoji, swap_emoji, chain))}


def read_vocab_txt(folder: Path, number: int) -> Vocabulary:
    return read_vocabulary(folder / "vocab.txt", number % 2 == 0, ("<SP>", "<BR>", "<TAB>"))


@cache
def _some_vocabulary() -> Vocabulary:
    with memory_folder() as folder:
        (folder / "vocab.txt").write_bytes(VOCABULARIES[0].encode())
        return read_vocab_txt(folder, 0)


def read_emoji_json(folder: Path, number: int) -> EmojiTable:
    return read_emoji_table(folder / "emoji.json", _some_vocabulary())


def use(_: object, folder: Path, number: int) -> None:
    """Encodes and decodes; with some compares with the compiled form."""
    tokenizer = GPTNeoXJapaneseTokenizer(folder / "vocab.txt", folder / "emoji.json", impl="plain")
    text = _TEXT + "".join(tokenizer.get_vocab())[-40:]
    if number % 128 == 0:
        check_compiled(tokenizer, text)
    ids = tokenizer.encode(text)
    assert len(ids) <= 16 * len(text) + 1024
    assert isinstance(tokenizer.decode(ids), str)


def check_compiled(tokenizer: GPTNeoXJapaneseTokenizer, text: str) -> None:
    tokenizer.impl = "fast"
    fast = tokenizer.encode(text)
    tokenizer.impl = "plain"
    assert fast == tokenizer.encode(text), "the compiled form differs"


PREPARING = {"vocab.txt": VOCABULARIES[0].encode(), "emoji.json": json.dumps(EMOJI).encode()}


def prepare() -> None:
    """Uses the compiled form once, which compiles it where it was not."""
    kernels.load("japanese_encoder")
    with memory_folder() as folder:
        for name, content in PREPARING.items():
            (folder / name).write_bytes(content)
        use(None, folder, 0)


READERS = [
    Reader(
        "vocab.txt",
        [{"vocab.txt": text.encode()} for text in VOCABULARIES],
        change_vocabulary,
        read_vocab_txt,
        use,
        {"emoji.json": json.dumps(EMOJI).encode()},
        prepare,
    ),
    Reader(
        "emoji.json",
        [{"emoji.json": json.dumps(EMOJI).encode()}],
        change_emoji,
        read_emoji_json,
        use,
        {"vocab.txt": VOCABULARIES[0].encode()},
        prepare,
    ),
]
