"""Files of `torch.save` as the versions of torch write them, for the reader of `pytorch_model.bin`.

Each version runs in an environment of its own (1.6.0 and 1.9.1 need Python 3.8, 1.13.1 and 2.6.0 take 3.10, the newest
3.11 or later), and writes the file of its version:

    python3.8 -m venv .venv-torch && .venv-torch/bin/pip install torch==1.6.0 numpy
    .venv-torch/bin/python golden/make/make_checkpoints.py

`golden/checkpoints/weights-VERSION.bin` is an OrderedDict of a tensor of every dtype, with shared storages, strides,
a Parameter and `_metadata`. `expected.json` says what is in it, the same for all versions: {name: [dtype, shape, the
bytes in hexadecimal, row by row]}. `legacy-VERSION.bin` and `script-VERSION.bin` are what a reader has to refuse: the
format before 1.6, and a TorchScript archive; only `--refused` writes them.

The weights are not random, so a file that is made again has the same bytes. The exceptions are the keys of storages
in 1.6.0, which are addresses, and `.data/serialization_id` of some versions.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parents[1] / "checkpoints"
DTYPES = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def weights() -> OrderedDict:
    """A state dict with everything that one can hold."""
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8 - 1
    tensors = OrderedDict(weight=whole, tied=whole, turned=whole.t(), row=whole[1], columns=whole[:, 2:5:2])
    tensors["parameter"] = torch.nn.Parameter(torch.tensor([1.5, -2.0]))
    for index, name in enumerate(DTYPES):
        tensors[name] = torch.tensor([0, 1, index]).to(getattr(torch, name))
    tensors["scalar"] = torch.tensor(-1e9)
    tensors["empty"] = torch.zeros(0, 4)
    tensors._metadata = OrderedDict([("", {"version": 1}), ("attention", {"version": 2})])
    return tensors


def content(tensor: torch.Tensor) -> str:
    """The bytes of the elements, row by row, little-endian."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # NumPy has none: the upper half of each float32
        return tensor.float().numpy().view("<u2")[1::2].tobytes().hex()
    return tensor.numpy().tobytes().hex()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--refused", action="store_true", help="write legacy-*.bin and script-*.bin too")
    refused = parser.parse_args().refused
    version = torch.__version__.split("+")[0]
    FOLDER.mkdir(exist_ok=True)
    tensors = weights()
    torch.save(tensors, str(FOLDER / f"weights-{version}.bin"))
    expected = {
        name: [str(tensor.dtype).replace("torch.", ""), list(tensor.shape), content(tensor)]
        for name, tensor in tensors.items()
    }
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in expected.items())
    written = "{\n" + lines + "\n}\n"
    path = FOLDER / "expected.json"
    if path.exists():
        assert path.read_text(encoding="utf-8") == written, "the versions do not hold the same weights"
    path.write_text(written, encoding="utf-8")
    if refused:
        small = OrderedDict(weight=torch.ones(2))
        old = str(FOLDER / f"legacy-{version}.bin")
        torch.save(small, old, _use_new_zipfile_serialization=False)
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(FOLDER / f"script-{version}.bin"))


if __name__ == "__main__":
    main()
