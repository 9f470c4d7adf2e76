"""Writing to the two standard streams: what may be shown there, and what happens when they are gone."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from typing import Any

from refimpl.errors import SaveError

# C0 (but for tab and line feed), DEL and C1: what a terminal obeys instead of showing it.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE_BREAK = re.compile("[ \t]*[\r\n\u2028\u2029]\\s*")
# Besides, JSON text must not hold half characters, and some readers take U+2028 for the end of a line.
_NOT_IN_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def prepare_streams() -> None:
    """UTF-8 for files and pipes; a terminal keeps its encoding. Neither fails on a character it has not."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")


def write(text: str) -> None:
    """Write to standard output at once; control characters are escaped on a terminal only.

    Raises: BrokenPipeError when nobody reads any more, SaveError when the system refuses.
    """
    stream = sys.stdout
    if stream is None:
        raise SaveError("there is no standard output to write to")
    try:
        stream.write(visible(text) if stream.isatty() else text)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise SaveError(
            f"the output cannot be written ({error.strerror})", where="standard output"
        ) from error


def write_json(value: Any) -> None:
    """Write one JSON value in one line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    write(_NOT_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")


def note(text: str) -> None:
    """Write a line to standard error, where there is one."""
    if sys.stderr is not None:
        print(visible(text), file=sys.stderr, flush=True)


def show_warning(message: Warning | str, *_: Any) -> None:
    """Takes the place of `warnings.showwarning`: one line, without the place in the source."""
    note(f"refimpl: warning: {one_line(str(message))}")


def show_log_messages() -> None:
    """Let what the rooms of refimpl log appear as warnings do."""
    import logging

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show_warning(record.getMessage())

    logging.getLogger("refimpl").handlers = [Handler()]


def discard_output() -> None:
    """Let what standard output still holds go nowhere: Python would try again at the end, and complain."""
    try:
        target = os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, sys.stdout.fileno())
        os.close(target)
    except (OSError, ValueError, AttributeError):
        pass  # a stream without a file behind it


def visible(text: str) -> str:
    """`text` with control characters as escapes (`\\x1b`); tab and line feed stay."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def one_line(text: str) -> str:
    return visible(_LINE_BREAK.sub(" ", text)).replace("\t", " ")


def display_width(text: str) -> int:
    """How many columns of a terminal `text` takes: Japanese characters two, combining marks none."""
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def table(rows: list[list[str]], right: tuple[int, ...] = ()) -> str:
    """Rows of cells in aligned columns, those in `right` aligned on the right. Empty rows: empty text."""
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - display_width(cell))
            cells.append(space + cell if column in right else cell + space)
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)
