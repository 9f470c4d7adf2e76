"""Which token may look at which: the attention mask of a text, on the terminal and as a picture.

What is drawn comes from `refimpl.attention.build_mask`, as in every forward call; no weights are read.
"""

from __future__ import annotations

import operator
import os
import sys
from typing import Any

import numpy as np

from refimpl.attention import build_mask
from refimpl.attention_visualizer.view import AttentionMaskView, check_picture_name, printable, token_texts
from refimpl.auto import AutoConfig, AutoTokenizer
from refimpl.backends import get_backend
from refimpl.errors import InputError, ResourceLimitError, quote
from refimpl.model import PreTrainedModel
from refimpl.tokenizer.base import PreTrainedTokenizer

#: More pairs of a query and a key than this (10,000 tokens with each other) are not held.
MOST_PAIRS = 100_000_000

#: Scores are rarely as far from 0; a number whose neighbours are farther apart swallows them.
_ORDINARY_SCORE = 100


class AttentionMaskVisualizer:
    """Shows for a text, or for several with their padding, which token the model lets look at which.

    Args:
        model_name: a folder or a Hub id, of which only `config.json` and the tokenizer's files are read,
            or a model of this package.
        tokenizer: used instead of the one that lies beside the model.
        revision, cache_dir, token, local_files_only, force_download: see `refimpl.hub.resolve`.

    Raises: MissingFileError, ConfigError, TokenizerFileError; InputError for a model that does not know where
        its tokenizer is.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizer | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ):
        hub_options = {
            "revision": revision,
            "cache_dir": cache_dir,
            "token": token,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        source: Any
        self.config: Any
        if isinstance(model_name, PreTrainedModel):
            self.config, dtype = model_name.config, model_name.dtype
            source = model_name.name_or_path or None
            name = type(model_name).__name__
        elif isinstance(model_name, str | os.PathLike):
            self.config, dtype = AutoConfig.from_pretrained(model_name, **hub_options), None
            source = model_name
            name = os.fspath(source)
        else:
            raise InputError(
                "neither a model nor the name of one",
                where="model_name",
                found=quote(model_name),
                allowed="a folder, a Hub id, or a model of this package",
            )
        # A long path says less than its end.
        self.name = printable(os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name)
        self.tokenizer = _tokenizer(tokenizer, source, hub_options)
        # A mask needs no speed, but the numbers in it depend on the dtype.
        self._backend = get_backend("numpy", dtype=dtype)

    def __call__(
        self,
        input_sentence: str | list[str],
        suffix: str = "",
        *,
        attention_mask: Any = None,
        past: int = 0,
        padding_side: str | None = None,
        head: int | None = None,
        save: str | os.PathLike[str] | None = None,
    ) -> AttentionMaskView:
        """Print the mask of a text and return it; the arguments are those of `view`, and:

        suffix: accepted as transformers does; it belongs to models that read images.
        save: also write a picture: `.svg`, or `.html` as a page of its own.

        Colours are for terminals only, and not where `NO_COLOR` is set.
        Raises: what `view` raises; SaveError; InputError for another kind of file.
        """
        if save is not None:
            check_picture_name(save)
        found = self.view(
            input_sentence, attention_mask=attention_mask, past=past, padding_side=padding_side, head=head
        )
        if save is not None:
            found.save(save)
        if sys.stdout is not None:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            print(found.text(color=is_colourful(), encoding=encoding), end="")
        return found

    visualize_attention_mask = __call__

    def view(
        self,
        text: str | list[str],
        *,
        attention_mask: Any = None,
        past: int = 0,
        padding_side: str | None = None,
        head: int | None = None,
    ) -> AttentionMaskView:
        """The mask of a text, or of several that are padded to one length, without printing it.

        attention_mask: instead of the tokenizer's: [batch, past + seq], 1 for a token and 0 for padding, or
            [batch or 1, heads or 1, seq, past + seq], bool (true: visible) or floats that are added to the scores.
        past: the number of tokens that a cache already holds; they are further keys, before the text's.
        padding_side: "left" or "right" instead of the tokenizer's.
        head: which head is meant, where the heads of a mask differ.

        Raises: InputError (no text, or one without a token; shapes and values of the mask; options),
            TextInputError (not valid Unicode), ResourceLimitError (more than 100 million pairs).
        """
        texts = _texts(text)
        past = _whole(past, "past")
        encoded = self.tokenizer(
            texts,
            padding=len(texts) > 1,
            padding_side=padding_side,
            return_attention_mask=True,
            return_tensors="np",
        )
        ids, real = encoded["input_ids"], encoded["attention_mask"].astype(bool)
        empty = np.flatnonzero(~real.any(axis=1)) if real.size else [0]
        if len(empty):
            raise InputError(
                "the text has no tokens", where="text" if len(texts) == 1 else f"text[{empty[0]}]"
            )
        batch, q_seq = ids.shape
        if batch * q_seq * (past + q_seq) > MOST_PAIRS:
            raise ResourceLimitError(
                "the mask is too large to be shown",
                found=f"{batch} x {q_seq:,} queries x {past + q_seq:,} keys",
                allowed=f"{MOST_PAIRS:,} pairs",
                hint="Show a shorter text: the rule is the same.",
            )
        real = np.concatenate([np.ones((batch, past), bool), real], axis=1)
        visible, padding, bias = self._rule(
            real if attention_mask is None else attention_mask, real, past, head
        )
        rows = ids.tolist()
        return AttentionMaskView(
            name=self.name,
            model_type=self.config.model_type,
            tokens=[self.tokenizer.convert_ids_to_tokens(row) for row in rows],
            texts=[token_texts(self.tokenizer, row) for row in rows],
            visible=visible,
            padding=padding,
            bias=bias,
            past=past,
        )

    def _rule(
        self, attention_mask: Any, real: np.ndarray, past: int, head: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """What the model makes of `attention_mask`: visible, padding and, from four dimensions, what is added.

        real: [batch, kv_seq], what the tokenizer says.
        Returns: bool [batch, q_seq, kv_seq], bool [batch, kv_seq], and the compute dtype [batch, q_seq, kv_seq].
        """
        (batch, kv_seq), heads = real.shape, self.config.num_attention_heads
        q_seq = kv_seq - past
        head = None if head is None else _whole(head, "head", heads)
        mask = build_mask(self._backend, attention_mask, batch, heads, q_seq, past)
        shape = (batch, q_seq, kv_seq)
        allowed = mask.visible(np, q_seq, kv_seq)
        if allowed is not None:
            padding = np.zeros((batch, kv_seq), bool) if mask.key_visible is None else ~mask.key_visible
            return np.array(np.broadcast_to(allowed[:, 0], shape)), padding, None
        assert mask.bias is not None
        bias = np.broadcast_to(_of_one_head(mask.bias, head), shape)
        return seen_under(bias), ~real, bias


def seen_under(bias: np.ndarray) -> np.ndarray:
    """Where a key keeps any weight in a softmax to whose scores `bias` is added, for scores of ordinary size.

    [..., kv_seq] floats -> [..., kv_seq] bool.  All false where a whole row is hidden: the numbers are then so
    large that the scores vanish beside them, and the softmax spreads the weight over all keys alike.
    """
    peak = bias.max(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        seen = np.exp(bias - peak) > 0
        is_blind = (np.spacing(np.abs(peak)) > _ORDINARY_SCORE) & seen.all(axis=-1, keepdims=True)
    return seen & ~is_blind


def _of_one_head(bias: np.ndarray, head: int | None) -> np.ndarray:
    """[batch or 1, heads or 1, q_seq, kv_seq] -> [batch or 1, q_seq, kv_seq].  Raises: InputError"""
    if head is not None:
        return bias[:, head % bias.shape[1]]
    if (bias != bias[:, :1]).any():
        raise InputError(
            "the heads have different masks",
            where="head",
            allowed=f"0 to {bias.shape[1] - 1}: the one to show",
        )
    return bias[:, 0]


def _tokenizer(given: Any, source: Any, hub_options: dict[str, Any]) -> PreTrainedTokenizer:
    if given is None:
        if not source:
            raise InputError(
                "the model does not know where its tokenizer is",
                where="tokenizer",
                hint="Pass tokenizer=AutoTokenizer.from_pretrained(...).",
            )
        return AutoTokenizer.from_pretrained(source, **hub_options)
    if not isinstance(given, PreTrainedTokenizer):
        raise InputError(
            "not a tokenizer of this package",
            where="tokenizer",
            found=quote(given),
            allowed="what AutoTokenizer.from_pretrained returns",
        )
    return given


def _texts(text: Any) -> list[str]:
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(one, str) for one in texts):
        raise InputError("not a text", where="text", found=quote(text), allowed="a str, or a list of them")
    return list(texts)


def _whole(value: Any, name: str, below: int | None = None) -> int:
    """`value` as an int of at least 0.  Raises: InputError"""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0 or isinstance(value, bool) or (below is not None and number >= below):
        allowed = "a whole number of at least 0" if below is None else f"0 to {below - 1}"
        raise InputError("wrong number", where=name, found=quote(value), allowed=allowed)
    return number


def is_colourful() -> bool:
    """Whether standard output is a terminal whose user has nothing against colours (no-color.org)."""
    stream = sys.stdout
    return (
        stream is not None
        and stream.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )
