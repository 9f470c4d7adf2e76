"""`refimpl trace`: everything that a model computes on the way, as a file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from refimpl.cli import common, terminal
from refimpl.errors import InputError, quote

if TYPE_CHECKING:
    import numpy as np

    from refimpl.conformance.trace import Call


def parser(prog: str) -> common.Parser:
    examples = (
        f'{prog} --text "吾輩は猫である。" -o trace.safetensors',
        f'{prog} path/to/model --ids "3 14 15 9 2" --dtype float64 -o oracle.safetensors',
        f"{prog} path/to/model --ids '3 14 15' --names 'gpt_neox.layers.0.*,logits' -o layer0.safetensors",
        f"{prog} --text 猫 --text 吾輩は猫である --padding-side left --positions mask -o padded.safetensors",
    )
    made = common.Parser(prog, examples, "Write what a model computes on the way, step by step, to a file.")
    made.add_argument("model", nargs="?", help="a folder or a Hub id (default: the embedded model)")
    made.add_argument("--text", action="append", metavar="TEXT", help="a text; several are padded to a batch")
    made.add_argument("-f", "--file", metavar="PATH", help="read the text from a UTF-8 file")
    made.add_argument("--ids", action="append", metavar="IDS", help='token ids instead of a text: "3 14 15"')
    made.add_argument(
        "--names", action="append", metavar="PATTERNS", help="only these steps (* fits any text)"
    )
    made.add_argument(
        "--padding-side", choices=("left", "right"), default="right", help="where short texts are padded"
    )
    made.add_argument(
        "--positions",
        choices=("place", "mask"),
        default="place",
        help="count positions by place (as a call does), or along the mask (as generation does)",
    )
    made.add_argument(
        "--feed", metavar="LENGTHS", help='through the cache in pieces of these lengths: "5,1,1"'
    )
    common.add_computing_options(made)
    common.add_hub_options(made)
    made.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write (or replace)")
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    if not args.output:
        raise InputError("the name of the file is empty", where="--output")
    texts = _texts(args)
    name, hub = common.model_name(args.model), common.hub_options(args)

    from refimpl.auto import AutoConfig, class_by_architecture
    from refimpl.backends import get_backend
    from refimpl.conformance.steps import names_of, select
    from refimpl.conformance.trace import replay

    config = AutoConfig.from_pretrained(name, **hub)
    rows = _rows_of_ids(args.ids) if args.ids else _tokenized(texts, name, args)
    calls = _calls(rows, config, args)
    patterns = [one.strip() for given in args.names for one in given.split(",")] if args.names else None
    model_class = class_by_architecture(config, name)
    select(
        patterns, names_of(model_class.skeleton(config, get_backend("numpy")))
    )  # before anything is loaded
    model = model_class.from_pretrained(name, config=config, **common.computing_options(args), **hub)
    trace = replay(model, calls, patterns)
    if not args.ids:
        trace.about["texts"] = texts
    path = trace.save(args.output)
    size = path.stat().st_size
    if args.json:
        tensors = {key: list(array.shape) for key, array in trace.items()}
        report = {"file": str(path), "bytes": size, "about": trace.about, "tensors": tensors}
        terminal.write_json(report)
    else:
        terminal.write(f"{path}\n")
    if not args.quiet:
        terminal.note(f"{len(trace)} steps, {common.readable_size(size)}")
    return 0


def _texts(args: argparse.Namespace) -> list[str]:
    """The texts, or none where ids were given.  Raises: InputError."""
    if args.ids:
        if args.text is not None or args.file is not None:
            raise InputError("give a text or ids, not both")
        return []
    if args.text is not None and len(args.text) > 1:
        if args.file is not None:
            raise InputError("give the text as an argument or with --file, not both")
        texts = [common.check_argument(text, f"text {number}") for number, text in enumerate(args.text, 1)]
    else:
        texts = [common.read_text(args.text[0] if args.text else None, args.file, "text")]
    for number, text in enumerate(texts, 1):
        if not text:
            raise InputError("the text is empty", where=f"text {number}", allowed="at least one character")
    return texts


def _rows_of_ids(given: list[str]) -> list[list[int]]:
    rows = []
    for text in given:
        words = text.replace(",", " ").split()
        wrong = next((word for word in words if not (word.isascii() and word.isdigit())), None)
        if wrong is not None or not words:
            raise InputError(
                "not token ids", where="--ids", found=quote(wrong or text), allowed="whole numbers: 3 14 15"
            )
        rows.append([int(word[:12]) for word in words])
    return rows


def _tokenized(texts: list[str], name: str, args: argparse.Namespace) -> list[list[int]]:
    tokenizer = common.load_tokenizer(name, args)
    return [tokenizer.encode(text) for text in texts]


def _calls(rows: list[list[int]], config: Any, args: argparse.Namespace) -> list[Call]:
    """The calls that feed these rows, padded to the longest."""
    import numpy as np

    longest = max(map(len, rows))
    if not longest:
        raise InputError("the text has no tokens")
    pad = config.pad_token_id or 0
    ids = np.full((len(rows), longest), pad)
    mask = np.zeros((len(rows), longest), np.int64)
    for row, (line, seen) in zip(rows, zip(ids, mask, strict=True), strict=True):
        place = slice(longest - len(row), None) if args.padding_side == "left" else slice(len(row))
        line[place], seen[place] = row, 1
    positions = np.arange(longest)[None]
    if args.positions == "mask":  # as `generate` does
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return list(_pieces(ids, None if mask.all() else mask, positions, _lengths(args.feed, longest)))


def _pieces(ids: np.ndarray, mask: np.ndarray | None, positions: np.ndarray, lengths: list[int]) -> Any:
    from refimpl.conformance.trace import Call

    start = 0
    for length in lengths:
        end = start + length
        seen = None if mask is None else mask[:, :end]
        yield Call(ids[:, start:end], positions[:, start:end], seen, past=start)
        start = end


def _lengths(given: str | None, longest: int) -> list[int]:
    if given is None:
        return [longest]
    words = given.replace(",", " ").split()
    lengths = [int(word[:12]) if word.isascii() and word.isdigit() else 0 for word in words]
    if not lengths or min(lengths) < 1 or sum(lengths) != longest:
        raise InputError(
            "not a way to divide the text",
            where="--feed",
            found=quote(given),
            allowed=f"lengths of at least 1 that sum to {longest}, the number of tokens",
        )
    return lengths
