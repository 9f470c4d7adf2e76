"""Comparing what another program computed with a trace: where it departs, by how much, and by which mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refimpl.conformance import steps
from refimpl.conformance.foreign import Given
from refimpl.conformance.judge import Precision, Yardstick, places_that_count
from refimpl.conformance.measures import Difference, LogitsDifference, by_axis, difference, logits_difference
from refimpl.conformance.naming import Named, name_mistakes
from refimpl.conformance.oracle import Oracle
from refimpl.conformance.trace_data import Call, Trace
from refimpl.errors import InputError, RefimplError

#: What is said of a step. The first two are fine.
EQUAL, ROUNDING, DEPARTS, UNREADABLE = "equal", "rounding", "departs", "unreadable"

#: Precisions that are tried for a program that does not say its own.
_GUESSES = ("float16", "bfloat16")


@dataclass
class Step:
    """What came of one step.

    Attributes:
        name, theirs: our name, and that of the other program.
        verdict: one of `EQUAL`, `ROUNDING`, `DEPARTS`, `UNREADABLE`.
        why: in words, where there is no difference to show: shapes, NaN, a file that cannot be read.
        difference: from the trace.
        error, limit: relative to the largest right value: what B makes, and what is allowed.
        own: the error of our own float32 run, where it was made.
        logits: what the difference means for the next token.
        positions, heads: the largest error for each position and head, where the step has them.
    """

    name: str
    theirs: str
    verdict: str
    why: str = ""
    difference: Difference | None = None
    error: float | None = None
    limit: float | None = None
    own: float | None = None
    logits: LogitsDifference | None = None
    positions: list[float] = field(default_factory=list)
    heads: list[float] = field(default_factory=list)

    @property
    def is_fine(self) -> bool:
        return self.verdict in (EQUAL, ROUNDING)


@dataclass
class Comparison:
    """All steps in the order of computation, and what follows from them.

    Attributes:
        precision: what B was taken for.
        judged_by: how rounding was told from mistakes.
        notes: what a reader should know.
        named: the mistakes that explain a departure; None where there is none, or none was found.
        looked: whether variants were looked through.
        missing: steps of the trace that B does not have; unused: names of B that mean no step.
    """

    steps: list[Step]
    precision: Precision
    judged_by: str
    notes: list[str]
    named: Named | None = None
    looked: bool = False
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def first(self) -> Step | None:
        """The first step that is not fine."""
        return next((step for step in self.steps if not step.is_fine), None)

    @property
    def is_fine(self) -> bool:
        return self.first is None


def compare(
    a: Trace,
    b: Given,
    *,
    model: str | None = None,
    precision: Precision | None = None,
    names: Any = None,
    variants: bool = True,
) -> Comparison:
    """Compare the numbers of B with the trace A.

    model: the folder or Hub id of the model of A, which then is the judge; None: a tolerance for each dtype.
    precision: how B was computed; None: what its trace says, or its dtypes.
    names: patterns of the steps to compare; None: all.
    variants: look for the mistake that explains a departure.

    Raises: InputError for traces of different inputs, a model that is not that of A, and patterns without a step.
    """
    if b.trace is not None:
        _refuse_other_inputs(a, b.trace)
    chosen = steps.select(names, [name for name in a if name in b.theirs] if names is not None else list(a))
    common = [name for name in chosen if name in b.theirs]
    stated = precision or _recorded(b)
    taken = stated or Precision(_widest(b.arrays), a.about.get("weight_dtype"))
    notes: list[str] = []
    oracle = None if model is None else Oracle(model, a, taken.weights)
    judged = _Judge(a, oracle, taken)
    made = Comparison([judged.step(name, b) for name in common], taken, judged.how, notes)
    if oracle is not None and not made.is_fine and stated is None:
        oracle, made = _guess_weights(a, b, common, model, made, oracle)
    made.missing = [name for name in chosen if name not in b.theirs]
    made.unused = b.unused
    if oracle is not None:
        _check_a(a, oracle, made)
        if variants and not made.is_fine:
            made.looked = True
            made.named = _named(oracle, made, b)
    return made


def _refuse_other_inputs(a: Trace, b: Trace) -> None:
    if len(a.calls) != len(b.calls):
        raise InputError(
            "the traces are of different calls", found=f"{len(a.calls)} and {len(b.calls)} calls of the model"
        )
    for number, (one, other) in enumerate(zip(a.calls, b.calls, strict=True)):
        if one.input_ids is None or other.input_ids is None:
            continue
        if not np.array_equal(one.input_ids, other.input_ids):
            raise InputError(
                "the traces are of different ids",
                where=f"call {number}",
                found=f"{one.input_ids.tolist()} and {other.input_ids.tolist()}"[:200],
                hint="Make both with the same --ids.",
            )


def _recorded(b: Given) -> Precision | None:
    """What a trace says of how it was computed; None where it says nothing that there are tolerances for."""
    about = {} if b.trace is None else b.trace.about
    computed = about.get("matmul_dtype") or about.get("dtype")
    if computed not in ("float16", "bfloat16", "float32", "float64"):
        return None
    return Precision(computed, about.get("weight_dtype"))


def _widest(arrays: Mapping[str, np.ndarray]) -> str:
    names = {array.dtype.name for array in arrays.values()}
    return next((name for name in ("float64", "float32", "float16") if name in names), "float32")


class _Judge:
    """Makes a `Step` of each name, with the yardsticks that there are."""

    def __init__(self, a: Trace, oracle: Oracle | None, precision: Precision):
        self.a, self.precision = a, precision
        self.yardsticks = {} if oracle is None else oracle.yardsticks(precision)
        weights = f" (weights in {precision.weights})" if precision.weights else ""
        self.how = (
            f"a tolerance for {precision}: no model is at hand"
            if oracle is None
            else f"the model in float64{weights}, and what its float32 run loses"
        )

    def yardstick(self, name: str) -> Yardstick:
        found = self.yardsticks.get(name)
        if found is not None and found.right.shape == self.a[name].shape:
            return found
        call = _call_of(self.a, name)
        array = self.a.arrays[name].astype(np.float64)
        limit = self.precision.without_model
        return Yardstick(array, None, limit, places_that_count(name, array, call))

    def step(self, name: str, b: Given) -> Step:
        made = Step(name, b.theirs[name], UNREADABLE, b.wrong.get(name, ""))
        if name in b.wrong:
            return made
        wanted, yardstick = self.a.arrays[name], self.yardstick(name)
        found = fitted(b.arrays[name], wanted, name)
        if name in b.parts and found.shape[:-1] == wanted.shape[:-1]:
            # The rest of each head is not rotated, and was not given: it counts as right.
            rest = yardstick.right[..., found.shape[-1] :].astype(found.dtype)
            found = np.concatenate([found, rest], axis=-1)
        if found.shape != wanted.shape:
            made.why = f"shape {list(found.shape)}, not {list(wanted.shape)}"
            return made
        b.arrays[name] = found
        shown = found if yardstick.where is None else np.where(yardstick.where, found, 0)
        if not np.isfinite(shown).all():
            place = [int(i) for i in np.argwhere(~np.isfinite(shown))[0]]
            made.verdict, made.why = DEPARTS, f"{shown[tuple(place)]} at {place}"
            return made
        made.difference = difference(wanted, shown, yardstick.where)
        made.error, made.limit, made.own = yardstick.error(shown), yardstick.limit, yardstick.own
        made.verdict = ROUNDING if made.error <= made.limit else DEPARTS
        if made.verdict == ROUNDING and made.difference.is_none:
            made.verdict = EQUAL
        self._by_place(made, yardstick, shown)
        return made

    def _by_place(self, made: Step, yardstick: Yardstick, found: np.ndarray) -> None:
        axes = steps.axes_of(made.name, found.ndim)
        if "seq" in axes:
            made.positions = by_axis(yardstick.right, found, axes.index("seq"), yardstick.where)
        if "heads" in axes:
            made.heads = by_axis(yardstick.right, found, axes.index("heads"), yardstick.where)
        if steps.split_call(made.name)[0] == "logits" and found.ndim == 3:
            rows = None if yardstick.where is None else yardstick.where[..., 0]
            made.logits = logits_difference(self.a.arrays[made.name], found, rows)


def fitted(found: np.ndarray, wanted: np.ndarray, name: str) -> np.ndarray:
    """`found` in the shape of `wanted`, where the difference is only one of form: a batch axis of one."""
    if found.shape == wanted.shape[1:] and wanted.shape[:1] == (1,):
        return found[None]
    if ".rotary_emb." in name and found.ndim == wanted.ndim and found.shape[1:] == wanted.shape[1:]:
        # Tables that all rows share may be given once, or for each row.
        if len(found) == 1:
            return np.broadcast_to(found, wanted.shape)
        if len(wanted) == 1 and (found == found[:1]).all():
            return found[:1]
    return found


def _call_of(a: Trace, name: str) -> Call | None:
    number = steps.split_call(name)[1]
    return a.calls[number] if number < len(a.calls) else None


def _guess_weights(
    a: Trace, b: Given, common: list[str], model: str | None, made: Comparison, oracle: Oracle
) -> tuple[Oracle, Comparison]:
    """The same with weights in 16 bits, if that explains everything: a program may not say what it keeps."""
    if model is None or made.precision.weights is not None:
        return oracle, made
    for weights in _GUESSES:
        taken = Precision(made.precision.compute, weights)
        try:
            other = Oracle(model, a, weights)
            judged = _Judge(a, other, taken)
        except RefimplError:  # weights that the dtype cannot hold
            continue
        found = [judged.step(name, b) for name in common]
        if all(step.is_fine for step in found):
            note = f"B fits the model with its weights rounded to {weights}: that is taken for its precision"
            return other, Comparison(found, taken, judged.how, [note])
    return oracle, made


def _check_a(a: Trace, oracle: Oracle, made: Comparison) -> None:
    """Whether the trace itself is what the model computes."""
    computed = a.about.get("matmul_dtype") or a.about.get("dtype", "float32")
    recorded = Precision(str(computed), a.about.get("weight_dtype"))
    if recorded.weights != oracle.weights or recorded.compute not in ("float32", "float64"):
        return
    for name, yardstick in oracle.yardsticks(recorded).items():
        array = a.arrays.get(name)
        if array is not None and array.shape == yardstick.right.shape and not yardstick.allows(array):
            made.notes.append(
                f"A itself departs from the model at {name}: it is a trace of other weights, or of a wrong program"
            )
            return


def _named(oracle: Oracle, made: Comparison, b: Given) -> Named | None:
    first = made.first
    yardsticks = oracle.yardsticks(made.precision)
    found = {
        step.name: b.arrays[step.name].astype(np.float64)
        for step in made.steps
        if step.name in yardsticks and step.name in b.arrays and np.isfinite(b.arrays[step.name]).all()
    }
    if first is None or first.name not in found:
        return None
    return name_mistakes(oracle.model, oracle.trace.calls, found, yardsticks, first.name)
