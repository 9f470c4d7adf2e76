"""Whether an answer is right: the rules of the suite, applied to what an engine gave.

Outputs are held against float64 (ids against integers), at real tokens, within the tolerance of the dtype that the
engine computes in.  An output that is wrong is held against what known mistakes give, too: those that are recorded in
the suite, and those that are computed here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.conformance.case_judge_text import judge_tokenizer
from refimpl.conformance.live_naming import LiveNames
from refimpl.conformance.protocol import COMPUTED_IN, ERROR_KINDS, INTERNAL, Capabilities, read_tensor
from refimpl.conformance.requests import wanted_outputs
from refimpl.conformance.results import Judged, Named, Result
from refimpl.conformance.suite import Case, Suite
from refimpl.conformance.wrong_operations import wrong_outputs
from refimpl.errors import ProtocolError, quote

#: A recorded mistake lies at least 100 float32 tolerances from what is right (tests/harness holds the suite to it).
#: An output is named after a mistake that is nearer than NEAR tolerances, and FARTHER times nearer than what is right.
NEAR = 10.0
FARTHER = 10.0

#: A mistake explains an output in which something else is off too, where the departure is what it makes times 1, give
#: or take NEAR_ONE, and no more than 1 - EXPLAINED of its square is left over.  (The tanh form of GELU out of a table
#: of float16 numbers, as llama.cpp has it: 0.94 to 1.04, and 0.85 to 0.99.)
NEAR_ONE = 0.15
EXPLAINED = 0.8

_WAY = re.compile(r"\.\d+$")


def result_of(case: Case, status: str, message: str = "", **more: Any) -> Result:
    """A result of `case`, with what every result says of it."""
    return Result(
        case["id"], case["level"], case["operation"], bool(case["required"]), status, message, **more
    )


def judge(
    suite: Suite,
    case: Case,
    answer: dict[str, Any],
    engine: Capabilities,
    scratch: Path | None = None,
    names: LiveNames | None = None,
) -> Result:
    """What came of a case that was answered.

    scratch: the folder in which files of results have to lie; None: anywhere.
    names: computes what mistakes give for a model; None: only those of the suite and of operations are named.
    """
    if "unsupported" in answer:
        return result_of(case, "unsupported", str(answer["unsupported"])[:400])
    if "error" in answer:
        return _judge_refusal(case, answer["error"])
    outputs = answer.get("outputs")
    if not isinstance(outputs, dict):
        said = f'the answer has none of "outputs", "error", "unsupported": {quote(answer)}'
        return result_of(case, "invalid", said)
    outcomes = _outcomes(case)
    if all(outcome["kind"] == "error" for outcome in outcomes):
        kinds = " or ".join(outcome["error"] for outcome in outcomes)
        return result_of(case, "fail", f"accepted, and had to be refused ({kinds})")
    wanted = wanted_outputs(suite, case)
    asked = [name for name in wanted if engine.gives(name)]
    not_given = [name for name in wanted if name not in asked]
    if not asked:
        return result_of(case, "unsupported", f"none of its outputs: {', '.join(wanted[:5])}")
    if case["operation"] == "tokenizer":
        judged, mistakes = judge_tokenizer(suite.line(case), outputs, asked)
    else:
        dtype = answer.get("dtype", engine.dtype)
        if dtype not in COMPUTED_IN:
            return result_of(case, "invalid", f"the answer is in {quote(dtype)}, not in float32 or float64")
        judging = _Judging(suite, case, outputs, str(dtype), scratch)
        judged = [judging.output(name) for name in asked]
        mistakes = judging.mistakes if all(entry.passed for entry in judged) else judging.named(names)
    result = result_of(case, "pass", outputs=judged, mistakes=mistakes, not_given=not_given)
    if result.worst is not None:
        result.status, result.message = "fail", result.worst.message
    return result


def _outcomes(case: Case) -> list[dict[str, Any]]:
    """What is right for a case, each: `{"kind": "return"}` or `{"kind": "error", "error": kind}`."""
    expect = case["expect"]
    if expect["kind"] == "either":
        return list(expect["outcomes"])
    return [expect if expect["kind"] == "error" else {"kind": "return"}]


def _judge_refusal(case: Case, error: Any) -> Result:
    kind, message = (
        (error.get("kind"), str(error.get("message", "")))
        if isinstance(error, dict)
        else (None, quote(error))
    )
    if kind == INTERNAL:
        return result_of(case, "crashed", f"the engine failed by itself ({message})"[:400])
    if kind is not None and kind not in ERROR_KINDS:
        known = ", ".join((*ERROR_KINDS, INTERNAL))
        return result_of(case, "invalid", f"an error of an unknown kind: {quote(kind)}; kinds: {known}")
    said = f"{kind or 'no kind'}: {message}"[:400]
    allowed = [outcome["error"] for outcome in _outcomes(case) if outcome["kind"] == "error"]
    if not allowed:
        return result_of(case, "refused", f"refused, and had to be computed ({said})")
    if kind in allowed:
        return result_of(case, "pass", said)
    return result_of(case, "fail", f"refused for another reason than {' or '.join(allowed)} ({said})")


class _Judging:
    """The outputs of one case, which are tensors."""

    def __init__(self, suite: Suite, case: Case, outputs: dict[str, Any], dtype: str, scratch: Path | None):
        self._suite, self._case, self._given, self._dtype, self._scratch = (
            suite,
            case,
            outputs,
            dtype,
            scratch,
        )
        self._worst: dict[str, float] = {}
        self._tensors = suite.tensors(case["expected"]["file"])
        real = case["expected"].get("real_tokens")
        self._real = None if real is None else self._tensors[real]
        self.mistakes: list[Named] = []
        self._found: dict[str, np.ndarray] = {}

    def named(self, names: LiveNames | None) -> list[Named]:
        """The mistakes that explain outputs of which some are wrong: recorded ones, else those computed here."""
        if self.mistakes or not self._found:
            return self.mistakes
        if self._case["level"] == "op":
            return self._of_operation()
        return [] if names is None else names.named(self._case, self._found, self._dtype)

    def _of_operation(self) -> list[Named]:
        """A mistake has to give all outputs that were given: cos as well as sin."""
        if not any(
            name not in self._worst or self._worst[name] > self._allowed(name) for name in self._found
        ):
            return []  # what is wrong is missing, or NaN
        inputs = self._case["inputs"]
        arrays = self._suite.tensors(inputs["file"])
        given = {argument: arrays[name] for argument, name in inputs["tensors"].items()}
        named = []
        for mistake, outputs in wrong_outputs(self._case["operation"], inputs["arguments"], given):
            distances = [self._distance(name, outputs) for name in self._found]
            near = [distance for distance in distances if distance is not None]
            if len(near) == len(distances):
                named.append(Named(mistake, " and ".join(self._found), max(near), computed=True))
        return sorted(named, key=lambda entry: entry.distance or 0.0)

    def _allowed(self, name: str) -> float:
        return float(self._case["tolerance"][name][self._dtype])

    def _distance(self, name: str, outputs: dict[str, np.ndarray]) -> float | None:
        """How far an output is from what a mistake gives; None where it is too far for that."""
        tolerance, wrong = self._case["tolerance"][name], outputs.get(name)
        if wrong is None or wrong.shape != self._found[name].shape or not np.isfinite(wrong).all():
            return None
        with np.errstate(all="ignore"):
            distance = float(np.max(self._difference(name, self._found[name], wrong), initial=0.0))
        # Of another shape than the right one: nothing is nearer.
        right = self._worst.get(name, sys.float_info.max)
        clear = right <= self._allowed(name) or FARTHER * distance <= right
        near = distance <= NEAR * tolerance["float32"] and clear
        return distance if near else None

    def output(self, name: str) -> Judged:
        """One output, by the name that it has in an answer."""
        plain = _WAY.sub("", name) if self._case["operation"] == "cached_model" else name
        if name not in self._given:
            return Judged(name, False, f"{name} is missing")
        try:
            found = read_tensor(self._given[name], self._scratch)
        except ProtocolError as error:
            return Judged(name, False, f"{name}: {error}")
        names = self._case["expected"]["outputs"][plain]
        if self._case["tolerance"][plain]["scale"] == "exact":
            return _exact(name, found, self._tensors[names["int64"]])
        wanted = self._tensors[names["float64"]]
        if found.dtype == self._dtype and np.isfinite(found).all():
            self._found[name] = found.astype(np.float64)
        if found.shape != wanted.shape:
            return Judged(name, False, f"{name} has the shape {list(found.shape)}, not {list(wanted.shape)}")
        if found.dtype != self._dtype:
            return Judged(name, False, f"{name} is {found.dtype}, not {self._dtype}")
        return self._close(name, plain, found.astype(np.float64), wanted)

    def _close(self, name: str, plain: str, found: np.ndarray, wanted: np.ndarray) -> Judged:
        tolerance = self._case["tolerance"][plain]
        allowed = float(tolerance[self._dtype])
        finite = np.isfinite(found)
        if not finite.all():  # also at padding: no row of these models is without an answer
            first = _place(finite, np.argmin(finite))
            message = f"{name} holds NaN or infinity, first at {first}"
            return Judged(name, False, message, None, allowed, None, first, repr(float(found[tuple(first)])))
        with np.errstate(over="ignore"):
            difference = self._difference(plain, found, wanted)
        worst = min(float(np.max(difference, initial=0.0)), sys.float_info.max)  # JSON has no infinity
        self._worst[name] = worst
        if worst <= allowed:
            return Judged(name, True, difference=worst, tolerance=allowed)
        place = _place(difference, np.argmax(difference))
        first = _place(difference, np.argmax(difference > allowed))
        values = [float(array[tuple(first)]) for array in (found, wanted)]
        at_worst = [float(array[tuple(place)]) for array in (found, wanted)]
        unit = (
            "max(1, |expected|)"
            if tolerance["scale"] == "element"
            else f"the largest value, {tolerance['largest'] or 1.0:.4g}"
        )
        message = f"{name} is off by {worst:.3g} x {unit} (allowed {allowed:.3g}), most at {place}: "
        message += _instead(*at_worst) + (
            "" if place == first else f"; first at {first}: {_instead(*values)}"
        )
        self.mistakes += self._matching(name, plain, found, worst)
        return Judged(name, False, message, worst, allowed, place, first, *values)

    def _difference(self, plain: str, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """|found - wanted| on the scale of the tolerance; 0 at padding."""
        tolerance = self._case["tolerance"][plain]
        largest = tolerance["largest"] or 1.0
        unit = np.maximum(1.0, np.abs(wanted)) if tolerance["scale"] == "element" else largest
        difference = np.abs(found - wanted) / unit
        real = self._real
        if real is None or difference.ndim < 2:
            return difference
        if plain.startswith(("attentions.", "past_key_values.")):  # [batch, heads, seq, ...]
            real = real[:, None]
        return np.where(real.reshape(real.shape + (1,) * (difference.ndim - real.ndim)), difference, 0.0)

    def _matching(self, name: str, plain: str, found: np.ndarray, worst: float) -> list[Named]:
        """The recorded mistakes of which these are the logits, the nearest first."""
        if plain != "logits":
            return []
        near = NEAR * self._case["tolerance"][plain]["float32"]
        named = []
        for mistake, key in self._case.get("wrong", {}).items():
            with np.errstate(over="ignore"):
                difference = self._difference(plain, found, self._tensors[key])
            distance = float(np.max(difference, initial=0.0))
            if distance <= near and FARTHER * distance <= worst:
                named.append(Named(mistake, name, distance))
        return sorted(named, key=lambda entry: entry.distance or 0.0) or self._explaining(name, plain, found)

    def _explaining(self, name: str, plain: str, found: np.ndarray) -> list[Named]:
        """The recorded mistake that makes most of a departure, where something smaller stands beside it.

        The departure is projected on what the mistake would make: a factor near 1, and little that is left over.
        """
        right = self._tensors[self._case["expected"]["outputs"][plain]["float64"]]
        best: list[tuple[float, str]] = []
        for mistake, key in self._case.get("wrong", {}).items():
            departure, made = (self._at_real_tokens(array - right) for array in (found, self._tensors[key]))
            along, length = float(np.sum(departure * made)), float(np.sum(made * made))
            share = along * along / (length * float(np.sum(departure * departure)))
            if abs(along / length - 1) < NEAR_ONE and share > EXPLAINED:
                best = max(best, [(share, mistake)])
        return [Named(mistake, name, share=share) for share, mistake in best]

    def _at_real_tokens(self, logits: np.ndarray) -> np.ndarray:
        """[batch, seq, vocab] with 0 at padding"""
        return (
            logits
            if self._real is None or self._real.shape != logits.shape[:2]
            else logits * self._real[..., None]
        )


def _instead(found: float, wanted: float) -> str:
    """Both numbers, as short as they can be told apart."""
    shown = [f"{number:.9g}" for number in (found, wanted)]
    if shown[0] == shown[1]:
        shown = [repr(found), repr(wanted)]
    return f"{shown[0]} instead of {shown[1]}"


def _exact(name: str, found: np.ndarray, wanted: np.ndarray) -> Judged:
    if found.dtype.kind not in "iu":
        return Judged(name, False, f"{name} is {found.dtype}, not whole numbers")
    if found.shape != wanted.shape:
        return Judged(name, False, f"{name} has the shape {list(found.shape)}, not {list(wanted.shape)}")
    different = found != wanted
    if not different.any():
        return Judged(name, True)
    first = _place(different, np.argmax(different))
    values = [int(array[tuple(first)]) for array in (found, wanted)]
    message = f"{name} differs at {first}: {values[0]} instead of {values[1]}"
    return Judged(name, False, message, None, None, None, first, *values)


def _place(array: np.ndarray, index: Any) -> list[int]:
    return [int(i) for i in np.unravel_index(int(index), array.shape)]
