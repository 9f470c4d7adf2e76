"""Which tensor of a file is which weight of a model.

A model without a head and one with any head can share a file; old files hold buffers that say nothing;
the output head has two names. Everything else has to fit exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refimpl.backends.quantized import QuantizedMatrix
from refimpl.errors import CheckpointMismatchError
from refimpl.layers import TiedLinear

# Buffers that old versions stored beside the weights. They hold nothing that the config does not say.
OLD_BUFFERS = (".attention.bias", ".attention.masked_bias", ".attention.rotary_emb.inv_freq")

# The weights of all heads. A head is a part of the model beside the base model.
HEAD_KEYS = (
    "embed_out.weight",
    "score.weight",
    *("classifier.weight", "classifier.bias"),
    *("qa_outputs.weight", "qa_outputs.bias"),
)

OUTPUT_HEAD, _OTHER_NAME = "embed_out.weight", "lm_head.weight"


class Matching:
    """The weights of a model beside the tensors of a file; nothing is read but names, shapes and dtypes.

    Attributes:
        file_keys: key in the model -> name in the file.
        parameters: the weights that the file has to have.
        new_head: the weights of a head that the file does not have, and does not say that it has.
        missing, unexpected, mismatched: what does not fit, as messages have it.
        old_buffers, unused_heads: names in the file that are passed over.
    """

    def __init__(self, model: Any, tensors: Mapping[str, Any]):
        self.model, self.tensors = model, tensors
        self.file_keys = self._keys()
        parameters = list(model.named_parameters())
        head = [p for p in parameters if p.key in HEAD_KEYS]
        # A file that says it holds this very model, and lacks its head, is broken.
        claimed = type(model).__name__ in (model.config.architectures or ())
        self.new_head = [] if claimed or any(p.key in self.file_keys for p in head) else head
        self.parameters = [p for p in parameters if p not in self.new_head]

        wanted = {parameter.key for parameter in self.parameters}
        left = {key: name for key, name in self.file_keys.items() if key not in wanted}
        self.old_buffers = [name for key, name in left.items() if key.endswith(OLD_BUFFERS)]
        self.unused_heads = [name for key, name in left.items() if self._is_other_head(key)]
        passed_over = {*self.old_buffers, *self.unused_heads}
        self.unexpected = [name for name in left.values() if name not in passed_over]
        self.missing = [p.key for p in self.parameters if p.key not in self.file_keys]
        self.mismatched = self._wrong_shapes() + self._wrong_copy_of_tied_head()

    def _keys(self) -> dict[str, str]:
        prefix = f"{self.model.base_model_prefix}."
        known = {(OUTPUT_HEAD if name == _OTHER_NAME else name): name for name in self.tensors}
        in_file = any(key.startswith(prefix) for key in known)
        in_model = any(parameter.key.startswith(prefix) for parameter in self.model.named_parameters())
        if in_file and not in_model:
            return {_key_in_base_model(key, prefix): name for key, name in known.items()}
        if in_model and not in_file:
            return {key if key in HEAD_KEYS else prefix + key: name for key, name in known.items()}
        return known

    def _is_other_head(self, key: str) -> bool:
        """The head of another model, or the stored copy of a tied one."""
        head = getattr(self.model, key.partition(".")[0], None)
        return key in HEAD_KEYS and (head is None or isinstance(head, TiedLinear))

    def _wrong_shapes(self) -> list[str]:
        found = []
        for parameter in self.parameters:
            if parameter.key in self.file_keys:
                stored = self.tensors[self.file_keys[parameter.key]]
                if stored.shape != parameter.shape:
                    found.append(
                        f"{parameter.key}: file {list(stored.shape)}, config {list(parameter.shape)}"
                    )
                elif _holds_integers(stored):
                    found.append(f"{parameter.key}: {stored.dtype}, not a float type")
        return found

    @property
    def tied_copy(self) -> np.ndarray | QuantizedMatrix | None:
        """The head that the file holds although it is tied to the embedding."""
        head, name = getattr(self.model, "embed_out", None), self.file_keys.get(OUTPUT_HEAD)
        return self.tensors[name] if name is not None and isinstance(head, TiedLinear) else None

    def _wrong_copy_of_tied_head(self) -> list[str]:
        stored, config = self.tied_copy, self.model.config
        shape = (config.vocab_size, config.hidden_size)
        if stored is None or (stored.shape == shape and not _holds_integers(stored)):
            return []
        return [
            f"{self.file_keys[OUTPUT_HEAD]}: file {list(stored.shape)} {stored.dtype}, config {list(shape)}"
        ]

    def tied_copy_differs(self) -> bool:
        """Whether the stored copy of a tied head is another matrix than the embedding.

        256 rows are compared: training that unties them changes every row, and a whole comparison would read
        two large matrices from a file that is only mapped.
        """
        stored = self.tied_copy
        embedding = next(
            p for p in self.parameters if p.name == "weight" and p.key.endswith("embed_in.weight")
        )
        if stored is None or embedding.key not in self.file_keys:
            return False
        rows = np.unique(np.linspace(0, stored.shape[0] - 1, 256).astype(int))
        return not np.array_equal(stored[rows], self.tensors[self.file_keys[embedding.key]][rows])

    def refuse(self, where: object) -> None:
        """Raise CheckpointMismatchError, with everything that does not fit, unless all fits."""
        both = [self.tensors[name] for name in (OUTPUT_HEAD, _OTHER_NAME) if name in self.tensors]
        if len(both) == 2 and not np.array_equal(both[0], both[1]):
            what = "embed_out.weight and lm_head.weight are two names for the output head, and differ"
            raise CheckpointMismatchError(what, where=where)
        if self.missing or self.unexpected or self.mismatched:
            raise CheckpointMismatchError(
                "the weights are not those of this config",
                where=where,
                missing=self.missing,
                unexpected=self.unexpected,
                mismatched=self.mismatched,
            )

    def remarks(self) -> list[str]:
        """What is worth a warning although the model can be loaded."""
        found = []
        if self.new_head:
            unused = f" ({', '.join(self.unused_heads)} of the file is not used)" if self.unused_heads else ""
            found.append(
                f"the file has no head of {type(self.model).__name__}: "
                f"{', '.join(p.key for p in self.new_head)} got random values, and have to be trained before they "
                f"are of use{unused}"
            )
        if self.tied_copy_differs():
            found.append(
                "the file holds an embed_out.weight that differs from the input embedding; because "
                "tie_word_embeddings is true the input embedding is used (pass tie_word_embeddings=False to use "
                "the stored head)"
            )
        return found


def _key_in_base_model(key: str, prefix: str) -> str:
    """The key, in a model that has no prefix, of a tensor in a file whose keys have one."""
    bare = key.removeprefix(prefix)
    if (bare == key) == (bare in HEAD_KEYS):
        return bare
    # A head with a prefix, or anything else without one, belongs to no model; as an absolute key it fits none.
    return f"/{key}"


def _holds_integers(array: Any) -> bool:
    return not isinstance(array, QuantizedMatrix) and array.dtype.kind in "iub"
