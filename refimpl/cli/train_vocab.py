"""`refimpl train-vocab`: a vocabulary from texts, in the format of GPT-NeoX-Japanese."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from refimpl.cli import common, terminal
from refimpl.errors import InputError, SaveError, quote

DEFAULT_SIZE = 8000
VOCABULARY, EMOJI = "vocab.txt", "emoji.json"

# Enough for three digits of the average; a book has about 100,000 characters.
_SAMPLE_CHARACTERS = 1_000_000
_BLOCK_BYTES = 1 << 20


def parser(prog: str) -> common.Parser:
    examples = (
        f"{prog} book1.txt book2.txt --output my_vocabulary",
        f"cat *.txt | {prog} - --output my_vocabulary --vocab-size 16000",
    )
    made = common.Parser(prog, examples, "Make vocab.txt and emoji.json for Japanese texts (files in UTF-8).")
    made.add_argument("files", nargs="+", metavar="FILE", help='a text; "-": standard input')
    made.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="where to write; made if need be"
    )
    size_help = f"at most so many tokens (default: {DEFAULT_SIZE})"
    made.add_argument("--vocab-size", type=int, default=DEFAULT_SIZE, metavar="N", help=size_help)
    made.add_argument("--force", action="store_true", help="replace a vocabulary that is there already")
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    from refimpl.tokenizer.vocab_trainer import train_vocab

    folder = _checked_folder(args.output, args.force)
    sample = _Sample()
    began = time.perf_counter()
    lines = train_vocab(sample.of(_texts(args.files)), args.vocab_size)
    seconds = time.perf_counter() - began
    _write(folder, lines)

    average = sample.characters_per_token(folder)
    if args.json:
        terminal.write_json(
            {
                "output": str(folder),
                "files": [str(folder / name) for name in (VOCABULARY, EMOJI)],
                "tokens": len(lines),
                "characters": sample.total,
                "characters_per_token": round(average, 3),
                "seconds": round(seconds, 2),
            }
        )
    else:
        terminal.write("".join(f"{folder / name}\n" for name in (VOCABULARY, EMOJI)))
    if not args.quiet:
        terminal.note(
            f"{len(lines)} tokens from {sample.total:,} characters in {seconds:.1f} s; "
            f"{average:.2f} characters per token"
        )
    return 0


def _checked_folder(output: str, force: bool) -> Path:
    """The folder, after a look at what is there: training takes minutes.  Raises: InputError, SaveError."""
    if not output:
        raise InputError("the name of the output folder is empty")
    folder = Path(output)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError("the output is a folder, but there is a file", where=quote(str(nearest)))
    if not os.access(nearest, os.W_OK):
        raise SaveError("nothing may be written here", where=quote(str(nearest)))
    present = [name for name in (VOCABULARY, EMOJI) if os.path.lexists(folder / name)]
    if present and not force:
        raise InputError(
            "the folder has a vocabulary already",
            where=quote(output),
            found=", ".join(present),
            hint="Name another folder, or replace it with --force.",
        )
    return folder


def _write(folder: Path, lines: list[str]) -> None:
    from refimpl.files import make_folder, write_atomically
    from refimpl.tokenizer.emoji_table import emoji_table

    make_folder(folder)
    write_atomically(folder / VOCABULARY, "".join(f"{line}\n" for line in lines))
    write_atomically(folder / EMOJI, json.dumps(emoji_table()) + "\n")


def _texts(files: list[str]) -> Iterator[str]:
    """The texts in blocks of whole lines, so that a corpus need not fit into memory."""
    for name in files:
        if name != "-":
            with common.open_file(name) as file:
                yield from _blocks(file, name)
        elif sys.stdin is not None:
            yield from _blocks(sys.stdin.buffer, "standard input")


def _blocks(file: IO[bytes], where: str) -> Iterator[str]:
    offset = 0
    while lines := file.readlines(_BLOCK_BYTES):
        block = b"".join(lines)
        yield common.decode(block, where, offset)
        offset += len(block)


class _Sample:
    """The beginning of the texts that pass through `of`, to measure the vocabulary with."""

    def __init__(self) -> None:
        self.total = 0
        self._kept: list[str] = []

    def of(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            room = _SAMPLE_CHARACTERS - self.total
            if room > 0:
                self._kept.append(text[:room])
            self.total += len(text)
            yield text

    def characters_per_token(self, folder: Path) -> float:
        from refimpl.tokenizer import GPTNeoXJapaneseTokenizer

        tokenizer = GPTNeoXJapaneseTokenizer.from_pretrained(folder, compat="original")
        tokens = sum(len(tokenizer.tokenize(text, split_special_tokens=True)) for text in self._kept)
        return sum(map(len, self._kept)) / max(tokens, 1)
