"""What writes the cases of a model: it runs the model in both precisions and stores what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import oracle
from common import numeric_outputs, real_rows, significant, write_case_file
from families import family_of
from mistakes import MISTAKES

#: A mistake is recorded if its logits lie this many float32 tolerances away, and named if they lie so many.
RECORDED, NAMED = 100, 10

#: Larger logits are not recorded, so that the suite stays small; the same mistakes are recorded with shorter texts.
LARGEST_RECORDED = 16_000  # bytes


@dataclass
class Maker:
    """Writes the cases of one model; `lengths` are sizes of inputs that differ from the usual ones.

    source: where the numbers come from, if not simply from the library.
    required: whether a program has to be able to read the model's files.
    """

    name: str
    model: Any
    folder: str
    golden: Path
    features: tuple[str, ...] = ()
    lengths: dict[str, int] = field(default_factory=dict)
    source: dict[str, Any] | None = None
    required: bool = True

    def __post_init__(self) -> None:
        self.family = family_of(self.model)
        self.exact = oracle.float64_twin(self.model)
        self.numbers = np.random.Generator(np.random.PCG64(7))
        oracle.check_rotary(self.model)

    @property
    def limit(self) -> int:
        """The length beyond which the scaling of rotary positions is meant for."""
        return self.exact.base_model.rotary_emb.limit

    def ids(self, batch: int, seq: int) -> np.ndarray:
        return self.numbers.integers(3, self.model.config.vocab_size - 1, size=(batch, seq), dtype=np.int64)

    def both(self, inputs: dict[str, np.ndarray], keep: Any = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        return oracle.run(self.exact, inputs, keep), oracle.run(self.model, inputs, keep)

    def write(
        self,
        case: str,
        title: str,
        inputs: dict[str, np.ndarray],
        results: tuple[dict[str, np.ndarray], dict[str, np.ndarray]],
        wanted: tuple[str, ...] = ("logits",),
        *,
        operation: str = "model",
        level: str = "model",
        features: tuple[str, ...] = (),
        arguments: dict[str, Any] | None = None,
        real: np.ndarray | None = None,
        wrong: Mapping[str, np.ndarray] | None = None,
        **more: Any,
    ) -> None:
        """One case whose outputs are numbers; `wanted` are prefixes of output names.

        wrong: mistake -> its logits; those that show clearly are recorded with the case.
        """
        exact, single = ({n: a for n, a in r.items() if n.startswith(wanted)} for r in results)
        file = self.family.vector_file(self.name, case)
        tensors, expected, tolerance = numeric_outputs(file, exact, single, real)
        if operation == "layers":
            expected["order"] = list(exact)
        if real is not None:
            tensors["real"] = real
            expected["real_tokens"] = "real"
        if wrong:
            recorded, detects = self.judge_mistakes(case, wrong, exact["logits"], tolerance["logits"], real)
            tensors |= {f"wrong.{name}.logits": wrong[name] for name in recorded}
            named = {"detects": detects, "wrong": {name: f"wrong.{name}.logits" for name in recorded}}
            more |= {key: found for key, found in named.items() if found}
        more |= {"expected": expected, "tolerance": tolerance}
        more["expect"] = {"kind": "return" if real is None else "ignore_rows"}
        self.save(case, title, file, inputs, tensors, operation, level, features, arguments or {}, more)

    def judge_mistakes(
        self,
        case: str,
        wrong: Mapping[str, np.ndarray],
        right: np.ndarray,
        tolerance: dict[str, Any],
        real: np.ndarray | None,
    ) -> tuple[list[str], dict[str, float]]:
        """The mistakes to record, and how far those that show lie from the right logits, by their sentence."""
        small, right = right.nbytes <= LARGEST_RECORDED, real_rows("logits", right, real)
        distance = {
            name: float(np.max(np.abs(real_rows("logits", logits, real) - right)) / np.max(np.abs(right)))
            for name, logits in wrong.items()
        }
        recorded = [
            name for name, size in distance.items() if small and size >= RECORDED * tolerance["float32"]
        ]
        named = [name for name, size in distance.items() if size >= NAMED * tolerance["float32"]]
        return recorded, {MISTAKES[name]: significant(distance[name], 2) for name in named}

    def write_ids(
        self, case: str, title: str, inputs: dict[str, np.ndarray], ids: np.ndarray, **more: Any
    ) -> None:
        """One case whose output is a row of ids, to be met exactly."""
        file = self.family.vector_file(self.name, case)
        arguments, features = more.pop("arguments"), more.pop("features", ())
        more |= {
            "expected": {"file": file, "outputs": {"sequences": {"int64": "sequences"}}},
            "tolerance": {"sequences": {"scale": "exact"}},
            "expect": {"kind": "return"},
        }
        tensors = {"sequences": ids}
        self.save(case, title, file, inputs, tensors, "generate", "generation", features, arguments, more)

    def save(
        self,
        case: str,
        title: str,
        file: str,
        inputs: dict[str, np.ndarray],
        tensors: dict[str, np.ndarray],
        operation: str,
        level: str,
        features: tuple[str, ...],
        arguments: dict[str, Any],
        more: dict[str, Any],
    ) -> None:
        if self.longest(inputs, arguments) > self.model.config.max_position_embeddings:
            features = (*features, "beyond-max-position-embeddings")
        entry = {
            "id": f"{self.family.name}/{self.name}/{case}",
            "title": title,
            "level": level,
            "operation": operation,
            "features": sorted({*self.features, *features}),
            "required": self.required,
            "spec": self.family.spec,
            "model": self.folder,
            "inputs": {"file": file, "tensors": {name: name for name in inputs}, "arguments": arguments},
            "source": self.source or self.family.source,
            **more,
        }
        write_case_file(self.golden / file, {**inputs, **tensors}, [entry])

    @staticmethod
    def longest(inputs: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> int:
        """The length of the longest text that the model reads in the case."""
        given = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]
        return given.shape[1] + max(0, arguments.get("max_new_tokens", 1) - 1)  # the last token is not read
