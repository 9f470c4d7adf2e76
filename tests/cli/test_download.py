"""`refimpl download`: from a Hub on this machine, into the cache and into a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save

from refimpl.cli import download
from refimpl.errors import SaveError
from tests.cli.conftest import write_model
from tests.cli.test_main import error_of
from tests.refimpl.hub_server import HubServer, status

GOLDEN = Path(__file__).resolve().parents[2] / "golden"

NEEDED = ["config.json", "vocab.txt", "emoji.json", "model.safetensors"]
REST = {
    "README.md": b"",
    "flax_model.msgpack": b"x",
    "pytorch_model.bin": b"PK\x03\x04",
    "tokenizer.model": b"x",
    "onnx/model.onnx": b"x",
}


@pytest.fixture(scope="module")
def _hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(_hub: HubServer) -> HubServer:
    _hub.forget()
    _hub.repositories.clear()
    return _hub


@pytest.fixture
def online(hub, refimpl, environment, tmp_path):
    """Runs the command line with that Hub and an empty cache."""
    given = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    # Progress is shown where the test asks for it.
    given |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def call(*arguments, **changes):
        return refimpl(*arguments, env={**environment, **given, **changes})

    return call


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def files_of(model: Path) -> dict[str, bytes]:
    return {**content_of(model), **REST}


def test_what_is_needed_and_where_it_lies(hub, online, model, tmp_path):
    commit = hub.add("o/n", files_of(model))
    result = online("download", "o/n")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "home" / "hub" / "models--o--n" / "snapshots" / commit
    assert result.stdout.decode() == f"{folder}\n"
    assert content_of(folder) == content_of(model)
    assert sorted(hub.asked("GET")) == sorted(NEEDED)
    *table, last = result.stderr.decode().splitlines()
    assert [line.split()[0] for line in table] == NEEDED
    assert last.startswith("4 files, ")
    assert last.endswith(f", commit {commit}")

    hub.log.clear()
    again = online("download", "o/n", "--offline", "--json", "--quiet")
    assert (again.returncode, again.stderr) == (0, b"")
    sizes = {name: len(content) for name, content in content_of(model).items()}
    assert json.loads(again.stdout) == {
        "model": "o/n",
        "revision": None,
        "commit": commit,
        "folder": str(folder),
        "bytes": sum(sizes.values()),
        "files": [{"name": name, "bytes": sizes[name]} for name in NEEDED],
        "tokenizer_error": None,
    }
    assert hub.log == []

    text = online("generate", "吾輩は", "--model", str(folder), "-n", "3", "--seed", "1", "--quiet")
    same = online("generate", "吾輩は", "--model", "o/n", "--offline", "-n", "3", "--seed", "1", "--quiet")
    assert text.returncode == 0, text.stderr
    assert text.stdout == same.stdout != b""


def test_revision_cache_and_token(hub, online, model, tmp_path):
    hub.add("my/own", {"config.json": b"{}"}, token="hf_mine")
    commit = hub.add("my/own", files_of(model), "refs/pr/3")
    arguments = ("download", "my/own", "--revision", "refs/pr/3", "--cache-dir", tmp_path / "cache")
    assert "no such repository" in error_of(online(*arguments), 1)
    result = online(*arguments, "--token", "hf_mine", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["revision"], found["commit"]) == ("refs/pr/3", commit)
    assert Path(found["folder"]) == tmp_path / "cache" / "models--my--own" / "snapshots" / commit
    assert not (tmp_path / "home" / "hub").exists()


def test_all_files_are_of_one_version(hub, online, model):
    """Even if the branch moves on while they are downloaded."""
    first = hub.add("o/n", files_of(model))

    def move_on(handler, content):
        hub.add("o/n", {**files_of(model), "model.safetensors": b"newer", "emoji.json": b"newer"})
        handler.send(200, content)

    hub.fail("config.json", move_on)
    result = online("download", "o/n", "--json", "--quiet")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["commit"] == first
    assert content_of(Path(found["folder"])) == content_of(model)


def test_several_weight_files_and_progress(hub, online, model, tmp_path):
    tensors = load_file(model / "model.safetensors")
    half = len(tensors) // 2
    names = {
        name: f"model-0000{1 + (place >= half)}-of-00002.safetensors" for place, name in enumerate(tensors)
    }
    parts = {
        file: save({n: tensors[n] for n in names if names[n] == file})
        for file in dict.fromkeys(names.values())
    }
    index = {"model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": names}).encode()}
    small = {name: content for name, content in content_of(model).items() if name != "model.safetensors"}
    hub.add("o/n", {**small, **parts, **index, **REST})
    result = online(
        "download", "o/n", "--to", tmp_path / "copy", HF_HUB_DISABLE_PROGRESS_BARS="0", TQDM_POSITION="-1"
    )  # else on terminals only
    assert result.returncode == 0, result.stderr
    assert content_of(tmp_path / "copy") == {**small, **parts, **index}
    assert set(hub.asked("GET")) == {*small, *parts, *index}
    shown = result.stderr.decode()
    assert all(f"{name}: 100%" in shown for name in parts)


def test_a_model_of_another_type_is_refused_before_its_weights_come(hub, online):
    config = {"model_type": "llama"}
    hub.add("o/n", {"config.json": json.dumps(config).encode(), "model.safetensors": b"x" * 1000})
    assert "model_type 'llama'" in error_of(online("download", "o/n"), 1)
    assert set(hub.asked("HEAD")) == {"config.json"}
    config = {"model_type": "gpt_neox", "quantization_config": {"quant_method": "gptq"}}
    hub.add("o/n", {"config.json": json.dumps(config).encode(), "model.safetensors": b"x" * 1000})
    assert "gptq" in error_of(online("download", "o/n"), 1)
    assert "model.safetensors" not in hub.asked("HEAD")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (
            ["o/n", "--revision", "v9"],
            1,
            "o/n/config.json (revision 'v9'): the repository has no revision 'v9'",
        ),
        (["o/other"], 1, "o/other/config.json: no such folder, and no such repository on the Hub"),
        (["o/n", "--offline"], 1, "o/n/config.json: not in the local cache"),
        (["o/gguf"], 1, "model.gguf' is there: weights for llama.cpp"),
    ],
)
def test_what_cannot_be_had(hub, online, model, arguments, code, expected):
    hub.add("o/n", files_of(model))
    hub.add("o/gguf", {"config.json": (model / "config.json").read_bytes(), "model.gguf": b"x"})
    result = online("download", *arguments, "--quiet", "--json")
    assert result.stdout == b""
    assert expected in result.stderr.decode()
    assert result.returncode == code


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: MODEL"),
        ([""], "the name of the model is empty"),
        (["o/n", "--to", ""], "the name of the folder is empty"),
        (["o/n", "--revison", "x"], "did you mean --revision"),
    ],
)
def test_wrong_calls(inside, arguments, expected):
    assert expected in error_of(inside("download", *arguments), 2)


# --- a folder of their own, which needs no Hub -------------------------------------------------------


def test_a_copy_is_a_copy(inside, model_copy, tmp_path):
    (model_copy / "notes.txt").write_text("not a file of the model")
    before = content_of(model_copy)
    target = tmp_path / "new" / "folder"
    result = inside("download", model_copy, "--to", target)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == f"{target}\n"
    assert content_of(target) == {name: before[name] for name in NEEDED}
    for path in target.iterdir():
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1
        path.write_bytes(b"changed")
    assert content_of(model_copy) == before


def test_what_is_there_already(inside, model_copy, tmp_path, monkeypatch):
    target, whole = tmp_path / "target", download._content
    written: list[str] = []

    def content(path: Path) -> Iterator[bytes]:
        written.append(path.name)
        yield from whole(path)

    monkeypatch.setattr(download, "_content", content)
    assert inside("download", model_copy, "--to", target).returncode == 0
    assert written == NEEDED[::-1]  # config.json last: it makes them a model
    (target / "README.md").write_text("mine")
    stamps = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    written.clear()
    assert inside("download", model_copy, "--to", target).returncode == 0
    assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == stamps
    assert written == []
    (target / "emoji.json").unlink()
    assert inside("download", model_copy, "--to", target).returncode == 0
    assert (target / "emoji.json").read_bytes() == (model_copy / "emoji.json").read_bytes()
    # The folder of the model itself.
    assert inside("download", model_copy, "--to", model_copy).returncode == 0


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin.index.json"]
)
def test_another_model_is_replaced_as_a_whole_or_not_at_all(inside, model_copy, tmp_path, name):
    target = tmp_path / "target"
    shutil.copytree(model_copy, target)
    (target / name).write_text("another")
    (target / "pytorch_model-00001-of-00002.bin").write_text("another")
    (target / "README.md").write_text("mine")
    before = content_of(target)
    text = error_of(inside("download", model_copy, "--to", target), 2)
    assert "the folder holds other files of a model; found" in text
    assert name in text
    assert "--force" in text
    assert content_of(target) == before
    result = inside("download", model_copy, "--to", target, "--force", "--json", "--quiet")
    assert (result.returncode, result.stderr) == (0, b"")
    assert json.loads(result.stdout)["folder"] == str(target)
    assert content_of(target) == {**content_of(model_copy), "README.md": b"mine"}


def test_a_copy_that_fails_changes_nothing(inside, model_copy, tmp_path, monkeypatch):
    whole = download._content

    def broken(path: Path) -> Iterator[bytes]:
        if path.name == "config.json":  # the last one
            raise SaveError("the disk is full", where=path)
        yield from whole(path)

    monkeypatch.setattr(download, "_content", broken)
    assert "the disk is full" in error_of(inside("download", model_copy, "--to", tmp_path / "new"), 1)
    assert not (tmp_path / "new").exists()
    target = tmp_path / "target"
    shutil.copytree(model_copy, target)
    (target / "config.json").write_text("another")
    before = content_of(target)
    assert "the disk is full" in error_of(inside("download", model_copy, "--to", target, "--force"), 1)
    assert content_of(target) == before


def test_a_folder_that_cannot_be_is_seen_before_anything_is_downloaded(hub, online, model, tmp_path):
    hub.add("o/n", files_of(model))
    (tmp_path / "file").write_text("in the way")
    for target, text in (
        ("", "--to: the name of the folder is empty"),
        (tmp_path / "file", "there is a file"),
        (tmp_path / "file" / "below", "there is a file"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        assert text in error_of(online("download", "o/n", "--to", target), 2)
    assert hub.log == []


def test_a_model_without_a_tokenizer(inside, model_copy):
    (model_copy / "emoji.json").unlink()
    result = inside("download", model_copy)
    assert result.returncode == 0
    assert "refimpl: warning: no tokenizer: " in result.stderr.decode()
    found = json.loads(inside("download", model_copy, "--json").stdout)
    assert [file["name"] for file in found["files"]] == ["config.json", "model.safetensors"]
    assert found["commit"] is None
    assert "tokenizer_config.json" in found["tokenizer_error"]


def test_a_tokenizer_that_cannot_be_had_is_an_error(hub, online, model):
    hub.add("o/n", files_of(model))
    hub.fail("vocab.txt", status(404), times=9)
    result = online("download", "o/n")
    assert (result.returncode, result.stdout) == (1, b"")
    assert b"o/n/vocab.txt" in result.stderr
    assert b"the download failed" in result.stderr
    assert "model.safetensors" not in hub.asked("HEAD")


def test_a_vocabulary_of_two_files(inside, tmp_path):
    folder = write_model(tmp_path / "model")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(GOLDEN / "tokenizer" / "gpt2_sparse" / name, folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert inside("download", folder, "--to", tmp_path / "copy").returncode == 0
    assert set(os.listdir(folder)) - set(os.listdir(tmp_path / "copy")) == {"vocab.txt", "emoji.json"}


def test_settings_are_taken_along(inside, tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "generation_config.json").write_text("{}")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (folder / name).write_text("{}")
    (folder / "merges.txt").write_text("of another tokenizer")
    assert inside("download", folder, "--to", tmp_path / "copy").returncode == 0
    assert set(os.listdir(folder)) - set(os.listdir(tmp_path / "copy")) == {"merges.txt"}
