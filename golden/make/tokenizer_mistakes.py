"""Frequent mistakes of tokenizers, and the ids that they give.

Two encoders in plain code, each with the places where a port goes wrong as parameters.  `make_tokenizer_mistakes.py`
holds them, without a mistake, against the recorded ids; so what they say with one is the mistake and nothing else.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import regex

Content = dict[str, Any]

# ---- GPT-NeoX: byte-level BPE

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def byte_characters() -> list[str]:
    """Byte -> its character in tokens: itself where it is printable Latin-1, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTES = byte_characters()


class Bpe:
    """The tables of a tokenizer.json."""

    def __init__(self, content: Content):
        model = content["model"]
        self.ids: dict[str, int] = model["vocab"]
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.added = {token["content"]: token for token in content.get("added_tokens", ())}

    def plain(self) -> bool:
        """Whether its added tokens are found by their text alone."""
        flags = ("lstrip", "rstrip", "single_word")
        return not any(token.get(flag) for token in self.added.values() for flag in flags)


def smallest_rank(symbols: list[str], bpe: Bpe) -> list[str]:
    """The rule: join the leftmost pair of the smallest rank, again and again."""
    while True:
        found = [(bpe.ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in bpe.ranks]
        if not found:
            return symbols
        _, i = min(found)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def rightmost(symbols: list[str], bpe: Bpe) -> list[str]:
    while True:
        found = [(bpe.ranks[pair], -i) for i, pair in enumerate(pairwise(symbols)) if pair in bpe.ranks]
        if not found:
            return symbols
        i = -min(found)[1]
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def smallest_id(symbols: list[str], bpe: Bpe) -> list[str]:
    """The pair that makes the smallest id first, as where ids are ranks."""
    while True:
        found = [(bpe.ids[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if (a, b) in bpe.ranks]
        if not found:
            return symbols
        _, i = min(found)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def any_token(symbols: list[str], bpe: Bpe) -> list[str]:
    """Join the pair that makes the smallest id, whether a merge makes it or not."""
    while True:
        found = [(bpe.ids[a + b], i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in bpe.ids]
        if not found:
            return symbols
        _, i = min(found)
        symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def longest_token(symbols: list[str], bpe: Bpe) -> list[str]:
    """From the left the longest token there is."""
    text, made = "".join(symbols), []
    while text:
        size = next(size for size in range(len(text), 0, -1) if text[:size] in bpe.ids)
        made.append(text[:size])
        text = text[size:]
    return made


def encode_neox(
    text: str,
    bpe: Bpe,
    *,
    normalize: Callable[[str], str] = lambda text: unicodedata.normalize("NFC", text),
    words: str | None = WORDS,
    flags: int = 0,
    merge: Callable[[list[str], Bpe], list[str]] = smallest_rank,
    added: Callable[[Iterable[str]], list[str]] = lambda names: sorted(names, key=len, reverse=True),
    prefix: str = "",
) -> list[int]:
    """The ids of a text.  `added` orders the added tokens, of which the first that fits is taken."""
    order = added(bpe.added)
    # One that is marked so is looked for in the normalised text; for a text alone that makes no other difference.
    parts = (
        regex.split("(" + "|".join(map(regex.escape, order)) + ")", prefix + text)
        if order
        else [prefix + text]
    )
    ids: list[int] = []
    for part in filter(None, parts):
        if part in order:
            ids.append(bpe.added[part]["id"])
            continue
        part = normalize(part)
        for word in [part] if words is None else regex.findall(words, part, flags):
            symbols = [BYTES[byte] for byte in word.encode()]
            ids += [bpe.ids[symbol] for symbol in merge(symbols, bpe)]
    return ids


#: Letters and digits that came with Unicode 16.0, by their blocks.
_NEW = (
    r"\u1C89\u1C8A\uA7CB-\uA7CD\uA7DA-\uA7DC\U000105C0-\U000105FF\U00010D40-\U00010D8F\U00011380-\U000113FF"
    r"\U000116D0-\U000116FF\U00011BC0-\U00011BFF\U00013460-\U000143FF\U00016100-\U0001613F\U00016D40-\U00016D7F"
    r"\U0001E5D0-\U0001E5FF"
)


def _without_new(words: str) -> str:
    return words.replace(r"\p{L}", rf"[\p{{L}}--[{_NEW}]]").replace(r"\p{N}", rf"[\p{{N}}--[{_NEW}]]")


NEOX_MISTAKES: dict[str, dict[str, Any]] = {
    "nfc-skipped": {"normalize": lambda text: text},
    "nfkc-for-nfc": {"normalize": lambda text: unicodedata.normalize("NFKC", text)},
    "longest-match": {"merge": longest_token},
    "rightmost-merge": {"merge": rightmost},
    "ids-as-ranks": {"merge": smallest_id},
    "merges-ignored": {"merge": any_token},
    "added-tokens-ignored": {"added": lambda names: []},
    "shortest-added-token": {"added": lambda names: sorted(names, key=len)},
    "no-words": {"words": None},
    "no-lookahead": {"words": WORDS.replace(r"\s+(?!\S)|", "")},
    "contractions-in-any-case": {"flags": regex.IGNORECASE},
    "ascii-letters": {"words": WORDS.replace(r"\p{L}", "A-Za-z").replace(" ?A-Za-z+", " ?[A-Za-z]+")},
    "ascii-digits": {"words": WORDS.replace(r"\p{N}", "0-9").replace(" ?0-9+", " ?[0-9]+")},
    "older-unicode": {"words": _without_new(WORDS), "flags": regex.V1},
    "space-before-the-text": {"prefix": " "},
}


# ---- GPT-NeoX-Japanese

REPLACED = {
    " ": "<SP>", "\u3000": "<SP>", "\r\n": "<BR>", "\n": "<BR>", "\r": "<BR>", "\t": "<TAB>", "—": "ー", "−": "ー",
}  # fmt: skip

# Two bytes of UTF-8 from U+00A1 to U+07FF that count as symbols, and three bytes from U+2000 to U+2BFF.
SYMBOLS = ((0xC2A1, 0xC2BF), (0xC780, 0xC783), (0xCAB9, 0xCBBF), (0xCC80, 0xCDA2))
BLOCK = (0xE28080, 0xE2B07F)


class Japanese:
    """The tables of a vocabulary file of the suite."""

    def __init__(self, content: Content, spellings: bool = True):
        lines = content["lines"]
        pairs = enumerate(lines) if isinstance(lines, list) else ((int(i), line) for i, line in lines.items())
        self.ids: dict[str, int] = {}
        self.first: dict[int, str] = {}
        for index, line in pairs:
            words = line.split(",")
            self.first[index] = line if line == "," else words[0]
            for word in words if spellings else words[:1]:
                self.ids[word] = index
        self.longest = max(map(len, self.ids))
        self.emoji: dict[str, str] = content["emoji"]
        self.unknown = self.ids.get(content["unk_token"])


def smallest(found: list[tuple[int, int]]) -> tuple[int, int]:
    """The rule: of the words that fit the one with the smallest id.  Pairs of id and length."""
    return min(found)


def longest(found: list[tuple[int, int]]) -> tuple[int, int]:
    return max(found, key=lambda pair: pair[1])


def encode_japanese(
    text: str,
    table: Japanese,
    *,
    choose: Callable[[list[tuple[int, int]]], tuple[int, int]] = smallest,
    normalize: Callable[[str], str] = lambda text: text,
    replaced: dict[str, str] = REPLACED,
    emoji: bool = True,
    width: int = 3,
    symbols: bool = True,
) -> list[int]:
    """The ids of a text, as transformers gives them."""
    text = normalize(text)
    for old, new in replaced.items():
        text = text.replace(old, new)
    for old, new in table.emoji.items() if emoji else ():
        text = text.replace(old, new)
    ids: list[int] = []
    place = 0
    while place < len(text):
        index, size = _next(text, place, table, choose, width)
        if size:
            ids.append(index)
        else:
            size = 1
            ids += _spelt(text[place], table, symbols)
        place += size
    return ids


def _next(
    text: str,
    place: int,
    table: Japanese,
    choose: Callable[[list[tuple[int, int]]], tuple[int, int]],
    width: int,
) -> tuple[int, int]:
    reach = table.longest + 1 if text[place] == "<" else width
    found = []
    for size in range(min(reach, len(text) - place), 0, -1):
        word = text[place : place + size]
        if word in table.ids:
            if word[0] == "<" and size > 2:
                return table.ids[word], size
            found.append((table.ids[word], size))
    return choose(found) if found else (0, 0)


def _spelt(character: str, table: Japanese, symbols: bool) -> list[int]:
    data = character.encode()
    value = int.from_bytes(data)
    if symbols and len(data) == 2 and any(low <= value <= high for low, high in SYMBOLS):
        return [table.ids["<KIGOU>"]]
    if symbols and len(data) == 3 and BLOCK[0] <= value <= BLOCK[1]:
        return [table.ids["<U2000U2BFF>"]]
    return [table.ids.get(f"<|byte{byte}|>", table.unknown or 0) for byte in data]


JAPANESE_MISTAKES: dict[str, dict[str, Any]] = {
    "longest-match": {"choose": longest},
    "nfkc-applied": {"normalize": lambda text: unicodedata.normalize("NFKC", text)},
    "nfc-applied": {"normalize": lambda text: unicodedata.normalize("NFC", text)},
    "spaces-kept": {"replaced": {k: v for k, v in REPLACED.items() if k not in (" ", "\u3000")}},
    "line-ends-kept": {"replaced": {k: v for k, v in REPLACED.items() if "\n" not in k and "\r" not in k}},
    "dashes-kept": {"replaced": {k: v for k, v in REPLACED.items() if v != "ー"}},
    "emoji-as-bytes": {"emoji": False},
    "words-of-two": {"width": 2},
    "words-of-any-length": {"width": 64},
    "symbols-as-bytes": {"symbols": False},
}


def bytes_one_by_one(ids: list[int], table: Japanese, emoji_inv: dict[str, str]) -> str:
    """The text of ids where each byte is decoded alone, and not together with its neighbours."""
    tags = {"<SP>": " ", "<BR>": "\n", "<TAB>": "\t", "<BLOCK>": "▀", "<KIGOU>": "ǀ", "<U2000U2BFF>": "‖"}
    parts = []
    for index in ids:
        word = table.first[index]
        if word.startswith("<|byte"):
            parts.append(bytes([int(word[6:-2])]).decode("utf-8", "replace"))
        else:
            parts.append(tags.get(word, emoji_inv.get(word, word)))
    return "".join(parts)
