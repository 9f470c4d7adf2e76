"""Replacing several files of a folder in one step.

A model is read as several files: `config.json`, then `model.safetensors`, or an index and the shards that it names.
A rename replaces one file at a time, so renames alone leave, for a moment or after a crash for ever, the new config
beside the old weights: a folder that loads, and writes nonsense. Here the one rename that counts is that of
a symbolic link, through which all of them are found:

    config.json         -> .refimpl-save/now/config.json
    model.safetensors   -> .refimpl-save/now/model.safetensors
    .refimpl-save/now   -> old                                     (then: new)
    .refimpl-save/old/  the files as they were, the same ones (hard links)
    .refimpl-save/new/  the files as they shall be

1. The new files are written to `new` and are on the disk.
2. `old` gets the old files, and `now` leads to it. Then each file of the folder is replaced by a link
   through `now`. It leads to what was there before, so nothing has changed for a reader. A file that only the
   new model has becomes a link to nothing, which for a reader is no file.
3. `now` is replaced by a link to `new`. This is the one step.
4. Each link is replaced by the file that it leads to, or removed where it leads to nothing, and
   `.refimpl-save` is removed. Again nothing changes for a reader, and nothing odd is left in the folder.

What is promised:

- At every moment, and after a crash at any moment, whoever opens the folder finds all of the old files or all
  of the new ones. That holds for every program: it is made of links, not of an agreement with the reader.
- A failure that Python sees, and Ctrl-C, end with the old files and without litter. Only if the step was made
  already do they end with the new ones; the error then says so (`saved`). If the disk refuses the tidying up
  as well, the links stay, and lead to the right files.
- A killed process leaves links and `.refimpl-save`. The next call finds them and goes on with step 4, to whichever
  side `now` leads.
- Files that are replaced are never written to. A process that has them mapped keeps the old ones.
- Files that are not of this set are not touched, and neither is the folder itself: it may be a mount point, or the
  working directory of a process.
- Two processes (or threads) cannot do this to a folder at once: the second gets an error.

What is not promised: a reader that opens some files before the step and others after it has some of both. (Files that
are open already stay what they are.) While a folder is as a killed process left it, a program that lists it sees the
links too, and one that follows no links finds nothing. On file systems without locks two processes may disturb each
other. A power failure is survived as far as the file system keeps what `fsync` confirmed, and keeps renames in order.

No links are needed, and it works on file systems without them, where the folder had none of the files (the new ones
are put in place one after the other, that which makes them a model last), or where a single one has changed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError, SaveError, quote
from refimpl.files import SAVING, lock, make_folder, remove_litter, save_error, sync_folder, write_new_file

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

_OLD, _NEW, _NOW = "old", "new", "now"

# What systems answer where there are no links, or none to the files of others.
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)

# A larger file is not compared with the one that it replaces.
_COMPARED_BYTES = 1 << 24

_Owns = Callable[[str], bool]


class NewFiles:
    """The files that are to be in the folder; `write` last that without which the others are of no use.

    Attributes: `folder`, and `in_place`: whether the step has been made.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.in_place = False
        self._work = folder / SAVING
        self._names: list[str] = []
        _make(self._work)
        _make(self._work / _NEW)

    def reserve(self, count: int) -> None:
        """Raises: SaveError when the disk has no room for so many bytes."""
        total, _, free = shutil.disk_usage(self.folder)
        if total and free < count:  # some network file systems say 0 for "unknown"
            raise SaveError(
                "there is not enough room on the disk",
                where=self.folder,
                found=f"{free:,} bytes",
                allowed=f"{count:,} bytes; while files are replaced, old and new ones are there",
            )

    def write(self, name: str, chunks: Iterable[Any]) -> None:
        """Write a file, from objects with a contiguous buffer."""
        write_new_file(self._work / _NEW / name, chunks)
        self._names.append(name)
        remove_litter(self.folder / name)

    def put_in_place(self, owns: _Owns) -> None:
        """Exchange the files of the set for those that were written."""
        new, work, folder = self._work / _NEW, self._work, self.folder
        present = _present(folder, lambda name: owns(name) or name in self._names)
        names = [name for name in self._names if not (name in present and self._is_unchanged(name))]
        gone = present - set(self._names)
        sync_folder(new)
        if not present:
            self._install(names)
        elif len(names) == 1 and not gone:
            os.replace(new / names[0], folder / names[0])
            self.in_place = True
        elif names or gone:
            self._prepare_links(present & {*names, *gone}, {*names, *gone})
            os.symlink(_NEW, work / "next")
            os.replace(work / "next", work / _NOW)
            self.in_place = True
            sync_folder(work)
        sync_folder(folder)

    def _is_unchanged(self, name: str) -> bool:
        old, new = self.folder / name, self._work / _NEW / name
        sizes = {os.stat(path).st_size for path in (old, new)}
        return len(sizes) == 1 and max(sizes) <= _COMPARED_BYTES and old.read_bytes() == new.read_bytes()

    def _install(self, names: list[str]) -> None:
        """Into a folder that has none of them: one after the other, and all back if one fails."""
        try:
            for name in names:
                if name == names[-1]:
                    sync_folder(self.folder)
                os.replace(self._work / _NEW / name, self.folder / name)
        except BaseException:
            for name in reversed(names):
                with contextlib.suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)
            raise
        self.in_place = True

    def _prepare_links(self, present: set[str], names: set[str]) -> None:
        """Let `names` be found through `now`, which leads to the old files."""
        work, folder = self._work, self.folder
        _make(work / _OLD)
        try:
            if fcntl is None:
                raise OSError(errno.ENOTSUP, "not on this system")
            for name in sorted(present):
                os.link(folder / name, work / _OLD / name)
            os.symlink(_OLD, work / _NOW)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise save_error(
                "the files here cannot be replaced in one step: the file system allows no links to them",
                folder,
                error,
                hint="Save into a new folder.",
            ) from error
        for path in (work / _OLD, work, folder):
            sync_folder(path)
        for name in sorted(names):
            if name not in present:
                os.symlink(_through_now(name), folder / name)
                continue
            os.symlink(_through_now(name), work / "link")
            os.replace(work / "link", folder / name)
        sync_folder(folder)


