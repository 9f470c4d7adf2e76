"""What holds for every text, every list of ids and every file."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refimpl.errors import RefimplError
from refimpl.tokenizer import GPTNeoXJapaneseTokenizer

FRAGMENTS = st.sampled_from(
    [
        "日本",
        "東京",
        "慶應",
        "(^_^)",
        "😀",
        "<SP>",
        "<|endoftext|>",
        "<|",
        "|>",
        " ",
        "\r\n",
        "—",
        "2020年",
        "1,000円",
        "a@b",
        ",",
    ]
)
TEXTS = st.lists(st.one_of(FRAGMENTS, st.text(max_size=4)), max_size=8).map("".join)
ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=6,
)
SEEDED = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


#: Characters that no line of the vocabulary takes for another one, in the published file too.
PLAIN = (
    "あいうえおかきくけこさしすせそがぎぐげごアイウエオカキクケコ日本東京学校"
    "abcXYZ0189,.; \n한국어Приветéñ𝒜\x00\ufffd"
)


@SEEDED
@given(text=st.text(PLAIN, max_size=12))
def test_text_without_variants_comes_back(original, text: str) -> None:
    assert original.decode(original.encode(text)) == text


def test_decoded_text_is_not_always_encoded_to_the_same_ids(original) -> None:
    block = original.encode("<BLOCK>")
    assert original.decode(block) == "▀"
    assert original.decode(original.encode("▀")) == "‖"


@SEEDED
@given(text=TEXTS)
def test_the_tokens_are_the_ids(sparse, original, text: str) -> None:
    for tokenizer in (sparse, original):
        ids = tokenizer.encode(text)
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == ids
        assert all(0 <= index < 32000 for index in ids)
    assert [31785 if index == 31596 else index for index in original.encode(text)] == sparse.encode(text)


@SEEDED
@given(text=st.text(st.characters(min_codepoint=0x80, exclude_categories=["Cs"]), max_size=8))
def test_every_text_can_be_encoded(original, text: str) -> None:
    assert "<|endoftext|>" not in original.tokenize(text)


@SEEDED
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_a_batch_is_its_texts(sparse, texts: list[str]) -> None:
    batch = sparse(texts, padding=True, return_tensors="np")
    for text, ids, mask in zip(texts, batch.input_ids, batch.attention_mask, strict=True):
        assert ids[mask == 1].tolist() == sparse.encode(text)
        assert (ids[mask == 0] == sparse.pad_token_id).all()


@SEEDED
@given(value=ANYTHING, option=ANYTHING)
def test_no_other_error_escapes_from_a_call(sparse, value, option) -> None:
    calls = (
        lambda: sparse(value),
        lambda: sparse([value, "a"], padding=option, truncation=True),
        lambda: sparse("a", value, max_length=option),
        lambda: sparse(value, is_split_into_words=True, return_tensors="np", stride=option),
        lambda: sparse.encode("a", value, padding_side=option),
        lambda: sparse.decode(value),
        lambda: sparse.batch_decode([value, [1]]),
        lambda: sparse.convert_tokens_to_ids(value),
        lambda: sparse.convert_ids_to_tokens(value),
        lambda: sparse.pad(value),
        lambda: sparse.pad({"input_ids": value, "x": option}, return_tensors="np"),
        lambda: sparse.pad([{"input_ids": value}, {"input_ids": [1]}], padding="max_length", max_length=3),
        lambda: sparse.get_special_tokens_mask([1], None, already_has_special_tokens=True),
    )
    for call in calls:
        with suppress(RefimplError):
            call()


@SEEDED
@given(
    vocab=st.binary(max_size=40), emoji=st.one_of(st.binary(max_size=20), ANYTHING), place=st.integers(0, 60)
)
def test_no_other_error_escapes_from_the_files(
    toy_folder: Path, tmp_path: Path, vocab, emoji, place: int
) -> None:
    content = (toy_folder / "vocab.txt").read_bytes()
    (tmp_path / "vocab.txt").write_bytes(content[:place] + vocab + content[place:])
    good = {"emoji": {"😀": "<|emoji1|>"}, "emoji_inv": {"<|emoji1|>": "😀"}}
    if isinstance(emoji, bytes):
        raw = json.dumps(good).encode()
        (tmp_path / "emoji.json").write_bytes(raw[:place] + emoji + raw[place:])
    else:
        (tmp_path / "emoji.json").write_text(
            json.dumps({**good, "emoji": emoji}, default=str), encoding="utf-8"
        )
    with suppress(RefimplError):
        GPTNeoXJapaneseTokenizer(tmp_path / "vocab.txt", tmp_path / "emoji.json").encode("こん 😀 <a> 猫")


@SEEDED
@given(
    name=st.sampled_from(["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]),
    value=ANYTHING,
    key=st.sampled_from(
        [
            "pad_token",
            "extra_special_tokens",
            "added_tokens_decoder",
            "model_max_length",
            "padding_side",
            "do_clean_text",
            "compat",
            "impl",
            "seed",
            "vocab_file",
            "self",
            "X",
        ]
    ),
)
def test_no_other_error_escapes_from_the_settings(
    toy_folder: Path, tmp_path: Path, name: str, value, key: str
) -> None:
    for file in ("vocab.txt", "emoji.json"):
        (tmp_path / file).write_bytes((toy_folder / file).read_bytes())
    for file in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / name).write_text(json.dumps({key: value}, default=str), encoding="utf-8")
    with suppress(RefimplError):
        GPTNeoXJapaneseTokenizer.from_pretrained(tmp_path)("こん 猫")
