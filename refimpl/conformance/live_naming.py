"""Naming a mistake that the suite has no numbers of: the model is loaded here, and each classic mistake is computed.

Only for cases that failed, and not for all of them: a tiny model costs a tenth of a second a case, a large one more.
"""

from __future__ import annotations

import threading
import time
import warnings
from typing import Any

import numpy as np

from refimpl.auto import AutoConfig, class_by_architecture
from refimpl.conformance import steps
from refimpl.conformance.judge import Precision, Yardstick, measured
from refimpl.conformance.naming import name_mistakes
from refimpl.conformance.results import Named
from refimpl.conformance.suite import Case, Suite
from refimpl.conformance.trace import Trace, tracing
from refimpl.errors import RefimplError

#: Operations whose outputs are steps of one call of a model.
OPERATIONS = ("layers", "model")
#: So many cases of a run are looked into, beside those of `layers`, and so long in all.
MOST_CASES, MOST_SECONDS = 20, 30.0
#: So long for one case.
_SECONDS = 6.0
#: Inputs that change nothing but the loss.
_OF_LOSS = ("labels", "start_positions", "end_positions")
#: Inputs with which the variants can make the call again.
_INPUTS = ("input_ids", "attention_mask", "position_ids")


class LiveNames:
    """Computes mistakes for failing cases; one at a time, whatever the number of threads.

    Attributes: `skipped`, how many cases came when the limits were reached.
    """

    def __init__(self, suite: Suite, most: int = MOST_CASES, seconds: float = MOST_SECONDS):
        self._suite, self._most, self._left = suite, most, seconds
        self._lock = threading.Lock()
        self.skipped = 0

    def named(self, case: Case, found: dict[str, np.ndarray], dtype: str) -> list[Named]:
        """The mistakes that explain the outputs `found` of a failing case; none where none is known.

        found: output -> what the engine gave, in float64; dtype: what it computed in.
        """
        if case["operation"] not in OPERATIONS or case["inputs"]["arguments"]:
            return []
        arrays = self._suite.tensors(case["inputs"]["file"])
        inputs = {argument: arrays[name] for argument, name in case["inputs"]["tensors"].items()}
        inputs = {name: array for name, array in inputs.items() if name not in _OF_LOSS}
        if "input_ids" not in inputs or not inputs.keys() <= set(_INPUTS):
            return []
        with self._lock:
            if self._left <= 0 or (self._most < 1 and case["operation"] != "layers"):
                self.skipped += 1
                return []
            began = time.monotonic()
            try:
                return self._look(case, inputs, found, dtype, began + min(_SECONDS, self._left))
            except RefimplError:  # a model that this program does not load
                return []
            finally:
                self._left -= time.monotonic() - began

    def notes(self) -> list[str]:
        """What is to be said of cases that were not looked into."""
        if not self.skipped:
            return []
        return [f"mistakes were computed for the first failing cases only, not for {self.skipped} after them"]

    def _look(
        self,
        case: Case,
        inputs: dict[str, np.ndarray],
        given: dict[str, np.ndarray],
        dtype: str,
        deadline: float,
    ) -> list[Named]:
        folder = str((self._suite.folder / case["model"]).resolve())
        model = _load(folder, "float64")
        names = _steps_of(case, model)
        wanted = {names[output] for output in given if output in names}
        right, own = _traced(model, inputs, wanted), _traced(_load(folder, "float32"), inputs, wanted)
        if not all(call.repeatable for call in right.calls):
            return []
        found: dict[str, np.ndarray] = {}
        outputs: dict[str, str] = {}
        for name in right.arrays:  # in the order of computation
            for output, array in given.items():
                if names.get(output) == name and name not in found:
                    found[name], outputs[name] = array, output
            part = name in found and steps.is_rotated_part(outputs[name])
            if part and found[name].shape[-1:] != right.arrays[name].shape[-1:]:
                for trace in (right, own):
                    trace.arrays[name] = trace.arrays[name][..., : model.config.rotary_ndims]
        yardsticks = measured(right.arrays, own.arrays, lambda name: right.calls[0], Precision(dtype))
        first = next((name for name, array in found.items() if not _allows(yardsticks[name], array)), None)
        if first is None:
            return []
        self._most -= case["operation"] != "layers"
        explained = name_mistakes(model, right.calls, found, yardsticks, first, deadline)
        if explained is None:
            return []
        partly = "" if explained.everything else f"up to {outputs[explained.until]}"
        return [
            Named(" + ".join(names), outputs[first], explained.error, computed=True, partly=partly)
            for names in (explained.names, *explained.same)
        ]


def _load(folder: str, dtype: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        made = class_by_architecture(config, folder)
        return made.from_pretrained(
            folder, config=config, backend="numpy", dtype=dtype, local_files_only=True
        )


def _traced(model: Any, inputs: dict[str, np.ndarray], names: set[str]) -> Trace:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tracing(model, sorted(names)) as trace:
            model(**inputs)
    return trace


def _steps_of(case: Case, model: Any) -> dict[str, str]:
    """Output of the case -> the name under which a trace has it."""
    known = steps.names_of(model)
    made = {}
    for output in case["expected"]["outputs"]:
        name = output if case["operation"] == "layers" else _step_of_output(output, model)
        found = steps.find(name, dict.fromkeys(known))
        if found is not None:
            made[output] = found
    return made


def _step_of_output(output: str, model: Any) -> str:
    """The step that an output of a forward call is."""
    last = model.config.num_hidden_layers
    kind, *rest = output.split(".")
    if kind == "last_hidden_state" or output == f"hidden_states.{last}":
        return "final_layer_norm"
    if kind == "hidden_states":
        return "embed_in" if rest == ["0"] else f"layers.{int(rest[0]) - 1}"
    if kind == "attentions":
        return f"layers.{rest[0]}.attention.probabilities"
    if kind == "past_key_values":
        return f"layers.{rest[0]}.attention.all_{rest[1]}s"
    return output


def _allows(yardstick: Yardstick, array: np.ndarray) -> bool:
    return array.shape == yardstick.right.shape and yardstick.allows(array)
