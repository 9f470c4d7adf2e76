"""A comparison for programs: as JSON, and as the XML that continuous integration reads (JUnit)."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

from refimpl.conformance.compare import Comparison, Step
from refimpl.conformance.measures import ULP_CLASSES

#: What XML 1.0 cannot hold, not even escaped.
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(made: Comparison) -> dict[str, Any]:
    """Everything, in types of JSON; numbers that JSON does not have are null."""
    first = made.first
    return {
        "verdict": "fine" if made.is_fine else "departs",
        "first_departure": None if first is None else first.name,
        "judged_by": made.judged_by,
        "precision": str(made.precision),
        "mistake": None if made.named is None else {**asdict(made.named), "what": made.named.what},
        "variants_tried": made.looked,
        "notes": made.notes,
        "missing": made.missing,
        "unused": made.unused,
        "ulp_classes": [*map(str, ULP_CLASSES), "more"],
        "steps": [_finite(asdict(step)) for step in made.steps],
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def junit(made: Comparison) -> str:
    """One test case for each step, in the order of computation."""
    wrong = [step for step in made.steps if not step.is_fine]
    suite = ElementTree.Element(
        "testsuite", name="refimpl compare", tests=str(len(made.steps)), failures=str(len(wrong)), errors="0"
    )
    for step in made.steps:
        case = ElementTree.SubElement(suite, "testcase", classname="refimpl.compare", name=_text(step.name))
        if not step.is_fine:
            failure = ElementTree.SubElement(case, "failure", type=step.verdict, message=_text(reason(step)))
            if step is made.first and made.named is not None:
                failure.text = _text(f"{' and '.join(made.named.names)}: {made.named.what}")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def reason(step: Step) -> str:
    """Why a step is not fine."""
    if step.why:
        return step.why
    return f"error {step.error:.3g} of the largest value, {step.limit:.3g} allowed"


def _text(text: str) -> str:
    return _NOT_IN_XML.sub("?", text)
