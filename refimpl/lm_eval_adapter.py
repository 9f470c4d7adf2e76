"""The models of refimpl in EleutherAI's lm-evaluation-harness: importing this module registers them as "refimpl".

`python -m refimpl.lm_eval_adapter run --model refimpl --model_args pretrained=FOLDER --tasks ...` is the command line
of the harness with them; in a program, import this module before `lm_eval.simple_evaluate(model="refimpl", ...)`.

Source: lm-evaluation-harness 0.4.13, docs/model_guide.md and lm_eval/api/model.py
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from huggingface_hub.utils import tqdm

from refimpl.arrays import to_numpy
from refimpl.errors import BackendError, InputError, quote
from refimpl.evaluation.scoring import log_probabilities
from refimpl.inputs import padded
from refimpl.pipelines.base import whole_number
from refimpl.pipelines.text_generation import StopAt

try:
    from lm_eval import utils
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as missing:
    raise BackendError(
        "the evaluation harness, the package lm_eval, is not installed",
        hint='Write: pip install "refimpl[lm-eval]"',
    ) from missing

#: So many texts at once where the harness is told "auto".
AUTO_BATCH_SIZE = 8

DEFAULT_MAX_GEN_TOKS = 256

#: Other names of `max_gen_toks` in tasks; the first that is there counts.
_MAX_GEN_TOKS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

#: A request as the harness hands it on: the texts (None: part of a longer one), context and continuation.
TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("refimpl")
class RefimplLM(TemplateLM):
    """A causal language model of refimpl.

    Args:
        pretrained: a folder, a Hub id, or a model; None: the model that ships inside the package.
        tokenizer: a tokenizer, a folder or a Hub id; None: that of the model.
        revision, dtype, weight_dtype, backend, device, threads: as in `from_pretrained`.
        batch_size: texts that are read together; "auto" is 8. Scores do not depend on it.
        max_length: the context; None: what the model was made for.
        max_gen_toks: the new tokens of a task that does not say how many.
        add_bos_token: let the tokenizer put its special tokens around texts. GPT-NeoX was not trained with any.
        prefix_token_id: stands before what has no context; None: bos_token_id, or else eos_token_id.
        seed: of sampling; None draws a new one for each batch.
        max_batch_size: accepted and without effect.

    Raises: InputError, and what `from_pretrained` raises.
    """

    def __init__(
        self,
        pretrained: Any = None,
        tokenizer: Any = None,
        *,
        revision: str | None = None,
        dtype: Any = None,
        weight_dtype: Any = None,
        backend: Any = "auto",
        device: str | None = None,
        threads: int | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = DEFAULT_MAX_GEN_TOKS,
        add_bos_token: bool = False,
        prefix_token_id: int | None = None,
        seed: int | None = None,
    ):
        super().__init__()
        options = {"dtype": None if dtype == "auto" else dtype, "weight_dtype": weight_dtype}
        options |= {
            "backend": backend,
            "threads": threads,
            "device": "cuda:0" if device == "cuda" else device,
        }
        self._load(pretrained, tokenizer, revision, options)
        self._batch_size = _batch_size(batch_size)
        context = self.model.config.max_position_embeddings
        self._max_length = context if max_length is None else whole_number("max_length", max_length, least=2)
        self._max_gen_toks = whole_number("max_gen_toks", max_gen_toks)
        self._add_bos_token = bool(add_bos_token)
        self._prefix_token_id = prefix_token_id
        self._seed = seed

    def _load(self, pretrained: Any, tokenizer: Any, revision: str | None, options: dict[str, Any]) -> None:
        from refimpl.auto import AutoModelForCausalLM, AutoTokenizer
        from refimpl.embedded_model import embedded_model_path

        pretrained = embedded_model_path() if pretrained is None else pretrained
        hub = {} if revision is None else {"revision": revision}
        if isinstance(pretrained, str | os.PathLike):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(pretrained, **hub)
            pretrained = AutoModelForCausalLM.from_pretrained(pretrained, **options, **hub)
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        if tokenizer is None:
            raise InputError(
                "a model that is given as an object needs its tokenizer beside it", where="tokenizer"
            )
        self.model, self.tokenizer = pretrained, tokenizer

    # --- what the harness asks -----------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text that has no context.  Raises: InputError where the tokenizer has no such token."""
        for token in (self._prefix_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise InputError("there is no token to begin a text with", where="prefix_token_id", allowed="an id")

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        return self._max_gen_toks

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def device(self) -> str:
        return self.model.device

    @property
    def tokenizer_name(self) -> str:
        """Part of the names of the harness' cache files."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        """Raises: InputError: these models have no chat template."""
        raise InputError(
            "these models have no chat template",
            hint="Leave out --apply_chat_template: a prompt is one text.",
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text; one that begins with the prefix token gets no second one."""
        special = self._add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and special:
            prefix = self.tokenizer.decode([self.prefix_token_id])
            special = not (prefix and string.startswith(prefix))
        return list(self.tokenizer(string, add_special_tokens=special, verbose=False)["input_ids"])

    # --- log-likelihoods -----------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """ln p of each continuation after its context, and whether it is what greedy choice gives.

        The last token of a continuation is scored but not read.  What is too long loses its beginning.  Requests that
        read the same tokens (the choices of a question, where each is one token) share one pass.
        Raises: InputError for an empty continuation, or one longer than the context.
        """
        rows: dict[tuple[int, ...], list[int]] = {}
        for place, (_texts, context, continuation) in enumerate(requests):
            self._check_lengths(context, continuation)
            read = (context + continuation)[-(self.max_length + 1) :][:-1]
            rows.setdefault(tuple(read), []).append(place)
        # Long rows first: those of one batch are then of about one length, and memory runs out at once or never.
        order = sorted(rows, key=lambda row: (-len(row), row))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for batch in _batches(order, self.batch_size):
                conts = [[requests[place][2] for place in rows[row]] for row in batch]
                for row, answers in zip(batch, self._scores(batch, conts), strict=True):
                    for place, answer in zip(rows[row], answers, strict=True):
                        found[place] = answer
                        texts = requests[place][0]
                        if texts is not None:
                            self.cache_hook.add_partial("loglikelihood", texts, answer)
                        bar.update(1)
        return found

    def _check_lengths(self, context: list[int], continuation: list[int]) -> None:
        if not context:
            raise InputError("there is nothing before the continuation", found="a context of 0 tokens")
        if not 0 < len(continuation) <= self.max_length:
            raise InputError(
                "this continuation cannot be scored",
                found=f"{len(continuation)} tokens",
                allowed=f"1 to max_length, {self.max_length}",
            )

    def _scores(
        self, rows: Sequence[tuple[int, ...]], continuations: list[list[list[int]]]
    ) -> Iterator[list[tuple[float, bool]]]:
        """For each row the scores of the continuations that end one token after it."""
        ids, mask = padded([list(row) for row in rows], fill=0)
        firsts = [len(row) - max(map(len, conts)) for row, conts in zip(rows, continuations, strict=True)]
        kept = np.arange(min(firsts), ids.shape[1])
        output = self.model(ids, mask, use_cache=False, return_dict=True, logits_to_keep=kept)
        logits = to_numpy(output.logits)
        for index, (row, conts) in enumerate(zip(rows, continuations, strict=True)):
            end = len(row) - kept[0]
            yield [_score(logits[index, end - len(cont) : end], np.array(cont)) for cont in conts]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """ln p of each text: every token once, with as much context as there is; the first after the prefix token."""
        windows: list[TokenRequest] = []
        counts = []
        for request in requests:
            (text,) = request.args
            cut = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pieces = [utils.make_disjoint_window(pair) for pair in cut]
            counts.append(len(pieces))
            windows += [(None, context, continuation) for context, continuation in pieces]
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        found = []
        for request, count in zip(requests, counts, strict=True):
            found.append(sum(next(scores)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    # --- generation ----------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context up to the first of its `until` texts, which is not part of it.

        Raises: InputError for settings that mean nothing, or leave no room for a context.
        """
        asked = [_Generation.of(request.args, self) for request in requests]
        order = sorted(
            range(len(asked)), key=lambda place: (repr(asked[place].settings), -len(asked[place].ids))
        )
        found = [""] * len(asked)
        with tqdm(total=len(asked), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for batch in _batches(order, self.batch_size, lambda place: asked[place].settings):
                for place, text in zip(batch, self._generate([asked[place] for place in batch]), strict=True):
                    found[place] = text
                    self.cache_hook.add_partial("generate_until", requests[place].args, text)
                    bar.update(1)
        return found

    def _generate(self, batch: list[_Generation]) -> Iterator[str]:
        """The texts of contexts with equal settings."""
        settings = batch[0].settings
        ids, mask = padded([asked.ids for asked in batch], side="left")
        width = ids.shape[1]
        until = settings["until"]
        rows = self.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=settings["max_gen_toks"],
            stopping_criteria=[StopAt(self.tokenizer, until, width)] if until else [],
            seed=self._seed,
            **({} if self.eot_token_id is None else {"eos_token_id": self.eot_token_id}),
            **settings["others"],
        )
        for row in rows:
            new = row[width:].tolist()
            if self.eot_token_id in new:
                new = new[: new.index(self.eot_token_id)]
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            for stop in until:
                text = text.split(stop)[0]
            yield text


@dataclass
class _Generation:
    """A context to go on from.

    settings: `until` (texts), `max_gen_toks`, and `others`: arguments of `generate()`.
    """

    ids: list[int]
    settings: dict[str, Any]

    @classmethod
    def of(cls, request: tuple[str, dict[str, Any]], lm: RefimplLM) -> _Generation:
        """Raises: InputError."""
        context, given = request
        if not isinstance(given, dict):
            raise InputError("not settings of generation", found=quote(given), allowed="a dict")
        others = dict(given)
        until = others.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        lengths = [others.pop(name, None) for name in _MAX_GEN_TOKS]
        length = next((length for length in lengths if length is not None), lm.max_gen_toks)
        length = whole_number("max_gen_toks", length)
        if length >= lm.max_length:
            raise InputError(
                "there is no room for a context",
                where="max_gen_toks",
                found=str(length),
                allowed=f"less than max_length, {lm.max_length}",
            )
        if not others.get("do_sample") and not others.get("temperature"):
            others["do_sample"] = False
        if not others.setdefault("do_sample", True):
            # Tasks say temperature 0, and more, beside greedy choice: it has no use for them.
            for name in ("temperature", "top_p", "top_k", "min_p"):
                others.pop(name, None)
        ids = lm.tok_encode(context)[-(lm.max_length - length) :] or [lm.prefix_token_id]
        return cls(ids, {"until": [stop for stop in until if stop], "max_gen_toks": length, "others": others})


def _score(logits: np.ndarray, continuation: np.ndarray) -> tuple[float, bool]:
    """[tokens, vocab], [tokens] -> ln p of all of them, and whether each is the likeliest"""
    total = 0.0
    for rows, log_probs in log_probabilities(logits):
        total += float(log_probs[np.arange(len(log_probs)), continuation[rows]].sum())
    return total, bool((logits.argmax(axis=1) == continuation).all())


def _batches(items: Iterable[Any], size: int, kind: Any = lambda item: None) -> Iterator[list[Any]]:
    """At most `size` neighbours of one kind at a time."""
    batch: list[Any] = []
    for item in items:
        if batch and (len(batch) == size or kind(item) != kind(batch[0])):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _batch_size(given: int | str | None) -> int:
    """Raises: InputError."""
    if given is None or (isinstance(given, str) and given.split(":")[0] == "auto"):
        return AUTO_BATCH_SIZE if given else 1
    number = int(given) if isinstance(given, str) and given.isascii() and given.isdigit() else given
    return whole_number("batch_size", number)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
