"""`refimpl bench`: how fast this is on your machine, beside other implementations of the same thing.

Every subject has a module of its own with `parser(prog)` and `run(args)`, like a command.  What they share:
`worker.py` runs in a child process and keeps the time, `participants.py` holds such processes, `pairs.py`
compares two of them in turn, `machine.py` says where it all happened.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from importlib import import_module

from refimpl.cli import terminal
from refimpl.errors import InputError, quote

#: subject -> (module, what is measured)
SUBJECTS = {
    "tokenizer": ("tokenizer", "encoding and decoding, in MB/s"),
    "model": ("model", "reading a prompt and writing, in tokens/s, with any backend"),
    "gpu": ("gpu", "all that a GPU is measured for, and how it stands to the aims"),
}

_HELP = """\
Measure speed on this machine, side by side with other implementations where they are installed.

Examples:
  {prog} tokenizer
  {prog} tokenizer --quick --vs transformers
  {prog} model -p 512 -n 128

usage: {prog} SUBJECT [options]

Subjects:
{subjects}

More about a subject: {prog} SUBJECT --help.  How to read the figures: docs/benchmarks.md.
"""


class Family:
    """Finds the subject and lets its own parser read the rest."""

    def __init__(self, prog: str):
        self.prog = prog

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Raises: InputError for an unknown subject or option; SystemExit after --help."""
        if arguments and arguments[0] in ("-h", "--help"):
            terminal.write(self._help())
            raise SystemExit(0)
        found = arguments[0] if arguments else None
        if found not in SUBJECTS:
            near = difflib.get_close_matches(found or "", SUBJECTS, n=1)
            raise InputError(
                "say what is to be measured",
                found=quote(found) if found else "nothing",
                allowed=", ".join(SUBJECTS),
                hint=f"Did you mean {near[0]}?" if near else f"See: {self.prog} --help",
            )
        module = import_module(f"{__name__}.{SUBJECTS[found][0]}")
        return argparse.Namespace(
            subject=module, options=module.parser(f"{self.prog} {found}").parse(arguments[1:])
        )

    def _help(self) -> str:
        width = max(map(len, SUBJECTS))
        subjects = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in SUBJECTS.items())
        return _HELP.format(prog=self.prog, subjects=subjects)


def parser(prog: str) -> Family:
    return Family(prog)


def run(args: argparse.Namespace) -> int:
    return args.subject.run(args.options)
