"""Golden vectors of quantized weights: int8 and NF4 as bitsandbytes stores them, bit for bit.

`python golden/make/make_quantized.py` writes `golden/vectors/quantized/*.safetensors`.  It needs bitsandbytes.

Everything is compared exactly: codes as whole numbers, and float32 numbers by their bits, read as whole
numbers (the outputs whose names end in `_bits`).
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

# The functions that are used are plain tensor programs; compiling them could round in another order.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import bitsandbytes
import numpy as np
import torch
from bitsandbytes import functional
from common import COMMAND, GOLDEN, write_case_file

SPEC = "docs/spec/quantization.md"
NESTED_BLOCKSIZE = 256

Arrays = dict[str, np.ndarray]


def source(how: str) -> dict[str, Any]:
    return {
        "kind": "independent",
        "library": "bitsandbytes",
        "version": "0.50.2",
        "address": "https://github.com/bitsandbytes-foundation/bitsandbytes/tree/0.50.2",
        "command": "python golden/make/make_quantized.py",
        "how": how,
    }


def portable(operation: Any, *arguments: Any) -> Any:
    """An operation of bitsandbytes in its form for any device, not the one written for some processors.

    The one for CPUs looks a value up among 65,536 places where the others find the nearest; and its
    AVX-512 form takes the wrong absmax where rows are no multiple of the block.
    """
    return operation.default._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The bits of float32 numbers as whole numbers from 0 to 2**32 - 1."""
    assert tensor.dtype == torch.float32
    return np.ascontiguousarray(tensor.numpy()).view(np.uint32).astype(np.int64)


def whole(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.int64)


# --- the two formats -----------------------------------------------------------------------------


def int8(weight: torch.Tensor) -> Arrays:
    parameter = bitsandbytes.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    parameter = parameter.to("cpu")
    dense = functional.int8_vectorwise_dequant(parameter.CB, parameter.SCB)
    return {"CB": whole(parameter.CB), "SCB_bits": bits(parameter.SCB), "weight_bits": bits(dense)}


def nf4(weight: torch.Tensor, block: int) -> Arrays:
    packed, absmax = portable(torch.ops.bitsandbytes.quantize_4bit, weight, block, "nf4", torch.uint8)
    return {
        "packed": whole(packed.reshape(-1)),
        "absmax_bits": bits(absmax),
        "weight_bits": bits(widened(packed, absmax, block, weight.shape)),
    }


def nf4_double_quant(weight: torch.Tensor, block: int) -> Arrays:
    """The 8-bit absmaxes, and the numbers that they stand for; the packed weights are those of `nf4`."""
    _, absmax = portable(torch.ops.bitsandbytes.quantize_4bit, weight, block, "nf4", torch.uint8)
    table = functional.create_dynamic_map()
    offset = absmax.double().mean().float()
    codes, nested = portable(
        torch.ops.bitsandbytes.quantize_blockwise, absmax - offset, table, NESTED_BLOCKSIZE
    )
    again = portable(
        torch.ops.bitsandbytes.dequantize_blockwise, codes, nested, table, NESTED_BLOCKSIZE, torch.float32
    )
    return {
        "absmax": whole(codes),
        "nested_absmax_bits": bits(nested),
        "nested_quant_map_bits": bits(table),
        "nested_offset_bits": bits(offset.reshape(1)),
        "scales_bits": bits(again + offset),
    }


def widened(packed: torch.Tensor, absmax: torch.Tensor, block: int, shape: torch.Size) -> torch.Tensor:
    dense = portable(
        torch.ops.bitsandbytes.dequantize_4bit, packed, absmax, block, "nf4", shape, torch.float32
    )
    return dense.reshape(shape)


# --- cases ---------------------------------------------------------------------------------------


class QuantizedMaker:
    def __init__(self, golden: Path):
        self.golden = golden
        self.numbers = np.random.Generator(np.random.PCG64(4))

    def normal(self, *shape: int, scale: float = 0.05) -> np.ndarray:
        return (scale * self.numbers.standard_normal(shape)).astype(np.float32)

    def make(
        self, name: str, title: str, weight: np.ndarray, outputs: Arrays, how: str, **arguments: Any
    ) -> None:
        file = f"vectors/quantized/{name}.safetensors"
        entry = {
            "id": f"quantized/{name}",
            "title": title,
            "level": "op",
            "operation": "quantize",
            "features": ["quantized-weights"],
            "required": True,
            "spec": f"{SPEC}#{arguments['method']}",
            "inputs": {"file": file, "tensors": {"weight": "weight"}, "arguments": arguments},
            "expected": {"file": file, "outputs": {key: {"int64": key} for key in outputs}},
            "tolerance": {key: {"scale": "exact"} for key in outputs},
            "expect": {"kind": "return"},
            "source": source(how),
        }
        write_case_file(self.golden / file, {"weight": weight, **outputs}, [entry])

    def int8(self, name: str, title: str, weight: np.ndarray) -> None:
        how = "bitsandbytes.nn.Int8Params on a CPU; functional.int8_vectorwise_dequant"
        self.make(name, title, weight, int8(torch.from_numpy(weight.copy())), how, method="int8")

    def nf4(self, name: str, title: str, weight: np.ndarray, block: int = 64, double: bool = False) -> None:
        how = "quantize_4bit and dequantize_4bit in their portable form"
        if double:
            how += "; quantize_blockwise likewise; the mean is added up in float64"
        tensor = torch.from_numpy(weight.copy())
        outputs = nf4_double_quant(tensor, block) if double else nf4(tensor, block)
        self.make(
            name, title, weight, outputs, how,
            method="nf4", block=block, double_quant=double,
        )  # fmt: skip


