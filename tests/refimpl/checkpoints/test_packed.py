"""Matrices in panels in a file: the same model bit for bit, mapped where it can be, and refused where it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from refimpl import AutoModelForCausalLM, to_numpy
from refimpl.backends import get_backend, panels
from refimpl.backends.numba import packed as numba_packed
from refimpl.backends.panels import PanelBytes, PanelMatrix, from_panels, to_panels
from refimpl.backends.quantized import Int8Matrix, NF4Matrix, QuantizedMatrix, quantize_int8, quantize_nf4
from refimpl.checkpoints import SafetensorsFile
from refimpl.checkpoints.locate import find_weights, open_weights
from refimpl.checkpoints.panel_file import PanelFile, in_panels
from refimpl.checkpoints.safetensors_writer import PACKED_KEY
from refimpl.checkpoints.saving import is_weight_file, save_weights, stored_as, write_weights
from refimpl.errors import (
    ResourceLimitError,
)
from refimpl.folder_switch import replaced_files
from refimpl.quantized_files import QuantizedTensors, stored_tensors
from tests.refimpl.checkpoints.failures import same_tensors
from tests.tiny import save_tiny, tiny_ids, tiny_neox

#: Matrices of 83 and 96 rows: the last panel is not full.
ODD = {"hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 83}
#: Blocks of 64 numbers fill every row: these have a form in panels in NF4 too.
EVEN = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 192, "vocab_size": 45}

DENSE = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
QUANTIZED: dict[str, Callable[[np.ndarray], QuantizedMatrix]] = {
    "int8": quantize_int8,
    "nf4": quantize_nf4,
    "nf4 double": lambda matrix: quantize_nf4(matrix, double_quant=True),
}
every_form = pytest.mark.parametrize("form", [*DENSE, *QUANTIZED])
WEIGHT = "gpt_neox.layers.1.attention.dense.weight"
PANELS = f"{WEIGHT}.panels"


def tensors_of(form: str, folder: Path, **changes: Any) -> dict[str, np.ndarray]:
    """What a file of a tiny model holds whose dense layers are kept so; the folder gets a config and such a file."""
    save_tiny(folder, tiny_neox(**{**EVEN, **changes}))
    tensors: dict[str, np.ndarray] = {}
    for name, array in load_file(folder / "model.safetensors").items():
        if form in DENSE:
            tensors[name] = array.astype(DENSE[form])
        elif array.ndim == 2 and ".layers." in name:
            tensors |= stored_tensors(name, QUANTIZED[form](array))
        else:
            tensors[name] = array
    save_file({name: np.array(array) for name, array in tensors.items()}, folder / "model.safetensors")
    return tensors


def pack(folder: Path, tensors: dict[str, np.ndarray], size: int | str = "5GB") -> Path:
    """Put `tensors` into the folder in panels, in place of its weights."""
    stored = [stored_as(name, array.dtype, array.shape, tensors) for name, array in tensors.items()]
    with replaced_files(folder, is_weight_file) as new:
        write_weights(new, in_panels(stored), size)
    return folder


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A model of float32 in panels, to break."""
    return pack(tmp_path / "packed", tensors_of("float32", tmp_path / "packed"))


def load(folder: Path, backend: str = "numpy", **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, backend=backend, **options)


