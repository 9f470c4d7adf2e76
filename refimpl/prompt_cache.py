"""A cache that knows which text it holds: the next text is computed from where it departs.

In a conversation each text begins with the one before, so that only the new words have to be read.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Self

import numpy as np

from refimpl.arrays import to_numpy
from refimpl.cache import DynamicCache, open_cache
from refimpl.errors import CheckpointFormatError, InputError, quote

_FORMAT = "refimpl prompt cache 1"


class PromptCache(DynamicCache):
    """For `generate(..., past_key_values=cache)`, again and again: what a text shares with the one before stays.

    Args:
        dtype: as of a `DynamicCache`.

    Attributes:
        token_ids: the text that the cache holds, `[rows, seq]`, int64; -1 at padding.
        reused: how many tokens of the text that `generate()` was last called with were there already.
    """

    def __init__(self, *, dtype: Any = None) -> None:
        super().__init__(dtype=dtype)
        self.token_ids = np.zeros((0, 0), dtype=np.int64)
        self.reused = 0
        self._model: Any = None
        self._model_key = ""

    def keep_common(self, text: np.ndarray, model: Any) -> int:
        """Forget what does not stand at the beginning of `text`, `[rows, seq]`, and always its last token.

        Returns: how many tokens are left.
        Raises: InputError for a cache that another model has filled.
        """
        if model is not self._model:
            key = _key_of(model)
            if len(self) and key != self._model_key:
                raise InputError(
                    "the cache was filled by another model",
                    where="past_key_values",
                    hint="Use one PromptCache for each model, or reset() it.",
                )
            self._model, self._model_key = model, key
        held = self.token_ids[:, : self.get_seq_length()]
        width = min(held.shape[1], text.shape[1] - 1)
        common = 0
        if len(held) == len(text):
            differs = (held[:, :width] != text[:, :width]).any(axis=0)
            common = int(np.argmax(differs)) if differs.any() else width
        self.token_ids = held[:, :common]
        if common == 0:
            self.reset()
        else:
            self.crop(common)
        return common

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cache into a safetensors file: `layers.N.key` and `layers.N.value`, `[rows, heads, seq,
        head_dim]`, and `token_ids`, `[rows, seq]`.

        Raises: SaveError; a file of that name is then as it was.
        """
        from safetensors.numpy import save

        from refimpl.files import write_atomically

        tensors = {"token_ids": self.token_ids[:, : self.get_seq_length()]}
        length = tensors["token_ids"].shape[1]  # after an interruption the first layers may hold more
        for index, (key, value) in enumerate(self):
            both = {"key": key[:, :, :length], "value": value[:, :, :length]}
            tensors |= {f"layers.{index}.{name}": to_numpy(array) for name, array in both.items()}
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        write_atomically(path, save(contiguous, {"format": _FORMAT, "model": self._model_key}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any) -> Self:
        """What `save` wrote.  The model must have the same settings, weights and compute dtype.

        Raises: MissingFileError; CheckpointFormatError for a file that is no such cache; InputError for the cache
            of another model.
        """
        from refimpl.checkpoints.safetensors_file import SafetensorsFile

        file = SafetensorsFile(path, mmap=False)
        key = _key_of(model)
        if (found := file.metadata.get("format")) != _FORMAT:
            raise CheckpointFormatError(
                "not a prompt cache", where=path, found=f"format {quote(found)}", allowed=quote(_FORMAT)
            )
        if file.metadata.get("model") != key:
            raise InputError("the cache was filled by another model", where=path)
        layers = model.config.num_hidden_layers
        names = {"token_ids", *(f"layers.{i}.{part}" for i in range(layers) for part in ("key", "value"))}
        if set(file) - names or ("layers.0.key" in file and names - set(file)) or "token_ids" not in file:
            raise CheckpointFormatError("not the tensors of a prompt cache", where=path, found=sorted(file))
        kept = file["layers.0.key"].dtype if len(file) > 1 else model.dtype
        cache = cls(dtype=None if kept == model.dtype else kept)
        cache.token_ids, cache._model, cache._model_key = file["token_ids"].copy(), model, key
        ids, asarray = cache.token_ids, model.backend.asarray
        if len(file) > 1:
            pairs = [(file[f"layers.{i}.key"], file[f"layers.{i}.value"]) for i in range(layers)]
            DynamicCache.__init__(cache, [(asarray(k), asarray(v)) for k, v in pairs], dtype=cache.dtype)
        config = model.config
        try:
            open_cache(
                model.backend, cache, True, layers, (len(ids), config.num_attention_heads, config.head_dim)
            )
        except (InputError, IndexError, TypeError) as error:
            raise CheckpointFormatError(str(error), where=path) from error
        if ids.dtype != np.int64 or ids.ndim != 2 or ids.shape[1] != cache.get_seq_length():
            raise CheckpointFormatError(
                "must be the text that the cache holds",
                where=f"{path}: token_ids",
                found=f"{ids.dtype} {list(ids.shape)}",
                allowed=f"int64 [rows, {cache.get_seq_length()}]",
            )
        return cache


def _key_of(model: Any) -> str:
    """Says of two models whether their caches can be exchanged: settings, compute dtype, and some of the weights."""
    base = model.base_model
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    digest.update(str(model.dtype).encode())
    for array in (base.embed_in.weight[:4], base.final_layer_norm.weight, base.final_layer_norm.bias):
        digest.update(np.ascontiguousarray(to_numpy(array)).tobytes())
    return digest.hexdigest()
