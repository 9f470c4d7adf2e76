"""Where the files of a model are: a folder, or a repository on the Hugging Face Hub.

`resolve` answers with the path of one file, for every room that reads files; `ModelFiles` finds several that belong
together.  Downloading is left to `huggingface_hub`, with its retries, locks and cache; its environment variables
(`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_DISABLE_PROGRESS_BARS`, ...) therefore
work as everywhere else; it reads them when it is first imported.

A file that has just been downloaded is compared with the hash by which the Hub calls it, and thrown away if it is not
the same: the library looks at its length only, and a download that goes on where an earlier one ended may be a mixture.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from refimpl.errors import InputError, MissingFileError, RefimplError, quote, shorten
from refimpl.hub_errors import (
    ABSENT,
    DAMAGED,
    FAILED,
    NO_SUCH_FILE,
    NOT_ASKED,
    NOT_CACHED,
    OFFLINE_HINT,
    UNREACHABLE,
    explain,
)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile("[0-9a-f]{40}")
_HASH = re.compile("[0-9a-f]{40}([0-9a-f]{24})?")

# More names than that of a folder, one by one, help nobody.
_MAX_NAMES = 1000

_log = logging.getLogger(__name__)


def resolve(
    name_or_path: str | os.PathLike[str],
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    subfolder: str = "",
    required: bool = True,
) -> Path | None:
    """The path of `filename` in a folder or a Hub repository; the file is downloaded if need be.

    A name that is an existing folder is that folder, anything else a Hub id such as
    `abeja/gpt-neox-japanese-2.7b`.  The options are those of `ModelFiles`.

    Returns: the path, or None when `required` is false and the model has no such file.
    Raises: as `ModelFiles` and its `need`.
    """
    files = ModelFiles(
        name_or_path,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
        subfolder=subfolder,
    )
    return files.need(filename) if required else files.find(filename)


def pin(name_or_path: str | os.PathLike[str], **hub_options: Any) -> dict[str, Any]:
    """`hub_options` with the commit that `revision` means now, for whoever takes several files one after the other.

    With a commit the files belong together even if the repository changes meanwhile, and what is cached, or known
    to be absent, costs no request.  For a folder, and when nobody knows the commit, they are returned as they are.
    """
    files = ModelFiles(name_or_path, **hub_options)
    files.find("config.json")
    if files.unreachable is not None:
        hub_options = {**hub_options, "local_files_only": True}
    return hub_options if files.commit is None else {**hub_options, "revision": files.commit}


class ModelFiles:
    """The files of one model: those of a folder, or of one version of a Hub repository.

    The first answer tells which commit `revision` is; from then on the files of that commit are taken.

    Args:
        name_or_path: a folder, or a Hub id.
        revision: a branch, tag, commit or `refs/pr/3` of the repository; None: `main`.
        cache_dir: instead of the cache that the environment says.
        token: of an account on the Hub; None or True: the one that is logged in, False: none.
        local_files_only: take what is in the cache, and ask nobody.
        force_download: download again what is in the cache.
        subfolder: where in the folder or repository the files lie.

    Raises: InputError when the name is empty, or that of a file, and for a token that cannot be one;
        MissingFileError when the name is neither that of a folder nor a possible Hub id, or may not be looked at.
    """

    #: The commit of the repository, once it is known.
    commit: str | None = None
    #: Why the Hub could not be asked, when the cache answered instead.
    unreachable: MissingFileError | None = None

    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str = "",
    ):
        self.name = os.fspath(name_or_path)
        self.revision, self.cache_dir, self.token = revision, cache_dir, token
        self.local_files_only, self.force_download = local_files_only, force_download
        self.subfolder = subfolder.strip("/")
        if not self.name:
            raise InputError(
                "the name of the model is empty", allowed="a folder, or a Hub id such as owner/name"
            )
        # The HTTP libraries quote a header that they cannot send, and this one nobody should see.
        if isinstance(token, str) and not (token.isascii() and token.isprintable()):
            raise InputError(
                "no token of the Hub: it holds other characters, or a line end",
                where="token",
                allowed="printable ASCII characters",
            )
        #: The folder; None for a repository.
        self.folder = Path(self.name) / self.subfolder if _is(Path(self.name).is_dir) else None
        if self.folder is None:
            if _is(Path(self.name).is_file):
                raise InputError("a model is a folder or a Hub id, not a file", where=self.name)
            if not _HUB_ID.fullmatch(self.name) or ".." in self.name:
                raise MissingFileError(
                    f"there is no folder {quote(self.name)}, and this is no Hub id either",
                    allowed="a folder, or owner/name",
                )
            if isinstance(revision, str) and _COMMIT.fullmatch(revision):
                self.commit = revision

    @property
    def offline(self) -> bool:
        """Whether the cache alone is asked."""
        from huggingface_hub import constants

        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)

    def need(self, filename: str) -> Path:
        """The path of a file that must be there; it is downloaded if need be.

        Raises: MissingFileError when it is not there or cannot be got (attribute `reason`: see `hub_errors`);
            InputError when the options mean nothing to the Hub; SaveError when it cannot be stored.
        """
        if self.folder is None:
            return self._fetch(filename)
        path = self.folder / filename
        if _is(path.is_file):
            return path
        raise MissingFileError(
            f"the folder has no file {filename}",
            where=self.folder,
            found=shorten([quote(name)[1:-1] for name in self.names()]) or "an empty folder",
            reason=ABSENT,
        )

    def find(self, filename: str) -> Path | None:
        """The path of a file that may be absent, or None.

        When the Hub cannot be reached, but something of this version is in the cache, the cache alone is asked from
        then on, a warning is logged, and `unreachable` says why.

        Raises: as `need`, but for an absent file.
        """
        try:
            return self.need(filename)
        except MissingFileError as error:
            reason = getattr(error, "reason", None)
            if reason == UNREACHABLE and not self.force_download and self.snapshot() is not None:
                _log.warning("%s; going on with what is in the cache", error.what)
                self.unreachable, self.local_files_only = error, True
            elif reason not in (ABSENT, NOT_CACHED):
                raise
            return None

    def names(self) -> list[str]:
        """The names of the files, as far as they can be known; when the Hub is not asked, of those in the cache."""
        if self.folder is not None:
            return _names_below(self.folder)
        try:
            if not self.offline:
                return self._names_on_hub()
        except Exception as error:  # of any library; the names only make a message clearer
            _log.debug("the files of %s cannot be listed: %s", self.name, error)
        snapshot = self.snapshot()
        return [] if snapshot is None else _names_below(snapshot / self.subfolder)

    def snapshot(self) -> Path | None:
        """The folder of this version in the cache, if there is one."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        cache = Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()
        repository = cache / repo_folder_name(repo_id=self.name, repo_type="model")
        try:
            commit = self.commit or (repository / "refs" / (self.revision or "main")).read_text().strip()
            folder = repository / "snapshots" / commit
            return folder if folder.is_dir() else None
        except (OSError, ValueError, TypeError):
            return None

    def _names_on_hub(self) -> list[str]:
        from huggingface_hub import HfApi

        found = HfApi().model_info(self.name, revision=self.commit or self.revision, token=self.token)
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        names = (sibling.rfilename for sibling in found.siblings or ())
        return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))[:_MAX_NAMES]

    def _fetch(self, filename: str) -> Path:
        """A file of the repository.  Raises: as `need`."""
        # A quarter of a second to import: only when needed.
        from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache

        filename = f"{self.subfolder}/{filename}" if self.subfolder else filename
        where = f"{self.name}/{filename}"
        options: dict[str, Any] = {"revision": self.commit or self.revision, "cache_dir": self.cache_dir}
        try:
            cached = try_to_load_from_cache(self.name, filename, **options)
            if self.local_files_only:
                path = self._only_cached(cached, where)
            elif self.commit and not self.force_download and cached is _CACHED_NO_EXIST:
                raise MissingFileError(NO_SUCH_FILE, where=where, reason=ABSENT)
            else:
                options |= {"token": self.token, "force_download": self.force_download}
                path = Path(hf_hub_download(self.name, filename, **options))
                if self.force_download or str(path) != cached:
                    _refuse_damaged(path, where)
        except (RefimplError, MemoryError):
            raise
        except Exception as error:  # the libraries below share no base class for what networks do
            # A 404 names the commit too: what is not there is part of that version.
            headers = getattr(getattr(error, "response", None), "headers", None) or {}
            self._learn(headers.get("X-Repo-Commit"))
            raise explain(error, where, self.revision, self.token) from error
        self._learn(path.parents[filename.count("/")].name)
        return path

    def _only_cached(self, cached: object, where: str) -> Path:
        """The library would ask the Hub nothing about this file, but a few things about other matters."""
        if self.force_download:
            raise InputError("what is to be downloaded again cannot be had offline", where=where)
        if isinstance(cached, str):
            return Path(cached)
        raise MissingFileError(NOT_ASKED, where=where, hint=OFFLINE_HINT, reason=NOT_CACHED)

    def _learn(self, commit: object) -> None:
        if isinstance(commit, str) and _COMMIT.fullmatch(commit):
            self.commit = commit


