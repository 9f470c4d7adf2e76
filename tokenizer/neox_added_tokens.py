"""Added tokens in a text, found as the `tokenizers` package finds them.

Its rules are not those of transformers' tokenizers in Python (`added_tokens.py`): other characters are white
space and parts of words, and `lstrip` and `rstrip` widen the token itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache

from refimpl.tokenizer.added_tokens import AddedToken, AddedTokenSplitter
from refimpl.tokenizer.unicode_classes import SPACES, WORD_CHARACTERS, CharacterClass


@cache
def _spaces() -> re.Pattern[str]:
    return re.compile(CharacterClass(SPACES).regular_expression() + "*")


@cache
def _word_characters() -> CharacterClass:
    return CharacterClass(WORD_CHARACTERS)


def is_space(character: str) -> bool:
    """Whether the character is white space: U+0085 is, U+001C to U+001F are not."""
    return _spaces().fullmatch(character) is not None


class AddedTokenFinder:
    """Finds the added tokens of one kind: those looked for in the text as it is, or in normalised text.

    `normalize` is applied to what a token looks like; of two that then look the same, the smaller id counts.
    """

    def __init__(self, tokens: Mapping[int, AddedToken], normalize: Callable[[str], str]):
        self._tokens: dict[str, tuple[int, AddedToken]] = {}
        for index, token in sorted(tokens.items()):
            self._tokens.setdefault(normalize(token.content), (index, token))
        self._splitter = AddedTokenSplitter(self._tokens)

    def simple_ids(self) -> dict[str, int] | None:
        """What is looked for, with its id; None when a token has an option that says where it may stand."""
        if any(token.lstrip or token.rstrip or token.single_word for _, token in self._tokens.values()):
            return None
        return {content: index for content, (index, _) in self._tokens.items()}

    def may_find(self, text: str) -> bool:
        """Whether a token may stand in `text`; False is certain."""
        return self._splitter.may_cut(text)

    def find(self, text: str, special_too: bool) -> list[tuple[int, int, int | None]]:
        """The text in stretches `(start, end, id)`; the id is None for what is no added token.

        Of the tokens that begin at the leftmost place the longest is taken.  Where it may not stand
        (`single_word`; special, without `special_too`), its characters are ordinary text: no shorter token is
        looked for in them.  White space that `rstrip` has swallowed is still searched for tokens, as in the
        `tokenizers` package: stretches can overlap there.  A token found wholly in there swallows nothing, which
        is the one difference: over there the work, and the ids, would grow with the square of the white space.
        """
        stretches: list[tuple[int, int, int | None]] = []
        done = 0
        for start, end in self._splitter.matches(text):
            index, token = self._tokens[text[start:end]]
            if (token.special and not special_too) or (token.single_word and _in_a_word(text, start, end)):
                continue
            if token.rstrip and end > done:
                end = _spaces().match(text, end).end()  # type: ignore[union-attr]
            if token.lstrip:
                start = max(_start_of_spaces(text, done, start), done)
            if start >= end:  # swallowed as a whole
                continue
            if done < start:
                stretches.append((done, start, None))
            stretches.append((start, end, index))
            done = end
        if done < len(text):
            stretches.append((done, len(text), None))
        return stretches


def _in_a_word(text: str, start: int, end: int) -> bool:
    beside = text[start - 1 : start] + text[end : end + 1]
    return any(ord(character) in _word_characters() for character in beside)


def _start_of_spaces(text: str, first: int, end: int) -> int:
    """Where the white space before `end` begins; not before `first`, nor after `end`."""
    while end > first and is_space(text[end - 1]):
        end -= 1
    return end
