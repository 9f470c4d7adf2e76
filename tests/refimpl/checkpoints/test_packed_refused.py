"""What is no file with matrices in panels, and what cannot be packed: one error each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from refimpl.checkpoints import SafetensorsFile
from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.checkpoints.safetensors_writer import PACKED_KEY
from refimpl.errors import (
    CheckpointFormatError,
    CheckpointMismatchError,
    CheckpointValueError,
    IncompleteCheckpointError,
    InputError,
)
from tests.refimpl.checkpoints.test_packed import DENSE, PANELS, WEIGHT, load, pack, tensors_of


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A model of float32 in panels, to break."""
    return pack(tmp_path / "packed", tensors_of("float32", tmp_path / "packed"))


def rewritten(folder: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> None:
    """Change metadata and tensors of a packed file, which the package then writes: header filled to 8 bytes."""
    path = folder / "packed.safetensors"
    stored = {name: np.array(array) for name, array in SafetensorsFile(path, mmap=False).items()}
    said = json.loads(SafetensorsFile(path).metadata[PACKED_KEY])
    change(said, stored)
    text = said["text"] if "text" in said else json.dumps(said)
    save_file(stored, path, {} if text is None else {PACKED_KEY: text})


def set_to(key: str, value: Any) -> Callable[[dict[str, Any], Any], None]:
    return lambda said, _: said.update({key: value})


def shape(value: Any, name: str = PANELS) -> Callable[[dict[str, Any], Any], None]:
    return lambda said, _: said["shapes"].update({name: value})


def stored(name: str, change: Callable[[Any], Any]) -> Callable[[Any, dict[str, np.ndarray]], None]:
    def call(_: Any, tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = change(tensors.get(name))

    return call


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (set_to("version", 3), "an order of another version of refimpl; found version 3; allowed: version 2"),
        (set_to("version", 1), "an order of another version of refimpl; found version 1; allowed: version 2"),
        (set_to("version", 0), f"metadata {PACKED_KEY} are wrong"),
        (set_to("version", True), f"metadata {PACKED_KEY} are wrong"),
        (set_to("version", "1"), f"metadata {PACKED_KEY} are wrong"),
        (set_to("shapes", []), f"metadata {PACKED_KEY} are wrong"),
        (set_to("text", "[" * 100_000), f"metadata {PACKED_KEY}: not valid JSON"),
        (set_to("text", "{"), f"metadata {PACKED_KEY}: not valid JSON"),
        (set_to("text", "1"), f"metadata {PACKED_KEY} are wrong; found '1'"),
        (set_to("text", "[]"), f"metadata {PACKED_KEY} are wrong"),
        (set_to("text", None), "panels without the metadata that say of which matrix; found no refimpl_packed"),
        (lambda said, _: said["shapes"].pop(PANELS), f"{PANELS}: panels without the metadata that say of which"),
        (shape([128, 128], "a.weight.panels"), "a.weight.panels: the metadata say that it is there, and it is not"),
        (shape([128, 128], "gpt_neox.final_layer_norm.bias"), "not the name and shape of a matrix in panels"),
        (shape([129, 128]), f"{PANELS}: these are not the panels of a matrix [129, 128]"),
        (shape([96, 128]), "found float32 [4, 128, 32]; allowed: float32 [3, 128, 32]"),
        (shape([128, 127]), f"{PANELS}: these are not the panels"),
        (shape([128, -1]), "not the name and shape of a matrix in panels; found [128, -1]"),
        (shape([0, 128]), "not the name and shape of a matrix in panels"),
        (shape([128.0, 128]), "not the name and shape of a matrix in panels"),
        (shape([128, 128, 1]), "not the name and shape of a matrix in panels"),
        (shape("128"), "not the name and shape of a matrix in panels"),
        (shape([1 << 40, 1 << 40]), "not the name and shape of a matrix in panels"),
        (stored(PANELS, lambda a: a.reshape(8, 128, 16)), "found float32 [8, 128, 16]; allowed: float32 [4, 128, 32]"),
        (stored(PANELS, lambda a: a.reshape(-1)), f"{PANELS}: these are not the panels"),
        (stored(PANELS, lambda a: a.astype(np.int16)), "found int16 [4, 128, 32]; allowed: float32, float16, bfloat16"),
        (stored(PANELS, lambda a: a.astype(np.float64)), "found float64 [4, 128, 32]"),
        (stored(WEIGHT, lambda _: np.ones((128, 128))), f"{PANELS}: the file holds the matrix in panels, and"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong(packed: Path, change: Any, text: str) -> None:
    rewritten(packed, change)
    for backend in ("numpy", "numba"):
        with pytest.raises(CheckpointFormatError) as caught:
            load(packed, backend)
        assert text in str(caught.value)
        assert str(caught.value).startswith(str(packed / "packed.safetensors"))


def test_panels_that_do_not_fit_the_config(packed: Path) -> None:
    def change(said: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        said["shapes"][PANELS] = [100, 128]  # the same number of panels

    rewritten(packed, change)
    with pytest.raises(CheckpointMismatchError) as caught:
        load(packed)
    assert caught.value.mismatched == [f"{WEIGHT}: file [100, 128], config [128, 128]"]  # type: ignore[attr-defined]


def test_panels_of_whole_numbers_alone(packed: Path) -> None:
    """Without the units of the rows they are no weights."""

    def change(said: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        tensors[PANELS] = np.zeros((4, 32, 32, 4), np.int8)

    rewritten(packed, change)
    with pytest.raises(CheckpointMismatchError) as caught:
        load(packed)
    assert caught.value.mismatched == [f"{WEIGHT}: int8, not a float type"]  # type: ignore[attr-defined]


def test_words_of_another_shape_than_their_state(tmp_path: Path) -> None:
    pack(tmp_path, tensors_of("nf4", tmp_path))
    rewritten(tmp_path, shape([120, 128]))
    with pytest.raises(CheckpointFormatError, match="panels of a matrix of another shape"):
        load(tmp_path)


def test_a_file_that_is_cut_short(packed: Path) -> None:
    path = packed / "packed.safetensors"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(IncompleteCheckpointError, match="cut short"):
        load(packed)


def test_a_part_of_another_packing(tmp_path: Path) -> None:
    """Each file says the shapes of its own panels."""
    tensors = tensors_of("float16", tmp_path)
    pack(tmp_path, tensors, "100KB")
    file = open_weights(find_weights(tmp_path))
    part = SafetensorsFile(next(path for path in file.paths if PANELS in SafetensorsFile(path)))
    save_file({name: np.array(part[name]) for name in part}, part.path)
    with pytest.raises(CheckpointFormatError, match="panels without the metadata"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", DENSE)
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_nan_and_infinity_are_not_packed(dtype: str, number: float, tmp_path: Path) -> None:
    tensors = tensors_of(dtype, tmp_path)
    tensors[WEIGHT][100, 3] = number
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointValueError, match="holds NaN or infinity, and is not packed") as caught:
        pack(tmp_path, tensors)
    assert (caught.value.where, caught.value.first_index) == (WEIGHT, [100, 3])  # type: ignore[attr-defined]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_without_a_matrix_that_could_be_packed(tmp_path: Path) -> None:
    tensors = {
        "a.weight": np.ones((64, 64)),
        "b.weight": np.ones(64, np.float32),
        "c": np.ones((3, 3), np.float32),
    }
    tmp_path.joinpath("empty").mkdir()
    with pytest.raises(InputError, match="no matrix of the model has a form in panels"):
        pack(tmp_path / "empty", tensors)
    assert list((tmp_path / "empty").iterdir()) == []
