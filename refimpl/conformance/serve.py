"""The engine's side of the protocol for engines in Python: `python -m refimpl.conformance.serve MODULE:CALLABLE`.

The callable is given each request with `tensors` as NumPy arrays, and returns the answer with `outputs` as arrays; the
first request is the handshake (`"operation": "hello"`).  With `--option NAME=VALUE` the callable is called once
with these options, and returns the one that answers.  An exception ends the process: it is a crash, not a refusal.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import safetensors.numpy

from refimpl.conformance.protocol import PROTOCOL, inline, read_tensor
from refimpl.errors import InputError, quote

Engine = Callable[[dict[str, Any]], dict[str, Any]]

#: Outputs larger than this go by file.
_INLINE_BYTES = 1 << 14


def load_engine(name: str, options: Mapping[str, str] | None = None) -> Engine:
    """The callable `MODULE:CALLABLE`; modules in the current folder are found.

    Raises: InputError where there is none.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError("not an engine", found=quote(name), allowed="module:callable")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(f"there is no such engine ({error})", found=quote(name)) from error
    engine: Engine = found(**options) if options else found
    return engine


def answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request, as JSON; tensors are read and written here."""
    number, results = request.get("id"), request.get("results")
    tensors = {name: read_tensor(value) for name, value in request.get("tensors", {}).items()}
    made = dict(engine({**request, "tensors": tensors}))
    if request.get("operation") == "hello":
        return {"protocol": PROTOCOL, **made, "id": number}
    if isinstance(made.get("outputs"), Mapping):
        made["outputs"] = _outputs(made["outputs"], results)
    return {**made, "id": number}


def _outputs(outputs: Mapping[str, Any], results: str | None) -> dict[str, Any]:
    """Arrays inline where they are small, else in the file that the request names."""
    said: dict[str, Any] = {}
    filed: dict[str, np.ndarray] = {}
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray | np.generic):
            said[name] = value
        elif results is None or value.nbytes <= _INLINE_BYTES:
            said[name] = inline(np.asarray(value))
        else:
            filed[name] = np.ascontiguousarray(value)
            said[name] = {"file": results, "tensor": name}
    if filed and results is not None:
        Path(results).parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(filed, results)
    return said


def serve(engine: Engine, requests: IO[str], answers: IO[str]) -> None:
    """Answer one request a line until there are no more."""
    for line in requests:
        if line.strip():
            answers.write(json.dumps(answer(engine, json.loads(line)), ensure_ascii=True) + "\n")
            answers.flush()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m refimpl.conformance.serve", description=__doc__)
    parser.add_argument("engine", metavar="MODULE:CALLABLE")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args(arguments)
    options = dict(option.split("=", 1) for option in args.option)
    # What the engine prints belongs on standard error: standard output is for answers alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = open(0, encoding="utf-8", errors="surrogatepass", closefd=False)  # noqa: SIM115
    try:
        serve(load_engine(args.engine, options), requests, answers)
    except (Exception, KeyboardInterrupt):
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
