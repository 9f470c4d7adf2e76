"""Several files of one model: all of them, only them, and each tensor where the index says."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.checkpoints import SafetensorsFile
from refimpl.checkpoints.sharded import INDEX_BYTES, ShardedFiles, read_index
from refimpl.checkpoints.weight_file import WeightFile
from refimpl.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    IncompleteCheckpointError,
    MissingFileError,
    RefimplError,
    ResourceLimitError,
    UnsafeCheckpointError,
)
from tests.fuzz.harness import memory_folder
from tests.fuzz.read_index import CONTENT, ESCAPES, NAME, ONE, SHARDS, TENSORS, TWO
from tests.fuzz.read_safetensors import entry, file_of

posix = pytest.mark.skipif(os.name != "posix", reason="the system has no such files or links")


def saved(folder: Path, index: Any = None, **shards: bytes | None) -> Path:
    """The two files and their index, which is JSON in text or becomes it; `one` and `two` are other contents."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, other in ((ONE, "one"), (TWO, "two")):
        if (content := shards.get(other, SHARDS[name])) is not None:
            (folder / name).write_bytes(content)
    text = index if isinstance(index, str) else json.dumps(index or {"weight_map": TENSORS})
    (folder / NAME).write_text(text, encoding="utf-8")
    return folder / NAME


def opened(path: Path, **options: Any) -> ShardedFiles:
    return ShardedFiles(path, SafetensorsFile, **options)


class Described(WeightFile):
    """A file of which only the names of the tensors matter."""

    def __init__(self, path: Path, names: list[str], kind: str = "f4"):
        self.paths, self._names, self._kind = [path], names, np.dtype(kind)

    def __getitem__(self, name: str) -> np.ndarray:
        raise AssertionError("no number may be used")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return (2, 8)

    def dtype(self, name: str) -> np.dtype:
        return self._kind

    @property
    def nbytes(self) -> int:
        return 16 * self._kind.itemsize * len(self._names)


# --- what is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [True, False])
def test_all_tensors_of_all_files(tmp_path: Path, mmap: bool) -> None:
    files = opened(saved(tmp_path), mmap=mmap)
    assert list(files) == list(TENSORS)
    assert {name: array.tobytes() for name, array in files.items()} == CONTENT
    assert files.paths == [tmp_path / ONE, tmp_path / TWO]
    assert files.nbytes == 38
    assert files.shape("a.weight") == files["a.weight"].shape == (2, 3)
    assert files.dtype("a.bias") == files["a.bias"].dtype == np.float16
    assert "c" not in files
    for ask in (files.__getitem__, files.shape, files.dtype):
        with pytest.raises(KeyError):
            ask("c")


@pytest.mark.parametrize("mmap", [True, False])
def test_each_file_is_opened_once_and_no_number_used(tmp_path: Path, mmap: bool) -> None:
    """Files of another kind go the same way."""
    calls = []

    def open_one(path: Path, as_map: bool) -> WeightFile:
        calls.append((path, as_map))
        return Described(path, [name for name, file in TENSORS.items() if file == path.name])

    files = ShardedFiles(saved(tmp_path), open_one, mmap)
    assert [files.shape(name) for name in files] == [(2, 8)] * 3
    assert calls == [(tmp_path / ONE, mmap), (tmp_path / TWO, mmap)]


