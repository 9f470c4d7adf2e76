"""What all makers of golden vectors share: where things lie, how a case is written, how it is judged.

A vector file is one safetensors file.  Its metadata holds the key `cases`, a JSON list of the cases
whose tensors it carries, so that a file explains itself and `make_manifest.py` only has to collect.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).resolve().parents[1]
REPOSITORY = GOLDEN.parent

#: The command that makes everything again; printed by tests that fail.
COMMAND = "python golden/make/make_all.py"

#: Differences below these are never held against an implementation (relative to the scale).
FLOAT32_FLOOR = 5e-6
FLOAT64_FLOOR = 1e-12
_FLOAT64_STEPS = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)

Tensors = dict[str, np.ndarray]


def write_case_file(path: Path, tensors: Mapping[str, np.ndarray], cases: list[dict[str, Any]]) -> None:
    """Write `tensors` and the `cases` they belong to; the same input gives the same bytes."""
    write_tensors(tensors, path, {"cases": json.dumps(cases, ensure_ascii=False, sort_keys=True)})


def write_tensors(tensors: Mapping[str, np.ndarray], path: Path, metadata: dict[str, str]) -> None:
    """A safetensors file that everyone may read (the library alone makes it private)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    save_file(contiguous, path, metadata=metadata)
    path.chmod(0o644)


def real_rows(name: str, array: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """The part of the output `name` that belongs to real tokens; `real` is [batch, seq]."""
    if real is None or array.ndim < 2:
        return array
    if name.startswith("attentions."):  # [batch, heads, query, key]: judged by the query
        return array.swapaxes(1, 2)[real]
    if name.startswith("past_key_values."):  # [batch, heads, seq, head_dim]
        return array.swapaxes(1, 2)[real]
    return array[real] if array.shape[:2] == real.shape else array


def judge(
    name: str, exact: np.ndarray, single: np.ndarray, real: np.ndarray | None, scale: str
) -> dict[str, Any]:
    """The tolerance of one output, from what the independent float32 run lost against float64.

    `scale` "largest": differences count relative to the largest |value| (at real tokens);
    "element": relative to max(1, |value|), value by value.
    """
    exact, single = real_rows(name, exact, real), real_rows(name, single, real).astype(np.float64)
    largest = float(np.max(np.abs(exact), initial=0.0))
    unit = np.maximum(1.0, np.abs(exact)) if scale == "element" else max(largest, np.finfo(np.float32).tiny)
    measured = float(np.max(np.abs(exact - single) / unit, initial=0.0))
    return {
        "scale": scale,
        "largest": significant(largest),
        "measured_float32": significant(measured),
        "float32": significant(max(FLOAT32_FLOOR, 4 * measured)),
        "float64": significant(max(FLOAT64_FLOOR, 8 * measured * _FLOAT64_STEPS)),
    }


def significant(value: float, digits: int = 4) -> float:
    """`value` rounded up to a few digits, so that the manifest stays readable."""
    if value == 0 or not math.isfinite(value):
        return value
    step = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)
    return float(f"{math.ceil(value / step) * step:.{digits - 1}e}")


def numeric_outputs(
    file: str,
    exact: Mapping[str, np.ndarray],
    single: Mapping[str, np.ndarray],
    real: np.ndarray | None = None,
    scale: str = "largest",
) -> tuple[Tensors, dict[str, Any], dict[str, Any]]:
    """The tensors, the `expected` entry and the `tolerance` entry of outputs computed in both precisions."""
    tensors: Tensors = {}
    for name in exact:
        tensors[f"{name}.float64"], tensors[f"{name}.float32"] = exact[name], single[name]
    outputs = {name: {dtype: f"{name}.{dtype}" for dtype in ("float64", "float32")} for name in exact}
    tolerance = {name: judge(name, exact[name], single[name], real, scale) for name in exact}
    return tensors, {"file": file, "outputs": outputs}, tolerance
