"""The tokenizer over the package sentencepiece: the package itself is the reference for pieces, ids and texts."""

from __future__ import annotations

import copy
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl import AutoTokenizer
from refimpl.errors import (
    BackendError,
    InputError,
    MissingFileError,
    RefimplError,
    ResourceLimitError,
    TextInputError,
    TokenizerFileError,
)
from refimpl.tokenizer import AddedToken, StreamDecoder, T5Tokenizer
from refimpl.tokenizer.sentencepiece_model import MAX_PIECE_LENGTH, MAX_REPLACEMENT, fields
from refimpl.tokenizer.text_files import MAX_VOCAB_BYTES
from tests.tokenizer.unigram_toy import KINDS, TEXT, character_map, field, piece, train, written

sentencepiece = pytest.importorskip("sentencepiece", reason="the extra sentencepiece is not installed")

LINES = [
    *TEXT,
    *[
        "",
        " ",
        "  ",
        "\n",
        "\t\n ",
        "\u3000",
        "a",
        "Hello  world",
        " Hello world ",
        "a\nb\r\nc",
        "\x00",
        "a\x00b",
    ],
    *[
        "🍣🍺",
        "a🍣 🍺b",
        "e\u0301",
        "①ＡＢ㌔",
        "ｶﾞ",
        "ﷺ",
        "한국어",
        "▁",
        "a▁b",
        "\ufeffa",
        "\u200b",
        "a\u00a0b",
    ],
    *["don't stop .", "<0x41>", "<extra_id_0", "</s", "ユーザー: 日本<NL>システム: "],
]
SAFE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("unigram")
    return {kind: train(folder / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def make(models: dict[str, Path]) -> Callable[..., T5Tokenizer]:
    return lambda kind="small", **options: T5Tokenizer.from_pretrained(models[kind], **options)


@pytest.fixture(scope="module")
def small(make: Callable[..., T5Tokenizer]) -> T5Tokenizer:
    return make("small")


@pytest.fixture(params=KINDS)
def both(request: pytest.FixtureRequest, models: dict[str, Path]) -> tuple[T5Tokenizer, Any]:
    """A tokenizer, and the package's processor with the same model."""
    folder = models[request.param]
    content = (folder / "spiece.model").read_bytes()
    return T5Tokenizer.from_pretrained(folder), sentencepiece.SentencePieceProcessor(model_proto=content)


# ---- text -> ids


def test_pieces_and_ids_are_those_of_the_package(both: tuple[T5Tokenizer, Any]) -> None:
    ours, theirs = both
    for line in LINES:
        assert ours.tokenize(line) == theirs.EncodeAsPieces(line), line
        assert ours.encode(line, add_special_tokens=False) == theirs.EncodeAsIds(line), line
    assert ours(LINES, add_special_tokens=False)["input_ids"] == theirs.EncodeAsIds(LINES)


@given(text=SAFE)
@settings(deadline=None, max_examples=150)
def test_any_text_is_as_the_package_has_it(small: T5Tokenizer, text: str) -> None:
    split = {"split_special_tokens": True, "add_special_tokens": False}
    ids = small.encode(text, **split)
    assert ids == small.convert_tokens_to_ids(small.tokenize(text, split_special_tokens=True))
    assert ids == small.sp_model.EncodeAsIds(text)
    assert small.encode_text(text, split_special_tokens=True, offsets=True).ids == ids


def test_the_end_token_follows_each_text(small: T5Tokenizer) -> None:
    one, two = small.encode("猫", add_special_tokens=False), small.encode("Hello", add_special_tokens=False)
    end = small.eos_token_id
    assert small.encode("猫") == [*one, end]
    pair = small("猫", "Hello", return_token_type_ids=True, return_special_tokens_mask=True)
    assert pair["input_ids"] == [*one, end, *two, end]
    assert pair["token_type_ids"] == [0] * len(pair["input_ids"])
    assert pair["special_tokens_mask"] == [0] * len(one) + [1] + [0] * len(two) + [1]
    assert small.encode("") == [end]
    assert small.get_special_tokens_mask(one) == [0] * len(one) + [1]
    assert small("猫")["input_ids"] == small("猫", return_token_type_ids=True)["input_ids"]


def test_an_end_token_in_the_text_does_not_replace_the_one_after_it(small: T5Tokenizer) -> None:
    end = small.eos_token_id
    assert small.encode("猫</s>")[-2:] == [end, end]
    assert small("猫</s>", padding=True)["input_ids"][-2:] == [end, end]


def test_without_end_token_nothing_follows(make: Callable[..., T5Tokenizer], tmp_path: Path) -> None:
    bare = make("small", eos_token=None)
    assert bare.encode("猫") == bare.encode("猫", add_special_tokens=False)
    bare.save_pretrained(tmp_path)
    assert T5Tokenizer.from_pretrained(tmp_path).eos_token is None


def test_byte_fallback_spells_what_is_unknown(make: Callable[..., T5Tokenizer]) -> None:
    tokenizer = make("bytes")
    assert tokenizer.tokenize("🍣") == ["<0xF0>", "<0x9F>", "<0x8D>", "<0xA3>"]
    text = "Hello  🍣\n\t  é <NL> 漢字"
    assert tokenizer.unk_token_id not in (ids := tokenizer.encode(text, add_special_tokens=False))
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text


def test_unknown_text_in_a_row_is_one_token(small: T5Tokenizer) -> None:
    ids = small.encode("猫🍣🍺猫", add_special_tokens=False)
    assert ids.count(small.unk_token_id) == 1
    assert small.convert_ids_to_tokens(ids).count("<unk>") == 1
    assert "🍣🍺" in small.tokenize("猫🍣🍺猫")


def test_what_looks_like_a_control_piece_counts_as_one_however_it_is_encoded(tmp_path: Path) -> None:
    """No character of "</s>" is known, so the unknown piece is "</s>" itself, as in transformers 4."""
    (tmp_path / "spiece.model").write_bytes(written())
    tokenizer = T5Tokenizer.from_pretrained(tmp_path, extra_ids=0)
    options = {"split_special_tokens": True}
    ids = tokenizer.encode_text("</s>", **options).ids
    assert ids == tokenizer.convert_tokens_to_ids(tokenizer.tokenize("</s>", **options))
    assert ids == tokenizer.encode_text("</s>", offsets=True, **options).ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁", "</s>"]


def test_settings_may_give_a_piece_another_id(make: Callable[..., T5Tokenizer]) -> None:
    piece = make("small").tokenize("猫")[-1]
    tokenizer = make("small", added_tokens_decoder={900: AddedToken(piece, normalized=False)})
    for options in ({}, {"split_special_tokens": True}):
        assert tokenizer.encode_text("猫", **options).ids[-1] == 900
        assert tokenizer.encode_text("猫", offsets=True, **options).ids[-1] == 900
    assert tokenizer.decode(900) == piece


def test_surrogates_are_refused_or_replaced(small: T5Tokenizer) -> None:
    with pytest.raises(TextInputError) as caught:
        small.encode("ab\ud800c")
    assert caught.value.position == 2
    assert small.encode("ab\ud800c", surrogates="replace") == small.encode("ab\ufffdc")
    with pytest.raises(InputError):
        small.encode_text(3)  # type: ignore[arg-type]


def test_lower_case_leaves_special_tokens(make: Callable[..., T5Tokenizer], tmp_path: Path) -> None:
    tokenizer = make("small")
    text = "Hello[SEP]WORLD </S>"
    assert make("small").tokenize("HELLO") != tokenizer.tokenize("hello")
    tokenizer.do_lower_case = True  # as the model cards of rinna tell their users to
    assert tokenizer.tokenize(text) == make("small").tokenize("hello[SEP]world </s>")
    assert tokenizer.tokenize("ΑΣ İ") == make("small").tokenize("ασ i\u0307")
    tokenizer.save_pretrained(tmp_path)
    assert T5Tokenizer.from_pretrained(tmp_path).tokenize(text) == tokenizer.tokenize(text)
    with pytest.raises(InputError):
        tokenizer.do_lower_case = "yes"  # type: ignore[assignment]


def test_sampling_draws_pieces(make: Callable[..., T5Tokenizer]) -> None:
    options = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.1}
    tokenizer = make("bytes", sp_model_kwargs=options)
    draws = [tokenizer.encode(TEXT[6], add_special_tokens=False) for _ in range(20)]
    assert len({tuple(ids) for ids in draws}) > 1
    assert {tokenizer.decode(ids) for ids in draws} == {TEXT[6]}
    assert not tokenizer.is_repeatable
    assert make("small").is_repeatable


@pytest.mark.parametrize(
    "options",
    [
        {"model_file": "/etc/passwd"},
        {"add_bos": True},
        {"num_threads": 10**6},
        {"nbest_size": 513},
        {"nbest_size": True},
        {"alpha": float("nan")},
        {"alpha": "0.1"},
        {"alpha": 10**400},
        {"enable_sampling": 1},
        {"enable_sampling": True, "nbest_size": 0},
        {1: 2},
        [],
        "alpha",
    ],
)
def test_options_of_the_package_are_a_closed_list(
    models: dict[str, Path], tmp_path: Path, options: Any
) -> None:
    path = models["small"] / "spiece.model"
    if options:
        with pytest.raises(InputError):
            T5Tokenizer(path, sp_model_kwargs=options)
    if isinstance(options, dict) and 1 in options:
        return
    (tmp_path / "spiece.model").write_bytes(path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"sp_model_kwargs": options}).replace("NaN", "1e999")
    )
    with pytest.raises(TokenizerFileError):
        T5Tokenizer.from_pretrained(tmp_path)


