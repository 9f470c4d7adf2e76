"""Rows, pairs and batches: truncation, padding, masks, arrays, and calls that are refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.tokenizer import BatchEncoding

A, B = "こん、世界", "、。"  # ids 0 5 4 and 5 6
ENDOFTEXT = 21


@pytest.fixture
def padding(make_toy):
    return make_toy(pad_token="<|endoftext|>")


def test_one_text_gives_lists(toy) -> None:
    encoding = toy(A)
    assert encoding == {"input_ids": [0, 5, 4], "attention_mask": [1, 1, 1]}
    assert encoding.input_ids is encoding["input_ids"]
    assert isinstance(encoding, BatchEncoding)
    with pytest.raises(AttributeError, match="no labels; it has input_ids, attention_mask"):
        _ = encoding.labels
    assert (lambda **keywords: keywords)(**encoding) == encoding


def test_many_texts_give_rows(toy) -> None:
    assert toy([A, B]).input_ids == [[0, 5, 4], [5, 6]]
    assert toy([A, B]).attention_mask == [[1, 1, 1], [1, 1]]
    assert toy.encode([A, B]) == [[0, 5, 4], [5, 6]]


def test_pairs_are_joined(toy) -> None:
    joined = [0, 5, 4, 5, 6]
    assert toy(A, B, return_token_type_ids=True).token_type_ids == [0, 0, 0, 1, 1]
    assert toy(A, B).input_ids == joined
    assert toy([A, B], [B, A]).input_ids == [joined, [5, 6, 0, 5, 4]]
    assert toy([(A, B), [B, A]]).input_ids == [joined, [5, 6, 0, 5, 4]]


def test_ids_and_words_are_read(toy) -> None:
    assert toy([0, 5]).input_ids == [0, 5]
    assert toy([[0, 5], [4]]).input_ids == [[0, 5], [4]]
    assert toy(np.array([0, 5]).tolist()).input_ids == [0, 5]
    assert toy(["こん", "世界"], is_split_into_words=True).input_ids == [0, 4]
    assert toy([["こん", "世界"], ["。"]], is_split_into_words=True).input_ids == [[0, 4], [6]]
    assert toy([("こん", "世界")], is_split_into_words=True).input_ids == [[0, 4]]


def test_everything_that_can_be_returned(toy) -> None:
    encoding = toy(
        [A],
        return_token_type_ids=True,
        return_special_tokens_mask=True,
        return_length=True,
        return_attention_mask=False,
    )
    assert encoding == {
        "input_ids": [[0, 5, 4]],
        "token_type_ids": [[0, 0, 0]],
        "special_tokens_mask": [[0, 0, 0]],
        "length": [3],
    }


def test_padding_to_the_longest_row(padding) -> None:
    encoding = padding([A, B], padding=True, return_special_tokens_mask=True)
    assert encoding.input_ids == [[0, 5, 4], [5, 6, ENDOFTEXT]]
    assert encoding.attention_mask == [[1, 1, 1], [1, 1, 0]]
    assert encoding.special_tokens_mask == [[0, 0, 0], [0, 0, 1]]


def test_padding_on_the_left(padding) -> None:
    encoding = padding([A, B], padding="longest", padding_side="left", return_token_type_ids=True)
    assert encoding.input_ids[1] == [ENDOFTEXT, 5, 6]
    assert encoding.attention_mask[1] == [0, 1, 1]
    assert encoding.token_type_ids[1] == [0, 0, 0]
    padding.padding_side = "left"
    assert padding([A, B], padding=True).input_ids == encoding.input_ids


def test_padding_to_a_length_and_to_a_multiple(padding) -> None:
    assert padding(B, padding="max_length", max_length=4).input_ids == [5, 6, ENDOFTEXT, ENDOFTEXT]
    assert padding([A, B], padding=True, pad_to_multiple_of=4).attention_mask == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert padding(A, padding="max_length").input_ids == [0, 5, 4], "no limit is known"
    padding.model_max_length = 5
    assert len(padding(A, padding="max_length").input_ids) == 5
    assert padding("", padding="max_length", max_length=3).input_ids == [], "as in transformers"
    assert padding([""], padding="max_length", max_length=3).input_ids == [[ENDOFTEXT] * 3]


def test_arrays_are_int64_rows(padding) -> None:
    encoding = padding([A, B], padding=True, return_tensors="np", return_length=True)
    assert {key: (value.dtype, value.shape) for key, value in encoding.items()} == {
        "input_ids": (np.int64, (2, 3)),
        "attention_mask": (np.int64, (2, 3)),
        "length": (np.int64, (2,)),
    }
    assert padding(A, return_tensors="np").input_ids.shape == (1, 3)
    assert padding("", return_tensors="np").input_ids.shape == (1, 0)
    assert padding("", return_tensors="np").input_ids.dtype == np.int64


def test_rows_of_different_lengths_are_no_array(toy) -> None:
    with pytest.raises(InputError, match="padding=True"):
        toy([A, B], return_tensors="np")


@pytest.mark.parametrize("kind", ["pt", "tf", "jax", 3])
def test_other_arrays_are_refused_naming_np(toy, kind) -> None:
    with pytest.raises(InputError, match='return_tensors="np"'):
        toy(A, return_tensors=kind)


@pytest.mark.parametrize(
    ("options", "ids", "overflow"),
    [
        ({"max_length": 2}, [0, 5], [4]),
        ({"max_length": 2, "truncation": True, "stride": 1}, [0, 5], [5, 4]),
        ({"max_length": 1, "truncation": "only_first", "stride": 9}, [0], [0, 5, 4]),
        ({"max_length": 0, "truncation": True}, [0, 5, 4], None),
        ({"max_length": 2, "truncation": False}, [0, 5, 4], None),
        ({"truncation": True}, [0, 5, 4], None),
    ],
)
def test_truncation_of_one_text(toy, options, ids, overflow) -> None:
    encoding = toy(A, return_overflowing_tokens=True, **options)
    assert encoding.input_ids == ids
    assert encoding.get("overflowing_tokens") == overflow
    assert encoding.get("num_truncated_tokens") == (None if overflow is None else 3 - len(ids))


def test_truncation_on_the_left(make_toy) -> None:
    toy = make_toy(truncation_side="left")
    encoding = toy(A, max_length=1, stride=1, return_overflowing_tokens=True)
    assert (encoding.input_ids, encoding.overflowing_tokens) == ([4], [0, 5, 4])


@pytest.mark.parametrize(
    ("strategy", "ids"),
    [
        ("longest_first", [0, 5, 5]),
        ("only_first", [0, 5, 6]),
        ("only_second", [0, 5, 4]),
    ],
)
def test_truncation_of_a_pair(toy, strategy, ids) -> None:
    assert toy(A, B, truncation=strategy, max_length=3).input_ids == ids


def test_the_limit_of_the_model_truncates(toy, caplog) -> None:
    toy.model_max_length = 2
    assert toy(A, truncation=True).input_ids == [0, 5]
    with caplog.at_level(logging.WARNING):
        assert toy(A).input_ids == toy(A).input_ids == [0, 5, 4]
    assert caplog.text.count("more than the model takes") == 1


def test_overflow_of_a_batch_has_a_row_for_each_text(toy) -> None:
    encoding = toy([A, B], max_length=2, return_overflowing_tokens=True)
    assert encoding.overflowing_tokens == [[4], []]
    assert encoding.num_truncated_tokens == [1, 0]


def test_max_length_that_has_no_effect_is_said(padding) -> None:
    with pytest.warns(UserWarning, match="max_length is ignored"):
        padding([A, B], padding=True, max_length=2)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "short"},
        {"padding": 3},
        {"truncation": "longest"},
        {"max_length": -1},
        {"max_length": 1.5},
        {"max_length": True},
        {"stride": -1},
        {"pad_to_multiple_of": 0},
        {"padding_side": "middle"},
        {"padding": True, "truncation": True, "max_length": 3, "pad_to_multiple_of": 2},
        {"text_pair": B, "truncation": True, "max_length": 3, "return_overflowing_tokens": True},
    ],
)
def test_wrong_options_are_refused(padding, options) -> None:
    with pytest.raises(InputError):
        padding(A, **options)


def test_padding_needs_a_token(toy) -> None:
    toy.pad_token = None
    with pytest.raises(InputError, match="no token to pad with"):
        toy([A, B], padding=True)


@pytest.mark.parametrize(
    "text",
    [
        None,
        3,
        2.5,
        b"a",
        [],
        [[]],
        {},
        object(),
        [None],
        [3.5],
        [True],
        ["a", 3],
        [["a", "b", "c"]],
        [[1, "a"]],
    ],
)
def test_what_is_not_a_text_is_refused(toy, text) -> None:
    with pytest.raises(InputError):
        toy(text)


def test_batches_of_pairs_have_one_size(toy) -> None:
    for pair in (B, [B, A], None):
        if pair is not None:
            with pytest.raises(InputError, match="text_pair"):
                toy([A], pair)


def test_pad_takes_encodings_in_every_form(padding) -> None:
    rows = [padding(A), padding(B)]
    padded = {"input_ids": [[0, 5, 4], [5, 6, ENDOFTEXT]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}
    assert padding.pad(rows) == padding.pad(padding([A, B])) == padded
    assert padding.pad([{"input_ids": np.array([0, 5, 4])}, {"input_ids": np.array([5, 6])}]) == padded
    assert rows[1] == padding(B), "the rows given are left as they were"
    arrays = padding.pad(rows, return_tensors="np", pad_to_multiple_of=4, padding_side="left")
    assert arrays.input_ids.tolist() == [[ENDOFTEXT, 0, 5, 4], [ENDOFTEXT, ENDOFTEXT, 5, 6]]
    assert padding.pad({"input_ids": [5]}, padding="max_length", max_length=2).attention_mask == [1, 0]


@pytest.mark.parametrize(
    "encodings",
    [
        None,
        [],
        {},
        {"ids": [1]},
        {"input_ids": 3},
        [{"input_ids": [1]}, {"ids": [1]}],
        {"input_ids": [[1], [2]], "labels": [1]},
    ],
)
def test_pad_refuses_what_is_not_an_encoding(padding, encodings) -> None:
    with pytest.raises(InputError):
        padding.pad(encodings)
