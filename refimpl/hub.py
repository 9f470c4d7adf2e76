"""Where the files of a model are: a folder, or a repository on the Hugging Face Hub.

`resolve` answers with the path of one file, for every room that reads files.  Downloading is left
to `huggingface_hub`, whose environment variables (`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`,
`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_DISABLE_PROGRESS_BARS`, ...) therefore work as everywhere else;
it reads them when it is first imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from refimpl.errors import InputError, MissingFileError, quote

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(
    name_or_path: str | os.PathLike[str],
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    required: bool = True,
) -> Path | None:
    """The path of `filename` in a folder or a Hub repository; the file is downloaded if need be.

    A name that is an existing folder is that folder, anything else a Hub id such as
    `abeja/gpt-neox-japanese-2.7b`.

    Returns: the path, or None when `required` is false and the model has no such file.
    Raises: MissingFileError when a required file is not there, or the Hub cannot be reached;
        InputError when the name is neither a folder nor a possible Hub id.
    """
    folder = Path(name_or_path)
    if not os.fspath(name_or_path):
        raise InputError("the name of the model is empty", allowed="a folder, or a Hub id such as owner/name")
    if _is(folder.is_dir):
        path = folder / filename
        if path.is_file():
            return path
        if not required:
            return None
        present = sorted(entry.name for entry in folder.iterdir())
        raise MissingFileError(
            f"the folder has no file {filename}",
            where=folder,
            found=", ".join(present[:10]) or "an empty folder",
        )
    if _is(folder.is_file):
        raise InputError("a model is a folder or a Hub id, not a file", where=folder)
    return _download(
        os.fspath(name_or_path),
        filename,
        required,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
    )


def _is(question: Callable[[], bool]) -> bool:
    """The answer; false for a name that the system cannot even look up."""
    try:
        return question()
    except (OSError, ValueError):
        return False


def _download(repo_id: str, filename: str, required: bool, **options) -> Path | None:
    if not _HUB_ID.fullmatch(repo_id) or ".." in repo_id:
        raise MissingFileError(
            f"there is no folder {quote(repo_id)}, and this is no Hub id either",
            allowed="a folder, or owner/name",
        )
    from huggingface_hub import hf_hub_download  # a quarter of a second to import: only when needed
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{repo_id}/{filename}"
    try:
        return Path(hf_hub_download(repo_id, filename, **options))
    # LocalEntryNotFoundError derives from EntryNotFoundError, but says "not cached", not "not in the repository".
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if not required:
            return None
        raise MissingFileError(
            "not in the local cache, and the Hub was not asked or could not be reached",
            where=where,
            hint="Check the connection, or use a folder that holds the model's files.",
        ) from error
    except EntryNotFoundError as error:
        if not required:
            return None
        raise MissingFileError("the repository has no such file at this revision", where=where) from error
    except RevisionNotFoundError as error:
        raise MissingFileError(f"no revision {quote(options['revision'])}", where=repo_id) from error
    except GatedRepoError as error:
        raise MissingFileError(
            "access to this repository must be granted on the Hub first",
            where=repo_id,
            hint="Then pass token=...",
        ) from error
    except RepositoryNotFoundError as error:
        raise MissingFileError(
            "no such folder, and no such repository on the Hub",
            where=repo_id,
            hint="If it is private, pass token=... or log in with huggingface_hub.",
        ) from error
    except (TypeError, ValueError) as error:  # HFValidationError is one
        raise InputError(f"the Hub cannot be asked so: {error}", where=where) from error
    except (HfHubHTTPError, OSError) as error:
        raise MissingFileError(f"the download failed: {error}", where=where) from error
