"""The examples of the suite: readers in C, and an engine in C that is written from the suite's pages alone."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from refimpl.conformance.process import Limits
from refimpl.conformance.results import count
from refimpl.conformance.runner import run_engine
from refimpl.conformance.selection import select
from refimpl.conformance.suite import Suite
from tests.goldens import GOLDEN, find_cases

EXAMPLES = GOLDEN / "examples"
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")

Compile = Callable[..., Path]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles these sources into a program, without a warning."""
    folder = tmp_path_factory.mktemp("programs")

    def make(*sources: str) -> Path:
        program = folder / sources[0].removesuffix(".c")
        flags = ["-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", "-o", program]
        subprocess.run([COMPILER, *flags, *(EXAMPLES / name for name in sources), "-lm"], check=True)
        return program

    return make


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite(GOLDEN)


def test_the_reader_shows_a_case(compiled: Compile, suite: Suite) -> None:
    program = compiled("read_suite.c", "json.c", "tensors.c")
    for case in ("ops/layer-norm", "gpt_neox/small/greedy"):
        shown = subprocess.run([program, GOLDEN, case], capture_output=True, text=True, check=True).stdout
        expected = suite.case(case)["expected"]
        (output,) = expected["outputs"]
        names = expected["outputs"][output]
        wanted = suite.tensors(expected["file"])[names.get("float64", names.get("int64"))]
        numbers = " ".join(f"{number:.6g}" for number in wanted.reshape(-1)[:6])
        assert f"expected {output}: {list(wanted.shape)}: {numbers}" in shown
    assert subprocess.run([program, GOLDEN, "ops/nothing"], capture_output=True).returncode == 1


def test_the_engine_passes_the_levels_op_and_layer(compiled: Compile, suite: Suite) -> None:
    program = compiled("engine.c", "model.c", "operations.c", "tensors.c", "json.c")
    cases = select(suite, levels=["op", "layer"])
    measured = run_engine(suite, cases, [str(program)], limits=Limits(seconds=20), jobs=2)
    lacking = len(find_cases(operation="quantize")) + len(find_cases(operation="process_scores"))
    assert count(measured.results) == {"pass": len(cases) - lacking, "unsupported": lacking}
    assert len(cases) - lacking >= 92


@pytest.mark.parametrize(
    "line",
    ["", "nonsense", "{", "[1]", '{"id": 5, "operation": "linear", "tensors": {"x": {"file": "/nothing"}}}'],
)
def test_the_engine_outlives_what_it_does_not_understand(line: str, compiled: Compile) -> None:
    program = compiled("engine.c", "model.c", "operations.c", "tensors.c", "json.c")
    hello = '{"id": 9, "operation": "hello", "protocol": 1}'
    shown = subprocess.run([program], input=f"{line}\n{hello}\n", capture_output=True, text=True, check=True)
    first, second = shown.stdout.splitlines()
    assert "unsupported" in first
    assert '"id": 9, "protocol": 1' in second
