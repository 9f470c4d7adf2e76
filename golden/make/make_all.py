"""Make every golden vector again, and then the manifest: `python golden/make/make_all.py [--v4 PYTHON]`.

Each maker runs in a process of its own, one thread, fixed seeds.  On one machine the result is the same
byte for byte; another CPU may differ in the last bits, far below every tolerance.  The cases of `make_v4.py` and
`make_sentencepiece.py` need an older transformers: they are made again only with `--v4`, the Python of an environment
that has it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BEFORE = (
    *("make_ops.py", "make_processors.py", "make_models.py", "make_heads.py", "make_quantized.py"),
    "make_generation.py",
)
OLDER = ("make_v4.py", "make_sentencepiece.py")
AFTER = (
    *("make_tokenizer.py", "make_neox_tokenizer.py", "make_tokenizer_mistakes.py"),
    "make_manifest.py",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--v4", metavar="PYTHON", help="Python of the environment of requirements-v4.txt")
    older = parser.parse_args().v4
    runs = [(sys.executable, maker) for maker in BEFORE]
    runs += [(older, maker) for maker in OLDER] if older else []
    for python, maker in runs + [(sys.executable, maker) for maker in AFTER]:
        print(f"--- {maker}", flush=True)
        subprocess.run([python, str(Path(__file__).parent / maker)], check=True)


if __name__ == "__main__":
    main()
