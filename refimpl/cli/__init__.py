"""The command line.  Data goes to standard output, everything else to standard error.

This module is all that `refimpl --help` needs: a command's own module is imported when it is called,
and imports NumPy and the model only when there is work for them.
"""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from refimpl import kernel_cache
from refimpl.cli import terminal
from refimpl.errors import InputError, RefimplError, quote

#: command -> (module, what it does)
COMMANDS = {
    "generate": ("generate", "continue a text"),
    "chat": ("chat", "talk with a model"),
    "tokenize": ("tokenize", "show the tokens of a text, or the text of ids"),
    "mask": ("mask", "show which token may look at which"),
    "inspect": ("inspect", "show what a model is made of, without loading it"),
    "download": ("download", "fetch a model from the Hub, and only what is needed of it"),
    "convert": ("convert", "write a model as safetensors, in another precision if asked"),
    "quantize": ("quantize", "write a model with its dense layers in 8 or 4 bits"),
    "train-vocab": ("train_vocab", "make a vocabulary from texts"),
    "perplexity": ("perplexity", "measure how well a model foresees a text, and compare two runs"),
    "trace": ("trace", "write what a model computes on the way, step by step"),
    "compare": ("compare", "say where another program departs from a trace, and why"),
    "conform": ("conform", "run any engine over the suite of cases, and name its mistakes"),
    "bench": ("bench", "measure speed, beside other implementations"),
}

INTERRUPTED = 130

_HELP = """\
Examples:
  refimpl generate "吾輩は猫である。"
  refimpl generate "昔々、" --model abeja/gpt-neox-japanese-2.7b --temperature 0.8 --seed 1
  refimpl chat --model rinna/japanese-gpt-neox-3.6b-instruction-ppo
  refimpl tokenize "吾輩は猫である。"
  refimpl inspect
  refimpl train-vocab book1.txt book2.txt --output my_vocabulary

usage: refimpl COMMAND [options]

Commands:
{commands}

Without --model the small Japanese model inside the package is used.
More about a command: refimpl COMMAND --help.  The version: refimpl --version.
"""


def run() -> NoReturn:
    """The console script: ends the process with the exit code."""
    terminal.prepare_streams()
    if sys.stderr is not None and sys.stderr.isatty():
        kernel_cache.announce = terminal.note
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """One call of the command line; `arguments` as after the program's name.

    Returns: the exit code: 0, 1 (it failed), 2 (the call was wrong), 130 (Ctrl-C).
    With REFIMPL_DEBUG=1 in the environment errors are raised instead of reported.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = terminal.show_warning  # type: ignore[assignment]
            return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:  # whoever was reading has enough
        terminal.discard_output()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("REFIMPL_DEBUG", "0") not in ("", "0"):
            raise
        return _report(error)


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        terminal.note(_help())
        return 2
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        if name == "help" and rest and rest[0] in COMMANDS:
            return _dispatch([rest[0], "--help"])
        terminal.write(_help())
        return 0
    if name == "--version":
        from refimpl import __version__

        terminal.write(f"refimpl {__version__}\n")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise InputError(
            "the first argument must be a command",
            found=quote(name),
            allowed=", ".join(COMMANDS),
            hint=f"Did you mean {near[0]}?" if near else "See: refimpl --help",
        )
    module = import_module(f"refimpl.cli.{COMMANDS[name][0]}")
    return module.run(module.parser(f"refimpl {name}").parse(rest))


def _help() -> str:
    width = max(map(len, COMMANDS))
    return _HELP.format(
        commands="\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    )


def _report(error: Exception) -> int:
    """Say what went wrong in one line.  Returns: the exit code."""
    if isinstance(error, RefimplError):
        terminal.note(f"refimpl: error: {terminal.one_line(str(error))}")
        return error.exit_code
    if isinstance(error, MemoryError):
        terminal.note(
            "refimpl: error: there is not enough memory. `refimpl inspect` tells how much a model needs."
        )
        return 1
    what = terminal.one_line(f"{type(error).__name__}: {error}")
    terminal.note(
        f"refimpl: internal error: {what}. This should not happen; REFIMPL_DEBUG=1 shows where it did."
    )
    return 1
