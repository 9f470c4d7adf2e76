"""`refimpl bench model`: how fast a whole model reads a prompt and writes, in the terms of llama-bench."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refimpl.cli import common, terminal
from refimpl.cli.bench import machine
from refimpl.cli.bench.model_cases import Combination, Setting, add_shares, measure
from refimpl.cli.bench.model_limits import GPU_LIMITS_SCALE, LIMITS_SCALE, Limits
from refimpl.cli.bench.model_report import ModelReport, thread_count
from refimpl.cli.bench.model_request import (
    PEERS,
    PROCESSOR_PEER_DTYPES,
    asked_combinations,
    asked_config,
    asked_peers,
    asked_tests,
    check_context,
    check_memory,
    store,
)
from refimpl.cli.bench.model_shapes import SHAPES
from refimpl.errors import InputError, RefimplError, SaveError
from refimpl.memory import available_memory


class _Parser(common.Parser):
    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        options = super().parse(arguments)
        options.command = [*self.prog.split(), *arguments]
        return options


def parser(prog: str) -> common.Parser:
    examples = (
        prog,
        f"{prog} --model FOLDER -p 512 -n 128 --depth 0,1024 --weight-dtype float16,int8,nf4",
        f"{prog} --shape 2.7b --weight-dtype float16 --vs transformers --json > record.json",
        f"{prog} --shape 2.7b --backend cupy --dtype float16 --depth 512 --vs transformers",
        f"{prog} --profile",
    )
    made = _Parser(prog, examples, "Measure how fast a model reads a prompt and writes. LIST: with commas.")
    common.add_model_options(made)
    made.add_argument(
        "--shape", metavar="NAME", help=f"random weights in the shape of a model: {', '.join(SHAPES)}"
    )
    made.add_argument(
        "--stored", action="store_true", help="with --shape: write a file of the weights first, and load that"
    )
    made.add_argument("--backend", default="auto", metavar="LIST", help="default: auto")
    made.add_argument("--device", metavar="DEVICE", help="cuda, cuda:1 ...: which GPU (default: the first)")
    made.add_argument(
        "--graph",
        default="on",
        metavar="LIST",
        help="on, off: on a GPU, write by steps that are recorded (default), or by calls of the model",
    )
    made.add_argument(
        "--dtype", help="compute in float32 (default) or float64; float16, bfloat16: and keep 16-bit weights"
    )
    made.add_argument(
        "--weight-dtype",
        metavar="LIST",
        help=f"keep large matrices so: {', '.join(common.WEIGHT_DTYPES)} (default: as in the file)",
    )
    made.add_argument(
        "--matmul-dtype",
        metavar="LIST",
        help=f"round what is multiplied to: {', '.join(common.MATMUL_DTYPES)} (default: float32)",
    )
    made.add_argument(
        "-p", "--n-prompt", default="512", metavar="LIST", help="read so many tokens (default: 512; 0: none)"
    )
    made.add_argument(
        "-n", "--n-gen", default="128", metavar="LIST", help="write so many tokens (default: 128; 0: none)"
    )
    made.add_argument(
        "-d", "--depth", default="0", metavar="LIST", help="write after so many tokens (default: 0)"
    )
    made.add_argument(
        "-r", "--repetitions", type=int, default=5, metavar="N", help="of each test (default: 5)"
    )
    made.add_argument(
        "--starts",
        type=int,
        default=0,
        metavar="N",
        help="also start N processes that only load and write one token",
    )
    made.add_argument("-t", "--threads", metavar="LIST", help="(default: all cores)")
    made.add_argument("--profile", action="store_true", help="show where the time goes, by operation")
    made.add_argument("--vs", nargs="*", metavar="PEER", help=f"take turns with {' or '.join(PEERS)}")
    made.add_argument("--peer-python", metavar="PATH", help="the Python in which transformers is installed")
    made.add_argument(
        "--peer-dtype",
        metavar="LIST",
        help=f"what transformers computes in (default: {','.join(PROCESSOR_PEER_DTYPES)}; "
        "beside a GPU: what we compute in)",
    )
    made.add_argument("--gguf", metavar="FILE", help="the model for llama.cpp")
    made.add_argument("--record", metavar="FILE", help="also write the JSON object into a file")
    made.add_argument("--md", action="store_true", help="write the tables in Markdown")
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Returns: 0, or 1 when something could not be measured."""
    if args.md and args.json:
        raise InputError("give --md or --json, not both")
    if args.record is not None and not Path(args.record).absolute().parent.is_dir():
        raise SaveError("there is no such folder", where="--record", found=args.record)
    report = measured(args)
    if args.record is not None:
        write_record(args.record, report.as_dict())
    if args.json:
        terminal.write_json(report.as_dict())
    else:
        terminal.write(report.text(args.md))
    return say_failures(report.combinations)


