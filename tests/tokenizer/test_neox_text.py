"""Bytes as characters, normalisation, and the cutting of text into words."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.tokenizer.byte_level import (
    BYTE_CHARACTERS,
    GPT2_PATTERN,
    AlignedText,
    nfc,
    nfc_aligned,
    to_bytes,
    to_characters,
    words,
)
from refimpl.tokenizer.unicode_classes import (
    INERT,
    LETTERS,
    NUMBERS,
    SPACES,
    WORD_CHARACTERS,
    CharacterClass,
)

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
MARKS = st.text(
    st.sampled_from("aeq\u0301\u0323\u0327\u0334\u0344\u0958\u1e0b\u1100\u1161\u11a8\uac00\u0898\u1abf")
)


def split(text: str) -> list[str]:
    return [word.text for word in words(AlignedText.original(text))]


def test_every_byte_has_a_printable_character_of_its_own() -> None:
    assert len(set(BYTE_CHARACTERS)) == 256
    assert all(c.isprintable() and not c.isspace() for c in BYTE_CHARACTERS)
    assert [BYTE_CHARACTERS[b] for b in b" \nA\xe9\xad"] == ["Ġ", "Ċ", "A", "é", "Ń"]


@given(st.binary())
def test_characters_and_back(data: bytes) -> None:
    assert to_bytes(to_characters(data)) == data


def test_a_token_that_is_no_row_of_bytes_is_text() -> None:
    assert to_bytes("世界é") == "世界é".encode()


# ---- classes


@pytest.mark.parametrize(
    ("table", "count"), [(LETTERS, 141_028), (NUMBERS, 1_911), (SPACES, 25), (WORD_CHARACTERS, 144_667)]
)
def test_classes_have_the_size_of_unicode_16(table: str, count: int) -> None:
    members = CharacterClass(table)
    runs = list(zip(members.firsts, members.lasts, strict=True))
    assert all(first <= last for first, last in runs)
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(runs))
    assert sum(last - first + 1 for first, last in runs) == count
    assert sum(code in members for code in range(0x110000)) == count


def test_classes_do_not_depend_on_python() -> None:
    letters = CharacterClass(LETTERS)
    assert 0x10D4A in letters  # Garay, Unicode 16.0
    assert 0x088F not in letters  # Arabic, Unicode 17.0
    for code in range(0x3400):
        if unicodedata.category(chr(code)) != "Cn":
            assert (code in letters) == unicodedata.category(chr(code)).startswith("L"), hex(code)


def test_spaces_are_those_of_the_pattern() -> None:
    spaces = CharacterClass(SPACES)
    assert 0x85 in spaces
    assert 0x1C not in spaces
    assert 0x200B not in spaces


# ---- words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Hello world", ["Hello", " world"]),
        ("it's we'LL I'd've", ["it", "'s", " we", "'", "LL", " I", "'d", "'ve"]),
        (" 's", [" '", "s"]),
        ("a  b", ["a", " ", " b"]),
        ("a   b", ["a", "  ", " b"]),
        ("a \n b", ["a", " \n", " b"]),
        ("a\tb", ["a", "\t", "b"]),
        ("a \t", ["a", " \t"]),
        ("a\u3000b", ["a", "\u3000", "b"]),
        ("a \u3000b", ["a", " ", "\u3000", "b"]),
        ("x1٣Ⅷ y", ["x", "1٣Ⅷ", " y"]),
        ("a_b!?-1", ["a", "_", "b", "!?-", "1"]),
        ("é漢'ſ", ["é漢", "'", "ſ"]),
        ("a\u0301b", ["a", "\u0301", "b"]),
        ("\x1c\x85 \x85", ["\x1c", "\x85 \x85"]),
        ("'ª's", ["'", "ª", "'s"]),
        ("🦙\u200d🦙", ["🦙\u200d🦙"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert split(text) == expected


@given(ANY_TEXT)
def test_words_join_to_the_text(text: str) -> None:
    assert "".join(split(text)) == text
    assert all(split(text))


@given(st.text(st.sampled_from(" \t\n'slrevdmté1٣!\u3000\u0301")))
def test_words_follow_the_pattern(text: str) -> None:
    """The pattern itself, by an engine whose classes agree on these characters."""
    regex = pytest.importorskip("regex")
    assert split(text) == regex.findall(GPT2_PATTERN, text)


def test_a_space_before_the_text_belongs_to_its_first_character() -> None:
    text = AlignedText.original("ab").with_space()
    assert (text.text, list(text.origins)) == (" ab", [0, 0, 1])
    assert AlignedText.original(" ab").with_space().text == " ab"
    assert AlignedText.original("\nb").with_space().text == " \nb"
    assert AlignedText.original("").with_space().text == ""


# ---- normalisation


@pytest.mark.parametrize(
    ("text", "normal", "origins"),
    [
        ("abc", "abc", [0, 1, 2]),
        ("ae\u0301b", "a\u00e9b", [0, 1, 3]),
        ("x\u0958y", "x\u0915\u093cy", [0, 1, 1, 2]),  # excluded from composition
        ("a\u1e0b\u0323b", "a\u1e0d\u0307b", [0, 1, 2, 3]),
        ("\u1100\u1161\u11a8x", "\uac01x", [0, 3]),
        ("a\u0301\u0323q", "\u1ea1\u0301q", [0, 2, 3]),
        ("\u0344a", "\u0308\u0301a", [0, 0, 1]),
        ("\u212b", "\u00c5", [0]),
    ],
)
def test_a_composed_character_stands_for_the_first_of_its_parts(
    text: str, normal: str, origins: list[int]
) -> None:
    aligned = nfc_aligned(AlignedText.original(text))
    assert (aligned.text, list(aligned.origins)) == (normal, origins)


@pytest.mark.parametrize(
    "text",
    [
        "a\u0301\u0898",  # a mark of Unicode 14.0 at the end
        "e\u0898\u0301",  # is nothing that the next mark could be composed over
        "\u1abf\u0334\u0323",
        "\U00011935\U00011930",  # composed by Unicode 13.0
        "\U000105d2\u0307",  # composed by Unicode 16.0
        "\U00016d67\U00016d67",
    ],
)
def test_newer_characters_stay_as_they_are(text: str) -> None:
    inert = CharacterClass(INERT)
    pieces, piece = [], ""
    for character in text:
        if ord(character) in inert:
            pieces += [unicodedata.normalize("NFC", piece), character]
            piece = ""
        else:
            piece += character
    assert nfc(text) == "".join(pieces) + unicodedata.normalize("NFC", piece)


def test_old_characters_are_normalised_as_everywhere() -> None:
    text = "e\u0323\u0301 \u0958 \u1100\u1161 q\u0323\u0334"
    assert nfc(text) == unicodedata.normalize("NFC", text) != text


@given(ANY_TEXT | MARKS)
def test_both_ways_to_normalise_agree(text: str) -> None:
    aligned = nfc_aligned(AlignedText.original(text))
    assert aligned.text == nfc(text)
    assert len(aligned.origins) == len(aligned.text)
    assert list(aligned.origins) == sorted(aligned.origins)
    assert all(0 <= origin < len(text) for origin in aligned.origins)


@given(MARKS)
def test_normal_text_is_normal(text: str) -> None:
    assert nfc(nfc(text)) == nfc(text)


def test_long_runs_of_marks_are_sorted_too() -> None:
    text = "a" + "\u0301\u0323" * 500
    assert nfc(text) == "\u1ea1" + "\u0323" * 499 + "\u0301" * 500
    assert nfc_aligned(AlignedText.original(text)).text == nfc(text)
