"""Ids -> text, and ids and texts that are refused."""

from __future__ import annotations

import numpy as np
import pytest

from refimpl.errors import InputError, TextInputError


def test_decode_takes_ids_in_every_form(toy) -> None:
    assert toy.decode(0) == toy.decode([0]) == toy.decode((0,)) == toy.decode(np.int64(0)) == "こん"
    assert (
        toy.decode([0, 2])
        == toy.decode(np.array([0, 2]))
        == toy.decode([np.int32(0), np.uint8(2)])
        == "こんにちは"
    )
    assert toy.decode([[0], [2]]) == toy.decode(np.array([[0], [2]])) == ["こん", "にちは"]
    assert toy.decode([np.array([0]), np.array([2, 5])]) == ["こん", "にちは、"]
    assert toy.decode([]) == ""
    assert toy.decode([[]]) == [""]


def test_batch_decode_gives_a_list(toy) -> None:
    assert toy.batch_decode([[0], [2]]) == ["こん", "にちは"]
    assert toy.batch_decode([0, 2]) == ["こんにちは"]
    assert toy.batch_decode(np.array([[0, 20], [2, 21]]), skip_special_tokens=True) == ["こん", "にちは"]


def test_clean_up_takes_out_spaces(sparse) -> None:
    ids = sparse.encode("it 's a .")
    assert sparse.decode(ids) == "it 's a ."
    assert sparse.decode(ids, clean_up_tokenization_spaces=True) == "it's a."


@pytest.mark.parametrize(
    "wrong", [-1, 22, 2**63, 2**70, 1.0, True, None, "a", float("nan"), np.float32(1), np.bool_(True)]
)
def test_what_is_not_an_id_is_refused_with_its_place(toy, wrong) -> None:
    with pytest.raises(InputError, match="position 0"):
        toy.decode(wrong)
    with pytest.raises(InputError, match=r"position 2.*allowed: int from 0 to 21") as caught:
        toy.decode([0, 1, wrong])
    assert caught.value.position == 2
    with pytest.raises(InputError):
        toy.convert_ids_to_tokens([wrong])
    with pytest.raises(InputError):
        toy.decode([[0], [wrong]])


@pytest.mark.parametrize(
    "wrong", [[[[0]]], [[0], 1], [0, [1]], {0}, object(), np.zeros((1, 1, 1), int), np.array([0.5])]
)
def test_shapes_that_are_no_batch_are_refused(toy, wrong) -> None:
    with pytest.raises(InputError):
        toy.decode(wrong)


def test_ids_of_added_tokens_are_allowed(toy) -> None:
    toy.add_tokens("X")
    assert toy.decode([22]) == "X"
    with pytest.raises(InputError, match=r"and \[22\]"):
        toy.decode([23])


def test_tokens_and_ids_convert(toy) -> None:
    assert toy.convert_tokens_to_ids("こん") == 0
    assert toy.convert_tokens_to_ids(["こん", "㔺界", "?"]) == [0, 4, 19]
    assert toy.convert_tokens_to_ids([]) == []
    assert toy.convert_ids_to_tokens(4) == "世界"
    assert toy.convert_ids_to_tokens([4, 8, 21]) == ["世界", " ", "<|endoftext|>"]
    assert toy.convert_ids_to_tokens([4, 21], skip_special_tokens=True) == ["世界"]
    assert toy.convert_tokens_to_string([" ", "世界", " "]) == "世界"
    for wrong in (3, None, [3], [None]):
        with pytest.raises(InputError):
            toy.convert_tokens_to_ids(wrong)


def test_original_converts_to_words(original) -> None:
    assert original.convert_ids_to_tokens([31719, 31785]) == ["<SP>", "<|byte44|>"]
    assert original.convert_tokens_to_string(["<SP>", "<|byte227|>", "<|byte129|>", "<|byte130|>"]) == " あ"


SURROGATES = [0xD800, 0xDB7F, 0xDBFF, 0xDC00, 0xDFFF]


@pytest.mark.parametrize("code", SURROGATES)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_surrogates_are_refused_with_their_place(toy, code, position) -> None:
    text = "あい"[:position] + chr(code) + "あい"[position:]
    with pytest.raises(TextInputError, match=f"character {position} is a surrogate") as caught:
        toy(text)
    assert caught.value.position == position
    assert 'surrogates="replace"' in str(caught.value)
    with pytest.raises(TextInputError, match="text 1: "):
        toy(["あ", text])


@pytest.mark.parametrize("code", SURROGATES)
def test_surrogates_can_be_replaced(make_toy, toy, code) -> None:
    for text in (chr(code), f"a{chr(code)}b", f"{chr(code)}\n"):
        expected = text.replace(chr(code), "\ufffd")
        assert toy.tokenize(text, surrogates="replace") == toy.tokenize(expected)
        assert make_toy(surrogates="replace").encode(text) == toy.encode(expected)
        assert toy(text, surrogates="replace") == toy(expected)


def test_a_pair_of_surrogates_is_replaced_by_its_character(toy) -> None:
    assert toy.tokenize("\ud83d\ude00", surrogates="replace") == ["<|emoji1|>"]
    with pytest.raises(InputError, match="surrogates is unknown"):
        toy.tokenize("a", surrogates="drop")


@pytest.mark.parametrize("wrong", [None, 3, b"a", ["a"]])
def test_only_text_is_tokenized(toy, wrong) -> None:
    with pytest.raises(InputError):
        toy.tokenize(wrong)
