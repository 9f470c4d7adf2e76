"""The golden vectors, for tests: find cases, load their tensors (hashes checked), compare results."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_safetensors

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
MANIFEST = GOLDEN / "manifest.json"

Case = dict[str, Any]


@cache
def load_manifest() -> dict[str, Any]:
    """The parsed manifest."""
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def regenerate() -> str:
    """The command that makes all goldens again, for messages."""
    return load_manifest()["generator"]["command"]


@cache
def _files() -> dict[str, dict[str, Any]]:
    return {entry["path"]: entry for entry in load_manifest()["files"]}


def find_cases(
    *, level: str | None = None, operation: str | None = None, feature: str | None = None
) -> list[Case]:
    """The cases of a level, of an operation, with a feature: those that fit all that is given."""
    return [
        case
        for case in load_manifest()["cases"]
        if level in (None, case["level"])
        and operation in (None, case["operation"])
        and (feature is None or feature in case["features"])
    ]


@cache
def read_bytes(path: str) -> bytes:
    """The bytes of a file of the suite, by its path in the manifest.

    Raises: AssertionError when they are not those that the manifest was made of.
    """
    data = (GOLDEN / path).read_bytes()
    found, wanted = hashlib.sha256(data).hexdigest(), _files()[path]["sha256"]
    assert found == wanted, f"golden/{path} is not the file in the manifest; make both again: {regenerate()}"
    return data


@cache
def load_tensors(path: str) -> dict[str, np.ndarray]:
    """All tensors of a vector file."""
    return load_safetensors(read_bytes(path))


def model_folder(case: Case) -> Path:
    """The folder of the case's model."""
    return GOLDEN / case["model"]


def inputs_of(case: Case) -> dict[str, np.ndarray]:
    """The input tensors of a case, by argument."""
    tensors = load_tensors(case["inputs"]["file"])
    return {argument: tensors[name] for argument, name in case["inputs"]["tensors"].items()}


def expected_of(case: Case, output: str, dtype: str = "float64") -> np.ndarray:
    """An expected output; float64 is what results of any dtype are compared with."""
    expected = case["expected"]
    return load_tensors(expected["file"])[expected["outputs"][output][dtype]]


def real_tokens(case: Case) -> np.ndarray | None:
    """[batch, seq] bool, or None where every token is real."""
    name = case["expected"].get("real_tokens")
    return None if name is None else load_tensors(case["expected"]["file"])[name]


def at_real_tokens(array: np.ndarray, output: str, real: np.ndarray | None) -> np.ndarray:
    """`array` with 0 at everything that belongs to padding."""
    if real is None or array.ndim < 2:
        return array
    per_head = output.startswith(("attentions.", "past_key_values."))  # [batch, heads, seq, ...]
    rows = real[:, None] if per_head else real
    return np.where(rows.reshape(rows.shape + (1,) * (array.ndim - rows.ndim)), array, 0)


def check(case: Case, output: str, found: Any, dtype: str) -> None:
    """Compare one output with its golden value, within the tolerance of the case.

    Raises: AssertionError naming the case, the largest difference, its place and the tolerance.
    """
    found, real = np.asarray(found), real_tokens(case)
    tolerance = case["tolerance"][output]
    if tolerance["scale"] == "exact":
        wanted = expected_of(case, output, "int64")
        assert found.tolist() == wanted.tolist(), (
            f"{case['id']}: {output} is\n{found}\nand not\n{wanted}\n{_advice()}"
        )
        return
    wanted = expected_of(case, output)
    where = f"{case['id']}: {output} in {dtype}"
    assert found.shape == wanted.shape, f"{where}: shape {found.shape}, not {wanted.shape}; {_advice()}"
    assert found.dtype == dtype, f"{where}: computed in {found.dtype}"
    assert np.isfinite(found).all(), f"{where}: holds NaN or infinity"
    found = at_real_tokens(found.astype(np.float64), output, real)
    wanted = at_real_tokens(wanted, output, real)
    unit = np.maximum(1.0, np.abs(wanted)) if tolerance["scale"] == "element" else tolerance["largest"] or 1.0
    difference = np.abs(found - wanted) / unit
    worst = float(np.max(difference, initial=0.0))
    if worst > tolerance[dtype]:
        place = tuple(int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
        raise AssertionError(
            f"{where}: the largest difference is {worst:.3g}, relative to the {tolerance['scale']}, "
            f"and {tolerance[dtype]:.3g} is allowed; it is at {list(place)}, where {found[place]!r} was found "
            f"and {wanted[place]!r} wanted; {_advice()}"
        )


def _advice() -> str:
    return f"if the golden itself is stale: {regenerate()}"
