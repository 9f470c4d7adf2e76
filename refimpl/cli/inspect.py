"""`refimpl inspect`: what a model is made of and what it needs, from the headers of its files."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl.cli import common, terminal
from refimpl.errors import MissingFileError, TokenizerFileError

if TYPE_CHECKING:
    from refimpl.backends.base import Backend
    from refimpl.checkpoints.weight_file import WeightFile
    from refimpl.config_base import PreTrainedConfig
    from refimpl.parameter import Parameter

_HALF_TYPES = ("float16", "bfloat16")


def parser(prog: str) -> common.Parser:
    examples = (prog, f"{prog} abeja/gpt-neox-japanese-2.7b --dtype float16", f"{prog} my_model --json")
    made = common.Parser(
        prog, examples, "Show what a model is made of and what it needs, without loading its weights."
    )
    made.add_argument(
        "model", nargs="?", metavar="MODEL", help="a folder or a Hub id (default: the embedded model)"
    )
    made.add_argument("-m", "--model", dest="model_option", help=argparse.SUPPRESS)
    common.add_hub_options(made)
    common.add_dtype_options(made)
    made.add_argument("--values", action="store_true", help="read every number, and count NaN and infinity")
    made.add_argument("--json", action="store_true", help="write one JSON object")
    return made


def run(args: argparse.Namespace) -> int:
    name = common.model_name(args.model_option if args.model is None else args.model)
    report = describe(name, args)
    if args.json:
        terminal.write_json(report)
    else:
        terminal.write(as_text(report))
    return 0


def describe(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is shown, as JSON values."""
    from refimpl.auto import AutoConfig
    from refimpl.checkpoints.locate import find_weights, open_weights

    hub = common.hub_options(args)
    config = AutoConfig.from_pretrained(name, **hub)
    path = find_weights(name, **hub)
    tensors = open_weights(path)
    settings = {key: value for key, value in config.to_dict().items() if key not in config.unused_keys}
    return {
        "model": name,
        "config": settings,
        "unused_config_keys": config.unused_keys,
        "tied": config.tie_word_embeddings,
        "context": config.max_position_embeddings,  # type: ignore[attr-defined]
        **_describe_weights(config, tensors, path, args),
        "remarks": _remarks(config, tensors, path),
        "values": _scan(tensors) if args.values else None,
        **_special_tokens(name, args),
        "generation": _generation_settings(name, hub),
        "tensors": [
            {
                "name": key,
                "shape": list(tensors.shape(key)),
                "dtype": str(tensors.dtype(key)),
                "bytes": _bytes(tensors, key),
            }
            for key in tensors
        ],
    }