def measured(args: argparse.Namespace) -> ModelReport:
    """Everything that was asked for. Raises: RefimplError when it is wrong, or nothing of it can be measured."""
    if args.stored and args.shape is None:
        raise InputError("--stored goes with --shape")
    tests = asked_tests(args)
    combinations = asked_combinations(args)
    config, name = asked_config(args)
    check_context(tests, config)
    peers = asked_peers(args, combinations)
    with ExitStack() as stack:
        source = name
        if args.shape is not None:
            # Every program that is compared reads the same settings.
            source = stack.enter_context(tempfile.TemporaryDirectory(prefix="refimpl-bench-"))
            config.save_pretrained(source)
        setting = Setting(
            model=source,
            random=args.shape is not None and not args.stored,
            vocab_size=config.vocab_size,
            dtype=args.dtype,
            hub=common.hub_options(args),
            tests=tests,
            repeat=args.repetitions,
            profile=args.profile,
            peers=peers,
            note=(lambda text: None) if args.quiet else terminal.note,
            starts=args.starts,
        )
        check_memory(setting, combinations, config)
        if args.stored:
            setting.note("writing the weights into a file ...")
            store(source, config, args)
        report = ModelReport(
            model=name,
            name=args.shape or config.model_type,
            random=args.shape is not None,
            machine=machine.describe() | {"available_memory": available_memory()},
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=args.command,
            settings={
                "dtype": args.dtype,
                "tests": [test.name for test in tests],
                "repetitions": args.repetitions,
                "stored": args.stored,
                "limits": dict(LIMITS_SCALE),
                "gpu_limits": dict(GPU_LIMITS_SCALE),
                "peers": [peer.name for peer in peers],
            },
            combinations=combinations,
        )
        _measure_all(setting, report)
    return report


def _measure_all(setting: Setting, report: ModelReport) -> None:
    """Raises: RefimplError when there is but one thing to measure, and it fails."""
    groups: dict[tuple[int, str, str], list[Combination]] = {}
    for one in report.combinations:
        groups.setdefault((one.threads, one.device, one.gemm_dtype), []).append(one)
    for (threads, device, gemm_dtype), together in groups.items():
        limits = Limits(threads, device, gemm_dtype)
        report.limits.append(limits)
        where = f" with {thread_count(threads)}" if device == "cpu" else f": {device}, {gemm_dtype}"
        setting.note(f"measuring the machine{where} ...")
        limits.measure()
        for combination in together:
            form = combination.weight_dtype or "the weights as they are"
            form += f", products in {combination.matmul_dtype}" if combination.matmul_dtype else ""
            form += "" if combination.graph else ", no graph"
            setting.note(f"measuring {combination.backend}, {form}, {thread_count(threads)} ...")
            measure(setting, combination)
            if combination.failed and len(report.combinations) == 1:
                raise RefimplError(combination.failed)
        limits.measure()  # the speed of a shared machine drifts; the better figure is the limit
        for combination in together:
            add_shares(combination, limits)


def write_record(path: str | Path, value: dict[str, Any]) -> None:
    """Raises: SaveError."""
    try:
        Path(path).write_text(json.dumps(value, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise SaveError(f"the record cannot be written ({error.strerror})", where=str(path)) from error


def say_failures(combinations: Sequence[Combination]) -> int:
    """Warns of each. Returns: 0, or 1 where there is one."""
    failed = 0
    for one in combinations:
        what = f"{one.backend}, {one.weight_dtype or 'weights as they are'}, {thread_count(one.threads)}"
        if one.failed:
            failed += 1
            terminal.show_warning(f"{what}: {one.failed}")
        for note in one.ours.notes if one.ours else ():
            terminal.show_warning(f"{what}: {note}")
        for measured in one.tests:
            for peer in measured.against:
                if peer.failed:
                    failed += 1
                    terminal.show_warning(f"{what}, {measured.test}: {peer.name}: {peer.failed}")
        for joined in one.peers:
            theirs = joined.said["facts"].get("parameters")
            ours = one.ours.said["facts"]["parameters"] if one.ours else theirs
            if theirs and ours and not 0.98 < theirs / ours < 1.02:
                terminal.show_warning(
                    f"{joined.name} has another model: {theirs:,} parameters there, {ours:,} here"
                )
    return 1 if failed else 0