def _is(question: Callable[[], bool]) -> bool:
    """The answer; false for a name that the system cannot even look up.

    Raises: MissingFileError where nobody may look: it may well be there.
    """
    try:
        return question()
    except PermissionError as error:
        raise MissingFileError(
            f"it cannot be read ({error.strerror})", where=error.filename, reason=FAILED
        ) from error
    except (OSError, ValueError):
        return False


def _names_below(folder: Path) -> list[str]:
    """Files of a folder and of the folders in it, the latter as `folder/file`."""
    names: list[str] = []
    with suppress(OSError):
        for entry in sorted(folder.iterdir()):
            if entry.is_dir():
                names += sorted(f"{entry.name}/{file.name}" for file in entry.iterdir())
            else:
                names.append(entry.name)
    return names[:_MAX_NAMES]


def _refuse_damaged(path: Path, where: str) -> None:
    """Throw away a file that is not what its name in the cache says.  Raises: MissingFileError, OSError.

    The cache keeps a file under its hash, and links to it; where the system has no links, that name is lost.
    """
    try:
        kept = path.parent / os.readlink(path)
    except OSError:
        return
    if _HASH.fullmatch(kept.name) and kept.name not in _hashes(path, len(kept.name)):
        for remains in (path, kept):
            remains.unlink(missing_ok=True)
        raise MissingFileError(
            "the download arrived damaged, and has been thrown away",
            where=where,
            hint="Try again. If it happens again, something on the way changes files.",
            reason=DAMAGED,
        )


def _hashes(path: Path, digits: int) -> set[str]:
    """The hashes of so many digits by which a file may be called: SHA-256 if it is large, else that of git.

    Some servers beside the Hub call small files by their plain SHA-1.
    """
    with open(path, "rb") as file:
        if digits == 64:
            return {hashlib.file_digest(file, "sha256").hexdigest()}
        content = file.read()
    of_git = b"blob %d\0" % len(content) + content
    return {hashlib.sha1(data, usedforsecurity=False).hexdigest() for data in (of_git, content)}
