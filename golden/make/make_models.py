"""Golden vectors of whole models: tiny random GPT-NeoX and GPT-NeoX-Japanese models, run by transformers.

`python golden/make/make_models.py [--only NAME ...]` writes `golden/models/FAMILY/NAME/` and
`golden/vectors/FAMILY/NAME/*.safetensors`.  A NAME is FAMILY/MODEL, or FAMILY/errors for calls and folders that are
refused; gpt_neox_japanese/embedded means the trained model that ships inside the package, which is skipped where its
weights are not there.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import call_cases
import cases
import generation_cases
import oracle
import rope_cases
import tiny_gpt_neox
import tiny_gpt_neox_japanese
import torch
from common import COMMAND, GOLDEN
from families import JAPANESE, NEOX
from make_embedded import EMBEDDED, make_embedded
from make_errors import make_errors
from maker import Maker
from tiny_models import build

#: The models of each family, with what they share.
SUITES = (
    (JAPANESE, tiny_gpt_neox_japanese.MODELS, tiny_gpt_neox_japanese.SHARED),
    (NEOX, tiny_gpt_neox.MODELS, tiny_gpt_neox.SHARED),
)

GROUPS: dict[str, Callable[[Maker], None]] = {
    function.__name__: function
    for function in (
        cases.forward, cases.outputs, cases.loss, cases.padding, cases.positions, cases.embeds, cases.cache,
        cases.mask4d, cases.keep, cases.long, cases.layers, cases.stored_head, cases.width,
        call_cases.arguments, call_cases.masks,
        generation_cases.beyond, generation_cases.greedy, generation_cases.hole,
        generation_cases.unmasked, generation_cases.by_config, generation_cases.tie,
        rope_cases.short, rope_cases.growing, rope_cases.positions_beyond, rope_cases.spelt,
    )
}  # fmt: skip


def make_models(golden: Path = GOLDEN, only: list[str] | None = None, embedded: Path = EMBEDDED) -> None:
    oracle.be_reproducible()
    torch.set_grad_enabled(False)
    for family, models, shared in SUITES:
        for name, tiny in models.items():
            if only and f"{family.name}/{name}" not in only:
                continue
            folder = family.model_folder(name)
            model = build(family, name, tiny, shared, golden / folder)
            shutil.rmtree(golden / family.vector_folder(name), ignore_errors=True)
            features, required = tiny.features, not tiny.pickled
            make = Maker(name, model, folder, golden, features, tiny.lengths, tiny.source, required)
            for group in tiny.groups:
                GROUPS[group](make)
        if not only or f"{family.name}/errors" in only:
            make_errors(golden, family, shared)
    if not only or f"{JAPANESE.name}/embedded" in only:
        if (embedded / "model.safetensors").is_file():
            make_embedded(golden, embedded)
        else:
            print(f"no model in {embedded}: its cases are left as they are")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="make these alone")
    parser.add_argument(
        "--golden", type=Path, default=GOLDEN, help="where to write (default: this folder's parent)"
    )
    parser.add_argument("--embedded", type=Path, default=EMBEDDED, help="folder of the trained model")
    given = parser.parse_args()
    make_models(given.golden, given.only, given.embedded)
    print(f"done; {COMMAND} also makes the rest and the manifest")


if __name__ == "__main__":
    main()
