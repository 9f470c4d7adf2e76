"""Why a piece of Japanese text gets its tokens: `japanese_text.py`, with the reason of every choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from refimpl.tokenizer.clean_text import RULES, clean_text, replace_spans
from refimpl.tokenizer.explanation import Candidate, Change, Piece, Step, TokenReader
from refimpl.tokenizer.japanese_files import Vocabulary, byte_of_tag
from refimpl.tokenizer.japanese_text import (
    KIGOU,
    REPLACEMENTS,
    U2000U2BFF,
    Choose,
    find_words,
    normalize,
    steps,
)


def explain_japanese(
    text: str,
    vocabulary: Vocabulary,
    emoji_tags: Mapping[str, str],
    do_clean_text: bool,
    choose: Choose,
    read: TokenReader,
) -> Piece:
    """A text that holds no added token. Raises: as `normalize`."""
    normalized = normalize(text, emoji_tags)
    changes = list(_replacements(text, emoji_tags))
    if do_clean_text:
        changes += _cleaning(normalized)
        normalized = clean_text(normalized)
    return Piece(text, changes, normalized, list(_steps(normalized, vocabulary, choose, read)))


def _replacements(text: str, emoji_tags: Mapping[str, str]) -> Iterator[Change]:
    """What `normalize` does, one replacement after the other."""
    for old, new in [*REPLACEMENTS, *emoji_tags.items()]:
        count = text.count(old)
        if count:
            rule = "emoji" if old in emoji_tags else "white space" if new.startswith("<") else "dash"
            text = text.replace(old, new)
            yield Change(rule, old, new, count)


def _cleaning(text: str) -> Iterator[Change]:
    """What `clean_text` does, one rule after the other."""
    for tag, find in RULES:
        spans = list(find(text))
        for old, count in Counter(text[start:end] for start, end in spans).items():
            yield Change("clean text", old, tag, count)
        text = replace_spans(text, spans, tag)
    joined = clean_text(text)
    if joined != text:
        count = (len(text) - len(joined)) // len("<BLOCK>")
        yield Change("clean text", "<BLOCK><BLOCK>", "<BLOCK>", count)


def _steps(text: str, vocabulary: Vocabulary, choose: Choose, read: TokenReader) -> Iterator[Step]:
    """The steps of `segment`, each with the words that it had to choose from."""
    for start, end, names in steps(text, vocabulary, choose):
        taken, words = text[start:end], find_words(text, start, vocabulary)
        kind, reason = _why(taken, words, vocabulary) if words else _why_spelled(taken, names)
        absent = [name for name in names if name not in vocabulary.words]
        if absent:
            reason += f"; {', '.join(absent)} not in the vocabulary: unk_token"
        candidates = [Candidate(word, vocabulary.words[word]) for word in words]
        yield Step(kind, reason, taken, start, read.names(names), candidates)


def _why(word: str, words: list[str], vocabulary: Vocabulary) -> tuple[str, str]:
    """Kind and reason of a choice among `words`."""
    if word[0] == "<" and len(word) > 2:
        return "tag", "a tag: longer than two characters, it alone counts"
    if len(words) == 1:
        return "only", "the only word that fits"
    ids = [vocabulary.words[one] for one in words]
    if vocabulary.words[word] != min(ids):
        return "drawn", f"drawn from {len(words)} candidates (dropout)"
    reason = f"smallest id of {len(words)} candidates"
    if ids.count(min(ids)) > 1:
        reason += "; of the spellings with this id the longest"
    return "smallest", reason


def _why_spelled(character: str, names: list[str]) -> tuple[str, str]:
    """Kind and reason of the words of a character that is not in the vocabulary."""
    code = ord(character)
    if byte_of_tag(names[0]) is None:
        first, last = next((span for span in KIGOU if span[0] <= code <= span[1]), U2000U2BFF)
        return "range", f"no word: U+{code:04X} is in the range U+{first:04X} to U+{last:04X} -> {names[0]}"
    if len(names) == 1:
        return "bytes", "no word: its one UTF-8 byte"
    return "bytes", f"no word: its {len(names)} UTF-8 bytes"
