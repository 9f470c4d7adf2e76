"""The settings of a model, with the keys and defaults of its `config.json`.

Both spellings of the rotary settings are read: `rotary_pct` and `rotary_emb_base`, and the later
`rope_parameters`.  They are written in the first, which every program reads.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, dataclass_transform

from refimpl.backends.activations import ACTIVATIONS
from refimpl.errors import ConfigError, quote
from refimpl.files import make_folder, write_atomically
from refimpl.hub import resolve
from refimpl.json_reader import read_json_object

CONFIG_NAME = "config.json"

# Inclusive limits: beyond them a file is wrong, or made to exhaust memory.
_WHOLE_RANGES = {
    "vocab_size": (1, 1 << 22),
    "hidden_size": (1, 1 << 16),
    "num_hidden_layers": (1, 1 << 10),
    "num_attention_heads": (1, 1 << 10),
    "max_position_embeddings": (1, 1 << 20),
}

_FLOAT_RANGES = {
    "rotary_pct": (1e-6, 1.0),
    "rotary_emb_base": (1e-6, 1e18),
    "layer_norm_eps": (1e-30, 1e6),
    "intermediate_multiple_size": (1e-6, 1 << 20),
    "initializer_range": (0.0, 1e6),
}

_ROTARY_ALIASES = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}


@dataclass_transform(kw_only_default=True)
class PreTrainedConfig:
    """Base of the configs: the annotated attributes of a class are its settings and their defaults.

    Settings are given by keyword and may be changed afterwards (`config.is_decoder = True`).

    Raises: ConfigError for an unknown setting (the nearest known one is named) or an impossible value.
    """

    model_type: ClassVar[str] = ""

    #: Keys of the file that mean nothing to this model, kept so that nothing is lost.
    unused_keys: dict[str, Any]

    # What a forward call does when its argument of the same name is None.
    use_cache: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True

    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True
    architectures: list[str] | None = None
    #: The dtype of the weights in the file, such as "float16".
    dtype: str | None = None

    def __init__(self, **settings: Any):
        self.unused_keys = {}
        fields = self.fields()
        settings = self._translate(settings)
        for name, default in fields.items():
            setattr(self, name, settings.pop(name, default))
        self._refuse_unknown(settings)
        self.validate()

    @classmethod
    def fields(cls) -> dict[str, Any]:
        """Every setting and its default value."""
        annotated = [name for base in reversed(cls.__mro__) for name in getattr(base, "__annotations__", {})]
        return {name: getattr(cls, name) for name in annotated if name not in ("model_type", "unused_keys")}

    def _refuse_unknown(self, settings: dict[str, Any]) -> None:
        for unknown in sorted(settings):
            near = difflib.get_close_matches(unknown, self.fields(), n=1)
            raise ConfigError(
                "unknown setting",
                where=type(self).__name__,
                found=quote(unknown),
                hint=f"Did you mean {near[0]}?" if near else None,
                key=unknown,
                value=settings[unknown],
            )

    def updated(self, **overrides: Any) -> Self:
        """A copy with some settings replaced.  Raises: ConfigError for an unknown or impossible one."""
        config = copy.copy(self)
        overrides = self._translate(overrides)
        self._refuse_unknown({name: value for name, value in overrides.items() if name not in self.fields()})
        for name, value in overrides.items():
            setattr(config, name, value)
        config.validate()
        return config

    def _translate(self, settings: dict[str, Any]) -> dict[str, Any]:
        """`settings` with other spellings of a key replaced by the one that this class has."""
        return settings

    def validate(self) -> None:
        """Raise ConfigError unless a model can be built from these settings."""
        for name, (low, high) in _WHOLE_RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise self._error("not a possible value", name, f"a whole number from {low} to {high}")
        for name, default in self.fields().items():
            if isinstance(default, bool) and not isinstance(getattr(self, name), bool):
                raise self._error("not a truth value", name, "true or false")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
            if not all(token_id is None or type(token_id) is int for token_id in ids):
                raise self._error(
                    "not a token id", name, "a whole number, or none (eos: also a list of them)"
                )

    def _error(self, what: str, key: str, allowed: str | None = None, hint: str | None = None) -> ConfigError:
        value = getattr(self, key)
        return ConfigError(
            f"{key}: {what}",
            where=f"{self.model_type} config",
            found=quote(value),
            allowed=allowed,
            hint=hint,
            key=key,
            value=value,
        )

    # --- files ---------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """From the content of a `config.json`; keys of it that no setting has go to `unused_keys`."""
        values = dict(values)
        found_type = values.pop("model_type", cls.model_type)
        if found_type != cls.model_type:
            raise ConfigError(
                "this is the config of another model",
                where=cls.__name__,
                found=f"model_type {quote(found_type)}",
                allowed=cls.model_type,
                key="model_type",
                value=found_type,
            )
        if "torch_dtype" in values:
            values.setdefault("dtype", values.pop("torch_dtype"))
        known = {*cls.fields(), "rope_parameters", "rope_scaling", *_ROTARY_ALIASES}
        config = cls(**{name: value for name, value in values.items() if name in known})
        config.unused_keys = {name: value for name, value in values.items() if name not in known}
        return config.updated(**overrides) if overrides else config

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """From `config.json` in a folder or a Hub repository.

        Options: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download` for the Hub;
        every other keyword overrides a setting.
        """
        hub_options, overrides = split_hub_options(options)
        path = resolve(name_or_path, CONFIG_NAME, **hub_options)
        assert path is not None
        return cls.from_dict(read_json_object(path, ConfigError), **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a `config.json` holds them."""
        values: dict[str, Any] = {"model_type": self.model_type}
        for name, default in self.fields().items():
            value = getattr(self, name)
            if value is not None or default is not None:  # a None that is the default need not be said
                values[name] = getattr(value, "__name__", "callable") if callable(value) else value
        return {**values, **self.unused_keys}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.to_dict() == self.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `config.json` into `folder`, which is made if need be.  Raises: SaveError."""
        make_folder(folder)
        write_atomically(Path(folder) / CONFIG_NAME, self.to_json_string())

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict


class GPTNeoXJapaneseConfig(PreTrainedConfig):
    """The settings of GPT-NeoX-Japanese; the defaults are those of `abeja/gpt-neox-japanese-2.7b`."""

    model_type = "gpt_neox_japanese"

    # Shapes.
    vocab_size: int = 32000
    hidden_size: int = 2560
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    intermediate_multiple_size: float = 4  # width of the MLP = int(hidden_size * this)
    max_position_embeddings: int = 2048

    # Functions.
    hidden_act: str | Callable[[Any], Any] = "gelu"  # "gelu" is the exact (erf) form
    layer_norm_eps: float = 1e-5
    rotary_pct: float = 1.0  # the part of each head that is rotated
    rotary_emb_base: float = 10000
    rope_scaling: dict[str, Any] | None = None

    # Special tokens.
    bos_token_id: int | None = 31996
    eos_token_id: int | list[int] | None = 31999
    tie_word_embeddings: bool = True  # the output head is the input embedding

    # Accepted, and without effect on inference.
    initializer_range: float = 0.02  # deviation of random weights
    attention_dropout: float = 0.1
    hidden_dropout: float = 0.0
    is_decoder: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def intermediate_size(self) -> int:
        return int(self.hidden_size * self.intermediate_multiple_size)

    @property
    def rotary_ndims(self) -> int:
        """How many dimensions of each head are rotated."""
        return int(self.head_dim * self.rotary_pct)

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary settings in the later spelling."""
        return {
            "rope_type": "default",
            "rope_theta": self.rotary_emb_base,
            "partial_rotary_factor": self.rotary_pct,
        }

    def _translate(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Read `rope_parameters`; the earlier spelling wins where a file has both."""
        settings = dict(settings)
        scaling, parameters = settings.get("rope_scaling"), settings.pop("rope_parameters", None)
        for name, value in (("rope_scaling", scaling), ("rope_parameters", parameters)):
            if value is not None and not isinstance(value, dict):
                raise ConfigError("must be an object", where=name, found=quote(value), key=name, value=value)
        later = {
            **{k: settings.pop(k) for k in _ROTARY_ALIASES if k in settings},
            **(scaling or parameters or {}),
        }
        for name, earlier in _ROTARY_ALIASES.items():
            if name in later:
                settings.setdefault(earlier, later[name])
        rope_type = later.get("rope_type", later.get("type", "default"))
        if rope_type != "default":
            raise ConfigError(
                "this rotary type is not available for this model",
                where="rope_parameters",
                found=quote(rope_type),
                allowed="default",
                key="rope_type",
                value=rope_type,
            )
        return settings

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
        for name, (low, high) in _FLOAT_RANGES.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:
                raise self._error("not a possible value", name, f"a number from {low:g} to {high:g}")
        if self.rotary_ndims < 2 or self.rotary_ndims % 2:
            raise self._error(
                f"it rotates {self.rotary_ndims} of the {self.head_dim} dimensions of a head",
                "rotary_pct",
                "an even number of at least 2 and at most the head's dimensions",
            )
        if not 1 <= self.intermediate_size <= 1 << 20:
            raise self._error(f"the MLP would be {self.intermediate_size} wide", "intermediate_multiple_size")


def split_hub_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part keyword arguments into those that say where files come from, and the rest."""
    names = ("revision", "cache_dir", "token", "local_files_only", "force_download")
    return {k: v for k, v in options.items() if k in names}, {
        k: v for k, v in options.items() if k not in names
    }
