"""Whether what a tokenizer gave is right, and which recorded mistake it is where it is not."""

from __future__ import annotations

from typing import Any

from refimpl.conformance.results import Judged, Named
from refimpl.errors import quote

#: What decodes an added token that is spelled like bytes as those bytes (docs/tokenizer.md).
BYTES_OF_ADDED_TOKEN = "added-token-as-bytes"

_TEXTS = ("decoded", "decoded_without_special_tokens", "decoded_original")


def judge_tokenizer(
    line: dict[str, Any], outputs: dict[str, Any], asked: list[str]
) -> tuple[list[Judged], list[Named]]:
    """The outputs of a tokenizer case beside those of its line, and the mistakes that explain them."""
    judged = [_output(name, outputs, line[name]) for name in asked]
    mistakes = [
        named
        for entry in judged
        if not entry.passed and entry.output in outputs
        for named in _matching(line, entry.output, outputs[entry.output])
    ]
    return judged, mistakes


def _output(name: str, outputs: dict[str, Any], wanted: Any) -> Judged:
    if name not in outputs:
        return Judged(name, False, f"{name} is missing")
    found = outputs[name]
    if name in _TEXTS:
        if not isinstance(found, str):
            return Judged(name, False, f"{name} is not a text: {quote(found)}")
    elif not isinstance(found, list):
        return Judged(name, False, f"{name} is not a list: {quote(found)}")
    if found == wanted and _same_kind(found, wanted):
        return Judged(name, True)
    first = next(
        (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
        min(len(found), len(wanted)),
    )
    there = [quote(value[first]) if first < len(value) else "the end" for value in (found, wanted)]
    message = f"{name} differs at {first}: {there[0]} instead of {there[1]}"
    return Judged(name, False, message, None, None, None, [first], *there)


def _same_kind(found: Any, wanted: Any) -> bool:
    """1 is neither true nor 1.0, which Python thinks equal."""
    if isinstance(wanted, list):
        return all(_same_kind(a, b) for a, b in zip(found, wanted, strict=True))
    return type(found) is type(wanted)


def _matching(line: dict[str, Any], output: str, found: Any) -> list[Named]:
    if output == "ids":
        return [Named(mistake, output) for mistake, ids in line.get("wrong", {}).items() if found == ids]
    recorded = line.get("wrong_decoded", {}) if output == "decoded" else {}
    named = [Named(mistake, output) for mistake, text in recorded.items() if found == text]
    by_library = line.get(f"{output}_by_library")
    if by_library is not None and found == by_library:
        named.append(Named(BYTES_OF_ADDED_TOKEN, output))
    return named
