"""The sources of the kernels, compiled by the CUDA compiler for GPUs that they are written for.  Needs nvcc, no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from refimpl.backends.cupy import attention, elementwise, modules, products

KERNELS = Path(modules.__file__).parent / "kernels"
FILES = sorted(path.stem for path in KERNELS.glob("*.cu"))
CAPABILITIES = (70, 80, 90)

#: What nvcc compiles in a moment: one of each kind. All are compiled with REFIMPL_KERNELS=all (`make check-long`).
TYPICAL = (
    *("matvec<float16, 1, 4, 2>", "matvec<nf4, 8, 4, 2>"),  # before sm_80
    *("matvec<float16, 1, 4, 4>", "matvec<nf4, 8, 4, 4>", "widen_rows<bfloat16, float, true>"),
    *("layer_norm<float16, 1>", "activate<gelu, float, true>"),
    *("merge<256>", "decode<float16, 16, 1, 1, true>", "prefill<bfloat16, 128, 2, 64>"),
    "prefill_plain<float, 128, 64>",
)

ALL = os.environ.get("REFIMPL_KERNELS") == "all"

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, of the CUDA toolkit")


def instances(capability: int) -> dict[str, list[str]]:
    """file -> the expressions that are compiled, of those that can be asked for."""
    found: dict[str, list[str]] = {file: [] for file in FILES}
    for module in (products, elementwise, attention):
        for file, expression in module.instances(capability):
            if ALL or expression in TYPICAL:
                found[file].append(expression)
    return found


def resources(text: str) -> dict[str, tuple[int, int]]:
    """What the assembler says: mangled name -> (registers, bytes of local memory that registers went to)."""
    found: dict[str, tuple[int, int]] = {}
    for name, spilt, registers in re.findall(
        r"Function properties for (\w+)\n.*?(\d+) bytes spill stores.*?Used (\d+) registers", text, re.DOTALL
    ):
        found[name] = int(registers), int(spilt)
    return found


@pytest.fixture(scope="module", params=CAPABILITIES)
def compiled(request, tmp_path_factory):
    """capability, and what the assembler says of every instance of each file."""
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    if f"compute_{request.param}\n" not in known:
        pytest.skip(f"this nvcc does not compile for sm_{request.param}")
    folder = tmp_path_factory.mktemp("cubins")
    said = {}
    for file, expressions in instances(request.param).items():
        source = folder / f"{file}.cu"
        # Who takes the address of an instance has it compiled.
        table = "".join(f"    (const void*)&{expression},\n" for expression in expressions)
        source.write_text(
            f"{modules.source(file)}\nconst void* instances[] = {{\n{table}}};\n", encoding="utf-8"
        )
        command = ["nvcc", "-std=c++17", f"-arch=sm_{request.param}", "-cubin", "-Xptxas", "-v"]
        result = subprocess.run(
            [*command, "-o", str(folder / f"{file}.cubin"), str(source)], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        said[file] = resources(result.stdout + result.stderr)
    return request.param, said


def test_every_source_has_a_typical_instance():
    """A source that nobody asks for would be compiled by no test."""
    modules_of_kernels = (products, elementwise, attention)
    asked = {
        name for module in modules_of_kernels for number in (70, 90) for name in module.instances(number)
    }
    assert {file for file, name in asked if name in TYPICAL} == set(FILES)
    assert {name for _, name in asked} >= set(TYPICAL)


@needs_nvcc
def test_every_instance_compiles(compiled):
    capability, said = compiled
    for file, expressions in instances(capability).items():
        assert len(said[file]) == len(set(expressions)), file


@needs_nvcc
def test_what_is_in_registers_stays_there(compiled):
    _, said = compiled
    for file, found in said.items():
        assert not [name for name, (_, spilt) in found.items() if spilt], file


@needs_nvcc
def test_products_leave_room_for_blocks_beside_them(compiled):
    """Two blocks of 256 threads in a multiprocessor, three where the rows are fewest."""
    _, said = compiled
    few = {name: registers for name, (registers, _) in said["products"].items() if "matvec" in name}
    one_row = [registers for name, registers in few.items() if re.search(r"6matvecI\w+?Li1ELi4ELi\dE", name)]
    assert (len(few), len(one_row)) == ((40, 5) if ALL else (2, 1))
    assert max(few.values()) <= 128
    assert max(one_row) <= 80


def test_headers_are_pasted_once():
    for file in FILES:
        text = modules.source(file)
        assert "#include" not in text
        assert text.count("// device.cuh begin\n") == text.count("// device.cuh end\n") == 1


def test_inline_assembly_stands_in_one_header():
    for path in KERNELS.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.name != "device.cuh":
            assert not re.search(r"\basm\b|__shfl|__ballot|__any_sync|__all_sync", text), path.name
