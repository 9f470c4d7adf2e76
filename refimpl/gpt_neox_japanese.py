"""GPT-NeoX-Japanese: what its layers do.

Attention and MLP follow one another: the MLP reads what the attention has already changed.  No dense
layer has a bias, except one vector that the *last* layer adds to its attention.  The output head is the
input embedding (`tie_word_embeddings`), and whole heads are rotated (`rotary_pct` 1).
"""

from __future__ import annotations

from typing import Any

from refimpl.backends.base import Backend
from refimpl.config import GPTNeoXJapaneseConfig
from refimpl.decoder import DecoderForCausalLM, DecoderLayer, DecoderModel

Array = Any


class GPTNeoXJapaneseLayer(DecoderLayer):
    """Attention, then MLP, each on a normalised copy and added to the residual."""

    def __init__(self, backend: Backend, config: GPTNeoXJapaneseConfig, layer_idx: int):
        super().__init__(backend, config, layer_idx, attention_bias=False, mlp_bias=False)
        self.is_last = layer_idx == config.num_hidden_layers - 1
        if self.is_last:
            self.attention.declare("dense_bias", (config.hidden_size,), initial=0.0)

    def __call__(self, hidden_states: Array, **attending: Any) -> tuple[Array, Array | None]:
        """[batch, seq, hidden] -> [batch, seq, hidden], and the attention weights if needed"""
        attended, weights = self.attention(self.input_layernorm(hidden_states), **attending)
        if self.is_last:
            attended = attended + self.attention.dense_bias  # type: ignore[attr-defined]
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)), weights


class GPTNeoXJapaneseModel(DecoderModel):
    """The model without a head: token ids to hidden states."""

    config_class = GPTNeoXJapaneseConfig
    base_model_prefix = "gpt_neox_japanese"
    layer_class = GPTNeoXJapaneseLayer


class GPTNeoXJapaneseForCausalLM(DecoderForCausalLM):
    """The language model: token ids to the logits of the next token."""

    config_class = GPTNeoXJapaneseConfig
    base_model_prefix = "gpt_neox_japanese"
    model_class = GPTNeoXJapaneseModel
