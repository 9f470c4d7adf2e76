"""What a trace holds: the arrays by name, and the inputs of each call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refimpl.conformance import steps


@dataclass
class Call:
    """One call of the model, as far as the recorders saw its inputs: enough to make it again.

    Attributes:
        input_ids: [batch, seq]; None where embeddings were given instead.
        position_ids: [batch or 1, seq].
        attention_mask: [batch, past + seq], 1 for a token; None: no padding.
        past: how many tokens were in the cache before.
        repeatable: false where something else took part (a 4-D mask, head_mask, inputs_embeds).
    """

    input_ids: np.ndarray | None = None
    position_ids: np.ndarray | None = None
    attention_mask: np.ndarray | None = None
    past: int = 0
    repeatable: bool = True

    @property
    def seq(self) -> int:
        """How many tokens the call had."""
        return 0 if self.position_ids is None else self.position_ids.shape[1]

    def real_tokens(self) -> np.ndarray | None:
        """[batch, seq], false at padding; None: all are real."""
        return None if self.attention_mask is None else self.attention_mask[:, self.past :] != 0

    def counts_on(self) -> bool:
        """Whether the positions are those that a model takes by itself."""
        default = np.arange(self.past, self.past + self.seq)
        return self.position_ids is None or bool((self.position_ids == default).all())


@dataclass
class Trace(Mapping[str, np.ndarray]):
    """What a model computed, by name, in the order of computation; arrays of the host, in the compute dtype.

    Of the second call of the model and later ones, names end in `@1`, `@2`, ... .  A step is also found under
    its other names (`steps.ALIASES`): `attention.rotary_query` is the rotated part of `query_rotated`.

    Attributes:
        calls: the inputs of each call.
        about: what else is known: model, config, dtype, backend, ...
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        found = steps.find(name, self.arrays)
        if found is None:
            raise KeyError(name)
        array = self.arrays[found]
        if steps.is_rotated_part(name) and found != name:
            return array[..., : self.about["rotary_ndims"]]
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and steps.find(name, self.arrays) is not None

    def of_call(self, call: int) -> dict[str, np.ndarray]:
        """The arrays of one call, by their names without its mark."""
        parts = ((steps.split_call(name), array) for name, array in self.arrays.items())
        return {name: array for (name, number), array in parts if number == call}

    def save(self, path: Any) -> Any:
        """Write the trace as one safetensors file (see `trace_file`).  Raises: SaveError."""
        from refimpl.conformance.trace_file import save_trace

        return save_trace(self, path)

    @classmethod
    def load(cls, path: Any) -> Trace:
        """Read a file that `save` wrote.  Raises: MissingFileError, CheckpointFormatError, InputError."""
        from refimpl.conformance.trace_file import load_trace

        return load_trace(path)
