"""`refimpl convert`: the weights of a model as safetensors, in another dtype or in files of another size."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl.cli import common, terminal
from refimpl.cli.model_files import fetch, is_of_a_tokenizer, of_a_model_in, output_folder
from refimpl.errors import ConfigError, InputError, quote

if TYPE_CHECKING:
    from refimpl.checkpoints.safetensors_writer import StoredTensor
    from refimpl.checkpoints.weight_file import WeightFile
    from refimpl.config_base import PreTrainedConfig

DTYPES = ("float64", "float32", "float16", "bfloat16")

# The largest small file: a tokenizer.json of 250,000 tokens has 20 MB.
_SMALL_FILE_BYTES = 128 << 20


def parser(prog: str) -> common.Parser:
    examples = (
        f"{prog} old_model new_model",
        f"{prog} EleutherAI/pythia-160m pythia --dtype bfloat16",
        f"{prog} my_model my_model_in_parts --max-shard-size 500MB",
    )
    made = common.Parser(
        prog, examples, "Write a model as safetensors. Config, tokenizer and generation settings go with it."
    )
    made.add_argument("source", metavar="MODEL", help="a folder or a Hub id")
    made.add_argument("target", metavar="FOLDER", help="where to write; made if need be")
    made.add_argument("--dtype", choices=DTYPES, help="round the numbers to this type (default: as they are)")
    made.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="the largest size of a file: 500MB, 5GB, or a number of bytes (default: 5GB)",
    )
    made.add_argument("--force", action="store_true", help="replace the model that is there already")
    common.add_hub_options(made)
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    args.max_shard_size = shard_size(args.max_shard_size)
    target = checked_target(args.target, args.force)
    report = convert(common.model_name(args.source), target, args)
    report["seconds"] = round(time.perf_counter() - began, 2)
    if args.json:
        terminal.write_json(report)
    else:
        terminal.write("".join(f"{target / name}\n" for name in report["files"]))
        if report["tokenizer_error"] is not None:
            terminal.show_warning(f"no tokenizer: {report['tokenizer_error']}")
    if not args.quiet:
        terminal.note(_summary(report))
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


def checked_target(given: str, force: bool) -> Path:
    """Raises: InputError when there cannot be such a folder, or it holds a model that must not be replaced."""
    folder = output_folder(given, "FOLDER")
    present = of_a_model_in(folder)
    if present and not force:
        raise InputError(
            "the folder holds a model already",
            where=quote(given),
            found=", ".join(map(quote, present[:10])),
            hint="Name another folder, or replace it with --force.",
        )
    return folder


def shard_size(given: str) -> int:
    """The size in bytes.  Raises: InputError."""
    from refimpl.checkpoints.safetensors_writer import size_in_bytes

    return size_in_bytes(int(given) if given.isdecimal() and len(given) < 20 else given)


# --- the work ------------------------------------------------------------------------------------


def convert(source: str, target: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write the model `source` to `target`, tensor by tensor: all of it or nothing.  Returns: what is shown of it.

    Files there that belong to a model and are not written again are removed; weights of other formats stay.
    """
    from refimpl.auto import AutoConfig
    from refimpl.checkpoints.locate import WEIGHT_FILES, open_weights
    from refimpl.checkpoints.saving import is_model_file, write_weights
    from refimpl.config_base import CONFIG_NAME
    from refimpl.folder_switch import replaced_files
    from refimpl.generation.config import GENERATION_CONFIG_NAME
    from refimpl.json_reader import read_bytes

    commit, files, tokenizer_error = fetch(source, common.hub_options(args))
    paths = {path.name: path for path in files}
    weights = open_weights(next(paths[name] for name in WEIGHT_FILES if name in paths))
    tensors, left_out = planned(weights, args.dtype, AutoConfig.from_pretrained(paths[CONFIG_NAME].parent))
    small = {
        name: read_bytes(path, ConfigError, _SMALL_FILE_BYTES)
        for name, path in paths.items()
        if name == GENERATION_CONFIG_NAME or is_of_a_tokenizer(name)
    }
    small[CONFIG_NAME] = _config(paths[CONFIG_NAME], args.dtype)
    has_tokenizer = any(map(is_of_a_tokenizer, small))

    def owns(name: str) -> bool:
        return is_model_file(name) or (has_tokenizer and is_of_a_tokenizer(name))

    with replaced_files(target, owns) as new:
        names = write_weights(
            new,
            tensors,
            args.max_shard_size,
            room=sum(map(len, small.values())),
            progress=not args.quiet and not args.json,
        )
        for name, content in small.items():  # the config last: without it a folder holds no model
            new.write(name, [content])
    return {
        "output": str(target),
        "files": [*names, *small],
        "weight_files": sum(name.endswith(".safetensors") for name in names),
        "tensors": len(tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors),
        "dtypes": sorted({tensor.dtype.name for tensor in tensors}),
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