# ---- without `legacy`


def test_without_legacy_no_space_comes_after_a_special_token(make: Callable[..., T5Tokenizer]) -> None:
    def joined(text: str, **options: Any) -> str:
        return "".join(make("small", **options).tokenize(text))

    new, bare = {"legacy": False}, {"legacy": False, "add_prefix_space": False}
    assert joined("Hello[SEP]world") == joined("Hello[SEP] world") == "▁Hello[SEP]▁world"
    assert joined("Hello[SEP]world", **new) == "▁Hello[SEP]world"
    assert joined("Hello[SEP] world", **new) == "▁Hello[SEP]▁world"
    assert joined("Hello[SEP]world", **bare) == "Hello[SEP]world"
    assert joined(" [SEP]a", **new) == joined(" [SEP]a", **bare) == "[SEP]a"
    assert joined("[SEP]", **new) == "[SEP]"
    assert joined("", **new) == ""
    assert make("bytes", **new).tokenize("</s>a") == ["</s>", "a"]
    assert make("bytes", **new).encode_text("</s>a", offsets=True).offsets == [(0, 4), (4, 5)]
    for text in ("Hello[SEP] world", " [SEP]", "a b", "▁a", " a", "猫"):
        for options in (new, bare):
            tokenizer = make("small", **options)
            encoding = tokenizer.encode_text(text, offsets=True)
            assert encoding.ids == tokenizer.encode_text(text).ids
            assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == encoding.ids


