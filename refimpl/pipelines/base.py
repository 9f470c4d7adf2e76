"""What every pipeline has in common: lists, iterators, batches, and options given once for all calls.

A task is a class: it says which kind of model it needs (`auto_class`), takes its own options out of a call
(`accept`), and turns the texts of a batch into as many results (`run`).  The tasks are
listed in `refimpl/pipelines/__init__.py`.

Source: https://huggingface.co/docs/transformers/v5.5.3/en/main_classes/pipelines
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from refimpl.errors import InputError, quote


class Pipeline:
    """Base of the tasks: a model, its tokenizer, and the options that every call starts from.

    Args:
        model: a model with the head that the task needs.
        tokenizer: turns text into ids and back.
        batch_size: how many texts of a list go through the model together.
        options: of each call, unless the call says otherwise.

    Raises: InputError for a model that cannot do this, and for options that mean nothing.
    """

    #: The class of `refimpl.auto` that finds the model.
    auto_class: ClassVar[Any]

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 1, **options: Any):
        self.check_model(model)
        self.model, self.tokenizer = model, tokenizer
        self.batch_size = whole_number("batch_size", batch_size)
        self.options = options
        self.accept(options)

    @property
    def device(self) -> str:
        return self.model.device

    @property
    def dtype(self) -> np.dtype:
        """The compute dtype of the model."""
        return self.model.dtype

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.model!r}>"

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """The result of a text; a list of results for a list of texts; an iterator for an iterator.

        An iterator is read one batch at a time, when its results are asked for.
        Raises: InputError for anything but text, and for options that mean nothing.
        """
        size = self.batch_size if batch_size is None else whole_number("batch_size", batch_size)
        accepted = self.accept(self.combined(options))
        if isinstance(inputs, list | tuple):
            for index, text in enumerate(inputs):
                _check_text(text, f"inputs[{index}]")
            return list(self._results(inputs, size, accepted))
        if isinstance(inputs, Iterator):
            return self._results(inputs, size, accepted)
        _check_text(inputs, "inputs")
        return self.run([inputs], accepted, first=0)[0]

    def _results(self, texts: Iterable[Any], size: int, accepted: Any) -> Iterator[Any]:
        rest, done = iter(texts), 0
        while batch := list(islice(rest, size)):
            for index, text in enumerate(batch, start=done):
                _check_text(text, f"inputs[{index}]")
            yield from self.run(batch, accepted, first=done)
            done += len(batch)

    def combined(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a call on top of those of the pipeline."""
        return {**self.options, **options}

    # --- to be said by each task ---------------------------------------------------------------

    def check_model(self, model: Any) -> None:
        """Raise InputError for a model that cannot do this."""
        raise TypeError(f"{type(self).__name__} is a base class; use one of the tasks")

    def accept(self, options: dict[str, Any]) -> Any:
        """The checked options, in the form that `run` takes; an option that is None is not there.

        Raises: InputError.
        """
        raise TypeError(f"{type(self).__name__} is a base class; use one of the tasks")

    def run(self, texts: list[str], accepted: Any, first: int) -> list[Any]:
        """One result for each text of a batch; `first` is the place of its first text in the whole list."""
        raise TypeError(f"{type(self).__name__} is a base class; use one of the tasks")


def _check_text(value: Any, where: str) -> None:
    if isinstance(value, str):
        return
    chat = isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict))
    raise InputError(
        "not a text",
        where=where,
        found=quote(value),
        allowed="a text, or a list of texts",
        hint="These models have no chat template: write the conversation as one text." if chat else None,
    )


def whole_number(name: str, value: Any) -> int:
    """A number of at least 1 as a Python int.  Raises: InputError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(
            "not a possible value", where=name, found=quote(value), allowed="a whole number of at least 1"
        )
    return int(value)