def test_no_number_is_used_for_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is not aligned is copied when it is fetched; asking for its name is not fetching it."""

    def fetch(self: SafetensorsFile, name: str) -> np.ndarray:
        raise AssertionError(name)

    monkeypatch.setattr(SafetensorsFile, "__getitem__", fetch)
    files = opened(saved(tmp_path))
    one = SafetensorsFile(tmp_path / ONE)
    assert "a.weight" in files
    assert "a.weight" in one
    assert "b.weight" in files
    assert "b.weight" not in one
    assert "c.weight" not in files


def test_a_damaged_file_is_found_before_a_number_is_used(tmp_path: Path) -> None:
    path = saved(tmp_path, two=SHARDS[TWO][:-1])
    with pytest.raises(IncompleteCheckpointError) as caught:
        opened(path)
    assert caught.value.path == tmp_path / TWO


@posix
def test_the_cache_of_the_hub(tmp_path: Path) -> None:
    """Links to blobs, for the index as for the files; and nothing beyond the repository."""
    saved(tmp_path / "blobs")
    snapshot = tmp_path / "models--owner--name/snapshots/77ab"
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").rename(tmp_path / "models--owner--name/blobs")
    for name in (ONE, TWO, NAME):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert opened(snapshot / NAME).nbytes == 38
    for name in (TWO, NAME):
        (tmp_path / "models--owner--name/blobs" / name).rename(tmp_path / name)
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(tmp_path / name)
        with pytest.raises(UnsafeCheckpointError, match="leads out") as caught:
            opened(snapshot / NAME)
        assert caught.value.where == snapshot / name


def test_what_the_index_says(tmp_path: Path) -> None:
    index = read_index(str(saved(tmp_path, {"weight_map": {"c": TWO, **TENSORS}, "metadata": {"a": 1}})))
    assert index.path == tmp_path / NAME
    assert index.weight_map == {"c": TWO, **TENSORS}
    assert index.metadata == {"a": 1}
    assert index.file_names == [TWO, ONE]


# --- files that are not there, and others that are ---------------------------------------------------


def test_all_missing_files_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, one=None, two=None)
    with pytest.raises(IncompleteCheckpointError, match="2 of the 2 files") as caught:
        opened(path)
    assert caught.value.missing == [ONE, TWO]
    assert f"{ONE}, {TWO}" in str(caught.value)
    path = saved(tmp_path, two=None)
    with pytest.raises(IncompleteCheckpointError, match="1 of the 2 files") as caught:
        opened(path)
    assert caught.value.missing == [TWO]


def test_a_hundred_missing_files(tmp_path: Path) -> None:
    names = [f"{'x' * 200}-{n}.safetensors" for n in range(100)]
    path = saved(tmp_path, {"weight_map": {f"t{n}": name for n, name in enumerate(names)}})
    with pytest.raises(IncompleteCheckpointError) as caught:
        opened(path)
    assert caught.value.missing == names
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


@posix
def test_a_link_to_a_file_that_is_gone_is_a_missing_file(tmp_path: Path) -> None:
    path = saved(tmp_path, two=None)
    (tmp_path / TWO).symlink_to("gone")
    with pytest.raises(IncompleteCheckpointError) as caught:
        opened(path)
    assert caught.value.missing == [TWO]


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        opened(tmp_path / NAME)


@posix
@pytest.mark.parametrize("which", [TWO, NAME])
def test_a_pipe_in_the_place_of_a_file(tmp_path: Path, which: str) -> None:
    path = saved(tmp_path)
    (tmp_path / which).unlink()
    os.mkfifo(tmp_path / which)
    start = time.perf_counter()
    with pytest.raises(UnsafeCheckpointError, match="not a regular file"):
        opened(path)
    assert time.perf_counter() - start < 10  # a pipe is waited for without end


def test_other_parts_beside_are_reported_and_not_opened(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for name in (
        "model-00001-of-00003.safetensors",
        "model.safetensors",
        "other-1-of-2.safetensors",
        "a.txt",
    ):
        (tmp_path / name).write_bytes(b"junk")
    with pytest.warns(UserWarning, match="1 more files look like parts") as caught:
        assert opened(path).nbytes == 38
    assert len(caught) == 1
    assert "'model-00001-of-00003.safetensors'" in str(caught[0].message)


# --- tensors that are not where the index says -------------------------------------------------------

C = file_of({"b.weight": entry("F32", [2], 0, 8), "c": entry("U8", [1], 8, 9)}, CONTENT["b.weight"] + b"c")
COPY = file_of({"b.weight": entry("F32", [2], 0, 8), "a.bias": entry("F16", [3], 8, 14)}, bytes(14))


@pytest.mark.parametrize(
    ("weight_map", "two", "missing", "unexpected"),
    [
        ({**TENSORS, "c": TWO}, SHARDS[TWO], [f"c in {TWO}"], []),
        (TENSORS, C, [], [f"c in {TWO}"]),
        (TENSORS, COPY, [], [f"a.bias in {TWO}"]),
        ({**TENSORS, "a.bias": TWO}, SHARDS[TWO], [f"a.bias in {TWO}"], [f"a.bias in {ONE}"]),
        ({**TENSORS, "a.bias": TWO}, COPY, [], [f"a.bias in {ONE}"]),
        ({**TENSORS, "d": ONE}, C, [f"d in {ONE}"], [f"c in {TWO}"]),
    ],
    ids=["in none", "not in the index", "in two", "in another", "in two, the other one", "two at once"],
)
def test_tensors_elsewhere(
    tmp_path: Path, weight_map: dict[str, str], two: bytes, missing: list[str], unexpected: list[str]
) -> None:
    path = saved(tmp_path, {"weight_map": weight_map}, two=two)
    with pytest.raises(CheckpointMismatchError) as caught:
        opened(path)
    assert (caught.value.missing, caught.value.unexpected) == (missing, unexpected)
    assert caught.value.mismatched == []
    for words in missing + unexpected:
        assert words in str(caught.value)


def test_long_lists_are_complete_in_the_error_and_short_in_its_text(tmp_path: Path) -> None:
    names = [f"{n}.{'x' * 500}" for n in range(50)]
    path = saved(tmp_path, {"weight_map": {**TENSORS, **dict.fromkeys(names, TWO)}})
    with pytest.raises(CheckpointMismatchError, match="and 46 more") as caught:
        opened(path)
    assert caught.value.missing == [f"{name} in {TWO}" for name in names]
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


def test_five_thousand_partitions_with_one_mistake() -> None:
    """Tensors spread over files at random; what is moved, lost, added or doubled never goes unnoticed."""
    files = ["a.bin", "b.bin", "c.bin", "d.bin"]
    with memory_folder() as folder:
        for name in files:
            (folder / name).touch()
        for seed in range(5000):
            draw = random.Random(seed)
            weight_map = {f"t{n}": draw.choice(files) for n in range(draw.randint(1, 8))}
            held = {file: [n for n, at in weight_map.items() if at == file] for file in files}
            tensor = draw.choice(list(weight_map))
            at = weight_map[tensor]
            elsewhere = draw.choice([file for file in weight_map.values() if file != at] or [at])
            kind = draw.randrange(5)
            missing, unexpected = [], []
            if kind == 1:
                held[at].remove(tensor)
                missing = [f"{tensor} in {at}"]
            elif kind == 2:
                held[at].append("new")
                unexpected = [f"new in {at}"]
            elif kind == 3 and elsewhere != at:
                held[elsewhere].append(tensor)
                unexpected = [f"{tensor} in {elsewhere}"]
            elif kind == 4 and elsewhere != at:
                held[elsewhere].append(tensor)
                held[at].remove(tensor)
                missing, unexpected = [f"{tensor} in {at}"], [f"{tensor} in {elsewhere}"]
            (folder / "i.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

            def open_one(path: Path, mmap: bool, held: dict[str, list[str]] = held) -> WeightFile:
                return Described(path, held[path.name])

            try:
                files_of_it = ShardedFiles(folder / "i.bin.index.json", open_one)
            except CheckpointMismatchError as error:
                found = error.missing, error.unexpected
            else:
                found = [], []
                assert list(files_of_it) == list(weight_map)
            assert found == (missing, unexpected), seed


# --- total_size --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metadata", [None, {}, {"total_size": 38}, {"total_size": 38.0}, {"total_size": None}]
)
def test_sizes_that_add_up_or_are_not_said(tmp_path: Path, metadata: Any) -> None:
    path = saved(tmp_path, {"metadata": metadata, "weight_map": TENSORS})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened(path).nbytes == 38


@pytest.mark.parametrize("total", [0, 37, 39, -38, 38.5, 10**400, "38", True, [38], {"a": 38}, 1e308])
def test_sizes_that_do_not_add_up(tmp_path: Path, total: Any) -> None:
    path = saved(tmp_path, {"metadata": {"total_size": total}, "weight_map": TENSORS})
    with pytest.warns(UserWarning, match="total_size is .*38 bytes"):
        assert opened(path).nbytes == 38


def test_truth_values_may_count_an_eighth(tmp_path: Path) -> None:
    def open_one(path: Path, mmap: bool) -> WeightFile:
        return Described(
            path, [n for n, at in TENSORS.items() if at == path.name], "?" if path.name == ONE else "f4"
        )

    for total in (2 * 16 + 64, 2 * 2 + 64, 68.0):
        path = saved(tmp_path, {"metadata": {"total_size": total}, "weight_map": TENSORS})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert ShardedFiles(path, open_one).nbytes == 96


# --- the index ---------------------------------------------------------------------------------------

#: What is wrong -> the index, in which $ is an entry, and words of the error.
WRONG: dict[str, tuple[str, str]] = {
    "a list": ("[]", "one JSON object"),
    "no map": ("{}", "/weight_map"),
    "an empty map": ('{"weight_map": {}}', "/weight_map"),
    "a map that is a list": ('{"weight_map": []}', "/weight_map"),
    "metadata that are a list": ('{"metadata": [], "weight_map": {$}}', "/metadata"),
    "a number for a file": ('{"weight_map": {"a.weight": 1}}', "/weight_map/'a.weight'"),
    "nothing for a file": ('{"weight_map": {"a.weight": null}}', "/weight_map/'a.weight'"),
    "a list of files": ('{"weight_map": {"a.weight": ["a"]}}', "/weight_map/'a.weight'"),
    "a map in the map": ('{"weight_map": {"a": {$}}}', "/weight_map/'a'"),
    "a tensor twice": ('{"weight_map": {$, $}}', "'a.weight' stands there twice"),
    "two maps": ('{"weight_map": {$}, "weight_map": {$}}', "'weight_map' stands there twice"),
    "a tensor without a name": ('{"weight_map": {"": "a"}}', "1 to 512 bytes"),
    "a long name": ('{"weight_map": {"%s": "a"}}' % ("x" * 513), "1 to 512 bytes"),
    "a control character": ('{"weight_map": {"a\\u001b": "a"}}', "without control characters"),
    "a surrogate": ('{"weight_map": {"a\\ud800": "a"}}', "surrogate"),
    "NaN": ('{"metadata": {"total_size": NaN}, "weight_map": {$}}', "NaN"),
    "1e999": ('{"metadata": {"total_size": 1e999}, "weight_map": {$}}', "1e999"),
    "a byte order mark": ("\ufeff{}", "valid JSON"),
    "lists in lists": ('{"weight_map": ' + "[" * 50_000 + "]" * 50_000 + "}", "valid JSON"),
    "two of them": ("{}{}", "valid JSON"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_an_index(tmp_path: Path, kind: str) -> None:
    text, said = WRONG[kind]
    path = saved(tmp_path, text.replace("$", f'"a.weight": "{ONE}"'))
    with pytest.raises(CheckpointFormatError) as caught:
        opened(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert said in message
    assert message.isprintable()
    assert not isinstance(caught.value, IncompleteCheckpointError)


def test_every_beginning_of_an_index_is_incomplete() -> None:
    text = json.dumps({"metadata": {"total_size": 38, "猫": {}}, "weight_map": TENSORS}, ensure_ascii=False)
    with memory_folder() as folder:
        path = saved(folder, text)
        content = path.read_bytes()
        assert opened(path).nbytes == 38
        for size in range(len(content)):
            path.write_bytes(content[:size])
            with pytest.raises(IncompleteCheckpointError) as caught:
                opened(path)
            assert caught.value.path == path
            assert size == 0 or caught.value.found == f"{size} bytes"


@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1\n", "<!doctype html>"])
def test_a_placeholder_for_an_index(tmp_path: Path, text: str) -> None:
    with pytest.raises(IncompleteCheckpointError, match="not the weights"):
        opened(saved(tmp_path, text))


def test_the_list_of_escapes_is_long_enough() -> None:
    assert len(set(ESCAPES)) >= 60


@pytest.mark.parametrize("name", ESCAPES, ids=ascii)
def test_names_that_lead_out_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Refused for the name alone: nothing but the index is opened, or even looked for."""
    (tmp_path / "x").write_bytes(SHARDS[ONE])
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(SHARDS[ONE])
    path = saved(tmp_path / "model", json.dumps({"weight_map": {"a.bias": ONE, "a.weight": name}}))
    opens: list[object] = []
    plain = os.open

    def listening(what: Any, *arguments: Any, **options: Any) -> int:
        opens.append(what)
        return plain(what, *arguments, **options)

    def open_one(path: Path, mmap: bool) -> WeightFile:
        raise AssertionError(path)

    monkeypatch.setattr(os, "open", listening)
    with pytest.raises((UnsafeCheckpointError, CheckpointFormatError)) as caught:
        ShardedFiles(path, open_one)
    assert isinstance(caught.value, UnsafeCheckpointError) or "surrogate" in str(caught.value)
    assert str(caught.value).isprintable()
    assert {str(what) for what in opens} <= {str(path.parent), path.name, str(path)}


