"""What torch writes is read bit for bit, and what is read here is what torch reads from the same bytes."""

from __future__ import annotations

import io
import os
import random
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refimpl.checkpoints.torch_file import TorchFile
from refimpl.errors import CheckpointFormatError, RefimplError, UnsafeCheckpointError
from tests.fuzz.read_torch import READERS
from tests.refimpl.checkpoints import torch_files as made

torch = pytest.importorskip("torch")

FUZZED = int(os.environ.get("REFIMPL_TORCH_FILES", "3000"))
DTYPES = [
    *(
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
    ),
    *(torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


def bits(tensor: Any) -> bytes:
    """The bytes of the elements, row by row: NaN and -0 are what they are."""
    plain = tensor.detach().clone(memory_format=torch.contiguous_format)
    return b"" if plain.numel() == 0 else plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def check(file: TorchFile, expected: dict[str, Any]) -> None:
    assert list(file) == list(expected)
    for name, tensor in expected.items():
        array = file[name]
        assert (array.dtype.name, array.shape) == (
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
        ), name
        assert file.shape(name) == array.shape
        assert array.tobytes() == bits(tensor), name
        assert array.flags.aligned
        assert not array.flags.writeable


def saved(path: Path, state_dict: Any, **options: Any) -> TorchFile:
    path.unlink(missing_ok=True)
    torch.save(state_dict, path, **options)
    return TorchFile(path, verify=True)


def random_bits(dtype: Any, count: int, seed: int) -> Any:
    """Any bits of a dtype: NaN, infinities, subnormal numbers, both zeros."""
    draw = np.random.default_rng(seed)
    raw = torch.from_numpy(
        draw.integers(0, 2 if dtype == torch.bool else 256, count * dtype.itemsize, dtype=np.uint8)
    )
    return raw.view(dtype) if count else torch.empty(0, dtype=dtype)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(path: Path, dtype: Any, mmap: bool) -> None:
    tensors = {f"t{n}": random_bits(dtype, n * n, n).reshape(n, n) for n in range(40)}
    torch.save(tensors, path)
    check(TorchFile(path, mmap, verify=True), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half(path: Path, dtype: Any) -> None:
    halves = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.int16)).view(dtype)
    check(saved(path, {"all": halves}), {"all": halves})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_state_dict_of_modules(path: Path, protocol: int) -> None:
    """With `_metadata`, tied weights, buffers and more than 256 places in the memo."""
    layers = [torch.nn.TransformerEncoderLayer(8, 2, 16) for _ in range(6)]
    module = torch.nn.Sequential(*layers, torch.nn.BatchNorm1d(3), torch.nn.Linear(8, 8))
    module[-1].weight = layers[0].linear1.weight
    for state_dict in (
        module.state_dict(),
        module.state_dict(keep_vars=True),
        dict(module.named_parameters()),
    ):
        check(saved(path, state_dict, pickle_protocol=protocol), state_dict)


def test_a_model_of_transformers(path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    state_dict = transformers.GPTNeoXForCausalLM(config).half().state_dict()
    check(saved(path, state_dict), state_dict)


def test_what_is_shared_is_shared(path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": whole, "tied": whole, "turned": whole.t(), "row": whole[1], "columns": whole[:, 2:5:2],
        "last": whole[3, 5], "flat": whole.flatten(), "none": whole[2:2], "beyond": whole[4:, 6:],
        "diagonal": whole.diagonal(), "repeated": whole[:1].expand(3, 6),
        "windows": whole.flatten().unfold(0, 4, 2), "p": torch.nn.Parameter(whole),
    }  # fmt: skip
    file = saved(path, tensors)
    check(file, tensors)
    assert file.nbytes == 96
    assert all(np.shares_memory(file[name], file["whole"]) for name in tensors if tensors[name].numel())


def views(draw: random.Random, tensor: Any) -> Iterator[Any]:
    """Views of views, as torch allows them."""
    for _ in range(draw.randrange(5) if tensor.dim() else 0):
        axis = draw.randrange(tensor.dim())
        size, kind = tensor.shape[axis], draw.randrange(5)
        start = draw.randrange(size + 1)
        if kind == 0:
            tensor = tensor.transpose(axis, draw.randrange(tensor.dim()))
        elif kind == 1:
            tensor = tensor.narrow(axis, start, draw.randrange(size - start + 1))
        elif kind == 2:
            tensor = tensor[(slice(None),) * axis + (slice(start, None, draw.randrange(1, 4)),)]
        elif kind == 3:
            tensor = tensor.unsqueeze(axis)
        elif size and tensor.dim() > 1:
            tensor = tensor.select(axis, draw.randrange(size))
        yield tensor


@pytest.mark.parametrize("seed", range(100))
def test_random_views(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    tensors = {}
    for number in range(draw.randrange(1, 6)):
        shape = [draw.randrange(6) for _ in range(draw.randrange(4))]
        base = random_bits(draw.choice(DTYPES), int(np.prod(shape)), seed + number).reshape(shape)
        for index, view in enumerate([base, *views(draw, base)]):
            tensors[f"{number}.{index}"] = (
                torch.nn.Parameter(view) if view.is_floating_point() and index % 2 else view
            )
    state_dict = OrderedDict(tensors) if seed % 2 else tensors
    check(saved(path, state_dict, pickle_protocol=draw.choice((2, 2, 2, 4))), tensors)


def test_thousands_of_tensors(path: Path) -> None:
    tensors = {f"layers.{n}.attention.query_key_value.weight": torch.full((1,), n) for n in range(20_000)}
    file = saved(path, tensors)
    assert len(file) == 20_000
    assert all(file[name][0] == n for n, name in enumerate(tensors))


def test_the_settings_of_torch_save(path: Path, tmp_path: Path) -> None:
    from torch.utils.serialization import config

    tensors = {"w": torch.arange(7.0), "b": torch.ones(3, dtype=torch.float64)}
    before = config.save.storage_alignment
    try:
        for alignment in (1, 8, 64, 4096, 16384):
            config.save.storage_alignment = alignment
            check(saved(path, tensors), tensors)
    finally:
        config.save.storage_alignment = before
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, path)
    finally:
        torch.serialization.set_crc32_options(True)
    check(TorchFile(path), tensors)
    with pytest.raises(CheckpointFormatError, match="without checksums"):
        TorchFile(path, verify=True)
    check(saved(path, tensors, _disable_byteorder_record=True), tensors)
    check(saved(tmp_path / "重み 1.bin", tensors), tensors)
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    path.write_bytes(buffer.getvalue())
    check(TorchFile(path, verify=True), tensors)


def test_a_file_without_numbers_is_noticed_when_verified(path: Path) -> None:
    with torch.serialization.skip_data():
        torch.save({"w": torch.arange(7.0)}, path)
    assert TorchFile(path)["w"].shape == (7,)
    with pytest.raises(CheckpointFormatError, match="checksum"):
        TorchFile(path, verify=True)


# --- what is refused --------------------------------------------------------------------------------------


class Evil:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


WEIGHT = torch.ones(2, 2)
REFUSED = {
    "a module": torch.nn.Linear(2, 2),
    "sparse": {"w": WEIGHT.to_sparse()},
    "complex": {"w": WEIGHT.to(torch.complex64)},
    "negated": {"w": WEIGHT.to(torch.complex64).conj().imag},
    "8 bits": {"w": WEIGHT.to(torch.float8_e4m3fn)},
    "meta": {"w": WEIGHT.to("meta")},
    "an attribute": {"w": WEIGHT, "x": np.ones(2)},
    "a number of NumPy": {"w": WEIGHT, "x": np.float32(1)},
    "a path": {"w": WEIGHT, "x": Path("x")},
    "a list": [WEIGHT],
    "a set": {"w": WEIGHT, "x": {1}},
    "bytes": {"w": WEIGHT, "x": b"x"},
    "a device": {"w": WEIGHT, "x": torch.device("cpu")},
    "a tensor": WEIGHT,
    "a number": {"w": WEIGHT, "x": 1},
    "a number as key": {1: WEIGHT},
    "nothing": None,
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_other_things_are_refused(path: Path, name: str) -> None:
    torch.save(REFUSED[name], path)
    with pytest.raises((UnsafeCheckpointError, CheckpointFormatError)):
        TorchFile(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_object_that_runs_a_program(path: Path, tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    for state_dict in (
        {"w": WEIGHT, "x": Evil(canary)},
        OrderedDict(w=Evil(canary)),
        Evil(canary),
        {Evil(canary): WEIGHT},
    ):
        torch.save(state_dict, path, pickle_protocol=protocol)
        with pytest.raises(UnsafeCheckpointError, match="mkdir"):
            TorchFile(path)
        assert not canary.exists()
    torch.load(path, weights_only=False) if protocol == 2 else None
    assert canary.exists() == (protocol == 2)  # it would have been run


def test_formats_before_1_6_and_programs(path: Path) -> None:
    torch.save({"w": WEIGHT}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsafeCheckpointError, match=r"before version 1\.6"):
        TorchFile(path)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_torchscript(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(UnsafeCheckpointError, match="TorchScript"):
        TorchFile(path)


@pytest.mark.parametrize("name", ["state_dict", "model", "module"])
def test_the_state_of_a_training(path: Path, name: str) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    whole = {"epoch": 3, "loss": 0.25, name: model.state_dict(), "optimizer": optimizer.state_dict()}
    for training in (
        whole,
        {name: model.state_dict()},
        {name: model.state_dict(), "optimizer": optimizer.state_dict()},
    ):
        torch.save(training, path)
        with pytest.raises((UnsafeCheckpointError, CheckpointFormatError)) as caught:
            TorchFile(path)
        if next(iter(training)) == name:
            assert f"torch.load(path, weights_only=True)['{name}']" in (caught.value.hint or "")


def test_a_parameter_with_attributes(path: Path) -> None:
    """torch sets what the file says, and so can read other numbers than those of the tensor."""
    parameter = torch.nn.Parameter(WEIGHT)
    parameter.tensor_model_parallel = True
    torch.save({"w": parameter}, path)
    with pytest.raises(UnsafeCheckpointError) as caught:
        TorchFile(path)
    assert "torch.save(model.state_dict(), path)" in (caught.value.hint or "")
    shown, hidden = (made.tensor(made.storage("FloatStorage", key, 2), 0, (2,), (1,)) for key in ("0", "1"))
    storages = {"0": np.array([1, 1], np.float32).tobytes(), "1": np.array([7, 7], np.float32).tobytes()}
    for name, value, read in (("data", hidden, [7, 7]), ("real", made.number(0), [0, 0])):
        arguments = (shown, made.FALSE, made.HOOKS, made.dictionary({name: value}))
        lie = made.call("torch._utils", "_rebuild_parameter_with_state", *arguments)
        content = made.torch_file(made.pickle_of(made.dictionary({"w": lie, "x": hidden})), storages)
        path.write_bytes(content)
        assert torch.load(path, weights_only=True)["w"].tolist() == read
        with pytest.raises(UnsafeCheckpointError, match="_rebuild_parameter_with_state"):
            TorchFile(path)


# --- and torch agrees ---------------------------------------------------------------------------------------


def test_what_is_read_from_broken_files_is_what_torch_reads(path: Path) -> None:
    """Never the other way round: torch also reads what is refused here."""
    (reader,) = READERS
    accepted = 0
    for number in range(FUZZED):
        content = reader.input(number)[path.name]
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            file = TorchFile(path)
            arrays = {name: file[name] for name in file}
        except RefimplError:
            continue
        accepted += 1
        # Its own reader of weights lacks opcodes of protocol 4; Python's has all of them, and no more to run here.
        careful = b"\x80\2" in content[:80]
        theirs = torch.load(io.BytesIO(content), map_location="cpu", weights_only=careful)
        assert list(arrays) == list(theirs), f"input {number}"
        for name, array in arrays.items():
            assert array.shape == tuple(theirs[name].shape), f"input {number}"
            assert array.tobytes() == bits(theirs[name]), f"input {number}"
    assert accepted > FUZZED // 20
