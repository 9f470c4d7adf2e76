"""`refimpl tokenize`: the tokens of a text, and the text of ids."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from typing import Any

from refimpl.cli import common, terminal
from refimpl.errors import InputError, quote


def parser(prog: str) -> common.Parser:
    examples = (
        f'{prog} "吾輩は猫である。"',
        f"{prog} --file book.txt --ids",
        f'{prog} "吾輩は猫である。" --explain',
        f"{prog} --file page.txt --html why.html",
        f"{prog} --decode 30014 26883 26638",
        f'{prog} "吾輩は猫である。" --ids | {prog} --decode',
    )
    made = common.Parser(prog, examples, "Show the tokens of a text, or (--decode) the text of ids.")
    made.add_argument(
        "text", nargs="*", metavar="TEXT", help='the text, or the ids; "-" or nothing: standard input'
    )
    made.add_argument("-f", "--file", metavar="PATH", help="read the text, or the ids, from a UTF-8 file")
    made.add_argument("-d", "--decode", action="store_true", help="the arguments are ids; write their text")
    made.add_argument("--ids", action="store_true", help="write the ids only")
    made.add_argument(
        "--explain", action="store_true", help="show for each token why it won: candidates, or merges"
    )
    made.add_argument("--html", metavar="PATH", help="write this explanation as a page for the browser")
    common.add_model_options(made)
    made.add_argument("--compat", help="hf (as transformers) or original (as the vocabulary was made for)")
    made.add_argument(
        "--clean", action="store_true", help="write URLs, dates, prices and the like as tags first"
    )
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    _refuse_contradictions(args)
    if len(args.text) > 1 and not args.decode:
        raise InputError(
            "more than one text", found=quote(args.text[1]), hint="Put the text in quotation marks."
        )
    text = common.read_text(" ".join(args.text) if args.text else None, args.file, "text")
    ids = read_ids(text) if args.decode else []

    options: dict[str, Any] = {} if args.compat is None else {"compat": args.compat}
    if args.clean:
        options["do_clean_text"] = True
    tokenizer = common.load_tokenizer(common.model_name(args.model), args, **options)
    if args.decode:
        _write_decoded(tokenizer, ids, args.json)
    elif args.explain or args.html is not None:
        _write_explanation(tokenizer, text, args)
    else:
        _write_tokens(tokenizer, text, args)
    return 0


def _refuse_contradictions(args: argparse.Namespace) -> None:
    """Raises: InputError for options that ask for two things at once."""
    chosen = {"--ids": args.ids, "--decode": args.decode, "--json": args.json, "--explain": args.explain}
    chosen["--html"] = args.html is not None
    pairs = [("--ids", other) for other in ("--json", "--decode", "--explain", "--html")]
    pairs += [("--decode", "--explain"), ("--decode", "--html"), ("--json", "--html")]
    for one, other in pairs:
        if chosen[one] and chosen[other]:
            raise InputError(f"{one} and {other} contradict each other")
    if args.html == "":
        raise InputError("the name of the page is empty", allowed="--html PATH")


def read_ids(text: str) -> list[int]:
    """Whole numbers between spaces, line ends or commas; brackets around them are allowed.

    Raises: InputError, with the position of what is no number.
    """
    words = re.split(r"[\s,]+", text.strip().removeprefix("[").removesuffix("]").strip(" ,\t\r\n"))
    ids = []
    for position, word in enumerate(words if words != [""] else []):
        if not re.fullmatch(r"-?[0-9]{1,20}", word):
            raise InputError("ids are whole numbers", where=f"position {position}", found=quote(word))
        ids.append(int(word))
    return ids


def _write_decoded(tokenizer: Any, ids: list[int], as_json: bool) -> None:
    text = tokenizer.decode(ids)
    if as_json:
        terminal.write_json({"ids": ids, "text": text})
    else:
        terminal.write(text + "\n")


def _write_tokens(tokenizer: Any, text: str, args: argparse.Namespace) -> None:
    tokens = tokenizer.tokenize(text)
    ids = tokenizer.convert_tokens_to_ids(tokens)
    if args.ids:
        terminal.write(" ".join(map(str, ids)) + "\n")
    elif args.json:
        texts = [complete for _, complete in stretches(tokenizer, ids)]
        terminal.write_json({"text": text, "ids": ids, "tokens": tokens, "texts": texts})
    else:
        shown = [shown_text(*stretch) for stretch in stretches(tokenizer, ids)]
        rows = [[str(i), printable(token), cell] for i, token, cell in zip(ids, tokens, shown, strict=True)]
        terminal.write(terminal.table([["id", "token", "text"], *rows], right=(0,)))
    if not args.quiet:
        terminal.note(f"{len(ids)} tokens for {len(text)} characters")


def _write_explanation(tokenizer: Any, text: str, args: argparse.Namespace) -> None:
    from refimpl.cli import explain

    explanation = tokenizer.explain(text)
    if args.html is not None:
        from refimpl.cli.explain_html import page
        from refimpl.files import write_atomically

        terminal.write(f"{write_atomically(args.html, page(explanation))}\n")
    elif args.json:
        terminal.write_json(explanation.to_dict())
    else:
        terminal.write(explain.report(explanation))
    if not args.quiet:
        terminal.note(f"{len(explanation.tokens)} tokens for {len(text)} characters")


def stretches(tokenizer: Any, ids: list[int]) -> Iterator[tuple[bytes, str]]:
    """For each id its own bytes, and the text that it completes: "" within a character."""
    from refimpl.tokenizer.streaming import StreamDecoder

    decoder = StreamDecoder(tokenizer, skip_special_tokens=False)
    for token_id in ids:
        yield tokenizer.token_bytes(token_id), decoder.put(token_id)


def shown_text(own: bytes, complete: str) -> str:
    """Text in quotation marks; part of a character as its bytes, the last one with the character: `8d = "🍣"`."""
    if complete.encode("utf-8") == own:
        return quoted(complete)
    return own.hex(" ") + (f" = {quoted(complete)}" if complete else "")


def quoted(text: str) -> str:
    """`text` in double quotes, with everything escaped that does not show."""
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def printable(text: str) -> str:
    """`text` with everything escaped that does not show."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
