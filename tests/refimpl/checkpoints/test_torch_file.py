"""`pytorch_model.bin`: every tensor bit for bit, wherever it lies in its storage, and no byte outside of it."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.checkpoints import torch_file
from refimpl.checkpoints.torch_file import TorchFile
from refimpl.checkpoints.weight_file import open_bytes
from refimpl.errors import (
    CheckpointFormatError,
    IncompleteCheckpointError,
    MissingFileError,
    RefimplError,
    ResourceLimitError,
    UnsafeCheckpointError,
)
from tests.refimpl.checkpoints.torch_files import (
    FALSE,
    HOOKS,
    KINDS,
    Record,
    call,
    dictionary,
    global_name,
    number,
    numbers,
    padding,
    pickle_of,
    records_of,
    save,
    saved,
    storage,
    tensor,
    write_archive,
)
from tests.refimpl.checkpoints.torch_files import (
    torch_file as whole_file,
)

REPOSITORY = Path(__file__).parents[3]
FIXTURES = REPOSITORY / "golden/checkpoints"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


def opened(path: Path, content: bytes, **options: Any) -> TorchFile:
    path.unlink(missing_ok=True)  # the file before may still be mapped
    path.write_bytes(content)
    return TorchFile(path, **options)


def of_numbers(tensors: dict[str, bytes], storages: dict[str, bytes]) -> bytes:
    return whole_file(pickle_of(dictionary(tensors)), storages)


# --- what is in a file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_every_dtype(path: Path, name: str, mmap: bool) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    bits = np.arange(65536, dtype=np.uint16) if dtype.itemsize == 2 else np.arange(2000, dtype=np.uint16)
    array = (
        (bits % 2).astype(bool) if name == "bool" else np.resize(bits.view(np.uint8), 4096 * 8).view(dtype)
    )
    array = bits.view(dtype) if dtype.itemsize == 2 else array
    file = opened(path, save({"w": array}), mmap=mmap, verify=True)
    assert (file.dtype("w"), file.shape("w"), file.nbytes) == (dtype, array.shape, array.nbytes)
    assert file["w"].dtype == dtype
    assert file["w"].tobytes() == array.tobytes()
    assert not file["w"].flags.writeable


def test_dtypes_without_a_storage_of_their_own(path: Path) -> None:
    array = np.arange(6, dtype=np.uint16)
    of = storage("UntypedStorage", "0", 12, module="torch.storage")

    def rebuilt(dtype: str, size: int) -> bytes:
        parts = (of, number(0), numbers((size,)), numbers((1,)), FALSE, HOOKS, global_name("torch", dtype))
        return call("torch._utils", "_rebuild_tensor_v3", *parts)

    file = opened(
        path, of_numbers({"w": rebuilt("uint16", 6), "x": rebuilt("uint32", 3)}, {"0": array.tobytes()})
    )
    assert file["w"].tolist() == [0, 1, 2, 3, 4, 5]
    assert file["x"].tolist() == array.view(np.uint32).tolist()
    for dtype, size in (("uint16", 7), ("uint32", 4), ("uint64", 2)):
        with pytest.raises(UnsafeCheckpointError, match="ends before the tensor does"):
            opened(path, of_numbers({"w": rebuilt(dtype, size)}, {"0": array.tobytes()}))


def test_a_mapping_in_the_order_of_the_file(path: Path) -> None:
    arrays = {name: np.full((2, index), index, np.float32) for index, name in enumerate("zyx")}
    file = opened(path, save(arrays))
    assert list(file) == ["z", "y", "x"]
    assert len(file) == 3
    assert "z" in file
    assert "a" not in file
    assert file.paths == [path]
    assert file.nbytes == 2 * 3 * 4
    assert all((file[name] == array).all() for name, array in arrays.items())
    for ask in (file.__getitem__, file.shape, file.dtype):
        with pytest.raises(KeyError):
            ask("a")


def test_a_path_may_be_a_text(path: Path) -> None:
    path.write_bytes(save({"w": np.ones(2, np.float32)}))
    assert TorchFile(str(path)).paths == [path]  # type: ignore[arg-type]


def test_shapes_without_numbers_and_without_dimensions(path: Path) -> None:
    arrays = {
        "scalar": np.array(-1e9, np.float32),
        "none": np.zeros((0, 4), np.float16),
        "n": np.zeros((3, 0, 2)),
    }
    file = opened(path, save(arrays))
    assert {name: (file[name].shape, file[name].dtype) for name in file} == {
        name: (array.shape, array.dtype) for name, array in arrays.items()
    }
    assert file["scalar"] == np.float32(-1e9)
    assert not any(file[name].flags.writeable for name in file)


def test_what_is_mapped_is_not_copied(path: Path) -> None:
    file = opened(path, save({"w": np.arange(6, dtype=np.float32)}))
    assert np.shares_memory(file["w"], file["w"])
    assert not file["w"].flags.owndata
    owned = opened(path, save({"w": np.arange(6, dtype=np.float32)}), mmap=False)
    path.write_bytes(b"")
    assert owned["w"].tolist() == [0, 1, 2, 3, 4, 5]


def test_tied_weights_share_their_numbers(path: Path) -> None:
    numbers_of = np.arange(24, dtype=np.float32)
    of = storage("FloatStorage", "0", 24)
    file = opened(
        path,
        of_numbers(
            {
                "embed": tensor(of, 0, (4, 6), (6, 1)),
                "tied": tensor(of, 0, (4, 6), (6, 1)),
                "turned": tensor(of, 0, (6, 4), (1, 6)),
                "row": tensor(of, 6, (6,), (1,)),
                "columns": tensor(of, 2, (4, 2), (6, 2)),
                "repeated": tensor(of, 5, (3, 2), (0, 1)),
                "one": tensor(of, 23, (1, 1, 1), (9, 2**40, 7)),
            },
            {"0": numbers_of.tobytes()},
        ),
        verify=True,
    )
    whole = numbers_of.reshape(4, 6)
    expected = {"embed": whole, "tied": whole, "turned": whole.T, "row": whole[1], "columns": whole[:, 2:5:2]}
    expected |= {"repeated": np.broadcast_to(whole.ravel()[5:7], (3, 2)), "one": whole[3:, 5:, None]}
    for name, array in expected.items():
        assert (file[name] == array).all()
        assert file[name].shape == array.shape
        assert np.shares_memory(file[name], file["embed"])
    assert file.nbytes == 96  # once


def test_numbers_that_are_not_aligned_are_copied(path: Path) -> None:
    array = np.arange(6, dtype=np.float64)
    pickle, storages = saved({"w": array})
    for shift in range(1, 9):
        records = records_of(pickle, storages)
        place = next(index for index, record in enumerate(records) if record.name == "archive/data/0")
        records[place] = Record("archive/data/0", storages["0"], extra=padding(shift))
        file = opened(path, write_archive(records))
        assert file["w"].flags.aligned
        assert not file["w"].flags.writeable
        assert (file["w"] == array).all()


def test_bytes_that_are_no_truth_values(path: Path) -> None:
    of = storage("BoolStorage", "0", 4)
    content = of_numbers(
        {"right": tensor(of, 0, (2,), (1,)), "wrong": tensor(of, 2, (2,), (1,))}, {"0": b"\0\1\1\2"}
    )
    file = opened(path, content)
    assert file["right"].tolist() == [False, True]
    with pytest.raises(CheckpointFormatError, match="'wrong' is of truth values"):
        file["wrong"]


# --- files of torch itself -------------------------------------------------------------------------------


def fixtures(kind: str) -> list[Path]:
    return sorted(FIXTURES.glob(f"{kind}-*.bin"))


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("fixture", fixtures("weights"), ids=lambda path: path.stem)
def test_a_file_of_torch(fixture: Path, mmap: bool) -> None:
    expected = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
    file = TorchFile(fixture, mmap, verify=True)
    assert list(file) == list(expected)
    for name, (dtype, shape, content) in expected.items():
        assert (file[name].dtype.name, list(file[name].shape)) == (dtype, shape), name
        assert file[name].tobytes().hex() == content, name
        assert file[name].flags.aligned, name
    assert np.shares_memory(file["weight"], file["tied"])
    assert np.shares_memory(file["weight"], file["turned"])


def test_there_are_files_of_every_kind_of_torch() -> None:
    versions = {path.stem.removeprefix("weights-") for path in fixtures("weights")}
    assert versions == {"1.6.0", "1.9.1", "1.13.1", "2.6.0", "2.15.0"}
    assert sum(path.stat().st_size for path in FIXTURES.glob("*.bin")) < 30_000


@pytest.mark.parametrize("fixture", fixtures("legacy") + fixtures("script"), ids=lambda path: path.stem)
def test_other_files_of_torch_are_refused(fixture: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match=r"before version 1\.6|TorchScript") as caught:
        TorchFile(fixture)
    assert "torch.save(" in (caught.value.hint or "")


# --- a pickle that lies about the storages -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["FloatStorage", "HalfStorage", "ByteStorage", "DoubleStorage"])
@pytest.mark.parametrize("change", [-1, 1, 2**31, 2**40, 2**62])
def test_a_storage_has_as_many_numbers_as_its_pickle_says(path: Path, kind: str, change: int) -> None:
    """CVE-2026-24747."""
    width = {"FloatStorage": 4, "HalfStorage": 2, "ByteStorage": 1, "DoubleStorage": 8}[kind]
    for size in (6 + change, 6):
        content = bytes(6 * width + (0 if size != 6 else 1 if change > 0 else -1))
        weight = tensor(storage(kind, "0", size), 0, (1,), (1,))
        with pytest.raises(UnsafeCheckpointError, match="does not have the size") as caught:
            opened(path, of_numbers({"w": weight}, {"0": content}))
        assert caught.value.found == f"{len(content)} bytes"


def test_a_storage_that_is_not_there(path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match="no record data/1"):
        opened(
            path, of_numbers({"w": tensor(storage("FloatStorage", "1", 6), 0, (6,), (1,))}, {"0": bytes(24)})
        )


def test_a_storage_that_no_tensor_uses(path: Path) -> None:
    with pytest.raises(UnsafeCheckpointError, match="no tensor uses: data/7"):
        opened(path, whole_file(saved({"w": np.zeros(6, np.float32)})[0], {"0": bytes(24), "7": b"x"}))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (7,), (1,)), (1, (6,), (1,)), (6, (1,), (1,)), (6, (), ()), (0, (2, 3), (4, 1)), (0, (3, 3), (3, 0)),
        (-1, (2,), (1,)), (-1, (), ()), (-1, (0,), (1,)), (0, (2,), (-1,)), (5, (6,), (-1,)), (0, (0,), (-1,)),
        (0, (-1,), (1,)), (0, (-(2**62),), (1,)), (2**63 - 1, (1,), (1,)), (0, (2**40,), (1,)), (0, (2,), (2**62,)),
        (0, (2, 2), (2**63 - 1, 2**63 - 1)), (0, (2**40 + 1, 0), (1, 1)), (0, (2**40, 2**40, 0), (0, 0, 0)),
        (0, (1,) * 9, (1,) * 9),
    ],
)  # fmt: skip
def test_a_tensor_lies_in_its_storage(
    path: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    weight = tensor(storage("FloatStorage", "0", 6), offset, shape, strides)
    with pytest.raises(UnsafeCheckpointError, match=r"'w': (a shape that no weight has|data/0 ends before)"):
        opened(path, of_numbers({"w": weight}, {"0": bytes(24)}))


SIZES = st.lists(st.integers(0, 5), min_size=0, max_size=4)


@settings(max_examples=1000, deadline=None)
@given(data=st.data(), size=st.integers(0, 64), shape=SIZES, offset=st.integers(-2, 70))
def test_layouts_against_a_walk_over_all_places(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, size: int, shape: list[int], offset: int
) -> None:
    """Every element at the place that offset and strides say, or refused if one of them is not in the storage."""
    strides = data.draw(st.lists(st.integers(-2, 20), min_size=len(shape), max_size=len(shape)))
    places = [
        offset + sum(index * stride for index, stride in zip(indices, strides, strict=True))
        for indices in itertools.product(*map(range, shape))
    ]
    fits = (
        offset >= 0 and all(stride >= 0 for stride in strides) and all(0 <= place < size for place in places)
    )
    path = tmp_path_factory.getbasetemp() / "layouts.bin"
    values = np.arange(size, dtype=np.int16)
    content = of_numbers(
        {"w": tensor(storage("ShortStorage", "0", size), offset, shape, strides)}, {"0": values.tobytes()}
    )
    try:
        array = opened(path, content)["w"]
    except UnsafeCheckpointError:
        assert not fits
        return
    assert fits
    assert array.shape == tuple(shape)
    assert array.ravel().tolist() == places
    assert not array.flags.writeable


# --- limits ------------------------------------------------------------------------------------------------


def test_views_may_be_twice_as_large_as_their_numbers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stride of zero makes any shape of four bytes; whoever copies it would need the memory."""
    monkeypatch.setattr(torch_file, "_SMALL", 0)
    of = storage("FloatStorage", "0", 6)

    def views(*sizes: int) -> TorchFile:
        items = {f"w{index}": tensor(of, 0, (size,), (0,)) for index, size in enumerate(sizes)}
        return opened(path, of_numbers(items, {"0": bytes(24)}))

    assert views(12).nbytes == views(6, 5, 1).nbytes == 24
    assert views(3).nbytes == 12
    assert views(6, 6, 6, 6, 6).nbytes == 24  # the same view, by many names
    for sizes in ((13,), (6, 5, 2), (12, 1)):
        with pytest.raises(ResourceLimitError, match="larger than the numbers"):
            views(*sizes)