# ---- offsets


def test_offsets_count_characters(make: Callable[..., T5Tokenizer]) -> None:
    tokenizer = make("line")
    text = "吾輩は é🍣 world"
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoding["input_ids"])
    shown = {
        token: text[slice(*span)] for token, span in zip(tokens, encoding["offset_mapping"], strict=True)
    }
    assert shown["<0xF0>"] == shown["<0xA3>"] == "🍣"
    assert shown["<0xC3>"] == "é"
    covered = sorted({place for span in encoding["offset_mapping"] for place in range(*span)})
    assert covered == list(range(len(text)))
    assert encoding.char_to_token(0) == 0 + (tokens[0] == "▁")
    assert encoding.word_ids() == sorted(encoding.word_ids())
    assert encoding.word_ids()[-1] == 2


def test_the_space_before_a_text_stands_for_nothing(small: T5Tokenizer) -> None:
    encoding = small.encode_text("猫[SEP]猫", offsets=True)
    tokens = small.convert_ids_to_tokens(encoding.ids)
    assert tokens == ["▁", "猫", "[SEP]", "▁", "猫"]
    assert encoding.offsets == [(0, 0), (0, 1), (1, 6), (6, 6), (6, 7)]
    assert encoding.words == [0, 0, 1, 2, 2]


def test_what_normalisation_spreads_stands_for_the_whole_character(make: Callable[..., T5Tokenizer]) -> None:
    encoding = make("line").encode_text("ﷺb", offsets=True)
    assert set(encoding.offsets[1:-1]) == {(0, 1)}
    assert encoding.offsets[-1] == (1, 2)
    assert make("line").encode_text("ｶﾞ①", offsets=True).offsets[-1] == (2, 3)


