"""The two families of models, as the makers know them: what differs between them is written here alone."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseForCausalLM,
)
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gpt_neox_japanese import modeling_gpt_neox_japanese

_HOW = "eager attention on CPU, one thread; float32 as the library computes it; float64 is the same code "


@dataclass(frozen=True)
class Family:
    """One family: its names in the library and in files.

    `name` is the model type, the prefix of all weights and the folder of its goldens; `head` is the key of the
    output head in the library, which files call `embed_out.weight`; `rotary_pct` is the default of the class.
    """

    name: str
    config_class: type[Any]
    model_class: type[Any]
    modeling: ModuleType
    head: str
    rotary_pct: float
    how: str

    @property
    def spec(self) -> str:
        return f"docs/spec/{self.name}.md"

    @property
    def source(self) -> dict[str, Any]:
        """Where the numbers of this family's cases come from."""
        return {
            "kind": "independent",
            "library": "transformers",
            "version": "5.23.0",
            "address": "https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers/models/"
            + self.name,
            "command": "python golden/make/make_models.py",
            "how": self.how,
        }

    def model_folder(self, model: str) -> str:
        """Where the folder of `model` lies, relative to the goldens."""
        return f"models/{self.name}/{model}"

    def vector_folder(self, model: str) -> str:
        return f"vectors/{self.name}/{model}"

    def vector_file(self, model: str, case: str) -> str:
        return f"{self.vector_folder(model)}/{case}.safetensors"


NEOX = Family(
    name="gpt_neox",
    config_class=GPTNeoXConfig,
    model_class=GPTNeoXForCausalLM,
    modeling=modeling_gpt_neox,
    head="lm_head.weight",
    rotary_pct=0.25,
    how=_HOW
    + "on a double model, with rotary tables, the softmax of attention and the loss in float64 (the library "
    "keeps those three in float32)",
)
JAPANESE = Family(
    name="gpt_neox_japanese",
    config_class=GPTNeoXJapaneseConfig,
    model_class=GPTNeoXJapaneseForCausalLM,
    modeling=modeling_gpt_neox_japanese,
    head="embed_out.weight",
    rotary_pct=1.0,
    how=_HOW
    + "on a double model, with rotary tables and loss in float64 (the library keeps those two in float32)",
)
FAMILIES = {family.name: family for family in (NEOX, JAPANESE)}


def family_of(model: Any) -> Family:
    """The family of a model of the library, whatever its head."""
    return FAMILIES[model.config.model_type]
