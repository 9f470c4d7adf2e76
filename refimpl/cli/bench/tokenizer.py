"""`refimpl bench tokenizer`: encoding and decoding, beside transformers, tokenizers and tiktoken."""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from refimpl.cli import common
from refimpl.cli.bench import machine, participants
from refimpl.cli.bench.texts import Text, from_file, samples
from refimpl.cli.bench.tokenizer_cases import (
    CASES,
    FULL,
    OURS,
    PARALLEL,
    QUICK,
    Adapter,
    Scale,
    Setting,
    measure_all,
)
from refimpl.cli.bench.tokenizer_report import Report
from refimpl.errors import InputError, MissingFileError, quote

PEERS = ("transformers", "tokenizers", "tiktoken")
#: Our own plain form of the algorithm, as a peer that is always there.
PLAIN = "plain"


def parser(prog: str) -> common.Parser:
    examples = (
        prog,
        f"{prog} --quick --vs transformers --cases short,long",
        f"{prog} --model gpt-neox-20b --text book.txt code.py --threads 4 --json",
    )
    made = common.Parser(
        prog, examples, "Measure how fast texts are encoded and decoded, with other implementations in turn."
    )
    made.add_argument(
        "-m",
        "--model",
        metavar="FOLDER",
        help="a folder with tokenizer.json, or with vocab.txt and emoji.json (default: the embedded model)",
    )
    made.add_argument("--clean", action="store_true", help="with do_clean_text (Japanese tokenizers only)")
    made.add_argument("--text", nargs="+", metavar="FILE", help="texts in UTF-8 (default: samples)")
    made.add_argument(
        "--vs",
        nargs="*",
        metavar="PEER",
        help=f"compare with {', '.join(PEERS)}, or {PLAIN}: our own plain form (default: the first three)",
    )
    made.add_argument("--peer-python", metavar="PATH", help="the Python in which the peers are installed")
    made.add_argument("--threads", type=int, metavar="N", help="all threads are so many (default: all cores)")
    made.add_argument(
        "--repeat", type=int, metavar="N", help=f"pairs of each measurement (default: {FULL.repeat})"
    )
    made.add_argument("--cases", metavar="LIST", help=f"some of {','.join(CASES)} (default: all)")
    made.add_argument("--quick", action="store_true", help="little text and few pairs: to see that all works")
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    """Returns: 0, or 1 when a peer gave other ids or another text than we did."""
    cases = _cases(args.cases)
    scale = _scale(args)
    threads = sorted({1, _positive(args.threads, "--threads") or machine.usable_cores()})
    model = _folder(args.model)
    texts = [from_file(path) for path in args.text] if args.text else samples(_sample_names(model))
    options = {"do_clean_text": True} if args.clean else {}
    adapters, missing = _adapters(args.vs, args.peer_python or sys.executable)

    report = Report(
        model=str(model),
        options=options,
        machine=machine.describe(),
        settings={"cases": cases, "threads": threads, "repeat": scale.repeat, "quick": args.quick},
        texts=[_described(text) for text in texts],
        unavailable=missing,
        quiet=args.quiet,
        as_json=args.json,
    )
    report.begin()
    for count in threads:
        wanted = [case for case in cases if count == 1 or case in PARALLEL]
        if wanted:
            measure_all(report, Setting(str(model), options, count, scale, texts, adapters), wanted)
    return report.finish()


# ---- what was asked for


def _cases(given: str | None) -> list[str]:
    """The names in a list with commas, in the order in which they are measured. Raises: InputError."""
    names = [name.strip() for name in given.split(",")] if given is not None else list(CASES)
    for name in names:
        if name not in CASES:
            raise InputError("--cases has an unknown name", found=quote(name), allowed=", ".join(CASES))
    return [case for case in CASES if case in names]


def _positive(value: int | None, option: str) -> int | None:
    if value is not None and value < 1:
        raise InputError(f"{option} is too small", found=value, allowed="1 or more")
    return value


def _scale(args: argparse.Namespace) -> Scale:
    scale = QUICK if args.quick else FULL
    repeat = _positive(args.repeat, "--repeat")
    return scale if repeat is None else replace(scale, repeat=repeat)


def _folder(name: str | None) -> Path:
    """Raises: MissingFileError; InputError for an empty name."""
    folder = Path(common.model_name(name))
    if not folder.is_dir():
        raise MissingFileError(
            "there is no such folder",
            where=quote(str(folder)),
            hint="Every program that is compared reads the same files, so they have to be on this machine.",
        )
    return folder.absolute()


def _sample_names(model: Path) -> tuple[str, ...]:
    """Samples of what such a tokenizer was made for, the most usual first."""
    if (model / "emoji.json").is_file():
        return ("japanese", "chat", "english")
    return ("english", "code", "japanese", "chat")


def _adapters(names: list[str] | None, python: str) -> tuple[list[Adapter], dict[str, str]]:
    """The peers that were asked for, and why some of them cannot be started. Raises: InputError."""
    folder = participants.PEERS
    there = {path.stem.removeprefix("tokenizer_"): path for path in sorted(folder.glob("tokenizer_*.py"))}
    known = dict.fromkeys([*PEERS, *there, PLAIN])
    adapters: list[Adapter] = []
    missing: dict[str, str] = {}
    for name in dict.fromkeys(PEERS if names is None else names):
        if name not in known:
            raise InputError("--vs names an unknown peer", found=quote(name), allowed=", ".join(known))
        if name == PLAIN:
            adapters.append(Adapter(name, OURS, sys.executable, {"impl": "plain"}))
        elif name in there:
            adapters.append(Adapter(name, there[name], python, {}))
        else:
            missing[name] = f"its script is not here ({folder}); a checkout of the repository has it"
    return adapters, missing


def _described(text: Text) -> dict[str, Any]:
    encoded = text.content.encode()
    return {
        "name": text.name,
        "source": text.source,
        "bytes": len(encoded),
        "sha256": hashlib.sha256(encoded).hexdigest(),
    }
