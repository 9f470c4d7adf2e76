"""The model of a trace at hand: in float64 as the oracle, in float32 as the measure of rounding."""

from __future__ import annotations

import json
import warnings
from functools import cached_property
from typing import Any

from refimpl.auto import AutoConfig, class_by_architecture
from refimpl.conformance import steps
from refimpl.conformance.judge import Precision, Yardstick, measured
from refimpl.conformance.trace import Call, Trace, replay
from refimpl.conformance.trace_file import config_hash
from refimpl.errors import InputError, quote


class Oracle:
    """A model that computes the calls of a trace again.

    Args:
        name: folder or Hub id of the model.
        trace: what was recorded; its config must be that of the model.
        weights: the dtype in which the large matrices are kept; None: as in the file.

    Raises: what `from_pretrained` raises, InputError for another model than the trace's, or calls that cannot be
        made again.
    """

    def __init__(self, name: str, trace: Trace, weights: str | None = None):
        self.name, self.trace, self.weights = name, trace, weights
        self.config = AutoConfig.from_pretrained(name, local_files_only=True)
        recorded = trace.about.get("config")
        found = json.loads(json.dumps(self.config.to_dict(), default=str))
        if isinstance(recorded, dict) and config_hash(recorded) != config_hash(found):
            keys = sorted(key for key in {*recorded, *found} if recorded.get(key) != found.get(key))
            raise InputError(
                "this is not the model of the trace: its config differs",
                where=quote(name),
                found=", ".join(keys),
                hint="Name the model of the trace with --model, or compare without one (--no-model).",
            )
        if not trace.calls or not all(call.repeatable for call in trace.calls):
            raise InputError("the calls of this trace cannot be made again", where="A")

    def load(self, dtype: str) -> Any:
        """The model on the NumPy backend."""
        made = class_by_architecture(self.config, self.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the trace was made
            return made.from_pretrained(
                self.name, config=self.config, backend="numpy", dtype=dtype, weight_dtype=self.weights,
                local_files_only=True,
            )  # fmt: skip

    @cached_property
    def model(self) -> Any:
        """In float64."""
        return self.load("float64")

    def computed(self, model: Any, names: list[str]) -> Trace:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return replay(model, self.trace.calls, names)

    @cached_property
    def _both(self) -> tuple[Trace, Trace]:
        steps_of_trace = {steps.split_call(name)[0] for name in self.trace}
        names = [name for name in steps.names_of(self.model) if name in steps_of_trace]
        return self.computed(self.model, names), self.computed(self.load("float32"), names)

    def yardsticks(self, precision: Precision) -> dict[str, Yardstick]:
        """For every step of the trace: the right values, and how far from them `precision` may be."""
        right, own = self._both
        return measured(right.arrays, own.arrays, self.call_of, precision)

    def call_of(self, name: str) -> Call | None:
        number = steps.split_call(name)[1]
        return self.trace.calls[number] if number < len(self.trace.calls) else None
