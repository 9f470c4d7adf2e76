"""Files of a folder, and of a Hub repository that a stand-in for huggingface_hub serves."""

from __future__ import annotations

from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub import errors

from refimpl import GPTNeoXJapaneseForCausalLM
from refimpl.errors import InputError, MissingFileError
from refimpl.hub import resolve
from tests.tiny import save_tiny


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with one repository; `hub.calls` records what was asked of it."""
    folder = save_tiny(tmp_path / "repository")

    class Hub:
        calls: list = []  # noqa: RUF012
        failure: Exception | None = None

    def download(repo_id, filename, **options):
        Hub.calls.append((repo_id, filename, options))
        if Hub.failure is not None:
            raise Hub.failure
        if not (folder / filename).is_file():
            raise errors.EntryNotFoundError("404")
        return str(folder / filename)

    Hub.calls = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return Hub


def response(status):
    return MagicMock(status_code=status, headers={})


def test_a_folder_needs_no_hub(tmp_path, hub):
    (tmp_path / "a.txt").write_text("x")
    assert resolve(tmp_path, "a.txt") == tmp_path / "a.txt"
    assert resolve(tmp_path, "b.txt", required=False) is None
    with pytest.raises(MissingFileError, match=r"no file b\.txt"):
        resolve(tmp_path, "b.txt")
    with pytest.raises(InputError, match="not a file"):
        resolve(tmp_path / "a.txt", "b.txt")
    assert hub.calls == []


def test_a_model_of_the_hub(hub, tmp_path):
    options = {"revision": "refs/pr/3", "cache_dir": tmp_path, "token": "t", "local_files_only": True}
    model = GPTNeoXJapaneseForCausalLM.from_pretrained("owner/name", backend="numpy", **options)
    assert model.num_parameters() > 0
    assert [name for _, name, _ in hub.calls] == [
        "config.json",
        "model.safetensors",
        "generation_config.json",
    ]
    for repo_id, _, given in hub.calls:
        assert repo_id == "owner/name"
        assert given == {**options, "force_download": False}


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (errors.EntryNotFoundError("x"), "no such file"),
        (errors.LocalEntryNotFoundError("x"), "not in the local cache"),
        (errors.OfflineModeIsEnabled("x"), "not in the local cache"),
        (errors.RevisionNotFoundError("x", response=response(404)), "no revision 'v9'"),
        (errors.RepositoryNotFoundError("x", response=response(404)), "no such repository"),
        (errors.GatedRepoError("x", response=response(403)), "granted"),
        (errors.HfHubHTTPError("x", response=response(500)), "download failed"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_what_can_go_wrong_is_one_class(hub, failure, message):
    hub.failure = failure
    with pytest.raises(MissingFileError, match=message) as caught:
        resolve("owner/name", "config.json", revision="v9")
    assert caught.value.__cause__ is failure
    assert "owner/name" in str(caught.value)


@pytest.mark.parametrize(
    "failure", [TypeError("revision"), errors.HFValidationError("repo"), ValueError("offline")]
)
def test_options_that_the_hub_cannot_take(hub, failure):
    hub.failure = failure
    with pytest.raises(InputError, match="cannot be asked so"):
        resolve("owner/name", "config.json")


def test_an_optional_file_may_be_absent(hub):
    assert resolve("owner/name", "absent.json", required=False) is None
    hub.failure = errors.LocalEntryNotFoundError("x")
    assert resolve("owner/name", "absent.json", required=False) is None


@pytest.mark.parametrize(
    "name",
    ["no such/folder/here", "../up", "a b", "/absolute", "owner/..", "a/b/c", "x\0y", "x" * 5000 + "/"],
)
def test_names_that_cannot_be_on_the_hub(hub, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "repository")
    with pytest.raises(MissingFileError, match="no folder"):
        resolve(name, "config.json")
    with pytest.raises(InputError, match="empty"):
        resolve("", "config.json")
    assert hub.calls == []
