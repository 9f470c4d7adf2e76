"""What the commands share: options, reading text, and where the tokenizer comes from."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NoReturn

from refimpl.cli import terminal
from refimpl.errors import (
    InputError,
    MissingFileError,
    ResourceLimitError,
    TextInputError,
    quote,
)

# Far more than a context holds; without a limit `< /dev/zero` would fill the memory.
MAX_TEXT_BYTES = 64 << 20

WEIGHT_DTYPES = ("float64", "float32", "float16", "bfloat16", "int8", "nf4")
MATMUL_DTYPES = ("float32", "bfloat16", "float16", "tf32", "int8")

_LONG_OPTION = re.compile(r"--[A-Za-z][A-Za-z0-9-]*")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Parser(argparse.ArgumentParser):
    """argparse, with errors as InputError, the nearest option for a mistyped one, and examples first."""

    def __init__(self, prog: str, examples: Sequence[str], what: str):
        shown = "\n".join(f"  {example}" for example in examples)
        super().__init__(
            prog=prog,
            description=f"{what}\n\nExamples:\n{shown}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Raises: InputError for an unknown option or a wrong value; SystemExit after --help."""
        self._refuse_unknown(arguments)
        return self.parse_args(arguments)

    def _refuse_unknown(self, arguments: Sequence[str]) -> None:
        """argparse would first complain of what the mistyped option made of the other arguments."""
        for argument in arguments:
            if argument == "--":
                return
            name = argument.partition("=")[0]
            if _LONG_OPTION.fullmatch(name) and name not in self._option_string_actions:
                near = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.7)
                self.error(f"unknown option {name}" + (f" (did you mean {near[0]}?)" if near else ""))

    def error(self, message: str) -> NoReturn:
        raise InputError(message, hint=f"See: {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        terminal.write(self.format_help())


def add_model_options(parser: Parser) -> None:
    parser.add_argument("-m", "--model", help="a folder or a Hub id (default: the embedded model)")
    add_hub_options(parser)


def add_hub_options(parser: Parser) -> None:
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument("--offline", action="store_true", help="use only what was downloaded before")


def add_dtype_options(parser: Parser) -> None:
    parser.add_argument(
        "--dtype", help="compute in float32 (default) or float64; float16, bfloat16: and keep 16-bit weights"
    )
    parser.add_argument(
        "--weight-dtype", choices=WEIGHT_DTYPES, help="keep large matrices so (default: as in the file)"
    )


def add_computing_options(parser: Parser) -> None:
    """What computes, and with what numbers: `computing_options` reads them."""
    parser.add_argument(
        "--backend", default="auto", help="auto, cupy (a GPU), numba or numpy (default: auto)"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, or cuda:1 for the second GPU")
    add_dtype_options(parser)


def add_matmul_dtype_option(parser: Parser) -> None:
    parser.add_argument(
        "--matmul-dtype",
        choices=MATMUL_DTYPES,
        help="round the factors of products; long prompts are read faster",
    )


def computing_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    names = ("backend", "device", "dtype", "weight_dtype", "matmul_dtype")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def add_output_options(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    parser.add_argument("-q", "--quiet", action="store_true", help="no summary, only errors and warnings")


def model_name(name: str | None) -> str:
    """The folder or Hub id that the user named, or the folder of the embedded model."""
    if name is None:
        from refimpl.embedded_model import embedded_model_path

        return str(embedded_model_path())
    if not name:  # pathlib would take it for the current folder
        raise InputError("the name of the model is empty", allowed="a folder, or a Hub id such as owner/name")
    return name


def hub_options(args: argparse.Namespace) -> dict[str, Any]:
    return {"revision": args.revision, "local_files_only": args.offline}


def load_tokenizer(name: str, args: argparse.Namespace, **options: Any) -> Any:
    from refimpl.auto import AutoTokenizer

    terminal.show_log_messages()
    return AutoTokenizer.from_pretrained(name, **hub_options(args), **options)


def read_text(argument: str | None, file: str | None, what: str) -> str:
    """The text given as an argument, in a file, or (`-`, or no argument) on standard input.

    One line end at the end of a file or of standard input is not part of the text.
    Raises: InputError (no text, or two), TextInputError (not valid Unicode), MissingFileError,
        ResourceLimitError.
    """
    if argument is not None and file is not None:
        raise InputError(f"give the {what} as an argument or with --file, not both")
    if argument is not None and argument != "-":
        return check_argument(argument, f"the {what}")
    if file is not None and file != "-":
        with open_file(file) as opened:
            return _without_last_line_end(decode(_read_limited(opened, file), file))
    if sys.stdin is None or (argument is None and file is None and sys.stdin.isatty()):
        raise InputError(f"there is no {what}", hint="Give it in quotation marks, or name a --file.")
    return _without_last_line_end(decode(_read_limited(sys.stdin.buffer, "standard input"), "standard input"))


def check_argument(text: str, where: str) -> str:
    """`text` itself; Python turns bytes of the command line that are not UTF-8 into lone surrogates."""
    found = _SURROGATE.search(text)
    if found:
        offset = len(text[: found.start()].encode("utf-8"))
        raise TextInputError(f"not UTF-8 at byte {offset}", where=where, position=found.start())
    return text


@contextmanager
def open_file(path: str) -> Iterator[IO[bytes]]:
    """A file of the user for reading. Raises: MissingFileError, InputError."""
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise MissingFileError("no such file", where=quote(path)) from error
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror})", where=quote(path)) from error


def _read_limited(file: IO[bytes], where: str) -> bytes:
    data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ResourceLimitError("the text is too long", where=where, allowed=f"{MAX_TEXT_BYTES} bytes")
    return data


def decode(data: bytes, where: str, offset: int = 0) -> str:
    """UTF-8 bytes, which begin at `offset` of their file, as text without a byte order mark.

    Raises: TextInputError; attribute `position`: of the first wrong byte.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        position = offset + error.start
        raise TextInputError(
            f"not UTF-8 at byte {position}",
            where=where,
            found=f"0x{data[error.start]:02x}",
            hint="Convert it first, for instance with iconv -t UTF-8.",
            position=position,
        ) from error
    return text if offset else text.removeprefix("\ufeff")


def _without_last_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def readable_size(count: float) -> str:
    """1536 -> "1.5 KiB" """
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.0f} {units[0]}" if units[0] == "bytes" else f"{count:.1f} {units[0]}"
