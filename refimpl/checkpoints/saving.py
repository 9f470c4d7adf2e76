"""Saving weights and whole models, so that transformers reads them, and so that no failure leaves a mixture.

How several files are replaced at once, and what is promised of that, says `refimpl.folder_switch`.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.backends import to_dtype
from refimpl.backends.quantized import NestedAbsmax, NF4Matrix, QuantizedMatrix
from refimpl.checkpoints.locate import INDEX_END
from refimpl.checkpoints.safetensors_writer import (
    StoredTensor,
    check_tensor,
    header,
    in_file_order,
    is_unicode,
    split_into_shards,
)
from refimpl.config_base import CONFIG_NAME, PreTrainedConfig
from refimpl.errors import InputError, SaveError, quote
from refimpl.folder_switch import NewFiles, replaced_files
from refimpl.generation.config import GENERATION_CONFIG_NAME
from refimpl.quantization import BitsAndBytesConfig
from refimpl.quantized_files import stored_tensors

_WEIGHTS = re.compile(r"(model|packed)(\.safetensors(\.index\.json)?|-[0-9]{5}-of-[0-9]{5}\.safetensors)")

_LAYER = re.compile(r"layers\.[0-9]+\.")

# The output head under both its names. Where it shares its numbers with another tensor it is not stored.
_HEADS = ("embed_out.weight", "lm_head.weight")

# Writing less than this takes no time worth a progress bar.
_PROGRESS_BYTES = 1 << 29

# Room for the small files, and for the folders and names themselves.
_SMALL_FILES_BYTES = 1 << 20


def save_weights(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    *,
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write `tensors` to `folder`: `model.safetensors`, or shards and `model.safetensors.index.json`.

    The weights that were there before are replaced, in one step; everything else in the folder stays as it is.

    Args:
        folder: is made if need be.
        tensors: arrays of any layout (float64, float32, float16, bfloat16, whole numbers, bool), and
            `QuantizedMatrix`. An output head that is the same array as another tensor (a tied one) is left
            out, as transformers does; other arrays with two names are written under both.
        max_shard_size: the largest size of a file in bytes, or "5GB", "200MB" (units are powers of 1000). A
            tensor that is larger is a file of its own.
        metadata: texts for the header of each file, beside {"format": "pt"}, which transformers wants.

    Returns: the files with the weights, in order, and the index where there is one.
    Raises: InputError; SaveError, after which the folder holds what it held before (unless its attribute
        `saved` is true: then it holds the new weights).
    """
    stored = _given_tensors(tensors)
    with replaced_files(folder, is_weight_file) as new:
        names = write_weights(new, stored, max_shard_size, metadata)
    return [Path(folder) / name for name in names]


def save_model(model: Any, folder: str | os.PathLike[str], max_shard_size: int | str = "5GB") -> list[Path]:
    """Write a `PreTrainedModel`: its weights, `config.json`, and of a language model `generation_config.json`.

    The model that was there before is replaced, in one step: whatever fails, the folder loads as the old model
    or as the new one. Other files (of the tokenizer, or weights in other formats) stay as they are.
    Saving into the folder that the weights are mapped from is safe.

    The weights are written as the model keeps them: large matrices in their dtype, or quantized; the vectors,
    which are kept in the compute dtype, in the dtype of the matrices if that loses nothing. In
    `config.json`, `architectures` is the class, and `dtype` the dtype of the matrices (also under its old
    name, `torch_dtype`, which all versions of transformers read). The model and its config are not changed.

    Args: as of `save_weights`.
    Returns: the files, in the order in which they were written.
    Raises: InputError; SaveError, as `save_weights`, and for a config that no file can hold.
    """
    tensors = list(_model_tensors(model))
    settings = {CONFIG_NAME: _config_text(model)}
    if hasattr(model, "generation_config"):
        settings = {GENERATION_CONFIG_NAME: _generation_text(model), **settings}
    with replaced_files(folder, is_model_file) as new:
        names = write_weights(new, tensors, max_shard_size, room=sum(map(len, settings.values())))
        for name, text in settings.items():  # the config last: without it a folder holds no model
            new.write(name, [text])
    return [Path(folder) / name for name in (*names, *settings)]


def is_weight_file(name: str) -> bool:
    """Whether `name` is one of those under which weights are saved."""
    return _WEIGHTS.fullmatch(name) is not None


def is_model_file(name: str) -> bool:
    """Whether `name` is one of those under which a model is saved, without its tokenizer."""
    return is_weight_file(name) or name in (CONFIG_NAME, GENERATION_CONFIG_NAME)


