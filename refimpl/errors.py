"""Every error that refimpl raises on purpose.

An error answers five questions: *what* is wrong, *where*, what was *found*, what is *allowed*, and
how to go on (*hint*).  The answers are attributes as well as text, so that a program can act on
them.  Each class also derives from the built-in that a caller would have expected, and carries the
exit code with which the command line ends: 1 for something that failed, 2 for a wrong request.

This module imports the standard library only: every room of the house may import it.
"""

from __future__ import annotations

from typing import Any

QUOTE_LIMIT = 80
_NAME_LIMIT = 160  # of a name in a list, which may have more to it


def quote(value: object) -> str:
    """`value` as one printable line of at most 80 characters; control characters are escaped."""
    try:
        text = " ".join(repr(value).split("\n"))
    except (ValueError, RecursionError):  # a whole number of thousands of digits, lists in lists in lists
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= QUOTE_LIMIT else text[: QUOTE_LIMIT - 1] + "…"


class RefimplError(Exception):
    """Base of all errors of this package.

    Further keyword arguments become attributes: `ConfigError(..., key="hidden_size").key`.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        allowed: object = None,
        hint: str | None = None,
        **details: Any,
    ):
        super().__init__(what)
        self.what, self.where, self.found, self.allowed, self.hint = what, where, found, allowed, hint
        for name, value in details.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        if self.found is not None:
            text += f"; found {self.found if isinstance(self.found, str) else quote(self.found)}"
        if self.allowed is not None:
            text += f"; allowed: {self.allowed}"
        if self.hint is not None:
            text += f". {self.hint}"
        return text


class MissingFileError(RefimplError, FileNotFoundError):
    """A file, folder or Hub repository is not there (or cannot be reached)."""


class CheckpointFormatError(RefimplError, ValueError):
    """The bytes of a weight file violate its format. Attributes: `path`, `offset` where known."""


class IncompleteCheckpointError(CheckpointFormatError):
    """A weight file is truncated, or is a placeholder for the real one."""


class UnsafeCheckpointError(RefimplError, ValueError):
    """A file asks for something that reading weights never needs. It is never retried another way."""


class CheckpointMismatchError(RefimplError, ValueError):
    """Weights and config disagree. Attributes `missing`, `unexpected`, `mismatched`: complete lists."""

    def __init__(
        self,
        what: str,
        *,
        missing: list[str] | None = None,
        unexpected: list[str] | None = None,
        mismatched: list[str] | None = None,
        **details: Any,
    ):
        self.missing, self.unexpected, self.mismatched = missing or [], unexpected or [], mismatched or []
        super().__init__(what, **details)

    def __str__(self) -> str:
        lists = [("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", self.mismatched)]
        filled = [(label, names) for label, names in lists if names]
        shown = [f"{label} ({len(names)}): {shorten(names, 700 // len(filled))}" for label, names in filled]
        return "; ".join([super().__str__(), *shown])


def shorten(names: list[str], characters: int = 700) -> str:
    """The first names, at most ten and about so many characters, and how many more there are."""
    shown: list[str] = []
    for name in names[:10]:
        name = name if len(name) <= _NAME_LIMIT else name[: _NAME_LIMIT - 1] + "…"
        if shown and len(", ".join([*shown, name])) > characters:
            break
        shown.append(name)
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f", … and {rest} more" if rest else "")


class CheckpointValueError(RefimplError, ValueError):
    """A tensor holds NaN or infinity. Attributes: `tensor`, `count`, `first_index`."""


class ConfigError(RefimplError, ValueError):
    """A model cannot be built from these settings. Attributes: `key`, `value`."""


class ResourceLimitError(RefimplError, RuntimeError):
    """A request needs more than there is; raised before anything is allocated."""


class BackendError(RefimplError, RuntimeError):
    """The backend, device or dtype asked for is not available here."""

    exit_code = 2


class TokenizerFileError(RefimplError, ValueError):
    """A vocabulary, emoji or tokenizer file is not what its format says. Attributes: `path`, `line`."""


class TextInputError(RefimplError, ValueError):
    """Text from the user is not valid Unicode. Attribute: `position`."""

    exit_code = 2


class InputError(RefimplError, ValueError):
    """Ids, masks, shapes or options of a call are wrong."""

    exit_code = 2


class ContextOverflowError(InputError):
    """More tokens than the context (or a preallocated cache) holds."""


class NumericalError(RefimplError, ArithmeticError):
    """A computation left the finite numbers. Attributes: `layer`, `op` where known."""


class SuiteError(RefimplError, ValueError):
    """A suite of golden cases cannot be run: unknown version, other bytes than its manifest says, no cases."""

    exit_code = 2


class EngineError(RefimplError, RuntimeError):
    """An engine cannot be started, or its handshake is wrong: there is nothing to measure."""

    exit_code = 2


class ProtocolError(RefimplError, ValueError):
    """What an engine said is not what the protocol allows."""


class SaveError(RefimplError, OSError):
    """Writing failed; what was there before is untouched. The system's own error is `__cause__`."""
