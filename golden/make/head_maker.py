"""What writes the cases of a model with a task head."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from common import numeric_outputs, write_case_file
from head_models import FAMILY, PAD, QUESTION, SEQUENCE, TOKEN, Head, build, float64_twin, run

SPEC = "docs/spec/heads.md"
SOURCE = {
    "kind": "independent",
    "library": "transformers",
    "version": "5.23.0",
    "address": "https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers/models/gpt_neox",
    "command": "python golden/make/make_heads.py",
    "how": "eager attention on CPU, one thread; float32 as the library computes it; float64 is the same code "
    "on a double model, with rotary tables, attention weights and losses in float64 (the library rounds)",
}
REFUSED = {**SOURCE, "how": "the library raises an error too"}

FEATURES = {
    QUESTION: "question-answering",
    SEQUENCE: "sequence-classification",
    TOKEN: "token-classification",
}

Arrays = dict[str, np.ndarray]


class Maker:
    """Writes the cases of one model: runs it in both precisions and stores what came out."""

    def __init__(self, name: str, head: Head, golden: Path):
        self.name, self.golden = name, golden
        self.folder = f"models/{FAMILY}/{name}"
        self.model = build(name, head, golden / self.folder)
        self.exact = float64_twin(self.model)
        self.numbers = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + 1))
        self.feature = FEATURES[head.architecture]

    def ids(self, batch: int, seq: int) -> np.ndarray:
        """Ids that are neither special nor any model's padding."""
        return self.numbers.integers(8, self.model.config.vocab_size, size=(batch, seq), dtype=np.int64)

    def normal(self, *shape: int) -> np.ndarray:
        return self.numbers.standard_normal(shape).astype(np.float32)

    def write(
        self,
        case: str,
        title: str,
        inputs: Arrays,
        wanted: tuple[str, ...] = ("logits",),
        *,
        features: tuple[str, ...] = (),
        real: np.ndarray | None = None,
        **more: Any,
    ) -> tuple[Arrays, Arrays]:
        """One case whose outputs are numbers; `wanted` are prefixes of output names."""
        results = run(self.exact, inputs), run(self.model, inputs)
        exact, single = ({n: a for n, a in r.items() if n.startswith(wanted)} for r in results)
        file = self.file(case)
        tensors, expected, tolerance = numeric_outputs(file, exact, single, real)
        worst = max(entry["measured_float32"] for entry in tolerance.values())
        assert worst < 1e-5, f"{self.name}/{case}: the two precisions did not compute the same"
        if real is not None:
            tensors["real"] = real
            expected["real_tokens"] = "real"
        more |= {"expected": expected, "tolerance": tolerance, "source": SOURCE}
        more["expect"] = {"kind": "return" if real is None else "ignore_rows"}
        self.save(case, title, inputs, tensors, features, more)
        return results

    def refuse(self, case: str, title: str, inputs: Arrays) -> None:
        """One call that must be refused."""
        try:
            run(self.model, inputs)
        except (ValueError, IndexError, RuntimeError):
            more = {"expect": {"kind": "error", "error": "input"}, "source": REFUSED}
            self.save(f"error-{case}", title, inputs, {}, ("errors",), more)
            return
        raise AssertionError(f"{self.name}: the library accepts what the case {case} says is refused")

    def file(self, case: str) -> str:
        return f"vectors/{FAMILY}/{self.name}/{case}.safetensors"

    def save(
        self,
        case: str,
        title: str,
        inputs: Arrays,
        tensors: Arrays,
        features: tuple[str, ...],
        more: dict[str, Any],
    ) -> None:
        file = self.file(case)
        entry = {
            "id": f"{FAMILY}/{self.name}/{case}",
            "title": title,
            "level": "model",
            "operation": "model",
            "features": sorted({self.feature, *features}),
            "required": True,
            "spec": f"{SPEC}#{self.feature}",
            "model": self.folder,
            "inputs": {"file": file, "tensors": {name: name for name in inputs}, "arguments": {}},
            **more,
        }
        write_case_file(self.golden / file, {**inputs, **tensors}, [entry])


def padded(ids: np.ndarray, amounts: list[int], side: str, pad: int = PAD) -> Arrays:
    """`ids` with the first or last `amounts[row]` places of each row made padding, and the mask."""
    mask = np.ones_like(ids)
    for row, amount in enumerate(amounts):
        places = slice(0, amount) if side == "left" else slice(ids.shape[1] - amount, None)
        ids[row, places], mask[row, places] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}
