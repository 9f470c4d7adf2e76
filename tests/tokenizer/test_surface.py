"""What users of transformers' tokenizers expect to find: other ways to call, properties, copies, overflow as rows."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from refimpl.errors import InputError, ResourceLimitError, TextInputError
from refimpl.tokenizer import BatchEncoding
from refimpl.tokenizer.encoding import TextEncoding
from refimpl.tokenizer.options import Options
from refimpl.tokenizer.rows import MAX_PADDING, cut_into_rows
from tests.tokenizer.neox_toy import toy as neox_toy

A, B = "こん、世界", "、。"  # ids 0 5 4 and 5 6
ENDOFTEXT = 21


@pytest.fixture
def padding(make_toy):
    return make_toy(pad_token="<|endoftext|>")


# ---- the same, called otherwise


def test_names_of_transformers_4(toy) -> None:
    assert toy.encode_plus(A, B, truncation=True, max_length=3) == toy(A, B, truncation=True, max_length=3)
    assert toy.batch_encode_plus([A, (A, B)]) == toy([A, (A, B)])
    with pytest.raises(InputError, match="batch"):
        toy.batch_encode_plus(A)
    toy.extra_special_tokens = ["。"]
    assert toy.additional_special_tokens == ["。"]
    assert toy.additional_special_tokens_ids == toy.extra_special_tokens_ids == [6]


def test_targets_become_labels(padding) -> None:
    encoding = padding([A, B], text_target=[B, A], padding=True, max_length=3, truncation=True)
    assert encoding.labels == [[5, 6, ENDOFTEXT], [0, 5, 4]]
    assert encoding.input_ids == [[0, 5, 4], [5, 6, ENDOFTEXT]]
    assert padding(A, text_target=A, max_target_length=1, truncation=True).labels == [0]
    assert padding(text_target=A) == padding(A)
    assert padding(A, None, B, A).labels == padding(B, A).input_ids
    with pytest.raises(InputError):
        padding()


def test_ids_are_prepared_like_texts(padding) -> None:
    for settings in (
        {},
        {"truncation": True, "max_length": 2, "return_overflowing_tokens": True},
        {"padding": "max_length", "max_length": 7, "return_special_tokens_mask": True},
    ):
        assert padding.prepare_for_model([0, 5, 4], **settings) == padding(A, **settings)
    assert padding.prepare_for_model([0, 5, 4], [5, 6]) == padding(A, B)
    assert padding.prepare_for_model([0], return_tensors="np").input_ids.shape == (1,)
    assert padding.prepare_for_model([0], return_tensors="np", prepend_batch_axis=True).input_ids.shape == (
        1,
        1,
    )
    neox = neox_toy(add_bos_token=True)
    assert neox.prepare_for_model(neox.encode("Hello", add_special_tokens=False)) == neox("Hello")
    for wrong in (None, "a", [None], [1.5], 3):
        with pytest.raises(InputError):
            padding.prepare_for_model(wrong)
    with pytest.raises(InputError):
        padding.prepare_for_model([1], [None])


@pytest.mark.parametrize(
    ("settings", "result"),
    [
        ({"num_tokens_to_remove": 2}, ([1, 2, 3], [5, 6], [])),
        ({"num_tokens_to_remove": 3}, ([1, 2, 3, 4][:2], [5, 6, 7][:2], [])),
        ({"num_tokens_to_remove": 0}, ([1, 2, 3, 4], [5, 6, 7], [])),
        (
            {"num_tokens_to_remove": 1, "truncation_strategy": "only_first", "stride": 1},
            ([1, 2, 3], [5, 6, 7], [3, 4]),
        ),
        ({"num_tokens_to_remove": 1, "truncation_strategy": "only_second"}, ([1, 2, 3, 4], [5, 6], [7])),
        (
            {"num_tokens_to_remove": 1, "truncation_strategy": "do_not_truncate"},
            ([1, 2, 3, 4], [5, 6, 7], []),
        ),
    ],
)
def test_sequences_are_truncated(toy, settings, result) -> None:
    assert toy.truncate_sequences([1, 2, 3, 4], [5, 6, 7], **settings) == result


def test_tokens_of_two_texts() -> None:
    toy = neox_toy(add_bos_token=True, add_eos_token=True)
    end = "<|endoftext|>"
    assert toy.tokenize("Hello", " the") == ["Hello", "Ġthe"]
    assert toy.tokenize("Hello", " the", add_special_tokens=True) == [end, "Hello", end, end, "Ġthe", end]
    assert toy.tokenize("Hello", add_special_tokens=True) == [end, "Hello", end]


def test_tokens_of_two_japanese_texts(toy) -> None:
    assert toy.tokenize(A, B, add_special_tokens=True) == ["こん", "、", "世界", "、", "。"]


# ---- properties


def test_properties(toy) -> None:
    neox = neox_toy(add_bos_token=True, add_eos_token=True, model_max_length=10)
    assert (toy.is_fast, neox.is_fast) == (False, True)
    assert (toy(A).is_fast, neox("a").is_fast) == (False, True)
    assert toy.vocab == toy.get_vocab()
    assert list(neox.added_tokens_encoder.items()) == [("<|endoftext|>", 0), ("<|padding|>", 1)]
    assert (neox.num_special_tokens_to_add(), neox.num_special_tokens_to_add(pair=True)) == (2, 4)
    assert (neox.max_len_single_sentence, neox.max_len_sentences_pair) == (8, 6)
    assert neox.get_special_tokens_mask([5, 6], [7]) == [1, 0, 0, 1, 1, 0, 1]
    assert neox.get_special_tokens_mask([0, 6], already_has_special_tokens=True) == [1, 0]
    assert neox.create_token_type_ids_from_sequences([5, 6], [7]) == [0, 0, 0, 0, 1, 1, 1]
    assert toy.clean_up_tokenization("a 's .") == "a's."


def test_types_of_padding_and_inputs_can_be_chosen(make_toy) -> None:
    tokenizer = make_toy(
        pad_token="<|endoftext|>", pad_token_type_id=3, model_input_names=["input_ids", "token_type_ids"]
    )
    padded = {"input_ids": [[0, 5, 4], [5, 6, ENDOFTEXT]], "token_type_ids": [[0, 0, 0], [0, 0, 3]]}
    assert tokenizer([A, B], padding=True) == padded
    assert tokenizer.pad(tokenizer([A, B])) == padded
    assert tokenizer(A) == {"input_ids": [0, 5, 4], "token_type_ids": [0, 0, 0]}
    assert tokenizer.saved_options()["pad_token_type_id"] == 3
    for wrong in ({"pad_token_type_id": "a"}, {"model_input_names": "input_ids"}, {"model_input_names": [3]}):
        with pytest.raises(InputError):
            make_toy(**wrong)


def test_chat_templates_are_refused(make_toy) -> None:
    with pytest.raises(InputError, match="chat templates are not run"):
        make_toy().apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    with pytest.raises(InputError, match="came with the tokenizer"):
        make_toy(chat_template="{{ x }}").apply_chat_template([])


@pytest.mark.parametrize("make", [lambda make_toy: make_toy(), lambda make_toy: neox_toy()])
def test_tokenizers_are_copied_and_pickled(make_toy, make) -> None:
    tokenizer = make(make_toy)
    tokenizer.add_tokens("XY")
    twins = [copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))]
    tokenizer.add_tokens("Z")
    for twin in twins:
        assert twin("a XY Z", return_offsets_mapping=True).word_ids()
        assert twin.encode("XY") == tokenizer.encode("XY")
        assert "Z" not in twin.get_added_vocab()


def test_calls_in_threads_do_not_meet(padding) -> None:
    settings = [
        {"padding": True},
        {"max_length": 1, "truncation": True},
        {"return_offsets_mapping": True},
        {},
    ] * 50
    expected = [padding([A, B], **setting) for setting in settings]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda setting: padding([A, B], **setting), settings)) == expected


# ---- encodings


def test_an_encoding_is_a_dict_and_more(toy) -> None:
    encoding = toy([A, B])
    assert encoding.data == encoding == dict(encoding)
    assert list(encoding.keys()) == ["input_ids", "attention_mask"]
    assert encoding.to("cuda") is encoding.to(device="cpu") is encoding
    assert encoding[0:1] == {"input_ids": [[0, 5, 4]], "attention_mask": [[1, 1, 1]]}
    assert encoding[1].tokens == ["、", "。"]
    assert neox_toy()(["a", "b"])[0:1][0].tokens == ["a"]
    with pytest.raises(KeyError):
        encoding["labels"]
    with pytest.raises(KeyError):
        encoding[None]
    encoding.labels = 3
    assert encoding.labels == 3


def test_columns_become_arrays(toy) -> None:
    encoding = toy(A)
    assert encoding.convert_to_tensors(None) is encoding
    assert encoding.convert_to_tensors("np", prepend_batch_axis=True) is encoding
    assert encoding.input_ids.shape == (1, 3)
    assert encoding.tokens() == ["こん", "、", "世界"]
    assert BatchEncoding({"input_ids": [1]}, tensor_type="np").input_ids.dtype == np.int64
    with pytest.raises(InputError, match='"np"'):
        toy(A).convert_to_tensors("pt")
    with pytest.raises(InputError, match="different lengths"):
        toy([A, B]).convert_to_tensors("np")


def test_texts_of_several_are_named_in_errors(toy) -> None:
    bad = "a\ud800"
    for given, settings, where in (
        (([A, bad],), {}, "text 1"),
        (([bad],), {}, "text 0"),
        (([A, B], [B, bad]), {"padding": "do_not_pad"}, "text 1"),
        (([[A], [B, bad]],), {"is_split_into_words": True}, "text 1, word 1"),
        (([A, bad],), {"is_split_into_words": True}, "word 1"),
        ((A, bad), {}, None),
        ((bad,), {"truncation": True, "max_length": 3}, None),
    ):
        with pytest.raises(TextInputError) as caught:
            toy(*given, **settings)
        assert caught.value.where == where


def test_padding_has_a_limit(padding) -> None:
    for settings in (
        {"padding": "max_length", "max_length": 10**9},
        {"padding": True, "pad_to_multiple_of": 10**9},
    ):
        with pytest.raises(ResourceLimitError, match="padding"):
            padding([A, B], **settings)
        with pytest.raises(ResourceLimitError, match="padding"):
            padding.pad(padding([A, B]), **settings)
    assert MAX_PADDING < 2 * 10**9


# ---- what truncation cuts off, as rows


def rows(settings: dict, *texts: str, **options) -> list[list[str]]:
    encoding = neox_toy(**options)(*texts, return_overflowing_tokens=True, truncation=True, **settings)
    return [row.tokens for row in encoding.encodings]


def test_overflow_of_one_text() -> None:
    assert rows({"max_length": 2}, "abcde") == [["a", "b"], ["c", "d"], ["e"]]
    assert rows({"max_length": 3, "stride": 1}, "abcde") == [["a", "b", "c"], ["c", "d", "e"]]
    assert rows({"max_length": 2, "stride": 1}, "abc", truncation_side="left") == [["b", "c"], ["a", "b"]]
    assert rows({"max_length": 2}, "abcde", truncation_side="left") == [["d", "e"], ["b", "c"], ["a"]]
    assert rows({"max_length": 5}, "abcde") == [["a", "b", "c", "d", "e"]]
    assert rows({"max_length": 0}, "ab") == [[], ["a", "b"]], "no room: all of it is the next row"
    assert rows({"max_length": 1}, "ab", add_bos_token=True, add_eos_token=True) == [
        ["<|endoftext|>", "a", "b", "<|endoftext|>"]
    ], "no room even for the special tokens: not truncated"


def test_overflow_of_a_pair_is_all_combinations() -> None:
    assert rows({"max_length": 3}, "abc", "de") == [list("abd"), list("cd"), list("ce"), list("abe")]
    assert rows({"max_length": 4}, "abcdef", "ghij") == [
        list(row) for row in ("abgh", "cdgh", "cdij", "efgh", "efij", "abij")
    ]
    assert rows({"max_length": 2}, "ab", "cd") == [["a", "c"], ["b", "c"], ["b", "d"], ["a", "d"]]


def test_rows_say_of_which_text_they_are() -> None:
    encoding = neox_toy()(
        ["abc", "a", "ab"],
        truncation=True,
        max_length=2,
        return_overflowing_tokens=True,
        padding=True,
        return_offsets_mapping=True,
    )
    assert encoding.overflow_to_sample_mapping == [0, 0, 1, 2]
    assert encoding.offset_mapping[1] == [(2, 3), (0, 0)]
    assert encoding.attention_mask == [[1, 1], [1, 0], [1, 0], [1, 1]]
    assert encoding.word_ids(1) == [0, None]


def test_a_single_text_with_overflow_has_rows_all_the_same() -> None:
    toy = neox_toy()
    encoding = toy("ab", return_overflowing_tokens=True)
    assert encoding == {
        "input_ids": [toy.encode("ab")],
        "attention_mask": [[1, 1]],
        "overflow_to_sample_mapping": [0],
    }


def test_the_order_and_shape_of_columns() -> None:
    names = ("token_type_ids", "attention_mask", "special_tokens_mask", "offsets_mapping", "length")
    encoding = neox_toy()("ab", **{f"return_{name}": True for name in names})
    assert list(encoding) == [
        *("input_ids", "token_type_ids", "attention_mask", "special_tokens_mask", "offset_mapping", "length")
    ]
    assert encoding.length == [2], "a list even for one text"


def test_an_empty_text_is_padded_and_an_empty_second_one_is_none() -> None:
    toy = neox_toy()
    assert toy("", padding="max_length", max_length=2).input_ids == [1, 1]
    assert toy("a", "").n_sequences == 1
    assert toy(["a"], [""]).n_sequences == 2
    assert toy([], is_split_into_words=True).input_ids == []


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        (("abc",), {"max_length": 2, "stride": 2}),
        (("abc",), {"max_length": 2, "stride": 3}),
        (("abc",), {"truncation": "only_second", "max_length": 2}),
        (("a", "bcd"), {"truncation": "only_first", "max_length": 3}),
        (("abc", "d"), {"truncation": "only_second", "max_length": 3}),
        (("abc",), {"is_split_into_words": True}),
        (([1, 2],), {}),
        (([[1, 2]],), {}),
        ((["a", None],), {}),
        ((["a"], [None]), {}),
        ((["a"], "b"), {}),
        ((["a", "b"], ["c"]), {}),
        (("a", ["b"]), {}),
        (([("a", "b", "c")],), {}),
        (([],), {}),
        ((None,), {}),
        ((b"a",), {}),
    ],
)
def test_calls_of_the_family_with_rows_that_are_refused(given, settings) -> None:
    with pytest.raises(InputError):
        neox_toy()(*given, **{"truncation": True, **settings} if "max_length" in settings else settings)


def test_rows_have_a_limit() -> None:
    text = TextEncoding(list(range(3000)))
    options = Options(truncation="longest_first", max_length=2, returned=frozenset({"overflowing_tokens"}))
    with pytest.raises(ResourceLimitError, match="too many rows"):
        cut_into_rows(text, text, 0, options)
    assert len(cut_into_rows(text, None, 0, options).rows) == 1500


# ---- how a call without settings goes


def test_the_short_way_gives_what_the_long_way_gives(make_toy) -> None:
    for tokenizer, texts in (
        (make_toy(), [A, B, ""]),
        (neox_toy(add_eos_token=True), ["Hello the", "", " a"]),
    ):
        for add in (True, False):
            for given in (*texts, texts):
                short = tokenizer(given, add_special_tokens=add)
                long = tokenizer(given, add_special_tokens=add, padding="do_not_pad")
                assert short == long
                assert list(short) == list(long)
                assert [row.tokens for row in short.encodings] == [row.tokens for row in long.encodings]
        assert list(tokenizer(texts, return_attention_mask=False)) == ["input_ids"]


def test_the_ids_of_a_call_are_its_own(toy) -> None:
    first = toy(A)
    first.input_ids.append(99)
    assert toy(A).input_ids == [0, 5, 4]
