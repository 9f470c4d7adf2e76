"""Feeds readers of files broken input: `python -m tests.fuzz tokenizer.json 4711` feeds one input again."""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.child import run_in_child
from tests.fuzz.harness import run
from tests.fuzz.readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("reader", nargs="?", choices=[*READERS, "all"], default="all")
    parser.add_argument("first", nargs="?", type=int, default=0, help="the number of the first input")
    parser.add_argument(
        "--count", type=int, help="how many inputs (default: one where `first` is given, else 100000)"
    )
    arguments = parser.parse_args()
    count = arguments.count or (1 if arguments.first else 100_000)
    chosen = READERS.values() if arguments.reader == "all" else [READERS[arguments.reader]]
    failed = False
    for reader in chosen:
        start = time.perf_counter()
        try:
            tally = (run_in_child if reader.native else run)(reader, arguments.first, count)
        except AssertionError as failure:
            print(failure, file=sys.stderr)
            failed = True
            continue
        seconds = time.perf_counter() - start
        print(
            f"{reader.name}: {tally.accepted} accepted, {tally.refused} refused, {seconds:.1f} s", flush=True
        )
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
