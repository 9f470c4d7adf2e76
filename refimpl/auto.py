"""The right class for a folder or a Hub repository, chosen by what its files say."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from refimpl.config import CONFIG_NAME, GPTNeoXJapaneseConfig, PreTrainedConfig, split_hub_options
from refimpl.errors import ConfigError, quote
from refimpl.hub import resolve
from refimpl.json_reader import read_json_object

#: model_type -> config class, and the module and class of each kind of model.
_MODELS: dict[str, tuple[type[PreTrainedConfig], str, dict[str, str]]] = {
    "gpt_neox_japanese": (
        GPTNeoXJapaneseConfig,
        "refimpl.gpt_neox_japanese",
        {"AutoModel": "GPTNeoXJapaneseModel", "AutoModelForCausalLM": "GPTNeoXJapaneseForCausalLM"},
    ),
}


class AutoConfig:
    """The config of a model, whatever its type."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> PreTrainedConfig:
        """Like `from_pretrained` of the config class that `model_type` in the file names."""
        hub_options, overrides = split_hub_options(options)
        path = resolve(name_or_path, CONFIG_NAME, **hub_options)
        assert path is not None
        values = read_json_object(path, ConfigError)
        return _entry(values.get("model_type"), path)[0].from_dict(values, **overrides)


def _entry(model_type: Any, where: object) -> tuple[type[PreTrainedConfig], str, dict[str, str]]:
    if not isinstance(model_type, str) or model_type not in _MODELS:
        raise ConfigError(
            "this type of model is not supported",
            where=where,
            found=f"model_type {quote(model_type)}",
            allowed=", ".join(_MODELS),
            key="model_type",
            value=model_type,
        )
    return _MODELS[model_type]


class _AutoModel:
    @classmethod
    def _class_for(cls, config: PreTrainedConfig, where: object) -> Any:
        _, module, classes = _entry(config.model_type, where)
        if cls.__name__ not in classes:
            raise ConfigError(
                f"there is no {cls.__name__} for this type of model",
                where=where,
                found=config.model_type,
                allowed=", ".join(sorted(classes)),
                key="model_type",
                value=config.model_type,
            )
        return getattr(import_module(module), classes[cls.__name__])

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Any:
        """Like `from_pretrained` of the model class that the config names."""
        config = options.pop("config", None)
        if config is None:
            hub_options, _ = split_hub_options(options)
            config = AutoConfig.from_pretrained(name_or_path, **hub_options)
        return cls._class_for(config, name_or_path).from_pretrained(name_or_path, config=config, **options)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **options: Any) -> Any:
        """A model with random weights."""
        return cls._class_for(config, "from_config")(config, **options)


class AutoModel(_AutoModel):
    """The model without a head."""


class AutoModelForCausalLM(_AutoModel):
    """The language model."""
