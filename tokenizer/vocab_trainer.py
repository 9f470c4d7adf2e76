"""Trains a vocabulary in the format of GPT-NeoX-Japanese (BPEEncoder V2) from Japanese text.

What a vocabulary is made of, in the order of its ids:

1. *Sub-words* of two or more characters.  A sub-word never crosses character types; hiragana and katakana
   sub-words have up to three characters, kanji sub-words two.
2. *Characters* that the text needs: all kana, and the kanji and signs that are frequent enough.
3. Full-width forms, ASCII, Japanese punctuation.
4. `<BR>`, `<SP>` and their like, 12 emoji classes, the 256 bytes that spell everything else, and last the
   four special tokens.

The tokenizer looks at three characters and takes the token with the *smallest id*.  A sub-word therefore has
to stand before each of its own beginnings, or it could never be chosen; ordered so, the rule is "longest match
first".  The trainer looks for the sub-words that make the text shortest under exactly that rule.

Source of the format: https://github.com/tanreinama/Japanese-BPEEncoder_V2 and the documentation of
GPTNeoXJapaneseTokenizer in transformers.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

from refimpl.errors import InputError, TextInputError, quote
from refimpl.tokenizer.emoji_table import emoji_table
from refimpl.tokenizer.heterographs import folding, forms, vocabulary_line

HIRAGANA = "ぁ-ゖゝゞ"
KATAKANA = "ァ-ヺーヽヾ"
KANJI = "々㐀-䶿一-鿿豈-﫿𠀀-𯨟"
LONGEST = {"hiragana": 3, "katakana": 3, "kanji": 2}

KANA = "".join(chr(c) for c in [*range(0x3041, 0x3097), *range(0x30A1, 0x30FB)]) + "ーゝゞヽヾ゛゜"
SIGNS = "〜×÷¥"
FULL_WIDTH = "".join(chr(code) for code in range(0xFF01, 0xFF5F))
ASCII = "".join(chr(code) for code in range(0x21, 0x7F))
PUNCTUATION = "、。・‥…―「」『』【】〔〕《》〈〉〒○●◎→←↑↓〃△▲▽▼□■◇◆☆★♂♀§〓♭♪†¶※"
_TAG_NAMES = ("BR", "SP", "TAB", "URL", "EMAIL", "TEL", "DATE", "PRICE", "BLOCK", "KIGOU", "U2000U2BFF")
TAGS = [f"<{name}>" for name in _TAG_NAMES]
EMOJI_CLASSES = [f"<|emoji{number}|>" for number in range(1, 13)]
BYTES = [f"<|byte{value}|>" for value in range(256)]
SPECIAL = ["<|startoftext|>", "<|separator|>", "<|nottoken|>", "<|endoftext|>"]

_RUNS = re.compile(f"(?P<hiragana>[{HIRAGANA}]+)|(?P<katakana>[{KATAKANA}]+)|(?P<kanji>[{KANJI}]+)")
_DASHES = {ord("—"): "ー", ord("−"): "ー"}  # the tokenizer reads both dashes as the prolonged sound mark
# A replaced sub-word has to be worth more than the one it replaces, or the search would go in circles.
_HYSTERESIS = 0.95
_PATIENCE = 3


def character_type(char: str) -> str | None:
    """`"hiragana"`, `"katakana"`, `"kanji"`, or None for everything else."""
    match = _RUNS.match(char)
    return match.lastgroup if match else None


def train_vocab(
    texts: Iterable[str],
    vocab_size: int = 8000,
    *,
    character_coverage: float = 0.999,
    min_count: int = 2,
    rounds: int = 16,
) -> list[str]:
    """The lines of a `vocab.txt` for `texts`, at most `vocab_size` of them (fewer for a small text).

    `character_coverage` is the share of all characters that must not fall back to bytes (kanji may take half of
    the learned lines at most); `min_count`: rarer characters and sub-words get no line; `rounds` bounds the
    search.  The same texts in any order give the same lines.  Raises `InputError` for options that cannot be
    met or when there is no text, `TextInputError` for text that is not valid Unicode.
    """
    if not 0 < character_coverage <= 1:
        raise InputError(
            "character_coverage is a share", found=quote(character_coverage), allowed="0 < x <= 1"
        )
    if min_count < 1 or rounds < 1:
        raise InputError(
            "min_count and rounds must be positive", found=quote((min_count, rounds)), allowed=">= 1"
        )
    fixed = [vocabulary_line(char) for char in SIGNS + FULL_WIDTH + ASCII + PUNCTUATION]
    fixed += [*TAGS, *EMOJI_CLASSES, *BYTES, *SPECIAL]
    room = vocab_size - len(fixed) - len(KANA)
    if room < 0:
        raise InputError(
            "the vocabulary is too small for the lines that every vocabulary has",
            found=f"vocab_size={quote(vocab_size)}",
            allowed=f">= {len(fixed) + len(KANA)}",
        )
    chars, runs = _count(texts)
    if not chars:
        raise InputError(
            "there is no text to train on", hint="Give at least one text with a visible character."
        )
    learned = _needed_characters(chars, room, character_coverage, min_count)
    subwords = _search(runs, room - len(learned), min_count, rounds)
    # A voiced half-width form (ｶﾞ) begins with another one (ｶ), and so stands first.
    singles = sorted([*KANA, *learned], key=lambda c: (not _has_long_form(c), -chars[c], c))
    return [vocabulary_line(token) for token in [*_by_rank(subwords), *singles]] + fixed


def _has_long_form(char: str) -> bool:
    return any(len(form) > 1 for form in forms().get(char, ()))


def _count(texts: Iterable[str]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """How often each character occurs, and each run of characters of one type, by type."""
    chars: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    table = folding() | _DASHES
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextInputError(
                "half of a surrogate pair is no character",
                where=f"text {number}, position {error.start}",
                found=quote(text[error.start]),
                position=error.start,
            ) from error
        text = text.translate(table)
        chars.update(text)
        runs.update(match.group() for match in _RUNS.finditer(text))
    for char in [char for char in chars if unicodedata.category(char)[0] in "CMZ"]:
        del chars[char]  # control characters, marks that need another character, and spaces
    by_type: dict[str, Counter[str]] = {kind: Counter() for kind in LONGEST}
    for run, count in runs.items():
        by_type[character_type(run[0]) or ""][run] = count
    return chars, by_type


def _needed_characters(chars: Counter[str], room: int, coverage: float, min_count: int) -> list[str]:
    """The most frequent characters that have no fixed line and are no emoji, until `coverage` is reached."""
    always = set(KANA + SIGNS + FULL_WIDTH + ASCII + PUNCTUATION).union(emoji_table()["emoji"])
    optional = sorted(
        (c for c in chars if c not in always and chars[c] >= min_count), key=lambda c: (-chars[c], c)
    )
    missing = chars.total() * (1 - coverage) + 1e-9
    rare = sum(chars[c] for c in chars if c not in always and chars[c] < min_count)
    while optional and rare + chars[optional[-1]] <= missing:
        rare += chars[optional.pop()]
    return optional[: room // 2]


def _search(runs: dict[str, Counter[str]], size: int, min_count: int, rounds: int) -> dict[str, int]:
    """The `size` sub-words (with their use) that shorten the runs most, under longest match.

    Each round segments all runs, values every sub-word by the tokens it saves and every neighbouring pair by
    the tokens it would save, and keeps the best.  As candidates overlap, a round can make the text longer; the
    search ends when `_PATIENCE` rounds in a row did not make it shorter.
    """
    chosen: dict[str, int] = {}
    best: dict[str, int] = {}
    shortest: int | None = None
    worse = 0
    for _ in range(rounds):
        used: Counter[str] = Counter()
        pairs: Counter[str] = Counter()
        for kind, counted in runs.items():
            _segment_all(counted, chosen, LONGEST[kind], used, pairs)
        length = used.total()
        used_words = {word: used[word] for word in chosen if used[word] >= min_count}
        worse = 0 if shortest is None or length < shortest else worse + 1
        if worse == 0:
            shortest, best = length, used_words
        if worse == _PATIENCE:
            break
        value = {word: count * (_pieces(word, chosen) - 1.0) for word, count in used_words.items()}
        for word, count in pairs.items():
            if count >= min_count:
                value[word] = max(value.get(word, 0.0), count * _HYSTERESIS)
        chosen = dict.fromkeys(sorted(value, key=lambda word: (-value[word], word))[:size], 0)
    return best


def _segment_all(
    counted: Counter[str], words: dict[str, int], longest: int, used: Counter[str], pairs: Counter[str]
) -> None:
    """Adds up the use of every token, and of every neighbouring pair that could itself be a sub-word."""
    for run, count in counted.items():
        before = ""
        for token in _segment(run, words, longest):
            used[token] += count
            if before and len(before) + len(token) <= longest:
                pairs[before + token] += count
            before = token


def _segment(run: str, words: dict[str, int], longest: int) -> Iterator[str]:
    position = 0
    while position < len(run):
        size = longest
        while size > 1 and run[position : position + size] not in words:
            size -= 1
        yield run[position : position + size]
        position += size


def _pieces(word: str, words: dict[str, int]) -> int:
    """Into how many tokens `word` falls when it has no line of its own."""
    return sum(1 for _ in _segment(word, words, len(word) - 1))


def _by_rank(words: dict[str, int]) -> list[str]:
    """Most used first, except that a sub-word stands directly before the first of its own beginnings."""
    families: dict[str, list[str]] = {}
    for word in sorted(words, key=lambda w: (-len(w), -words[w], w)):
        families.setdefault(word[:2], []).append(word)
    rank = {start: max(words[word] for word in family) for start, family in families.items()}
    return [word for start in sorted(families, key=lambda s: (-rank[s], s)) for word in families[start]]
