"""One token for each row, computed by the same instructions every time: what a backend can record and repeat.

Whatever changes from token to token lies in arrays that stay where they are: the ids, their positions, and how many
tokens the cache holds.  So the step takes no arguments, and depends on no number of the host.  It ends with the
greedy choice, and leaves these arrays as the step after that choice reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from refimpl.backends.base import Backend
from refimpl.backends.mask import AttentionMask
from refimpl.cache import DynamicCache
from refimpl.inputs import warn_beyond_context
from refimpl.outputs import CausalLMOutputWithPast
from refimpl.static_cache import StaticCache

Array = Any

#: A cache gets room for as many tokens as it has, but for so many at least and at most.
_FEWEST, _MOST = 512, 1024


@runtime_checkable
class RecordingBackend(Protocol):
    """A backend that gains by recording what it is to compute again."""

    def recorded(self, step: Callable[[], Array]) -> Callable[[], Array]:
        """`step`, as one whole.  It reads and writes arrays that stay where they are, and so does its result."""

    def likeliest(self, logits: Array) -> Array:
        """As `refimpl.backends.likeliest`, without waiting for the result.  [rows, vocab] -> int64 [rows]"""


@dataclass
class RepeatedOutput(CausalLMOutputWithPast):
    """What a repeated step gives, which is overwritten by the next one.

    likeliest: the places of the largest logits, as `refimpl.backends.likeliest` has them; it waits for them and brings
        them to the host.  -> int64 [rows]
    """

    likeliest: Callable[[], np.ndarray] = field(kw_only=True)


def can_repeat(model: Any, cache: Any) -> bool:
    """Whether the backend records steps, and model and cache do with one more token what a recorded step would."""
    if not isinstance(model.backend, RecordingBackend) or not isinstance(cache, DynamicCache):
        return False
    if model.base_model.rotary_emb.fixed is None:  # the angles depend on the length of the text
        return False
    if isinstance(cache, StaticCache) and cache.get_seq_length() >= cache.max_cache_len:
        return False
    return type(cache).update in (DynamicCache.update, StaticCache.update)


class RepeatedStep:
    """The next token of every row, after those that a cache holds.

    Args:
        model: the language model.
        cache: filled with at least one token.  It gets room for more, and grows by each token as it would otherwise.
        visible: `[rows, tokens]`, of the tokens in the cache: 0 at padding.  None: no padding.
    """

    def __init__(self, model: Any, cache: DynamicCache, visible: np.ndarray | None):
        backend, past = model.backend, cache.get_seq_length()
        self._model, self._cache = model, cache
        self._layers = list(cache._layers)
        if not isinstance(cache, StaticCache):
            for layer in self._layers:
                layer.move(past + min(max(past, _FEWEST), _MOST), backend)
        self._storage = [(layer.key_storage, layer.value_storage) for layer in self._layers]
        for key, value in self._storage:
            # What is not visible yet is multiplied by zero where the definition computes.
            key[:, :, past:], value[:, :, past:] = 0, 0
        self._rows, _, self._room, _ = self._storage[0][0].shape
        # Ids and positions of each row, and how many tokens the cache holds, in one array: they change together.
        self._state = backend.asarray(np.zeros(2 * self._rows + 1, np.int64))
        mask = AttentionMask(offset=self._state[-1:], key_visible=self._key_visible(backend, visible))
        placed = _PlacedCache(self._storage, self._state[-1:], cache)
        # Without this object in it: both are then given up, with their memory, as soon as nobody asks any more.
        self._step = backend.recorded(partial(_logits, model, self._state, mask, placed))
        #: The state as the next step finds it; None where the host has not seen what was chosen.
        self._found: np.ndarray | None = None

    def _key_visible(self, backend: Backend, visible: np.ndarray | None) -> Array | None:
        """[rows, room] bool; what comes later is no padding."""
        if visible is None:
            return None
        keys = np.ones((self._rows, self._room), dtype=bool)
        keys[:, : visible.shape[1]] = visible != 0
        return backend.asarray(keys)

    def fits(self, cache: DynamicCache, past: int) -> bool:
        """Whether this step can compute the next token: the cache is where it was, and has room for one more."""
        same = cache is self._cache and len(cache._layers) == len(self._layers)
        return same and past < self._room and cache._layers[-1].key_storage is self._storage[-1][0]

    def __call__(self, ids: np.ndarray, positions: np.ndarray) -> RepeatedOutput:
        """After one more token in each row, 2 x [rows]: logits [rows, 1, vocab], and the likeliest of them."""
        past = self._cache.get_seq_length()
        warn_beyond_context(past + 1, self._model.config.max_position_embeddings)
        state = np.concatenate([ids, positions, [past]])
        # Where every row goes on with its likeliest token, nothing has to be brought to the device.
        if self._found is None or not np.array_equal(state, self._found):
            self._state[...] = self._model.backend.asarray(state)
        self._found = None
        logits = self._step()
        for layer in self._layers:
            layer.length = past + 1
        return RepeatedOutput(logits=logits, past_key_values=self._cache, likeliest=self._likeliest)

    def _likeliest(self) -> np.ndarray:
        self._found = np.array(self._model.backend.to_numpy(self._state))
        return self._found[: self._rows].copy()


def _logits(model: Any, state: Array, mask: AttentionMask, placed: _PlacedCache) -> Array:
    """[rows, 1, vocab]; the ids in `state` become the likeliest tokens, positions and length are one more."""
    rows = state.shape[0] // 2
    outputs = model(
        inputs_embeds=model.get_input_embeddings()(state[:rows, None]),
        attention_mask=mask,
        position_ids=state[rows:-1, None],
        past_key_values=placed,
        use_cache=True,
        output_attentions=False,
        output_hidden_states=False,
        return_dict=True,
    )
    state[:rows] = model.backend.likeliest(outputs.logits[:, -1])
    state[rows:] += 1
    return outputs.logits


class _PlacedCache(DynamicCache):
    """The storage of another cache, written to at a position that lies in an array.

    It gives all of its storage: which keys are filled is said by the mask.
    """

    def __init__(self, storage: list[tuple[Array, Array]], at: Array, cache: DynamicCache):
        super().__init__(dtype=cache.dtype)
        self._storage, self._at, self._of = storage, at, cache

    def update(self, key: Array, value: Array, layer_idx: int, backend: Backend) -> tuple[Array, Array]:
        kept = self._storage[layer_idx]
        backend.store(*kept, key, value, self._at)
        return kept

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._of.get_seq_length(layer_idx)

    def crop(self, max_length: int) -> None:
        """Nothing to do: the other cache counts a token when it has been computed."""
