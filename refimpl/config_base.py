"""What the settings of every model have in common: names, defaults, and the `config.json` they come from."""

from __future__ import annotations

import copy
import difflib
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

import numpy as np

from refimpl.backends import dtype_name
from refimpl.errors import ConfigError, quote
from refimpl.files import make_folder, write_atomically
from refimpl.hub import resolve
from refimpl.json_reader import read_json_object

CONFIG_NAME = "config.json"

#: Lists and objects in one another in a config.
_DEEPEST = 64

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


@dataclass_transform(kw_only_default=True)
class PreTrainedConfig:
    """Base of the configs: the annotated attributes of a class are its settings and their defaults.

    Settings are given by keyword and may be changed afterwards (`config.is_decoder = True`).

    Raises: ConfigError for an unknown setting (the nearest known one is named) or an impossible value.
    """

    model_type: ClassVar[str] = ""
    #: Inclusive limits of whole numbers and of others: beyond them a file is wrong, or made to exhaust memory.
    whole_ranges: ClassVar[dict[str, tuple[int, int]]] = {}
    float_ranges: ClassVar[dict[str, tuple[float, float]]] = {}
    #: Those of them that a file may leave open with null.
    may_be_none: ClassVar[tuple[str, ...]] = ()
    #: Other names that `_translate` understands.
    other_spellings: ClassVar[tuple[str, ...]] = ("num_labels", "torch_dtype")

    #: Keys of the file that mean nothing to this model, kept so that nothing is lost; readable as attributes.
    unused_keys: dict[str, Any]

    # What a forward call does when its argument of the same name is None.
    use_cache: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True

    vocab_size: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True
    architectures: list[str] | None = None
    #: The dtype of the weights in the file, such as "float16".
    dtype: str | None = None

    #: Names of the classes of a classifier: {0: "LABEL_0", 1: "LABEL_1"}; as many as it has outputs.
    id2label: dict[int, str] = {0: "LABEL_0", 1: "LABEL_1"}  # noqa: RUF012  (every config gets its own)
    #: Which loss a sequence classifier has; None: by the number of labels and their dtype.
    problem_type: str | None = None

    def __init__(self, **settings: Any):
        self.unused_keys = {}
        fields = self.fields()
        settings = self._translate(settings)
        for name, default in fields.items():
            setattr(self, name, copy.deepcopy(settings.pop(name, default)))
        self._refuse_unknown(settings)
        self.validate()

    @classmethod
    def fields(cls) -> dict[str, Any]:
        """Every setting and its default value."""
        annotated = {
            name: kind
            for base in reversed(cls.__mro__)
            for name, kind in vars(base).get("__annotations__", {}).items()
        }
        return {
            name: getattr(cls, name)
            for name, kind in annotated.items()
            if name != "unused_keys" and not str(kind).startswith("ClassVar")
        }

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self._normal_form(name, value))

    def _normal_form(self, name: str, value: Any) -> Any:
        """The value of a setting in the one form that the rest of the house knows."""
        return _numbered_labels(value) if name == "id2label" else value

    def _refuse_unknown(self, settings: dict[str, Any]) -> None:
        for unknown in sorted(settings):
            near = difflib.get_close_matches(unknown, [*self.fields(), *self.other_spellings], n=1)
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
        config = copy.deepcopy(self)
        config.update(overrides)
        return config

    def update(self, settings: dict[str, Any]) -> None:
        """Replace some settings; if one is unknown or impossible nothing has changed.  Raises: ConfigError."""
        changed = copy.copy(self)
        translated = changed._translate(settings)
        changed._refuse_unknown({name: v for name, v in translated.items() if name not in self.fields()})
        for name, value in translated.items():
            setattr(changed, name, copy.deepcopy(value))
        changed.validate()
        self.__dict__.update(changed.__dict__)

    def _translate(self, settings: dict[str, Any]) -> dict[str, Any]:
        """A copy of `settings` in which other spellings are replaced by the settings of this class."""
        settings = dict(settings)
        if "torch_dtype" in settings:
            settings.setdefault("dtype", settings.pop("torch_dtype"))
        if isinstance(settings.get("dtype"), type | np.dtype):
            settings["dtype"] = dtype_name(settings["dtype"])
        settings.pop("label2id", None)  # says what id2label says
        if settings.get("id2label") is None:
            settings.pop("id2label", None)
        count = settings.pop("num_labels", None)
        if count is None:
            return settings
        if type(count) is not int or not 1 <= count <= 1 << 20:
            raise ConfigError(
                "not a number of labels",
                where="num_labels",
                found=quote(count),
                allowed="a whole number from 1 to 1048576",
                key="num_labels",
                value=count,
            )
        if count != len(_numbered_labels(settings.get("id2label", self.id2label))):
            settings["id2label"] = {index: f"LABEL_{index}" for index in range(count)}
        return settings

    def validate(self) -> None:
        """Raise ConfigError unless a model can be built from these settings."""
        for name, (least, most) in self.float_ranges.items():
            value = getattr(self, name)
            if value is None and name in self.may_be_none:
                continue
            if type(value) not in (int, float) or not least <= value <= most:
                raise self._error("not a possible value", name, f"a number from {least:g} to {most:g}")
        for name, (low, high) in self.whole_ranges.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise self._error("not a possible value", name, f"a whole number from {low} to {high}")
        for name, default in self.fields().items():
            if isinstance(default, bool) and not isinstance(getattr(self, name), bool):
                raise self._error("not a truth value", name, "true or false")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            self._check_token_id(name)
        _numbered_labels(self.id2label)
        names = self.architectures
        if names is not None and not (
            isinstance(names, list) and all(isinstance(name, str) for name in names)
        ):
            raise self._error("not names of models", "architectures", "a list of names, or none")
        if self.dtype is not None and not isinstance(self.dtype, str):
            raise self._error("not a dtype", "dtype", 'a name such as "float16", or none')
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise self._error("unknown", "problem_type", ", ".join(PROBLEM_TYPES) + ", or none")

    def _check_token_id(self, name: str) -> None:
        value, default = getattr(self, name), getattr(type(self), name)
        if type(value) is type(default) and value == default:
            return  # the default of the class, which a smaller vocabulary need not hold
        if value is None:
            return
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if not all(type(token_id) is int for token_id in ids):
            raise self._error("not a token id", name, "a whole number, or none (eos: also a list of them)")
        if not all(0 <= token_id < self.vocab_size for token_id in ids):
            raise self._error(
                f"outside the vocabulary of {self.vocab_size}", name, f"0 to {self.vocab_size - 1}, or none"
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

    if not TYPE_CHECKING:  # type checkers would believe in every misspelt setting

        def __getattr__(self, name: str) -> Any:
            unused = self.__dict__.get("unused_keys", {})
            if name in unused:
                return unused[name]
            raise AttributeError(f"{type(self).__name__} has no setting {name!r}")

    # --- other views of the settings -----------------------------------------------------------

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict

    @property
    def num_labels(self) -> int:
        """How many outputs a classifier has."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        self.update({"num_labels": count})

    @property
    def label2id(self) -> dict[str, int]:
        return {label: index for index, label in self.id2label.items()}

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
        if "auto_map" in values:
            warnings.warn(
                "auto_map in the config names code of its own: no code of a file is ever run here",
                stacklevel=2,
            )
        for name, value in values.items():
            _refuse_depth(name, value)
        known = {*cls.fields(), *cls.other_spellings, "label2id"}
        config = cls(**{name: value for name, value in values.items() if name in known})
        config.unused_keys = {
            name: copy.deepcopy(value) for name, value in values.items() if name not in known
        }
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
            if value != default or not (default is None or name == "id2label"):  # these need not be said
                values[name] = (
                    getattr(value, "__name__", "callable") if callable(value) else copy.deepcopy(value)
                )
        if "id2label" in values:
            values["label2id"] = self.label2id
        return {**values, **copy.deepcopy(self.unused_keys)}

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


def _refuse_depth(key: str, value: Any) -> None:
    """Raise ConfigError for lists in lists beyond what copying and writing them can follow."""
    layer, depth = [value], 0
    while layer:
        layer = [
            part
            for item in layer
            if isinstance(item, list | dict)
            for part in (item.values() if isinstance(item, dict) else item)
        ]
        depth += 1
        if depth > _DEEPEST:
            raise ConfigError(
                "nested too deeply", where=quote(key), allowed=f"{_DEEPEST} levels", key=key, value=value
            )


def _numbered_labels(labels: Any) -> dict[int, str]:
    """{"0": "NEGATIVE", ...} of a file (or a list) as {0: "NEGATIVE", ...}, in order.  Raises: ConfigError."""
    pairs = (
        enumerate(labels) if isinstance(labels, list) else labels.items() if isinstance(labels, dict) else ()
    )
    try:
        numbered = {int(index): label for index, label in pairs}
    except (TypeError, ValueError):
        numbered = {}
    if (
        sorted(numbered) != list(range(len(numbered)))
        or not numbered
        or not all(isinstance(label, str) for label in numbered.values())
    ):
        raise ConfigError(
            "not names of labels",
            where="id2label",
            found=quote(labels),
            allowed="numbers from 0 without a gap, each with a name",
            key="id2label",
            value=labels,
        )
    return dict(sorted(numbered.items()))


def split_hub_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part keyword arguments into those that say where files come from, and the rest."""
    names = ("revision", "cache_dir", "token", "local_files_only", "force_download")
    return {k: v for k, v in options.items() if k in names}, {
        k: v for k, v in options.items() if k not in names
    }
