"""Which files make up a model, for the commands that copy or replace all of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl.errors import InputError, MissingFileError, TokenizerFileError, quote

if TYPE_CHECKING:
    from refimpl.hub import ModelFiles
    from refimpl.tokenizer.base import PreTrainedTokenizer

_PART = re.compile(r"(model|packed|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")


# --- what is needed ----------------------------------------------------------------------------------


def fetch(name: str, hub: dict[str, Any]) -> tuple[str | None, list[Path], str | None]:
    """Download what is needed, of one commit: the weights last, and none for a model that is of no use here.

    Returns: the commit (None for a folder); the paths, all in one folder; why there is no tokenizer, or None.
    Raises: what `AutoConfig.from_pretrained` and `find_weights` raise.
    """
    from refimpl.auto import AutoConfig
    from refimpl.checkpoints.locate import find_weights
    from refimpl.config_base import CONFIG_NAME
    from refimpl.generation.config import GENERATION_CONFIG_NAME
    from refimpl.hub import ModelFiles, pin
    from refimpl.model import refuse_other_quantization

    hub = pin(name, **hub)
    model = ModelFiles(name, **hub)
    config = model.need(CONFIG_NAME)
    refuse_other_quantization(AutoConfig.from_pretrained(name, **hub))
    tokenizer, tokenizer_error = _tokenizer_class(name, hub)
    names = [GENERATION_CONFIG_NAME, *_settings_of_tokenizers()]
    optional = [model.find(name) for name in names]
    vocabulary = [] if tokenizer is None else _vocabulary(tokenizer, model)
    weights = _with_parts(find_weights(name, **hub))
    files = [config, *(path for path in optional if path is not None), *vocabulary, *weights]
    return model.commit, files, tokenizer_error


def _tokenizer_class(name: str, hub: dict[str, Any]) -> tuple[type[PreTrainedTokenizer] | None, str | None]:
    """The class of the model's tokenizer, whose files are then there, or why it has none.

    Raises: MissingFileError when the Hub fails: there may be a tokenizer.
    """
    from refimpl.auto import AutoTokenizer
    from refimpl.hub_errors import ABSENT, NOT_CACHED

    try:
        return type(AutoTokenizer.from_pretrained(name, **hub)), None
    except TokenizerFileError as error:
        return None, str(error)
    except MissingFileError as error:
        if getattr(error, "reason", None) not in (ABSENT, NOT_CACHED):
            raise
        return None, str(error)


def _vocabulary(tokenizer: type[PreTrainedTokenizer], model: ModelFiles) -> list[Path]:
    """The vocabulary files that this class takes, of those that the model has."""
    for group in tokenizer.vocab_files_groups or (tuple(tokenizer.vocab_files_names),):
        found = [model.find(tokenizer.vocab_files_names[key]) for key in group]
        paths = [path for path in found if path is not None]
        if len(paths) == len(found):
            return paths
    return []


def _with_parts(weights: Path) -> list[Path]:
    """The weight file, or the index and the files that it names."""
    from refimpl.checkpoints.locate import INDEX_END
    from refimpl.checkpoints.sharded import read_index

    if not weights.name.endswith(INDEX_END):
        return [weights]
    return [weights, *(weights.with_name(name) for name in read_index(weights).file_names)]


# --- what is there already -----------------------------------------------------------------------------


def is_of_a_model(name: str) -> bool:
    """Whether a file of this name would be read beside those of a model, or in the place of one of them."""
    from refimpl.checkpoints.locate import WEIGHT_FILES
    from refimpl.checkpoints.saving import is_model_file

    return (
        is_model_file(name)
        or name in WEIGHT_FILES
        or _PART.fullmatch(name) is not None
        or is_of_a_tokenizer(name)
    )


def is_of_a_tokenizer(name: str) -> bool:
    from refimpl import tokenizer

    classes = (tokenizer.GPTNeoXJapaneseTokenizer, tokenizer.GPTNeoXTokenizerFast, tokenizer.T5Tokenizer)
    vocabularies = {file for one in classes for file in one.vocab_files_names.values()}
    return name in vocabularies or name in _settings_of_tokenizers()


def _settings_of_tokenizers() -> tuple[str, ...]:
    from refimpl.tokenizer.pretrained_files import ADDED_TOKENS_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE

    return CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE


def output_folder(given: str, option: str) -> Path:
    """The folder to write to, after a look at its place: what is to be written may take an hour to get.

    option: how the user calls it.
    Raises: InputError when there cannot be such a folder, or nobody may look into it.
    """
    if not given:
        raise InputError("the name of the folder is empty", where=option)
    folder = Path(given)
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if _is_there(path))
        if not nearest.is_dir():
            raise InputError(
                "this must be a folder, and there is a file", where=f"{option} {quote(str(nearest))}"
            )
        if nearest is folder:
            os.listdir(folder)
    except OSError as error:
        raise InputError(
            f"the folder cannot be used ({error.strerror})", where=f"{option} {quote(given)}"
        ) from error
    return folder


def _is_there(path: Path) -> bool:
    """As os.path.lexists, which says no of a name that the system does not even look up."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def of_a_model_in(folder: Path) -> list[str]:
    """The names of the files there that belong to a model."""
    return sorted(filter(is_of_a_model, os.listdir(folder))) if folder.is_dir() else []
