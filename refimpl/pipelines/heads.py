"""What the tasks that read a model's answer off one pass have in common: options, rows of ids, and padding."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from refimpl.arrays import to_numpy
from refimpl.errors import InputError, quote
from refimpl.inputs import padded
from refimpl.pipelines.base import Pipeline

Options = TypeVar("Options")


class HeadPipeline(Pipeline):
    """Base of the tasks that need a model with one head and take the options of one dataclass."""

    #: The dataclass of the options, which checks them.
    options_class: ClassVar[Any]

    #: The classes of models that can do this.
    model_classes: ClassVar[tuple[type, ...]]

    def check_model(self, model: Any) -> None:
        if not isinstance(model, self.model_classes):
            raise InputError(
                f"this model has not the head for {self.task}",
                where="model",
                found=type(model).__name__,
                allowed=" or ".join(known.__name__ for known in self.model_classes),
            )

    def accept(self, options: dict[str, Any]) -> Any:
        return options_of(self.options_class, options)

    def outputs(self, rows: list[list[int]], size: int, *names: str) -> Iterator[tuple[np.ndarray, ...]]:
        """The outputs of these names for each row, at most `size` rows at once.

        Yields: for each row its outputs `[seq, ...]`, without those of padding.  Padding is on the right and masked:
            in a model that looks back only, it changes nothing of what stands before it.
        """
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            ids, mask = padded(part, fill=0)
            output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True)
            arrays = [to_numpy(output[name]) for name in names]
            for index, row in enumerate(part):
                yield tuple(array[index, : len(row)] for array in arrays)


# --- options -------------------------------------------------------------------------------------


def options_of(kind: type[Options], options: dict[str, Any]) -> Options:
    """The dataclass `kind` of these options; None means "not said", unless the class says that it is a value.

    Raises: InputError for an unknown option, which names the nearest known one.
    """
    known = {setting.name: setting for setting in fields(kind)}  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                "there is no such option",
                where="options",
                found=quote(name),
                allowed=", ".join(sorted(["batch_size", *known])),
                hint=f"Did you mean {near[0]}?" if near else None,
            )
    said = {
        name: value
        for name, value in options.items()
        if value is not None or known[name].metadata.get("none_is_a_value")
    }
    return kind(**said)


def check_truth(name: str, value: Any) -> None:
    """Raise InputError for what is neither True nor False."""
    if not isinstance(value, bool | np.bool_):
        raise InputError("not a truth value", where=name, found=quote(value), allowed="True or False")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of the choices, in lower case.  Raises: InputError."""
    chosen = value.lower() if isinstance(value, str) else value
    if not isinstance(chosen, str) or chosen not in choices:
        near = difflib.get_close_matches(chosen, choices, n=1) if isinstance(chosen, str) else []
        raise InputError(
            "no such choice",
            where=name,
            found=quote(value),
            allowed=", ".join(choices),
            hint=f"Did you mean {near[0]}?" if near else None,
        )
    return chosen


def check_row(ids: list[int], place: int) -> list[int]:
    """The ids of a text, which must not be empty.  Raises: InputError."""
    if not ids:
        raise InputError(
            "the text has no tokens", where=f"inputs[{place}]", allowed="a text of at least one token"
        )
    return ids


def without_padding(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the tokenizer without `padding`, which is done here and is never part of a result.

    Raises: InputError for padding to a length, and for arguments that change what the tokenizer returns.
    """
    given = dict(options)
    padding = given.pop("padding", None)
    if padding not in (None, True, False, "longest", "do_not_pad"):
        raise InputError("padding is never part of a result", where=name, found=f"padding={quote(padding)}")
    for argument in given:
        if argument.startswith("return_"):
            raise InputError("the pipeline says what the tokenizer returns", where=name, found=argument)
    return given
