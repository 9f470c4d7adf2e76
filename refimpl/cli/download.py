"""`refimpl download`: the files of a model that are needed to use it, and where they lie."""

from __future__ import annotations

import argparse
import filecmp
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl.cli import common, terminal
from refimpl.errors import InputError, MissingFileError, SaveError, TokenizerFileError, quote

if TYPE_CHECKING:
    from refimpl.hub import ModelFiles
    from refimpl.tokenizer.base import PreTrainedTokenizer

_COPY_BYTES = 1 << 24


def parser(prog: str) -> common.Parser:
    examples = (
        f"{prog} EleutherAI/pythia-14m",
        f"{prog} EleutherAI/pythia-14m --revision step3000 --to pythia-14m-step3000",
        f"{prog} abeja/gpt-neox-japanese-2.7b --json",
    )
    made = common.Parser(
        prog, examples, "Download the files of a model that are needed to use it, and print where they lie."
    )
    made.add_argument("model", metavar="MODEL", help="a Hub id (or a folder, to copy it with --to)")
    common.add_hub_options(made)
    made.add_argument(
        "--cache-dir", metavar="FOLDER", help="keep the files here, not in the cache of the Hub"
    )
    made.add_argument("--token", help="of an account on the Hub (others can see it; HF_TOKEN hides it)")
    made.add_argument("--to", metavar="FOLDER", help="copy the files into a folder of their own")
    made.add_argument("--force", action="store_true", help="replace files in that folder that differ")
    common.add_output_options(made)
    return made


def run(args: argparse.Namespace) -> int:
    name = common.model_name(args.model)
    if args.to is not None and not args.to:
        raise InputError("the name of the folder is empty", where="--to")
    hub = {**common.hub_options(args), "cache_dir": args.cache_dir, "token": args.token}
    commit, files, tokenizer_error = fetch(name, hub)
    if args.to is not None:
        files = copy(files, Path(args.to), args.force)
    if args.json:
        terminal.write_json(
            {
                "model": name,
                "revision": args.revision,
                "commit": commit,
                "folder": str(files[0].parent),
                "bytes": sum(path.stat().st_size for path in files),
                "files": [{"name": path.name, "bytes": path.stat().st_size} for path in files],
                "tokenizer_error": tokenizer_error,
            }
        )
    else:
        terminal.write(f"{files[0].parent}\n")
        if tokenizer_error is not None:
            terminal.show_warning(f"no tokenizer: {tokenizer_error}")
    if not args.quiet:
        terminal.note(_summary(files, commit))
    return 0


def _summary(files: list[Path], commit: str | None) -> str:
    sizes = [path.stat().st_size for path in files]
    rows = [[path.name, common.readable_size(size)] for path, size in zip(files, sizes, strict=True)]
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    version = "" if commit is None else f", commit {commit}"
    return f"{terminal.table(rows, right=(1,))}{count}, {common.readable_size(sum(sizes))}{version}"


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


def _settings_of_tokenizers() -> tuple[str, ...]:
    from refimpl.tokenizer.pretrained_files import ADDED_TOKENS_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE

    return CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE


def _with_parts(weights: Path) -> list[Path]:
    """The weight file, or the index and the files that it names."""
    from refimpl.checkpoints.locate import INDEX_END
    from refimpl.checkpoints.sharded import read_index

    if not weights.name.endswith(INDEX_END):
        return [weights]
    return [weights, *(weights.with_name(name) for name in read_index(weights).file_names)]


# --- a folder of their own ---------------------------------------------------------------------------

_PART = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")


def copy(files: list[Path], folder: Path, force: bool) -> list[Path]:
    """Copy the files into `folder`, all at once: it holds the whole model afterwards, or what it held before.

    They are copied, not linked: whoever saves something else into the folder must not change the cache.

    Returns: the copies.
    Raises: InputError when files there differ from these, unless `force` says that they are to be replaced (and
        other files of a model removed); SaveError.
    """
    from refimpl.folder_switch import replaced_files

    names = {path.name for path in files}
    owned = names | _names_of_a_model()

    def owns(name: str) -> bool:
        return name in owned or _PART.fullmatch(name) is not None

    copies = [folder / path.name for path in files]
    present = sorted(filter(owns, os.listdir(folder))) if folder.is_dir() else []
    missing = [path for path, copied in zip(files, copies, strict=True) if not _is_copy(path, copied)]
    different = [name for name in present if name not in names or name in {path.name for path in missing}]
    if different and not force:
        raise InputError(
            "the folder holds other files of a model",
            where=quote(str(folder)),
            found=", ".join(map(quote, different[:10])),
            hint="Name another folder, or replace them with --force.",
        )
    if missing or different:
        with replaced_files(folder, owns) as new:
            new.reserve(sum(path.stat().st_size for path in files))
            for path in reversed(files):  # config.json last: it makes them a model
                new.write(path.name, _content(path))
    return copies


def _names_of_a_model() -> set[str]:
    """What would be read beside the files, or in their place, if it lay in the same folder."""
    from refimpl import tokenizer
    from refimpl.checkpoints.locate import WEIGHT_FILES
    from refimpl.config_base import CONFIG_NAME
    from refimpl.generation.config import GENERATION_CONFIG_NAME

    classes = (tokenizer.GPTNeoXJapaneseTokenizer, tokenizer.GPTNeoXTokenizerFast, tokenizer.T5Tokenizer)
    vocabularies = {name for one in classes for name in one.vocab_files_names.values()}
    return {CONFIG_NAME, GENERATION_CONFIG_NAME, *WEIGHT_FILES, *_settings_of_tokenizers(), *vocabularies}


def _is_copy(path: Path, copied: Path) -> bool:
    try:
        return filecmp.cmp(path, copied, shallow=False)
    except OSError:
        return False


def _content(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while block := file.read(_COPY_BYTES):
                yield block
    except OSError as error:
        raise SaveError(f"the file cannot be read ({error})", where=path) from error
