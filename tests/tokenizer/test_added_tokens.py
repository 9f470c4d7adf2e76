"""Added and special tokens: where they match, what they do to their neighbours, and their roles."""

from __future__ import annotations

import pytest

from refimpl.errors import InputError
from refimpl.tokenizer import AddedToken
from refimpl.tokenizer.added_tokens import AddedTokenSplitter


def test_normalized_defaults_to_not_special() -> None:
    assert AddedToken("a").normalized
    assert not AddedToken("a", special=True).normalized
    assert AddedToken("a", special=True, normalized=True).normalized
    assert str(AddedToken("a")) == "a"
    assert AddedToken("a") == AddedToken("a") != AddedToken("a", lstrip=True)


@pytest.mark.parametrize("content", [None, 3, b"a", "a" * 257])
def test_content_is_a_short_text(content) -> None:
    with pytest.raises(InputError):
        AddedToken(content)
    with pytest.raises(InputError):
        AddedToken("a", lstrip=1)


@pytest.mark.parametrize(
    ("tokens", "text", "pieces"),
    [
        ([], "abc", ["abc"]),
        ([], "", []),
        (["b"], "abc", ["a", "b", "c"]),
        (["b"], "bb", ["b", "b"]),
        (["x1", "x100"], "x1x100x10", ["x1", "x100", "x1", "0"]),
        (["ab", "bcd"], "abcd", ["ab", "cd"]),
        (["abcx", "bc"], "abcd", ["a", "bc", "d"]),
        (["]", "[", "^", "-", "\\"], "a]b[c^d-e\\", ["a", "]", "b", "[", "c", "^", "d", "-", "e", "\\"]),
        (["  ", "   "], "a     b", ["a", "   ", "  ", "b"]),
    ],
)
def test_the_leftmost_and_then_the_longest_match_wins(tokens, text, pieces) -> None:
    assert AddedTokenSplitter(tokens).split(text) == pieces


def test_pieces_join_to_the_text() -> None:
    splitter = AddedTokenSplitter(["aa", "ab", "ba b", "b"])
    for text in ("", "a", "aaab", "ba b ba", "aaaaab ab b"):
        assert "".join(splitter.split(text)) == text


def test_a_new_token_is_cut_out(toy) -> None:
    assert toy.add_tokens("世界こん") == 1
    assert toy.tokenize("世界こん世界") == ["世界こん", "世界"]
    assert toy.encode("世界こん") == [22]
    assert toy.decode([22, 6]) == "世界こん。"
    assert (len(toy), toy.vocab_size) == (23, 22)
    assert toy.get_added_vocab()["世界こん"] == 22


def test_a_token_of_the_vocabulary_keeps_its_id(toy) -> None:
    assert toy.add_tokens(["世界,㔺界", "、", "、", ""]) == 0
    assert toy.encode("世界,㔺界") == [4]


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, ["こん", "<SP>", "X", "<SP>", "<BR>", "こん"]),
        ({"lstrip": True}, ["こん", "X", "<SP>", "<BR>", "こん"]),
        ({"rstrip": True}, ["こん", "<SP>", "X", "こん"]),
        ({"lstrip": True, "rstrip": True}, ["こん", "X", "こん"]),
    ],
)
def test_a_token_strips_the_white_space_beside_it(toy, options, tokens) -> None:
    toy.add_tokens(AddedToken("X", **options))
    assert toy.tokenize("こん X \nこん") == tokens


def test_a_single_word_stands_between_spaces(toy) -> None:
    toy.add_tokens(AddedToken("X", single_word=True))
    assert toy.tokenize("X X") == ["X", "<SP>", "X"]
    assert toy.tokenize("こんX")[1:] == ["<|byte88|>"]
    assert toy.tokenize("Xこん")[0] == "<|byte88|>"


def test_special_tokens_are_skipped_in_decoding(toy) -> None:
    toy.add_tokens(["A"], special_tokens=True)
    toy.add_tokens(["B"])
    ids = toy.encode("こんAB<|endoftext|>")
    assert toy.decode(ids) == "こんAB<|endoftext|>"
    assert toy.decode(ids, skip_special_tokens=True) == "こんB"
    assert toy.extra_special_tokens == ["A"]


def test_split_special_tokens_treats_them_as_text(toy) -> None:
    toy.add_special_tokens({"extra_special_tokens": ["世界。"]})
    assert toy.tokenize("世界。") == ["世界。"]
    assert toy.tokenize("世界。", split_special_tokens=True) == ["世界", "。"]
    assert toy("世界。", split_special_tokens=True).input_ids == [4, 6]
    toy.split_special_tokens = True
    assert toy.encode("世界。") == [4, 6]


def test_add_special_tokens_gives_roles(toy) -> None:
    assert toy.add_special_tokens({"pad_token": "<pad>", "sep_token": AddedToken("<sep>", lstrip=True)}) == 2
    assert (toy.pad_token, toy.pad_token_id, toy.sep_token_id) == ("<pad>", 22, 23)
    assert toy.special_tokens_map["sep_token"] == "<sep>"
    assert toy.add_special_tokens({"additional_special_tokens": ["<x>", "<y>"]}) == 2
    assert toy.add_special_tokens({"extra_special_tokens": ["<z>"]}, replace_extra_special_tokens=False) == 1
    assert toy.extra_special_tokens == ["<x>", "<y>", "<z>"]
    toy.add_special_tokens({"extra_special_tokens": ["<x>"]})
    assert toy.extra_special_tokens == ["<x>"]
    assert toy.all_special_tokens[-1] == "<x>"
    assert toy.get_special_tokens_mask([0, 22, 24], already_has_special_tokens=True) == [0, 1, 1]


def test_roles_can_be_set_by_token_and_by_id(toy) -> None:
    toy.pad_token = "、"
    assert toy.pad_token_id == 5
    toy.pad_token_id = 21
    assert toy.pad_token == "<|endoftext|>"
    toy.cls_token = None
    assert toy.cls_token_id is None
    assert "cls_token" not in toy.special_tokens_map
    with pytest.raises(InputError, match="pad_token is not a token"):
        toy.pad_token = 3
    with pytest.raises(InputError):
        toy.extra_special_tokens = [None, 3]


@pytest.mark.parametrize("tokens", [3, [3], [None], ["a", b"b"]])
def test_what_is_not_a_token_is_refused(toy, tokens) -> None:
    with pytest.raises(InputError):
        toy.add_tokens(tokens)


@pytest.mark.parametrize("roles", [{"no_token": "a"}, {"pad_token": 3}, {"extra_special_tokens": "ab"}])
def test_what_is_not_a_role_is_refused(toy, roles) -> None:
    with pytest.raises(InputError):
        toy.add_special_tokens(roles)


def test_the_number_of_added_tokens_is_limited(toy) -> None:
    with pytest.raises(InputError, match="too many"):
        toy.add_tokens([f"t{i}" for i in range(10_001)])
    assert len(toy) == 22
