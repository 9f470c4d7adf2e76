"""Streamed text: complete characters only, and all of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.tokenizer import StreamDecoder

BYTES = {value: 31741 + value for value in range(255)}


def stream(tokenizer, ids, **options) -> list[str]:
    decoder = StreamDecoder(tokenizer, **options)
    return [decoder.put(index) for index in ids] + [decoder.finish()]


def test_a_character_comes_when_it_is_complete(sparse) -> None:
    ids = sparse.encode("é한日本😀")
    assert stream(sparse, ids) == ["", "é", "", "", "한", "日本", "😀", ""]


def test_white_space_is_kept(sparse) -> None:
    assert stream(sparse, sparse.encode(" 日本\n")) == [" ", "日本", "\n", ""]


def test_special_tokens_are_skipped_or_shown(sparse) -> None:
    ids = sparse.encode("日本<|endoftext|>")
    assert "".join(stream(sparse, ids)) == "日本"
    assert "".join(stream(sparse, ids, skip_special_tokens=False)) == "日本<|endoftext|>"


def test_an_unfinished_character_is_replaced(sparse) -> None:
    assert stream(sparse, [BYTES[0xE3], BYTES[0x81]]) == ["", "", "\ufffd"]
    assert stream(sparse, [BYTES[0xE3], *sparse.encode("日本")]) == ["", "\ufffd日本", ""]
    assert stream(sparse, [BYTES[0x81]]) == ["\ufffd", ""]


def test_added_tokens_are_streamed(make_toy) -> None:
    tokenizer = make_toy()
    tokenizer.add_tokens("新語")
    assert stream(tokenizer, tokenizer.encode("こん新語")) == ["こん", "新語", ""]


@pytest.mark.parametrize("wrong", [-1, 32000, 1.0, True, None, "a"])
def test_a_wrong_id_leaves_the_stream_as_it_was(sparse, wrong) -> None:
    decoder = StreamDecoder(sparse)
    assert decoder.put(BYTES[0xC3]) == ""
    with pytest.raises(InputError):
        decoder.put(wrong)
    assert decoder.put(BYTES[0xA9]) == "é"


def test_finish_begins_anew(sparse) -> None:
    decoder = StreamDecoder(sparse)
    decoder.put(BYTES[0xE3])
    assert decoder.finish() == "\ufffd"
    assert decoder.put(BYTES[0x41]) == "A"
    assert decoder.finish() == ""


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    ids=st.lists(st.one_of(st.integers(31590, 31999), st.integers(31741 + 0x80, 31741 + 0xF4)), max_size=20)
)
def test_a_stream_is_the_decoded_text_of_the_original_encoder(original, sparse, ids) -> None:
    assert "".join(stream(original, ids, skip_special_tokens=False)) == original.decode(ids)
    assert "".join(stream(original, ids)) == original.decode(ids, skip_special_tokens=True)
    joined = b"".join(sparse.token_bytes(index) for index in ids).decode("utf-8", "replace")
    assert "".join(stream(sparse, ids, skip_special_tokens=False)) == joined
