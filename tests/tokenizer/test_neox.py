"""The GPT-NeoX tokenizer: added tokens, offsets, special tokens around texts, ids back to text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import refimpl
from refimpl.errors import InputError, TextInputError
from refimpl.tokenizer import AddedToken, GPTNeoXTokenizer, GPTNeoXTokenizerFast, StreamDecoder
from refimpl.tokenizer.byte_level import nfc
from tests.tokenizer.neox_toy import toy, vocabulary

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
BUSY_TEXT = st.lists(
    st.sampled_from(
        ["Hello", " the world", "  ", "\n", "é", "e\u0301", "世", "<|endoftext|>", "<m>", "'s", "🦙"]
    )
    | ANY_TEXT
).map("".join)

PLAIN = toy()
BUSY = toy()
BUSY.add_tokens([AddedToken("<m>", lstrip=True, rstrip=True), AddedToken("  "), AddedToken("é!")])


def spans(tokenizer: GPTNeoXTokenizerFast, text: str) -> list[tuple[str, tuple[int, int], int | None]]:
    encoding = tokenizer(text, return_offsets_mapping=True)
    return list(zip(encoding.tokens(), encoding["offset_mapping"], encoding.word_ids(), strict=True))


# ---- text -> tokens


def test_two_names_for_one_class() -> None:
    assert GPTNeoXTokenizer is GPTNeoXTokenizerFast is refimpl.GPTNeoXTokenizer


def test_tokens_of_a_text() -> None:
    assert PLAIN.tokenize("Hello the world") == ["Hello", "Ġthe", "Ġworld"]
    assert PLAIN.tokenize("世é") == ["ä¸", "ĸ", "Ã©"]
    assert PLAIN.tokenize("") == []
    assert PLAIN("Hello<|endoftext|>the")["input_ids"] == [
        vocabulary()[t] for t in ("Hello", "<|endoftext|>", "t", "he")
    ]


def test_text_is_normalised() -> None:
    assert PLAIN.tokenize("e\u0301") == PLAIN.tokenize("é") == ["Ã©"]
    assert toy(nfc=False).tokenize("e\u0301") == ["e", "Ì", "ģ"]


def test_a_space_before_the_text() -> None:
    with_space = toy(add_prefix_space=True)
    assert with_space.tokenize("the the") == ["Ġthe", "Ġthe"]
    assert with_space.tokenize(" the") == ["Ġthe"]
    assert with_space.tokenize("the<|endoftext|>the") == ["Ġthe", "<|endoftext|>", "Ġthe"]
    assert with_space.tokenize("") == []


def test_what_is_no_text() -> None:
    with pytest.raises(InputError, match="not a str"):
        PLAIN.tokenize(b"abc")  # type: ignore[arg-type]
    with pytest.raises(TextInputError) as caught:
        PLAIN.tokenize("ab\ud800")
    assert caught.value.position == 2


def test_surrogates_can_be_replaced() -> None:
    text = "a\ud83e\udd99b\ud800c"
    assert PLAIN.decode(PLAIN.encode(text, surrogates="replace")) == "a🦙b\ufffdc"
    encoding = PLAIN(text, surrogates="replace", return_offsets_mapping=True)
    assert list(dict.fromkeys(encoding["offset_mapping"])) == [(0, 1), (1, 3), (3, 4), (4, 5), (5, 6)]


@given(BUSY_TEXT)
def test_text_comes_back(text: str) -> None:
    assert PLAIN.decode(PLAIN.encode(text)) == nfc(text)
    exact = toy(nfc=False)
    assert exact.decode(exact.encode(text)) == text


@given(BUSY_TEXT)
def test_tokens_join_to_the_text(text: str) -> None:
    tokens = PLAIN.tokenize(text)
    assert PLAIN.convert_tokens_to_string(tokens) == nfc(text)
    assert PLAIN.convert_tokens_to_ids(tokens) == PLAIN.encode(text)


@given(BUSY_TEXT, st.booleans(), st.booleans())
def test_offsets_are_in_order_and_inside(text: str, prefix_space: bool, trim: bool) -> None:
    tokenizer = toy(add_prefix_space=prefix_space, trim_offsets=trim)
    tokenizer.add_tokens([AddedToken("<m>", lstrip=True), AddedToken("  "), AddedToken("e\u0301")])
    encoding = tokenizer.encode_text(text, offsets=True)
    assert encoding.ids == tokenizer.encode_text(text).ids
    assert encoding.offsets is not None
    assert encoding.words is not None
    assert all(0 <= start <= end <= len(text) for start, end in encoding.offsets)
    assert [start for start, _ in encoding.offsets] == sorted(start for start, _ in encoding.offsets) or trim
    assert encoding.words == sorted(encoding.words)
    assert sorted(set(encoding.words)) == list(range(len(set(encoding.words))))


# ---- added tokens


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ({}, "aXYb", ["a", "XY", "b"]),
        ({"lstrip": True}, "a \u3000\x85XY b", ["a", "XY", "Ġ", "b"]),
        ({"rstrip": True}, "a XY \t\nb", ["a", "Ġ", "XY", "b"]),
        ({"lstrip": True}, "a\x1cXY", ["a", "Ĝ", "XY"]),  # no white space here, though str.strip thinks so
        ({"single_word": True}, "aXY XY XYb XY", ["a", "X", "Y", "Ġ", "XY", "Ġ", "X", "Y", "b", "Ġ", "XY"]),
        ({"single_word": True}, "-XY-", ["-", "XY", "-"]),
        ({"single_word": True}, "_XY", ["_", "X", "Y"]),
        ({"single_word": True}, "XY\u0334", ["X", "Y", "Ì", "´"]),
        ({"single_word": True}, "XY\u00b2", ["XY", "Â", "²"]),  # a number, but no part of words
        ({"special": True}, "XY", ["XY"]),
    ],
)
@pytest.mark.parametrize("normalized", [True, False])
def test_options_of_added_tokens(
    options: dict[str, bool], text: str, expected: list[str], normalized: bool
) -> None:
    tokenizer = toy()
    tokenizer.add_tokens([AddedToken("XY", normalized=normalized, **options)])
    assert tokenizer.tokenize(text) == expected


def test_the_longest_of_the_leftmost_is_taken() -> None:
    tokenizer = toy()
    tokenizer.add_tokens(["  ", "    ", "ab", "abc", "bcd"])
    assert tokenizer.tokenize("     ") == ["    ", "Ġ"]
    assert tokenizer.tokenize("abcd") == ["abc", "d"]


def test_no_shorter_token_where_the_longest_may_not_stand() -> None:
    tokenizer = toy()
    tokenizer.add_tokens([AddedToken("XYZ", single_word=True), AddedToken("XY")])
    assert tokenizer.tokenize("aXYZ XY XYZ") == ["a", "X", "Y", "Z", "Ġ", "XY", "Ġ", "XYZ"]


def test_tokens_in_raw_text_go_first_and_hide_the_rest() -> None:
    tokenizer = toy()
    tokenizer.add_tokens([AddedToken("\u0301", normalized=False), AddedToken("é", normalized=True)])
    assert tokenizer.tokenize("e\u0301é") == ["e", "\u0301", "é"]


def test_tokens_in_normalised_text_are_normalised_themselves() -> None:
    for normalized, found in ((True, True), (False, False)):
        tokenizer = toy()
        tokenizer.add_tokens([AddedToken("e\u0301!", normalized=normalized)])
        assert (tokenizer.tokenize("é!") == ["e\u0301!"]) == found
        assert tokenizer.tokenize("e\u0301!") == ["e\u0301!"]


def test_swallowed_white_space_is_searched_again() -> None:
    tokenizer = toy()
    tokenizer.add_tokens([AddedToken("<m>", rstrip=True), AddedToken("  ", rstrip=True)])
    assert spans(tokenizer, "a<m>   b") == [
        ("a", (0, 1), 0),
        ("<m>   ", (1, 4), 1),
        ("  ", (6, 6), 2),
        ("Ġ", (7, 7), 3),
        ("b", (7, 8), 3),
    ]


def test_special_tokens_can_be_read_as_text() -> None:
    tokenizer = toy()
    tokenizer.add_tokens(["XY"])
    text = "<|endoftext|>XY"
    assert tokenizer.tokenize(text) == ["<|endoftext|>", "XY"]
    assert tokenizer.tokenize(text, split_special_tokens=True) == [*"<|endoftext|>", "XY"]
    assert toy(split_special_tokens=True).tokenize("<|padding|>") == [*"<|padding|>"]


def test_new_tokens_come_after_all_others() -> None:
    tokenizer = toy()
    size = len(vocabulary())
    assert len(tokenizer) == tokenizer.vocab_size == size
    assert tokenizer.add_tokens(["XY", "Hello", "Z1"]) == 3
    assert tokenizer.convert_tokens_to_ids(["XY", "Z1"]) == [size, size + 1]
    assert (len(tokenizer), tokenizer.vocab_size) == (size + 2, size)
    assert tokenizer.add_tokens(["XY"]) == 0
    assert tokenizer.get_added_vocab()["XY"] == size


def test_ids_with_gaps_are_not_given_twice() -> None:
    tokenizer = GPTNeoXTokenizerFast(vocab={"a": 0, "b": 7}, merges=[])
    tokenizer.add_tokens(["XY"])
    assert tokenizer.get_vocab() == {"a": 0, "b": 7, "XY": 8}
    assert tokenizer.convert_ids_to_tokens([3, 8]) == ["", "XY"]


# ---- offsets


def test_offsets_and_words() -> None:
    assert spans(PLAIN, "Hello the  world") == [
        ("Hello", (0, 5), 0),
        ("Ġthe", (6, 9), 1),
        ("Ġ", (10, 10), 2),
        ("Ġworld", (11, 16), 3),
    ]
    assert [span for _, span, _ in spans(toy(trim_offsets=False), "Hello the  world")] == [
        (0, 5),
        (5, 9),
        (9, 10),
        (10, 16),
    ]


def test_tokens_of_parts_of_a_character_stand_for_all_of_it() -> None:
    assert spans(PLAIN, "a世b") == [
        ("a", (0, 1), 0),
        ("ä¸", (1, 2), 0),
        ("ĸ", (1, 2), 0),
        ("b", (2, 3), 0),
    ]


def test_offsets_count_characters_of_the_text_before_normalisation() -> None:
    assert spans(PLAIN, "ae\u0301b the") == [
        ("a", (0, 1), 0),
        ("Ã©", (1, 2), 0),
        ("b", (3, 4), 0),
        ("Ġthe", (5, 8), 1),
    ]


def test_offsets_with_a_space_before_the_text() -> None:
    tokenizer = toy(add_prefix_space=True)
    assert spans(tokenizer, "the the") == [("Ġthe", (0, 3), 0), ("Ġthe", (4, 7), 1)]
    assert spans(tokenizer, " the") == [("Ġthe", (0, 4), 0)]  # as if the space had been put there
    assert spans(tokenizer, "é") == [("Ġ", (0, 0), 0), ("Ã©", (0, 1), 0)]
    assert spans(toy(add_prefix_space=True, trim_offsets=False), "é") == [
        ("Ġ", (0, 1), 0),
        ("Ã©", (0, 1), 0),
    ]


def test_offsets_of_added_tokens() -> None:
    assert spans(BUSY, "the <m> the  e\u0301!") == [
        ("t", (0, 1), 0),
        ("he", (1, 3), 0),
        (" <m> ", (4, 7), 1),
        ("t", (8, 9), 2),
        ("he", (9, 11), 2),
        ("  ", (13, 13), 3),
        ("é!", (13, 16), 4),
    ]


# ---- special tokens around texts


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (False, True), (True, True)])
def test_special_tokens_around_texts(bos: bool, eos: bool) -> None:
    tokenizer = toy(add_bos_token=bos, add_eos_token=eos, eos_token="<|padding|>")
    before, after = [0] * bos, [1] * eos
    a, b = vocabulary()["a"], vocabulary()["b"]
    encoding = tokenizer("a", "b", return_token_type_ids=True, return_special_tokens_mask=True)
    assert encoding["input_ids"] == [*before, a, *after, *before, b, *after]
    assert encoding["token_type_ids"] == [0] * (1 + bos + eos) + [1] * (1 + bos + eos)
    assert encoding["special_tokens_mask"] == [*[1] * bos, 0, *[1] * eos] * 2
    assert tokenizer.get_special_tokens_mask([a], [b]) == encoding["special_tokens_mask"]
    assert tokenizer.num_special_tokens_to_add() == bos + eos
    assert tokenizer.num_special_tokens_to_add(pair=True) == 2 * (bos + eos)
    assert tokenizer("a", add_special_tokens=False)["input_ids"] == [a]


def test_default_special_tokens_count_where_the_vocabulary_has_them() -> None:
    assert PLAIN.special_tokens_map == {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|padding|>",
    }
    bare = GPTNeoXTokenizerFast(vocab={"a": 0}, merges=[])
    assert (bare.special_tokens_map, len(bare)) == ({}, 1)
    named = GPTNeoXTokenizerFast(vocab={"a": 0}, merges=[], pad_token="<|padding|>", bos_token=None)
    assert (named.pad_token_id, named.bos_token_id, len(named)) == (1, None, 2)
    assert toy(pad_token=None).pad_token is None


def test_a_token_that_is_unknown() -> None:
    assert PLAIN.convert_tokens_to_ids("nothing") == 0
    with pytest.raises(InputError, match="no unk_token"):
        toy(unk_token=None).convert_tokens_to_ids("nothing")


# ---- ids -> text


def test_bytes_of_several_tokens_make_one_character() -> None:
    ids = PLAIN.encode("世")
    assert len(ids) == 2
    assert [PLAIN.decode(ids[:1]), PLAIN.decode(ids[1:]), PLAIN.decode(ids)] == ["\ufffd", "\ufffd", "世"]
    assert b"".join(map(PLAIN.token_bytes, ids)) == "世".encode()


@pytest.mark.parametrize(
    ("errors", "text"), [("replace", "a\ufffdb"), ("ignore", "ab"), ("backslashreplace", "a\\xe4\\xb8b")]
)
def test_bytes_that_are_not_utf_8(errors: str, text: str) -> None:
    tokenizer = toy(errors=errors)
    ids = tokenizer.convert_tokens_to_ids(["a", "ä¸", "b"])
    assert tokenizer.decode(ids) == text
    with pytest.raises(InputError, match="byte 1 cannot be decoded"):
        toy(errors="strict").decode(ids)


def test_added_tokens_come_back_as_they_are() -> None:
    tokenizer = toy()
    tokenizer.add_tokens(["é!", "  ", "Ġ!", "日本"])
    for text in ("aé!b", "a  b", "Ġ!", "日本"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens(ids)) == text


def test_a_token_of_the_vocabulary_that_is_added_too_stays_bytes() -> None:
    tokenizer = toy()
    tokenizer.add_tokens(["Ġthe"])
    assert tokenizer.decode(tokenizer.encode("a the")) == "a the"


def test_special_tokens_can_be_skipped() -> None:
    ids = PLAIN.encode("<|endoftext|>Hello<|padding|>")
    assert PLAIN.decode(ids) == "<|endoftext|>Hello<|padding|>"
    assert PLAIN.decode(ids, skip_special_tokens=True) == "Hello"


def test_ids_that_only_the_embedding_has() -> None:
    assert PLAIN.convert_ids_to_tokens([1000]) == [""]
    assert PLAIN.decode([*PLAIN.encode("Hello"), 1000, 1023]) == "Hello"
    assert PLAIN.token_bytes(1023) == b""
    stream = StreamDecoder(PLAIN)
    assert [stream.put(1000), stream.put(vocabulary()["a"])] == ["", "a"]
    for index in (1024, -1, True, 1.5, 2**63, "a"):
        with pytest.raises(InputError, match="not the id of a token"):
            PLAIN.decode([index])
    assert toy(padded_vocab_size=5000).decode([4999]) == ""
    strict = toy(padded_vocab_size=0)
    assert strict.decode(strict.encode("a")) == "a"
    with pytest.raises(InputError):
        strict.convert_ids_to_tokens([len(strict)])


def test_the_padded_size_follows_new_tokens() -> None:
    tokenizer = toy()
    tokenizer.add_tokens([f"<{i}>" for i in range(1024)])
    assert tokenizer.decode([len(tokenizer) + 1]) == ""


def test_cleaning_up_only_when_a_call_asks() -> None:
    tokenizer = toy(clean_up_tokenization_spaces=True)
    ids = tokenizer.encode("a , b")
    assert tokenizer.decode(ids) == "a , b"
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == "a, b"


@given(st.lists(st.integers(0, len(vocabulary()) - 1)))
def test_any_ids_have_a_text(ids: list[int]) -> None:
    text = PLAIN.decode(ids)
    assert text == b"".join(map(PLAIN.token_bytes, ids)).decode("utf-8", "replace")
    stream = StreamDecoder(PLAIN, skip_special_tokens=False)
    assert "".join([*map(stream.put, ids), stream.finish()]) == text


# ---- options, explaining


@pytest.mark.parametrize(
    "options",
    [
        {"impl": "quick"},
        {"errors": "surrogateescape"},
        {"add_bos_token": 1},
        {"add_prefix_space": "yes"},
        {"nfc": 0},
        {"padded_vocab_size": -1},
        {"padded_vocab_size": True},
        {"bos_token": ""},
        {"surrogates": "drop"},
    ],
)
def test_wrong_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        toy(**options)


def test_a_tokenizer_needs_a_vocabulary() -> None:
    with pytest.raises(InputError, match="no vocabulary"):
        GPTNeoXTokenizerFast()
    with pytest.raises(InputError, match="no vocabulary"):
        GPTNeoXTokenizerFast("vocab.json")


def test_explaining_prints_the_merges(capsys: pytest.CaptureFixture[str]) -> None:
    assert PLAIN.tokenize("the\n<|padding|>", explain=True) == PLAIN.tokenize("the\n<|padding|>")
    assert capsys.readouterr().out.splitlines() == [
        "'the': t h e",
        "    rank      1  h + e  ->  t he",
        f"    ids {vocabulary()['t']} {vocabulary()['he']}",
        r"'\n': Ċ",
        f"    ids {vocabulary()['Ċ']}",
        "'<|padding|>': added token 1",
    ]


@given(BUSY_TEXT)
def test_the_steps_end_with_the_tokens(text: str) -> None:
    tokens = []
    for word, added_id in BUSY.words_of(text):
        if added_id is not None:
            tokens.append(BUSY.convert_ids_to_tokens(added_id))
        else:
            start, steps = BUSY.merge_steps(word.text)
            tokens += list(steps[-1].symbols if steps else start)
    assert tokens == BUSY.tokenize(text)


# ---- published ids


def published(data_folder: Path) -> list[tuple[str, str, list[int]]]:
    entries = json.loads((data_folder / "published.json").read_text(encoding="utf-8"))
    return [
        (entry["model"], entry["input"], entry["expected"])
        for entry in entries
        if entry["kind"] == "token_ids" and "Japanese" not in entry["model"] and "toy" not in entry["model"]
    ]


def full(data_folder: Path, model: str) -> GPTNeoXTokenizerFast:
    folder = data_folder / ("gpt2" if "gpt2" in model else "neox20b")
    return GPTNeoXTokenizerFast.from_pretrained(folder, impl="plain")


def test_published_ids(data_folder: Path) -> None:
    cases = published(data_folder)
    tokenizers = {model: full(data_folder, model) for model in {model for model, _, _ in cases}}
    assert len(cases) > 80
    assert len(tokenizers) == 3
    for model, text, ids in cases:
        assert tokenizers[model].encode(text) == ids, text


def test_published_ids_of_a_toy_vocabulary(data_folder: Path) -> None:
    entries = json.loads((data_folder / "published.json").read_text(encoding="utf-8"))
    cases = [entry for entry in entries if "keras_hub" in entry.get("model", "")]
    assert len(cases) == 2
    for case in cases:
        tokenizer = GPTNeoXTokenizerFast(vocab=case["vocab"], merges=case["merges"])
        assert tokenizer.encode(case["input"]) == case["expected"]


@pytest.mark.parametrize("name", ["mpt", "gpt-2"])
def test_vectors_of_llama_cpp(data_folder: Path, name: str) -> None:
    stem = data_folder / "llamacpp" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{stem}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    rows = Path(f"{stem}.out").read_text(encoding="utf-8").split("\n")
    tokenizer = full(data_folder, {"mpt": "20b", "gpt-2": "gpt2"}[name])
    for text, row in zip(texts, rows, strict=False):
        assert tokenizer.encode(text) == list(map(int, row.split())), text
    assert len(texts) > 40


def test_the_documentation_of_the_class(data_folder: Path) -> None:
    tokenizer = full(data_folder, "gpt2")
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]
    assert tokenizer(" Hello world")["input_ids"] == [18435, 995]
    assert (len(tokenizer), tokenizer.pad_token) == (50257, None)
