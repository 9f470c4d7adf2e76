"""How far float32 is from float64, layer by layer: `python -m tests.numerics` prints the tables of docs/numerics.md.

With --transformers each table has a column for that library, computed from the same weights (needs the packages of
`make conformance`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import refimpl
from tests.tiny import save_tiny, tiny_neox

Outputs = dict[str, np.ndarray]

#: What the embedded model reads: six beginnings, and one text as long as its context, made of all of them.
TEXTS = (
    "吾輩は猫である。名前はまだ無い。",
    "むかしむかし、あるところに",
    "雨が降って来た。私は",
    "「どうしたんです」と彼は",
    "その夜、",
    "東京の町を歩きながら、僕は考えた。",
)


@dataclass(frozen=True)
class Noise:
    """How far one output is from the right one; both figures are relative."""

    #: The largest difference, by the largest value.
    largest: float
    #: The root mean square of the differences, by that of the values.
    typical: float


def outputs(model: Any, ids: np.ndarray) -> Outputs:
    """What a language model gives for `ids` [batch, seq], layer by layer; the last hidden state is the normed one."""
    out = model(ids, output_hidden_states=True, output_attentions=True)
    named = {f"hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
    named |= {f"attentions.{i}": weights for i, weights in enumerate(out.attentions)}
    return {name: refimpl.to_numpy(array) for name, array in {**named, "logits": out.logits}.items()}


def noise(found: list[Outputs], right: list[Outputs]) -> dict[str, Noise]:
    """The noise of each output over some texts: the largest of any, and the mean of the typical ones."""
    names = right[0]
    result = {}
    for name in names:
        largest, typical = [], []
        for a, b in zip(found, right, strict=True):
            difference, exact = a[name].astype(np.float64) - b[name], b[name].astype(np.float64)
            largest.append(np.abs(difference).max() / np.abs(exact).max())
            typical.append(np.sqrt((difference**2).mean() / (exact**2).mean()))
        result[name] = Noise(float(max(largest)), float(np.mean(typical)))
    return result


# --- the models ----------------------------------------------------------------------------------


def embedded(backend: str, dtype: str) -> Any:
    return refimpl.AutoModelForCausalLM.from_pretrained(
        refimpl.embedded_model_path(), backend=backend, dtype=dtype
    )


def embedded_texts() -> list[np.ndarray]:
    """[1, seq] each; the last one fills the context."""
    tokenizer = refimpl.AutoTokenizer.from_pretrained(refimpl.embedded_model_path())
    texts = [np.array([ids]) for ids in tokenizer(list(TEXTS))["input_ids"]]
    length = refimpl.AutoConfig.from_pretrained(refimpl.embedded_model_path()).max_position_embeddings
    return [*texts, np.resize(np.concatenate(texts, axis=1), (1, length))]


def tiny(backend: str, dtype: str) -> Any:
    """3 layers of 24 dimensions, with large random weights."""
    model = tiny_neox(backend=backend)
    return model.double() if dtype == "float64" else model


def small(backend: str, dtype: str) -> Any:
    """6 layers of 512 dimensions, the sizes of Pythia-70m but for its vocabulary, with the usual random weights."""
    config = refimpl.GPTNeoXConfig(
        vocab_size=2000,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=2048,
    )
    model = refimpl.GPTNeoXForCausalLM(config, backend=backend)
    return model.double() if dtype == "float64" else model


def random_texts(vocab_size: int, lengths: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, vocab_size, (1, length)) for length in lengths]


#: name -> (the model on a backend in a dtype, what it reads)
MODELS: dict[str, tuple[Callable[[str, str], Any], Callable[[], list[np.ndarray]]]] = {
    "embedded": (embedded, embedded_texts),
    "tiny": (tiny, lambda: random_texts(40, (8, 16, 64))),
    "small": (small, lambda: random_texts(2000, (8, 32, 128))),
}


@cache
def measure(name: str, backend: str = "numpy") -> dict[str, Noise]:
    """float32 on a backend against float64 on NumPy, which is the definition."""
    make, texts = MODELS[name]
    single, exact = make(backend, "float32"), make("numpy", "float64")
    return noise([outputs(single, ids) for ids in texts()], [outputs(exact, ids) for ids in texts()])


# --- the tables ----------------------------------------------------------------------------------


def measure_transformers(name: str) -> dict[str, Noise]:
    """The same of transformers: its float32 against the same code in float64."""
    from tests.conformance.comparison import Call
    from tests.conformance.theirs import load_theirs, run_theirs

    make, texts = MODELS[name]
    with TemporaryDirectory() as folder:
        where = (
            refimpl.embedded_model_path()
            if name == "embedded"
            else save_tiny(Path(folder), make("numpy", "float32"))
        )
        model = load_theirs(where)
        single, exact = (
            [run_theirs(model, Call({"input_ids": ids}, np.ones(ids.shape, bool)), dtype) for ids in texts()]
            for dtype in ("float32", "float64")
        )
    wanted = outputs(make("numpy", "float32"), texts()[0])
    return noise(
        [{n: out[n] for n in wanted} for out in single], [{n: out[n] for n in wanted} for out in exact]
    )


def row(name: str, *figures: float) -> str:
    """A row of a table, as Markdown."""
    return " | ".join([f"| `{name}`", *(f"{figure:.1e}" for figure in figures)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.numerics", description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--transformers", action="store_true", help="measure that library too")
    options = parser.parse_args()
    for name in MODELS:
        ours = measure(name, options.backend)
        theirs = measure_transformers(name) if options.transformers else {}
        print(f"\n{name}\n\n| output | largest | typical |" + (" transformers |" if theirs else ""))
        print("|---|---|---|" + ("---|" if theirs else ""))
        for output, found in ours.items():
            more = (theirs[output].largest,) if theirs else ()
            print(row(output, found.largest, found.typical, *more))


if __name__ == "__main__":
    sys.exit(main())
