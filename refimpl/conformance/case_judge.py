"""Whether an answer is right: the rules of the suite, applied to what an engine gave.

Outputs are held against float64 (ids against integers), at real tokens, within the tolerance of the dtype that the
engine computes in.  An output that is wrong is held against what recorded mistakes give, too.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.conformance.case_judge_text import judge_tokenizer
from refimpl.conformance.protocol import COMPUTED_IN, ERROR_KINDS, Capabilities, read_tensor
from refimpl.conformance.requests import wanted_outputs
from refimpl.conformance.results import Judged, Named, Result
from refimpl.conformance.suite import Case, Suite
from refimpl.errors import ProtocolError, quote

#: A recorded mistake lies at least 100 float32 tolerances from what is right (tests/harness holds the suite to it).
#: An output is named after a mistake that is nearer than NEAR tolerances, and FARTHER times nearer than what is right.
NEAR = 10.0
FARTHER = 10.0

_WAY = re.compile(r"\.\d+$")


def result_of(case: Case, status: str, message: str = "", **more: Any) -> Result:
    """A result of `case`, with what every result says of it."""
    return Result(
        case["id"], case["level"], case["operation"], bool(case["required"]), status, message, **more
    )


def judge(
    suite: Suite, case: Case, answer: dict[str, Any], engine: Capabilities, scratch: Path | None = None
) -> Result:
    """What came of a case that was answered.

    scratch: the folder in which files of results have to lie; None: anywhere.
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
        mistakes = judging.mistakes
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
    if kind is not None and not isinstance(kind, str):
        return result_of(case, "invalid", f"an error with a wrong kind: {quote(kind)}")
    said = f"{kind or 'no kind'}: {message}"[:400]
    allowed = [outcome["error"] for outcome in _outcomes(case) if outcome["kind"] == "error"]
    if not allowed:
        return result_of(case, "refused", f"refused, and had to be computed ({said})")
    if kind in allowed:
        return result_of(case, "pass", said)
    known = "" if kind in ERROR_KINDS else f"; kinds: {', '.join(ERROR_KINDS)}"
    return result_of(case, "fail", f"refused for another reason than {' or '.join(allowed)} ({said}{known})")


class _Judging:
    """The outputs of one case, which are tensors."""

    def __init__(self, suite: Suite, case: Case, outputs: dict[str, Any], dtype: str, scratch: Path | None):
        self._case, self._given, self._dtype, self._scratch = case, outputs, dtype, scratch
        self._tensors = suite.tensors(case["expected"]["file"])
        real = case["expected"].get("real_tokens")
        self._real = None if real is None else self._tensors[real]
        self.mistakes: list[Named] = []

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
        if worst <= allowed:
            return Judged(name, True, difference=worst, tolerance=allowed)
        place = _place(difference, np.argmax(difference))
        first = _place(difference, np.argmax(difference > allowed))
        values = [float(array[tuple(first)]) for array in (found, wanted)]
        message = (
            f"{name} is off by {worst:.3g} (allowed {allowed:.3g}) at {place}; "
            f"first at {first}: {values[0]!r} instead of {values[1]!r}"
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
        return sorted(named, key=lambda entry: entry.distance or 0.0)


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
