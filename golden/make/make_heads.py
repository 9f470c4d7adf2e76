"""Golden vectors of GPT-NeoX with a task head: question answering, sequence and token classification.

`python golden/make/make_heads.py` writes `golden/models/gpt_neox_heads/NAME/` and
`golden/vectors/gpt_neox_heads/NAME/*.safetensors`.
"""

from __future__ import annotations

import argparse
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
from common import COMMAND, GOLDEN, numeric_outputs, significant, write_case_file
from head_models import FAMILY, MODELS, PAD, QUESTION, SEQUENCE, TOKEN, Head, build, float64_twin, run

SPEC = "docs/spec/heads.md"
SOURCE = {
    "kind": "independent",
    "library": "transformers",
    "version": "5.23.0",
    "address": "https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers/models/gpt_neox",
    "command": "python golden/make/make_heads.py",
    "how": "eager attention on CPU, one thread; float32 as the library computes it; float64 is the same code "
    "on a double model, with rotary tables, attention weights and losses in float64 (the library rounds)",
}
REFUSED = {**SOURCE, "how": "the library raises an error too"}

FEATURES = {
    QUESTION: "question-answering",
    SEQUENCE: "sequence-classification",
    TOKEN: "token-classification",
}

Arrays = dict[str, np.ndarray]


class Maker:
    """Writes the cases of one model: runs it in both precisions and stores what came out."""

    def __init__(self, name: str, head: Head, golden: Path):
        self.name, self.golden = name, golden
        self.folder = f"models/{FAMILY}/{name}"
        self.model = build(name, head, golden / self.folder)
        self.exact = float64_twin(self.model)
        self.numbers = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + 1))
        self.feature = FEATURES[head.architecture]

    def ids(self, batch: int, seq: int) -> np.ndarray:
        """Ids that are neither special nor any model's padding."""
        return self.numbers.integers(8, self.model.config.vocab_size, size=(batch, seq), dtype=np.int64)

    def normal(self, *shape: int) -> np.ndarray:
        return self.numbers.standard_normal(shape).astype(np.float32)

    def write(
        self,
        case: str,
        title: str,
        inputs: Arrays,
        wanted: tuple[str, ...] = ("logits",),
        *,
        features: tuple[str, ...] = (),
        real: np.ndarray | None = None,
        **more: Any,
    ) -> tuple[Arrays, Arrays]:
        """One case whose outputs are numbers; `wanted` are prefixes of output names."""
        results = run(self.exact, inputs), run(self.model, inputs)
        exact, single = ({n: a for n, a in r.items() if n.startswith(wanted)} for r in results)
        file = self.file(case)
        tensors, expected, tolerance = numeric_outputs(file, exact, single, real)
        worst = max(entry["measured_float32"] for entry in tolerance.values())
        assert worst < 1e-5, f"{self.name}/{case}: the two precisions did not compute the same"
        if real is not None:
            tensors["real"] = real
            expected["real_tokens"] = "real"
        more |= {"expected": expected, "tolerance": tolerance, "source": SOURCE}
        more["expect"] = {"kind": "return" if real is None else "ignore_rows"}
        self.save(case, title, inputs, tensors, features, more)
        return results

    def refuse(self, case: str, title: str, inputs: Arrays) -> None:
        """One call that must be refused."""
        try:
            run(self.model, inputs)
        except (ValueError, IndexError, RuntimeError):
            more = {"expect": {"kind": "error", "error": "input"}, "source": REFUSED}
            self.save(f"error-{case}", title, inputs, {}, ("errors",), more)
            return
        raise AssertionError(f"{self.name}: the library accepts what the case {case} says is refused")

    def file(self, case: str) -> str:
        return f"vectors/{FAMILY}/{self.name}/{case}.safetensors"

    def save(
        self,
        case: str,
        title: str,
        inputs: Arrays,
        tensors: Arrays,
        features: tuple[str, ...],
        more: dict[str, Any],
    ) -> None:
        file = self.file(case)
        entry = {
            "id": f"{FAMILY}/{self.name}/{case}",
            "title": title,
            "level": "model",
            "operation": "model",
            "features": sorted({self.feature, *features}),
            "required": True,
            "spec": f"{SPEC}#{self.feature}",
            "model": self.folder,
            "inputs": {"file": file, "tensors": {name: name for name in inputs}, "arguments": {}},
            **more,
        }
        write_case_file(self.golden / file, {**inputs, **tensors}, [entry])


def padded(ids: np.ndarray, amounts: list[int], side: str, pad: int = PAD) -> Arrays:
    """`ids` with the first or last `amounts[row]` places of each row made padding, and the mask."""
    mask = np.ones_like(ids)
    for row, amount in enumerate(amounts):
        places = slice(0, amount) if side == "left" else slice(ids.shape[1] - amount, None)
        ids[row, places], mask[row, places] = pad, 0
    return {"input_ids": ids, "attention_mask": mask}


