"""GPT-NeoX (arXiv:2204.06745): what its layers do.

Attention and MLP stand side by side: both read the layer's input, each through a norm of its own, and
both are added to it.  (With `use_parallel_residual` false the MLP follows the attention.)  Every dense
layer has a bias, unless `attention_bias` is false.
"""

from __future__ import annotations

from typing import Any

from refimpl.backends.base import Backend
from refimpl.config import GPTNeoXConfig
from refimpl.decoder import DecoderForCausalLM, DecoderLayer, DecoderModel

Array = Any


class GPTNeoXLayer(DecoderLayer):
    """Attention and MLP, side by side or one after the other."""

    def __init__(self, backend: Backend, config: GPTNeoXConfig, layer_idx: int):
        super().__init__(backend, config, layer_idx, attention_bias=config.attention_bias, mlp_bias=True)
        self.use_parallel_residual = config.use_parallel_residual

    def __call__(self, hidden_states: Array, **attending: Any) -> tuple[Array, Array | None]:
        """[batch, seq, hidden] -> [batch, seq, hidden], and the attention weights if needed"""
        attended, weights = self.attention(self.input_layernorm(hidden_states), **attending)
        after_attention = hidden_states + attended
        mlp_input = hidden_states if self.use_parallel_residual else after_attention
        return after_attention + self.mlp(self.post_attention_layernorm(mlp_input)), weights


class GPTNeoXModel(DecoderModel):
    """The model without a head: token ids to hidden states."""

    config_class = GPTNeoXConfig
    base_model_prefix = "gpt_neox"
    layer_class = GPTNeoXLayer


class GPTNeoXForCausalLM(DecoderForCausalLM):
    """The language model: token ids to the logits of the next token."""

    config_class = GPTNeoXConfig
    base_model_prefix = "gpt_neox"
    model_class = GPTNeoXModel
