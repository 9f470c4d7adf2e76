"""`refimpl bench model`: how fast a whole model reads a prompt and writes, in the terms of llama-bench."""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refimpl.cli import common, terminal
from refimpl.cli.bench import llama_bench, machine
from refimpl.cli.bench.model_cases import (
    LIMITS_SCALE,
    Combination,
    Limits,
    Peer,
    Setting,
    adapter,
    add_shares,
    measure,
    measure_limits,
)
from refimpl.cli.bench.model_report import ModelReport, thread_count
from refimpl.cli.bench.model_shapes import SHAPES, config_of_shape
from refimpl.cli.bench.model_sides import Test
from refimpl.errors import (
    ContextOverflowError,
    InputError,
    MissingFileError,
    RefimplError,
    quote,
)
from refimpl.memory import available_memory

PEERS = ("transformers", "llama.cpp")

#: What a peer of transformers computes in -> bytes of one of its weights.
PEER_DTYPES = {"float32": 4, "bfloat16": 2}

# Where the peers would be found; a question, not an import, since that takes seconds.
_ARE_THERE = "import sys, importlib.util as u; sys.exit(any(u.find_spec(n) is None for n in sys.argv[1:]))"


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
        f"{prog} --profile",
    )
    made = _Parser(prog, examples, "Measure how fast a model reads a prompt and writes. LIST: with commas.")
    common.add_model_options(made)
    made.add_argument(
        "--shape", metavar="NAME", help=f"random weights in the shape of a model: {', '.join(SHAPES)}"
    )
    made.add_argument("--backend", default="auto", metavar="LIST", help="default: auto")
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
    made.add_argument("-t", "--threads", metavar="LIST", help="(default: all cores)")
    made.add_argument("--profile", action="store_true", help="show where the time goes, by operation")
    made.add_argument("--vs", nargs="*", metavar="PEER", help=f"take turns with {' or '.join(PEERS)}")
    made.add_argument("--peer-python", metavar="PATH", help="the Python in which transformers is installed")
    made.add_argument(
        "--peer-dtype",
        metavar="LIST",
        help=f"what transformers computes in (default: {','.join(PEER_DTYPES)})",
    )
    made.add_argument("--gguf", metavar="FILE", help="the model for llama.cpp")
    made.add_argument("--md", action="store_true", help="write the tables in Markdown")
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Returns: 0, or 1 when something could not be measured."""
    if args.md and args.json:
        raise InputError("give --md or --json, not both")
    tests = _tests(args)
    combinations = _combinations(args)
    config, name = _config(args)
    _check_context(tests, config)
    peers = _peers(args)
    with ExitStack() as stack:
        source = name
        if args.shape is not None:
            # Every program that is compared reads the same settings.
            source = stack.enter_context(tempfile.TemporaryDirectory(prefix="refimpl-bench-"))
            config.save_pretrained(source)
        setting = Setting(
            model=source,
            random=args.shape is not None,
            vocab_size=config.vocab_size,
            dtype=args.dtype,
            hub=common.hub_options(args),
            tests=tests,
            repeat=args.repetitions,
            profile=args.profile,
            peers=peers,
            note=(lambda text: None) if args.quiet else terminal.note,
        )
        _check_memory(setting, combinations, config)
        report = ModelReport(
            model=name,
            name=args.shape or config.model_type,
            random=setting.random,
            machine=machine.describe() | {"available_memory": available_memory()},
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=args.command,
            settings={
                "dtype": args.dtype,
                "tests": [test.name for test in tests],
                "repetitions": args.repetitions,
                "limits": dict(LIMITS_SCALE),
                "peers": [peer.name for peer in peers],
            },
            combinations=combinations,
        )
        _measure_all(setting, report)
    if args.json:
        terminal.write_json(report.as_dict())
    else:
        terminal.write(report.text(args.md))
    return _say_failures(combinations)


def _measure_all(setting: Setting, report: ModelReport) -> None:
    """Raises: RefimplError when there is but one thing to measure, and it fails."""
    by_threads = itertools.groupby(report.combinations, key=lambda one: one.threads)
    for threads, group in by_threads:
        limits = Limits(threads)
        report.limits.append(limits)
        together = list(group)
        setting.note(f"measuring the machine with {thread_count(threads)} ...")
        measure_limits(limits)
        for combination in together:
            form = combination.weight_dtype or "the weights as they are"
            form += f", products in {combination.matmul_dtype}" if combination.matmul_dtype else ""
            setting.note(f"measuring {combination.backend}, {form}, {thread_count(threads)} ...")
            measure(setting, combination)
            if combination.failed and len(report.combinations) == 1:
                raise RefimplError(combination.failed)
        measure_limits(limits)  # the speed of a shared machine drifts; the better figure is the limit
        for combination in together:
            add_shares(combination, limits)


def _say_failures(combinations: Sequence[Combination]) -> int:
    failed = 0
    for one in combinations:
        what = f"{one.backend}, {one.weight_dtype or 'weights as they are'}, {thread_count(one.threads)}"
        if one.failed:
            failed += 1
            terminal.show_warning(f"{what}: {one.failed}")
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


# ---- what was asked for


def _tests(args: argparse.Namespace) -> list[Test]:
    if args.repetitions < 1:
        raise InputError("--repetitions is too small", found=args.repetitions, allowed="1 or more")
    prompts = [count for count in _numbers(args.n_prompt, "--n-prompt", 0) if count]
    made = [count for count in _numbers(args.n_gen, "--n-gen", 0) if count]
    depths = _numbers(args.depth, "--depth", 0)
    tests = [Test.prefill(count) for count in prompts]
    tests += [Test.decoding(count, depth) for depth in depths for count in made]
    if not tests:
        raise InputError("there is nothing to measure", found="-p 0 -n 0", allowed="one of them above 0")
    return tests


def _numbers(given: str, option: str, low: int) -> list[int]:
    """The numbers of a list with commas, each once. Raises: InputError."""
    numbers = []
    for part in given.split(","):
        text = part.strip()
        if not (text.isascii() and text.isdigit() and low <= int(text) < 1 << 31):
            raise InputError(
                f"{option} has something else than a number",
                found=quote(part),
                allowed=f"whole numbers from {low}, with commas",
            )
        numbers.append(int(text))
    return list(dict.fromkeys(numbers))


def _names(given: str, option: str, allowed: Sequence[str]) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    for name in names:
        if name not in allowed:
            raise InputError(f"{option} has an unknown name", found=quote(name), allowed=", ".join(allowed))
    return list(dict.fromkeys(names))


def _combinations(args: argparse.Namespace) -> list[Combination]:
    """Raises: InputError, and BackendError for a backend or dtype that is not there."""
    from refimpl.backends import get_backend

    products: list[Any] = [None]
    if args.matmul_dtype is not None:
        products = _names(args.matmul_dtype, "--matmul-dtype", common.MATMUL_DTYPES)
    names = list(dict.fromkeys(name.strip() for name in args.backend.split(",")))
    for name, rounded in itertools.product(names, products):
        get_backend(name, dtype=args.dtype, matmul_dtype=rounded)
    forms: list[Any] = [None]
    if args.weight_dtype is not None:
        forms = _names(args.weight_dtype, "--weight-dtype", common.WEIGHT_DTYPES)
    threads = [machine.usable_cores()]
    if args.threads is not None:
        threads = _numbers(args.threads, "--threads", 1)
    every = itertools.product(threads, names, forms, products)
    return [Combination(name, form, count, rounded) for count, name, form, rounded in every]


def _config(args: argparse.Namespace) -> tuple[Any, str]:
    """The settings of the model and what to call it. Weights of the Hub are downloaded, if need be."""
    if args.shape is not None:
        if args.model is not None:
            raise InputError("give --model or --shape, not both")
        return config_of_shape(args.shape), args.shape
    from refimpl.auto import AutoConfig
    from refimpl.checkpoints.locate import find_weights

    name = common.model_name(args.model)
    config = AutoConfig.from_pretrained(name, **common.hub_options(args))
    find_weights(name, **common.hub_options(args))
    return config, os.path.abspath(name) if os.path.isdir(name) else name


def _check_context(tests: Sequence[Test], config: Any) -> None:
    """Raises: ContextOverflowError."""
    context = config.max_position_embeddings
    for test in tests:
        if test.depth + test.tokens > context:
            raise ContextOverflowError(
                "a test is longer than the model's context",
                where=test.name,
                found=f"{test.depth + test.tokens} tokens",
                allowed=f"{context} together",
            )


def _check_memory(setting: Setting, combinations: Sequence[Combination], config: Any) -> None:
    """Raises: ResourceLimitError when our weights and those of a peer do not fit side by side."""
    from refimpl.auto import AutoModelForCausalLM
    from refimpl.backends import get_backend
    from refimpl.cli.bench.random_weights import refuse_without_room, weight_bytes

    model_class = AutoModelForCausalLM.class_for(config, setting.model)
    theirs = 0
    for peer in setting.peers:
        if peer.script is not None:
            skeleton = model_class.skeleton(config, get_backend("numpy"))
            theirs = max(theirs, skeleton.num_parameters() * PEER_DTYPES[peer.options["dtype"]])
    for one in combinations:
        # A mapped file takes no memory of its own, and loading it looks for what else it does.
        form = one.weight_dtype or _half(setting.dtype)
        ours = 0
        if setting.random or form is not None:
            ours = weight_bytes(
                model_class.skeleton(config, get_backend(one.backend, dtype=setting.dtype)), form
            )
        refuse_without_room(
            ours + theirs, f"weights of {model_class.__name__}" + (" and a peer's" if theirs else "")
        )


def _half(dtype: str | None) -> str | None:
    return dtype if dtype in ("float16", "bfloat16") else None


def _peers(args: argparse.Namespace) -> list[Peer]:
    """Raises: InputError, MissingFileError: whoever asks for a peer wants it, so nothing is left out."""
    made = []
    python = args.peer_python or sys.executable
    for name in dict.fromkeys(args.vs or ()):
        if name not in PEERS:
            raise InputError("--vs names an unknown peer", found=quote(name), allowed=", ".join(PEERS))
        if name == "llama.cpp":
            program, gguf = llama_bench.find(args.gguf)
            made.append(Peer(name, None, program, gguf=gguf))
            continue
        script = _script(name)
        _check_installed(python, ("transformers", "torch"))
        dtypes = _names(args.peer_dtype or ",".join(PEER_DTYPES), "--peer-dtype", tuple(PEER_DTYPES))
        made += [Peer(f"{name} {dtype}", script, python, {"dtype": dtype}) for dtype in dtypes]
    return made


def _script(name: str) -> Path:
    script = adapter(name)
    if not script.is_file():
        raise MissingFileError(
            "the script of this peer is not here",
            where=quote(str(script)),
            hint="A checkout of the repository has it.",
        )
    return script


def _check_installed(python: str, packages: Sequence[str]) -> None:
    """Raises: InputError."""
    names = " and ".join(packages)
    try:
        there = subprocess.run([python, "-P", "-c", _ARE_THERE, *packages], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"this Python cannot be started ({error})", where="--peer-python") from error
    if there.returncode:
        raise InputError(
            f"{names} are not both installed for this Python",
            where="--vs transformers",
            found=quote(python),
            hint="Install them, or name another Python with --peer-python.",
        )
