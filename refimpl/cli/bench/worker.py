"""The child process of a benchmark: loads one program, does what it is told, and keeps the time.

It is run by its path, never imported, and needs the standard library alone: so the very same lines time
our own code and that of others, each in the Python environment that it lives in.  The argument is the path
of an adapter, a Python file with

    def prepare(model: str, threads: int, options: dict) -> dict

that returns `versions` (package -> version), `threads` (how many it will use), `what` (in words) and
`operations` (name -> function of one argument).  It raises ImportError or NotImplementedError, with a
sentence, where there is nothing to measure.  A function `begin(options)`, where there is one, is called before:
it imports what only the options can tell, which counts as importing and not as loading.

Requests come as JSON objects, one a line, on standard input; each has one answer, a line on standard output:

    {"do": "prepare", "model": ..., "threads": 1, "options": {}}   -> what `prepare` returned, the
                                                                     seconds of importing and of loading, and the
                                                                     memory after importing (see below)
    {"do": "give", "name": "texts", "items": [...]}                -> {}; keeps the items under that name
    {"do": "make", "name": "ids", "operation": "encode", "of": "texts", "each": true}
                                                                  -> sha256 of each result; keeps the results
    {"do": "run", "operation": "encode", "of": ["a", "b"], "each": true, "first": 0, "times": 3}
                                                                  -> {"seconds": ...} of a, b and a again
    {"do": "call", "operation": "facts", "item": ...}              -> {"result": ...} of one call
    {"do": "show", "name": "ids", "index": 0}                      -> {"item": ...}
    {"do": "forget"}                                               -> {}; drops all that it keeps

With `each` the operation is called for one item after the other, else once with the list of them all.
An answer is {"unavailable": why} or {"error": what} where the request could not be met.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO


class Worker:
    """One adapter and what it was given."""

    def __init__(self, adapter: str):
        self._adapter = adapter
        self._operations: dict[str, Callable[[Any], Any]] = {}
        self._kept: dict[str, list[Any]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; whatever goes wrong is an answer too."""
        arguments = {key: value for key, value in request.items() if key != "do"}
        try:
            return getattr(self, f"do_{request['do']}")(**arguments)
        except (ImportError, NotImplementedError) as error:
            return {"unavailable": str(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def do_prepare(self, model: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        module = _load(self._adapter)
        if hasattr(module, "begin"):
            module.begin(options)
        imported = time.perf_counter()
        memory = anonymous_memory()
        prepared = module.prepare(model, threads, options)
        loaded = time.perf_counter()
        self._operations = prepared.pop("operations")
        times = {"import_seconds": imported - began, "load_seconds": loaded - imported}
        return {**prepared, **times, "memory_after_import": memory}

    def do_give(self, name: str, items: list[Any]) -> dict[str, Any]:
        self._kept[name] = items
        return {}

    def do_make(self, name: str, operation: str, of: str, each: bool) -> dict[str, Any]:
        function, items = self._operations[operation], self._kept[of]
        self._kept[name] = made = [function(item) for item in items] if each else list(function(items))
        return {"digests": list(map(_digest, made)), "sizes": list(map(len, made))}

    def do_run(self, operation: str, of: list[str], each: bool, first: int, times: int) -> dict[str, Any]:
        function = self._operations[operation]
        passes = [self._kept[of[(first + number) % len(of)]] for number in range(times)]
        gc.collect()  # rubbish of earlier requests is not this one's
        began = time.perf_counter()
        if each:
            for items in passes:
                for item in items:
                    function(item)
        else:
            for items in passes:
                function(items)
        return {"seconds": time.perf_counter() - began}

    def do_call(self, operation: str, item: Any) -> dict[str, Any]:
        return {"result": self._operations[operation](item)}

    def do_show(self, name: str, index: int) -> dict[str, Any]:
        return {"item": self._kept[name][index]}

    def do_forget(self) -> dict[str, Any]:
        self._kept.clear()
        return {}


def anonymous_memory(process: int | str = "self") -> int | None:
    """The bytes that a process holds and no file stands behind; None where the system does not tell."""
    try:
        with open(f"/proc/{process}/status", encoding="utf-8", errors="replace") as status:
            lines = dict(line.split(":", 1) for line in status if ":" in line)
        return 1024 * int(lines["RssAnon"].removesuffix("kB\n"))
    except (OSError, KeyError, ValueError):
        return None


def _load(path: str) -> Any:
    specification = importlib.util.spec_from_file_location("adapter", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True).encode()).hexdigest()


def serve(worker: Worker, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests until there are no more."""
    for line in requests:
        answer = worker.answer(json.loads(line))
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    # What a program prints while it is measured must not get between the answers.
    answers_only = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(Worker(sys.argv[1]), sys.stdin.buffer, answers_only)