# --- question answering --------------------------------------------------------------------------

SPAN = ("start_logits", "end_logits")


def question(make: Maker) -> None:
    make.write("forward", "Start and end logits of three rows", {"input_ids": make.ids(3, 7)}, SPAN)
    make.write(
        "outputs", "Beside the logits all hidden states and attentions", {"input_ids": make.ids(2, 5)},
        (*SPAN, "hidden_states.", "attentions."), features=("hidden-states", "attentions"),
    )  # fmt: skip
    for side in ("left", "right"):
        inputs = padded(make.ids(3, 6), [0, 2, 4], side)
        real = inputs["attention_mask"] == 1
        make.write(f"{side}-padding", f"Padding on the {side}", inputs, SPAN,
                   features=(f"{side}-padding",), real=real)  # fmt: skip
    inputs = {"inputs_embeds": make.normal(2, 5, make.model.config.hidden_size)}
    make.write("inputs-embeds", "inputs_embeds instead of ids", inputs, SPAN, features=("inputs-embeds",))
    ids = make.ids(2, 5)
    inputs = {"input_ids": ids, "token_type_ids": np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])}
    title = "token_type_ids are taken and have no effect"
    exact, _ = make.write("token-type-ids", title, inputs, SPAN, features=("token-type-ids",))
    assert np.array_equal(exact["start_logits"], run(make.exact, {"input_ids": ids})["start_logits"])
    question_losses(make)


def question_losses(make: Maker) -> None:
    ids = make.ids(3, 7)
    loss = ("loss", *SPAN)
    places = {"start_positions": np.array([1, 0, 6]), "end_positions": np.array([4, 0, 6])}
    title = "The mean of two cross entropies, over the places of start and of end"
    first, _ = make.write("loss", title, {"input_ids": ids, **places}, loss, features=("loss",))
    columns = {name: array[:, None] for name, array in places.items()}
    title = "Positions of shape [batch, 1]"
    second, _ = make.write("loss-column", title, {"input_ids": ids, **columns}, loss, features=("loss",))
    assert first["loss"] == second["loss"]
    places = {"start_positions": np.array([2, 7, 3]), "end_positions": np.array([90, 5, 7])}
    title = "Positions at or beyond the length are left out of the mean, each end by itself"
    beyond, _ = make.write("loss-beyond", title, {"input_ids": ids, **places}, loss, features=("loss",))
    places = {"start_positions": np.array([2, -1, 3]), "end_positions": np.array([4, 5, -100])}
    title = "Negative positions count as 0; here -100 has no meaning of its own"
    make.write("loss-negative", title, {"input_ids": ids, **places}, loss, features=("loss",))
    assert abs(first["loss"] - beyond["loss"]) > 1e-3
    inputs = padded(make.ids(3, 6), [0, 2, 4], "right")
    places = {"start_positions": np.array([1, 3, 0]), "end_positions": np.array([5, 3, 1])}
    title = "With padding: the loss is a softmax over all places, padding included"
    make.write("loss-right-padding", title, inputs | places, ("loss",), features=("loss", "right-padding"))
    whole = np.array([1, 0, 6])
    wrong = {"start_positions": np.array([1, 0]), "end_positions": whole}
    make.refuse("positions-of-wrong-length", "Fewer positions than rows", {"input_ids": ids, **wrong})
    wrong = {"start_positions": np.array([1.0, 0.0, 6.0], dtype=np.float32), "end_positions": whole}
    make.refuse("positions-not-whole", "Positions that are not whole numbers", {"input_ids": ids, **wrong})


# --- sequence classification ---------------------------------------------------------------------


def two_labels(make: Maker) -> None:
    title = "The logits of the last token of each row"
    make.write("forward", title, {"input_ids": make.ids(3, 6)})
    title = "Beside the logits all hidden states, attentions, keys and values"
    wanted = ("logits", "hidden_states.", "attentions.", "past_key_values.")
    features = ("hidden-states", "attentions", "cache")
    make.write("outputs", title, {"input_ids": make.ids(2, 5)}, wanted, features=features)
    last_token(make)
    label = np.array([1, 0, 1])
    ids = make.ids(3, 5)
    loss = ("loss", "logits")
    title = "Whole labels and no problem_type: cross entropy"
    make.write("loss-whole-labels", title, {"input_ids": ids, "labels": label}, loss, features=("loss",))
    title = "Labels of shape [batch, 1]"
    make.write("loss-column", title, {"input_ids": ids, "labels": label[:, None]}, loss, features=("loss",))
    title = "A row whose label is -100 is left out of the mean"
    ignored = {"input_ids": ids, "labels": np.array([1, -100, 0])}
    make.write("loss-ignored-row", title, ignored, loss, features=("loss",))
    title = "Labels that are not whole numbers and no problem_type: a yes or no for every label"
    inputs = {"input_ids": ids, "labels": np.array([[1, 0], [1, 1], [0, 0]], dtype=np.float32)}
    make.write("loss-real-labels", title, inputs, loss, features=("loss", "multi-label"))
    wrong = {"input_ids": ids, "labels": np.array([0, 2, 1])}
    make.refuse("label-too-large", "A label of num_labels", wrong)
    wrong = {"input_ids": ids, "labels": np.array([0, -1, 1])}
    make.refuse("label-negative", "A negative label other than -100", wrong)
    wrong = {"input_ids": ids, "labels": np.array([0, 1])}
    make.refuse("labels-of-wrong-length", "Fewer labels than rows", wrong)


