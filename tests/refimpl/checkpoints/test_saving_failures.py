"""Whatever fails while a model is saved, its folder holds the old model or the new one, and nothing else.

`REFIMPL_KILLS` is the number of saves that are killed at random moments; from 1,000 on, every save of these tests is
killed before each of its changes as well.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.checkpoints.saving import save_weights
from refimpl.config_base import CONFIG_NAME
from refimpl.errors import SaveError
from refimpl.files import SAVING, write_atomically
from tests.refimpl.checkpoints.failures import (
    CHANGES,
    MODELS,
    OPERATIONS,
    SHARD,
    TRANSITIONS,
    Save,
    check_foreign,
    digests_of,
    every_operation,
    failing,
    fill,
    held,
    litter,
    prepare,
    save,
    save_quickly,
)

KILLS = int(os.environ.get("REFIMPL_KILLS", "30"))

# What a disk answers that is full, broken, over its quota, or asked for too large a file.
ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG]

each_transition = pytest.mark.parametrize(("before", "after"), TRANSITIONS.values(), ids=TRANSITIONS)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: make() for name, make in MODELS.items()}


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory if the system has one there: these tests write some ten thousand small files."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK | os.X_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="refimpl-test-") as folder:
        yield Path(folder)


def check(folder: Path, digests: list[str | None], error: BaseException, at: int) -> None:
    """After one failure: a whole model, the one that the error speaks of, and no litter."""
    found = held(folder)
    assert found in digests, at
    if isinstance(error, SaveError):
        assert found == digests[bool(getattr(error, "saved", False))], at
        assert error.errno in ERRORS
        assert isinstance(error.__cause__, OSError)
    assert not litter(folder), at
    check_foreign(folder)


#: Where a failure does no harm, so that the save goes on: a folder that cannot be looked at, or made, may be there all
#: the same; what a killed process left may stay; and a lock ends with its process.
HARMLESS = {"lstat", "mkdir", "listdir", "close"}


@each_transition
@pytest.mark.parametrize("kind", ["error", "interrupt"])
def test_each_operation_fails_once(models, quick_path, before, after, kind):
    digests = digests_of(models, (before, after), quick_path)
    assert digests[0] != digests[1]
    folder = quick_path / "model"
    fill(models, folder, before)
    failed = {"before the step": 0, "after it": 0}
    harmless = set()
    operations = OPERATIONS if kind == "error" else CHANGES
    for at in range(1, 1000):
        number = ERRORS[at % len(ERRORS)]
        error = OSError(number, os.strerror(number)) if kind == "error" else KeyboardInterrupt()
        try:
            with failing(error, at, operations) as done:
                save(models, after, folder)
        except (SaveError, KeyboardInterrupt) as caught:
            check(folder, digests, caught, at)
            failed["after it" if held(folder) == digests[1] else "before the step"] += 1
        else:
            assert held(folder) == digests[1], at
            assert not litter(folder), at
            if len(done) < at:  # every operation of an undisturbed save has failed once
                break
            harmless.add(done[at - 1])
        assert len(done) >= at
        if held(folder) != digests[0]:
            fill(models, folder, before)
    else:
        pytest.fail("no save has ended")
    assert all(failed.values()), failed
    assert harmless <= (HARMLESS if kind == "error" else set())


@each_transition
def test_everything_fails_from_some_change_on(models, quick_path, before, after):
    """The disk is gone, and comes back: what is there is one of the two, and the next save tidies up."""
    digests = digests_of(models, (before, after), quick_path)
    folder = quick_path / "model"
    for at in range(1, 1000):
        changes = 0

        def act(name: str, _: int, at: int = at) -> None:
            nonlocal changes
            changes += name in CHANGES
            if changes >= at:
                raise OSError(errno.EIO, "broken")

        fill(models, folder, before)
        try:
            with every_operation(act):
                save(models, after, folder)
        except SaveError:
            assert held(folder) in digests, at
            check_foreign(folder)
            save_quickly(models, after, folder)
        assert held(folder) == digests[1]
        assert not litter(folder)
        if changes < at:
            return
    pytest.fail("no save has ended")


@each_transition
def test_a_disk_that_stays_full(models, quick_path, before, after):
    """Writing fails from some point on; everything else goes on working, so nothing may be left."""
    digests = digests_of(models, (before, after), quick_path)
    folder = quick_path / "model"
    fill(models, folder, before)
    for at in range(1, 1000):
        writes = 0

        def act(name: str, _: int, at: int = at) -> None:
            nonlocal writes
            writes += name == "write"
            if name in ("write", "mkdir", "symlink", "link") and writes >= at:
                raise OSError(errno.ENOSPC, "full")

        try:
            with every_operation(act):
                save(models, after, folder)
        except SaveError as error:
            check(folder, digests, error, at)
            assert held(folder) == digests[0]
        else:
            assert held(folder) == digests[1]
            return
    pytest.fail("no save has ended")


def killed(*arguments: str | Path) -> dict[str, int]:
    """In a process of its own, which forks: this one may have threads."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.refimpl.checkpoints.failures", *arguments],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")