def write_weights(
    new: NewFiles,
    tensors: Iterable[StoredTensor],
    max_shard_size: int | str,
    metadata: Mapping[str, str] | None = None,
    *,
    room: int = 0,
    progress: bool | None = None,
) -> list[str]:
    """Write `tensors` to `new`, one after the other; the index of several files last.

    room: bytes that the caller will write besides.
    progress: show a bar on a terminal; None: when there is much to write.
    Returns: the names.  Raises: InputError, SaveError; CheckpointValueError for a number that a dtype cannot hold.
    """
    tensors = list(tensors)
    if not tensors:
        raise InputError("there is no tensor to save", where="tensors")
    metadata = _checked_metadata(metadata)
    shards = split_into_shards(tensors, max_shard_size)
    total = sum(tensor.nbytes for tensor in tensors)
    heads = {name: header(shard, metadata) for name, shard in shards.items()}
    index = _index(shards, total) if len(shards) > 1 else b""
    new.reserve(total + sum(map(len, heads.values())) + len(index) + room + _SMALL_FILES_BYTES)
    bar = _progress_bar(total, total >= _PROGRESS_BYTES if progress is None else progress)
    with bar:
        for name, shard in shards.items():
            new.write(name, _file(heads[name], in_file_order(shard), bar))
    if not index:
        return list(shards)
    index_name = f"{next(iter(shards)).partition('-')[0]}.safetensors{INDEX_END}"
    new.write(index_name, [index])
    return [*shards, index_name]


def _file(head: bytes, tensors: list[StoredTensor], bar: Any) -> Iterator[bytes | memoryview]:
    yield head
    for tensor in tensors:
        for piece in tensor.pieces():
            yield piece
            bar.update(len(piece))


def _index(shards: dict[str, list[StoredTensor]], total: int) -> bytes:
    places = {tensor.name: name for name, shard in shards.items() for tensor in shard}
    value = {"metadata": {"total_size": total}, "weight_map": places}
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def _progress_bar(total: int, wanted: bool) -> Any:
    # The bar of huggingface_hub, which obeys HF_HUB_DISABLE_PROGRESS_BARS; None: only on a terminal.
    from huggingface_hub.utils import tqdm

    return tqdm(
        total=total,
        desc="Saving weights",
        unit="B",
        unit_scale=True,
        disable=None if wanted else True,
        leave=False,
    )


def _checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    complete = {"format": "pt", **(metadata or {})}
    for key, value in complete.items():
        if not is_unicode(key) or not is_unicode(value):
            raise InputError(
                "not metadata of a file", where="metadata", found=quote({key: value}), allowed="texts"
            )
    return complete


# --- tensors by name -----------------------------------------------------------------------------


def _given_tensors(tensors: Mapping[str, Any]) -> list[StoredTensor]:
    """What a caller gives: arrays and quantized matrices."""
    arrays: dict[str, Any] = {}
    for name, value in without_tied_head(tensors).items():
        parts = stored_tensors(name, value) if isinstance(value, QuantizedMatrix) else {name: value}
        for part, array in parts.items():
            if part in arrays:
                raise InputError("two tensors have one name in the file", where="tensors", found=quote(part))
            if not isinstance(array, np.ndarray):
                raise InputError("not an array of NumPy", where=quote(part), found=type(array).__name__)
            check_tensor(part, array.dtype, array.shape)
            arrays[part] = array
    return [stored_as(name, array.dtype, array.shape, arrays) for name, array in arrays.items()]


def stored_as(name: str, dtype: Any, shape: Any, source: Mapping[str, Any]) -> StoredTensor:
    """The tensor `source[name]`, which is asked for when it is written, in `dtype`."""
    return StoredTensor(name, to_dtype(dtype.name), tuple(shape), lambda: np.asarray(source[name]))


def without_tied_head(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """`tensors` without an output head that lies in the memory of another one of them, number for number."""
    kept = dict(tensors)  # all of them, so that none can take the place of another in memory
    for head in [name for name in kept if str(name).endswith(_HEADS)]:
        if any(_is_same(kept[head], other) for name, other in kept.items() if name != head):
            del kept[head]
    return kept


def _is_same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if not (isinstance(one, np.ndarray) and isinstance(other, np.ndarray)) or not one.size:
        return False
    keys = [(a.__array_interface__["data"][0], a.shape, a.strides, a.dtype) for a in (one, other)]
    return keys[0] == keys[1]


# --- models --------------------------------------------------------------------------------------


def _model_tensors(model: Any) -> Iterator[StoredTensor]:
    """The weights of a model by the names in its file. Of a GPU they are fetched one by one."""
    narrow = _vector_dtype(model)
    for parameter in _in_order_of_transformers(model):
        fetch = partial(_fetch, model, parameter)
        weight = getattr(parameter.owner, parameter.name)
        if isinstance(weight, QuantizedMatrix):
            for name, part in stored_tensors(parameter.key, fetch()).items():
                yield StoredTensor(name, part.dtype, part.shape, partial(_part, fetch, parameter.key, name))
            continue
        dtype = weight.dtype if narrow is None or parameter.is_matrix else narrow
        check_tensor(parameter.key, dtype, weight.shape)
        yield StoredTensor(parameter.key, dtype, tuple(weight.shape), fetch)


def _in_order_of_transformers(model: Any) -> Iterator[Any]:
    """There, both norms of a layer come before its attention; what is in which shard depends on it."""
    layers = groupby(model.named_parameters(), lambda parameter: _LAYER.findall(parameter.key))
    for _, parameters in layers:
        yield from sorted(parameters, key=lambda parameter: "layernorm" not in parameter.key)


def _fetch(model: Any, parameter: Any) -> Any:
    return model.backend.to_numpy(getattr(parameter.owner, parameter.name))


def _part(fetch: Any, key: str, name: str) -> np.ndarray:
    return stored_tensors(key, fetch())[name]


def _matrix_dtype(model: Any) -> np.dtype:
    """The dtype of the large matrices that are not quantized, by their numbers."""
    counts = Counter[np.dtype]()
    for parameter in model.named_parameters():
        weight = getattr(parameter.owner, parameter.name)
        if parameter.is_matrix and not isinstance(weight, QuantizedMatrix):
            counts[np.dtype(weight.dtype)] += int(np.prod(parameter.shape))
    return max(counts, key=counts.__getitem__, default=np.dtype(model.dtype))


def _vector_dtype(model: Any) -> np.dtype | None:
    """The dtype of the matrices, if all vectors can be written in it without loss."""
    dtype = _matrix_dtype(model)
    for parameter in model.named_parameters():
        if not parameter.is_matrix:
            vector = _fetch(model, parameter)
            with np.errstate(all="ignore"):
                again = vector.astype(dtype).astype(vector.dtype)
            if again.tobytes() != vector.tobytes():
                return None
    return dtype


def _config_text(model: Any) -> bytes:
    """The content of `config.json`."""
    config: PreTrainedConfig = model.config
    for name in config.fields():
        if callable(getattr(config, name)):
            raise SaveError(
                "a function cannot be saved in a config",
                where=f"{type(config).__name__}.{name}",
                found=quote(getattr(config, name)),
                hint="Use the name of an activation.",
            )
    dtype = _matrix_dtype(model).name
    values = config.updated(architectures=[type(model).__name__], dtype=dtype).to_dict()
    values["torch_dtype"] = dtype
    rope = values.get("rope_scaling") or {}
    if rope.get("rope_type") == "yarn":
        rope.setdefault("factor", None)  # transformers wants the key even where it says nothing
    values.pop("quantization_config", None)
    quantization = _quantization(model)
    if quantization is not None:
        values["quantization_config"] = quantization
    return _json(values)


def _quantization(model: Any) -> dict[str, Any] | None:
    """What `config.json` says of quantized weights: which form, and which dense layers stay as they are."""
    matrices = {
        parameter.key: getattr(parameter.owner, parameter.name)
        for parameter in model.named_parameters()
        if parameter.is_matrix
    }
    quantized = {key: weight for key, weight in matrices.items() if isinstance(weight, QuantizedMatrix)}
    if not quantized:
        return None
    forms = {weight.dtype for weight in quantized.values()}
    if len(forms) > 1:
        raise SaveError(
            "a file cannot hold some matrices in int8 and others in NF4", where=type(model).__name__
        )
    stored = model.config.unused_keys.get("quantization_config", {})
    settings: dict[str, Any] = {"load_in_8bit": forms == {"int8"}, "load_in_4bit": forms == {"nf4"}}
    if forms == {"nf4"}:
        nested = (isinstance(w, NF4Matrix) and isinstance(w.absmax, NestedAbsmax) for w in quantized.values())
        settings |= {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": any(nested)}
    wanted = BitsAndBytesConfig.from_dict({**stored, "quant_method": "bitsandbytes", **settings})
    kept = {key for key in matrices if wanted.kept_as(key) is not None}
    if kept != set(quantized):
        dense = [key.removesuffix(".weight") for key in matrices if key not in quantized]
        # The head is called lm_head in some versions, and a tied one is no parameter of its own.
        heads = [] if "embed_out.weight" in quantized else ["embed_out", "lm_head"]
        wanted.llm_int8_skip_modules = [
            name for name in dense if name.rpartition(".")[2] not in ("embed_in", "embed_out")
        ] + heads
    return wanted.to_dict()


def _generation_text(model: Any) -> bytes:
    """The content of `generation_config.json`: what is said, and nothing that is left open."""
    config = model.generation_config
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    values = {**values.pop("unused_keys"), **{name: v for name, v in values.items() if v is not None}}
    values.pop("_from_model_config", None)  # with it, transformers may prefer what config.json says
    return _json(values)


def _json(values: dict[str, Any]) -> bytes:
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, default=_plain)
    return (text + "\n").encode("utf-8")


def _plain(number: Any) -> Any:
    """A number of NumPy as one of Python."""
    return number.item()
