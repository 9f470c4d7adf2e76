"""The settings of the two families of models, with the keys and defaults of their `config.json`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, ClassVar

from refimpl.backends.activations import ACTIVATIONS
from refimpl.config_base import PreTrainedConfig
from refimpl.rope_parameters import SPELLINGS, check_rope_parameters, read_rope_parameters


class _NeoXConfig(PreTrainedConfig):
    """What the two families share; the differences are in the two classes below."""

    whole_ranges: ClassVar = {
        "vocab_size": (1, 1 << 22),
        "hidden_size": (1, 1 << 16),
        "num_hidden_layers": (1, 1 << 10),
        "num_attention_heads": (1, 1 << 10),
        "intermediate_size": (1, 1 << 20),
        "max_position_embeddings": (1, 1 << 20),
    }
    float_ranges: ClassVar = {
        "layer_norm_eps": (1e-30, 1e6),
        "initializer_range": (0.0, 1e6),
        "attention_dropout": (0.0, 1.0),
        "hidden_dropout": (0.0, 1.0),
    }
    other_spellings: ClassVar = (*PreTrainedConfig.other_spellings, "rope_scaling", *SPELLINGS)
    default_rotary_pct: ClassVar[float]

    # Shapes.
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 2048

    # Functions.
    hidden_act: str | Callable[[Any], Any] = "gelu"  # "gelu" is the exact (erf) form
    layer_norm_eps: float = 1e-5
    #: How positions become angles: rope_type, rope_theta, partial_rotary_factor, ... (see `rope_parameters.py`).
    rope_parameters: dict[str, Any] = {}  # noqa: RUF012  (never stays empty)

    # Accepted, and without effect on inference.
    initializer_range: float = 0.02  # deviation of random weights
    attention_dropout: float
    hidden_dropout: float = 0.0
    is_decoder: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_ndims(self) -> int:
        """How many dimensions of each head are rotated."""
        return int(self.head_dim * self.rope_parameters["partial_rotary_factor"])

    # The earlier names of the rotary settings.

    @property
    def rotary_pct(self) -> float:
        """The part of each head that is rotated."""
        return self.rope_parameters["partial_rotary_factor"]

    @rotary_pct.setter
    def rotary_pct(self, value: float) -> None:
        self.update({"rotary_pct": value})

    @property
    def rotary_emb_base(self) -> float:
        return self.rope_parameters["rope_theta"]

    @rotary_emb_base.setter
    def rotary_emb_base(self, value: float) -> None:
        self.update({"rotary_emb_base": value})

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """The rotary settings without base and part; None for the type "default" alone."""
        own = ("rope_theta", "partial_rotary_factor")
        others = {key: value for key, value in self.rope_parameters.items() if key not in own}
        return None if others == {"rope_type": "default"} else others

    @rope_scaling.setter
    def rope_scaling(self, value: dict[str, Any] | None) -> None:
        self.update({"rope_scaling": value})

    def _translate(self, settings: dict[str, Any]) -> dict[str, Any]:
        settings = super()._translate(settings)
        settings["rope_parameters"] = self._rope_parameters(settings)
        return settings

    def _normal_form(self, name: str, value: Any) -> Any:
        if name == "rope_parameters":
            return self._rope_parameters({"rope_parameters": value})
        return super()._normal_form(name, value)

    def _rope_parameters(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Every spelling of the rotary settings, taken out of `settings`, on top of those that there are."""
        default = {
            "rope_theta": 10000,
            "partial_rotary_factor": self.default_rotary_pct,
            "rope_type": "default",
        }
        return read_rope_parameters(settings, {**default, **self.rope_parameters})

    def to_dict(self) -> dict[str, Any]:
        """The settings as a `config.json` holds them, in the earlier spelling, which every program reads."""
        values = super().to_dict()
        del values["rope_parameters"]
        values |= {"rotary_pct": self.rotary_pct, "rotary_emb_base": self.rotary_emb_base}
        if self.rope_scaling is not None:
            values["rope_scaling"] = self.rope_scaling
            original = self.rope_parameters.get("original_max_position_embeddings")
            if self.rope_parameters["rope_type"] == "longrope" and original is not None:
                # Version 4 of transformers looks for it beside the object only.
                values["original_max_position_embeddings"] = original
        return values

    def validate(self) -> None:
        super().validate()
        if self.hidden_size % self.num_attention_heads:
            raise self._error(
                f"not divisible by num_attention_heads = {self.num_attention_heads}",
                "hidden_size",
                "a multiple of the number of heads, so that every head has the same width",
            )
        named = isinstance(self.hidden_act, str) and self.hidden_act in ACTIVATIONS
        if not callable(self.hidden_act) and not named:
            near = difflib.get_close_matches(str(self.hidden_act), ACTIVATIONS, n=1)
            raise self._error(
                "unknown activation",
                "hidden_act",
                ", ".join(sorted(ACTIVATIONS)),
                f"Did you mean {near[0]}?" if near else None,
            )
        where = f"{self.model_type} config"
        check_rope_parameters(self.rope_parameters, self.head_dim, self.max_position_embeddings, where)


class GPTNeoXConfig(_NeoXConfig):
    """The settings of GPT-NeoX; the defaults are those of transformers, near to `EleutherAI/gpt-neox-20b`."""

    model_type = "gpt_neox"
    default_rotary_pct = 0.25

    vocab_size: int = 50432
    hidden_size: int = 6144
    num_hidden_layers: int = 44
    num_attention_heads: int = 64
    intermediate_size: int = 24576
    #: Attention and MLP read the same input side by side, instead of one after the other.
    use_parallel_residual: bool = True
    #: Whether the dense layers of the attention have biases; those of the MLP always have.
    attention_bias: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    attention_dropout: float = 0.0
    classifier_dropout: float | None = 0.1

    float_ranges: ClassVar = {**_NeoXConfig.float_ranges, "classifier_dropout": (0.0, 1.0)}
    may_be_none: ClassVar = ("classifier_dropout",)


class GPTNeoXJapaneseConfig(_NeoXConfig):
    """The settings of GPT-NeoX-Japanese; the defaults are those of `abeja/gpt-neox-japanese-2.7b`."""

    model_type = "gpt_neox_japanese"
    default_rotary_pct = 1.0

    vocab_size: int = 32000
    hidden_size: int = 2560
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    intermediate_multiple_size: float = 4
    tie_word_embeddings: bool = True  # the output head is the input embedding
    bos_token_id: int | None = 31996
    eos_token_id: int | list[int] | None = 31999
    attention_dropout: float = 0.1

    float_ranges: ClassVar = {**_NeoXConfig.float_ranges, "intermediate_multiple_size": (1e-6, 1 << 20)}

    @property
    def intermediate_size(self) -> int:
        return int(self.hidden_size * self.intermediate_multiple_size)
