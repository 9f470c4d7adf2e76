"""CTranslate2 as an engine of the conformance protocol (docs/conformance/protocol.md).

    refimpl conform run \
        --cmd "python docs/conformance/adapters/ctranslate2_engine.py --version-4-configs" \
        --xfail docs/conformance/adapters/ctranslate2.xfail

Its own converter makes the models and reads them with transformers: version 4, as it asks the config for `rotary_pct`.
That version does not know the object `rope_parameters` of version 5; with `--version-4-configs` rotary settings are put
under the old names first, so that what comes then is the engine's own.
Needs ctranslate2, transformers<5, torch, tokenizers and safetensors; imports nothing of refimpl.

The engine takes rows of ids of different lengths and has no mask: rows are given to it without their padding, on either
side.  Everything else that a call of transformers takes is unsupported.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import ctranslate2
import numpy as np
import tokenizers
import transformers
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

HAS = {"operations": ["model", "generate"], "outputs": ["logits", "sequences"]}
# A row is ids and nothing else; the padding of a prompt is said by its length, never by an id.
LACKS = {
    "features": [
        *(
            "position-ids",
            "inputs-embeds",
            "token-type-ids",
            "4d-mask",
            "padding-inside",
            "logits-to-keep",
            "loss",
        ),
        *("padding-token-in-prompt", "activation-parameters", "trained", "transformers-4"),
        *("question-answering", "sequence-classification", "token-classification"),
    ]
}
OLD_NAMES = "--version-4-configs" in sys.argv
if OLD_NAMES:
    LACKS["features"].append("rope-spelling")  # what would be tested is this file
GENERATE = {"do_sample", "eos_token_id", "pad_token_id", "max_new_tokens"}


class Unsupported(Exception):
    """Nothing that the engine has a place for."""


def hello() -> dict[str, Any]:
    return {
        "protocol": 1,
        "name": "CTranslate2",
        "version": ctranslate2.__version__,
        "dtype": "float32",
        "has": HAS,
        "lacks": LACKS,
        "details": {
            "converter": f"its own, with transformers {transformers.__version__}",
            "rotary settings": "under their old names" if OLD_NAMES else "as in the folder",
        },
    }


@lru_cache(maxsize=2)
def settings(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))


def with_old_names(config: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings as version 4 of transformers wrote them."""
    config = dict(config)
    rope = dict(config.pop("rope_parameters", None) or {})
    for old, new in (("rotary_pct", "partial_rotary_factor"), ("rotary_emb_base", "rope_theta")):
        if new in rope:
            config.setdefault(old, rope.pop(new))
    if rope.get("rope_type", "default") != "default":
        config.setdefault("rope_scaling", rope)
    return config


@lru_cache(maxsize=2)
def load(folder: str) -> Any:
    """The converted model.  The converter wants a tokenizer, which the tiny models lack: one word for each id."""
    config = settings(folder)
    if config["architectures"] != ["GPTNeoXForCausalLM"]:
        raise Unsupported("the converter has a loader for GPTNeoXForCausalLM alone")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        shutil.copytree(folder, source)
        if OLD_NAMES:
            text = json.dumps(with_old_names(config))
            (source / "config.json").write_text(text, encoding="utf-8")
        size = config.get("vocab_size", 50432)
        words = tokenizers.models.WordLevel({word(i): i for i in range(size)}, unk_token=word(0))
        tokenizers.Tokenizer(words).save(str(source / "tokenizer.json"))
        names = {f"{kind}_token": word(0) for kind in ("unk", "bos", "eos")}
        names["tokenizer_class"] = "PreTrainedTokenizerFast"
        (source / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
        ctranslate2.converters.TransformersConverter(str(source)).convert(f"{scratch}/made")
        return ctranslate2.Generator(f"{scratch}/made", device="cpu", compute_type="float32", intra_threads=1)


def word(token: int) -> str:
    return f"t{token}"


def rows_of(given: dict[str, np.ndarray]) -> tuple[list[list[int]], np.ndarray]:
    """The ids of each row without padding, and where they stood: bool [batch, seq]."""
    others = set(given) - {"input_ids", "attention_mask"}
    if others or "input_ids" not in given:
        raise Unsupported(f"a call with {sorted(others)}")
    ids = given["input_ids"]
    mask = given.get("attention_mask", np.ones_like(ids))
    if mask.shape != ids.shape or ids.ndim != 2:
        raise Unsupported("rows are lists: there are no shapes that could be wrong")
    real = mask != 0
    return [row[kept].tolist() for row, kept in zip(ids, real, strict=True)], real


def forward(request: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows, real = rows_of(given)
    made = np.array(load(request["model"]).forward_batch(rows), dtype=np.float32)
    logits = np.zeros((*real.shape, made.shape[-1]), dtype=np.float32)
    for target, kept, source in zip(logits, real, made, strict=True):
        target[kept] = source[: kept.sum()]
    return {"logits": logits}


def generate(request: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arguments, config = request["arguments"], settings(request["model"])
    if set(arguments) - GENERATE or arguments.get("do_sample"):
        raise Unsupported(f"generation with {sorted(set(arguments) - GENERATE)}")
    end = arguments.get("eos_token_id", config.get("eos_token_id"))
    ends = [] if end is None else end if isinstance(end, list) else [end]
    rows, _ = rows_of(given)
    results = load(request["model"]).generate_batch(
        [[word(token) for token in row] for row in rows],
        max_length=arguments["max_new_tokens"],
        end_token=ends,
        return_end_token=True,
        sampling_topk=1,
        beam_size=1,
        include_prompt_in_result=False,
    )
    made = [result.sequences_ids[0] for result in results]
    padding = arguments.get("pad_token_id", config.get("pad_token_id"))
    if padding is None:
        padding = ends[0] if ends else 0
    filled = np.full((len(made), max(map(len, made))), padding, dtype=np.int64)
    for target, row in zip(filled, made, strict=True):
        target[: len(row)] = row
    return {"sequences": np.concatenate([given["input_ids"], filled], axis=1)}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["operation"] == "hello":
        return hello()
    operation = {"model": forward, "generate": generate}.get(request["operation"])
    if operation is None:
        return {"unsupported": request["operation"]}
    given = {name: load_file(value["file"])[value["tensor"]] for name, value in request["tensors"].items()}
    try:
        outputs = operation(request, given)
    except Unsupported as error:
        return {"unsupported": str(error)}
    except (SafetensorError, OSError) as error:
        return {"error": {"kind": "checkpoint", "message": str(error)[:300]}}
    except (AttributeError, KeyError) as error:  # what the converter did not find in a config or a model
        return {"error": {"kind": "config", "message": f"{type(error).__name__}: {error}"[:300]}}
    except Exception as error:
        return {"error": {"kind": "input", "message": f"{type(error).__name__}: {error}"[:300]}}
    save_file({name: np.ascontiguousarray(array) for name, array in outputs.items()}, request["results"])
    return {"outputs": {name: {"file": request["results"], "tensor": name} for name in outputs}}


def main() -> None:
    transformers.utils.logging.set_verbosity_error()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps({"id": request["id"], **answer(request)}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
