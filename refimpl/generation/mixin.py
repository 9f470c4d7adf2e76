"""`generate()`: from a prompt to new tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from refimpl.backends.base import Backend
from refimpl.cache import DynamicCache
from refimpl.config_base import PreTrainedConfig
from refimpl.errors import InputError
from refimpl.generation.beams import BeamResult, BeamSearch
from refimpl.generation.chain import AllowedTokens
from refimpl.generation.config import GenerationConfig, settings_of_model
from refimpl.generation.logits import log_probabilities
from refimpl.generation.outputs import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from refimpl.generation.processors import LogitsProcessor
from refimpl.generation.request import OBJECTS, Request, make_request
from refimpl.generation.steps import Step, steps
from refimpl.generation.stopping import StoppingCriterion
from refimpl.generation.streaming import GeneratedToken, TokenStream, as_prompts


class GenerationMixin:
    """Gives a language model `generate()`."""

    config: PreTrainedConfig
    backend: Backend
    _generation_config: GenerationConfig | None = None

    @property
    def generation_config(self) -> GenerationConfig:
        """The settings that `generate()` starts from: `generation_config.json`, else the model's config."""
        if self._generation_config is None:
            self._generation_config = GenerationConfig.from_model_config(self.config)
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self._generation_config = value

    def load_generation_config(self, name_or_path: str | os.PathLike[str], **hub_options: Any) -> None:
        """Take the settings from the model's files, where they have any."""
        self._generation_config = settings_of_model(name_or_path, **hub_options)

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        generation_config: GenerationConfig | None = None,
        streamer: Any = None,
        logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None,
        stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None,
        seed: int | None = None,
        tokenizer: Any = None,
        negative_prompt_ids: Any = None,
        negative_prompt_attention_mask: Any = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Any = None,
        **overrides: Any,
    ) -> Any:
        """The prompts with their continuations.  [batch, seq] -> [batch, seq + new], int64 on the host

        input_ids: prompts of equal length; shorter ones padded on the left, with 0 in `attention_mask`.
            None: start from `bos_token_id`.
        generation_config: settings; what they leave open, `self.generation_config` says. `overrides`
            (max_new_tokens=..., do_sample=..., num_beams=..., temperature=..., eos_token_id=..., ...)
            win over both. docs/generation.md has them all.
        streamer: an object with `put(ids)`, called with the prompt and then with each token, and `end()`.
        logits_processor: functions that change the scores before a token is chosen; they come after those of
            the settings and before the filters of sampling, and get float64.
        stopping_criteria: functions of the ids and the changed scores; a row ends where one says true.
        seed: of sampling; None draws a new one. With equal seeds a row gets equal text, whatever its
            neighbours are.
        tokenizer: what `stop_strings` are looked for with.
        negative_prompt_ids, negative_prompt_attention_mask: what `guidance_scale` leads away from, `[batch, any]`.
        prefix_allowed_tokens_fn: (number of the prompt, ids of the text so far `[seq]`) -> ids that may come next.
        past_key_values: a cache that holds the beginning of the prompts, or a `PromptCache`, which finds out itself.
            Afterwards it holds everything but the last token.
        inputs_embeds: [batch, seq, hidden], instead of looking up the prompt; without `input_ids` the new tokens
            alone are returned.

        A row ends with `eos_token_id`; rows that ended are filled up with `pad_token_id` (by default the
        first eos id). `num_return_sequences` gives so many rows for each prompt, one after the other.
        Returns: ids, or with `return_dict_in_generate=True` a `GenerateDecoderOnlyOutput` (of a beam search a
            `GenerateBeamDecoderOnlyOutput`).
        Raises: InputError for prompts, masks or options that mean nothing or contradict each other;
            NumericalError for NaN logits, and where every token is ruled out. An error or Ctrl-C in the middle has
            what was generated until then as its attribute `sequences`.
        """
        request = make_request(
            self,
            input_ids,
            attention_mask,
            generation_config,
            overrides,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            seed=seed,
            tokenizer=tokenizer,
            negative_prompt_ids=negative_prompt_ids,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
        )
        if (request.config.num_beams or 1) > 1:
            if streamer is not None:
                raise InputError("beam search knows its text at the end only", where="streamer")
            return self._searched(request)
        return self._written(request, streamer)

    def _written(self, request: Request, streamer: Any) -> Any:
        """Greedy decoding or sampling."""
        ids, needed = request.ids, request.config.needed_outputs
        scores: list[np.ndarray] = []
        logits: list[np.ndarray] = []
        if streamer is not None:
            streamer.put(ids.copy())
        try:
            for step in _steps_of(request, not {"output_scores", "output_logits"}.isdisjoint(needed)):
                ids = step.ids
                if "output_scores" in needed:
                    scores.append(step.scores.astype(np.float32))
                if "output_logits" in needed:
                    assert step.logits is not None
                    logits.append(step.logits)
                if streamer is not None:
                    streamer.put(ids[:, -1].copy())
        except BaseException as error:
            error.sequences = ids[:, request.hidden_prompt :]  # type: ignore[attr-defined]
            raise
        finally:
            # Also when interrupted: what was generated has then been handed over completely.
            if streamer is not None:
                streamer.end()
        sequences = ids[:, request.hidden_prompt :]
        if not request.config.return_dict_in_generate:
            return sequences
        return GenerateDecoderOnlyOutput(
            sequences=sequences,
            scores=tuple(scores) if "output_scores" in needed else None,
            logits=tuple(logits) if "output_logits" in needed else None,
            **_recorded(request),
        )

    def _searched(self, request: Request) -> Any:
        """Beam search."""
        config, needed = request.config, request.config.needed_outputs
        search = BeamSearch(
            request.next_logits,
            request.ids,
            request.lengths,
            config,
            request.processing,
            request.criteria,
            request.limit,
            request.fill,
            request.seed,
        )
        try:
            found: BeamResult = search.run()
        except BaseException as error:
            error.sequences = search.result().sequences[:, request.hidden_prompt :]  # type: ignore[attr-defined]
            raise
        sequences = found.sequences[:, request.hidden_prompt :]
        if not config.return_dict_in_generate:
            return sequences
        return GenerateBeamDecoderOnlyOutput(
            sequences=sequences,
            sequences_scores=found.scores if "output_scores" in needed else None,
            scores=tuple(found.step_scores) if "output_scores" in needed else None,
            logits=tuple(found.step_logits) if "output_logits" in needed else None,
            beam_indices=found.rows,
            **_recorded(request),
        )

    def stream_generate(
        self, input_ids: Any = None, tokenizer: Any = None, attention_mask: Any = None, **arguments: Any
    ) -> Iterator[GeneratedToken]:
        """Each new token when it is there, with its text, log-probability and speed; see `GeneratedToken`.

        input_ids: a text or a list of texts (of any lengths), or what `generate()` takes.
        tokenizer: of the model.
        The other arguments are those of `generate()`, without beams and streamer.  The rows of a batch come in
        turns, each for itself until it ends; `text` is never half a character, and all of a row together are the
        text that `tokenizer.decode` gives, special tokens left out.

        Raises: InputError as `generate()`, before the first token.
        """
        if tokenizer is None:
            raise InputError("needs the tokenizer of the model", where="tokenizer")
        for name in ("streamer", "return_dict_in_generate"):
            if arguments.pop(name, None):
                raise InputError("has no meaning for a stream", where=name)
        prompts = as_prompts(tokenizer, input_ids)
        if prompts is not None:
            input_ids, attention_mask = prompts
        objects = {name: arguments.pop(name) for name in OBJECTS if name in arguments}
        request = make_request(
            self,
            input_ids,
            attention_mask,
            arguments.pop("generation_config", None),
            arguments,
            tokenizer=tokenizer,
            **objects,
        )
        if (request.config.num_beams or 1) > 1:
            raise InputError("beam search knows its text at the end only", where="num_beams")
        stream = TokenStream(tokenizer, len(request.ids), request.limit)
        return (token for step in _steps_of(request, True) for token in stream.of(step))

    def compute_transition_scores(
        self,
        sequences: Any,
        scores: Sequence[np.ndarray],
        beam_indices: Any = None,
        normalize_logits: bool = False,
    ) -> np.ndarray:
        """The score with which each new token was chosen.  -> [rows, new tokens]

        sequences, scores, beam_indices: of what `generate(..., return_dict_in_generate=True, output_scores=True)`
            returned.
        normalize_logits: log-probabilities instead of the scores as they are.

        After the end of a text there is 0.
        """
        if normalize_logits:
            scores = [log_probabilities(step) for step in scores]
        sequences = np.asarray(sequences)
        if beam_indices is None:
            beam_indices = np.arange(len(sequences))[:, None].repeat(len(scores), axis=1)
        rows = np.asarray(beam_indices)
        new = rows.shape[1]
        tokens = sequences[:, sequences.shape[1] - new :]
        stacked = np.stack(list(scores)[:new])  # [new, running rows, vocab]
        chosen = stacked[np.arange(new)[None], np.maximum(rows, 0), tokens]
        return np.where(rows < 0, 0.0, chosen)


def _steps_of(request: Request, needs_scores: bool) -> Iterator[Step]:
    return steps(
        request.next_logits,
        request.ids,
        request.lengths,
        request.config,
        request.processing,
        request.criteria,
        request.limit,
        request.fill,
        request.seed,
        needs_scores,
    )


def _recorded(request: Request) -> dict[str, Any]:
    """The fields of an output that both ways of generating have."""
    needed, source = request.config.needed_outputs, request.next_logits
    return {
        "attentions": tuple(source.attentions) if "output_attentions" in needed else None,
        "hidden_states": tuple(source.hidden_states) if "output_hidden_states" in needed else None,
        "past_key_values": source.cache,
    }
