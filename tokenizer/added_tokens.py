"""Tokens that are cut out of a text before the tokenizer's own algorithm sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from refimpl.errors import InputError, quote
from refimpl.tokenizer.traced_text import Text

MAX_ADDED_TOKENS = 10_000
MAX_TOKEN_LENGTH = 256
_FEW = 8


@dataclass(frozen=True)
class AddedToken:
    """A piece of text with an id of its own, and how it takes to the text around it.

    `lstrip` and `rstrip` swallow the white space before and after it, `single_word` lets it match only
    where a space (or nothing) stands on both sides, `special` lets `skip_special_tokens` drop it, and
    `normalized` (default: `not special`) says whether it is looked for in normalised text.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    special: bool = False
    normalized: bool = None  # type: ignore[assignment]  # None becomes `not special`

    def __post_init__(self) -> None:
        if self.normalized is None:
            object.__setattr__(self, "normalized", not self.special)
        if not isinstance(self.content, str) or len(self.content) > MAX_TOKEN_LENGTH:
            raise InputError(
                "the content of an added token is not a short text",
                found=quote(self.content),
                allowed=f"str of at most {MAX_TOKEN_LENGTH} characters",
            )
        for name in ("single_word", "lstrip", "rstrip", "special", "normalized"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} of an added token is not a bool", found=quote(getattr(self, name)))

    def __str__(self) -> str:
        return self.content

    def to_dict(self) -> dict[str, Any]:
        """The token as `tokenizer_config.json` spells it."""
        names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        return {name: getattr(self, name) for name in names}


class AddedTokenSplitter:
    """Cuts a text at added tokens: the leftmost match first, and of those the longest."""

    def __init__(self, tokens: Iterable[str]):
        tokens = list(tokens)
        self._trie: dict[str, Any] = {}
        for token in tokens:
            node = self._trie
            for character in token:
                node = node.setdefault(character, {})
            node[""] = True  # an edge that no character can have marks the end of a token
        # What all tokens with the same first character begin with: "<|" rather than every "<".
        by_first: dict[str, list[str]] = {}
        for token in filter(None, tokens):
            by_first.setdefault(token[0], []).append(token)
        prefixes = [_common_prefix(group) for group in by_first.values()]
        if len(prefixes) > _FEW:  # one look at a set of characters, however many there are
            pattern = f"[{''.join(map(re.escape, by_first))}]"
        else:
            pattern = "|".join(map(re.escape, prefixes))
        self._may_start = re.compile(pattern) if prefixes else None

    def may_cut(self, text: str) -> bool:
        """Whether a token may stand in `text`; False is certain."""
        return self._may_start is not None and self._may_start.search(text) is not None

    def matches(self, text: str) -> Iterator[tuple[int, int]]:
        """Where added tokens stand in `text`, from left to right; no two of them overlap."""
        if self._may_start is None:
            return
        position = 0
        while found := self._may_start.search(text, position):
            start = found.start()
            end = self._longest_match(text, start)
            position = end or start + 1
            if end:
                yield start, end

    def split(self, text: Text) -> list[Text]:
        """`text` in pieces that join to it again, each added token a piece of its own."""
        pieces, done = [], 0
        for start, end in self.matches(str(text)):
            pieces += [text[done:start], text[start:end]]
            done = end
        pieces.append(text[done:])
        return [piece for piece in pieces if piece]

    def _longest_match(self, text: str, start: int) -> int:
        """The end of the longest token that begins at `start`, or 0."""
        node, position, end = self._trie, start, 0
        while position < len(text) and (node := node.get(text[position])):  # type: ignore[assignment]
            position += 1
            if "" in node:
                end = position
        return end


def _common_prefix(words: list[str]) -> str:
    first, last = min(words), max(words)  # all others lie between these two
    length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), None)
    return first[:length]


def apply_token_options(pieces: list[Text], tokens: Mapping[str, AddedToken]) -> list[Text]:
    """The pieces of `split` after `lstrip`, `rstrip` and `single_word` have had their say.

    A token that may not match here is joined to its neighbour, and so becomes ordinary text.
    """
    pieces = list(pieces)
    for index, piece in enumerate(pieces):
        token = tokens.get(str(piece))
        if token is None:
            continue
        nothing = piece[:0]
        left = pieces[index - 1] if index > 0 else nothing
        right = pieces[index + 1] if index + 1 < len(pieces) else nothing
        if token.rstrip and right:
            pieces[index + 1] = right.lstrip()
        if token.lstrip and left:
            pieces[index - 1] = left.rstrip()
        if token.single_word and left and not left.endswith(" "):
            pieces[index - 1] += piece
            pieces[index] = nothing
        elif token.single_word and right and not right.startswith(" "):
            pieces[index + 1] = piece + pieces[index + 1]
            pieces[index] = nothing
    return [piece for piece in pieces if piece]
