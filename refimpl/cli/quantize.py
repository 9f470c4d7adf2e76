"""`refimpl quantize`: a model whose dense layers are kept in 8 or 4 bits, in files as bitsandbytes writes them."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl.cli import common
from refimpl.cli.convert import planned
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
    import numpy as np

    from refimpl.backends.quantized import NestedAbsmax, QuantizedMatrix
    from refimpl.checkpoints.safetensors_writer import StoredTensor
    from refimpl.config_base import PreTrainedConfig
    from refimpl.quantization import BitsAndBytesConfig

DTYPES = ("int8", "nf4")


def parser(prog: str) -> common.Parser:
    examples = (
        f"{prog} my_model my_model_int8 --weight-dtype int8",
        f"{prog} EleutherAI/pythia-2.8b pythia-nf4 --weight-dtype nf4 --double-quant",
    )
    made = common.Parser(
        prog,
        examples,
        "Write a model with its dense layers in 8 or 4 bits, as bitsandbytes does. Everything else goes with it.",
    )
    made.add_argument("source", metavar="MODEL", help="a folder or a Hub id")
    made.add_argument("target", metavar="FOLDER", help="where to write; made if need be")
    made.add_argument(
        "--weight-dtype", required=True, choices=DTYPES, help="int8: 8 bits a weight; nf4: 4.5 bits"
    )
    made.add_argument("--double-quant", action="store_true", help="nf4 with 4.1 bits a weight")
    add_writing_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    began = time.perf_counter()
    args.max_shard_size = shard_size(args.max_shard_size)
    if args.double_quant and args.weight_dtype != "nf4":
        raise InputError(
            "int8 has no blocks whose absmax could be quantized too",
            where="--double-quant",
            found=f"--weight-dtype {args.weight_dtype}",
            allowed="--weight-dtype nf4",
        )
    target = checked_target(args.target, args.force)
    report = quantize(common.model_name(args.source), target, args)
    report["seconds"] = round(time.perf_counter() - began, 2)
    show_written(report, target, args, _summary)
    return 0


def _summary(report: dict[str, Any]) -> str:
    count = report["weight_files"]
    before, after = (common.readable_size(report[key]) for key in ("bytes_before", "bytes"))
    return (
        f"{report['quantized']} matrices in {report['weight_dtype']}: {before} became {after} in "
        f"{'1 file' if count == 1 else f'{count} files'}, {report['seconds']:.1f} s"
    )


# --- the work ------------------------------------------------------------------------------------


def quantize(source: str, target: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write the model `source` to `target`, matrix by matrix: all of it or nothing.  Returns: what is shown of it.

    Files there that belong to a model and are not written again are removed; weights of other formats stay.

    Raises: InputError for a model that is quantized already, or has nothing to be quantized;
        CheckpointValueError, naming the tensor, for NaN, infinity or a number beyond float16 (for int8).
    """
    from refimpl.auto import AutoConfig
    from refimpl.checkpoints.locate import WEIGHT_FILES, open_weights
    from refimpl.checkpoints.saving import write_weights
    from refimpl.config_base import CONFIG_NAME
    from refimpl.hub import pin

    hub = pin(source, **common.hub_options(args))
    _refuse_quantized_config(
        source, AutoConfig.from_pretrained(source, **hub)
    )  # before its weights are fetched
    commit, files, tokenizer_error = fetch(source, hub)
    paths = {path.name: path for path in files}
    weights = open_weights(next(paths[name] for name in WEIGHT_FILES if name in paths))
    _refuse_quantized_weights(source, weights)
    dense, left_out = planned(weights, None, AutoConfig.from_pretrained(paths[CONFIG_NAME].parent))
    quantization = _settings(args)
    shown = not args.quiet and not args.json
    config = _config(paths[CONFIG_NAME], quantization)
    with rewritten_model(target, paths, config) as (new, small), _pool() as pool:
        plan = _Plan.of(source, dense, quantization, pool, shown)
        if args.packed:
            plan = plan.packed()
        names = write_weights(
            new,
            plan.computed_ahead(pool, args.max_shard_size),
            args.max_shard_size,
            room=sum(map(len, small.values())),
            progress=shown,
        )
    return {
        "output": str(target),
        "files": [*names, *small],
        "weight_files": sum(name.endswith(".safetensors") for name in names),
        "weight_dtype": args.weight_dtype,
        "quantized": plan.matrices,
        "tensors": len(plan.tensors),
        "bytes_before": sum(tensor.nbytes for tensor in dense),
        "bytes": sum(tensor.nbytes for tensor in plan.tensors),
        "packed": args.packed,
        "left_out": len(left_out),
        "commit": commit,
        "tokenizer_error": tokenizer_error,
    }


