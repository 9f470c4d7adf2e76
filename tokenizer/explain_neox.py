"""Why a text gets its tokens from byte-level byte-pair encoding: what `neox.py` does, merge by merge."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from refimpl.tokenizer.bpe import BpeTables, Symbols
from refimpl.tokenizer.byte_level import AlignedText, words
from refimpl.tokenizer.explanation import Change, Merge, Piece, Step, Token, TokenReader, added_piece

if TYPE_CHECKING:
    from refimpl.tokenizer.neox import GPTNeoXTokenizerFast


def explain_neox(text: str, tokenizer: GPTNeoXTokenizerFast, split: bool, read: TokenReader) -> list[Piece]:
    """A valid text, from its added tokens to its merges. Raises: as `encode_word`."""
    cut = tokenizer.pieces(text, split)
    starts = [*(piece.text.origins[0] for piece in cut), len(text)]
    explained = []
    for piece, start, next_start in zip(cut, starts, starts[1:], strict=False):
        # A composed character at the end stands for characters behind those of its span.
        source = text[start : max(next_start, piece.text.span(0, len(piece.text.text))[1])]
        changes = list(_normalisation(source, piece.text))
        if piece.added_id is not None:
            token = tokenizer.added_tokens_decoder[piece.added_id]
            made = added_piece(piece.text.text, token, read.ids([piece.added_id]))
            explained.append(Piece(source, changes, made.normalized, made.steps))
            continue
        steps: list[Step] = []
        normalized = ""
        for word in words(piece.text.with_space() if tokenizer.add_prefix_space else piece.text):
            steps.append(_explain_word(word.text, len(normalized), tokenizer.tables, read))
            normalized += word.text
        if normalized != piece.text.text:
            changes.append(Change("prefix space", "", " ", 1))
        explained.append(Piece(source, changes, normalized, steps))
    return explained


def _normalisation(source: str, normal: AlignedText) -> Iterator[Change]:
    """What NFC did, character by character with its marks; `normal` is what became of `source`."""
    if normal.text == source:
        return
    # Cut before each character that is no mark and stands for another than the character before it.
    cuts = [
        index
        for index in range(1, len(normal.text))
        if normal.origins[index] > normal.origins[index - 1] and not unicodedata.combining(normal.text[index])
    ]
    bounds = [(0, 0), *((normal.origins[cut] - normal.origins[0], cut) for cut in cuts)]
    bounds.append((len(source), len(normal.text)))
    pairs = ((source[a:b], normal.text[c:d]) for (a, c), (b, d) in pairwise(bounds))
    for (old, new), count in Counter(pair for pair in pairs if pair[0] != pair[1]).items():
        yield Change("NFC", old, new, count)


def _explain_word(word: str, start: int, tables: BpeTables, read: TokenReader) -> Step:
    data = word.encode("utf-8")
    symbols = Symbols(data, tables)
    first = len(symbols.ids)
    merges = []
    for rank, place in symbols.merge():
        left, right, result = tables.lefts[rank], tables.rights[rank], tables.results[rank]
        names = tables.tokens
        merges.append(Merge(rank, symbols.starts[place], names[left], names[right], names[result], result))
    tokens = read.ids(symbols.tokens()[0])
    kind, reason = _why(data, first, merges, tokens, tables)
    return Step(kind, reason, word, start, tokens, merges=merges)


def _why(
    data: bytes, first: int, merges: list[Merge], tokens: list[Token], tables: BpeTables
) -> tuple[str, str]:
    """Kind and reason of the tokens of a word that began as `first` symbols."""
    size = "one byte" if len(data) == 1 else f"{len(data)} bytes"
    if tables.ignore_merges and len(tokens) == first == 1 and len(data) > 1:
        return "whole", "the word is in the vocabulary; its merges are not asked"
    unknown = [byte for byte in data if tables.byte_ids[byte] is None]
    note = f"; {len(unknown)} of them without a token: unk_token" if unknown else ""
    if len(data) == 1:
        return "bytes", "one byte" + note
    if not merges:
        return "bytes", f"{size}, and no merge joins any two" + note
    count = "one merge" if len(merges) == 1 else f"{len(merges)} merges"
    if len(tokens) == 1:
        return "merges", f"{size}, {count} into one token" + note
    return "merges", f"{size}, {count}; none joins what is left" + note