_OPENING = """
import json, os, sys
from refimpl.checkpoints.locate import open_weights
from refimpl.errors import RefimplError

heard, recording, outcomes = [], False, []

def listen(event, arguments):
    if recording and event in ("open", "os.listdir", "os.scandir"):
        heard.append(str(arguments[0]))

sys.addaudithook(listen)
for again in range(2):  # the first time, modules are imported
    for path in sys.argv[1:]:
        recording = bool(again)
        try:
            open_weights(path)
            outcomes.append("opened")
        except RefimplError as error:
            outcomes.append(type(error).__name__)
        recording = False
print(json.dumps([sorted(set(heard)), outcomes[len(outcomes) // 2 :]]))
"""


def test_nothing_outside_the_folder_is_opened(tmp_path: Path) -> None:
    """What the interpreter itself reports, for indexes of both formats with each of these names; one is in order."""
    paths = [saved(tmp_path / "model")]
    for number, name in enumerate(ESCAPES):
        for ending in ("model.safetensors", "pytorch_model.bin"):
            path = tmp_path / f"model/{number}/{ending}.index.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"weight_map": {"a.weight": name}}), encoding="utf-8")
            paths.append(path)
    (tmp_path / "x").write_bytes(SHARDS[ONE])
    (tmp_path / "model/x").write_bytes(SHARDS[ONE])
    done = subprocess.run(
        [sys.executable, "-c", _OPENING, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    heard, outcomes = json.loads(done.stdout)
    assert outcomes[0] == "opened"
    assert set(outcomes[1:]) == {"UnsafeCheckpointError", "CheckpointFormatError"}
    assert len(outcomes) == 1 + 2 * len(ESCAPES)
    names = {path.name for path in paths} | {ONE, TWO}
    # A folder that holds an index, an index, or a name in a folder that is open.
    allowed = {str(path.parent) for path in paths} | {str(path) for path in paths} | names
    assert {name for name in heard if not name.isdigit()} <= allowed  # a number is a handle


@pytest.mark.parametrize(
    "name", ["a", "x" * 255, "model-1.safetensors", "A_b.c-d", "console.bin", "com.bin", ".a", "a..b", "-"]
)
def test_names_that_are_only_names(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, {"weight_map": {"b.weight": name}}, one=None, two=None)
    (tmp_path / name).write_bytes(SHARDS[TWO])
    assert opened(path)["b.weight"].tobytes() == CONTENT["b.weight"]


# --- limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "allowed"), [(100_000, True), (100_001, False)])
def test_the_number_of_tensors(tmp_path: Path, count: int, allowed: bool) -> None:
    path = saved(tmp_path, {"weight_map": {f"t{n}": ONE for n in range(count)}})
    if allowed:
        assert len(read_index(path).weight_map) == count
    else:
        with pytest.raises(ResourceLimitError, match="too many tensors"):
            read_index(path)


@pytest.mark.parametrize(("count", "allowed"), [(10_000, True), (10_001, False)])
def test_the_number_of_files(tmp_path: Path, count: int, allowed: bool) -> None:
    path = saved(tmp_path, {"weight_map": {f"t{n}": f"f{n}" for n in range(count)}})
    if allowed:
        assert len(read_index(path).file_names) == count
    else:
        with pytest.raises(ResourceLimitError, match="too many files"):
            read_index(path)


@pytest.mark.parametrize("part", ["[],", '{"":0},', "0,"])
def test_an_index_that_would_take_much_memory(tmp_path: Path, part: str) -> None:
    path = saved(tmp_path, '{"weight_map": [' + part * 2_000_000 + "0]}")
    start = time.process_time()
    with pytest.raises(ResourceLimitError, match="too many"):
        opened(path)
    assert time.process_time() - start < 1


def test_the_largest_index(tmp_path: Path) -> None:
    path = saved(tmp_path)
    os.truncate(path, INDEX_BYTES + 1)
    with pytest.raises(ResourceLimitError, match="too large"):
        opened(path)
    text = json.dumps({"weight_map": TENSORS})
    path.write_text(text + " " * (INDEX_BYTES - len(text)))
    assert opened(path).nbytes == 38


def test_errors_are_of_this_package(tmp_path: Path) -> None:
    """What `open_one` raises comes through as it is."""

    def open_one(path: Path, mmap: bool) -> WeightFile:
        raise CheckpointFormatError("broken", where=path)

    with pytest.raises(RefimplError, match="broken"):
        ShardedFiles(saved(tmp_path), open_one)
