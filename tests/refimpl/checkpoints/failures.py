"""Making the system fail at a chosen operation, and telling which model a folder holds.

`python -m tests.refimpl.checkpoints.failures` is a process that kills others; see `main`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from safetensors.numpy import load_file

from refimpl import GPTNeoXModel
from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.checkpoints.saving import save_model
from refimpl.files import SAVING
from tests.tiny import tiny_neox

#: Everything that a save asks of the system. What only looks is there as well: a failing disk fails there too.
OPERATIONS = (
    "open", "write", "fsync", "close", "replace", "link", "symlink", "readlink", "mkdir", "unlink", "rmdir",
    "listdir", "scandir", "lstat", "fstat", "statvfs",
)  # fmt: skip

#: Between two of these the disk does not change, so that a process need not be killed before each of the others.
CHANGES = ("open", "write", "replace", "link", "symlink", "mkdir", "unlink", "rmdir")

SMALL = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 9}
SHARD = "1KB"

#: Shapes are equal, settings and weights are not: a mixture would load.
MODELS: dict[str, Callable[[], Any]] = {
    "first": lambda: tiny_neox(seed=1, **SMALL),
    "other weights": lambda: tiny_neox(seed=2, **SMALL),
    "other settings": lambda: tiny_neox(seed=3, layer_norm_eps=0.1, rotary_emb_base=50, **SMALL),
    "no language model": lambda: tiny_neox(GPTNeoXModel, seed=4, layer_norm_eps=0.2, **SMALL),
}

#: Saves: (the model, the size of its files).
Save = tuple[str, int | str]

#: From what is in a folder to what it is replaced by.
TRANSITIONS: dict[str, tuple[Save | None, Save]] = {
    "nothing to a file": (None, ("first", "5GB")),
    "nothing to shards": (None, ("first", SHARD)),
    "weights only": (("first", "5GB"), ("other weights", "5GB")),
    "a file to a file": (("first", "5GB"), ("other settings", "5GB")),
    "a file to shards": (("first", "5GB"), ("other settings", SHARD)),
    "shards to a file": (("first", SHARD), ("other settings", "5GB")),
    "shards to fewer shards": (("first", SHARD), ("other settings", "2KB")),
    "shards to as many shards": (("first", SHARD), ("other settings", SHARD)),
    "to a model without generation settings": (("first", "5GB"), ("no language model", "5GB")),
}

#: Files of others, which no save may touch.
FOREIGN = {"tokenizer.json": b"{}", "notes/model.safetensors": b"mine", "pytorch_model.bin": b"old"}


def save(models: dict[str, Any], what: Save, folder: Path) -> None:
    save_model(models[what[0]], folder, what[1])


def save_quickly(models: dict[str, Any], what: Save, folder: Path) -> None:
    """Without waiting for the disk."""
    with patch.object(os, "fsync", lambda handle: None):
        save(models, what, folder)


def prepare(folder: Path) -> None:
    """Put the files of others into a new folder."""
    for name, content in FOREIGN.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def fill(models: dict[str, Any], folder: Path, before: Save | None) -> None:
    """Let the folder hold the files of others, a model if there is to be one, and nothing else."""
    wanted = {**FOREIGN, **(files_of(models, before) if before else {})}
    prepare(folder)
    for entry in os.scandir(folder):
        if entry.is_symlink() or (entry.is_file() and entry.name not in wanted):
            os.unlink(entry.path)
        elif entry.name == SAVING:
            shutil.rmtree(entry.path)
    for name, content in wanted.items():
        (folder / name).write_bytes(content)


_FILES: dict[Save, dict[str, bytes]] = {}


def files_of(models: dict[str, Any], what: Save) -> dict[str, bytes]:
    """What an undisturbed save writes, which is the same every time."""
    if what not in _FILES:
        with tempfile.TemporaryDirectory() as folder:
            save_quickly(models, what, Path(folder))
            _FILES[what] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return _FILES[what]


def held(folder: Path, by_us_too: bool = False) -> str | None:
    """What a reader finds who takes the files as transformers does: a digest of settings and weights.

    None: no model. It fails where there is a part of one, and (`by_us_too`) unless our own reader finds the same.
    """
    if not (folder / "config.json").is_file():
        return None
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    if (folder / "generation_config.json").is_file():
        digest.update((folder / "generation_config.json").read_bytes())
    tensors = {}
    if (folder / "model.safetensors").is_file():
        tensors = load_file(folder / "model.safetensors")
    else:
        index = json.loads((folder / "model.safetensors.index.json").read_bytes())
        for file in sorted(set(index["weight_map"].values())):
            tensors |= load_file(folder / file)
        assert set(tensors) == set(index["weight_map"])
        assert sum(array.nbytes for array in tensors.values()) == index["metadata"]["total_size"]
    if by_us_too:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*more files look like parts")  # links to nothing, yet
            assert same_tensors(open_weights(find_weights(folder)), tensors)
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    return digest.hexdigest()


def same_tensors(found: Any, wanted: Any) -> bool:
    """Whether two mappings hold the same tensors, bit for bit."""
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype
        and found[name].shape == wanted[name].shape
        and found[name].tobytes() == wanted[name].tobytes()
        for name in wanted
    )


def litter(folder: Path) -> list[str]:
    """What no finished save leaves in a folder."""
    return [
        name
        for name in os.listdir(folder)
        if name == SAVING or ".tmp-" in name or (folder / name).is_symlink()
    ]


def check_foreign(folder: Path) -> None:
    for name, content in FOREIGN.items():
        assert (folder / name).read_bytes() == content, name


@contextmanager
def every_operation(act: Callable[[str, int], None]) -> Iterator[list[str]]:
    """`act(operation, number)` is called before each operation; gives the list of those so far.

    What `act` does itself is not counted, and neither is what other threads do. A file is closed even if that fails, as
    on Linux. Nothing waits for the disk.
    """
    done: list[str] = []
    acting = False
    thread = threading.get_ident()

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal acting
            if acting or threading.get_ident() != thread:
                return real(*arguments, **options)
            done.append(name)
            acting = True
            try:
                act(name, len(done))
            except BaseException:
                if name == "close":
                    real(*arguments)
                raise
            finally:
                acting = False
            return None if name == "fsync" else real(*arguments, **options)

        return call

    patches = [patch.object(os, name, wrapped(name, getattr(os, name))) for name in OPERATIONS]
    for one in patches:
        one.start()
    try:
        yield done
    finally:
        for one in reversed(patches):
            one.stop()


@contextmanager
def failing(error: BaseException, at: int, operations: tuple[str, ...] = OPERATIONS) -> Iterator[list[str]]:
    """Let number `at` of these operations fail; gives the list of those so far."""
    counted: list[str] = []

    def act(name: str, _: int) -> None:
        if name in operations:
            counted.append(name)
            if len(counted) == at:
                raise error

    with every_operation(act):
        yield counted


# --- killing -------------------------------------------------------------------------------------


def in_child(function: Callable[[], None]) -> int:
    """Run `function` in a forked process. Returns: its id."""
    child = os.fork()
    if child:
        return child
    try:
        function()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def killed_save(models: dict[str, Any], what: Save, folder: Path, at: int) -> None:
    """Save, and die before change number `at`."""
    changes = 0

    def act(operation: str, _: int) -> None:
        nonlocal changes
        changes += operation in CHANGES
        if changes == at:
            os.kill(os.getpid(), signal.SIGKILL)

    with every_operation(act):
        save(models, what, folder)


def kill_at_every_change(models: dict[str, Any], parent: Path, transitions: list[str]) -> int:
    """Kill a save before each of its changes on the disk, in these transitions.  Returns: how many died."""
    killed = 0
    third: Save = ("first", "3KB")
    (digest,) = digests_of(models, [third], parent)
    for name in transitions:
        before, after = TRANSITIONS[name]
        folder = parent / "a"
        digests = digests_of(models, (before, after), parent)
        for number in range(1, 1000):
            fill(models, folder, before)
            child = in_child(partial(killed_save, models, after, folder, number))
            _, status = os.waitpid(child, 0)
            assert held(folder, by_us_too=True) in digests, (name, number)
            check_foreign(folder)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                assert held(folder) == digests[1]
                break
            killed += 1
            save_quickly(models, third, folder)
            assert not litter(folder), (name, number)
            assert held(folder) == digest
        else:
            raise AssertionError(f"{name}: no save has ended")
    return killed


def kill_at_random(models: dict[str, Any], parent: Path, count: int, seed: int) -> tuple[int, int]:
    """Kill `count` saves at random moments, each into the folder that the one before left.

    Returns: how many were killed and how many folders held litter then.
    """
    draw = random.Random(seed)
    saves: list[Save] = [
        (model, size)
        for model in MODELS
        for size in ("5GB", SHARD, "2KB")
        if (model, size) != ("other weights", "2KB")
    ]
    digests = dict(zip(saves, digests_of(models, saves, parent), strict=True))
    folder = parent / "b"
    prepare(folder)
    current = None
    killed = littered = 0
    began = time.perf_counter()
    save(models, saves[0], parent / "timed")
    longest = 2 * (time.perf_counter() - began)
    while killed < count:
        what = draw.choice(saves)
        child = in_child(partial(save, models, what, folder))
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        found = held(folder, by_us_too=True)
        assert found in (current, digests[what]), what
        check_foreign(folder)
        littered += bool(litter(folder))
        current = found
    save(models, saves[0], folder)
    assert held(folder) == digests[saves[0]]
    assert not litter(folder)
    return killed, littered


def digests_of(models: dict[str, Any], saves: Any, parent: Path) -> list[str | None]:
    """What `held` says of these saves."""
    found: list[str | None] = []
    for what in saves:
        fill(models, parent / "alone", what)
        found.append(held(parent / "alone"))
    return found


def main() -> None:
    """Arguments: a folder to work in; how many saves to kill at random moments, and a seed; or names of transitions."""
    parent, *what = Path(sys.argv[1]), *sys.argv[2:]
    models = {name: make() for name, make in MODELS.items()}
    save(models, ("first", "5GB"), parent / "warm")  # everything is imported before the first fork
    assert np.isfinite(models["first"](np.array([[1, 2]])).logits).all()
    if what[0].isdigit():
        killed, littered = kill_at_random(models, parent, int(what[0]), int(what[1]))
    else:
        killed, littered = kill_at_every_change(models, parent, what), 0
    print(json.dumps({"killed": killed, "littered": littered}))


if __name__ == "__main__":
    main()
