"""The files of the GPT-NeoX tokenizer: what is read, what is refused, what is written."""

from __future__ import annotations

import copy
import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refimpl import AutoTokenizer
from refimpl.errors import InputError, MissingFileError, RefimplError, ResourceLimitError, TokenizerFileError
from refimpl.tokenizer import AddedToken, GPTNeoXTokenizerFast
from refimpl.tokenizer.byte_level import GPT2_PATTERN
from refimpl.tokenizer.neox_files import read_tokenizer_json
from tests.tokenizer.neox_toy import MERGES, added, content, vocabulary, write, write_two

SIZE = len(vocabulary())
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": GPT2_PATTERN}, "behavior": "Isolated", "invert": False}

Change = Callable[[dict[str, Any]], None]


def put(path: str, value: Any) -> Change:
    """Sets one key: `put("model.vocab", {})`."""

    def change(file: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            file = file[name]
        file[last] = value

    return change


def drop(path: str) -> Change:
    def change(file: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for name in parents:
            file = file[name]
        del file[last]

    return change


def around(sequence: str, type_id: int, *ends: str | None) -> list[dict[str, Any]]:
    before, after = ([{"SpecialToken": {"id": t, "type_id": type_id}}] if t else [] for t in ends)
    return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]


def template(before: str | None, after: str | None) -> dict[str, Any]:
    ids = vocabulary()
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0, before, after),
        "pair": around("A", 0, before, after) + around("B", 1, before, after),
        "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in (before, after) if t},
    }


def load(folder: Path, *changes: Change, **options: Any) -> GPTNeoXTokenizerFast:
    file = copy.deepcopy(content())
    for change in changes:
        change(file)
    return GPTNeoXTokenizerFast(tokenizer_file=write(folder, file), **options)


# ---- what is read


