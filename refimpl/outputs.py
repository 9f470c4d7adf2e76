"""What a forward call returns: fields by attribute, by name, or by position without the absent ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

Array = Any


@dataclass
class ModelOutput:
    """`out.logits`, `out["logits"]` and `out[0]` are the same; a field that is None has no position."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())

    def keys(self) -> list[str]:
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def values(self) -> list[Any]:
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """Of a model without a head.

    last_hidden_state: [batch, seq, hidden], after the final layer norm.
    past_key_values: the cache, if it was used.
    hidden_states: the embeddings and the output of each layer, the last one after the final layer
        norm: (layers + 1) x [batch, seq, hidden].
    attentions: layers x [batch, heads, q_seq, kv_seq], after the softmax.
    """

    last_hidden_state: Array = None
    past_key_values: Any = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """Of a language model: the same, with `logits` [batch, kept positions, vocab], and the `loss` with labels."""

    loss: Array = None
    logits: Array = None
    past_key_values: Any = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """Of a classifier of texts: the same, with `logits` [batch, num_labels]."""

    loss: Array = None
    logits: Array = None
    past_key_values: Any = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """Of a classifier of tokens: `logits` [batch, seq, num_labels]."""

    loss: Array = None
    logits: Array = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """Of a finder of answers: the scores of each token as the first and as the last one, 2 x [batch, seq]."""

    loss: Array = None
    start_logits: Array = None
    end_logits: Array = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
