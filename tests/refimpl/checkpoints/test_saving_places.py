"""Where nothing can be saved, and others who use the folder at the same time: an error, and nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from refimpl.checkpoints.saving import save_model
from refimpl.errors import SaveError
from refimpl.folder_switch import replaced_files
from tests.refimpl.checkpoints.failures import (
    MODELS,
    SHARD,
    Save,
    check_foreign,
    digests_of,
    every_operation,
    fill,
    held,
    litter,
    prepare,
    save,
)
from tests.tiny import tiny_neox


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: make() for name, make in MODELS.items()}


# --- places where nothing can be saved -----------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model-00001-of-00002.safetensors"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "folder"])
def test_links_and_folders_in_the_place_of_a_file(models, tmp_path, name, kind):
    folder, target = tmp_path / "model", tmp_path / "target"
    fill(models, folder, ("first", "5GB"))
    target.write_bytes(b"kept")
    (folder / name).unlink(missing_ok=True)
    if kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to(target if kind == "link" else tmp_path / "none")
    before = sorted(os.listdir(folder))
    with pytest.raises(SaveError, match="in the place of a file") as caught:
        save(models, ("other settings", SHARD), folder)
    assert str(folder / name) in str(caught.value)
    assert sorted(os.listdir(folder)) == before
    assert target.read_bytes() == b"kept"


def test_a_link_to_a_folder_is_followed(models, tmp_path):
    fill(models, tmp_path / "model", ("first", "5GB"))
    (tmp_path / "latest").symlink_to("model")
    paths = save_model(models["other settings"], tmp_path / "latest", SHARD)
    assert all(path.parent == tmp_path / "latest" and path.is_file() for path in paths)
    assert (tmp_path / "latest").is_symlink()
    assert held(tmp_path / "model") == digests_of(models, [("other settings", SHARD)], tmp_path)[0]


@pytest.mark.parametrize("bad", ["", "a file", "below a file", "nul\0"])
def test_impossible_folders(models, tmp_path, bad, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").write_text("kept")
    with pytest.raises(SaveError):
        save_model(models["first"], {"below a file": "a file/below"}.get(bad, bad))
    assert os.listdir(tmp_path) == ["a file"]


def test_folders_made_for_nothing_are_removed(models, tmp_path):
    (tmp_path / "here").mkdir()

    def act(name: str, _: int) -> None:
        if name == "write":
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(SaveError), every_operation(act):
        save_model(models["first"], tmp_path / "here" / "a" / "b")
    assert os.listdir(tmp_path) == ["here"]
    assert not os.listdir(tmp_path / "here")


def test_no_room_is_seen_before_anything_is_written(models, tmp_path, monkeypatch):
    fill(models, tmp_path, ("first", "5GB"))
    before = held(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (1 << 40, 1 << 40, 1000))
    with pytest.raises(SaveError, match="not enough room") as caught:
        save(models, ("other weights", "5GB"), tmp_path)
    assert "1,000 bytes" in str(caught.value)
    assert held(tmp_path) == before
    assert not litter(tmp_path)


@pytest.mark.parametrize("missing", ["link", "symlink"])
def test_a_file_system_without_links(models, tmp_path, monkeypatch, missing):
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, missing, refuse)
    save(models, ("first", SHARD), tmp_path / "new")  # what needs no links works
    save(models, ("first", "5GB"), tmp_path / "one")
    save(models, ("other weights", "5GB"), tmp_path / "one")
    before = held(tmp_path / "one")
    with pytest.raises(SaveError, match="allows no links to them") as caught:
        save(models, ("other settings", "5GB"), tmp_path / "one")
    assert "Save into a new folder" in str(caught.value)
    assert held(tmp_path / "one") == before
    assert not litter(tmp_path / "one")


LIMITED = """
import resource, sys
from refimpl import GPTNeoXForCausalLM
from refimpl.checkpoints.saving import save_model
from refimpl.errors import SaveError
model = GPTNeoXForCausalLM.from_pretrained(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    save_model(model, sys.argv[1])
except SaveError as error:
    print(error.errno)
"""


def test_a_real_limit_on_the_size_of_files(models, tmp_path):
    fill(models, tmp_path, ("first", "5GB"))
    before = held(tmp_path)
    result = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == (f"{errno.EFBIG}\n", "")
    assert held(tmp_path) == before
    assert not litter(tmp_path)


READ_ONLY = """
import os, sys
from refimpl import GPTNeoXForCausalLM
from refimpl.checkpoints.saving import save_model
from refimpl.errors import SaveError
model = GPTNeoXForCausalLM.from_pretrained(sys.argv[1])
save_model(model, sys.argv[2])
if os.geteuid() == 0:
    os.setuid(65534)
for folder in sys.argv[1], sys.argv[1] + "/below":
    try:
        save_model(model, folder)
    except SaveError as error:
        print(error.errno)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of POSIX")
def test_a_folder_that_is_not_ours(models, tmp_path):
    folder = tmp_path / "model"
    fill(models, folder, ("first", "5GB"))
    before = held(folder)
    folder.chmod(0o555)
    try:
        result = subprocess.run(
            [sys.executable, "-c", READ_ONLY, folder, tmp_path / "warm"], capture_output=True, text=True
        )
    finally:
        folder.chmod(0o755)
    assert (result.stdout, result.stderr) == (f"{errno.EACCES}\n" * 2, "")
    assert held(folder) == before
    assert not litter(folder)


# --- others who use the folder at the same time --------------------------------------------------

OVER_ITSELF = """
import os, sys
import numpy as np
from refimpl import GPTNeoXForCausalLM
from refimpl.checkpoints.saving import save_model
from tests.tiny import tiny_neox
model = GPTNeoXForCausalLM.from_pretrained(sys.argv[1], backend="numpy")
assert not model.gpt_neox.embed_in.weight.flags.owndata
before = {name: array.tobytes() for name, array in model.state_dict().items()}
save_model(model, sys.argv[1])
save_model(tiny_neox(seed=9, hidden_size=48), sys.argv[1])
save_model(model, sys.argv[1], 4000)
save_model(model, sys.argv[1])
assert before == {name: array.tobytes() for name, array in model.state_dict().items()}
again = GPTNeoXForCausalLM.from_pretrained(sys.argv[1], backend="numpy")
assert before == {name: array.tobytes() for name, array in again.state_dict().items()}
print("done")
"""


def test_saving_over_the_file_that_is_mapped(tmp_path):
    """In a process of its own: a file that shrinks under a mapping ends the process."""
    save_model(tiny_neox(), tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", OVER_ITSELF, tmp_path],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")
    assert not litter(tmp_path)


def test_a_file_that_has_another_name_elsewhere_is_not_changed(models, tmp_path):
    fill(models, tmp_path / "model", ("first", "5GB"))
    os.link(tmp_path / "model" / "model.safetensors", tmp_path / "backup")
    before = (tmp_path / "backup").read_bytes()
    save(models, ("other settings", SHARD), tmp_path / "model")
    assert (tmp_path / "backup").read_bytes() == before


def test_one_save_at_a_time(models, tmp_path):
    fill(models, tmp_path, ("first", "5GB"))
    before = held(tmp_path)
    with replaced_files(tmp_path, lambda name: False), pytest.raises(SaveError, match="another save"):
        save(models, ("other settings", "5GB"), tmp_path)
    assert held(tmp_path) == before
    assert not litter(tmp_path)


def test_threads_that_save_into_one_folder(models, tmp_path):
    saves: list[Save] = [("first", "5GB"), ("other settings", SHARD), ("other weights", "5GB")]
    folder = tmp_path / "model"
    prepare(folder)
    refused: list[str] = []

    def work(what: Save) -> None:
        for _ in range(15):
            try:
                save(models, what, folder)
            except SaveError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work, args=[what]) for what in saves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another save" in message for message in refused)
    assert held(folder) in digests_of(models, saves, tmp_path)
    assert not litter(folder)
    check_foreign(folder)