def _settings(args: argparse.Namespace) -> BitsAndBytesConfig:
    from refimpl.quantization import BitsAndBytesConfig

    if args.weight_dtype == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=args.double_quant
    )


def _refuse_quantized_config(source: str, config: PreTrainedConfig) -> None:
    from refimpl.model import refuse_other_quantization
    from refimpl.quantization import BitsAndBytesConfig

    refuse_other_quantization(config)
    stored = config.unused_keys.get("quantization_config")
    method = None if stored is None else BitsAndBytesConfig.from_dict(stored).quantization_method()
    if method is not None:
        raise _quantized_already(source, f"{method} in its config")


def _refuse_quantized_weights(source: str, weights: Any) -> None:
    from refimpl.quantized_files import QuantizedTensors

    quantized = QuantizedTensors(weights).quantized
    if quantized:
        raise _quantized_already(
            source, f"{len(quantized)} quantized matrices, such as {quote(quantized[0])}"
        )


def _quantized_already(source: str, found: str) -> InputError:
    return InputError(
        "the model is quantized already",
        where=quote(source),
        found=found,
        hint="Quantize the model that it was made of; `refimpl convert` copies it as it is.",
    )


def _config(path: Path, quantization: BitsAndBytesConfig) -> bytes:
    """`config.json`, which says now how the weights are kept."""
    from refimpl.json_reader import read_json_object

    values = {**read_json_object(path, ConfigError), "quantization_config": quantization.to_dict()}
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


# --- what a file is to hold ----------------------------------------------------------------------


@dataclass
class _Plan:
    """What is to be written, in order.

    Attributes:
        tensors: those of the files. None of their numbers is computed before it is asked for.
        computed: the names of those that take a while.
        matrices: how many were one tensor before.
    """

    tensors: list[StoredTensor]
    computed: set[str]
    matrices: int

    @classmethod
    def of(
        cls,
        source: str,
        dense: list[StoredTensor],
        quantization: BitsAndBytesConfig,
        pool: ThreadPoolExecutor,
        progress: bool,
    ) -> _Plan:
        chosen = [tensor for tensor in dense if len(tensor.shape) == 2 and quantization.kept_as(tensor.name)]
        if not chosen:
            raise InputError("the model has no dense layers that could be quantized", where=quote(source))
        nested: dict[str, NestedAbsmax] = {}
        if quantization.bnb_4bit_use_double_quant:
            nested = _nested(chosen, pool, progress)
        names = {tensor.name for tensor in chosen}
        plan = cls([], set(), len(chosen))
        for tensor in dense:
            if tensor.name in names:
                plan._add_quantized(tensor, quantization.kept_as(tensor.name), nested.get(tensor.name))
            else:
                plan.tensors.append(tensor)
        return plan

    def _add_quantized(self, tensor: StoredTensor, form: str | None, nested: NestedAbsmax | None) -> None:
        from refimpl.checkpoints.safetensors_writer import StoredTensor, check_tensor
        from refimpl.quantized_files import stored_tensors

        name = tensor.name
        computed = _for_int8(tensor) if form == "int8" else _for_nf4(tensor, nested is None)
        for part, array in stored_tensors(name, _without_numbers(tensor, form, nested)).items():
            check_tensor(part, array.dtype, array.shape)
            load = computed.get(part, _constant(array))
            self.tensors.append(StoredTensor(part, array.dtype, array.shape, load))
        self.computed |= set(computed)

    def packed(self) -> _Plan:
        """The same matrices in panels, and those that are not quantized too."""
        from refimpl.checkpoints.panel_file import in_panels

        tensors = in_panels(self.tensors)
        made = {tensor.name for tensor in tensors if tensor.panels_of is not None}
        return _Plan(tensors, made | self.computed, self.matrices)

    def computed_ahead(self, pool: ThreadPoolExecutor, max_shard_size: int) -> list[StoredTensor]:
        """The tensors, of which other threads compute the next ones while one is written."""
        from refimpl.checkpoints.safetensors_writer import in_file_order, split_into_shards

        shards = split_into_shards(self.tensors, max_shard_size).values()
        order = [
            tensor for shard in shards for tensor in in_file_order(shard) if tensor.name in self.computed
        ]
        ahead = _Ahead({tensor.name: tensor.load for tensor in order}, pool)
        return [
            replace(tensor, load=ahead.loader(tensor.name)) if tensor.name in self.computed else tensor
            for tensor in self.tensors
        ]


