"""The groups of cases of sequence classification."""

from __future__ import annotations

import numpy as np
from common import significant
from head_maker import Arrays, Maker, padded
from head_models import PAD, run


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
    hard_last_tokens(make)


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


def hard_last_tokens(make: Maker) -> None:
    """Which token of a row is the last one, where the ids and something else could be asked."""
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]])
    ids = make.ids(3, 6)
    ids[1, 4:] = PAD
    inputs = {"input_ids": ids, "attention_mask": mask}
    title = "The mask says otherwise than the ids: the last token is the last that is not pad_token_id, seen or not"
    by_mask = 5 - mask[:, ::-1].argmax(axis=1)
    more = {"the last place that the mask shows": by_mask}
    write_with_mistakes(make, "mask-against-ids", title, inputs, ("mask-against-ids",), more)
    first = run(make.model, {"input_ids": make.ids(2, 3)})
    cached = {name: array for name, array in first.items() if name.startswith("past_key_values.")}
    inputs = {"input_ids": np.full((2, 3), PAD), **cached}
    title = "Nothing but padding after a text in the cache: the first place of the call"
    features = ("cache", "given-cache")
    write_with_mistakes(make, "nothing-but-padding-cached", title, inputs, features, operation="tuple_cache")
    size = make.model.config.hidden_size
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {"inputs_embeds": make.normal(2, 5, size), "attention_mask": mask}
    title = "inputs_embeds with padding on the right: the last place of each row all the same, with a warning"
    make.write(
        "inputs-embeds-right-padding", title, inputs, features=("inputs-embeds", "right-padding", "warning")
    )


def write_with_mistakes(
    make: Maker,
    case: str,
    title: str,
    inputs: Arrays,
    features: tuple[str, ...],
    more: dict[str, np.ndarray] | None = None,
    operation: str = "model",
) -> None:
    """A case that tells what the logits of other places would be, and of those in `more`."""
    full = run(make.exact, inputs)
    score = make.exact.score.weight.detach().numpy()
    places = full[f"hidden_states.{make.model.config.num_hidden_layers}"] @ score.T  # [batch, seq, labels]
    ids, rows = inputs["input_ids"], np.arange(len(inputs["input_ids"]))
    first_pad = np.where((ids == PAD).any(axis=1), (ids == PAD).argmax(axis=1), 0) - 1
    others = {
        "the last place of the row, padding or not": np.full(len(ids), -1),
        "the place before the first pad_token_id": first_pad,
        **(more or {}),
    }
    largest = np.max(np.abs(full["logits"]))
    moved = {
        name: float(np.max(np.abs(places[rows, at] - full["logits"]))) / largest
        for name, at in others.items()
    }
    detects = {name: significant(size, 2) for name, size in moved.items() if size > 1e-9}
    make.write(case, title, inputs, features=features, detects=detects, operation=operation)


def five_labels(make: Maker) -> None:
    """A config without pad_token_id."""
    ids = make.ids(1, 6)
    ids[0, -1] = PAD
    title = "Without pad_token_id, and with one row: the last place, whatever its id"
    make.write("one-row", title, {"input_ids": ids}, features=("no-padding-token",))
    inputs = {"input_ids": ids, "labels": np.array([3])}
    title = "Cross entropy over five labels"
    make.write("loss", title, inputs, ("loss", "logits"), features=("loss", "no-padding-token"))
    title = "problem_type single_label_classification, and labels of shape [batch, 1]"
    column = {"input_ids": ids, "labels": np.array([[3]])}
    make.write("loss-column", title, column, ("loss",), features=("loss", "no-padding-token"))
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