def test_offsets_with_lower_case_and_surrogate_pairs(make: Callable[..., T5Tokenizer]) -> None:
    tokenizer = make("bytes", do_lower_case=True, surrogates="replace")
    encoding = tokenizer.encode_text("İ\ud83d\ude00B", offsets=True)
    assert encoding.offsets[0] == (0, 1)
    assert encoding.offsets[-1] == (3, 4)
    assert (1, 3) in encoding.offsets
    assert tokenizer.decode(encoding.ids) == "i\u0307😀b"


# ---- ids -> text


def test_decoding_is_that_of_the_package_between_special_tokens(both: tuple[T5Tokenizer, Any]) -> None:
    ours, theirs = both
    for line in TEXT:
        ids = theirs.EncodeAsIds(line)
        if ours.unk_token_id not in ids:
            assert ours.decode(ids) == theirs.DecodeIds(ids).strip()
            assert ours.decode([*ids, ours.eos_token_id]) == theirs.DecodeIds(ids).strip() + "</s>"
            assert ours.decode([*ids, ours.eos_token_id], skip_special_tokens=True) == ours.decode(ids)


def test_special_tokens_are_decoded_with_a_space_before(small: T5Tokenizer) -> None:
    """The texts that the form in Python of transformers 4.57 gives."""
    assert small.decode(small.encode("猫[SEP]猫[MASK][CLS] 犬")) == "猫[SEP] 猫[MASK][CLS] <unk></s>"
    assert small.decode([]) == ""
    assert small.decode(small.eos_token_id) == "</s>"
    assert small.decode([small.convert_tokens_to_ids("▁")]) == ""


def test_added_tokens_are_decoded_between_spaces(make: Callable[..., T5Tokenizer]) -> None:
    tokenizer = make("t5")
    assert (
        tokenizer.decode(tokenizer.encode("<extra_id_0> a <extra_id_2>"))
        == "<extra_id_0> a <extra_id_2> </s>"
    )
    assert tokenizer.add_tokens(["東京タワー"]) == 1
    ids = tokenizer.encode("今日は東京タワーです", add_special_tokens=False)
    assert ids.count(len(tokenizer) - 1) == 1
    assert tokenizer.decode(ids) == "今日は 東京タワー です"


def test_a_control_piece_that_is_no_special_token_has_no_text(make: Callable[..., T5Tokenizer]) -> None:
    tokenizer = make("small", cls_token=None)
    cls = tokenizer.sp_model.PieceToId("[CLS]")
    assert tokenizer.convert_ids_to_tokens(cls) == "[CLS]"
    assert tokenizer.decode([cls]) == ""
    assert tokenizer.token_bytes(cls) == b""


def test_wrong_ids_and_tokens_are_refused(small: T5Tokenizer) -> None:
    with pytest.raises(InputError) as caught:
        small.decode([1, len(small)])
    assert caught.value.position == 1
    for tokens in (["\ud800"], ["a", 3]):
        with pytest.raises(InputError):
            small.convert_tokens_to_string(tokens)  # type: ignore[arg-type]


def test_streaming_holds_back_half_characters(make: Callable[..., T5Tokenizer]) -> None:
    tokenizer = make("bytes")
    decoder = StreamDecoder(tokenizer)
    parts = [decoder.put(index) for index in tokenizer.encode("猫 🍣é")]
    assert "".join(parts) + decoder.finish() == "猫 🍣é"
    assert all("\ufffd" not in part for part in parts)
    decoder = StreamDecoder(make("small", unk_token=None))
    assert decoder.put(0) == " ⁇ "


# ---- special and extra tokens


def test_roles_of_the_published_settings(small: T5Tokenizer) -> None:
    assert small.special_tokens_map == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    assert small.all_special_ids == [1, 2, 0, 5, 3, 4, 6]
    assert len(small) == small.vocab_size == small.sp_model.GetPieceSize()
    assert small.encode("[MASK]", add_special_tokens=False) == [6]


