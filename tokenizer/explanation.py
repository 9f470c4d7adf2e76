"""Why a text gets the tokens it gets, as data: for porters, and for `refimpl tokenize --explain`.

The way of the data is the tokenizer's own: the text is cut at added tokens into *pieces*; each piece is
normalised (*changes*) and read from left to right in *steps*, each of which gives one or more *tokens*.
What a step is depends on the algorithm: a place in the text where one of several words is chosen, or a word
whose bytes are merged.  A step says in plain words why its tokens won.

    explanation = tokenizer.explain("吾輩は猫")
    for step in explanation.steps:
        print(step.text, step.reason, [token.id for token in step.tokens])
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refimpl.errors import ResourceLimitError

if TYPE_CHECKING:
    from refimpl.tokenizer.added_tokens import AddedToken
    from refimpl.tokenizer.codec import TokenCodec

# An explanation is to be read, and takes a thousand times the memory of its text.
MAX_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the result: what it stands for, and the text that is complete with it."""

    id: int
    token: str
    data: bytes  # its own bytes, in UTF-8
    text: str  # "" within a character whose bytes are spread over several tokens

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "token": self.token, "bytes": self.data.hex(), "text": self.text}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word that would have fitted: those of one step are in the order in which they are found."""

    token: str
    id: int

    def to_dict(self) -> dict[str, Any]:
        return {"token": self.token, "id": self.id}


@dataclass(frozen=True, slots=True)
class Merge:
    """Two neighbours that became one token: of all neighbours at that moment none had a lower rank.

    `start` counts the bytes of the word before `left`.
    """

    rank: int
    start: int
    left: str
    right: str
    token: str
    id: int

    def to_dict(self) -> dict[str, Any]:
        names = ("rank", "start", "left", "right", "token", "id")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Change:
    """What normalisation put in place of `old`, `count` times, before the next change was looked for."""

    rule: str
    old: str
    new: str
    count: int

    def to_dict(self) -> dict[str, Any]:
        return {"rule": self.rule, "old": self.old, "new": self.new, "count": self.count}


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of a normalised piece and its tokens.

    `kind` is one word for programs, `reason` a phrase for readers; `start` counts the characters of the
    normalised piece.  `candidates` or `merges` are empty where the algorithm has none.
    """

    kind: str
    reason: str
    text: str
    start: int
    tokens: list[Token]
    candidates: list[Candidate] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "reason": self.reason,
            "text": self.text,
            "start": self.start,
            "tokens": [token.to_dict() for token in self.tokens],
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "merges": [merge.to_dict() for merge in self.merges],
        }


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the text between added tokens, or an added token (its one step has the kind "added")."""

    text: str
    changes: list[Change]
    normalized: str
    steps: list[Step]

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "changes": [change.to_dict() for change in self.changes],
            "normalized": self.normalized,
            "steps": [step.to_dict() for step in self.steps],
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """All of a text: `tokens` are those of `tokenizer.tokenize(text)`, with the reason of each in `steps`."""

    text: str
    tokenizer: str  # the name of its class
    pieces: list[Piece]

    @property
    def steps(self) -> list[Step]:
        return [step for piece in self.pieces for step in piece.steps]

    @property
    def tokens(self) -> list[Token]:
        return [token for step in self.steps for token in step.tokens]

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON has it; bytes are hexadecimal."""
        return {
            "text": self.text,
            "tokenizer": self.tokenizer,
            "ids": self.ids,
            "pieces": [piece.to_dict() for piece in self.pieces],
        }


class TokenReader:
    """Makes each `Token`; called in the order of the text, because characters grow over several tokens."""

    def __init__(self, tokenizer: TokenCodec):
        from refimpl.tokenizer.streaming import StreamDecoder

        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, skip_special_tokens=False)

    def names(self, names: list[str]) -> list[Token]:
        """The tokens with these names."""
        return self._tokens(self._tokenizer.convert_tokens_to_ids(names), names)

    def ids(self, ids: list[int]) -> list[Token]:
        """The tokens with these ids."""
        return self._tokens(ids, self._tokenizer.convert_ids_to_tokens(ids))

    def _tokens(self, ids: list[int], names: list[str]) -> list[Token]:
        return [
            Token(index, name, self._tokenizer.token_bytes(index), self._decoder.put(index))
            for index, name in zip(ids, names, strict=True)
        ]


def added_piece(text: str, token: AddedToken | None, tokens: list[Token]) -> Piece:
    """An added token that was cut out of the text, with the white space that it swallowed."""
    reason = "an added token, cut out first"
    swallowed = [] if token is None else [("before", token.lstrip), ("after", token.rstrip)]
    sides = [side for side, swallows in swallowed if swallows]
    if sides:
        reason += f", with the white space {' and '.join(sides)} it"
    return Piece(text, [], text, [Step("added", reason, text, 0, tokens)])


def check_length(text: str) -> None:
    """Raises: ResourceLimitError for a text that nobody would read an explanation of."""
    if len(text) > MAX_CHARACTERS:
        raise ResourceLimitError(
            "the text is too long to be explained",
            found=f"{len(text):,} characters",
            allowed=f"{MAX_CHARACTERS:,} characters",
            hint="Explain a part of it.",
        )
