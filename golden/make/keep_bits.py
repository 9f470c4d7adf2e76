"""Keep the bits of goldens that were made on another CPU: `python golden/make/keep_bits.py BEFORE [--golden FOLDER]`.

Another CPU adds in another order, so that all goldens made again on it differ from those in the repository in their
last bits.  BEFORE is a copy of `golden/` as it was before they were made again.  Every tensor that is the same but for
rounding gets its old bytes back, and its case the numbers that were measured with it; a file in which nothing else
changed is then the old file.  Make the manifest afterwards.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import GOLDEN, Tensors, write_tensors
from safetensors.numpy import load

#: Relative to the largest value of a tensor: far above rounding in that dtype, far below any other change.
ROUNDING = {"float32": 1e-4, "float64": 1e-12}

#: A number that was measured (how far a mistake lies, how clearly a token won) moves by less than this with rounding.
MEASURED = 0.05


def same_but_rounded(old: np.ndarray, new: np.ndarray) -> bool:
    """Whether two tensors differ by rounding alone."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return False
    if old.tobytes() == new.tobytes():
        return True
    allowed = ROUNDING.get(str(new.dtype), 0.0)
    largest = float(np.max(np.abs(new), initial=0.0))
    return float(np.max(np.abs(old - new), initial=0.0)) <= allowed * largest


def kept_numbers(old: dict[str, Any], new: dict[str, Any], kept: set[str]) -> dict[str, Any]:
    """The case `new` with the numbers of `old` that belong to tensors which were kept."""
    merged = dict(new)
    outputs = new.get("expected", {}).get("outputs", {})
    same = {output for output, names in outputs.items() if set(names.values()) <= kept}
    if "tolerance" in new:
        earlier = old.get("tolerance", {})
        merged["tolerance"] = {
            output: earlier[output] if output in same and output in earlier else tolerance
            for output, tolerance in new["tolerance"].items()
        }
    if "detects" in new:
        merged["detects"] = {
            mistake: _measured(old.get("detects", {}).get(mistake), size)
            for mistake, size in new["detects"].items()
        }
    if "smallest_lead" in new:
        merged["smallest_lead"] = _measured(old.get("smallest_lead"), new["smallest_lead"])
    return merged


def _measured(old: float | None, new: float) -> float:
    return old if old is not None and abs(old - new) <= MEASURED * abs(new) else new


def keep(before: Path, path: Path) -> bool:
    """Give `path` back what it has in common with the file `before`.  -> whether anything in it is new"""
    old_bytes, new_bytes = before.read_bytes(), path.read_bytes()
    if old_bytes == new_bytes:
        return False
    old, new = load(old_bytes), load(new_bytes)
    kept = {name for name in old.keys() & new.keys() if same_but_rounded(old[name], new[name])}
    tensors: Tensors = {name: old[name] if name in kept else array for name, array in new.items()}
    metadata = metadata_of(new_bytes)
    if "cases" in metadata:
        earlier = {case["id"]: case for case in json.loads(metadata_of(old_bytes)["cases"])}
        cases = [
            kept_numbers(earlier.get(case["id"], {}), case, kept) for case in json.loads(metadata["cases"])
        ]
        metadata["cases"] = json.dumps(cases, ensure_ascii=False, sort_keys=True)
    write_tensors(tensors, path, metadata)
    return path.read_bytes() != old_bytes


def metadata_of(data: bytes) -> dict[str, str]:
    """The texts in the header of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__", {})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="golden/ as it was")
    parser.add_argument(
        "--golden", type=Path, default=GOLDEN, help="golden/ as it is now (default: this one)"
    )
    given = parser.parse_args()
    changed = [
        path.relative_to(given.golden).as_posix()
        for path in sorted(given.golden.rglob("*.safetensors"))
        if (given.before / path.relative_to(given.golden)).is_file()
        and keep(given.before / path.relative_to(given.golden), path)
    ]
    print(
        "\n".join(
            ["changed beyond rounding:", *changed] if changed else ["nothing changed but the last bits"]
        )
    )


if __name__ == "__main__":
    main()