def test_a_tokenizer_json(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    assert tokenizer.tokenize("Hello    the") == ["Hello", "   ", "Ġthe"]
    assert (tokenizer.vocab_size, len(tokenizer)) == (SIZE, SIZE + 1)
    assert (tokenizer.nfc, tokenizer.add_prefix_space, tokenizer.trim_offsets) == (True, False, True)
    assert tokenizer.added_tokens_decoder[SIZE] == AddedToken("   ", normalized=True)


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        (put("normalizer", None), "nfc", False),
        (put("normalizer", {"type": "Sequence", "normalizers": []}), "nfc", False),
        (put("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}]}), "nfc", True),
        (put("pre_tokenizer", {**BYTE_LEVEL, "add_prefix_space": True}), "add_prefix_space", True),
        (put("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False}), "add_prefix_space", False),
        (put("post_processor", {**BYTE_LEVEL, "trim_offsets": False}), "trim_offsets", False),
        (put("post_processor", None), "trim_offsets", True),
        (put("post_processor", template(None, None)), "add_bos_token", False),
        (put("post_processor", template("<|endoftext|>", None)), "add_bos_token", True),
        (put("post_processor", template(None, "<|endoftext|>")), "add_eos_token", True),
        (
            put("post_processor", {"type": "Sequence", "processors": [BYTE_LEVEL, template("a", "b")]}),
            "bos_token",
            "a",
        ),
    ],
)
def test_settings_in_tokenizer_json(tmp_path: Path, change: Change, name: str, value: Any) -> None:
    assert getattr(load(tmp_path, change), name) == value


@pytest.mark.parametrize(
    "name", ["nfc", "add_prefix_space", "trim_offsets", "add_bos_token", "add_eos_token"]
)
@pytest.mark.parametrize("value", [True, False])
def test_options_go_before_the_file(tmp_path: Path, name: str, value: bool) -> None:
    assert getattr(load(tmp_path, **{name: value}), name) is value


@pytest.mark.parametrize(
    "change",
    [
        put("model.merges", [merge.split(" ") for merge in MERGES]),
        put("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}),
        put(
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [SPLIT, {**BYTE_LEVEL, "use_regex": False}]},
        ),
        put("model.dropout", 0.0),
        put("model.byte_fallback", False),
        put("model.ignore_merges", False),
        put("model.continuing_subword_prefix", ""),
        put("model.unk_token", "a"),
        drop("model.type"),
        drop("truncation"),
        put("added_tokens", None),
        put(
            "truncation",
            {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        ),
        put(
            "padding",
            {
                "strategy": {"Fixed": 2**31 - 1},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 1,
                "pad_type_id": 0,
                "pad_token": "<|padding|>",
            },
        ),
    ],
)
def test_forms_that_mean_the_same(tmp_path: Path, change: Change) -> None:
    ids = load(tmp_path).encode("Hello the<|endoftext|> e\u0301 世")
    assert load(tmp_path, change).encode("Hello the<|endoftext|> e\u0301 世") == ids


def test_two_files(tmp_path: Path) -> None:
    tokenizer = GPTNeoXTokenizerFast(*write_two(tmp_path))
    assert tokenizer.tokenize("Hello the e\u0301") == ["Hello", "Ġthe", "Ġ", "Ã©"]
    crlf = tmp_path / "crlf.txt"
    crlf.write_bytes("\r\n".join(MERGES).encode())
    again = GPTNeoXTokenizerFast(tmp_path / "vocab.json", crlf)
    assert again.tables.ranks == tokenizer.tables.ranks


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        GPTNeoXTokenizerFast.from_pretrained(tmp_path)
    vocab, merges = write_two(tmp_path)
    assert GPTNeoXTokenizerFast.from_pretrained(tmp_path).vocab_size == SIZE
    write(tmp_path, {**content(), "normalizer": None})
    assert not GPTNeoXTokenizerFast.from_pretrained(tmp_path).nfc  # tokenizer.json goes first
    given = GPTNeoXTokenizerFast.from_pretrained(tmp_path, vocab_file=vocab, merges_file=merges)
    assert given.nfc
    merges.unlink()
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(MissingFileError, match=r"merges\.txt"):
        GPTNeoXTokenizerFast.from_pretrained(tmp_path)


def test_settings_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path, content())
    settings = {
        "add_bos_token": True,
        "add_prefix_space": True,
        "pad_token": "<pad>",
        "added_tokens_decoder": {str(SIZE + 1): {"content": "<pad>", "special": True}},
        "vocab": {"a": 0},
        "model_max_length": 7,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = GPTNeoXTokenizerFast.from_pretrained(tmp_path)
    assert (tokenizer.add_bos_token, tokenizer.add_prefix_space, tokenizer.model_max_length) == (
        True,
        True,
        7,
    )
    assert (tokenizer.pad_token_id, tokenizer.vocab_size) == (SIZE + 1, SIZE)
    assert tokenizer.added_tokens_decoder[SIZE].content == "   "  # from tokenizer.json
    for settings in ({"trim_offsets": 1}, {"errors": "x"}, {"errors": []}, {"padded_vocab_size": 2**40}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(TokenizerFileError, match=next(iter(settings))):
            GPTNeoXTokenizerFast.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("named", "files", "nfc"),
    [
        ("GPTNeoXTokenizer", "tokenizer.json", True),
        ("GPTNeoXTokenizerFast", "both", True),
        ("PreTrainedTokenizerFast", "tokenizer.json", True),
        ("TokenizersBackend", "tokenizer.json", True),
        ("GPT2Tokenizer", "both", False),
        ("GPT2TokenizerFast", "tokenizer.json", True),
        (None, "tokenizer.json", True),
        (None, "both", True),
    ],
)
def test_finding_the_class(tmp_path: Path, named: str | None, files: str, nfc: bool) -> None:
    if named is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    if files == "both":
        write_two(tmp_path)
    else:
        write(tmp_path, content())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(tokenizer) is GPTNeoXTokenizerFast
    assert tokenizer.nfc is nfc


# ---- what is refused


def entry(**changes: Any) -> dict[str, Any]:
    return {**added(SIZE + 5, "new"), **changes}


REFUSED: list[tuple[str, Change]] = [
    ("version", put("version", "2.0")),
    ("version", drop("version")),
    ("model", drop("model")),
    ("model", put("model", [])),
    ("extra", put("extra", 1)),
    ("truncation", put("truncation", 5)),
    (
        "truncation.max_length",
        put("truncation", {"max_length": -1, "strategy": "LongestFirst", "stride": 0}),
    ),
    ("padding.strategy", put("padding", {"strategy": {"Fixed": 10**10}})),
    ("padding.'x'|padding.x", put("padding", {"x": 1})),
    ("normalizer", put("normalizer", {"type": "NFKC"})),
    ("normalizer", put("normalizer", {"type": ["NFC"]})),
    ("normalizer", put("normalizer", "NFC")),
    (
        r"normalizer.normalizers\[1\]",
        put("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
    ),
    ("normalizer.normalizers", put("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9})),
    ("normalizer.pattern", put("normalizer", {"type": "NFC", "pattern": "(a+)+b"})),
    ("pre_tokenizer", put("pre_tokenizer", None)),
    ("pre_tokenizer", put("pre_tokenizer", {"type": "Whitespace"})),
    ("pre_tokenizer.use_regex", put("pre_tokenizer", {**BYTE_LEVEL, "use_regex": False})),
    ("pre_tokenizer.add_prefix_space", put("pre_tokenizer", {**BYTE_LEVEL, "add_prefix_space": None})),
    ("pre_tokenizer", put("pre_tokenizer", {"type": "Sequence", "pretokenizers": []})),
    (
        "pattern",
        put(
            "pre_tokenizer",
            {
                "type": "Sequence",
                "pretokenizers": [
                    {**SPLIT, "pattern": {"Regex": "(a+)+b"}},
                    {**BYTE_LEVEL, "use_regex": False},
                ],
            },
        ),
    ),
    (
        "use_regex",
        put("pre_tokenizer", {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]}),
    ),
    (
        "add_prefix_space",
        put(
            "pre_tokenizer",
            {
                "type": "Sequence",
                "pretokenizers": [SPLIT, {**BYTE_LEVEL, "use_regex": False, "add_prefix_space": True}],
            },
        ),
    ),
    ("post_processor", put("post_processor", {"type": "BertProcessing"})),
    (
        "post_processor.single",
        put("post_processor", {**template("a", None), "single": around("A", 0, "<unknown>", None)}),
    ),
    ("post_processor.pair", put("post_processor", {**template("a", None), "pair": []})),
    ("post_processor.single", put("post_processor", {**template(None, None), "single": [{}, {}, {}, {}]})),
    ("post_processor.special_tokens", put("post_processor", {**template("a", None), "special_tokens": {}})),
    ("decoder", put("decoder", None)),
    ("decoder", put("decoder", {"type": "WordPiece"})),
    ("model.type", put("model.type", "Unigram")),
    ("model.dropout", put("model.dropout", 0.1)),
    ("model.dropout", put("model.dropout", False)),
    ("model.byte_fallback", put("model.byte_fallback", True)),
    ("model.end_of_word_suffix", put("model.end_of_word_suffix", "</w>")),
    ("model.unk_token", put("model.unk_token", "unknown token")),
    ("model.unk_token", put("model.unk_token", 0)),
    ("model.cache", put("model.cache", 10**9)),
    ("model.vocab", put("model.vocab", [])),
    ("model.vocab", put("model.vocab", None)),
    ("model.vocab.'a'", put("model.vocab.a", -1)),
    ("model.vocab.'a'", put("model.vocab.a", 2**31)),
    ("model.vocab.'a'", put("model.vocab.a", 1.0)),
    ("model.vocab.'a'", put("model.vocab.a", True)),
    ("model.vocab.'a'", put("model.vocab.a", "1")),
    ("'Ā' and 'a' with id 2", put("model.vocab.a", 2)),
    ("model.vocab", put("model.vocab.", 400)),
    ("model.vocab", put("model.vocab." + "x" * 1025, 400)),
    ("model.merges", put("model.merges", None)),
    ("model.merges", put("model.merges", {})),
    (r"model.merges\[0\]", put("model.merges", ["ab"])),
    (r"model.merges\[1\]", put("model.merges", ["h e", "a b c"])),
    (r"model.merges\[0\]", put("model.merges", [["h", "e", "x"]])),
    (r"model.merges\[0\]", put("model.merges", [["h", 1]])),
    (r"model.merges\[1\]", put("model.merges", [["h", "e"], [[], "e"]])),
    ("model.merges", put("model.merges", ["h e", ["h", "e"]])),
    ("model.merges", put("model.merges", [5])),
    (r"model.merges\[1\].*'xy' is not one", put("model.merges", ["h e", "x y"])),
    (r"model.merges\[0\].*'世' is not one", put("model.merges", ["世 y"])),
    (r"model.merges\[0\]", put("model.merges", ["h e", "a a", "h e"])),
    ("added_tokens", put("added_tokens", {})),
    ("added_tokens", put("added_tokens", [entry()] * 10_001)),
    (r"added_tokens\[0\]", put("added_tokens", ["new"])),
    (r"added_tokens\[0\].id", put("added_tokens", [entry(id=-1)])),
    (r"added_tokens\[0\].id", put("added_tokens", [entry(id=True)])),
    (r"added_tokens\[0\].id", put("added_tokens", [{"content": "new"}])),
    (r"added_tokens\[0\].content", put("added_tokens", [entry(content="")])),
    (r"added_tokens\[0\].content", put("added_tokens", [entry(content="x" * 257)])),
    (r"added_tokens\[0\].content", put("added_tokens", [entry(content="x" * 2000)])),
    (r"added_tokens\[0\].content", put("added_tokens", [entry(content=7)])),
    (r"added_tokens\[0\].lstrip", put("added_tokens", [entry(lstrip=1)])),
    (r"added_tokens\[0\].normalized", put("added_tokens", [entry(normalized=None)])),
    (r"added_tokens\[0\].color", put("added_tokens", [entry(color=1)])),
    (r"added_tokens\[1\]", put("added_tokens", [entry(), entry()])),
    (r"added_tokens\[1\]", put("added_tokens", [entry(), entry(id=SIZE + 6)])),
    (r"added_tokens\[1\]", put("added_tokens", [entry(), entry(content="other")])),
    (r"added_tokens\[0\]", put("added_tokens", [entry(id=5)])),
    (r"added_tokens\[0\].id", put("added_tokens", [entry(content="a")])),
]


@pytest.mark.parametrize(("said", "change"), REFUSED)
def test_files_that_are_refused(tmp_path: Path, said: str, change: Change) -> None:
    with pytest.raises(TokenizerFileError, match=said) as caught:
        load(tmp_path, change)
    assert caught.value.where is not None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", TokenizerFileError),
        ("[]", TokenizerFileError),
        ("{", TokenizerFileError),
        ('{"version": "1.0", "version": "1.0"}', TokenizerFileError),
        ('{"version": "1.0", "model": {"vocab": {"a": 0, "a": 1}, "merges": []}}', TokenizerFileError),
        ('{"version": "1.0", "model": {"vocab": {"\\ud800": 0}, "merges": []}}', TokenizerFileError),
        ('{"version": "1.0", "model": {"vocab": {}, "merges": ["\\ud800 a"]}}', TokenizerFileError),
        ('{"version": NaN}', TokenizerFileError),
        ("[" * 100_000, TokenizerFileError),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: str, error: type[Exception]) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(error):
        GPTNeoXTokenizerFast(tokenizer_file=path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(MissingFileError):
        GPTNeoXTokenizerFast(tokenizer_file=path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(TokenizerFileError, match="not UTF-8"):
        GPTNeoXTokenizerFast(tokenizer_file=path)
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ResourceLimitError):
        GPTNeoXTokenizerFast(tokenizer_file=path)


@pytest.mark.parametrize(
    "merges", ["a\n", "a b c\n", "\n\n", "x y\n", "#version: 0.2\nh e\nh e\n", "h e\n#version\n"]
)
def test_merges_txt_that_is_refused(tmp_path: Path, merges: str) -> None:
    vocab, path = write_two(tmp_path)
    path.write_text(merges, encoding="utf-8")
    with pytest.raises(TokenizerFileError, match="merges"):
        GPTNeoXTokenizerFast(vocab, path)


def test_vocabularies_of_arguments_are_checked() -> None:
    for vocab, merges in (
        ({"a": 0, "b": 0}, []),
        ({1: 0}, []),
        ([("a", 0)], []),
        ({"a": 0}, ["a a"]),
        ({"a": 0}, "a a"),
    ):
        with pytest.raises(TokenizerFileError):
            GPTNeoXTokenizerFast(vocab=vocab, merges=merges)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {3: AddedToken("other")},  # the id of a byte
        {SIZE + 7: AddedToken("a")},  # a token of the vocabulary with another id
        {SIZE + 7: AddedToken("   ")},  # a token of tokenizer.json with another id
    ],
)
def test_settings_that_contradict_the_file(tmp_path: Path, settings: dict[int, AddedToken]) -> None:
    with pytest.raises(TokenizerFileError, match="contradict"):
        load(tmp_path, added_tokens_decoder=settings)


def test_a_template_with_another_token_than_the_settings(tmp_path: Path) -> None:
    change = put("post_processor", template("a", None))
    assert load(tmp_path, change).bos_token == "a"
    with pytest.raises(TokenizerFileError, match="post_processor"):
        load(tmp_path, change, bos_token="b")


def test_many_tokens_and_merges(tmp_path: Path) -> None:
    with pytest.raises(TokenizerFileError, match="1,000,000"):
        GPTNeoXTokenizerFast(vocab={str(i): i for i in range(1_000_001)}, merges=[])


def random_value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(9 if depth < 2 else 7)
    if kind == 7:
        return [random_value(draw, depth + 1) for _ in range(draw.randrange(3))]
    if kind == 8:
        return {draw.choice(string.ascii_lowercase): random_value(draw, depth + 1) for _ in range(2)}
    return [None, True, -1, 2**70, 0.5, "Ġ", "type"][kind]


def damage(draw: random.Random, value: Any) -> Any:
    """`value` with something in it dropped, replaced, repeated or added."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        action = draw.randrange(8)
        if action == 0:
            return {k: v for k, v in value.items() if k != key}
        if action == 1:
            return {**value, draw.choice(["type", "x", "id", "Ġ", key.upper()]): random_value(draw)}
        return {**value, key: damage(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.85:
        index = draw.randrange(len(value))
        changed = list(value)
        if draw.random() < 0.3:
            changed.insert(index, draw.choice([random_value(draw), value[index]]))
        else:
            changed[index] = damage(draw, value[index])
        return changed
    return random_value(draw)


def test_damaged_files_raise_our_errors_or_work(tmp_path: Path) -> None:
    draw = random.Random(3)
    small = content()
    small["model"] |= {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    small["added_tokens"] = [added(0, "a"), added(3, "<m>")]
    small["post_processor"] = {"type": "Sequence", "processors": [BYTE_LEVEL]}
    refused = 0
    for _ in range(2000):
        file: Any = small
        for _ in range(draw.randint(1, 3)):
            file = damage(draw, file)
        path = write(tmp_path, file)
        try:
            tokenizer = GPTNeoXTokenizerFast(tokenizer_file=path)
            assert tokenizer.decode(tokenizer.encode("ab<m>ba")) == "ab<m>ba"
        except RefimplError:
            refused += 1
    assert 1000 < refused < 2000


# ---- what is written


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True, "nfc": False},
        {"trim_offsets": False, "errors": "ignore", "padded_vocab_size": 512, "model_max_length": 9},
        {"bos_token": "<s>", "add_bos_token": True, "pad_token": None, "extra_special_tokens": ["<x>"]},
    ],
)
def test_saved_and_loaded_is_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    first = load(tmp_path, **options)
    first.add_tokens([AddedToken("<m>", lstrip=True, normalized=False)])
    folder = tmp_path / "saved"
    names = {Path(path).name for path in first.save_pretrained(folder)}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    second = AutoTokenizer.from_pretrained(folder)
    for name in ("added_tokens_decoder", "special_tokens_map", "extra_special_tokens", "nfc", "errors"):
        assert getattr(second, name) == getattr(first, name), name
    assert second.saved_options() == first.saved_options()
    assert second.get_vocab() == first.get_vocab()
    assert second.tables == first.tables
    text = "Hello  the <m>e\u0301<x><s>"
    for one in (text, ("a", "b")):
        assert second(one, return_offsets_mapping=True) == first(one, return_offsets_mapping=True)
    assert read_tokenizer_json(folder / "tokenizer.json").tables == first.tables


def test_the_vocabulary_alone(tmp_path: Path) -> None:
    first = load(tmp_path)
    paths = first.save_vocabulary(tmp_path, "my")
    assert [Path(path).name for path in paths] == ["my-vocab.json", "my-merges.txt"]
    assert GPTNeoXTokenizerFast(*paths).tables == first.tables


def test_tokens_with_spaces(tmp_path: Path) -> None:
    first = GPTNeoXTokenizerFast(vocab={" ": 0, "a": 1, "a ": 2}, merges=[("a", " ")])
    first.save_pretrained(tmp_path)
    second = GPTNeoXTokenizerFast.from_pretrained(tmp_path)
    assert second.tables == first.tables
    with pytest.raises(InputError, match=r"merges\.txt"):
        first.save_vocabulary(tmp_path)
