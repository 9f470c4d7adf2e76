"""The right class for a folder or a Hub repository, chosen by what its files say."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from refimpl.config import GPTNeoXConfig, GPTNeoXJapaneseConfig
from refimpl.config_base import CONFIG_NAME, PreTrainedConfig, split_hub_options
from refimpl.errors import ConfigError, InputError, TokenizerFileError, quote
from refimpl.hub import resolve
from refimpl.json_reader import read_json_object

#: model_type -> its config class
_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "gpt_neox": GPTNeoXConfig,
    "gpt_neox_japanese": GPTNeoXJapaneseConfig,
}

#: model_type -> what each Auto class makes of it: (module, class)
_MODELS: dict[str, dict[str, tuple[str, str]]] = {
    "gpt_neox": {
        "AutoModel": ("refimpl.gpt_neox", "GPTNeoXModel"),
        "AutoModelForCausalLM": ("refimpl.gpt_neox", "GPTNeoXForCausalLM"),
        "AutoModelForQuestionAnswering": ("refimpl.gpt_neox_heads", "GPTNeoXForQuestionAnswering"),
        "AutoModelForSequenceClassification": ("refimpl.gpt_neox_heads", "GPTNeoXForSequenceClassification"),
        "AutoModelForTokenClassification": ("refimpl.gpt_neox_heads", "GPTNeoXForTokenClassification"),
    },
    "gpt_neox_japanese": {
        "AutoModel": ("refimpl.gpt_neox_japanese", "GPTNeoXJapaneseModel"),
        "AutoModelForCausalLM": ("refimpl.gpt_neox_japanese", "GPTNeoXJapaneseForCausalLM"),
    },
}

#: Why others, which are taken for these families by their names, are not among them.
_OTHERS = {
    "stablelm_alpha": "StableLM-alpha v2 and Japanese StableLM have another MLP and code of their own",
    "gpt2": "GPT-2 has learned positions instead of rotary ones; some Japanese models of this name are GPT-2",
    "gpt_neo": "GPT-Neo is an older architecture, with local attention and learned positions",
    "gptj": "GPT-J rotates neighbouring dimensions, and has one norm for attention and MLP",
    "gptsan-japanese": "GPTSAN is a mixture of experts",
    "gptsan_japanese": "GPTSAN is a mixture of experts",
    "llama": "LLaMA has another norm and MLP",
    "stablelm": "StableLM has another MLP",
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
        model_type = known_type(values.get("model_type"), path)
        return _CONFIGS[model_type].from_dict(values, **overrides)


def known_type(model_type: Any, where: object) -> str:
    """`model_type` itself.  Raises: ConfigError for one that is not supported, with the reason where it is known."""
    if isinstance(model_type, str) and model_type in _CONFIGS:
        return model_type
    raise ConfigError(
        "this type of model is not supported",
        where=where,
        found=f"model_type {quote(model_type)}",
        allowed=", ".join(_CONFIGS),
        hint=f"{_OTHERS[model_type]}." if isinstance(model_type, str) and model_type in _OTHERS else None,
        key="model_type",
        value=model_type,
    )


def class_by_architecture(config: PreTrainedConfig, where: object) -> Any:
    """The model class that `architectures` in the config names; where it names none, the language model.

    Raises: ConfigError for a class that is none of this type of model.
    """
    classes = _MODELS[known_type(config.model_type, where)]
    named = (config.architectures or [classes["AutoModelForCausalLM"][1]])[0]
    for module, name in classes.values():
        if name == named:
            return getattr(import_module(module), name)
    raise ConfigError(
        "no such model",
        where=where,
        found=f"architectures {quote(config.architectures)}",
        allowed=", ".join(name for _, name in classes.values()),
        key="architectures",
        value=config.architectures,
    )


class _AutoModel:
    @classmethod
    def class_for(cls, config: PreTrainedConfig, where: object) -> Any:
        """The model class for `config`; `where` the config comes from is said in the ConfigError if there is none."""
        if not isinstance(config, PreTrainedConfig):
            raise InputError(
                "not a config",
                where="config",
                found=quote(type(config).__name__),
                allowed="a config of a model",
            )
        classes = _MODELS[known_type(config.model_type, where)]
        if cls.__name__ not in classes:
            raise ConfigError(
                f"there is no {cls.__name__} for this type of model",
                where=where,
                found=config.model_type,
                allowed=", ".join(sorted(classes)),
                key="model_type",
                value=config.model_type,
            )
        module, name = classes[cls.__name__]
        return getattr(import_module(module), name)

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Any:
        """Like `from_pretrained` of the model class that the config names."""
        config = options.pop("config", None)
        if config is None:
            hub_options, _ = split_hub_options(options)
            config = AutoConfig.from_pretrained(name_or_path, **hub_options)
        return cls.class_for(config, name_or_path).from_pretrained(name_or_path, config=config, **options)

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **options: Any) -> Any:
        """A model with random weights."""
        return cls.class_for(config, "from_config")(config, **options)


class AutoModel(_AutoModel):
    """The model without a head."""


class AutoModelForCausalLM(_AutoModel):
    """The language model."""


class AutoModelForQuestionAnswering(_AutoModel):
    """Finds an answer in a text."""


class AutoModelForSequenceClassification(_AutoModel):
    """Judges a text."""


class AutoModelForTokenClassification(_AutoModel):
    """Judges each token."""


#: our class -> its module, and the names in files that mean it: `tokenizer_class` as transformers writes it
_TOKENIZERS = {
    "GPTNeoXJapaneseTokenizer": ("refimpl.tokenizer", ("GPTNeoXJapaneseTokenizer",)),
    "GPTNeoXTokenizerFast": (
        "refimpl.tokenizer",
        (
            "GPTNeoXTokenizerFast",
            "GPTNeoXTokenizer",
            "GPT2TokenizerFast",
            "GPT2Tokenizer",
            "PreTrainedTokenizerFast",
            "TokenizersBackend",
        ),
    ),
    "T5Tokenizer": ("refimpl.tokenizer", ("T5Tokenizer", "T5TokenizerFast")),
}

#: The tokenizer of a folder that does not name one, by the files that it needs.
_TOKENIZER_FILES = (
    (("emoji.json",), "GPTNeoXJapaneseTokenizer"),
    (("tokenizer.json",), "GPTNeoXTokenizerFast"),
    (("vocab.json", "merges.txt"), "GPTNeoXTokenizerFast"),
    (("spiece.model",), "T5Tokenizer"),
)


class AutoTokenizer:
    """The tokenizer of a model, whatever its class."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Any:
        """Like `from_pretrained` of the class that `tokenizer_config.json`, or else the files, tell.

        A GPT-2 tokenizer without `tokenizer.json` does not normalise text (`nfc=False`), as in transformers.
        """
        hub_options, _ = split_hub_options(options)

        def has(file: str) -> bool:
            return resolve(name_or_path, file, required=False, **hub_options) is not None

        path = resolve(name_or_path, "tokenizer_config.json", required=False, **hub_options)
        named = None if path is None else read_json_object(path, TokenizerFileError).get("tokenizer_class")
        if named is None:
            named = next((name for files, name in _TOKENIZER_FILES if all(map(has, files))), None)
            if named is None:
                resolve(name_or_path, "tokenizer_config.json", **hub_options)  # says why nothing was found
        ours = next((name for name, (_, names) in _TOKENIZERS.items() if named in names), None)
        if ours is None:
            raise TokenizerFileError(
                "no tokenizer for this model",
                where=name_or_path,
                found="neither a tokenizer_class nor known files" if named is None else quote(named),
                allowed=", ".join(name for _, names in _TOKENIZERS.values() for name in names),
            )
        if str(named).startswith("GPT2") and not has("tokenizer.json"):
            options.setdefault("nfc", False)
        tokenizer_class = getattr(import_module(_TOKENIZERS[ours][0]), ours)
        return tokenizer_class.from_pretrained(name_or_path, **options)
