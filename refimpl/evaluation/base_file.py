"""The log-probabilities of a run in a file, for later runs to be compared with.

The file is a safetensors file with these tensors; `scored` counts the scored tokens of all windows, in their order:

- `ids` [tokens], int32: the text.
- `windows` [windows, 3], int64: start, end and first scored token of each (see `refimpl.evaluation.windows`).
- `nll` [scored], float64: -ln p of each scored token.
- `top` [scored], int32: the likeliest token.
- `lowest` and `step` [scored], float32, and `log_probs` [scored, vocab], uint16: ln of the probabilities is
  `lowest + step * log_probs`, which then is normalised (its exp divided by their sum).

Numbers more than 24 below the largest of a row count as 24 below it: a probability of 4e-11.  A step is then at most
3.7e-4, and since probabilities are normalised again, a run differs from its own file by a divergence of about 6e-9.
The metadata says which model it was (`refimpl-kl-base` is "1", the version of this format).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from refimpl.checkpoints.safetensors_file import SafetensorsFile
from refimpl.checkpoints.safetensors_writer import StoredTensor, header, in_file_order
from refimpl.errors import CheckpointFormatError, ResourceLimitError, SaveError, quote
from refimpl.evaluation.scoring import log_probabilities
from refimpl.evaluation.windows import Window
from refimpl.files import lock, remove_litter, save_error, sync_folder

FORMAT = "refimpl-kl-base"
VERSION = "1"

_DEPTH = 24.0
_LEVELS = 65535

#: name -> (dtype, its number of dimensions)
_TENSORS = {
    "ids": ("int32", 1),
    "windows": ("int64", 2),
    "nll": ("float64", 1),
    "top": ("int32", 1),
    "lowest": ("float32", 1),
    "step": ("float32", 1),
    "log_probs": ("uint16", 2),
}


class BaseWriter:
    """Writes such a file row by row; the old file, if any, is replaced when all of it is there.

    `with BaseWriter(...) as writer:` and then `writer.add(...)` for each window in order; leaving the block by an error
    leaves no file.

    Raises: SaveError; ResourceLimitError where the disk has not the room.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        ids: np.ndarray,
        windows: Sequence[Window],
        vocab_size: int,
        metadata: dict[str, str],
    ):
        self.path = Path(path)
        scored = sum(window.scored for window in windows)
        self._small: dict[str, Any] = {
            "ids": ids.astype(np.int32),
            "windows": np.array(windows, dtype=np.int64),
            "nll": np.zeros(scored),
            "top": np.zeros(scored, dtype=np.int32),
            "lowest": np.zeros(scored, dtype=np.float32),
            "step": np.zeros(scored, dtype=np.float32),
        }
        shapes = {
            **{name: array.shape for name, array in self._small.items()},
            "log_probs": (scored, vocab_size),
        }
        tensors = [
            StoredTensor(n, np.dtype(dtype), shapes[n], self._none) for n, (dtype, _) in _TENSORS.items()
        ]
        self._header = header(tensors, {FORMAT: VERSION, **metadata})
        self._places, end = {}, len(self._header)
        for tensor in in_file_order(tensors):
            self._places[tensor.name] = end
            end += tensor.nbytes
        self.nbytes = end
        self._vocab_size, self._done = vocab_size, 0

    @staticmethod
    def _none() -> np.ndarray:
        raise SaveError("the numbers are written window by window")

    def __enter__(self) -> Self:
        if self.path.is_symlink() or self.path.is_dir():
            raise SaveError("the target is a symbolic link or a folder, not a file", where=self.path)
        try:
            free = shutil.disk_usage(self.path.parent).free
            if free < self.nbytes:
                raise ResourceLimitError(
                    "the disk has not the room for this file",
                    where=self.path,
                    found=f"{free} bytes free",
                    allowed=f"{self.nbytes} bytes or more",
                    hint="Score fewer tokens, with --chunks.",
                )
            remove_litter(self.path)
            self._temporary = self.path.with_name(
                f".{self.path.name}.tmp-{os.getpid()}-{os.urandom(4).hex()}"
            )
            self._file: BinaryIO = open(self._temporary, "xb")
        except OSError as error:
            raise save_error("the file cannot be written", self.path, error) from error
        lock(self._file.fileno())
        return self

    def add(self, logits: np.ndarray, nll: np.ndarray) -> None:
        """The next rows.  [rows, vocab], [rows]"""
        begin, end = self._done, self._done + len(nll)
        self._small["nll"][begin:end] = nll
        self._small["top"][begin:end] = logits.argmax(axis=1)
        try:
            self._file.seek(self._places["log_probs"] + begin * self._vocab_size * 2)
            for rows, log_probs in log_probabilities(logits):
                lowest, step, levels = packed(log_probs)
                self._small["lowest"][begin + rows.start : begin + rows.stop] = lowest
                self._small["step"][begin + rows.start : begin + rows.stop] = step
                self._file.write(levels.astype("<u2").tobytes())
        except OSError as error:
            raise save_error("the file cannot be written", self.path, error) from error
        self._done = end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        saved = False
        try:
            with self._file as file:
                if kind is not None:
                    return
                file.seek(0)
                file.write(self._header)
                for name, array in self._small.items():
                    file.seek(self._places[name])
                    file.write(array.astype(array.dtype.newbyteorder("<")).tobytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
            saved = True
            sync_folder(self.path.parent)
        except OSError as failure:
            raise save_error("the file cannot be written", self.path, failure, saved=saved) from failure
        finally:
            if not saved:
                with contextlib.suppress(OSError):
                    self._temporary.unlink(missing_ok=True)


def packed(log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[rows, vocab] -> lowest and step [rows], float32; levels [rows, vocab], uint16"""
    highest = log_probs.max(axis=1)
    lowest = np.maximum(log_probs.min(axis=1), highest - _DEPTH).astype(np.float32)
    step = ((highest - lowest) / _LEVELS).astype(np.float32)
    levels = (log_probs - lowest[:, None]) / np.where(step, step, 1)[:, None]
    return lowest, step, np.clip(np.rint(levels), 0, _LEVELS).astype(np.uint16)


class BaseRows(NamedTuple):
    """Of some scored tokens.

    log_probs: ln of the probabilities of all tokens.  [rows, vocab], float64
    nll: -ln p of the token of the text.  [rows], float64
    top: the likeliest token.  [rows]
    """

    log_probs: np.ndarray
    nll: np.ndarray
    top: np.ndarray


class BaseFile:
    """Such a file, for reading; rows stay on the disk until they are asked for.

    Attributes: `ids` [tokens], `windows`, `vocab_size`, `metadata`.
    Raises: as `SafetensorsFile`; CheckpointFormatError for another kind of file, or tensors that do not fit together.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._tensors = SafetensorsFile(path)
        self.metadata = self._tensors.metadata
        self._check(path)
        self.ids = np.array(self._tensors["ids"], dtype=np.int64)
        self.windows = [Window(*map(int, row)) for row in self._tensors["windows"]]
        self.vocab_size = self._tensors.shape("log_probs")[1]
        self._check_windows(path)

    def rows(self, begin: int, end: int) -> BaseRows:
        """What the base says of some scored tokens."""
        part = slice(begin, end)
        levels = self._tensors["log_probs"][part].astype(np.float64)
        scaled = self._tensors["lowest"][part, None] + self._tensors["step"][part, None] * levels
        log_probs = np.empty_like(scaled)
        for some, normalised in log_probabilities(scaled):
            log_probs[some] = normalised
        return BaseRows(log_probs, np.array(self._tensors["nll"][part]), np.array(self._tensors["top"][part]))

    def _check(self, path: object) -> None:
        if self.metadata.get(FORMAT) != VERSION:
            raise CheckpointFormatError(
                "not a file that --kl-base has written",
                where=path,
                found=f"{FORMAT} {quote(self.metadata.get(FORMAT))} in its metadata",
                allowed=VERSION,
            )
        for name, (dtype, dimensions) in _TENSORS.items():
            found = None
            if name in self._tensors:
                found = (str(self._tensors.dtype(name)), len(self._tensors.shape(name)))
            if found != (dtype, dimensions) or (name == "windows" and self._tensors.shape(name)[1] != 3):
                raise CheckpointFormatError(
                    "a tensor is missing or of another kind", where=f"{path}: {name}", found=quote(found)
                )

    def _check_windows(self, path: object) -> None:
        scored, tokens = len(self._tensors["nll"]), len(self.ids)
        lengths = {self._tensors.shape(name)[0] for name in ("top", "lowest", "step", "log_probs")}
        ordered = all(0 <= w.start < w.first < w.end <= tokens for w in self.windows)
        if not scored or not ordered or lengths | {sum(w.scored for w in self.windows)} != {scored}:
            raise CheckpointFormatError("its tensors do not fit together", where=path)
        if not (self.ids.min() >= 0 and self.ids.max() < self.vocab_size):
            raise CheckpointFormatError("ids outside the vocabulary", where=path)
