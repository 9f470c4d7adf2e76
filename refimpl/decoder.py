"""What GPT-NeoX and GPT-NeoX-Japanese have in common: the way from token ids to logits.

    ids -> embed_in -> layers -> final_layer_norm -> embed_out -> logits

The families differ in their layers alone: see `gpt_neox.py` and `gpt_neox_japanese.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from refimpl.attention import Attention, build_mask
from refimpl.backends.base import Backend
from refimpl.cache import open_cache, undone_on_failure
from refimpl.config import GPTNeoXConfig, GPTNeoXJapaneseConfig
from refimpl.errors import InputError
from refimpl.generation.mixin import GenerationMixin
from refimpl.inputs import (
    check_embeds,
    check_head_mask,
    check_ids,
    check_positions,
    default_positions,
    warn_beyond_context,
)
from refimpl.layers import MLP, Embedding, LayerNorm, Linear, Module, TiedLinear
from refimpl.loss import causal_lm_loss, keep_positions
from refimpl.model import PreTrainedModel
from refimpl.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from refimpl.rotary import RotaryEmbedding

Array = Any
Config = GPTNeoXConfig | GPTNeoXJapaneseConfig


class DecoderLayer(Module):
    """The parts of a layer.  How they are joined is what each family says in `__call__`."""

    def __init__(
        self, backend: Backend, config: Config, layer_idx: int, *, attention_bias: bool, mlp_bias: bool
    ):
        super().__init__(backend)
        hidden, eps = config.hidden_size, config.layer_norm_eps
        self.input_layernorm = LayerNorm(backend, hidden, eps)
        self.attention = Attention(backend, hidden, config.num_attention_heads, layer_idx, attention_bias)
        self.post_attention_layernorm = LayerNorm(backend, hidden, eps)
        self.mlp = MLP(backend, hidden, config.intermediate_size, config.hidden_act, mlp_bias)

    def __call__(self, hidden_states: Array, **attending: Any) -> tuple[Array, Array | None]:
        """[batch, seq, hidden] -> [batch, seq, hidden], and the attention weights if needed

        attending: the arguments of `Attention`.
        """
        raise TypeError(f"{type(self).__name__} is a base class; use one of the models")


class DecoderModel(PreTrainedModel):
    """The model without a head: token ids to hidden states."""

    config: Config
    layer_class: ClassVar[Any]

    def build(self, backend: Backend) -> None:
        config = self.config
        self.embed_in = Embedding(backend, config.vocab_size, config.hidden_size)
        self.layers = [self.layer_class(backend, config, i) for i in range(config.num_hidden_layers)]
        self.final_layer_norm = LayerNorm(backend, config.hidden_size, config.layer_norm_eps)
        self.rotary_emb = RotaryEmbedding(backend, config)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Hidden states of the tokens.  `input_ids` [batch, seq] -> `last_hidden_state` [batch, seq, hidden]

        attention_mask: [batch, past + seq], 1 for a token and 0 for padding, or 4-D (see `build_mask`).
        token_type_ids: accepted and ignored; the model has none.
        position_ids: [batch or 1, seq]; by default they count on from the cache, whatever the mask.
        head_mask: [heads] or [layers, heads], a factor for what each head contributes.
        inputs_embeds: [batch, seq, hidden], instead of `input_ids`.
        past_key_values: the cache of the tokens before these; it is extended in place.
        The other arguments override the settings of the same name in the config.

        Returns: BaseModelOutputWithPast, or its tuple when `return_dict` is false.
        Raises: InputError for ids, masks or shapes that do not fit the model or each other.
        """
        config, backend = self.config, self.backend
        use_cache = config.use_cache if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = (
            config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        return_dict = config.return_dict if return_dict is None else return_dict

        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            hidden_states = self.embed_in(check_ids(backend, input_ids, config.vocab_size))
        else:
            hidden_states = check_embeds(backend, inputs_embeds, config.hidden_size)
        batch, seq, _ = hidden_states.shape

        shape = (batch, config.num_attention_heads, config.head_dim)
        cache = open_cache(backend, past_key_values, use_cache, config.num_hidden_layers, shape)
        past = 0 if cache is None else cache.get_seq_length()

        mask = build_mask(backend, attention_mask, batch, config.num_attention_heads, seq, past)
        heads = check_head_mask(backend, head_mask, config.num_hidden_layers, config.num_attention_heads)
        if position_ids is None:
            position_ids = default_positions(past, seq)
        warn_beyond_context(past + seq, config.max_position_embeddings)
        cos, sin = self.rotary_emb(check_positions(backend, position_ids, batch, seq))

        all_hidden_states: list[Array] = []
        all_attentions: list[Array] = []
        with undone_on_failure(cache):
            for layer, layer_head_mask in zip(self.layers, heads, strict=True):
                all_hidden_states.append(hidden_states)
                hidden_states, weights = layer(
                    hidden_states,
                    cos=cos,
                    sin=sin,
                    mask=mask,
                    cache=cache,
                    head_mask=layer_head_mask,
                    need_weights=output_attentions,
                )
                all_attentions.append(weights)
            hidden_states = self.final_layer_norm(hidden_states)

        output = BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=cache,
            hidden_states=(*all_hidden_states, hidden_states) if output_hidden_states else None,
            attentions=tuple(all_attentions) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()


class DecoderForCausalLM(GenerationMixin, PreTrainedModel):
    """The language model: token ids to the logits of the next token."""

    config: Config
    model_class: ClassVar[type[DecoderModel]]

    def build(self, backend: Backend) -> None:
        base = self.model_class.skeleton(self.config, backend)
        setattr(self, self.base_model_prefix, base)
        if self.config.tie_word_embeddings:
            self.embed_out: Linear = TiedLinear(base.embed_in)
        else:
            self.embed_out = Linear(backend, self.config.hidden_size, self.config.vocab_size, bias=False)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        past_key_values: Any = None,
        labels: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: Any = 0,
    ) -> Any:
        """Logits of the next token at each position.  `input_ids` [batch, seq] -> `logits` [batch, seq, vocab]

        The arguments are those of the model without a head, and:
        labels: [batch, seq]; gives `loss`, the mean of -log p(label) where the logits at a position are
            compared with the label of the next one; -100 is left out.
        logits_to_keep: only the last so many positions (0: all), or those of a one-dimensional index array.

        Returns: CausalLMOutputWithPast, or its tuple when `return_dict` is false.
        Raises: InputError, as the model without a head.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        with undone_on_failure(past_key_values):
            outputs = self.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                head_mask=head_mask,
                inputs_embeds=inputs_embeds,
                past_key_values=past_key_values,
                use_cache=use_cache,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=True,
            )
            logits = self.embed_out(keep_positions(outputs.last_hidden_state, logits_to_keep))
            loss = None if labels is None else causal_lm_loss(self.backend, logits, labels)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return output if return_dict else output.to_tuple()
