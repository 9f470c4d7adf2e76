"""Files made to harm: each is refused at once, with a message that names the place and says what is allowed.

Those that are allowed but as large as can be are read in bounded time.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refimpl.errors import MissingFileError, RefimplError, ResourceLimitError, TokenizerFileError
from refimpl.json_reader import read_json_object
from refimpl.tokenizer import GPTNeoXJapaneseTokenizer, GPTNeoXTokenizerFast
from tests.fuzz.read_japanese import BYTES, EMOJI, LINES
from tests.fuzz.read_neox import (
    BYTE_LEVEL,
    MERGES,
    PADDING,
    SPLIT,
    TEMPLATE,
    TRUNCATION,
    VOCABULARY,
    added,
    content,
)

SECONDS = (
    10.0  # of the processor for a refusal; the files with megabytes take one, all others a thousandth of it
)
EVIL = "(a+)+$"


def written(folder: Path, files: dict[str, Any]) -> Path:
    """The files in `folder`: bytes and text as they are, lists as lines, anything else as JSON."""
    for name, file in files.items():
        if isinstance(file, list):
            file = "\n".join(file)
        elif not isinstance(file, str | bytes):
            file = json.dumps(file)
        (folder / name).write_bytes(
            file if isinstance(file, bytes) else file.encode("utf-8", "surrogatepass")
        )
    return folder


def japanese(folder: Path, **files: Any) -> GPTNeoXJapaneseTokenizer:
    """A tokenizer of these files (`vocab_txt` is `vocab.txt`), good ones where none is given."""
    named = {name.replace("_", "."): file for name, file in files.items()}
    written(folder, {"vocab.txt": LINES, "emoji.json": EMOJI, **named})
    return GPTNeoXJapaneseTokenizer(folder / "vocab.txt", folder / "emoji.json", impl="plain")


def configured(folder: Path, **files: Any) -> GPTNeoXJapaneseTokenizer:
    """As `japanese`, with settings beside: `tokenizer_config`, `special_tokens_map`, `added_tokens`."""
    beside = {f"{name}.json": file for name, file in files.items()}
    written(folder, {"vocab.txt": LINES, "emoji.json": EMOJI, **beside})
    return GPTNeoXJapaneseTokenizer.from_pretrained(folder, impl="plain")


def neox(folder: Path, model: Any = None, **sections: Any) -> GPTNeoXTokenizerFast:
    """A tokenizer of a good `tokenizer.json` with some sections, and some keys of the model, exchanged."""
    file = {**content(), **sections}
    file["model"] = {**file["model"], **(model or {})}
    return GPTNeoXTokenizerFast(tokenizer_file=written(folder, {"tokenizer.json": file}) / "tokenizer.json")


def two(folder: Path, vocab: Any = VOCABULARY, merges: Any = MERGES) -> GPTNeoXTokenizerFast:
    written(folder, {"vocab.json": vocab, "merges.txt": merges})
    return GPTNeoXTokenizerFast(folder / "vocab.json", folder / "merges.txt")


def refused(load: Callable[[], Any], *said: str, error: type[RefimplError] = TokenizerFileError) -> None:
    start = time.process_time()
    with pytest.raises(error) as caught:
        load()
    assert time.process_time() - start < SECONDS
    message = str(caught.value)
    assert len(message) < 1000
    assert message.isprintable()
    for words in said:
        assert words in message, message


# ---- vocab.txt

VOCABULARIES: dict[str, tuple[Any, str, str]] = {
    "a word of 1 MB": ([*LINES, "<" * 1_000_000], f"line {len(LINES) + 1}", "256 characters"),
    "a word of 257 characters": (["a" * 257, *LINES], "line 1", "256 characters"),
    "a byte above 255": ([*LINES, "<|byte300|>"], f"line {len(LINES) + 1}", "<|byte0|> to <|byte255|>"),
    "a byte below 0": ([*LINES, "a,<|byte-1|>"], f"line {len(LINES) + 1}", "<|byte0|> to <|byte255|>"),
    "a byte in letters": (["<|bytexx|>", *LINES], "line 1", "<|byte0|> to <|byte255|>"),
    "a byte in Arabic digits": (["<|byte٣|>", *LINES], "line 1", "<|byte0|> to <|byte255|>"),
    "too many lines": (["a"] * 1_000_001, "found 1000001", "1 to 1000000"),
    "no lines": ("", "vocab.txt", "1 to 1000000"),
    "an empty line": ([*LINES, "", "a"], f"line {len(LINES) + 1}", "a word on every line"),
    "a byte order mark": (b"\xef\xbb\xbf" + "\n".join(LINES).encode(), "line 1", "UTF-8 without one"),
    "UTF-16": ("\n".join(LINES).encode("utf-16"), "byte 0", "UTF-8"),
    "not UTF-8": ("\n".join(LINES).encode() + b"\n\xe3\x81", "cannot be decoded", "UTF-8"),
    "a lone surrogate": ([*LINES, "\ud800"], "cannot be decoded", "UTF-8"),
    "an overlong NUL": ("\n".join(LINES).encode() + b"\n\xc0\x80", "0xc0", "UTF-8"),
    "NUL": ([*LINES, "a\0b"], f"line {len(LINES) + 1}", "control characters"),
    "an escape of a terminal": ([*LINES, "\x1b[2J"], f"line {len(LINES) + 1}", "control characters"),
    "without its tags": (LINES[:3], "<SP>, <BR>", "missing"),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vocab_txt(tmp_path: Path, name: str) -> None:
    lines, place, allowed = VOCABULARIES[name]
    refused(lambda: japanese(tmp_path, vocab_txt=lines), "vocab.txt", place, allowed)


@pytest.mark.parametrize("missing", [0x00, 0x7F, 0xE3, 0xF4])
def test_every_byte_that_utf8_needs_must_be_there(tmp_path: Path, missing: int) -> None:
    lines = [*LINES, *(f"<|byte{value}|>" for value in range(256) if value != missing)]
    written(tmp_path, {"vocab.txt": lines, "emoji.json": EMOJI})
    paths = tmp_path / "vocab.txt", tmp_path / "emoji.json"
    refused(lambda: GPTNeoXJapaneseTokenizer(*paths, compat="original"), "vocab.txt", f"<|byte{missing}|>")


# ---- emoji.json


def emoji(table: Any, back: Any = EMOJI["emoji_inv"]) -> dict[str, Any]:
    return {"emoji": table, "emoji_inv": back}


CHAIN = {chr(0x4E00 + i): chr(0x4E01 + i) * 2 for i in range(60)}
EMOJI_FILES: dict[str, tuple[Any, str, str]] = {
    "each twice the next": (emoji(CHAIN), "tag of emoji", "<|emoji1|> and the like"),
    "a tag in a tag": (emoji({"a": "<|emoji1|><|emoji1|>"}), "<|emoji1|><|emoji1|>", "and the like"),
    "an empty emoji": (emoji({"": "<|emoji1|>"}), "''", "1 to 32 characters"),
    "a part of a tag": (emoji({"<": "<|emoji1|>"}), "'<'", "not part of a tag"),
    "another part of a tag": (emoji({"i1|": "<|emoji1|>"}), "'i1|'", "not part of a tag"),
    "a part of the tag of another": (
        emoji({"2": "<|emoji1|>", "😀": "<|emoji2|>"}),
        "'2'",
        "not part of a tag",
    ),
    "an emoji of 1 MB": (emoji({"a" * 1_000_000: "<|emoji1|>"}), "aaa", "1 to 32 characters"),
    "a tag of 1 MB": (emoji({"a": "<|emoji" + "1" * 1_000_000 + "|>"}), "111", "and the like"),
    "too many": (emoji({str(i): "<|emoji1|>" for i in range(10_001)}), '"emoji"', "at most 10000"),
    "too many ways back": (
        emoji({}, {f"<|emoji{i}|>": "a" for i in range(10_001)}),
        '"emoji_inv"',
        "at most 10000",
    ),
    "a number for a tag": (emoji({"a": 1}), "'a'", "not a text"),
    "a list for the table": (emoji([]), '"emoji"', "an object"),
    "no table": ({"emoji_inv": {}}, '"emoji"', "an object"),
    "no way back": (emoji({}, {}), "emoji_inv", "<|emoji1|>"),
    "an emoji twice": ('{"emoji": {"a": "<|emoji1|>", "a": "<|emoji2|>"}}', "'a'", "twice"),
    "half an emoji": ('{"emoji": {"\\ud83d": "<|emoji1|>"}}', "\\ud83d", "surrogate"),
}


@pytest.mark.parametrize("name", EMOJI_FILES)
def test_emoji_json(tmp_path: Path, name: str) -> None:
    file, place, allowed = EMOJI_FILES[name]
    refused(lambda: japanese(tmp_path, emoji_json=file), "emoji.json", place, allowed)


def test_an_emoji_between_two_tags_does_not_let_text_grow(tmp_path: Path) -> None:
    table = {"😀": "<|emoji1|>"} | {f"{'>' * i}<": "<|emoji1|>" for i in range(1, 9)}
    tokenizer = japanese(tmp_path, emoji_json=emoji(table))
    refused(lambda: tokenizer.encode("😀" * 20_000), "grow without bound")


# ---- tokenizer.json

CYCLE = {**VOCABULARY, "aa": 40, "aaa": 41}
SECTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "padding to 1e9 and a word": (
        {"padding": {**PADDING, "strategy": {"Fixed": "1e9"}}},
        "padding.strategy",
        "Fixed",
    ),
    "padding to 1e10": (
        {"padding": {**PADDING, "strategy": {"Fixed": 10**10}}},
        "padding.strategy",
        "length",
    ),
    "padding to -1": ({"padding": {**PADDING, "strategy": {"Fixed": -1}}}, "padding.strategy", "length"),
    "padding to 1.5": ({"padding": {**PADDING, "strategy": {"Fixed": 1.5}}}, "padding.strategy", "length"),
    "padding with 1e30": ({"padding": {**PADDING, "pad_id": 10**30}}, "padding.pad_id", "2**31 - 1"),
    "padding to a multiple of -1": (
        {"padding": {**PADDING, "pad_to_multiple_of": -1}},
        "pad_to_multiple_of",
        "null",
    ),
    "truncation to -1": ({"truncation": {**TRUNCATION, "max_length": -1}}, "truncation.max_length", "0 to"),
    "truncation by True": ({"truncation": {**TRUNCATION, "stride": True}}, "truncation.stride", "0 to"),
    "truncation unknown": (
        {"truncation": {**TRUNCATION, "strategy": "exec"}},
        "truncation.strategy",
        "known",
    ),
    "another pattern": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{**SPLIT, "pattern": {"Regex": EVIL}}, BYTE_LEVEL],
            }
        },
        "pre_tokenizer.pretokenizers[0].pattern",
        "Regex",
    ),
    "a pattern in a normalizer": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": EVIL}, "content": "aa"}},
        "normalizer",
        '{"type": "NFC", ...}',
    ),
    "a pattern in a decoder": (
        {"decoder": {"type": "Replace", "pattern": {"Regex": EVIL}, "content": ""}},
        "decoder",
        '{"type": "ByteLevel", ...}',
    ),
    "a precompiled normalizer": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "A" * 10**6}},
        "normalizer",
        "NFC",
    ),
    "a hundred normalizers": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}},
        "normalizer.normalizers",
        "a short list",
    ),
    "sequences in sequences": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}},
        "normalizer.normalizers[0]",
        "NFC",
    ),
    "an unknown type": ({"pre_tokenizer": {"type": "Exec"}}, "pre_tokenizer", "ByteLevel"),
    "a list for a type": ({"pre_tokenizer": {"type": ["ByteLevel"]}}, "pre_tokenizer", "ByteLevel"),
    "an unknown section": ({"__class__": "os.system"}, "__class__", "no such key"),
    "another version": ({"version": 1.0}, "version", '"1.0"'),
    "a template of megabytes": (
        {"post_processor": {**TEMPLATE, "single": TEMPLATE["single"] * 100_000}},
        "post_processor.single",
        "at most one special token",
    ),
    "1e6 added tokens": (
        {"added_tokens": [{"id": 100 + i, "content": f"t{i}"} for i in range(10**6)]},
        "added_tokens",
        "at most 10,000",
    ),
    "an added token of 1 MB": (
        {"added_tokens": [added(50, "a" * 1_000_000)]},
        "added_tokens[0].content",
        "text",
    ),
    "an added token of 257 characters": (
        {"added_tokens": [added(50, "a" * 257)]},
        "added_tokens[0].content",
        "256 characters",
    ),
    "an empty added token": ({"added_tokens": [added(50, "")]}, "added_tokens[0].content", "a text"),
    "an added token twice": (
        {"added_tokens": [added(50, "x"), added(51, "x")]},
        "added_tokens[1]",
        "each token and each id once",
    ),
    "an added id twice": (
        {"added_tokens": [added(50, "x"), added(50, "y")]},
        "added_tokens[1]",
        "each token and each id once",
    ),
    "an added token with the id of another": (
        {"added_tokens": [added(VOCABULARY["a"], "x")]},
        "added_tokens[0]",
        "each token and each id once",
    ),
    "an added token that has another id": (
        {"added_tokens": [added(50, "a")]},
        "added_tokens[0].id",
        f"{VOCABULARY['a']}, the id of the token in the vocabulary",
    ),
    "an added id of 2**31": ({"added_tokens": [added(2**31, "x")]}, "added_tokens[0].id", "2**31 - 1"),
    "an added id of -1": ({"added_tokens": [added(-1, "x")]}, "added_tokens[0].id", "2**31 - 1"),
}
MODELS: dict[str, tuple[dict[str, Any], str, str]] = {
    "an id twice": ({"vocab": {**VOCABULARY, "zz": 3}}, "model.vocab", "one token per id"),
    "an id of 2**31": ({"vocab": {**VOCABULARY, "zz": 2**31}}, "model.vocab.'zz'", "0 to 2**31 - 1"),
    "an id of -1": ({"vocab": {**VOCABULARY, "zz": -1}}, "model.vocab.'zz'", "0 to 2**31 - 1"),
    "an id of 1e400": ({"vocab": {**VOCABULARY, "zz": 10**400}}, "model.vocab.'zz'", "0 to 2**31 - 1"),
    "true for an id": ({"vocab": {**VOCABULARY, "zz": True}}, "model.vocab.'zz'", "0 to 2**31 - 1"),
    "an id as text": ({"vocab": {**VOCABULARY, "zz": "50"}}, "model.vocab.'zz'", "0 to 2**31 - 1"),
    "an empty token": ({"vocab": {**VOCABULARY, "": 50}}, "model.vocab", "1 to 1024 characters"),
    "a token of 1 MB": (
        {"vocab": {**VOCABULARY, "a" * 1_000_000: 50}},
        "model.vocab",
        "1 to 1024 characters",
    ),
    "a list of tokens": ({"vocab": list(VOCABULARY)}, "model.vocab", "token -> id"),
    "too many tokens": (
        {"vocab": {**VOCABULARY, **{f"w{i}": 100 + i for i in range(10**6)}}},
        "model.vocab",
        "at most 1,000,000",
    ),
    "a merge of what is no token": (
        {"merges": [*MERGES, "a x"]},
        f"model.merges[{len(MERGES)}]",
        "'x' is not one",
    ),
    "a merge to what is no token": ({"merges": ["b a"]}, "model.merges[0]", "'ba' is not one"),
    "a merge of itself": ({"vocab": CYCLE, "merges": ["aa a", "aaa aaa"]}, "model.merges[1]", "is not one"),
    "a merge of nothing": ({"merges": [" a"]}, "model.merges[0]", "'' is not one"),
    "a merge of one": ({"merges": ["a"]}, "model.merges[0]", "two tokens"),
    "a merge of three": ({"merges": ["a b c"]}, "model.merges[0]", "two tokens"),
    "a merge of lists": ({"merges": [[["a"], ["b"]]]}, "model.merges[0]", "two tokens"),
    "a merge of 10 MB": ({"merges": ["a" * 10**7 + " b"]}, "model.merges[0]", "tokens of the vocabulary"),
    "merges of two forms": ({"merges": ["a b", ["a", "b"]]}, "model.merges", "all"),
    "a merge twice": ({"merges": ["a b"] * 2}, "model.merges[0]", "each merge once"),
    "too many merges": ({"merges": ["a b"] * 1_000_001}, "model.merges", "at most 1,000,000"),
    "dropout": ({"dropout": 0.1}, "model.dropout", "no dropout"),
    "bytes of the other kind": ({"byte_fallback": True}, "model.byte_fallback", "false"),
    "a prefix": ({"continuing_subword_prefix": "##"}, "model.continuing_subword_prefix", "null"),
    "another model": ({"type": "Unigram"}, "model.type", '"BPE"'),
    "an unknown token for what is unknown": (
        {"unk_token": "zz"},
        "model.unk_token",
        "a token of the vocabulary",
    ),
    "a cache of 1e9": ({"cache_capacity": 10**9}, "model.cache_capacity", "no such key"),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_tokenizer_json(tmp_path: Path, name: str) -> None:
    sections, place, allowed = SECTIONS[name]
    refused(lambda: neox(tmp_path, **sections), "tokenizer.json", place, allowed)


@pytest.mark.parametrize("name", MODELS)
def test_model_in_tokenizer_json(tmp_path: Path, name: str) -> None:
    model, place, allowed = MODELS[name]
    refused(lambda: neox(tmp_path, model), "tokenizer.json", place, allowed)


def test_padding_to_a_billion_is_not_done(tmp_path: Path) -> None:
    """The file may ask for it, as the `tokenizers` package writes it; only a call pads."""
    tokenizer = neox(tmp_path, padding={**PADDING, "strategy": {"Fixed": 10**9}}, truncation=TRUNCATION)
    assert tokenizer("ab").input_ids == [VOCABULARY["ab"]]


# ---- vocab.json and merges.txt

TWO: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "an id twice": (
        {"vocab": {"a": 0, "b": 0}, "merges": ""},
        "",
        "'a' and 'b' with id 0",
        "one token per id",
    ),
    "an id as text": ({"vocab": {"a": "0"}, "merges": ""}, "vocab.json", "'a'", "0 to 2**31 - 1"),
    "a token of 1 MB": (
        {"vocab": {"a" * 10**6: 0}, "merges": ""},
        "vocab.json",
        "the vocabulary",
        "1 to 1024",
    ),
    "a list": ({"vocab": "[]"}, "vocab.json", "[]", "one JSON object"),
    "not UTF-8": ({"merges": b"a b\n\xff"}, "merges.txt", "byte 4", "UTF-8"),
    "UTF-16": ({"merges": "a b".encode("utf-16")}, "merges.txt", "byte 0", "UTF-8"),
    "a byte order mark": ({"merges": "\ufeffa b"}, "merges.txt", "merges[0]", "tokens of the vocabulary"),
    "an unknown token": ({"merges": ["a b", "a x"]}, "merges.txt", "merges[1]", "'x' is not one"),
    "an empty line": ({"merges": ["a b", "", "ab c"]}, "merges.txt", "merges[1]", "two tokens"),
    "a line of 1 MB": ({"merges": ["a" * 10**6]}, "merges.txt", "merges[0]", "two tokens"),
    "a tab": ({"merges": ["a\tb"]}, "merges.txt", "merges[0]", "two tokens"),
    "NUL": ({"merges": ["a \0"]}, "merges.txt", "merges[0]", "tokens of the vocabulary"),
    "a merge twice": ({"merges": ["a b", "a b"]}, "merges.txt", "merges[0]", "each merge once"),
    "too many": ({"merges": ["a b"] * 1_000_001}, "merges.txt", "merges", "at most 1,000,000"),
}


@pytest.mark.parametrize("name", TWO)
def test_vocab_json_and_merges_txt(tmp_path: Path, name: str) -> None:
    files, *said = TWO[name]
    refused(lambda: two(tmp_path, **files), *said)


# ---- tokenizer_config.json and the two beside it

TOKEN = {"content": "x"}
SETTINGS: dict[str, tuple[str, Any, str, str]] = {
    "an id of thousands of digits": (
        "tokenizer_config",
        {"added_tokens_decoder": {"1" * 5000: TOKEN}},
        "token id",
        "2**31 - 1",
    ),
    "an id of 2**31": (
        "tokenizer_config",
        {"added_tokens_decoder": {str(2**31): TOKEN}},
        "2147483648",
        "2**31 - 1",
    ),
    "an id of -1": ("tokenizer_config", {"added_tokens_decoder": {"-1": TOKEN}}, "-1", "2**31 - 1"),
    "1e6 added tokens": (
        "tokenizer_config",
        {"added_tokens_decoder": {str(100 + i): "x" for i in range(10**6)}},
        "added_tokens_decoder",
        "at most 10000",
    ),
    "an added token of 1 MB": (
        "tokenizer_config",
        {"added_tokens_decoder": {"50": {"content": "a" * 10**6}}},
        "aaa",
        "256 characters",
    ),
    "a special token of 1 MB": ("tokenizer_config", {"pad_token": "a" * 10**6}, "aaa", "256 characters"),
    "too many special tokens": (
        "tokenizer_config",
        {"extra_special_tokens": [f"<{i}>" for i in range(10_001)]},
        "too many added tokens",
        "10000",
    ),
    "a length of -1": ("tokenizer_config", {"model_max_length": -1}, "model_max_length", "a number from 0"),
    "names that are no list": (
        "tokenizer_config",
        {"model_input_names": 3},
        "model_input_names",
        "list of names",
    ),
    "a side of another type": ("tokenizer_config", {"padding_side": ["left"]}, "padding_side", "right"),
    "more ids than memory": ("tokenizer_config", {"padded_vocab_size": 10**30}, "padded_vocab_size", "2**31"),
    "lists in lists": ("tokenizer_config", '{"pad_token": ' + "[" * 100_000, "not valid JSON", "recursion"),
    "a token of another type": ("special_tokens_map", {"eos_token": [1]}, "[1]", 'an object with "content"'),
    "an empty token": ("special_tokens_map", {"eos_token": ""}, "''", "a text"),
    "a long special token": ("special_tokens_map", {"eos_token": "a" * 257}, "aaa", "256 characters"),
    "an id of 1.5": ("added_tokens", {"x": 1.5}, "1.5", "2**31 - 1"),
    "an id of true": ("added_tokens", {"x": True}, "True", "2**31 - 1"),
    "1e6 tokens": ("added_tokens", {f"t{i}": 100 + i for i in range(10**6)}, "too many", "10000"),
    "a token twice": ("added_tokens", '{"x": 50, "x": 51}', "'x'", "twice"),
    "a long token": ("added_tokens", {"a" * 257: 50}, "aaa", "256 characters"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(tmp_path: Path, name: str) -> None:
    file, value, place, allowed = SETTINGS[name]
    refused(lambda: configured(tmp_path, **{file: value}), f"{file}.json", place, allowed)


def test_what_the_call_says_is_not_blamed_on_a_file(tmp_path: Path) -> None:
    written(tmp_path, {"vocab.txt": LINES, "emoji.json": EMOJI, "tokenizer_config.json": {}})
    with pytest.raises(RefimplError) as caught:
        GPTNeoXJapaneseTokenizer.from_pretrained(tmp_path, model_input_names=3)
    assert not isinstance(caught.value, TokenizerFileError)
    assert "tokenizer_config.json" not in str(caught.value)


# ---- any file of JSON

DEEP = [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")]
JSON: dict[str, tuple[str | bytes, str]] = {
    "a number with an exponent of 999": ('{"a": 1e999}', "1e999"),
    "a number of 5000 digits": ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
    "NaN": ('{"a": NaN}', "NaN"),
    "Infinity": ('{"a": -Infinity}', "Infinity"),
    "a key twice": ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c'"),
    "a lone surrogate": ('{"a": ["\\udc00"]}', "surrogate"),
    "a lone surrogate in a key": ('{"\\ud800": 1}', "surrogate"),
    "a NUL": (b'{"a": "\0"}', "not valid JSON"),
    "a byte order mark": (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "UTF-32": ('{"a": 1}'.encode("utf-32-le") + b"\xff", "not UTF-8"),
    "cut off": ('{"a": [1, 2', "not valid JSON"),
    "more behind it": ('{"a": 1} {"b": 2}', "not valid JSON"),
    "a list": ("[1]", "one JSON object"),
    "nothing": ("", "not valid JSON"),
}


@pytest.mark.parametrize("name", JSON)
def test_json(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, {"some.json": JSON[name][0]}) / "some.json"
    refused(lambda: read_json_object(path, TokenizerFileError), "some.json", JSON[name][1])


@pytest.mark.parametrize(("opened", "closed"), DEEP, ids=str)
def test_values_in_values(tmp_path: Path, opened: str, closed: str) -> None:
    """At some depth Python can still read a value, but not show it any more."""
    for depth in [10, 100, *range(880, 1010), 10_000, 100_000]:
        deep = opened * depth + "1" + closed * depth
        for file in (
            '{"model": 1, "version": %s}',
            '{"version": "1.0", "model": {"vocab": {"a": %s}, "merges": []}}',
        ):
            path = written(tmp_path, {"tokenizer.json": file % deep}) / "tokenizer.json"
            refused(lambda path=path: GPTNeoXTokenizerFast(tokenizer_file=path), "tokenizer.json")
        refused(
            lambda deep=deep: japanese(tmp_path, emoji_json=f'{{"emoji": {{"a": {deep}}}}}'), "emoji.json"
        )
        settings = f'{{"eos_token": {{"content": "x", "special": {deep}}}}}'
        refused(
            lambda settings=settings: configured(tmp_path, special_tokens_map=settings),
            "special_tokens_map.json",
        )


@pytest.mark.parametrize(("opened", "closed"), DEEP, ids=str)
def test_a_deep_setting_that_is_kept_is_saved_or_refused(tmp_path: Path, opened: str, closed: str) -> None:
    for depth in [10, *range(300, 1000, 20)]:
        deep = opened * depth + "1" + closed * depth
        try:
            tokenizer = configured(tmp_path, tokenizer_config=f'{{"something": {deep}}}')
            tokenizer.save_pretrained(tmp_path / "saved")
        except RefimplError:
            assert depth > 100


@pytest.mark.parametrize("name", ["vocab.txt", "emoji.json", "tokenizer.json", "merges.txt"])
def test_files_that_are_too_large_or_not_there(tmp_path: Path, name: str) -> None:
    written(tmp_path, {"vocab.txt": LINES, "emoji.json": EMOJI, "vocab.json": VOCABULARY})
    load = {
        "vocab.txt": lambda: GPTNeoXJapaneseTokenizer(tmp_path / name, tmp_path / "emoji.json"),
        "emoji.json": lambda: GPTNeoXJapaneseTokenizer(tmp_path / "vocab.txt", tmp_path / name),
        "tokenizer.json": lambda: GPTNeoXTokenizerFast(tokenizer_file=tmp_path / name),
        "merges.txt": lambda: GPTNeoXTokenizerFast(tmp_path / "vocab.json", tmp_path / name),
    }[name]
    (tmp_path / name).unlink(missing_ok=True)
    refused(load, name, error=MissingFileError)
    with open(tmp_path / name, "wb") as file:
        file.truncate(1 << 40)  # as long as the disk, without taking a place on it
    refused(load, name, "too large", error=ResourceLimitError)


# ---- what is allowed and as large as can be


def bounded(load: Callable[[], Any]) -> Any:
    """What `load` returns, if it needs no more than a minute of processor time: a watch for what never ends."""
    start = time.process_time()
    value = load()
    assert time.process_time() - start < 60
    return value


def test_ten_thousand_emoji_with_tags_of_their_own(tmp_path: Path) -> None:
    for alphabet in ("字", "<<"):
        table = {f"{alphabet}{i}": f"<|emoji{i}|>" for i in range(10_000)}
        back = {f"<|emoji{i}|>": "x" for i in range(10_000)}
        bounded(lambda table=table, back=back: japanese(tmp_path, emoji_json=emoji(table, back)))


def test_a_line_of_megabytes_of_spellings(tmp_path: Path) -> None:
    spellings = ",".join(f"{i}".ljust(256, "x") for i in range(4000))
    tokenizer = bounded(lambda: japanese(tmp_path, vocab_txt=[spellings, *LINES, *BYTES]))
    assert tokenizer.decode([0]) == "0".ljust(256, "x")


@pytest.mark.parametrize("special", [True, False])
def test_many_long_added_tokens(tmp_path: Path, special: bool) -> None:
    draw = random.Random(1)
    table = {
        str(100 + i): {"content": f"{i}".ljust(200, draw.choice("ab")), "special": special}
        for i in range(2000)
    }
    tokenizer = bounded(lambda: configured(tmp_path, tokenizer_config={"added_tokens_decoder": table}))
    text = "".join(token["content"] for token in table.values())
    assert len(bounded(lambda: tokenizer.encode(text))) == 2000


def test_added_tokens_that_are_each_the_beginning_of_the_next(tmp_path: Path) -> None:
    table = {str(100 + n): {"content": "a" * n, "special": False} for n in range(1, 257)}
    tokenizer = configured(tmp_path, tokenizer_config={"added_tokens_decoder": table})
    assert bounded(lambda: tokenizer.encode("a" * 100_000)) == [*[356] * 390, 260]


def test_ids_with_the_largest_gap(tmp_path: Path) -> None:
    tokenizer = bounded(lambda: neox(tmp_path, {"vocab": {**VOCABULARY, "zz": 2**31 - 1}}))
    assert tokenizer.decode(tokenizer.encode("ab abc")) == "ab abc"


def test_half_a_million_tokens(tmp_path: Path) -> None:
    vocab = {**VOCABULARY, **{f"w{i}": 100 + i for i in range(500_000)}}
    assert len(bounded(lambda: neox(tmp_path, {"vocab": vocab}))) > 500_000