def _without_numbers(tensor: StoredTensor, form: str | None, nested: NestedAbsmax | None) -> QuantizedMatrix:
    """The matrix with its shapes and dtypes, and zeros that take no memory in place of what is computed later."""
    import numpy as np

    from refimpl.backends.quantized import NF4_BLOCKSIZES, Int8Matrix, NF4Matrix, nf4_source_dtype

    def zeros(dtype: Any, *shape: int) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), shape)

    if form == "int8":
        return Int8Matrix(CB=zeros(np.int8, *tensor.shape), SCB=zeros(np.float32, tensor.shape[0]))
    count = math.prod(tensor.shape)
    return NF4Matrix(
        packed=zeros(np.uint8, -(-count // 2)),
        absmax=zeros(np.float32, -(-count // NF4_BLOCKSIZES[0])) if nested is None else nested,
        shape=(tensor.shape[0], tensor.shape[1]),
        source_dtype=nf4_source_dtype(tensor.dtype),
    )


# A file has the absmaxes of all matrices before the codes of the first, so each matrix is read twice. That is faster
# than it sounds, and the absmaxes of NF4 are an eighth of a file, which would have to be kept in memory otherwise.


def _for_int8(tensor: StoredTensor) -> dict[str, Callable[[], np.ndarray]]:
    from refimpl.backends.quantized import int8_absmax, quantize_int8

    name = tensor.name
    return {
        name: lambda: quantize_int8(tensor.load(), name=name).CB,
        f"{name.removesuffix('weight')}SCB": lambda: int8_absmax(tensor.load(), name=name),
    }


def _for_nf4(tensor: StoredTensor, with_absmax: bool) -> dict[str, Callable[[], np.ndarray]]:
    from refimpl.backends.quantized import nf4_absmax, quantize_nf4

    name = tensor.name
    computed = {name: lambda: quantize_nf4(tensor.load(), name=name).packed.reshape(-1, 1)}
    if with_absmax:
        computed[f"{name}.absmax"] = lambda: nf4_absmax(tensor.load(), name=name)
    return computed


def _nested(chosen: list[StoredTensor], pool: ThreadPoolExecutor, progress: bool) -> dict[str, NestedAbsmax]:
    """The absmaxes in 8 bits by the name of the matrix. Their mean stands as text in the file, whose length it changes:
    so all of them have to be known before the first byte is written.
    """
    from huggingface_hub.utils import tqdm

    from refimpl.backends.quantized import nest_absmax, nf4_absmax

    def one(tensor: StoredTensor) -> NestedAbsmax:
        return nest_absmax(nf4_absmax(tensor.load(), name=tensor.name))

    found = {}
    # The bar of huggingface_hub, which obeys HF_HUB_DISABLE_PROGRESS_BARS; None: only on a terminal.
    bar = tqdm(
        total=len(chosen),
        desc="Reading weights",
        unit=" matrices",
        disable=None if progress else True,
        leave=False,
    )
    with bar:
        for tensor, nested in zip(chosen, pool.map(one, chosen), strict=True):
            found[tensor.name] = nested
            bar.update(1)
    return found


def _constant(array: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: array


# --- threads -------------------------------------------------------------------------------------


# More threads would wait for the disk, and each of them holds a matrix.
_MOST_THREADS = 8


def _threads() -> int:
    from refimpl.tokenizer.kernels.parallel import processors

    return min(_MOST_THREADS, processors())


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that compute: NumPy does so without Python's lock.  What has not begun at the end is left out."""
    pool = ThreadPoolExecutor(_threads())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Ahead:
    """Arrays that are asked for one after the other, while some of the next are computed by other threads."""

    def __init__(self, loads: dict[str, Callable[[], np.ndarray]], pool: ThreadPoolExecutor):
        self._pool = pool
        self._left = iter(loads.items())
        self._running: dict[str, Future[np.ndarray]] = {}

    def loader(self, name: str) -> Callable[[], np.ndarray]:
        return lambda: self._next(name)

    def _next(self, name: str) -> np.ndarray:
        while len(self._running) <= _threads() and (item := next(self._left, None)):
            self._running[item[0]] = self._pool.submit(item[1])
        return self._running.pop(name).result()