def last_token(make: Maker) -> None:
    """Which token of a row is the last one."""
    inputs = padded(make.ids(3, 7), [0, 2, 5], "right")
    title = "Padding on the right: the last token that is not padding"
    write_with_mistakes(make, "right-padding", title, inputs, ("right-padding",))
    inputs = padded(make.ids(3, 7), [0, 2, 5], "left")
    make.write("left-padding", "Padding on the left", inputs, features=("left-padding",))
    mask = inputs["attention_mask"]
    inputs = {**inputs, "position_ids": np.where(mask == 1, np.cumsum(mask, axis=1) - 1, 1)}
    title = "Padding on the left, with position ids that count real tokens"
    make.write("left-padding-positions", title, inputs, features=("left-padding", "position-ids"))
    ids = make.ids(3, 6)
    ids[0, 2], ids[1, 4:], ids[2, [1, 5]] = PAD, PAD, PAD
    title = (
        "pad_token_id inside the text is passed over, at its end it counts as padding; the mask has no say"
    )
    write_with_mistakes(make, "padding-token-in-text", title, {"input_ids": ids}, ())
    ids = make.ids(2, 4)
    ids[1] = PAD
    title = "A row of nothing but padding: its first place (here every place of it gives the same)"
    make.write("nothing-but-padding", title, {"input_ids": ids})
    size = make.model.config.hidden_size
    inputs = {
        "inputs_embeds": make.normal(2, 5, size),
        "attention_mask": np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
    }
    title = "inputs_embeds show no padding: the last place of each row, with a warning"
    features = ("inputs-embeds", "left-padding", "warning")
    make.write("inputs-embeds", title, inputs, features=features)


def write_with_mistakes(
    make: Maker, case: str, title: str, inputs: Arrays, features: tuple[str, ...]
) -> None:
    """A case that tells what the logits of other places would be."""
    full = run(make.exact, inputs)
    score = make.exact.score.weight.detach().numpy()
    places = full[f"hidden_states.{make.model.config.num_hidden_layers}"] @ score.T  # [batch, seq, labels]
    ids, rows = inputs["input_ids"], np.arange(len(inputs["input_ids"]))
    first_pad = np.where((ids == PAD).any(axis=1), (ids == PAD).argmax(axis=1), 0) - 1
    others = {
        "the last place of the row, padding or not": np.full(len(ids), -1),
        "the place before the first pad_token_id": first_pad,
    }
    largest = np.max(np.abs(full["logits"]))
    moved = {
        name: float(np.max(np.abs(places[rows, at] - full["logits"]))) / largest
        for name, at in others.items()
    }
    detects = {name: significant(size, 2) for name, size in moved.items() if size > 1e-9}
    make.write(case, title, inputs, features=features, detects=detects)


def five_labels(make: Maker) -> None:
    """A config without pad_token_id."""
    ids = make.ids(1, 6)
    ids[0, -1] = PAD
    title = "Without pad_token_id, and with one row: the last place, whatever its id"
    make.write("one-row", title, {"input_ids": ids}, features=("no-padding-token",))
    inputs = {"input_ids": ids, "labels": np.array([3])}
    title = "Cross entropy over five labels"
    make.write("loss", title, inputs, ("loss", "logits"), features=("loss", "no-padding-token"))
    title = "Two rows without pad_token_id: where a row ends cannot be known"
    make.refuse("two-rows", title, {"input_ids": make.ids(2, 5)})
    make.refuse("label-too-large", "A label of num_labels", {"input_ids": ids, "labels": np.array([5])})