@contextmanager
def replaced_files(folder: str | os.PathLike[str], owns: _Owns) -> Iterator[NewFiles]:
    """Files written inside the `with` block are put into `folder` together at its end; it is made if need be.

    owns: whether a name is one of the set. Files of such names that are not written again are removed.
    A symbolic link in place of the folder is followed, once.
    Raises: SaveError (attribute `saved`: whether the new files are in place nevertheless), also for a link or a
        folder where a file of the set should be; and what the block raises, after which nothing has changed.
    """
    path, made = _existing(folder)
    try:
        with _locked(path):
            yield from _replace(path, owns)
    except BaseException:
        _remove_made(made)
        raise


def _replace(path: Path, owns: _Owns) -> Iterator[NewFiles]:
    new = None
    try:
        _settle(path)
        _present(path, owns)  # what cannot be replaced is seen before anything is written
        new = NewFiles(path)
        yield new
        new.put_in_place(owns)
        _settle(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            _settle(path)
        saved = new is not None and new.in_place
        if isinstance(error, OSError) and not isinstance(error, RefimplError):
            raise save_error("the files cannot be written", path, error, saved=saved) from error
        raise


def finish_interrupted(folder: Path) -> None:
    """Tidy up after a process that was killed while it replaced files here.  Raises: SaveError."""
    with _locked(folder):
        try:
            _settle(folder)
        except OSError as error:
            if isinstance(error, RefimplError):
                raise
            raise save_error("what an interrupted save left cannot be removed", folder, error) from error


def _existing(folder: str | os.PathLike[str]) -> tuple[Path, list[Path]]:
    """The folder, which is made if need be, and which folders were made for that, the innermost first."""
    if not os.fspath(folder):  # pathlib would take it for the current folder
        raise SaveError("the name of the folder is empty")
    given = Path(folder).absolute()
    made: list[Path] = []
    try:
        for path in (*reversed(given.parents), given):
            if not os.path.lexists(path):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path)
                    made.insert(0, path)
        return Path(os.path.realpath(make_folder(given))), made
    except (OSError, ValueError) as error:
        _remove_made(made)
        if isinstance(error, RefimplError):
            raise
        raise save_error("the folder cannot be made", folder, error) from error


def _remove_made(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise save_error("the folder cannot be opened", folder, error) from error
    try:
        if lock(handle) is False:
            raise SaveError("another save into this folder is under way", where=folder)
        yield
    finally:
        with contextlib.suppress(OSError):  # also for a copy that a forked process may hold
            fcntl.flock(handle, fcntl.LOCK_UN)
        with contextlib.suppress(OSError):
            os.close(handle)


def _settle(folder: Path) -> None:
    """Step 4: every link through `now` becomes the file that it leads to.  Raises: OSError."""
    work = folder / SAVING
    if _kind(work) is None:
        return
    side = _side(work)
    links = [name for name in os.listdir(folder) if _link(folder / name) == _through_now(name)]
    for name in links:
        if _kind(side / name) == stat.S_IFREG:
            os.replace(side / name, folder / name)
        else:
            os.unlink(folder / name)
    if links:
        sync_folder(folder)
    _remove(work)
    sync_folder(folder)


def _remove(work: Path) -> None:
    """Remove the working folder with what is in it.

    What cannot go yet stays for the next time: NFS keeps a file that a process has open under another name.
    """
    for part in (work / _OLD, work / _NEW, work):
        if _kind(part) == stat.S_IFDIR:
            for name in os.listdir(part):
                if _kind(part / name) != stat.S_IFDIR:
                    os.unlink(part / name)
            try:
                os.rmdir(part)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                    raise


def _side(work: Path) -> Path:
    """The folder that `now` leads to.  Raises: SaveError for what none of our processes has left."""
    found = (_link(work / _NOW) or _OLD) if _kind(work) == stat.S_IFDIR else ""
    if found not in (_OLD, _NEW) or _kind(work / found) not in (None, stat.S_IFDIR):
        raise SaveError(
            "there is something in the way that no interrupted save has left",
            where=work,
            hint="Look at it, and remove it.",
        )
    return work / found


def _make(folder: Path) -> None:
    if _kind(folder) != stat.S_IFDIR:
        os.mkdir(folder)


# The questions that pathlib answers with "no" when the disk fails; here it must not.


def _kind(path: Path) -> int | None:
    """What is there, one of stat.S_IF...; None: nothing."""
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except FileNotFoundError:
        return None


def _link(path: Path) -> str | None:
    """Where a symbolic link leads; None for anything else."""
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise


def _present(folder: Path, owns: _Owns) -> set[str]:
    """The files of the set that are there.  Raises: SaveError for anything but a file."""
    present = {name for name in os.listdir(folder) if owns(name)}
    for name in sorted(present):
        if _kind(folder / name) != stat.S_IFREG:
            link = _link(folder / name)
            raise SaveError(
                "a symbolic link, or something else that is no file, is in the place of a file",
                where=folder / name,
                found=None if link is None else f"a link to {quote(link)}",
                hint="Remove it, or save into another folder.",
            )
    return present


def _through_now(name: str) -> str:
    return f"{SAVING}/{_NOW}/{name}"