@needs_fork
def test_killed_at_random_moments(tmp_path):
    found = killed(tmp_path, str(KILLS), "5")
    assert found["killed"] == KILLS
    assert found["littered"] > KILLS / 10  # otherwise nothing was interrupted


@needs_fork
def test_killed_before_each_change(quick_path):
    some = ["nothing to shards", "a file to a file", "shards to fewer shards"]
    assert killed(quick_path, *(some if KILLS < 1000 else TRANSITIONS))["killed"] > 100


# --- what a killed process left ------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process: nothing may run after it."""


def interrupted(models: dict[str, Any], folder: Path, after: Save, operation: str, count: int) -> None:
    """Leave the folder as a process that was killed before an operation."""
    seen = 0

    def act(name: str, _: int) -> None:
        nonlocal seen
        seen += name == operation
        if seen >= count:
            raise Killed  # again and again, so that nothing is tidied up

    with pytest.raises(Killed), every_operation(act):
        save(models, after, folder)
    assert litter(folder)


def test_a_config_can_be_written_over_the_links_of_a_killed_process(models, tmp_path):
    fill(models, tmp_path, ("first", "5GB"))
    before = held(tmp_path)
    # The two files that change are replaced by links; the third is the step.
    interrupted(models, tmp_path, ("other settings", SHARD), "replace", 3)
    assert (tmp_path / CONFIG_NAME).is_symlink()
    assert held(tmp_path) == before
    models["first"].config.save_pretrained(tmp_path)
    assert not litter(tmp_path)
    assert models["first"].config.from_pretrained(tmp_path).to_dict() == models["first"].config.to_dict()


@pytest.mark.parametrize("plant", ["file", "link", "now leads out", "side leads out"])
def test_what_no_save_has_left_is_not_touched(models, tmp_path, plant):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    prepare(outside)
    fill(models, folder, ("first", "5GB"))
    before, work = held(folder), folder / SAVING
    if plant == "file":
        work.write_text("mine")
    elif plant == "link":
        work.symlink_to(outside)
    elif plant == "now leads out":
        work.mkdir()
        (work / "now").symlink_to(outside)
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.json").symlink_to(f"{SAVING}/now/tokenizer.json")
    else:
        work.mkdir()
        (work / "now").symlink_to("new")
        (work / "new").symlink_to(outside)
    with pytest.raises(SaveError, match="in the way"):
        save(models, ("other weights", "5GB"), folder)
    assert held(folder) == before
    check_foreign(outside)
    assert os.path.lexists(work)


def test_temporary_files_of_killed_processes_are_removed(models, tmp_path):
    (tmp_path / ".config.json.tmp-123-0011aabb").write_text("litter")
    (tmp_path / ".other.json.tmp-123-0011aabb").write_text("of another file")
    save(models, ("first", "5GB"), tmp_path)
    assert not (tmp_path / ".config.json.tmp-123-0011aabb").exists()
    assert (tmp_path / ".other.json.tmp-123-0011aabb").exists()
    write_atomically(tmp_path / "other.json", "{}")
    assert not litter(tmp_path)


# --- weights without a config --------------------------------------------------------------------


def test_a_failure_leaves_the_old_weights(quick_path):
    old, new = {"a": np.ones(3, np.float32)}, {"a": np.zeros(3, np.float32), "b": np.ones((40, 5))}
    save_weights(quick_path, old)
    before = (quick_path / "model.safetensors").read_bytes()
    for at in range(1, 1000):
        try:
            with failing(OSError(errno.EIO, "broken"), at) as done:
                save_weights(quick_path, new, max_shard_size=1000)
        except SaveError as error:
            if getattr(error, "saved", False):
                assert (quick_path / "model.safetensors.index.json").is_file()
                save_weights(quick_path, old)
            assert os.listdir(quick_path) == ["model.safetensors"]
            assert (quick_path / "model.safetensors").read_bytes() == before
            continue
        if len(done) < at:
            break
        save_weights(quick_path, old)
    assert sorted(os.listdir(quick_path)) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