# --- the order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int32"])
@pytest.mark.parametrize("shape", [(1, 1), (31, 3), (32, 7), (64, 5), (65, 130), (129, 8)])
def test_there_and_back(dtype: str, shape: tuple[int, int]) -> None:
    numbers = np.random.default_rng(0).integers(-90, 90, shape)
    matrix = numbers.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    found = to_panels(matrix)
    width = panels.WIDTHS[dtype]
    count, whole = -(-shape[0] // width), -(-shape[1] // 64) * 64
    wanted = (count, whole // 4, width, 4) if dtype == "int8" else (count, shape[1], width)
    assert found.shape == wanted == panels.panels_shape(dtype, *shape)
    for row in range(shape[0]):
        assert (found[row // width, :, row % width].reshape(-1)[: shape[1]] == matrix[row]).all()
    rows = np.swapaxes(found, 1, 2).reshape(count * width, -1)
    assert not rows[shape[0] :].any()
    assert not rows[:, shape[1] :].any()
    back = from_panels(found, *shape)
    assert (back.dtype, back.tobytes()) == (matrix.dtype, matrix.tobytes())


@every_form
@pytest.mark.parametrize("shape", [(70, 128), (64, 64), (1, 192)])
def test_compiled_code_packs_in_this_order(form: str, shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    kept = QUANTIZED[form](matrix) if form in QUANTIZED else matrix.astype(DENSE[form])
    if isinstance(kept, Int8Matrix):
        wanted = to_panels(kept.CB)
    elif isinstance(kept, NF4Matrix):
        wanted = to_panels(panels.words_of(kept.packed.reshape(shape[0], -1)))
    else:
        wanted = to_panels(kept)
    found = get_backend("numba").weight(kept)
    assert (found.panels.shape, found.panels.tobytes()) == (wanted.shape[:3], wanted.tobytes())


def test_a_matrix_in_panels_stands_for_the_array(backend: str) -> None:
    matrix = np.random.default_rng(2).normal(size=(70, 40)).astype(np.float16)
    stands = PanelMatrix(to_panels(matrix), matrix.shape, matrix.dtype)
    assert (stands.shape, stands.ndim, stands.size, len(stands), stands.dtype) == (
        (70, 40),
        2,
        2800,
        70,
        np.float16,
    )
    assert np.asarray(stands).tobytes() == matrix.tobytes()
    ids = np.array([[0, 69], [-1, 3]])
    for index in (ids, 5, -1, slice(2, 4), (slice(2, 4), 1)):
        assert (stands[index] == matrix[index]).all()
    assert (stands.astype(np.float32) == matrix.astype(np.float32)).all()
    ops = get_backend(backend)
    for dtype in (None, np.dtype(np.float16), np.dtype(np.float32)):
        kept = ops.weight(stands, dtype)
        assert kept.dtype == (dtype or np.float16)
        assert ops.to_numpy(kept).tobytes() == matrix.astype(kept.dtype).tobytes()
        rows = ops.to_numpy(ops.embedding(ops.asarray(ids % 70), kept))
        assert (rows == matrix[ids].astype(np.float32)).all()


@pytest.mark.parametrize("form", QUANTIZED)
def test_a_quantized_matrix_over_panels_stands_for_itself(form: str, tmp_path: Path) -> None:
    """Also without a backend: its rows and the dense matrix."""
    tensors = tensors_of(form, tmp_path)
    ordinary = QuantizedTensors(tensors)[WEIGHT]
    found = QuantizedTensors(open_weights(find_weights(pack(tmp_path, tensors))))[WEIGHT]
    part = found.CB if form == "int8" else found.packed
    assert isinstance(part, PanelMatrix if form == "int8" else PanelBytes)
    assert np.asarray(found).tobytes() == np.asarray(ordinary).tobytes()
    assert (found[[3, 0]] == ordinary[[3, 0]]).all()


# --- the file -------------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("shape", ["odd", "even"])
@pytest.mark.parametrize("size", ["5GB", "60KB"])
def test_every_tensor_comes_back(form: str, shape: str, size: str, tmp_path: Path) -> None:
    tensors = tensors_of(form, tmp_path, **(ODD if shape == "odd" else EVEN))
    path = find_weights(pack(tmp_path, tensors, size))
    assert path.name == ("packed.safetensors" if size == "5GB" else "packed.safetensors.index.json")
    assert not (tmp_path / "model.safetensors").exists()
    file = open_weights(path)
    assert isinstance(file, PanelFile)
    assert (
        len(file.paths) == (1 if size == "5GB" else len(list(tmp_path.glob("packed-*-of-*.safetensors")))) > 0
    )
    matrices = [name for name, array in tensors.items() if array.ndim == 2 and name.endswith(".weight")]
    no_form = form.startswith("nf4") and shape == "odd"  # blocks that go on in the next row
    assert len(file.packed) == (2 if no_form else len(matrices))
    assert set(file) == set(tensors)
    for name, array in tensors.items():
        assert (file.shape(name), file.dtype(name)) == (array.shape, array.dtype), name
        assert (file[name].shape, file[name].dtype) == (array.shape, array.dtype), name
    assert same_tensors({name: np.asarray(file[name]) for name in file}, tensors)
    save_weights(tmp_path / "again", {name: np.asarray(file[name]) for name in file})
    save_weights(tmp_path / "first", tensors)
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("again", "first")]
    assert contents[0] == contents[1]


@every_form
def test_the_layout(form: str, tmp_path: Path) -> None:
    """As docs/spec/checkpoints.md has it: readable by the package, panels first, each at a multiple of 64 bytes."""
    path = find_weights(pack(tmp_path, tensors_of(form, tmp_path)))
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.pop("__metadata__")
    assert metadata["format"] == PACKED_KEY  # what transformers 4 refuses
    said = json.loads(metadata[PACKED_KEY])
    assert said["version"] == 2
    assert said["shapes"][PANELS] == [128, 128]
    assert end % 64 == 0
    names = sorted(header, key=lambda name: header[name]["data_offsets"])
    count = len(said["shapes"])
    assert all(name.endswith(".weight.panels") for name in names[:count])
    assert not [name for name in names[count:] if name.endswith(".panels")]
    assert all(header[name]["data_offsets"][0] % 64 == 0 for name in names[:count])
    assert header[PANELS]["shape"] == {
        "int8": [4, 32, 32, 4],
        "nf4": [2, 16, 64],
        "nf4 double": [2, 16, 64],
    }.get(form, [4, 128, 32])
    if form != "bfloat16":  # for which the package has no array
        assert set(load_file(path)) == set(names)


def test_other_files_keep_the_bytes_of_the_package(tmp_path: Path) -> None:
    tensors = {"a.weight": np.ones((3, 4), np.float32), "b.panels": np.ones(3, np.float64)}
    save_weights(tmp_path, tensors)
    save_file(tensors, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert isinstance(open_weights(tmp_path / "model.safetensors"), SafetensorsFile)


def test_which_file_is_taken(packed: Path) -> None:
    """Before what is in other formats, and after an ordinary file, which another program may have put there since."""
    (packed / "pytorch_model.bin").write_bytes(b"")
    assert find_weights(packed).name == "packed.safetensors"
    (packed / "packed.safetensors").rename(packed / "model.safetensors")
    assert isinstance(open_weights(find_weights(packed)), PanelFile)  # the content says what it is
    (packed / "packed.safetensors").write_bytes(b"old")
    assert find_weights(packed).name == "model.safetensors"


# --- models ---------------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("tied", [False, True])
def test_the_same_bits(form: str, tied: bool, backend: str, tmp_path: Path) -> None:
    """One token, a few, and many: each has a kernel of its own."""
    tensors = tensors_of(form, tmp_path / "ordinary", tie_word_embeddings=tied)
    tensors_of(form, tmp_path / "packed", tie_word_embeddings=tied)
    ordinary, packed = load(tmp_path / "ordinary", backend), load(pack(tmp_path / "packed", tensors), backend)
    for ids in (tiny_ids(1, 1), tiny_ids(1, 5), tiny_ids(2, 20)):
        assert packed(ids).logits.tobytes() == ordinary(ids).logits.tobytes()
    state, wanted = packed.state_dict(), ordinary.state_dict()
    for key, weight in state.items():
        assert type(weight) is type(wanted[key])
        home, other = (
            model.backend.to_numpy(kept) for model, kept in ((packed, weight), (ordinary, wanted[key]))
        )
        assert np.asarray(home).tobytes() == np.asarray(other).tobytes()


@every_form
@pytest.mark.parametrize("mmap", [True, False])
def test_nothing_is_packed_again(
    form: str, mmap: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pack(tmp_path, tensors_of(form, tmp_path))
    made = []
    inner = numba_packed._pack
    monkeypatch.setattr(numba_packed, "_pack", lambda *a: made.append(a[0].shape) or inner(*a))
    model = load(tmp_path, "numba", mmap=mmap)
    in_layers = sum(".layers." in key for key, weight in model.state_dict().items() if weight.ndim == 2)
    assert len(made) == (
        in_layers if form.startswith("nf4") else 0
    )  # the factors of NF4, an eighth of its bytes
    file = open_weights(find_weights(tmp_path))
    kept = model.state_dict()[WEIGHT].panels
    assert kept.tobytes() == file[WEIGHT].panels.tobytes() if form in DENSE else True
    assert kept.flags.writeable  # for others the kernels would be compiled once more
    if mmap:
        regions = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        place = kept.__array_interface__["data"][0]
        region = next(
            r for r in regions if int(r[0].split("-")[0], 16) <= place < int(r[0].split("-")[1], 16)
        )
        assert region[-1] == str(tmp_path / "packed.safetensors")
        assert place % 64 == 0


def needed(folder: Path, backend: str, **options: Any) -> int:
    """The bytes without which the model is not loaded, and with which it is."""
    with pytest.raises(ResourceLimitError) as caught:
        load(folder, backend, max_memory=0, **options)
    size = caught.value.requested  # type: ignore[attr-defined]
    load(folder, backend, max_memory=size, **options)
    return size


@every_form
def test_what_loading_allocates(form: str, backend: str, tmp_path: Path) -> None:
    tensors = tensors_of(form, tmp_path)
    pack(tmp_path, tensors)
    vectors = 4 * sum(
        array.size for name, array in tensors.items() if array.ndim == 1 and "weight." not in name
    )
    vectors -= 4 * sum(array.size for name, array in tensors.items() if name.endswith("SCB"))
    if backend == "numpy":
        matrices = [name for name in tensors if name.endswith(".weight") and tensors[name].ndim == 2]
        more = sum(tensors[name].nbytes for name in matrices)
    elif backend == "cupy":  # everything goes to the device; nested absmaxes are widened there as well
        shown = QuantizedTensors(tensors)
        kept = [shown[name] for name in shown if name in shown.quantized or shown[name].ndim == 2]
        more = sum(matrix.nbytes for matrix in kept)
        if "double" in form:
            more += sum(4 * shown[name].absmax.absmax.size for name in shown.quantized)
    else:
        shapes = [QuantizedTensors(tensors)[name].shape for name in QuantizedTensors(tensors).quantized]
        full = [(-(-out // 64) * 64, out, width) for out, width in shapes]
        if form == "int8":
            more = sum(4 * rows for rows, _, _ in full)
        else:
            more = sum(
                width // 64 * 4 * (rows + (out if "double" in form else 0)) for rows, out, width in full
            )
    assert needed(tmp_path, backend) == vectors + more


def test_another_dtype_is_packed_anew(packed: Path, tmp_path: Path, backend: str) -> None:
    tensors_of("float32", tmp_path / "ordinary")
    size = sum(
        array.size for array in load_file(tmp_path / "ordinary/model.safetensors").values() if array.ndim == 2
    )
    vectors = needed(packed, "numba")
    for options in (
        {"weight_dtype": "float16"},
        {"weight_dtype": "int8"},
        {"weight_dtype": "nf4"},
        {"dtype": "float64"},
    ):
        found, wanted = (load(folder, backend, **options) for folder in (packed, tmp_path / "ordinary"))
        assert found(tiny_ids()).logits.tobytes() == wanted(tiny_ids()).logits.tobytes(), options
    assert needed(packed, backend, weight_dtype="float16") == 2 * size + vectors


def test_numbers_at_any_place(packed: Path, backend: str) -> None:
    """Another writer fills the header to multiples of 8 bytes, or to nothing: then panels are copied."""
    wanted = load(packed, backend)(tiny_ids()).logits.tobytes()
    data = (packed / "packed.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    for spaces in (4, 8, 3):
        header = data[8 : 8 + length] + b" " * spaces
        (packed / "packed.safetensors").write_bytes(
            len(header).to_bytes(8, "little") + header + data[8 + length :]
        )
        file = open_weights(find_weights(packed))
        assert file.is_view(WEIGHT) == (spaces % 4 == 0)
        for mmap in (True, False):
            assert load(packed, backend, mmap=mmap)(tiny_ids()).logits.tobytes() == wanted


@every_form
def test_it_is_saved_as_an_ordinary_model(form: str, backend: str, tmp_path: Path) -> None:
    """Also into the folder from which it is mapped."""
    tensors = tensors_of(form, tmp_path / "ordinary")
    tensors_of(form, tmp_path / "packed")
    pack(tmp_path / "packed", tensors)
    for folder in ("ordinary", "packed"):
        load(tmp_path / folder, backend).save_pretrained(tmp_path / folder)
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    for name in ("model.safetensors", "config.json"):
        contents = [(tmp_path / folder / name).read_bytes() for folder in ("ordinary", "packed")]
        assert contents[0] == contents[1]


def test_its_vocabulary_can_grow(packed: Path, backend: str) -> None:
    model = load(packed, backend)
    before = to_numpy(model(tiny_ids()).logits)
    model.resize_token_embeddings(80)
    assert np.allclose(to_numpy(model(tiny_ids()).logits)[..., :45], before, atol=1e-4)
    model.half().float()
    assert model(tiny_ids()).logits.shape == (2, 9, 80)