def regression(make: Maker) -> None:
    inputs = padded(make.ids(3, 6), [0, 3, 1], "right")
    labels = make.normal(3)
    loss, features = ("loss", "logits"), ("loss", "regression", "right-padding")
    title = "One label and no problem_type: the mean of squared differences"
    first, _ = make.write("loss", title, inputs | {"labels": labels}, loss, features=features)
    title = "Labels of shape [batch, 1]"
    second, _ = make.write(
        "loss-column", title, inputs | {"labels": labels[:, None]}, loss, features=features
    )
    assert first["loss"] == second["loss"]
    whole = inputs | {"labels": np.array([2, -1, 0])}
    make.write("loss-whole-labels", "Labels that happen to be whole numbers", whole, loss, features=features)
    inputs = {"input_ids": make.ids(1, 4), "labels": make.normal(1)}
    make.write("loss-one-row", "One row", inputs, loss, features=("loss", "regression"))


def regression_three(make: Maker) -> None:
    inputs = padded(make.ids(3, 6), [0, 3, 1], "right", pad=7) | {"labels": make.normal(3, 3)}
    title = "problem_type regression with three labels; pad_token_id is 7"
    features = ("loss", "regression", "right-padding")
    make.write("loss", title, inputs, ("loss", "logits"), features=features)
    title = "With pad_token_id 7 the id 0 is a token like any other"
    ids = make.ids(2, 5)
    ids[0, -1], ids[1, -2:] = 0, 7
    make.write("zero-is-a-token", title, {"input_ids": ids})


def multi_label(make: Maker) -> None:
    inputs = padded(make.ids(3, 6), [2, 0, 1], "left")
    labels = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=np.float32)
    loss, features = ("loss", "logits"), ("loss", "multi-label", "left-padding")
    title = "problem_type multi_label_classification: the mean over rows and labels"
    make.write("loss", title, inputs | {"labels": labels}, loss, features=features)
    soft = np.array([[0.9, 0.1, 0, 0.5], [0, 0.25, 0, 0], [1, 0.75, 0.6, 0]], dtype=np.float32)
    title = "Labels between 0 and 1"
    make.write("loss-soft-labels", title, inputs | {"labels": soft}, loss, features=features)
    short = inputs | {"labels": labels[:, :3].copy()}
    make.refuse("labels-of-wrong-shape", "Three labels where the model has four", short)


# --- token classification ------------------------------------------------------------------------


def tokens(make: Maker) -> None:
    make.write("forward", "The logits of every token", {"input_ids": make.ids(3, 6)})
    make.write(
        "outputs", "Beside the logits all hidden states and attentions", {"input_ids": make.ids(2, 5)},
        ("logits", "hidden_states.", "attentions."), features=("hidden-states", "attentions"),
    )  # fmt: skip
    inputs = padded(make.ids(3, 6), [0, 2, 4], "right")
    mask = inputs["attention_mask"]
    make.write("right-padding", "Padding on the right", inputs, features=("right-padding",), real=mask == 1)
    ids = make.ids(2, 5)
    typed = {"input_ids": ids, "token_type_ids": np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])}
    title = "token_type_ids are taken and have no effect"
    exact, _ = make.write("token-type-ids", title, typed, features=("token-type-ids",))
    assert np.array_equal(exact["logits"], run(make.exact, {"input_ids": ids})["logits"])
    labels = make.numbers.integers(0, 5, size=mask.shape)
    title = "Cross entropy over all tokens; no label is shifted"
    plain = {"input_ids": make.ids(3, 6), "labels": labels}
    make.write("loss", title, plain, ("loss", "logits"), features=("loss",))
    title = "Labels of -100 at padding and at two more places are left out of the mean"
    labels = np.where(mask == 1, labels, -100)
    labels[0, :2] = -100
    make.write(
        "loss-ignored", title, inputs | {"labels": labels}, ("loss",), features=("loss", "right-padding")
    )
    wrong = plain | {"labels": np.where(mask == 1, 0, 5)}
    make.refuse("label-too-large", "A label of num_labels", wrong)
    wrong = plain | {"labels": plain["labels"][:, :-1].copy()}
    make.refuse("labels-of-wrong-shape", "Fewer labels than tokens", wrong)


GROUPS: dict[str, Callable[[Maker], None]] = {
    "question": question,
    "sequence-two-labels": two_labels,
    "sequence-five-labels": five_labels,
    "sequence-regression": regression,
    "sequence-regression-three": regression_three,
    "sequence-multi-label": multi_label,
    "token-five-labels": tokens,
}


def make_heads(golden: Path = GOLDEN) -> None:
    oracle.be_reproducible()
    for base in ("models", "vectors"):
        shutil.rmtree(golden / base / FAMILY, ignore_errors=True)
    for name, head in MODELS.items():
        GROUPS[name](Maker(name, head, golden))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--golden", type=Path, default=GOLDEN, help="where to write (default: this folder's parent)"
    )
    make_heads(parser.parse_args().golden)
    print(f"done; {COMMAND} also makes the rest and the manifest")


if __name__ == "__main__":
    main()