def int8_cases(make: QuantizedMaker) -> None:
    make.int8("int8", "Rows of ordinary weights", make.normal(5, 24))
    half = make.normal(4, 17, scale=3.0).astype(np.float16)
    make.int8("int8-float16", "A float16 matrix", half)
    ties = np.stack([np.arange(-12, 12) + 0.5, np.arange(24) + 0.5, np.zeros(24)]).astype(np.float32)
    ties[:2, 0] = (127, -127)
    make.int8("int8-ties", "Halves between two codes go to the even one; a row of zeros", ties)
    spread = make.normal(6, 20) * np.float32(10.0) ** make.numbers.integers(-8, 4, (6, 1)).astype(np.float32)
    make.int8("int8-small", "Rows so small that float16 keeps few digits of them", spread)


def nf4_cases(make: QuantizedMaker) -> None:
    make.nf4("nf4", "Rows of two whole blocks", make.normal(3, 128))
    make.nf4("nf4-float16", "A float16 matrix", make.normal(2, 64).astype(np.float16))
    make.nf4(
        "nf4-across-rows", "Blocks that begin and end within rows; the last is not full", make.normal(5, 44)
    )
    make.nf4("nf4-odd", "An odd number of weights: half of the last byte is empty", make.normal(7, 11))
    make.nf4("nf4-block-32", "Blocks of 32", make.normal(3, 80), block=32)
    zeros = make.normal(4, 80)
    zeros.reshape(-1)[64:128] = zeros.reshape(-1)[256:] = 0
    make.nf4("nf4-zeros", "A whole block of zeros, and a last one that is not full", zeros)
    code = functional.get_4bit_type("nf4", device="cpu").numpy()
    middle = (code[:-1] + code[1:]) / np.float32(2)
    steps = [np.nextafter(middle, np.float32(side)) for side in (-2, 2)]
    ties = np.concatenate([code, middle, *steps, [-1, 0, -0.0]]).astype(np.float32)
    make.nf4("nf4-ties", "The 16 values, the middles between them, and the next numbers", ties[None])
    title = (
        "Weights whose code depends on how they are divided: a whole block by the reciprocal, the rest not"
    )
    make.nf4("nf4-division", title, near_ties(middle, 64, 40)[None])


def near_ties(middle: np.ndarray, whole: int, rest: int) -> np.ndarray:
    """Two blocks, of `whole` and `rest` weights, in which the product with 1 / absmax and the quotient differ
    most often in the side of a middle on which they lie."""
    found: dict[float, list[np.float32]] = {}
    for absmax in np.arange(1.0, 2.0, 1 / 1024, dtype=np.float32):
        values = [np.nextafter(absmax * middle, np.float32(side)) for side in (-9, 9)] + [absmax * middle]
        for value in np.concatenate(values).astype(np.float32):
            product, quotient = value * (np.float32(1) / absmax), value / absmax
            if np.searchsorted(middle, product) != np.searchsorted(middle, quotient):
                found.setdefault(float(absmax), []).append(value)
    absmax = max(found, key=lambda key: len(found[key]))
    row = np.resize(np.array([np.float32(absmax), *found[absmax]]), whole + rest)
    row[whole] = absmax
    return row


def double_quant_cases(make: QuantizedMaker) -> None:
    scales = make.numbers.uniform(0.5, 2.0, (300, 1)).astype(np.float32)
    weight = (make.normal(300, 32, scale=0.04) * scales).astype(np.float16)
    make.nf4(
        "nf4-double-quant", "300 absmaxes: one whole nested block and a part", weight, block=32, double=True
    )
    make.nf4(
        "nf4-double-quant-one", "A single block: its absmax is the mean", make.normal(2, 20), double=True
    )


def make_quantized(golden: Path = GOLDEN) -> None:
    torch.set_num_threads(1)
    shutil.rmtree(golden / "vectors" / "quantized", ignore_errors=True)
    make = QuantizedMaker(golden)
    int8_cases(make)
    nf4_cases(make)
    double_quant_cases(make)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--golden", type=Path, default=GOLDEN, help="where to write (default: this folder's parent)"
    )
    make_quantized(parser.parse_args().golden)
    print(f"done; {COMMAND} also makes the rest and the manifest")


if __name__ == "__main__":
    main()