def test_a_huge_view_of_few_numbers_is_refused(path: Path) -> None:
    with pytest.raises(ResourceLimitError, match="allowed: 2 times the 24 bytes"):
        opened(
            path,
            of_numbers({"w": tensor(storage("FloatStorage", "0", 6), 0, (2**40,), (0,))}, {"0": bytes(24)}),
        )


def test_too_many_tensors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = save({name: np.zeros(2, np.float32) for name in "abc"})
    monkeypatch.setattr(torch_file, "MAX_TENSORS", 3)
    assert len(opened(path, content)) == 3
    monkeypatch.setattr(torch_file, "MAX_TENSORS", 2)
    with pytest.raises(ResourceLimitError, match="too many tensors"):
        opened(path, content)


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """In a process that may have 512 MB: bombs of every kind, and fuzzed files. It never runs out."""
    command = [sys.executable, "-m", "tests.refimpl.checkpoints.feed_bombs", str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["limit"] == 512 << 20
    assert len(report["bombs"]) >= 10
    assert set(report["bombs"].values()) <= {
        "ResourceLimitError",
        "CheckpointFormatError",
        "UnsafeCheckpointError",
    }
    assert report["fuzzed"] >= 2000


# --- the file itself ---------------------------------------------------------------------------------------


def test_files_that_are_not_there_or_no_files(tmp_path: Path, path: Path) -> None:
    with pytest.raises(MissingFileError):
        TorchFile(path)
    with pytest.raises(UnsafeCheckpointError, match="regular file"):
        TorchFile(tmp_path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(IncompleteCheckpointError, match="pointer"):
        TorchFile(path)
    path.write_bytes(b"")
    with pytest.raises(IncompleteCheckpointError, match="empty"):
        TorchFile(path)


def test_what_was_opened_stays_as_it_is_when_opening_another_fails(path: Path, tmp_path: Path) -> None:
    file = opened(path, save({"w": np.arange(6, dtype=np.float32)}))
    before = file["w"].tobytes()
    other = tmp_path / "other.bin"
    for content in (b"", b"PK\3\4", save({"w": np.zeros(3)})[:-1]):
        other.write_bytes(content)
        with pytest.raises(RefimplError):
            TorchFile(other)
    assert file["w"].tobytes() == before


def test_a_large_file_is_opened_without_reading_it(path: Path) -> None:
    """64 MB of numbers, most of them in a hole of the file: only the records' headers are touched."""
    size = 16 << 20
    pickle = pickle_of(
        dictionary({"w": tensor(storage("FloatStorage", "0", size), 0, (4, size // 4), (size // 4, 1))})
    )
    path.write_bytes(whole_file(pickle, {"0": bytes(4 * size)}))
    data = open_bytes(path, True)
    file = TorchFile(path)
    assert file.nbytes == 4 * size < len(data)
    assert file["w"].shape == (4, size // 4)
    assert math.prod(file.shape("w")) == size
