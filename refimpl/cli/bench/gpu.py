"""`refimpl bench gpu`: all that a GPU is measured for, in one call: records, tables, and how they stand to the aims."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refimpl import __version__
from refimpl.backends import get_backend
from refimpl.cli import common, terminal
from refimpl.cli.bench import machine, model
from refimpl.cli.bench.gpu_numbers import numbers
from refimpl.cli.bench.model_report import ModelReport
from refimpl.cli.bench.model_shapes import SHAPES
from refimpl.errors import InputError, MissingFileError, RefimplError, SaveError, quote

#: name -> what it is for, and the arguments of `refimpl bench model` (the others of all runs come before them).
#: The most wanted come first: a run that is broken off keeps what it has.
RUNS: dict[str, tuple[str, str]] = {
    "float16": ("decoding, beside transformers", "--dtype float16 -d {depth} --vs transformers"),
    "bfloat16": ("a long prompt, and what the graph gains", "--dtype bfloat16 -d {depth} --graph on,off"),
    "start": ("from a file to a token", "--dtype float16 -p 16 -n 16 -r 2 --stored --starts 3"),
    "weights": ("narrower weights", "--dtype float16 --weight-dtype int8,nf4 -d {depth} -r 3"),
    "float32": ("nothing rounded", "--dtype float32 -d {depth} -r 3"),
    "profile": ("each operation, waited for", "--dtype float16 -d {depth} -r 2 --profile"),
}

#: The run that needs no `refimpl bench model`: see `gpu_numbers.py`.
NUMBERS = "numbers"


@dataclass(frozen=True)
class Aim:
    """What the project wants to reach: a figure of a run, and whether it is to be at least or at most `bound`."""

    what: str
    run: str
    find: Callable[[dict[str, Any]], float | None]
    bound: float
    at_least: bool = True
    form: str = ".2f"

    def row(self, records: dict[str, dict[str, Any]]) -> list[str]:
        bound = f"{'at least' if self.at_least else 'at most'} {self.bound:{self.form}}"
        found = self.find(records[self.run]) if self.run in records else None
        if found is None:
            return [self.what, bound, "not measured", ""]
        reached = found >= self.bound if self.at_least else found <= self.bound
        return [self.what, bound, f"{found:{self.form}}", "yes" if reached else "no"]


def _test(record: dict[str, Any], action: str) -> dict[str, Any] | None:
    """The first result, and of its tests the last one of this kind: the deepest, the longest."""
    found = [test for test in record["results"][0]["tests"] if test["action"] == action]
    return found[-1] if found else None


def _share(action: str, name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda record: (_test(record, action) or {}).get(name)


def _ratio(compiled: bool) -> Callable[[dict[str, Any]], float | None]:
    def find(record: dict[str, Any]) -> float | None:
        for peer in (_test(record, "decode") or {}).get("against", ()):
            if peer["name"].endswith(" compiled") == compiled and peer["ratio"]:
                return peer["ratio"]["median"]
        return None

    return find


def _start(record: dict[str, Any]) -> float | None:
    ours = record["results"][0]["ours"]
    return ours and ours["start_ratio"]


def _number(form: str, name: str, worst: Callable[..., float]) -> Callable[[dict[str, Any]], float | None]:
    """Of the text read at once, and of the text written token by token, the worse one."""
    return lambda record: worst(one[name] for one in record["numbers"][form].values())


AIMS = (
    Aim("decoding in float16: part of the measured copy bandwidth", "float16", _share("decode", "copy_share"), 0.8),
    Aim("decoding in float16: times as fast as transformers", "float16", _ratio(False), 10.0),
    Aim("decoding in float16: times as fast as transformers, compiled, static cache", "float16", _ratio(True), 1.2),
    Aim("a prompt in bfloat16: part of the measured GEMM rate", "bfloat16", _share("prefill", "gemm_share"), 0.6),
    Aim("from_pretrained to first token: times a copy of the weights", "start", _start, 3.0, False),
    Aim("float32 logits: off float64, at most", NUMBERS, _number("float32", "relative", max), 1e-4, False, ".1e"),
    Aim("float16: KL from float64, mean", NUMBERS, _number("float16", "kl", max), 1e-3, False, ".1e"),
    Aim("float16: same likeliest token", NUMBERS, _number("float16", "same_top", min), 0.999, True, ".4f"),
    Aim("bfloat16: KL from float64, mean", NUMBERS, _number("bfloat16", "kl", max), 1e-3, False, ".1e"),
    Aim("bfloat16: same likeliest token", NUMBERS, _number("bfloat16", "same_top", min), 0.999, True, ".4f"),
)  # fmt: skip


def parser(prog: str) -> common.Parser:
    examples = (f"{prog} --out record", f"{prog} --out record --runs numbers,float16", f"{prog} --no-peers")
    made = common.Parser(prog, examples, "Measure all that a GPU is measured for. LIST: with commas.")
    made.add_argument(
        "--out", default="gpu-record", metavar="FOLDER", help="where it goes (default: gpu-record)"
    )
    made.add_argument("--shape", default="2.7b", metavar="NAME", help=f"{', '.join(SHAPES)} (default: 2.7b)")
    made.add_argument("--device", default="cuda", help="cuda, cuda:1 ... (default: cuda)")
    names = (NUMBERS, *RUNS)
    made.add_argument("--runs", default=",".join(names), metavar="LIST", help=f"of {', '.join(names)}")
    made.add_argument("--no-peers", action="store_true", help="without transformers")
    made.add_argument("--peer-python", metavar="PATH", help="the Python in which transformers is installed")
    made.add_argument("-p", "--n-prompt", default="2048", metavar="N", help="(default: 2048)")
    made.add_argument("-n", "--n-gen", default="128", metavar="N", help="(default: 128)")
    made.add_argument("-d", "--depth", default="512", metavar="N", help="(default: 512)")
    made.add_argument("-r", "--repetitions", default="5", metavar="N", help="(default: 5)")
    made.add_argument("-q", "--quiet", action="store_true", help="no progress, only the summary and errors")
    return made


def run(args: argparse.Namespace) -> int:
    """Returns: 0, or 1 when something could not be measured. What was not reached is said in the summary alone."""
    names = [name.strip() for name in args.runs.split(",")]
    for name in names:
        if name not in (NUMBERS, *RUNS):
            raise InputError(
                "--runs has an unknown name", found=quote(name), allowed=", ".join((NUMBERS, *RUNS))
            )
    device = get_backend("cupy", device=args.device).device
    folder = Path(args.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"the folder cannot be made ({error.strerror})", where=str(folder)) from error
    code = 0
    for name in dict.fromkeys(names):
        began = time.perf_counter()
        try:
            code |= _numbers(folder, device) if name == NUMBERS else _bench(folder, name, device, args)
        except RefimplError as error:
            code = 1
            terminal.show_warning(f"{name}: {error}")
        if not args.quiet:
            terminal.note(f"{name}: {time.perf_counter() - began:.0f} s")
    text = summary(_records(folder))
    _write(folder / "summary.md", text)
    terminal.write(text)
    return code


def _numbers(folder: Path, device: str) -> int:
    found = numbers(device)
    record = {
        "benchmark": "numbers",
        "refimpl": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "device": device,
        "numbers": found,
    }
    model.write_record(folder / f"{NUMBERS}.json", record)
    rows = [["dtype", "text", "positions", "largest difference", "KL", "largest KL", "same likeliest"]]
    for form, parts in found.items():
        for how, one in parts.items():
            figures = (f"{one[key]:.1e}" for key in ("relative", "kl", "kl_max"))
            rows.append([form, how, str(one["positions"]), *figures, f"{one['same_top']:.4%}"])
    _write(folder / f"{NUMBERS}.md", _table(rows))
    return 0


def _bench(folder: Path, name: str, device: str, args: argparse.Namespace) -> int:
    words = RUNS[name][1].format(depth=args.depth).split()
    alone = [word for word in words if word not in ("--vs", "transformers")]
    if "--vs" in words and args.peer_python is not None:
        words += ["--peer-python", args.peer_python]
    common_words = ["--shape", args.shape, "--backend", "cupy", "--device", device]
    common_words += ["-p", args.n_prompt, "-n", args.n_gen, "-r", args.repetitions]
    common_words += ["-q"] if args.quiet else []

    def measured(words: list[str]) -> ModelReport:
        return model.measured(model.parser("refimpl bench model").parse([*common_words, *words]))

    code = 0
    try:
        report = measured(alone if args.no_peers else words)
    except (
        InputError,
        MissingFileError,
    ) as error:  # the peers are not there, and our own figures are wanted all the same
        if words == alone or args.no_peers:
            raise
        code = 1
        terminal.show_warning(f"{name}: {error}")
        report = measured(alone)
    model.write_record(folder / f"{name}.json", report.as_dict())
    _write(folder / f"{name}.md", report.text(markdown=True))
    return code | model.say_failures(report.combinations)


def _records(folder: Path) -> dict[str, dict[str, Any]]:
    """What lies in the folder, of this call and of earlier ones."""
    found = {}
    for name in (NUMBERS, *RUNS):
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def summary(records: dict[str, dict[str, Any]]) -> str:
    """The aims and what was measured of them, in Markdown."""
    rows = [["aim", "wanted", "measured", "reached"]]
    rows += [aim.row(records) for aim in AIMS]
    where = []
    for name, record in records.items():
        for limits in record.get("limits", ())[:1]:
            copied, gemm = limits["best_copy_bytes_per_s"], limits["best_gemm_flop_per_s"]
            where.append(
                f"- {name}: {record['date']}, {limits['name']}, copy {copied / 1e9:.0f} GB/s, "
                f"{limits['gemm_dtype']} GEMM {gemm / 1e12:.1f} TFLOP/s\n"
            )
    return "".join(where) + ("\n" if where else "") + _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _write(path: Path, text: str) -> None:
    """Raises: SaveError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SaveError(f"the file cannot be written ({error.strerror})", where=str(path)) from error
