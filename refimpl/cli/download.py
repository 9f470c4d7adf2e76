"""`refimpl download`: the files of a model that are needed to use it, and where they lie."""

from __future__ import annotations

import argparse
import filecmp
import os
from collections.abc import Iterator
from pathlib import Path

from refimpl.cli import common, terminal
from refimpl.cli.model_files import fetch, is_of_a_model, of_a_model_in, output_folder
from refimpl.errors import InputError, SaveError, quote

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
    target = None if args.to is None else output_folder(args.to, "--to")
    hub = {**common.hub_options(args), "cache_dir": args.cache_dir, "token": args.token}
    commit, files, tokenizer_error = fetch(name, hub)
    if target is not None:
        files = copy(files, target, args.force)
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


# --- a folder of their own ---------------------------------------------------------------------------


def copy(files: list[Path], folder: Path, force: bool) -> list[Path]:
    """Copy the files into `folder`, all at once: it holds the whole model afterwards, or what it held before.

    They are copied, not linked: whoever saves something else into the folder must not change the cache.

    Returns: the copies.
    Raises: InputError when files there differ from these, unless `force` says that they are to be replaced (and
        other files of a model removed); SaveError.
    """
    from refimpl.folder_switch import replaced_files

    names = {path.name for path in files}
    copies = [folder / path.name for path in files]
    missing = {path.name for path, copied in zip(files, copies, strict=True) if not _is_copy(path, copied)}
    others = set(of_a_model_in(folder)) - names
    different = sorted(others | {name for name in missing if os.path.lexists(folder / name)})
    if different and not force:
        raise InputError(
            "the folder holds other files of a model",
            where=quote(str(folder)),
            found=", ".join(map(quote, different[:10])),
            hint="Name another folder, or replace them with --force.",
        )
    if missing or different:
        with replaced_files(folder, is_of_a_model) as new:
            new.reserve(sum(path.stat().st_size for path in files))
            for path in reversed(files):  # config.json last: it makes them a model
                new.write(path.name, _content(path))
    return copies


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
