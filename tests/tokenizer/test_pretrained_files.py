"""Saving and loading a tokenizer, and settings files that are wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from refimpl.errors import InputError, MissingFileError, RefimplError, SaveError, TokenizerFileError
from refimpl.tokenizer import AddedToken, GPTNeoXJapaneseTokenizer

TEXT = "こんにちは、世界。 \nX 猫😀<|endoftext|>"


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    """A copy of the toy vocabulary that a test may change."""
    return shutil.copytree(toy_folder, tmp_path / "model")


def configure(folder: Path, **settings: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_a_folder_with_the_two_files_is_enough(folder: Path) -> None:
    tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained(folder, unk_token="<unk>")
    assert tokenizer.encode("こん世界") == [0, 4]
    assert tokenizer.name_or_path == str(folder)
    assert GPTNeoXJapaneseTokenizer.from_pretrained(str(folder)).pad_token_id == 21


def test_saved_and_loaded_is_the_same(make_toy, tmp_path: Path) -> None:
    tokenizer = make_toy(
        padding_side="left",
        model_max_length=9,
        add_prefix_space=False,
        extra_special_tokens=["<x>"],
        sep_token="<s>",
    )
    tokenizer.add_tokens(AddedToken("X", lstrip=True, rstrip=True))
    tokenizer.pad_token = "<unk>"
    written = tokenizer.save_pretrained(tmp_path / "new" / "folder")
    assert sorted(Path(path).name for path in written) == [
        "added_tokens.json",
        "emoji.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    loaded = GPTNeoXJapaneseTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.added_tokens_decoder == tokenizer.added_tokens_decoder
    assert loaded.extra_special_tokens == ["<x>"]
    assert loaded.init_kwargs == {"add_prefix_space": False}
    assert (loaded.padding_side, loaded.model_max_length, loaded.pad_token) == ("left", 9, "<unk>")
    assert loaded(TEXT) == tokenizer(TEXT)
    loaded.save_pretrained(tmp_path / "again")
    for name in ("vocab.txt", "emoji.json", "tokenizer_config.json", "added_tokens.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / "folder" / name).read_bytes()


def test_saved_files_have_the_format_of_transformers(sparse, sparse_folder: Path, tmp_path: Path) -> None:
    sparse.save_vocabulary(tmp_path, filename_prefix="my")
    saved = (tmp_path / "my-vocab.txt").read_bytes()
    assert saved == (sparse_folder / "vocab.txt").read_bytes() + b"\n", (
        "every line has an end, and ',' is whole"
    )
    assert (tmp_path / "my-emoji.json").read_bytes().isascii()
    config = json.loads((Path(sparse.save_pretrained(tmp_path)[-1])).read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "GPTNeoXJapaneseTokenizer"
    assert config["added_tokens_decoder"]["31999"] == {
        "content": "<|endoftext|>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }


def test_the_modes_are_saved(make_sparse, tmp_path: Path) -> None:
    make_sparse(compat="original", do_clean_text=True, surrogates="replace").save_pretrained(tmp_path)
    loaded = GPTNeoXJapaneseTokenizer.from_pretrained(tmp_path)
    assert (loaded.compat, loaded.do_clean_text, loaded.surrogates) == ("original", True, "replace")
    assert loaded.encode(",") == [31596]
    assert GPTNeoXJapaneseTokenizer.from_pretrained(tmp_path, compat="hf").encode(",") == [31785]


def test_options_go_before_the_settings(folder: Path) -> None:
    configure(folder, padding_side="left", do_clean_text=True, unk_token="<unk>")
    assert GPTNeoXJapaneseTokenizer.from_pretrained(folder).padding_side == "left"
    tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained(folder, padding_side="right", do_clean_text=False)
    assert (tokenizer.padding_side, tokenizer.do_clean_text, tokenizer.unk_token) == ("right", False, "<unk>")


def test_added_tokens_of_every_kind_of_file(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"X": 22, "<y>": 30}', encoding="utf-8")
    special = {
        "pad_token": {"content": "<y>", "lstrip": True},
        "additional_special_tokens": ["<y>"],
        "unk_token": "<unk>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")
    tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained(folder)
    assert tokenizer.encode("X<y>") == [22, 30]
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (30, 19)
    assert tokenizer.decode([22, 30], skip_special_tokens=True) == "X"
    configure(folder, added_tokens_decoder={"40": {"content": "X", "special": False}})
    tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained(folder)
    assert tokenizer.encode("X") == [40], "the settings hold all added tokens; the older files are not read"
    assert tokenizer.pad_token == "<|endoftext|>"


def test_paths_in_the_settings_are_not_followed(folder: Path, tmp_path: Path) -> None:
    configure(
        folder,
        vocab_file="/etc/passwd",
        emoji_file="../x",
        tokenizer_file="/etc/passwd",
        name_or_path="elsewhere",
    )
    tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained(folder)
    assert tokenizer.encode("こん") == [0]
    assert tokenizer.name_or_path == str(folder)
    assert not tokenizer.init_kwargs


def test_what_the_caller_alone_decides_is_not_taken_from_the_settings(folder: Path) -> None:
    reserved = (
        "self",
        "vocabulary",
        "base_ids",
        "impl",
        "seed",
        "bpe_dropout_rate",
        "init_inputs",
        "auto_map",
    )
    configure(folder, **{name: 0.5 for name in reserved})
    tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained(folder)
    assert (tokenizer.impl, tokenizer.bpe_dropout_rate) == ("fast", 0)
    assert not tokenizer.init_kwargs


def test_vocabulary_files_can_be_given(folder: Path, tmp_path: Path) -> None:
    other = shutil.move(folder / "vocab.txt", tmp_path / "other.txt")
    with pytest.raises(MissingFileError, match=r"vocab\.txt"):
        GPTNeoXJapaneseTokenizer.from_pretrained(folder)
    assert GPTNeoXJapaneseTokenizer.from_pretrained(folder, vocab_file=other).encode("こん") == [0]


@pytest.mark.parametrize(
    "settings",
    [
        {"padding_side": "up"},
        {"truncation_side": 3},
        {"model_max_length": "long"},
        {"model_max_length": True},
        {"model_max_length": -1},
        {"do_clean_text": "no"},
        {"compat": "v5"},
        {"surrogates": 1},
        {"split_special_tokens": 1},
        {"clean_up_tokenization_spaces": "x"},
        {"pad_token": 3},
        {"pad_token": ""},
        {"pad_token": {}},
        {"pad_token": {"content": 3}},
        {"pad_token": {"content": "a", "lstrip": "x"}},
        {"pad_token": ["a"]},
        {"extra_special_tokens": "a"},
        {"extra_special_tokens": [3]},
        {"additional_special_tokens": {"a": "b"}},
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"-1": {"content": "a"}}},
        {"added_tokens_decoder": {"1.5": {"content": "a"}}},
        {"added_tokens_decoder": {"2147483648": {"content": "a"}}},
        {"added_tokens_decoder": {"٣": {"content": "a"}}},
        {"added_tokens_decoder": {"1": {"content": ""}}},
        {"added_tokens_decoder": {"1": {"content": "a" * 257}}},
        {"added_tokens_decoder": {"1": 3}},
    ],
)
def test_wrong_settings_are_refused(folder: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(TokenizerFileError, match=r"tokenizer_config\.json"):
        GPTNeoXJapaneseTokenizer.from_pretrained(configure(folder, **settings))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"{", b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a": Infinity}']
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_files_that_are_no_json_object_are_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(TokenizerFileError, match=name):
        GPTNeoXJapaneseTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("table", [{"X": "1"}, {"X": 1.5}, {"X": True}, {"": 1}, {"X": -1}])
def test_wrong_added_tokens_are_refused(folder: Path, table: dict[str, Any]) -> None:
    (folder / "added_tokens.json").write_text(json.dumps(table), encoding="utf-8")
    if table == {"X": "1"}:
        assert GPTNeoXJapaneseTokenizer.from_pretrained(folder).encode("X") == [1]
        return
    with pytest.raises(TokenizerFileError, match=r"added_tokens\.json"):
        GPTNeoXJapaneseTokenizer.from_pretrained(folder)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"vocab\.txt"):
        GPTNeoXJapaneseTokenizer.from_pretrained(tmp_path)
    with pytest.raises(RefimplError):
        GPTNeoXJapaneseTokenizer.from_pretrained(tmp_path / "no" / "such" / "folder")


def test_what_cannot_be_saved_is_refused(toy, make_toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SaveError):
        toy.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(InputError, match="JSON"):
        make_toy(something=object()).save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match="filename_prefix"):
        toy.save_pretrained(tmp_path / "b", filename_prefix="../c")
    assert not (tmp_path / "c-vocab.txt").exists()


def test_the_hub_is_asked_with_the_options_of_the_call(toy_folder: Path, monkeypatch) -> None:
    asked = []

    def resolve(source, filename, *, required, **options):
        asked.append((source, filename, required, options))
        path = toy_folder / filename
        return path if path.exists() else None

    monkeypatch.setattr("refimpl.hub.resolve", resolve)
    options = {
        "revision": "v1",
        "cache_dir": "c",
        "token": "t",
        "local_files_only": True,
        "force_download": False,
    }
    tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained("someone/model", **options)
    assert tokenizer.name_or_path == "someone/model"
    assert [(filename, required) for _, filename, required, _ in asked] == [
        ("vocab.txt", True),
        ("emoji.json", True),
        ("tokenizer_config.json", False),
        ("special_tokens_map.json", False),
        ("added_tokens.json", False),
    ]
    assert all(source == "someone/model" and given == options for source, _, _, given in asked)
