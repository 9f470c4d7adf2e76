"""Merging: the order of the merges, bytes without a token, long words, and the steps for people to watch."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.errors import TextInputError
from refimpl.tokenizer.bpe import BpeTables, MergeStep, encode_word, merge_steps
from refimpl.tokenizer.byte_level import BYTE_CHARACTERS
from refimpl.tokenizer.neox_files import make_tables


def tables(*merges: str, letters: str = "abc", **options: object) -> BpeTables:
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return make_tables(vocabulary, list(merges), "a test", **options)  # type: ignore[arg-type]


def tokens(word: str, made: BpeTables) -> list[str]:
    return [made.tokens[index] for index in encode_word(word.encode(), made)[0]]


@pytest.mark.parametrize(
    ("merges", "word", "expected"),
    [
        ((), "abc", ["a", "b", "c"]),
        (("a b", "b c"), "abc", ["ab", "c"]),
        (("b c", "a b"), "abc", ["a", "bc"]),
        (("a a",), "aaa", ["aa", "a"]),  # the leftmost of equals
        (("a a", "aa a"), "aaaaa", ["aa", "aaa"]),
        (("a a", "aa aa", "aaaa aa"), "aaaaaaa", ["aaaaaa", "a"]),
        (("a b", "ab c", "b c"), "abcbc", ["abc", "bc"]),
        (("b c", "a bc", "a b"), "abcab", ["abc", "ab"]),
        (("b c", "c a", "bc a"), "bcab", ["bca", "b"]),
    ],
)
def test_merges_are_made_in_order_of_rank(merges: tuple[str, ...], word: str, expected: list[str]) -> None:
    assert tokens(word, tables(*merges)) == expected


def slowly(word: str, made: BpeTables) -> list[int]:
    """The definition: look for the lowest rank, join the leftmost pair that has it, begin again."""
    ids: list[int] = [made.vocabulary[c] for c in word]
    while True:
        ranked = [(made.ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in made.ranks]
        if not ranked:
            return ids
        rank, i = min(ranked)
        ids[i : i + 2] = [made.results[rank]]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=25),
    st.text(st.sampled_from("abc"), max_size=60),
)
def test_the_heap_gives_what_the_definition_gives(pairs: list[tuple[int, int]], word: str) -> None:
    """Any merges of which each joins tokens that are there before it."""
    spelled, merges = ["a", "b", "c"], []
    for left, right in pairs:
        a, b = spelled[left % len(spelled)], spelled[right % len(spelled)]
        if f"{a} {b}" not in merges:
            merges.append(f"{a} {b}")
            spelled += [] if a + b in spelled else [a + b]
    made = tables(*merges)
    ids, ends = encode_word(word.encode(), made)
    assert ids == slowly(word, made)
    assert "".join(made.tokens[i] for i in ids) == word
    assert [b - a for a, b in pairwise([0, *ends])] == [len(made.tokens[i]) for i in ids]


def test_a_long_word_takes_time_in_proportion() -> None:
    """Quadratic work on so long a word would take minutes."""
    made = tables("a a", "aa aa", "aaaa aaaa")
    ids, ends = encode_word(b"a" * 200_000, made)
    assert ids == [made.vocabulary["a" * 8]] * 25_000
    assert ends[-1] == 200_000


def test_a_byte_without_a_token_is_an_error() -> None:
    with pytest.raises(TextInputError, match="no token for the byte 0x64"):
        encode_word(b"abd", tables("a b"))


def test_a_byte_without_a_token_is_the_unknown_token() -> None:
    made = tables("a b", letters="abc?", unk_token="?")
    assert encode_word(b"abdda", made) == ([4, 3, 3, 0], [2, 3, 4, 5])
    fused = tables("a b", letters="abc?", unk_token="?", fuse_unk=True)
    assert encode_word(b"abddad", fused) == ([4, 3, 0, 3], [2, 4, 5, 6])


def test_a_whole_word_goes_before_merges_where_the_file_says_so() -> None:
    merges = ("b c", "a b", "ab c")
    assert tokens("abc", tables(*merges)) == ["a", "bc"]
    assert tokens("abc", tables(*merges, ignore_merges=True)) == ["abc"]
    assert tokens("abca", tables(*merges, ignore_merges=True)) == ["a", "bc", "a"]


def test_the_steps_show_every_merge() -> None:
    start, steps = merge_steps(b"abcab", tables("b c", "a b", "a bc"))
    assert start == ("a", "b", "c", "a", "b")
    assert steps == [
        MergeStep(0, "b", "c", 1, ("a", "bc", "a", "b")),
        MergeStep(1, "a", "b", 2, ("a", "bc", "ab")),
        MergeStep(2, "a", "bc", 0, ("abc", "ab")),
    ]


def test_byte_ids_name_every_byte() -> None:
    made = make_tables({c: 300 - i for i, c in enumerate(BYTE_CHARACTERS)}, [], "a test")
    assert made.byte_ids == [300 - i for i in range(256)]
