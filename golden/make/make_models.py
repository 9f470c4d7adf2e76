"""Golden vectors of whole models: tiny random GPT-NeoX-Japanese models, run by transformers.

`python golden/make/make_models.py [--only NAME ...]` writes `golden/models/gpt_neox_japanese/NAME/`
and `golden/vectors/gpt_neox_japanese/NAME/*.safetensors`.  The name `embedded` means the trained model
that ships inside the package; it is skipped where its weights are not there.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import oracle
import torch
from cases import GROUPS, Maker
from common import COMMAND, GOLDEN
from make_embedded import EMBEDDED, make_embedded
from make_errors import make_errors
from tiny_models import FAMILY, MODELS, build, model_folder


def make_models(golden: Path = GOLDEN, only: list[str] | None = None, embedded: Path = EMBEDDED) -> None:
    oracle.be_reproducible()
    torch.set_grad_enabled(False)
    for name, tiny in MODELS.items():
        if only and name not in only:
            continue
        model = build(name, tiny, golden / model_folder(name))
        shutil.rmtree(golden / "vectors" / FAMILY / name, ignore_errors=True)
        make = Maker(name, model, model_folder(name), golden, tiny.features, tiny.lengths)
        for group in tiny.groups:
            GROUPS[group](make)
    if not only or "errors" in only:
        make_errors(golden)
    if not only or "embedded" in only:
        if (embedded / "model.safetensors").is_file():
            make_embedded(golden, embedded)
        else:
            print(f"no model in {embedded}: its cases are left as they are")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", help=f"names of models, of: {', '.join([*MODELS, 'errors', 'embedded'])}"
    )
    parser.add_argument(
        "--golden", type=Path, default=GOLDEN, help="where to write (default: this folder's parent)"
    )
    parser.add_argument("--embedded", type=Path, default=EMBEDDED, help="folder of the trained model")
    given = parser.parse_args()
    make_models(given.golden, given.only, given.embedded)
    print(f"done; {COMMAND} also makes the rest and the manifest")


if __name__ == "__main__":
    main()
