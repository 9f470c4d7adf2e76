"""GPT-NeoX for three tasks other than writing: answering from a text, judging a text, judging each token.

Each head is one dense layer on the hidden states of the model.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from refimpl.backends.base import Backend
from refimpl.cache import undone_on_failure
from refimpl.config import GPTNeoXConfig
from refimpl.errors import InputError
from refimpl.gpt_neox import GPTNeoXModel
from refimpl.inputs import host_array
from refimpl.layers import Linear
from refimpl.loss import question_answering_loss, sequence_classification_loss, token_classification_loss
from refimpl.model import PreTrainedModel
from refimpl.outputs import (
    BaseModelOutputWithPast,
    ModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

Array = Any


class _GPTNeoXWithHead(PreTrainedModel):
    config_class = GPTNeoXConfig
    base_model_prefix = "gpt_neox"
    config: GPTNeoXConfig

    def build(self, backend: Backend) -> None:
        self.gpt_neox = GPTNeoXModel.skeleton(self.config, backend)

    def _finish(self, output: ModelOutput, return_dict: bool | None) -> Any:
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


class GPTNeoXForQuestionAnswering(_GPTNeoXWithHead):
    """Where in the text the answer begins and ends."""

    def build(self, backend: Backend) -> None:
        super().build(backend)
        self.qa_outputs = Linear(backend, self.config.hidden_size, 2, bias=True)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        start_positions: Any = None,
        end_positions: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Scores of each token as the first and last of the answer.  [batch, seq] -> 2 x [batch, seq]

        start_positions, end_positions: [batch] or [batch, 1]; both together give `loss`, the average of the
            cross entropies of the two ends. Positions beyond the text are left out.
        inputs: the other arguments of `GPTNeoXModel`.

        Returns: QuestionAnsweringModelOutput, or its tuple when `return_dict` is false.
        Raises: InputError, as the model without a head.
        """
        inputs.setdefault("use_cache", False)  # the answer is read off one pass
        with undone_on_failure(inputs.get("past_key_values")):
            outputs: BaseModelOutputWithPast = self.gpt_neox(
                input_ids, attention_mask, return_dict=True, **inputs
            )
            logits = self.qa_outputs(outputs.last_hidden_state)  # [batch, seq, 2]
            start_logits, end_logits = logits[..., 0], logits[..., 1]
            loss = None
            if start_positions is not None and end_positions is not None:
                loss = question_answering_loss(
                    self.backend, start_logits, end_logits, start_positions, end_positions
                )
        output = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return self._finish(output, return_dict)


class GPTNeoXForTokenClassification(_GPTNeoXWithHead):
    """A class for each token."""

    def build(self, backend: Backend) -> None:
        super().build(backend)
        self.classifier = Linear(backend, self.config.hidden_size, self.config.num_labels, bias=True)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Scores of the classes of each token.  [batch, seq] -> `logits` [batch, seq, num_labels]

        labels: [batch, seq]; gives `loss`, the mean of -log p(label); -100 is left out.
        inputs: the other arguments of `GPTNeoXModel`.

        Returns: TokenClassifierOutput, or its tuple when `return_dict` is false.
        Raises: InputError, as the model without a head.
        """
        inputs.setdefault("use_cache", False)  # the classes are read off one pass
        with undone_on_failure(inputs.get("past_key_values")):
            outputs: BaseModelOutputWithPast = self.gpt_neox(
                input_ids, attention_mask, return_dict=True, **inputs
            )
            logits = self.classifier(outputs.last_hidden_state)
            loss = None if labels is None else token_classification_loss(self.backend, logits, labels)
        output = TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        return self._finish(output, return_dict)


class GPTNeoXForSequenceClassification(_GPTNeoXWithHead):
    """A class (or some numbers) for each text, read off its last token."""

    def build(self, backend: Backend) -> None:
        super().build(backend)
        self.score = Linear(backend, self.config.hidden_size, self.config.num_labels, bias=False)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        labels: Any = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Scores of the classes of each text.  [batch, seq] -> `logits` [batch, num_labels]

        They are those of the last token that is not `config.pad_token_id`, whatever the mask says. Without
        a `pad_token_id` a batch must be a single text, and its last token counts; so it does for
        `inputs_embeds`, which show no padding.
        labels: [batch], or [batch, num_labels] of floats; gives `loss` (see `sequence_classification_loss`
            for what `config.problem_type` means).
        inputs: the other arguments of `GPTNeoXModel`.

        Returns: SequenceClassifierOutputWithPast, or its tuple when `return_dict` is false.
        Raises: InputError, as the model without a head, and for several texts without a `pad_token_id`.
        """
        with undone_on_failure(inputs.get("past_key_values")):
            outputs: BaseModelOutputWithPast = self.gpt_neox(
                input_ids, attention_mask, return_dict=True, **inputs
            )
            hidden_states = outputs.last_hidden_state
            last = self._last_tokens(input_ids, *hidden_states.shape[:2])
            logits = self.score(hidden_states[list(range(len(last))), last.tolist()])
            loss = None
            if labels is not None:
                loss = sequence_classification_loss(self.backend, logits, labels, self.config.problem_type)
        output = SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return self._finish(output, return_dict)

    def _last_tokens(self, input_ids: Any, batch: int, seq: int) -> np.ndarray:
        """The place of the last real token of each row (0 where a row is all padding).  -> [batch]"""
        pad_token_id = self.config.pad_token_id
        if pad_token_id is None and batch > 1:
            raise InputError(
                "without a pad_token_id nobody can tell where each of several texts ends",
                where="config.pad_token_id",
                found="none",
                allowed="the id that fills short rows, or a batch of one",
                hint="Set model.config.pad_token_id = tokenizer.pad_token_id.",
            )
        if pad_token_id is None or input_ids is None:
            if pad_token_id is not None:
                warnings.warn(
                    "inputs_embeds show no padding: the last place of each row is taken for its last token",
                    stacklevel=3,
                )
            return np.full(batch, seq - 1)
        real = host_array(input_ids, "input_ids", "iu") != pad_token_id
        return np.where(real.any(axis=1), seq - 1 - real[:, ::-1].argmax(axis=1), 0)
