"""The options of `generate` and `chat` that say how text is made, and the model that makes it."""

from __future__ import annotations

import argparse
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from refimpl.cli import common
from refimpl.errors import ContextOverflowError, InputError

if TYPE_CHECKING:
    import numpy as np

    from refimpl.config_base import PreTrainedConfig
    from refimpl.generation.config import GenerationConfig

# Of 32 bits, so that it is quickly typed again and every JSON reader keeps it exactly.
_SEED_BITS = 32
_MAX_SEED = (1 << 64) - 1

#: Whoever gives one of these asks for sampling.
SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """A setting of `GenerationConfig` as an option.

    name: of the setting.  read: makes its value of the word.
    others: further names of the option, which the help leaves out.
    """

    name: str
    read: Callable[[str], Any]
    metavar: str
    help: str
    others: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def add_to(self, group: Any) -> None:
        group.add_argument(self.flag, type=self.read, metavar=self.metavar, help=self.help)
        if self.others:
            group.add_argument(*self.others, dest=self.name, type=self.read, help=argparse.SUPPRESS)


def _ids(word: str) -> list[int]:
    try:
        return [int(part) for part in word.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"not ids with commas between them: {word!r}") from None


def _json(word: str) -> Any:
    try:
        return json.loads(word)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error}): {word!r}") from None


def _early_stopping(word: str) -> bool | str:
    return {"true": True, "false": False}.get(word.lower(), word)


_LENGTHS = (
    Option("max_length", int, "N", "the same, with the prompt counted"),
    Option("min_new_tokens", int, "N", "no end before so many new tokens"),
    Option("min_length", int, "N", "the same, with the prompt counted"),
    Option("max_time", float, "S", "end with the first token after S seconds"),
)

_CHOICES = (
    Option("temperature", float, "T", "0: always the likeliest; larger: more varied", others=("--temp",)),
    Option("top_k", int, "K", "only among the K likeliest tokens; 0: all"),
    Option("top_p", float, "P", "only among the likeliest that sum to probability P"),
    Option("min_p", float, "P", "only what has at least P times the probability of the likeliest"),
    Option("top_h", float, "H", "only the likeliest that hold H of the entropy"),
    Option(
        "typical_p", float, "P", "only what surprises as usual, up to probability P", others=("--typical",)
    ),
    Option("epsilon_cutoff", float, "E", "only what has at least probability E"),
    Option("eta_cutoff", float, "E", "the same, with less required where much is possible"),
)

_SCORES = (
    Option(
        "repetition_penalty",
        float,
        "R",
        "above 1: what was said already gets less likely",
        others=("--repeat-penalty",),
    ),
    Option("encoder_repetition_penalty", float, "R", "above 1: what is not in the prompt gets less likely"),
    Option("no_repeat_ngram_size", int, "N", "no N tokens in a row come twice"),
    Option("encoder_no_repeat_ngram_size", int, "N", "no N tokens in a row of the prompt come again"),
    Option("bad_words_ids", _json, "JSON", "[[id, ...], ...]: never these sequences"),
    Option(
        "sequence_bias", _json, "JSON", "[[[id, ...], bias], ...]: added to the score of what completes them"
    ),
    Option("suppress_tokens", _ids, "IDS", "never these ids, with commas between them"),
    Option("begin_suppress_tokens", _ids, "IDS", "not as the first new token"),
    Option("forced_bos_token_id", int, "ID", "the second token of the text"),
    Option("forced_eos_token_id", _ids, "IDS", "the last token, where the length ends the text"),
    Option("exponential_decay_length_penalty", _json, "JSON", "[start, factor]: the end gets ever likelier"),
    Option("guidance_scale", float, "G", "above 1: away from --negative-prompt", others=("--cfg-scale",)),
    Option("eos_token_id", _ids, "IDS", "the ids that end the text"),
)

_BEAMS = (
    Option("num_beams", int, "N", "follow N texts at once and take the likeliest"),
    Option("length_penalty", float, "L", "above 0: long texts are judged more kindly"),
    Option("early_stopping", _early_stopping, "WHEN", "true, false or never: when to stop looking"),
)

_SPEED = (
    Option(
        "prompt_lookup_num_tokens",
        int,
        "N",
        "guess up to N tokens from the text before: same text, fewer steps",
    ),
    Option("max_matching_ngram_size", int, "N", "by at most so many last tokens (default: 2)"),
    Option("cache_implementation", str, "KIND", "dynamic (default) or static"),
)

