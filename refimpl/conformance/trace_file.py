"""A trace as one safetensors file: the tensors, and in its metadata what is needed to compute them again.

Every reader of safetensors reads the tensors. The metadata has `refimpl_trace` (the version of this format),
`order` (a JSON list of names), `calls` (the inputs of each call) and `about` (model, config, dtype, backend, ...).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.checkpoints.safetensors_file import SafetensorsFile
from refimpl.checkpoints.safetensors_writer import check_tensor, header, in_file_order
from refimpl.checkpoints.saving import stored_as
from refimpl.conformance.trace_data import Call, Trace
from refimpl.errors import InputError, quote
from refimpl.files import write_atomically

FORMAT = "1"


def save_trace(trace: Trace, path: str | os.PathLike[str]) -> Path:
    """Write `trace` to the file `path`, which is replaced if it is there.  Raises: InputError, SaveError."""
    for name, array in trace.arrays.items():
        check_tensor(name, array.dtype, array.shape)
    stored = [stored_as(name, a.dtype, a.shape, trace.arrays) for name, a in trace.arrays.items()]
    metadata = {
        "refimpl_trace": FORMAT,
        "order": _json(list(trace.arrays)),
        "calls": _json([_call_values(call) for call in trace.calls]),
        "about": _json({**trace.about, "config_sha256": config_hash(trace.about.get("config"))}),
    }
    content = [header(stored, metadata)]
    for tensor in in_file_order(stored):
        content += map(bytes, tensor.pieces())
    return write_atomically(path, b"".join(content))


def load_trace(path: str | os.PathLike[str]) -> Trace:
    """Read a trace.  Raises: as `SafetensorsFile`, and InputError for a file that is no trace, or of a newer format."""
    file = SafetensorsFile(path)
    if not is_trace(file):
        raise InputError(
            "this file is not a trace",
            where=quote(os.fspath(path)),
            found=f"{len(file)} tensors without the metadata of a trace",
            hint="A trace is made by: refimpl trace MODEL --text ... -o trace.safetensors",
        )
    version = file.metadata["refimpl_trace"]
    if version != FORMAT:
        raise InputError(
            "a trace of another version of the format", where=quote(os.fspath(path)), found=quote(version),
            allowed=FORMAT,
        )  # fmt: skip
    try:
        order, about = json.loads(file.metadata["order"]), json.loads(file.metadata["about"])
        calls = [_call(values) for values in json.loads(file.metadata["calls"])]
        # Owned, so that the file may be replaced while the trace is in use.
        arrays = {name: np.array(file[name]) for name in order}
        if len(arrays) != len(file) or not isinstance(about, dict):
            raise ValueError("the order does not name every tensor once")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            "the metadata of this trace are damaged", where=quote(os.fspath(path)), found=quote(str(error))
        ) from error
    return Trace(arrays, calls, about)


def is_trace(file: SafetensorsFile) -> bool:
    return "refimpl_trace" in file.metadata


def config_hash(config: Any) -> str:
    """SHA-256 of the settings, written as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)


def _call_values(call: Call) -> dict[str, Any]:
    values = {name: getattr(call, name) for name in ("input_ids", "position_ids", "attention_mask")}
    lists = {name: None if array is None else array.tolist() for name, array in values.items()}
    return {**lists, "past": call.past, "repeatable": call.repeatable}


def _call(values: dict[str, Any]) -> Call:
    names = ("input_ids", "position_ids", "attention_mask")
    arrays = {name: None if values[name] is None else np.array(values[name], np.int64) for name in names}
    if any(array is not None and array.ndim != 2 for array in arrays.values()):
        raise ValueError("the inputs of a call are not [batch, seq]")
    return Call(**arrays, past=int(values["past"]), repeatable=bool(values["repeatable"]))
