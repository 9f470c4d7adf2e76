"""The task `text-classification`: texts in, the labels that the model gives them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refimpl.arrays import to_numpy
from refimpl.auto import AutoModelForSequenceClassification
from refimpl.errors import InputError, quote
from refimpl.generation.logits import probabilities
from refimpl.gpt_neox_heads import GPTNeoXForSequenceClassification
from refimpl.inputs import padded
from refimpl.pipelines.base import check_text, whole_number
from refimpl.pipelines.heads import HeadPipeline, check_choice, check_row

FUNCTIONS = ("default", "sigmoid", "softmax", "none")

#: Nobody said how many labels: the best one, not in a list.
_THE_BEST: Any = object()


@dataclass
class TextClassificationOptions:
    """The options of the task.  Raises: InputError."""

    #: So many labels, the best first; None: all of them.
    top_k: int | None = field(default=_THE_BEST, metadata={"none_is_a_value": True})
    #: What turns the numbers of the model into scores; see `TextClassificationPipeline`.
    function_to_apply: str = "default"
    #: These are arguments of the tokenizer's call.
    truncation: bool | str | None = None
    max_length: int | None = None
    add_special_tokens: bool | None = None
    #: Accepted and without effect: scores do not depend on padding.
    padding: bool | str | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k is not _THE_BEST:
            whole_number("top_k", self.top_k)
        self.function_to_apply = check_choice("function_to_apply", self.function_to_apply, FUNCTIONS)
        if self.padding not in (None, True, False, "longest", "max_length", "do_not_pad"):
            raise InputError("not a kind of padding", where="padding", found=quote(self.padding))

    @property
    def encode(self) -> dict[str, Any]:
        """What the tokenizer is called with."""
        names = ("truncation", "max_length", "add_special_tokens")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class TextClassificationPipeline(HeadPipeline):
    """Judges texts: `[{"label": "...", "score": 0.9}]` for a text, a list of such dicts for a list of texts.

    With `top_k` in the call each text has a list of its best labels instead, with `top_k=None` all of them.
    A text may be a dict with "text" and "text_pair".

    `function_to_apply`: "sigmoid" (each label for itself), "softmax" (the scores sum up to 1), "none" (the numbers of
    the model).  By default it follows from `config.problem_type`: regression has none, several labels that may all
    hold a sigmoid, single labels a softmax; where the config does not say it, one label has a sigmoid and
    several have a softmax.
    """

    task = "text-classification"
    auto_class = AutoModelForSequenceClassification
    options_class = TextClassificationOptions
    model_classes = (GPTNeoXForSequenceClassification,)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """See the class.  Raises: InputError for anything but text, and for options that mean nothing."""
        result = super().__call__(inputs, batch_size=batch_size, **options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def check_item(self, item: Any, where: str, accepted: TextClassificationOptions) -> None:
        if not isinstance(item, dict):
            if isinstance(item, list | tuple):
                raise InputError(
                    "not a text",
                    where=where,
                    found=quote(item),
                    hint='A pair of texts is a dict: {"text": "...", "text_pair": "..."}.',
                )
            check_text(item, where)
            return
        if "text" not in item or not item.keys() <= {"text", "text_pair"}:
            allowed = '"text", and "text_pair" if there is one'
            raise InputError("not a pair of texts", where=where, found=quote(item), allowed=allowed)
        for name, text in item.items():
            if name == "text" or text is not None:
                check_text(text, f"{where}[{name!r}]")

    def run(self, items: list[Any], accepted: TextClassificationOptions, first: int) -> list[Any]:
        rows = []
        for place, item in enumerate(items, start=first):
            texts = item if isinstance(item, dict) else {"text": item}
            rows.append(check_row(self.tokenizer(**texts, **accepted.encode)["input_ids"], place))
        # The head finds the end of a text by this id, whatever the tokenizer pads with.
        pad_token_id = self.model.config.pad_token_id
        ids, mask = padded(rows, fill=0 if pad_token_id is None else pad_token_id)
        output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True)
        return [self._result(logits, accepted) for logits in to_numpy(output.logits)]

    def _result(self, logits: np.ndarray, accepted: TextClassificationOptions) -> Any:
        """[num_labels] -> the best label, or a list of labels."""
        scores = self._scores(logits, accepted.function_to_apply)
        labels = self.model.config.id2label
        best = np.argsort(-scores, kind="stable")
        found = [{"label": labels[int(index)], "score": float(scores[index])} for index in best]
        return found[0] if accepted.top_k is _THE_BEST else found[: accepted.top_k]

    def _scores(self, logits: np.ndarray, function: str) -> np.ndarray:
        if function == "default":
            problem_type = self.model.config.problem_type
            if problem_type == "regression":
                function = "none"
            elif problem_type == "multi_label_classification" or len(logits) == 1:
                function = "sigmoid"
            else:
                function = "softmax"
        if function == "sigmoid":
            # 1 / (1 + exp(-x)) without overflow.
            half = np.exp(-np.abs(logits))
            return np.where(logits >= 0, 1 / (1 + half), half / (1 + half))
        return probabilities(logits) if function == "softmax" else logits
