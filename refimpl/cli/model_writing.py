"""What the commands that write a model anew have in common: `convert` and `quantize`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refimpl.cli import common, terminal
from refimpl.cli.model_files import is_of_a_tokenizer, of_a_model_in, output_folder
from refimpl.errors import ConfigError, InputError, quote

if TYPE_CHECKING:
    from refimpl.folder_switch import NewFiles

# The largest small file: a tokenizer.json of 250,000 tokens has 20 MB.
_SMALL_FILE_BYTES = 128 << 20


def add_writing_options(made: common.Parser) -> None:
    made.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="the largest size of a file: 500MB, 5GB, or a number of bytes (default: 5GB)",
    )
    made.add_argument(
        "--packed",
        action="store_true",
        help="in the order in which compiled products read matrices: later starts map them. For refimpl only",
    )
    made.add_argument("--force", action="store_true", help="replace the model that is there already")
    common.add_hub_options(made)
    common.add_output_options(made)


def checked_target(given: str, force: bool) -> Path:
    """Raises: InputError when there cannot be such a folder, or it holds a model that must not be replaced."""
    folder = output_folder(given, "FOLDER")
    present = of_a_model_in(folder)
    if present and not force:
        raise InputError(
            "the folder holds a model already",
            where=quote(given),
            found=", ".join(map(quote, present[:10])),
            hint="Name another folder, or replace it with --force.",
        )
    return folder


def shard_size(given: str) -> int:
    """The size in bytes.  Raises: InputError."""
    from refimpl.checkpoints.safetensors_writer import size_in_bytes

    return size_in_bytes(int(given) if given.isdecimal() and len(given) < 20 else given)


@contextmanager
def rewritten_model(
    target: Path, paths: dict[str, Path], config: bytes
) -> Iterator[tuple[NewFiles, dict[str, bytes]]]:
    """`with rewritten_model(...) as (new, small)`: write the weights to `new`; what belongs to them follows.

    paths: the files of the model by name, from which tokenizer and generation settings are taken.
    config: the content of the new `config.json`.
    small: what follows, by name. All of it or nothing gets into `target`, where other files of the model go.
    """
    from refimpl.checkpoints.saving import is_model_file
    from refimpl.config_base import CONFIG_NAME
    from refimpl.folder_switch import replaced_files
    from refimpl.generation.config import GENERATION_CONFIG_NAME
    from refimpl.json_reader import read_bytes

    small = {
        name: read_bytes(path, ConfigError, _SMALL_FILE_BYTES)
        for name, path in paths.items()
        if name == GENERATION_CONFIG_NAME or is_of_a_tokenizer(name)
    }
    small[CONFIG_NAME] = config
    has_tokenizer = any(map(is_of_a_tokenizer, small))

    def owns(name: str) -> bool:
        return is_model_file(name) or (has_tokenizer and is_of_a_tokenizer(name))

    with replaced_files(target, owns) as new:
        yield new, small
        for name, content in small.items():  # the config last: without it a folder holds no model
            new.write(name, [content])


def show_written(
    report: dict[str, Any], target: Path, args: argparse.Namespace, summary: Callable[[dict[str, Any]], str]
) -> None:
    if args.json:
        terminal.write_json(report)
    else:
        terminal.write("".join(f"{target / name}\n" for name in report["files"]))
        if report["tokenizer_error"] is not None:
            terminal.show_warning(f"no tokenizer: {report['tokenizer_error']}")
    if not args.quiet:
        terminal.note(summary(report))
