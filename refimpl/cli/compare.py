"""`refimpl compare`: where another program departs from a trace, by how much, and by which mistake."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from refimpl.cli import common, terminal
from refimpl.errors import RefimplError, ResourceLimitError

if TYPE_CHECKING:
    from refimpl.conformance.compare import Comparison, Step
    from refimpl.conformance.trace import Trace

#: So many steps are shown on a terminal from the first departure on; the others are counted (`--all` shows them).
_MOST_STEPS = 12


def parser(prog: str) -> common.Parser:
    examples = (
        f"{prog} trace.safetensors other.safetensors",
        f"{prog} trace.safetensors dump/ --map names.json --html report.html",
        f"{prog} trace.safetensors dump/ --map names.json --dtype bfloat16-weights --json",
    )
    made = common.Parser(prog, examples, "Compare what another program computed with a trace, step by step.")
    made.add_argument("a", metavar="A", help="a trace (see: refimpl trace --help)")
    made.add_argument("b", metavar="B", help="another trace, a safetensors file, or a folder of .npy files")
    made.add_argument("--map", metavar="FILE", help="JSON: their names -> ours")
    made.add_argument(
        "--names", action="append", metavar="PATTERNS", help="only these steps (* fits any text)"
    )
    made.add_argument("-m", "--model", help="the model of A (default: the one that the trace names)")
    made.add_argument("--no-model", action="store_true", help="judge by a fixed tolerance for each dtype")
    made.add_argument(
        "--dtype",
        metavar="DTYPE",
        help="how B was computed: float64, float32, float16, bfloat16, float16-weights, bfloat16-weights",
    )
    made.add_argument("--no-variants", action="store_true", help="do not look for the mistake")
    made.add_argument("--all", action="store_true", help="show every step")
    made.add_argument("--html", metavar="FILE", help="write a page with plots")
    made.add_argument("--junit", metavar="FILE", help="write a JUnit report")
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    from refimpl.conformance.compare import compare
    from refimpl.conformance.foreign import read_given
    from refimpl.conformance.judge import Precision
    from refimpl.conformance.trace import Trace
    from refimpl.files import write_atomically

    precision = None if args.dtype is None else Precision.parse(args.dtype)
    patterns = [one.strip() for given in args.names for one in given.split(",")] if args.names else None
    with _wrong_call():  # exit code 1 is for a departure
        a = Trace.load(args.a)
        b = read_given(args.b, a, args.map)
        model, note = _model(a, args)
        options: dict[str, Any] = {
            "precision": precision,
            "names": patterns,
            "variants": not args.no_variants,
        }
        try:
            made = compare(a, b, model=model, **options)
        except ResourceLimitError as error:
            if args.model is not None:
                raise
            note = f"the model of the trace is not used ({error})"
            made = compare(a, b, **options)
        if note:
            made.notes.insert(0, note)
        if args.html is not None:
            from refimpl.conformance.comparison_page import page

            write_atomically(args.html, page(made, args.a, args.b, a.about))
        if args.junit is not None:
            from refimpl.conformance.comparison_report import junit

            write_atomically(args.junit, junit(made))
    if args.json:
        from refimpl.conformance.comparison_report import as_json

        terminal.write_json(as_json(made))
    else:
        terminal.write(_text(made, args.all))
    if not args.quiet:
        terminal.note(_summary(made))
    return 0 if made.is_fine else 1


@contextmanager
def _wrong_call() -> Iterator[None]:
    """Whatever fails in here ends with exit code 2."""
    try:
        yield
    except RefimplError as error:
        error.exit_code = 2
        raise


def _model(a: Trace, args: argparse.Namespace) -> tuple[str | None, str]:
    """The model that is the judge, and a remark where there is none although nobody said so."""
    from refimpl.checkpoints.locate import find_weights
    from refimpl.conformance.oracle import Oracle

    if args.no_model:
        return None, ""
    if args.model is not None:
        return common.model_name(args.model), ""
    name = a.about.get("model")
    if not isinstance(name, str) or not name:
        return None, "the trace does not say which model it is of: name it with --model"
    try:
        Oracle(name, a)
        find_weights(name, local_files_only=True)
    except RefimplError as error:
        return None, f"the model of the trace is not used ({error})"
    return name, ""


def _text(made: Comparison, everything: bool) -> str:
    shown = _shown(made, everything)
    rows = [
        ["", "step", "verdict", "error", "allowed", "max abs", "max rel", "RMSE", "NMSE", "cosine", "≤ 1 ULP"]
    ]
    skipped: list[Step] = []
    parts = []
    for step in made.steps:
        if step.name not in shown:
            skipped.append(step)
            continue
        rows += _skipped(skipped)
        skipped = []
        rows.append(_row(step, step is made.first))
    rows += _skipped(skipped)
    parts.append(terminal.table(rows, right=(3, 4, 5, 6, 7, 8, 9, 10)))
    parts += [_about_logits(step) for step in made.steps if step.logits is not None]
    parts.append(f"judged by: {made.judged_by}\nB is taken for: {made.precision}\n")
    if made.named is not None:
        parts.append(_mistake(made))
    elif made.looked:
        parts.append("No variant gives these numbers.\n")
    parts += [f"note: {note}\n" for note in made.notes]
    if made.missing:
        parts.append(f"{len(made.missing)} steps of the trace are not in B: {_few(made.missing)}\n")
    if made.unused:
        parts.append(f"{len(made.unused)} names of B mean no step of the trace: {_few(made.unused)}\n")
    return "\n".join(parts)


def _skipped(skipped: list[Step]) -> list[list[str]]:
    if not skipped:
        return []
    wrong = sum(not step.is_fine for step in skipped)
    return [["", f"… {len(skipped)} more", f"{wrong} depart" if wrong else "fine", *[""] * 8]]


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _shown(made: Comparison, everything: bool) -> set[str]:
    """The names of the steps that the table shows: around the first departure, and where a layer ends."""
    names = [step.name for step in made.steps]
    if everything or len(names) <= 2 * _MOST_STEPS:
        return set(names)
    ends = {step.name for step in made.steps if step.name.split("@")[0].split(".")[-1].isdigit()}
    shown = {names[0], names[-1], *ends}
    if made.first is not None:
        at = names.index(made.first.name)
        shown |= set(names[max(at - 2, 0) : at + _MOST_STEPS])
    return shown | {step.name for step in made.steps if step.why}


def _row(step: Step, is_first: bool) -> list[str]:
    mark = "→" if is_first else ""
    one = step.difference
    if one is None:
        return [mark, step.name, step.verdict, step.why, *[""] * 7]
    near = sum(one.ulps[:2]) / max(sum(one.ulps), 1)
    cosine = "" if one.cosine is None else f"{one.cosine:.6f}"
    numbers = (step.error or 0.0, step.limit or 0.0, one.max_abs, one.max_rel, one.rmse, one.nmse)
    return [mark, step.name, step.verdict, *(f"{number:.1e}" for number in numbers), cosine, f"{near:.0%}"]


def _about_logits(step: Step) -> str:
    one: Any = step.logits
    return (
        f"{step.name}: KL {one.kl_mean:.2e} nats (largest {one.kl_max:.2e}), top-1 {one.top1:.1%}, "
        f"top-5 {one.top5:.1%} of {one.positions} positions; smallest margin {one.smallest_margin:.2e}, "
        f"largest margin lost {one.largest_lost_margin:.2e}\n"
    )


def _mistake(made: Comparison) -> str:
    named: Any = made.named
    names = " and ".join(named.names)
    extent = "all steps" if named.everything else f"{named.explained} steps, until {named.until}"
    where = made.first.name if made.first else ""
    text = f"{where} matches the variant {names} to {named.error:.0e}: {named.what} ({extent}).\n"
    if named.same:
        others = ", ".join(" and ".join(one) for one in named.same)
        text += f"The same numbers on this model give: {others}.\n"
    if not named.everything:
        text += "There is at least one more mistake after that.\n"
    return text


def _summary(made: Comparison) -> str:
    counts: dict[str, int] = {}
    for step in made.steps:
        counts[step.verdict] = counts.get(step.verdict, 0) + 1
    shown = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    first = "" if made.first is None else f"; first departure: {made.first.name}"
    return f"{len(made.steps)} steps: {shown}{first}"
