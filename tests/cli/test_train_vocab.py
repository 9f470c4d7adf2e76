"""`refimpl train-vocab`: the two files, and what must not be lost."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from refimpl.tokenizer import GPTNeoXJapaneseTokenizer
from refimpl.tokenizer.vocab_trainer import train_vocab
from tests.cli.test_main import error_of

TEXT = "朝の町を歩くと、朝の光が町の屋根を照らしていた。歩く人はまだ少ない。\n" * 20
SIZE = "760"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_files_and_figures(inside, text_file, tmp_path):
    folder = tmp_path / "new" / "vocabulary"
    result = inside("train-vocab", text_file, "-o", folder, "--vocab-size", SIZE)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == f"{folder}/vocab.txt\n{folder}/emoji.json\n"
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines == train_vocab([TEXT], int(SIZE))
    tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained(folder, compat="original")
    assert tokenizer.decode(tokenizer.encode(TEXT + "😀")).startswith(TEXT)
    average = len(TEXT) / len(tokenizer.encode(TEXT))
    assert average > 1.2
    summary = result.stderr.decode()
    assert summary.startswith(f"{len(lines)} tokens from {len(TEXT)} characters in ")
    assert summary.endswith(f"s; {average:.2f} characters per token\n")


def test_json(inside, text_file, tmp_path):
    result = inside(
        "train-vocab", text_file, text_file, "-o", tmp_path / "v", "--vocab-size", SIZE, "--json", "-q"
    )
    assert (result.returncode, result.stderr) == (0, b"")
    value = json.loads(result.stdout)
    assert list(value) == ["output", "files", "tokens", "characters", "characters_per_token", "seconds"]
    assert value["characters"] == 2 * len(TEXT)
    assert value["tokens"] <= int(SIZE)
    assert all(Path(file).is_file() for file in value["files"])


def test_standard_input_is_a_text(inside, text_file, tmp_path):
    inside("train-vocab", text_file, "-o", tmp_path / "a", "--vocab-size", SIZE)
    with_mark = b"\xef\xbb\xbf" + TEXT.encode()
    assert (
        inside("train-vocab", "-", "-o", tmp_path / "b", "--vocab-size", SIZE, stdin=with_mark).returncode
        == 0
    )
    for name in ("vocab.txt", "emoji.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_vocabulary_is_replaced_on_request_only(inside, text_file, tmp_path):
    (tmp_path / "vocab.txt").write_text("mine")
    message = error_of(inside("train-vocab", text_file, "-o", tmp_path, "--vocab-size", SIZE), 2)
    assert "the folder has a vocabulary already; found vocab.txt. " in message
    assert (tmp_path / "vocab.txt").read_text() == "mine"
    assert not (tmp_path / "emoji.json").exists()
    assert inside("train-vocab", text_file, "-o", tmp_path, "--vocab-size", SIZE, "--force").returncode == 0
    assert (tmp_path / "vocab.txt").read_text(encoding="utf-8") != "mine"


def test_a_wrong_byte_is_named_by_its_place_in_the_file(inside, tmp_path):
    before = TEXT.encode() * 800  # more than one block
    path = tmp_path / "text.txt"
    path.write_bytes(before + "猫".encode()[:2] + b"\n")
    message = error_of(inside("train-vocab", path, "-o", tmp_path / "v"), 2)
    assert f"text.txt: not UTF-8 at byte {len(before)}; found 0xe7" in message
    assert not (tmp_path / "v").exists()


def test_wrong_calls(inside, text_file, tmp_path):
    def error(code: int, *arguments: str | Path) -> str:
        return error_of(inside("train-vocab", *arguments), code)

    folder = tmp_path / "v"
    assert "no such file" in error(1, tmp_path / "none.txt", "-o", folder)
    assert "too small" in error(2, text_file, "-o", folder, "--vocab-size", "10")
    assert "there is no text" in error(2, os.devnull, "-o", folder)
    assert "there is a file" in error(2, text_file, "-o", text_file)
    assert "there is a file" in error(2, text_file, "-o", text_file / "below")
    assert "the name of the output folder is empty" in error(2, text_file, "-o", "")
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours(inside, text_file, tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert "nothing may be written here" in error_of(
            inside("train-vocab", text_file, "-o", tmp_path / "v"), 1
        )
    finally:
        tmp_path.chmod(0o700)
