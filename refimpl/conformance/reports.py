"""The results of a run for other programs: JSON, and the XML that test runners write (JUnit)."""

from __future__ import annotations

import datetime
import re
import xml.etree.ElementTree as ET
from typing import Any

from refimpl.conformance.results import Result, count
from refimpl.conformance.runner import Run
from refimpl.conformance.suite import Suite
from refimpl.conformance.summary import exit_code, explained

# What XML 1.0 cannot hold, not even escaped.
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def today() -> str:
    """The date in UTC, as in reports."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def as_json(suite: Suite, run: Run, date: str, code: int | None = None) -> dict[str, Any]:
    """All that is known of a run.  code: the exit code, where it does not follow from the results."""
    return {
        "suite": suite.identity,
        "engine": run.engine.identity,
        "date": date,
        "exit_code": exit_code(run.results) if code is None else code,
        "interrupted": run.stopped,
        "cases": run.asked_for,
        "taken_from_log": run.taken,
        "notes": run.notes,
        "counts": count(run.results),
        "mistakes": {entry.mistake: entry.cases for entry in explained(run.results)},
        "results": [result.to_json() for result in run.results],
    }


def as_junit(suite: Suite, run: Run) -> str:
    """JUnit XML: a test suite for each level; unsupported and expected failures count as skipped."""
    root = ET.Element("testsuites", name=f"{suite.name} {suite.version}")
    for level in dict.fromkeys(result.level for result in run.results):
        members = [result for result in run.results if result.level == level]
        counts = count(members)
        errors = sum(counts.get(status, 0) for status in _ERRORS)
        attributes = {
            "name": level,
            "tests": len(members),
            "failures": sum(result.failed for result in members) - errors,
            "errors": errors,
            "skipped": counts.get("unsupported", 0) + counts.get("xfail", 0),
            "time": f"{sum(result.seconds for result in members):.3f}",
        }
        parent = ET.SubElement(root, "testsuite", {key: str(value) for key, value in attributes.items()})
        for result in members:
            _add(parent, result, run.engine.name)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


_ERRORS = ("crashed", "timeout", "invalid")


def _add(parent: ET.Element, result: Result, engine: str) -> None:
    case = ET.SubElement(
        parent,
        "testcase",
        name=result.id,
        classname=f"{engine}.{result.operation}",
        time=f"{result.seconds:.3f}",
    )
    message = _NOT_IN_XML.sub("\ufffd", "; ".join([result.message, *map(str, result.mistakes)]))
    if result.status in ("unsupported", "xfail"):
        ET.SubElement(case, "skipped", message=_NOT_IN_XML.sub("\ufffd", result.reason or result.message))
    elif result.failed:
        kind = "error" if result.status in _ERRORS else "failure"
        ET.SubElement(case, kind, type=result.status, message=message)
    said = "\n".join([*result.noise, *result.stderr])
    if said:
        ET.SubElement(case, "system-err").text = _NOT_IN_XML.sub("\ufffd", said)