def _describe_weights(
    config: PreTrainedConfig, tensors: WeightFile, path: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Parameters, and the bytes they take once they are loaded with these options."""
    from refimpl.auto import class_by_architecture
    from refimpl.backends import get_backend
    from refimpl.checkpoints.panel_file import PanelFile

    dtype = None if args.dtype == "auto" else args.dtype
    backend = get_backend("auto", dtype=dtype)
    model = class_by_architecture(config, path).skeleton(config, backend)
    in_file = Counter[str]()
    for key in tensors:
        in_file[str(tensors.dtype(key))] += _bytes(tensors, key)
    asked = args.weight_dtype or (dtype if dtype in _HALF_TYPES else None)
    kept = asked or max(in_file, key=in_file.__getitem__, default=str(backend.dtype))
    parameters = list(model.named_parameters())
    weights = _weight_bytes(parameters, kept, in_file, backend)
    if "quantization_config" in config.unused_keys:
        kept, weights = "as stored, quantized", tensors.nbytes
    per_token = 2 * config.num_hidden_layers * config.hidden_size * backend.dtype.itemsize  # type: ignore[attr-defined]
    return {
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "file": {
            "name": path.name,
            "tensors": len(tensors),
            "bytes": tensors.nbytes,
            "dtypes": dict(in_file),
            "packed": len(tensors.packed) if isinstance(tensors, PanelFile) else 0,
        },
        "files": [{"name": part.name, "bytes": part.stat().st_size} for part in tensors.paths],
        "bytes_by_weight_dtype": {
            form: _weight_bytes(parameters, form, in_file, backend) for form in common.WEIGHT_DTYPES
        },
        "memory": {
            "compute_dtype": str(backend.dtype),
            "weight_dtype": kept,
            "weights": weights,
            "cache_per_token": per_token,
            "cache_full_context": per_token * config.max_position_embeddings,  # type: ignore[attr-defined]
        },
    }


def _remarks(config: PreTrainedConfig, tensors: WeightFile, path: Path) -> list[str]:
    """What is missing or surprising about the weights, for the model that the config names."""
    from refimpl.auto import class_by_architecture
    from refimpl.backends import get_backend
    from refimpl.matching import Matching
    from refimpl.quantized_files import QuantizedTensors

    skeleton = class_by_architecture(config, path).skeleton(config, get_backend("auto"))
    match = Matching(skeleton, QuantizedTensors(tensors, path))
    found = [f"missing: {name}" for name in match.missing]
    found += [f"not a weight of this model: {name}" for name in match.unexpected]
    found += [f"wrong shape or type: {text}" for text in match.mismatched]
    if match.old_buffers:
        found.append(f"{len(match.old_buffers)} buffers of old versions, which say nothing")
    if match.tied_copy is not None:
        found.append("the tied head is stored beside the embedding")
    dtypes = sorted(
        {str(tensors.dtype(match.file_keys[p.key])) for p in match.parameters if p.key in match.file_keys}
    )
    if len(dtypes) > 1:
        found.append(f"weights of several types: {', '.join(dtypes)}")
    return found + ([] if match.missing or match.mismatched else match.remarks())


def _scan(tensors: WeightFile) -> list[dict[str, Any]]:
    """Every tensor that holds NaN or infinity; all numbers are read."""
    import numpy as np
    from huggingface_hub.utils import tqdm

    found = []
    for name in tqdm(list(tensors), desc="Reading", unit="tensor", disable=None, leave=False):
        array = tensors[name]
        if array.dtype.kind in "fV":
            nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
            if nan or infinite:
                found.append({"name": name, "nan": nan, "infinite": infinite})
    return found


def _weight_bytes(parameters: list[Parameter], kept: str, in_file: Counter[str], backend: Backend) -> int:
    """All but the large matrices is kept in the compute dtype, and of those some may be quantized."""
    from refimpl.backends import to_dtype
    from refimpl.quantization import QUANTIZED_DTYPES, kept_bytes, quantization_of

    quantization = quantization_of(kept, None) if kept in QUANTIZED_DTYPES else None
    # What is not quantized stays as it is in the file.
    dense = to_dtype(max(in_file, key=in_file.__getitem__, default="float32") if quantization else kept)
    total = 0
    for parameter in parameters:
        packed = kept_bytes(parameter.key, parameter.shape, quantization)
        itemsize = (dense if parameter.is_matrix else backend.dtype).itemsize
        total += math.prod(parameter.shape) * itemsize if packed is None else packed
    return total


def _bytes(tensors: WeightFile, key: str) -> int:
    return math.prod(tensors.shape(key)) * tensors.dtype(key).itemsize


def _special_tokens(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Role -> token and id, or why the model has no tokenizer: its weights can be inspected all the same."""
    try:
        tokenizer = common.load_tokenizer(name, args)
    except (MissingFileError, TokenizerFileError) as error:
        return {"special_tokens": None, "tokenizer_error": str(error)}
    tokens = tokenizer.special_tokens_map
    found = {role: {"token": t, "id": tokenizer.convert_tokens_to_ids(t)} for role, t in tokens.items()}
    return {"special_tokens": found, "tokenizer_error": None}


def _generation_settings(name: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    from refimpl.generation.config import settings_of_model

    settings = settings_of_model(name, **hub)
    if settings is None:
        return None
    return {key: value for key, value in asdict(settings).items() if key != "unused_keys"}


def as_text(report: dict[str, Any]) -> str:
    """The report for reading: the sum of it first, the long list of tensors last."""
    size = common.readable_size
    file, memory, tokens = report["file"], report["memory"], report["special_tokens"]
    together = memory["weights"] + memory["cache_full_context"]
    summary = [
        ["model", f"{report['model']} ({report['config']['model_type']})"],
        ["parameters", f"{report['parameters']:,}"],
        [
            "weights",
            f"{file['name']}: {file['tensors']} tensors, {size(file['bytes'])}, {', '.join(file['dtypes'])}"
            + (f"; {file['packed']} matrices packed" if file["packed"] else ""),
        ],
        ["head", _head(report)],
        ["context", f"{report['context']:,} tokens"],
        [
            "memory",
            f"at least {size(together)} beside Python itself, computing in {memory['compute_dtype']}:",
        ],
        ["", f"{size(memory['weights'])} weights (large matrices in {memory['weight_dtype']})"],
        ["", f"{size(memory['cache_full_context'])} cache when the context is full"],
        ["", f"{size(memory['cache_per_token'])} of it for each token"],
    ]
    others = report["bytes_by_weight_dtype"]
    summary.append(
        ["", "weights in " + ", ".join(f"{form} {size(bytes_)}" for form, bytes_ in others.items())]
    )
    parts = {
        "remarks": "".join(f"  {remark}\n" for remark in report["remarks"]),
        "NaN and infinity": _bad_values(report["values"]),
        "config": _pairs(report["config"]),
        "config keys without a meaning here": _pairs(report["unused_config_keys"]),
        "special tokens": f"  none: {report['tokenizer_error']}\n"
        if tokens is None
        else _special_table(tokens),
        "generation settings": "  no generation_config.json\n"
        if report["generation"] is None
        else _pairs(report["generation"]),
        "tensors": _indented(
            [[t["name"], _json(t["shape"]), t["dtype"], size(t["bytes"])] for t in report["tensors"]],
            right=(3,),
        ),
    }
    text = "".join(f"\n{title}\n{body}" for title, body in parts.items() if body)
    return terminal.visible(terminal.table(summary) + text)


def _bad_values(values: list[dict[str, Any]] | None) -> str:
    if values is None:
        return ""
    lines = [f"  {bad['name']}: {bad['nan']} NaN, {bad['infinite']} infinite\n" for bad in values]
    return "".join(lines) or "  none: every number is finite\n"


def _head(report: dict[str, Any]) -> str:
    if not report["class"].endswith("ForCausalLM"):
        return f"that of {report['class']}"
    return "the input embedding (tied)" if report["tied"] else "a matrix of its own (not tied)"


def _special_table(tokens: dict[str, Any]) -> str:
    return _indented([[role, entry["token"], str(entry["id"])] for role, entry in tokens.items()], right=(2,))


def _pairs(values: dict[str, Any]) -> str:
    return _indented([[key, _json(value)] for key, value in sorted(values.items())])


def _indented(rows: list[list[str]], right: tuple[int, ...] = ()) -> str:
    return "".join(f"  {line}\n" for line in terminal.table(rows, right).splitlines())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
