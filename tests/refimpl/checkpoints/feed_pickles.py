"""Reads malicious pickles in a process of its own that notices whatever Python does beside reading them.

`python -m tests.refimpl.checkpoints.feed_pickles FOLDER` prints, as JSON, how many were refused with which errors,
every event of `sys.addaudithook` that reading does not need, and what the folder holds in the end. Then it gives one
of them to Python's own machine, to show that an execution is noticed.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from refimpl.checkpoints.torch_file import TorchFile
from refimpl.checkpoints.torch_pickle import read_state_dict
from refimpl.checkpoints.torch_values import GLOBALS
from refimpl.errors import RefimplError
from tests.refimpl.checkpoints.malicious_pickles import everything, stdlib_callables
from tests.refimpl.checkpoints.torch_files import call, pickle_of, small_file, text, torch_file

#: Every so many is in a whole file; all others are given to the same reader as a pickle alone.
WHOLE = 10


class Guard:
    """Records every event of the interpreter while it is armed, but for reading the file itself."""

    def __init__(self, path: Path):
        self.path, self.armed = path, False
        self.events: list[str] = []
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "mmap.__new__" or (event == "open" and self.is_reading(*arguments)):
            return
        self.events.append(f"{event} {arguments!r:.200}")

    def is_reading(self, path: Any, mode: Any, flags: int) -> bool:
        """Whether the file is read, or one of the folders on the way to it is opened."""
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return False
        return isinstance(path, int) or os.fspath(path) in (
            str(self.path),
            self.path.name,
            str(self.path.parent),
        )


def main(folder: Path) -> None:
    path, canary = folder / "pytorch_model.bin", folder / "canary"
    guard = Guard(path)
    path.write_bytes(small_file())
    assert len(TorchFile(path)) == 2  # imports what is imported at first use
    classes: Counter[str] = Counter()
    accepted, files = [], 0
    for number, (name, content) in enumerate(everything(str(canary))):
        whole = number % WHOLE == 0
        if whole:
            path.write_bytes(torch_file(content, {"0": bytes(24)}))
            files += 1
        guard.armed = True
        try:
            TorchFile(path) if whole else read_state_dict(content, path)
            accepted.append(name)
        except RefimplError as error:
            classes[type(error).__name__] += 1
        finally:
            guard.armed = False
    events, guard.events = guard.events, []
    left = sorted(found.name for found in folder.iterdir())
    guard.armed = True
    pickle.loads(pickle_of(call("builtins", "exec", text(f"open({str(canary)!r}, 'w').close()"))))
    guard.armed = False
    print(
        json.dumps(
            {
                "callables": len(stdlib_callables()),
                "allowed": sorted(set(stdlib_callables()) & set(GLOBALS)),
                "refused": classes,
                "files": files,
                "accepted": accepted,
                "events": events,
                "left": left,
                "control": {"events": guard.events, "canary": canary.exists()},
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
