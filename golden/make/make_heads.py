"""Golden vectors of GPT-NeoX with a task head: question answering, sequence and token classification.

`python golden/make/make_heads.py` writes `golden/models/gpt_neox_heads/NAME/` and
`golden/vectors/gpt_neox_heads/NAME/*.safetensors`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import oracle
import sequence_cases
from common import COMMAND, GOLDEN, write_case_file
from head_maker import SPEC, Maker, padded
from head_models import FAMILY, MODELS, build_headless, run

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


# --- token classification --------------------------------------------------------------------------


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
    "sequence-two-labels": sequence_cases.two_labels,
    "sequence-five-labels": sequence_cases.five_labels,
    "sequence-regression": sequence_cases.regression,
    "sequence-regression-three": sequence_cases.regression_three,
    "sequence-multi-label": sequence_cases.multi_label,
    "token-five-labels": tokens,
}


def missing_head(golden: Path) -> None:
    """A folder whose config names a head that its file does not hold."""
    folder = f"models/{FAMILY}/broken-missing-head"
    build_headless(golden / folder)
    file = f"vectors/{FAMILY}/broken-missing-head/error-load.safetensors"
    entry = {
        "id": f"{FAMILY}/broken-missing-head/error-load",
        "title": "architectures names a model with a head, and the file has no head",
        "level": "model",
        "operation": "load",
        "features": ["errors", "sequence-classification"],
        "required": True,
        "spec": f"{SPEC}#from-other-checkpoints",
        "model": folder,
        "inputs": {"file": file, "tensors": {}, "arguments": {}},
        "expect": {"kind": "error", "error": "checkpoint"},
        "source": {
            "kind": "analytic",
            "how": "follows from the rule that loading is strict; the library makes up a head, warns and goes on",
        },
    }
    write_case_file(golden / file, {}, [entry])


def make_heads(golden: Path = GOLDEN) -> None:
    oracle.be_reproducible()
    for base in ("models", "vectors"):
        shutil.rmtree(golden / base / FAMILY, ignore_errors=True)
    for name, head in MODELS.items():
        GROUPS[name](Maker(name, head, golden))
    missing_head(golden)


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
