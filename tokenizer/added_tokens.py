"""Tokens that are cut out of a text before the tokenizer's own algorithm sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from refimpl.errors import InputError, quote

MAX_ADDED_TOKENS = 10_000
MAX_TOKEN_LENGTH = 256


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
        self._trie: dict[str, Any] = {}
        for token in tokens:
            node = self._trie
            for character in token:
                node = node.setdefault(character, {})
            node[""] = True  # an edge that no character can have marks the end of a token
        first_characters = "".join(map(re.escape, self._trie))
        self._may_start = re.compile(f"[{first_characters}]") if first_characters else None

    def split(self, text: str) -> list[str]:
        """`text` in pieces that join to it again, each added token a piece of its own."""
        if self._may_start is None:
            return [text] if text else []
        pieces, done, position = [], 0, 0
        while found := self._may_start.search(text, position):
            start = found.start()
            end = self._longest_match(text, start)
            position = end or start + 1
            if end:
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


def apply_token_options(pieces: list[str], tokens: Mapping[str, AddedToken]) -> list[str]:
    """The pieces of `split` after `lstrip`, `rstrip` and `single_word` have had their say.

    A token that may not match here is joined to its neighbour, and so becomes ordinary text.
    """
    pieces = list(pieces)
    for index, piece in enumerate(pieces):
        token = tokens.get(piece)
        if token is None:
            continue
        left = pieces[index - 1] if index > 0 else ""
        right = pieces[index + 1] if index + 1 < len(pieces) else ""
        if token.rstrip and right:
            pieces[index + 1] = right.lstrip()
        if token.lstrip and left:
            pieces[index - 1] = left.rstrip()
        if token.single_word and left and not left.endswith(" "):
            pieces[index - 1] += piece
            pieces[index] = ""
        elif token.single_word and right and not right.startswith(" "):
            pieces[index + 1] = piece + pieces[index + 1]
            pieces[index] = ""
    return [piece for piece in pieces if piece]
