"""Make every golden vector again, and then the manifest: `python golden/make/make_all.py`.

Each maker runs in a process of its own, one thread, fixed seeds.  On one machine the result is the same
byte for byte; another CPU may differ in the last bits, far below every tolerance.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MAKERS = (
    "make_ops.py",
    "make_models.py",
    "make_tokenizer.py",
    "make_neox_tokenizer.py",
    "make_manifest.py",
)


def main() -> None:
    for maker in MAKERS:
        print(f"--- {maker}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / maker)], check=True)


if __name__ == "__main__":
    main()