def test_extra_ids_follow_the_vocabulary_backwards(make: Callable[..., T5Tokenizer]) -> None:
    tokenizer = make("t5")
    size = tokenizer.vocab_size
    assert tokenizer.get_sentinel_tokens() == ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    assert tokenizer.get_sentinel_token_ids() == [size + 2, size + 1, size]
    assert len(tokenizer) == size + 3
    assert tokenizer.tokenize("a <extra_id_1> b") == ["▁a", "<extra_id_1>", *tokenizer.tokenize("b")]
    named = make("t5", extra_ids=1, extra_special_tokens=["<extra_id_0>", "X"])
    assert named.extra_special_tokens == ["<extra_id_0>", "X"]
    assert named.convert_tokens_to_ids(["<extra_id_0>", "X"]) == [size, size + 1]


@pytest.mark.parametrize(
    "options",
    [
        {"extra_ids": 2, "additional_special_tokens": ["<extra_id_0>"]},
        {"extra_ids": -1},
        {"extra_ids": 10**9},
        {"extra_ids": True},
        {"additional_special_tokens": "ab"},
        {"additional_special_tokens": [3]},
        {"additional_special_tokens": [""]},
        {"legacy": "no"},
        {"add_prefix_space": 1},
        {"do_lower_case": None},
    ],
)
def test_wrong_options_are_refused(models: dict[str, Path], options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        T5Tokenizer(models["small"] / "spiece.model", **options)


@pytest.mark.parametrize(
    "setting", [{"extra_ids": "3"}, {"extra_ids": 10**9}, {"legacy": 0}, {"do_lower_case": "x"}]
)
def test_wrong_settings_in_a_file_are_refused(models: dict[str, Path], tmp_path: Path, setting: Any) -> None:
    (tmp_path / "spiece.model").write_bytes((models["small"] / "spiece.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(setting))
    with pytest.raises(TokenizerFileError, match=next(iter(setting))):
        T5Tokenizer.from_pretrained(tmp_path)


# ---- files


def test_saving_keeps_the_model_and_everything_else(make: Callable[..., T5Tokenizer], tmp_path: Path) -> None:
    for number, tokenizer in enumerate(
        (make("small"), make("t5"), make("bytes", legacy=False, sp_model_kwargs={"alpha": 0.5}))
    ):
        tokenizer.add_tokens([AddedToken("東京タワー", lstrip=True)])
        folder = tmp_path / str(number)
        tokenizer.save_pretrained(folder)
        again = AutoTokenizer.from_pretrained(folder)
        assert type(again) is T5Tokenizer
        assert again.get_vocab() == tokenizer.get_vocab()
        assert again.added_tokens_decoder == tokenizer.added_tokens_decoder
        assert again.saved_options() == tokenizer.saved_options()
        assert again.sp_model_kwargs == tokenizer.sp_model_kwargs
        assert again.legacy == tokenizer.legacy
        assert again.extra_special_tokens == tokenizer.extra_special_tokens
        for line in [*LINES, "a 東京タワー<extra_id_1>"]:
            assert again.encode(line) == tokenizer.encode(line)


def test_the_model_file_is_saved_byte_for_byte(models: dict[str, Path], tmp_path: Path) -> None:
    content = (models["line"] / "spiece.model").read_bytes()
    for legacy in (True, False):
        tokenizer = T5Tokenizer.from_pretrained(models["line"], legacy=legacy)
        [path] = tokenizer.save_vocabulary(tmp_path, "my")
        assert Path(path) == tmp_path / "my-spiece.model"
        assert Path(path).read_bytes() == content


def test_a_folder_is_recognised(models: dict[str, Path], tmp_path: Path) -> None:
    assert type(AutoTokenizer.from_pretrained(models["small"])) is T5Tokenizer
    (tmp_path / "spiece.model").write_bytes((models["small"] / "spiece.model").read_bytes())
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is T5Tokenizer
    for name in ("T5Tokenizer", "T5TokenizerFast"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        assert AutoTokenizer.from_pretrained(tmp_path, use_fast=False).encode("猫")


def test_copies_and_pickles_do_the_same(make: Callable[..., T5Tokenizer]) -> None:
    for tokenizer in (make("t5"), make("bytes", legacy=False)):
        for again in (pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
            assert [again.encode(line) for line in LINES] == [tokenizer.encode(line) for line in LINES]
            assert again.saved_options() == tokenizer.saved_options()


def read(content: bytes, folder: Path) -> T5Tokenizer:
    path = folder / "broken.model"
    path.write_bytes(content)
    return T5Tokenizer(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"hello",
        b"\x00" * 1000,
        b"\xff" * 1000,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        piece("a"),
        written(piece("a")),
        written(piece("")),
        written(piece(b"\xff\xfe")),
        written(piece("c", float("nan"))),
        written(piece("c\0d")),
        written(piece("<0x41>", 0.0, 6)),
        written(field(1, 5)),
        written(normalizer=field(2, b"\xff\xff\xff\xff")),
        written(normalizer=field(2, 7)),
        written(normalizer=character_map(b"x")),
        written()[:-1],
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(TokenizerFileError) as caught:
        read(content, tmp_path)
    assert "broken.model" in str(caught.value)


def test_a_written_model_is_a_model(tmp_path: Path) -> None:
    """So that the tests above refuse what is broken, not everything."""
    assert read(written(), tmp_path).tokenize("aabこん") == ["▁a", "ab", "こん"]
    assert read(written(bytes_too=True), tmp_path).tokenize("c") == ["▁", "<0x63>"]


def test_a_piece_has_a_limit(tmp_path: Path) -> None:
    assert read(written(piece("長" * MAX_PIECE_LENGTH)), tmp_path).encode("a")
    with pytest.raises(TokenizerFileError, match="a piece of more than"):
        read(written(piece("長" * (MAX_PIECE_LENGTH + 1))), tmp_path)


@pytest.mark.parametrize("spec", [3, 5])
def test_normalisation_cannot_blow_up_a_text(models: dict[str, Path], tmp_path: Path, spec: int) -> None:
    """The package would take the map: it is that of a trained model, with one more replacement."""
    content = (models["small"] / "spiece.model").read_bytes()
    known = next(v for n, value in fields(content) if n == 3 for k, v in fields(value) if k == 2)
    assert known[:4] == struct.pack("<I", int.from_bytes(known[:4], "little"))
    for length, is_allowed in ((MAX_REPLACEMENT, True), (MAX_REPLACEMENT + 1, False)):
        changed = content + field(spec, field(2, known + b"x" * (length - 1) + b"\0"))
        sentencepiece.SentencePieceProcessor(model_proto=changed)
        if is_allowed:
            assert read(changed, tmp_path).encode("a")
        else:
            with pytest.raises(TokenizerFileError, match="replacement"):
                read(changed, tmp_path)


def test_a_file_must_be_there_and_regular_and_small(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        T5Tokenizer(tmp_path / "spiece.model")
    with pytest.raises(MissingFileError, match=r"spiece\.model"):
        T5Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(TokenizerFileError):
        T5Tokenizer(tmp_path)
    large = tmp_path / "large.model"
    with open(large, "wb") as file:
        file.truncate(MAX_VOCAB_BYTES + 1)
    with pytest.raises(ResourceLimitError):
        T5Tokenizer(large)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(TokenizerFileError):
            T5Tokenizer(tmp_path / "pipe")


def test_a_text_that_the_package_cannot_give_is_an_error_of_the_file(
    make: Callable[..., T5Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(text: str) -> Any:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    tokenizer = make("small")
    for name in ("EncodeAsIds", "EncodeAsPieces", "EncodeAsOffsetMapping"):
        monkeypatch.setattr(tokenizer.sp_model, name, fail)
    for call in (
        tokenizer.encode,
        tokenizer.tokenize,
        lambda text: tokenizer.encode_text(text, offsets=True),
    ):
        with pytest.raises(TokenizerFileError, match=r"spiece\.model"):
            call("a")


# ---- the package


def test_without_the_package_one_error_says_what_to_install(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(BackendError, match=r'pip install "refimpl\[sentencepiece\]"') as caught:
        AutoTokenizer.from_pretrained(models["small"])
    assert isinstance(caught.value, RefimplError)


@pytest.mark.parametrize("version", ["0.1.99", "0.2.1", "unknown", None])
def test_a_version_that_dies_of_broken_files_is_refused(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, version: str | None
) -> None:
    monkeypatch.setattr(sentencepiece, "__version__", version)
    with pytest.raises(BackendError, match="not safe"):
        AutoTokenizer.from_pretrained(models["small"])


def test_the_other_tokenizers_do_not_load_it() -> None:
    program = (
        "import sys, refimpl.tokenizer.unigram, refimpl.tokenizer.pretrained_files as _;"
        "print('sentencepiece' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
