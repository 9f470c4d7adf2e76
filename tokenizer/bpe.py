"""Byte-pair encoding of one word: pairs of neighbours are joined until no rule is left that could join one.

The rules (`merges`) come in order of rank.  Of all pairs in the word that have a rule, the one with the lowest
rank is joined, the leftmost of equals, one at a time.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from refimpl.errors import TextInputError
from refimpl.tokenizer.byte_level import BYTE_CHARACTERS, to_characters


@dataclass(frozen=True)
class BpeTables:
    """A vocabulary with its merges, on ids.

    The merge of rank `r` joins the ids `lefts[r]` and `rights[r]` to `results[r]`.  `unk_id` is the id of a
    byte that has no token (None: there is no such token), `fuse_unk` makes one of several in a row, and
    `ignore_merges` takes a word that is a token itself as it is.
    """

    vocabulary: Mapping[str, int]
    lefts: Sequence[int] = ()
    rights: Sequence[int] = ()
    results: Sequence[int] = ()
    unk_id: int | None = None
    fuse_unk: bool = False
    ignore_merges: bool = False

    @cached_property
    def byte_ids(self) -> list[int | None]:
        """Byte -> id, None for a byte without a token."""
        return [self.vocabulary.get(character) for character in BYTE_CHARACTERS]

    @cached_property
    def ranks(self) -> dict[tuple[int, int], int]:
        """(left id, right id) -> rank."""
        return dict(zip(zip(self.lefts, self.rights, strict=True), range(len(self.lefts)), strict=True))

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Id -> token."""
        return dict(zip(self.vocabulary.values(), self.vocabulary, strict=True))


class Symbols:
    """The symbols of a word while it is being merged: at first its bytes, in the end its tokens.

    They form a chain in which each knows its neighbours, so that joining two costs the same in a word of any
    length.  A symbol is named by its place in the chain at the beginning; `ids[place]` is None once it has
    been joined to the one before, and `starts[place]` is its first byte in the word.
    """

    def __init__(self, word: bytes, tables: BpeTables):
        self._tables = tables
        self.ids: list[int | None] = []
        self.starts: list[int] = []
        self._read(word)
        count = len(self.ids)
        self._next, self._previous = [*range(1, count + 1)], [*range(-1, count - 1)]
        self.starts.append(len(word))

    def _read(self, word: bytes) -> None:
        """One symbol for every byte, or for the whole word or a run of bytes, as the tables say."""
        tables = self._tables
        whole = tables.vocabulary.get(to_characters(word)) if tables.ignore_merges else None
        if whole is not None:
            self.ids, self.starts = [whole], [0]
            return
        unknown_before = False
        for position, byte in enumerate(word):
            index = tables.byte_ids[byte]
            unknown = index is None
            if unknown and tables.unk_id is None:
                raise TextInputError(
                    f"the vocabulary has no token for the byte 0x{byte:02x}, and none for unknown ones",
                    found=to_characters(word[:40]),
                )
            if not (unknown and unknown_before and tables.fuse_unk):
                self.ids.append(tables.unk_id if unknown else index)
                self.starts.append(position)
            unknown_before = unknown

    def places(self) -> Iterator[int]:
        """The places of the symbols that are left, from left to right."""
        place = 0
        while place < len(self.ids):
            yield place
            place = self._next[place]

    def tokens(self) -> tuple[list[int], list[int]]:
        """The ids of the symbols, and the byte with which each ends."""
        places = list(self.places())
        return [self.ids[p] for p in places], [self.starts[self._next[p]] for p in places]  # type: ignore[misc]

    def _rank(self, place: int) -> int | None:
        """The rank of the rule that joins the symbol to the next one, if there is one."""
        after = self._next[place]
        if after == len(self.ids):
            return None
        return self._tables.ranks.get((self.ids[place], self.ids[after]))  # type: ignore[arg-type]

    def _join(self, place: int, result: int) -> None:
        """Joins the symbol to the next one."""
        gone = self._next[place]
        after = self._next[gone]
        self.ids[place], self.ids[gone] = result, None
        self._next[place] = after
        if after < len(self.ids):
            self._previous[after] = place

    def merge(self) -> Iterator[tuple[int, int]]:
        """Joins one pair after the other; yields (rank, place of the left symbol) after each.

        All pairs that have a rule wait in a heap, the next to be joined at its top.  A pair of which one
        symbol has meanwhile been joined to another is recognised by its rank, which no longer fits.
        """
        ranks = ((self._rank(place), place) for place in range(len(self.ids)))
        waiting = [(rank, place) for rank, place in ranks if rank is not None]
        heapq.heapify(waiting)
        while waiting:
            rank, place = heapq.heappop(waiting)
            if self.ids[place] is None or self._rank(place) != rank:
                continue
            self._join(place, self._tables.results[rank])
            yield rank, place
            for neighbour in (self._previous[place], place):
                if neighbour >= 0 and (new := self._rank(neighbour)) is not None:
                    heapq.heappush(waiting, (new, neighbour))


def encode_word(word: bytes, tables: BpeTables) -> tuple[list[int], list[int]]:
    """The ids of a word, and the byte with which each ends.

    Raises: TextInputError for a byte without a token where there is no token for unknown ones.
    """
    symbols = Symbols(word, tables)
    for _ in symbols.merge():
        pass
    return symbols.tokens()


class MergeStep(NamedTuple):
    """One merge: the rule of `rank` joined `left` and `right`, which left `symbols`.

    `position` is the index in `symbols` of the one that came out.
    """

    rank: int
    left: str
    right: str
    position: int
    symbols: tuple[str, ...]


def merge_steps(word: bytes, tables: BpeTables) -> tuple[tuple[str, ...], list[MergeStep]]:
    """The symbols with which a word begins, and every merge until it is done.

    For people to watch: the steps of a word of n bytes hold up to n * n / 2 symbols.
    Raises: as `encode_word`.
    """
    symbols = Symbols(word, tables)

    def spelled() -> tuple[str, ...]:
        return tuple(tables.tokens[index] for index in symbols.tokens()[0])

    start, steps = spelled(), []
    for rank, place in symbols.merge():
        left, right = tables.tokens[tables.lefts[rank]], tables.tokens[tables.rights[rank]]
        steps.append(MergeStep(rank, left, right, list(symbols.places()).index(place), spelled()))
    return start, steps
