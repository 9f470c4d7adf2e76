"""Opens files that were made to take all memory, in a process that may have 512 MB of it.

`python -m tests.refimpl.checkpoints.feed_bombs FOLDER` prints the errors as JSON; running out of memory ends it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from refimpl.checkpoints.torch_file import TorchFile
from refimpl.errors import RefimplError
from tests.fuzz.harness import run
from tests.refimpl.checkpoints.torch_files import (
    dictionary,
    number,
    pickle_of,
    storage,
    tensor,
    text,
    torch_file,
    tuple_of,
)

MEMORY = 512 << 20
FUZZED = 2000

#: data.pkl without its end; each stops at a limit of the reader long before memory does.
PICKLES: dict[str, Callable[[], bytes]] = {
    "a huge place in the memo, in nine bytes": lambda: b"}r\xff\xff\xff\xff" + b"}.",
    "a huge text": lambda: b"X\xff\xff\xff\xff",
    "a text of 60 MB": lambda: b"X" + (60 << 20).to_bytes(4, "little") + bytes(60 << 20),
    "BINUNICODE8": lambda: b"\x8d" + (1 << 40).to_bytes(8, "little"),
    "BYTEARRAY8": lambda: b"\x96" + (8 << 30).to_bytes(8, "little"),
    "a huge frame": lambda: b"\x95" + b"\xff" * 8,
    "dictionaries in the memo": lambda: (b"(" + b"}\x94" * 80_000 + b"t") * 12,
    "small texts": lambda: (b"(" + b"\x8c\2\xc4\x80" * 90_000 + b"t") * 30,
    "entries": lambda: b"}" + b"".join(
        b"(" + b"".join(b"\x8c\6%06d" % entry + b"J\1\2\3\4" for entry in range(first, first + 1000)) + b"u"
        for first in range(0, 800_000, 1000)
    ),
    "the memo": lambda: b"N" + b"".join(b"r" + place.to_bytes(4, "little") for place in range(1_100_000)),
    "marks": lambda: b"(" * 1_000_000,
    "tuples in tuples": lambda: b")" + b"\x85" * 1_000_000,
    "the same value over and over": lambda: b"Nq\0" + b"(h\0h\0h\0t" * 1_000_000,
    "a key of tuples, 200,000 deep": lambda: b"})" + b"\x85" * 200_000 + b"Ns",
    "views of one number": lambda: dictionary(
        {f"w{n}": tensor(storage("FloatStorage", "0", 1), 0, (1 << 38, n), (0, 0)) for n in range(1, 5)}
    ),
    "a storage that is not there": lambda: tuple_of(text("storage"), number(1 << 62)),
}  # fmt: skip


def main(folder: Path) -> None:
    from tests.fuzz.read_torch import READERS

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    path, errors = folder / "pytorch_model.bin", {}
    for name, make in PICKLES.items():
        path.write_bytes(torch_file(pickle_of(make()), {"0": bytes(4)}))
        try:
            TorchFile(path)
        except RefimplError as error:
            errors[name] = type(error).__name__
    tallies = [run(reader, 0, FUZZED) for reader in READERS]
    fuzzed = sum(tally.accepted + tally.refused for tally in tallies)
    print(json.dumps({"limit": MEMORY, "bombs": errors, "fuzzed": fuzzed}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
