"""The Japanese algorithm: its rules one by one, its two modes, and dropout."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from refimpl.errors import InputError
from refimpl.tokenizer import GPTNeoXJapaneseTokenizer
from refimpl.tokenizer.japanese_files import EmojiTable, Vocabulary
from refimpl.tokenizer.japanese_text import find_words, normalize, segment, smallest_id, spell, spelled_out


def vocabulary(*lines: str) -> Vocabulary:
    spellings = [line.split(",") for line in lines]
    words = {word: index for index, line in enumerate(spellings) for word in line}
    return Vocabulary(spellings, words, {line: i for i, line in enumerate(lines)}, max(map(len, words)))


def cut(text: str, *lines: str) -> list[str]:
    table = vocabulary(*lines)
    return segment(text, table, smallest_id(table))


def test_the_smallest_id_wins_not_the_longest_word() -> None:
    assert cut("abc", "ab", "abc", "c", "a") == ["ab", "c"]
    assert cut("abc", "abc", "ab", "c", "a") == ["abc"]


def test_of_two_spellings_of_one_id_the_longest_wins() -> None:
    assert cut("aab", "a,aa", "b") == ["aa", "b"]


def test_words_are_looked_for_among_three_characters() -> None:
    assert cut("abcd", "abcd", "abc", "d") == ["abc", "d"]


def test_after_less_than_a_long_word_rules_out_the_others() -> None:
    assert cut("<abcd>", "<", "<a", "<abcd>", "<ab") == ["<abcd>"]
    assert cut("<abcde", "<", "<a", "<abcd>", "<ab", "c", "d", "e") == ["<ab", "c", "d", "e"]
    assert cut("<a", "<", "<a", "a") == ["<", "a"], "two characters are an ordinary word"


def test_find_words_gives_the_longest_first() -> None:
    assert find_words("abc", 0, vocabulary("a", "ab", "abc", "b")) == ["abc", "ab", "a"]
    assert find_words("abc", 2, vocabulary("a", "c", "bc")) == ["c"]
    assert find_words("abc", 1, vocabulary("a")) == []


@pytest.mark.parametrize(
    ("characters", "word"),
    [
        ("\u00a1\u00bf\u01c0\u01c3\u02b9\u02ff\u0300\u0362", "<KIGOU>"),
        ("\u2000\u2bff", "<U2000U2BFF>"),
    ],
)
def test_characters_of_a_range_share_a_word(characters: str, word: str) -> None:
    assert [list(spell(character)) for character in characters] == [[word]] * len(characters)


@pytest.mark.parametrize("character", "\u00a0\u00c0\u01bf\u01c4\u02b8\u0363\u1fff\u2c00")
def test_characters_beside_the_ranges_are_bytes(character: str) -> None:
    assert list(spell(character)) == [f"<|byte{value}|>" for value in character.encode()]


def test_emoji_are_replaced_in_the_order_of_their_table() -> None:
    assert normalize("(^^)/", {"(^^)": "<|emoji1|>", "(^^)/": "<|emoji2|>"}) == "<|emoji1|>/"
    assert normalize("(^^)/", {"(^^)/": "<|emoji2|>", "(^^)": "<|emoji1|>"}) == "<|emoji2|>"


def test_a_line_break_of_two_characters_is_one() -> None:
    assert normalize("a\r\nb\rc\nd\n\re", {}) == "a<BR>b<BR>c<BR>d<BR><BR>e"


def test_a_byte_word_is_one_byte() -> None:
    assert spelled_out("<|byte227|>", EmojiTable({}, {})) == b"\xe3"
    assert spelled_out("<|byte256|>", EmojiTable({}, {})) == b"<|byte256|>"


def test_the_comma_is_lost_with_hf_and_kept_with_original(sparse, original) -> None:
    assert (sparse.encode(","), original.encode(",")) == ([31785], [31596])
    assert (sparse.decode([31596]), original.decode([31596])) == ("", ",")
    assert sparse.get_vocab()[","] == original.get_vocab()[","] == 31596
    assert sparse.convert_tokens_to_ids("") == 31596


def test_bytes_are_decoded_one_by_one_with_hf_and_together_with_original(sparse, original) -> None:
    ids = sparse.encode("한")
    assert sparse.decode(ids) == "\ufffd" * 3
    assert original.decode(ids) == "한"
    assert original.decode(ids[:2]) == "\ufffd"


def test_outer_white_space_is_cut_with_hf_and_kept_with_original(sparse, original) -> None:
    ids = sparse.encode(" 日本\n")
    assert sparse.decode(ids) == "日本"
    assert original.decode(ids) == " 日本\n"


def test_sizes(sparse, original) -> None:
    assert (len(sparse), sparse.vocab_size) == (31998, 31998), "two lines occur twice"
    assert (len(original), original.vocab_size) == (32000, 32000)
    assert sparse.get_vocab()["<|endoftext|>"] == 31999


def test_special_tokens(sparse) -> None:
    assert (sparse.bos_token, sparse.eos_token) == ("<|startoftext|>", "<|endoftext|>")
    assert (sparse.bos_token_id, sparse.eos_token_id, sparse.pad_token_id, sparse.unk_token_id) == (
        31996,
    ) + (31999,) * 3
    assert sparse.all_special_ids == [31996, 31999]


def test_no_special_tokens_are_added(sparse) -> None:
    one, two = sparse.encode("ありがとう。"), sparse.encode("どういたしまして。")
    assert sparse.build_inputs_with_special_tokens(one) == one
    assert (
        sparse.build_inputs_with_special_tokens(one, two)
        == one + two
        == sparse.encode("ありがとう。", "どういたしまして。")
    )
    assert sparse.num_special_tokens_to_add() == sparse.num_special_tokens_to_add(pair=True) == 0


def test_new_tokens_take_ids_as_in_transformers_or_new_ones(make_sparse) -> None:
    hf, original = make_sparse(), make_sparse(compat="original")
    with pytest.warns(UserWarning, match="takes id 31998 from '<|nottoken|>'"):
        assert hf.add_tokens("新語") == 1
    assert hf.encode("新語") == [31998]
    assert original.add_tokens(["新語", "造語"]) == 2
    assert original.encode("造語新語") == [32001, 32000]
    assert len(original) == 32002
    assert original.decode([32000]) == "新語"


def test_a_character_without_byte_words_is_unknown(toy) -> None:
    assert toy.encode("猫") == [toy.unk_token_id] * 3


def test_unknown_token_without_a_line_has_its_added_id(make_toy) -> None:
    tokenizer = make_toy(unk_token="<?>")
    assert tokenizer.unk_token_id == 22
    assert tokenizer.convert_tokens_to_ids("猫") == 22
    tokenizer.unk_token = None
    with pytest.raises(InputError, match="no unk_token"):
        tokenizer.convert_tokens_to_ids("猫")


@pytest.mark.parametrize(
    "options",
    [
        {"compat": "v4"},
        {"impl": "rust"},
        {"do_clean_text": "yes"},
        {"bpe_dropout_rate": 0.1},
        {"compat": "original", "bpe_dropout_rate": 1.5},
        {"compat": "original", "bpe_dropout_rate": float("nan")},
        {"compat": "original", "bpe_dropout_rate": True},
        {"compat": "original", "seed": 0.5},
        {"surrogates": "ignore"},
        {"padding_side": "top"},
        {"pad_token": 3},
        {"extra_special_tokens": "ab"},
    ],
)
def test_wrong_options_are_refused(make_sparse, options) -> None:
    with pytest.raises(InputError):
        make_sparse(**options)


TEXT = "今日は日本の東京ですありがとうございますコンピューターサイエンス"


def test_dropout_varies_the_tokens_but_not_the_text(make_sparse) -> None:
    tokenizer = make_sparse(compat="original", bpe_dropout_rate=0.5, seed=1)
    plain = make_sparse(compat="original").encode(TEXT)
    encodings = {tuple(tokenizer.encode(TEXT)) for _ in range(20)}
    assert len(encodings) > 5
    assert {tokenizer.decode(ids) for ids in encodings} == {TEXT}
    assert len(min(encodings, key=len)) >= len(plain)


def test_dropout_is_reproducible(make_sparse) -> None:
    tokenizer = make_sparse(compat="original", bpe_dropout_rate=0.3, seed=7)
    first = [tokenizer.encode(TEXT) for _ in range(3)]
    tokenizer.set_bpe_dropout(0.3, seed=7)
    assert [tokenizer.encode(TEXT) for _ in range(3)] == first
    tokenizer.set_bpe_dropout(0.3, seed=8)
    assert [tokenizer.encode(TEXT) for _ in range(3)] != first


def test_dropout_of_0_and_1_is_none_and_always(make_sparse) -> None:
    tokenizer = make_sparse(compat="original")
    best = tokenizer.tokenize("です")
    assert best == ["です"]
    tokenizer.set_bpe_dropout(1.0, seed=0)
    assert tokenizer.tokenize("です") == ["で", "す"]
    tokenizer.set_bpe_dropout(0.0)
    assert tokenizer.tokenize("です") == best


def test_dropout_rate_is_the_share_of_dropped_words(make_sparse) -> None:
    tokenizer = make_sparse(compat="original", bpe_dropout_rate=0.1, seed=3)
    kept = sum(tokenizer.tokenize("です") == ["です"] for _ in range(2000))
    assert 1740 < kept < 1860


def test_dropout_leaves_tags_whole(make_sparse) -> None:
    tokenizer = make_sparse(compat="original", bpe_dropout_rate=1.0, seed=0)
    assert tokenizer.tokenize(" \n<|separator|>") == ["<SP>", "<BR>", "<|separator|>"]


def test_dropout_does_not_touch_the_global_generator(make_sparse) -> None:
    random.seed(5)
    state = random.getstate()
    make_sparse(compat="original", bpe_dropout_rate=0.5, seed=1).encode(TEXT)
    assert random.getstate() == state


def test_import_is_light() -> None:
    code = (
        "import sys, refimpl.tokenizer as t; t.GPTNeoXJapaneseTokenizer; t.StreamDecoder; "
        "print([m for m in ('numpy', 'huggingface_hub', 'torch', 'numba', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_unknown_export_is_an_attribute_error() -> None:
    import refimpl.tokenizer

    with pytest.raises(AttributeError, match="NoSuchTokenizer"):
        refimpl.tokenizer.NoSuchTokenizer  # noqa: B018
    assert refimpl.tokenizer.GPTNeoXJapaneseTokenizer is GPTNeoXJapaneseTokenizer
