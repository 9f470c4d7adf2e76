"""`refimpl convert`: the weights of a model as safetensors, in another dtype or in files of another size."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl.cli import common
from refimpl.cli.model_files import fetch
from refimpl.cli.model_writing import (
    add_writing_options,
    checked_target,
    rewritten_model,
    shard_size,
    show_written,
)
from refimpl.errors import ConfigError, InputError, quote

if TYPE_CHECKING:
    from refimpl.checkpoints.safetensors_writer import StoredTensor
    from refimpl.checkpoints.weight_file import WeightFile
    from refimpl.config_base import PreTrainedConfig

DTYPES = ("float64", "float32", "float16", "bfloat16")


def parser(prog: str) -> common.Parser:
    examples = (
        f"{prog} old_model new_model",
        f"{prog} EleutherAI/pythia-160m pythia --dtype bfloat16",
        f"{prog} my_model my_model_in_parts --max-shard-size 500MB",
        f"{prog} my_model my_model_packed --packed",
    )
    made = common.Parser(
        prog, examples, "Write a model as safetensors. Config, tokenizer and generation settings go with it."
    )
    made.add_argument("source", metavar="MODEL", help="a folder or a Hub id")
    made.add_argument("target", metavar="FOLDER", help="where to write; made if need be")
    made.add_argument("--dtype", choices=DTYPES, help="round the numbers to this type (default: as they are)")
    add_writing_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    args.max_shard_size = shard_size(args.max_shard_size)
    target = checked_target(args.target, args.force)
    report = convert(common.model_name(args.source), target, args)
    report["seconds"] = round(time.perf_counter() - began, 2)
    show_written(report, target, args, _summary)
    return 0


def _summary(report: dict[str, Any]) -> str:
    dtypes = ", ".join(report["dtypes"])
    count = report["weight_files"]
    dropped = report["left_out"]
    return (
        f"{report['tensors']} tensors ({dtypes}), {common.readable_size(report['bytes'])} in "
        f"{'1 file' if count == 1 else f'{count} files'}, {report['seconds']:.1f} s"
        + (f"; left out, because the config says what they hold: {dropped}" if dropped else "")
    )


# --- the work ------------------------------------------------------------------------------------


def convert(source: str, target: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write the model `source` to `target`, tensor by tensor: all of it or nothing.  Returns: what is shown of it.

    Files there that belong to a model and are not written again are removed; weights of other formats stay.
    """
    from refimpl.auto import AutoConfig
    from refimpl.checkpoints.locate import WEIGHT_FILES, open_weights
    from refimpl.checkpoints.panel_file import in_panels
    from refimpl.checkpoints.saving import write_weights
    from refimpl.config_base import CONFIG_NAME

    commit, files, tokenizer_error = fetch(source, common.hub_options(args))
    paths = {path.name: path for path in files}
    weights = open_weights(next(paths[name] for name in WEIGHT_FILES if name in paths))
    tensors, left_out = planned(weights, args.dtype, AutoConfig.from_pretrained(paths[CONFIG_NAME].parent))
    if args.packed:
        tensors = in_panels(tensors)
    config = _config(paths[CONFIG_NAME], args.dtype)
    with rewritten_model(target, paths, config) as (new, small):
        names = write_weights(
            new,
            tensors,
            args.max_shard_size,
            room=sum(map(len, small.values())),
            progress=not args.quiet and not args.json,
        )
    return {
        "output": str(target),
        "files": [*names, *small],
        "weight_files": sum(name.endswith(".safetensors") for name in names),
        "tensors": len(tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "dtypes": sorted({tensor.dtype.name for tensor in tensors}),
        "packed": args.packed,
        "left_out": len(left_out),
        "commit": commit,
        "tokenizer_error": tokenizer_error,
    }


def planned(
    weights: WeightFile, dtype: str | None, config: PreTrainedConfig
) -> tuple[list[StoredTensor], list[str]]:
    """The tensors as they are to be written, and the names of those that are left out.

    Left out are the buffers of old versions, and a tied head that is the input embedding, number for number in
    the same place of the file.
    Raises: InputError when quantized weights are to be rounded.
    """
    from refimpl.backends import to_dtype
    from refimpl.checkpoints.safetensors_writer import check_tensor
    from refimpl.checkpoints.saving import stored_as, without_tied_head
    from refimpl.matching import OLD_BUFFERS
    from refimpl.quantized_files import QuantizedTensors

    quantized = QuantizedTensors(weights).quantized
    if dtype is not None and quantized:
        raise InputError(
            "quantized weights cannot be rounded to another type",
            where="--dtype",
            found=f"{len(quantized)} quantized matrices, such as {quote(quantized[0])}",
            hint="Convert them as they are, without --dtype.",
        )
    left_out = [name for name in weights if name.endswith(OLD_BUFFERS)]
    if config.tie_word_embeddings:
        left_out += _tied_heads(weights, without_tied_head)
    tensors = []
    for name in weights:
        if name in left_out:
            continue
        stored = weights.dtype(name)
        check_tensor(name, stored, weights.shape(name))
        wanted = to_dtype(dtype) if dtype is not None and stored.name in DTYPES else stored
        tensors.append(stored_as(name, wanted, weights.shape(name), weights))
    return tensors, left_out


def _tied_heads(weights: WeightFile, without_tied_head: Any) -> list[str]:
    """Only what could be an embedding is looked at: some tensors of old files are copied when they are."""
    embeddings = [
        name for name in weights if name.endswith(("embed_in.weight", "embed_out.weight", "lm_head.weight"))
    ]
    arrays = {name: weights[name] for name in embeddings}
    return [name for name in arrays if name not in without_tied_head(arrays)]


def _config(path: Path, dtype: str | None) -> bytes:
    """`config.json` as it is, or with another dtype, under both its names."""
    from refimpl.json_reader import MIB, read_bytes, read_json_object

    if dtype is None:
        return read_bytes(path, ConfigError, MIB)
    values = {**read_json_object(path, ConfigError), "dtype": dtype, "torch_dtype": dtype}
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