_FLAGS = ("do_sample", "renormalize_logits", "remove_invalid_values", "use_cache")

OPTIONS = (*_LENGTHS, *_CHOICES, *_SCORES, *_BEAMS, *_SPEED)

#: Settings that one conversation cannot have.
_NOT_IN_CHAT = {option.name for option in (*_BEAMS, Option("max_length", int, "", ""))}
_NOT_IN_CHAT |= {"min_length", "use_cache", "cache_implementation"}


def add_model_options(parser: common.Parser) -> None:
    """Which model, and how it computes."""
    common.add_model_options(parser)
    common.add_computing_options(parser)
    common.add_matmul_dtype_option(parser)
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="compute on N processors")


def add_generation_options(parser: common.Parser, default_new_tokens: int, is_chat: bool = False) -> None:
    """Everything that becomes a setting; not given: None."""
    parser.add_argument(
        "-n",
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"at most so many tokens (default: {default_new_tokens}, or as the model's generation_config.json says)",
    )
    other_names = ("--max-tokens", "--predict", "--n-predict")
    parser.add_argument(*other_names, dest="max_new_tokens", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be given several times"
    )
    other_names = ("-r", "--reverse-prompt", "--stop-strings")
    parser.add_argument(*other_names, dest="stop", action="append", help=argparse.SUPPRESS)
    parser.add_argument("-s", "--seed", type=int, help="repeat a text: the seed that was printed with it")
    parser.add_argument("--ignore-eos", action="store_true", help="never end the text before its length")
    groups: tuple[tuple[str, tuple[Option, ...]], ...] = (
        ("length", _LENGTHS),
        ("choice of each token (default: as the model's generation_config.json says)", _CHOICES),
        ("scores of the tokens", _SCORES),
        ("beam search", _BEAMS),
        ("speed", _SPEED),
    )
    for title, options in groups:
        options = tuple(option for option in options if not (is_chat and option.name in _NOT_IN_CHAT))
        if not options:
            continue
        group = parser.add_argument_group(title)
        for option in options:
            option.add_to(group)
        if options[0].name == "temperature":
            _add_flag(group, "do_sample", "draw tokens; without: always the likeliest")
        if options[0].name == "repetition_penalty":
            group.add_argument(
                "--negative-prompt", "--cfg-negative-prompt", metavar="TEXT", help="see --guidance-scale"
            )
            _add_flag(group, "renormalize_logits", "log-probabilities after everything else")
            _add_flag(group, "remove_invalid_values", "go on where the scores are NaN")
        if title == "speed" and not is_chat:
            _add_flag(group, "use_cache", "without: compute the whole text for each token")


def _add_flag(group: Any, name: str, text: str) -> None:
    group.add_argument(
        "--" + name.replace("_", "-"), action=argparse.BooleanOptionalAction, default=None, help=text
    )


def settings_of(args: argparse.Namespace, name: str, config: PreTrainedConfig) -> GenerationConfig:
    """The model's own settings, changed by the options. Whoever asks for a temperature asks for sampling.

    Raises: InputError for options that mean nothing or contradict each other.
    """
    from refimpl.generation.chain import check_ids, check_in_vocabulary
    from refimpl.generation.config import GenerationConfig, settings_of_model

    vocab_size = config.vocab_size
    of_files = settings_of_model(name, **common.hub_options(args))
    settings = of_files or GenerationConfig.from_model_config(config)
    names = ("max_new_tokens", *(option.name for option in OPTIONS), *_FLAGS)
    given: dict[str, Any] = {
        name: getattr(args, name) for name in names if getattr(args, name, None) is not None
    }
    if getattr(args, "num_return_sequences", None) is not None:
        given["num_return_sequences"] = args.num_return_sequences
    if args.ignore_eos:
        given |= _without_end(given, settings, vocab_size)
    given |= sampling_asked(given)
    if args.negative_prompt is not None and args.guidance_scale in (None, 1):
        raise InputError("a negative prompt needs a --guidance-scale above 1", where="--negative-prompt")
    _check_stops(args.stop or [])
    settings = settings.updated(**given).completed(GenerationConfig())
    check_in_vocabulary("eos_token_id", given.get("eos_token_id", []), vocab_size)
    check_ids(settings, vocab_size)
    ends = [token_id for token_id in settings.eos_token_ids if 0 <= token_id < vocab_size]
    # One of the model's files that does not exist never comes.
    return settings if ends == settings.eos_token_ids else settings.updated(eos_token_id=ends)


