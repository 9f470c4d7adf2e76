"""Which file of a model holds its weights, and which reader is for it."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from refimpl.checkpoints.weight_file import RegularFile, WeightFile
from refimpl.errors import CheckpointFormatError, MissingFileError, UnsafeCheckpointError, quote, shorten
from refimpl.hub import ModelFiles
from refimpl.hub_errors import ABSENT, NOT_CACHED, OFFLINE_HINT

INDEX_END = ".index.json"

#: Files in which matrices lie in panels (see `panel_file.py`): copies for one's own use, looked for in folders only.
PACKED_FILES = ("packed.safetensors", "packed.safetensors" + INDEX_END)

#: What may hold the weights of a model, the first that is there is taken; an index names the files that do.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors" + INDEX_END,
    *PACKED_FILES,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX_END,
)


def find_weights(name_or_path: str | os.PathLike[str], **hub_options: Any) -> Path:
    """The file with the weights of a folder or a Hub repository, or the index of several; see `WEIGHT_FILES`.

    From the Hub the weights are downloaded, and nothing else: with an index, the files that it names, of the same
    commit. When the Hub is not to be asked, or cannot be reached, what is complete in the cache is taken.

    Args:
        hub_options: those of `refimpl.hub.ModelFiles`: `revision`, `cache_dir`, `token`, `local_files_only`,
            `force_download`, `subfolder`.

    Raises: MissingFileError; it names what is there instead, and says what can be done with it.
        Also what `ModelFiles` raises, and for an index CheckpointFormatError or UnsafeCheckpointError.
    """
    files = ModelFiles(name_or_path, **hub_options)
    incomplete: MissingFileError | None = None
    for name in WEIGHT_FILES:
        if name in PACKED_FILES and files.folder is None:
            continue
        path = files.find(name)
        if path is None:
            continue
        try:
            if name.endswith(INDEX_END) and files.folder is None:
                _fetch_shards(files, path)
            return path
        except MissingFileError as error:
            if not files.offline:
                raise
            # Offline another form of the same weights may be in the cache, and complete.
            incomplete = incomplete or error
    raise files.unreachable or incomplete or _nothing_to_read(files)


def _fetch_shards(files: ModelFiles, index: Path) -> None:
    from refimpl.checkpoints.sharded import read_index

    for name in read_index(index).file_names:
        files.need(name)


# --- where there are none ----------------------------------------------------------------------------

#: What else holds weights: the names of such files, what they are, and what to do with them.
_OTHERS = [
    (
        r"adapter_(model\.(safetensors|bin)|config\.json)",
        "an adapter of PEFT: changes to another model, not a model",
        "Merge it with PEFT into the model that it was made for (merge_and_unload), and save the result.",
    ),
    (
        r".*\.gguf",
        "weights for llama.cpp",
        "Use the repository from which they were converted.",
    ),
    (
        r"(model|packed|pytorch_model)-\d+-of-\d+\.(safetensors|bin)",
        "a part of the weights, without the index that goes with it",
        "Add the file whose name ends in .index.json.",
    ),
    (
        r"(model|pytorch_model)\.[\w-]+\.(safetensors|bin)(\.index\.json)?",
        "a variant of the weights",
        "Put it under one of the names above into a folder of its own, beside config.json.",
    ),
    (
        r"tf_model.*\.h5|.*\.weights\.h5",
        "weights for TensorFlow",
        "Load them with transformers 4 (from_tf=True), and save them again.",
    ),
    (
        r"flax_model.*\.msgpack",
        "weights for Flax",
        "Load them with transformers 4 (from_flax=True), and save them again.",
    ),
    (
        r"(.*/)?.*\.onnx",
        "a graph for ONNX",
        "Use the repository from which it was exported.",
    ),
    (
        r"consolidated.*\.pth|.*\.(pth|pt|ckpt)",
        "weights as a training program writes them",
        "Convert them first; GPT-NeoX has tools/ckpts/convert_neox_to_hf.py for that.",
    ),
    (
        r"[^/]+\.(safetensors|bin)",
        "a weight file of another name",
        "If it holds the whole model, put it under one of the names above.",
    ),
    (
        rf".+/({'|'.join(map(re.escape, WEIGHT_FILES))})",
        "in a subfolder",
        "Say which with subfolder=...",
    ),
]


def _nothing_to_read(files: ModelFiles) -> MissingFileError:
    """The error for a model without weights that could be read: what there is instead, and what to do with it."""
    names = files.names()
    offline = files.folder is None and files.offline
    hint = OFFLINE_HINT if offline else None
    for pattern, what, advice in _OTHERS:
        name = next((name for name in names if re.fullmatch(pattern, name)), None)
        if name is not None:
            hint = f"{quote(name)} is there: {what}. {advice}"
            break
    return MissingFileError(
        f"no weights that can be read{' in the cache, and the Hub was not asked' if offline else ''}",
        where=files.name if files.folder is None else files.folder,
        found=shorten([quote(name)[1:-1] for name in names]) or "no files at all",
        allowed=", ".join(WEIGHT_FILES),
        hint=hint,
        reason=NOT_CACHED if offline else ABSENT,
    )


# --- which reader ------------------------------------------------------------------------------------

_SAFETENSORS, _TORCH, _INDEX = "a safetensors file", "a PyTorch file", "an index of several weight files"

#: The end of a name, and what such a file must be. Others may be any of them.
_NAMED = {
    ".safetensors": _SAFETENSORS,
    ".bin": _TORCH,
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".json": _INDEX,
}

# A zip archive, and the pickles of older versions of PyTorch, whose reader says why it refuses them.
_TORCH_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06", *(bytes([0x80, protocol]) for protocol in range(2, 6)))

_OTHER_BEGINNINGS = {
    b"GGUF": "a GGUF file of llama.cpp",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as of TensorFlow",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a file compressed with gzip",
    b"\x28\xb5\x2f\xfd": "a file compressed with zstd",
}


def open_weights(path: str | os.PathLike[str], mmap: bool = True) -> WeightFile:
    """The tensors of a weight file, or of the files that an index names, read as what their content is.

    A file whose name says that it is something else is refused; nothing is ever tried in a second way. Matrices in
    panels are shown as matrices (see `panel_file.py`).

    Args:
        path: a file; `find_weights` finds it in a folder or a repository.
        mmap: map the numbers from the files (default), or read them into memory.

    Raises: MissingFileError, CheckpointFormatError, IncompleteCheckpointError for a truncated file or a
        placeholder; UnsafeCheckpointError for a file in disguise, and for one that asks for more than to be read.
    """
    from refimpl.checkpoints.panel_file import shown_whole

    return shown_whole(_open(Path(path), mmap, (_SAFETENSORS, _TORCH, _INDEX)), Path(path))


def _open(path: Path, mmap: bool, allowed: tuple[str, ...]) -> WeightFile:
    with RegularFile(path) as file:
        head = file.head(512)
    kind = _kind(head)
    named = next((kind for end, kind in _NAMED.items() if path.name.lower().endswith(end)), None)
    if named is not None:
        allowed = tuple(kind for kind in allowed if kind == named)
    # What nobody knows goes to the reader that its name asks for: that one can say best what is wrong.
    kind = kind or named
    if kind not in allowed:
        readable = kind in (_SAFETENSORS, _TORCH, _INDEX)
        raise (UnsafeCheckpointError if readable else CheckpointFormatError)(
            "the file is not what its place and name say" if readable else "no weight file that can be read",
            where=path,
            found=kind or f"one that begins with {quote(head[:8])}",
            allowed=" or ".join(allowed) or f"no {path.suffix} here",
            path=path,
        )
    if kind == _INDEX:
        from refimpl.checkpoints.sharded import ShardedFiles

        return ShardedFiles(path, partial(_open, allowed=_parts_of(path)), mmap)
    if kind == _TORCH:
        from refimpl.checkpoints.torch_file import TorchFile

        return TorchFile(path, mmap)
    from refimpl.checkpoints.safetensors_file import SafetensorsFile

    return SafetensorsFile(path, mmap)


def _parts_of(index: Path) -> tuple[str, ...]:
    """What the files of an index may be: one of safetensors never leads to a pickle."""
    name = index.name.lower().removesuffix(INDEX_END)
    named = next((kind for end, kind in _NAMED.items() if name.endswith(end)), None)
    return (_SAFETENSORS, _TORCH) if named is None else (named,)


def _kind(head: bytes) -> str | None:
    """What a file is that begins so; None: nobody knows."""
    # The header comes after its length in 8 bytes, of which the last are zero. This is looked at first: a length
    # of 640 begins like a pickle.
    if head[4:9] == b"\0\0\0\0{":
        return _SAFETENSORS
    if head.startswith(_TORCH_BEGINNINGS):
        return _TORCH
    for beginning, kind in _OTHER_BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    return _INDEX if head.lstrip()[:1] == b"{" else None