def sampling_asked(given: dict[str, Any]) -> dict[str, Any]:
    """What some given settings say about `do_sample`.  Raises: InputError where they contradict it."""
    asked = sorted(given.keys() & set(SAMPLING))
    is_drawn = bool(asked) and given.get("temperature") != 0
    if "do_sample" not in given:
        return {"do_sample": is_drawn} if asked else {}
    if given["do_sample"] and given.get("temperature") == 0:
        raise InputError("--do-sample draws tokens, and --temperature 0 takes the likeliest")
    if not given["do_sample"] and is_drawn:
        flag = "--" + asked[0].replace("_", "-")
        raise InputError(f"--no-do-sample takes the likeliest token, and {flag} says how to draw one")
    return {}


def _without_end(given: dict[str, Any], settings: GenerationConfig, vocab_size: int) -> dict[str, Any]:
    if "eos_token_id" in given:
        raise InputError("--ignore-eos leaves --eos-token-id without a meaning")
    ends = [token_id for token_id in settings.eos_token_ids if 0 <= token_id < vocab_size]
    suppressed = [*(given.get("suppress_tokens") or settings.suppress_tokens or []), *ends]
    return {"eos_token_id": [], "suppress_tokens": suppressed}


def _check_stops(stops: list[str]) -> None:
    for stop in stops:
        common.check_argument(stop, "--stop")
        if not stop:
            raise InputError("an empty text ends nothing", where="--stop")


def stops_and_ends(stops: list[str], tokenizer: Any) -> tuple[list[str], list[int]]:
    """Texts to look for, and ids: of those that are special tokens, which no text shows."""
    hidden = {tokenizer.convert_ids_to_tokens(token_id): token_id for token_id in tokenizer.skipped_ids()}
    return [stop for stop in stops if stop not in hidden], [hidden[stop] for stop in stops if stop in hidden]


def with_ends(settings: GenerationConfig, ids: list[int]) -> GenerationConfig:
    """The settings with further ids that end a text."""
    new = [token_id for token_id in dict.fromkeys(ids) if token_id not in settings.eos_token_ids]
    return settings.updated(eos_token_id=[*settings.eos_token_ids, *new]) if new else settings


def seed_of(given: int | None) -> int:
    """The seed that was given, or a new one.  Raises: InputError."""
    if given is None:
        return secrets.randbits(_SEED_BITS)
    if not 0 <= given <= _MAX_SEED:
        raise InputError(
            "not a possible seed", found=str(given), allowed="a whole number from 0 to 2**64 - 1"
        )
    return given


def context_of(args: argparse.Namespace, config: PreTrainedConfig) -> int:
    """How many tokens a text may have: what the model was made for, or less where --ctx-size says so."""
    context: int = config.max_position_embeddings  # type: ignore[attr-defined]
    if args.ctx_size is None or args.ctx_size == 0:
        return context
    if args.ctx_size < 2:
        raise InputError(
            "not a possible length", where="--ctx-size", found=str(args.ctx_size), allowed="2 or more"
        )
    return min(context, args.ctx_size)


def refuse_overflow(prompt: int, wanted: int, context: int, way_out: str) -> NoReturn:
    """Raises: ContextOverflowError; `way_out` ends the sentence that says how to go on."""
    raise ContextOverflowError(
        "the prompt and the new tokens are more than the model's context",
        found=f"{prompt} + {wanted} tokens",
        allowed=f"{context} together",
        hint=f"Shorten the prompt, lower --max-new-tokens, or {way_out}.",
    )


def load_model(args: argparse.Namespace, name: str, config: PreTrainedConfig) -> Any:
    from refimpl.auto import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        name,
        config=config,
        threads=args.threads,
        **common.computing_options(args),
        **common.hub_options(args),
    )


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text to be continued: without the end that some tokenizers put after it."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    # An id that stands for the text shows what is put before it.
    around = tokenizer.build_inputs_with_special_tokens([-1])
    return [*around[: around.index(-1)], *ids]


def only_known_tokens(
    tokenizer: Any, vocab_size: int
) -> list[Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Rules out the ids at the end of a padded embedding, which no token has and no text can show."""
    known = vocab_size
    while known and not _is_known(tokenizer, known - 1):
        known -= 1
    if known == vocab_size:
        return []

    def rule_out(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits = logits.copy()
        logits[:, known:] = float("-inf")
        return logits

    return [rule_out]


def _is_known(tokenizer: Any, token_id: int) -> bool:
    try:
        tokenizer.check_id(token_id)
    except InputError:
        return False
    return True
