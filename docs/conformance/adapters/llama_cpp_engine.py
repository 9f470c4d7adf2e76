"""llama.cpp, through llama-cpp-python, as an engine of the conformance protocol (docs/conformance/protocol.md).

    LLAMA_CPP_SOURCE=llama.cpp refimpl conform run \
        --cmd "python docs/conformance/adapters/llama_cpp_engine.py --version-4-configs" \
        --xfail docs/conformance/adapters/llama_cpp.xfail

Its own converter (the folder `conversion` of the sources that LLAMA_CPP_SOURCE names) makes a file of float32 weights.
Two of its questions are answered here, because it knows published models only: the tiny models come without a
tokenizer, and the words of the suite's vocabularies are cut by the rule that it calls "olmo", as those of GPT-NeoX-20B.
It asks the config for `rotary_pct`; with `--version-4-configs` rotary settings are put under such old names first.
Needs llama_cpp, torch, transformers<5, safetensors, and what the converter needs; imports nothing of refimpl.

Tokens are given with their positions and the number of their row, and there is no mask: padding is left out.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
sys.path.insert(0, os.environ["LLAMA_CPP_SOURCE"])
sys.path.insert(0, os.path.join(os.environ["LLAMA_CPP_SOURCE"], "gguf-py"))

import gguf
import llama_cpp
import numpy as np
import transformers
from conversion.gptneox import GPTNeoXModel
from llama_cpp import llama_cpp as api
from safetensors.numpy import load_file, save_file

LACKS = {
    "features": [
        *(
            "inputs-embeds",
            "token-type-ids",
            "4d-mask",
            "padding-inside",
            "logits-to-keep",
            "loss",
            "trained",
        ),
        *("padding-token-in-prompt", "activation-parameters", "transformers-4", "japanese"),
        *("question-answering", "sequence-classification", "token-classification"),
    ],
}
OLD_NAMES = "--version-4-configs" in sys.argv
if OLD_NAMES:
    LACKS["features"].append("rope-spelling")  # what would be tested is this file
HAS = {
    "operations": ["model", "cached_model", "generate", "tokenizer"],
    "outputs": ["logits", "logits.*", "sequences", "ids", "decoded", "decoded_without_special_tokens"],
}
GENERATE = {"do_sample", "eos_token_id", "pad_token_id", "max_new_tokens"}
LOG: list[str] = []


class Unsupported(Exception):
    """Nothing that the engine has a place for."""


class Refused(Exception):
    """What the engine did not take, and which part of the request is to blame."""

    def __init__(self, kind: str):
        super().__init__(" ".join(LOG[-3:]))
        self.kind = kind


@api.llama_log_callback
def remember(level: int, text: bytes, data: Any) -> None:
    LOG.append(text.decode("utf-8", "replace").strip())


# ---- models


class Converter(GPTNeoXModel):
    """The converter, for a folder without a tokenizer or with one of the suite's."""

    model_arch = GPTNeoXModel.model_arch
    with_vocabulary = False

    def get_vocab_base_pre(self, tokenizer: Any) -> str:
        return "olmo"

    def set_vocab(self) -> None:
        if self.with_vocabulary:
            super().set_vocab()
        else:
            self._set_vocab_none()
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])


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
def settings(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=2)
def load(folder: str) -> Any:
    config = settings(folder)
    if config["architectures"] != ["GPTNeoXForCausalLM"]:
        raise Unsupported("the converter knows GPTNeoXForCausalLM alone")
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch, "source"), Path(scratch, "made.gguf")
        shutil.copytree(folder, source)
        if OLD_NAMES:
            (source / "config.json").write_text(json.dumps(with_old_names(config)), encoding="utf-8")
        try:
            Converter(source, gguf.LlamaFileType.ALL_F32, made, eager=True).write()
        except Exception as error:
            LOG.append(f"{type(error).__name__}: {error}")
            raise Refused("config" if isinstance(error, KeyError) else "checkpoint") from error
        return opened(made, api.llama_model_default_params())


def opened(path: Path, params: Any) -> Any:
    params.use_mmap = False
    model = api.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise Refused("checkpoint")
    return model


class Rows:
    """A context with one sequence for each row of a batch."""

    def __init__(self, model: Any, rows: int, tokens: int):
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(rows * tokens, 32)
        params.n_seq_max, params.kv_unified = rows, True
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = 0  # float32; the default is float16
        params.flash_attn_type = 0
        self.context = api.llama_init_from_model(model, params)
        if not self.context:
            raise Refused("config")
        self.size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

    def forward(self, ids: np.ndarray, positions: np.ndarray, real: np.ndarray) -> np.ndarray:
        """Logits of new tokens: [batch, seq] -> float32 [batch, seq, vocab_size]; 0 where a token is not real."""
        logits = np.zeros((*ids.shape, self.size), dtype=np.float32)
        places = np.argwhere(real)
        if ids.size and not len(places):
            return logits
        batch = api.llama_batch_init(len(places), 0, 1)
        try:
            batch.n_tokens = len(places)
            for number, (row, column) in enumerate(places):
                batch.token[number], batch.pos[number] = int(ids[row, column]), int(positions[row, column])
                batch.n_seq_id[number], batch.seq_id[number][0], batch.logits[number] = 1, int(row), 1
            if api.llama_decode(self.context, batch):
                if any("position" in line for line in LOG[-8:]):
                    raise Unsupported("positions have to count on by one")
                raise Refused("input")
            for number, (row, column) in enumerate(places):
                values = api.llama_get_logits_ith(self.context, number)
                logits[row, column] = np.ctypeslib.as_array(values, shape=(self.size,))
        finally:
            api.llama_batch_free(batch)
        return logits

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: Any) -> None:
        api.llama_free(self.context)


def rows_of(given: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, positions and which tokens are real, each [batch, seq]."""
    others = set(given) - {"input_ids", "attention_mask", "position_ids"}
    if others or "input_ids" not in given:
        raise Unsupported(f"a call with {sorted(others)}")
    ids = given["input_ids"]
    real = given.get("attention_mask", np.ones_like(ids)) != 0
    positions = given.get("position_ids", np.maximum(np.cumsum(real, -1) - 1, 0))
    if (
        ids.dtype.kind not in "iu"
        or ids.ndim != 2
        or real.shape != ids.shape
        or positions.shape[-1:] != ids.shape[-1:]
    ):
        raise Unsupported("ids are whole numbers in a list: there are no types or shapes that could be wrong")
    return ids, np.broadcast_to(positions, ids.shape), real


def do_model(request: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, Any]:
    ids, positions, real = rows_of(given)
    with Rows(load(request["model"]), *ids.shape) as rows:
        return {"logits": rows.forward(ids, positions, real)}


def do_cached_model(request: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, Any]:
    ids, positions, real = rows_of(given)
    outputs = {}
    for way, lengths in enumerate(request["arguments"]["feed_lengths"]):
        ends = np.cumsum(lengths)
        with Rows(load(request["model"]), *ids.shape) as rows:
            pieces = [
                rows.forward(ids[:, a:b], positions[:, a:b], real[:, a:b])
                for a, b in zip(ends - lengths, ends, strict=True)
            ]
        outputs[f"logits.{way}"] = np.concatenate(pieces, axis=1)
    return outputs


def do_generate(request: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, Any]:
    arguments, config = request["arguments"], settings(request["model"])
    if set(arguments) - GENERATE or arguments.get("do_sample"):
        raise Unsupported(f"generation with {sorted(set(arguments) - GENERATE)}")
    end = arguments.get("eos_token_id", config.get("eos_token_id"))
    ends = [] if end is None else end if isinstance(end, list) else [end]
    padding = arguments.get("pad_token_id", config.get("pad_token_id"))
    padding = padding if padding is not None else (ends or [0])[0]
    ids, positions, real = rows_of(given)
    made, open_rows = ids, np.ones(len(ids), dtype=bool)
    with Rows(load(request["model"]), len(ids), ids.shape[1] + arguments["max_new_tokens"]) as rows:
        new, places, feed = ids, positions, real
        for _ in range(arguments["max_new_tokens"]):
            best = rows.forward(new, places, feed)[:, -1].argmax(-1)
            new = np.where(open_rows, best, padding)[:, None]
            made = np.concatenate([made, new], axis=1)
            places, feed = places[:, -1:] + 1, open_rows[:, None]
            open_rows = open_rows & ~np.isin(new[:, 0], ends)
            if not open_rows.any():
                break
            feed = open_rows[:, None]
    return {"sequences": made.astype(np.int64)}


# ---- tokenizers


@lru_cache(maxsize=4)
def vocabulary(folder: str) -> Any:
    if not Path(folder, "tokenizer.json").exists():
        raise Unsupported("the converter takes this kind of tokenizer from a tokenizer.json")
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch, "source"), Path(scratch, "made.gguf")
        shutil.copytree(folder, source)
        config = {
            "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": 8,
            "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1,
        }  # fmt: skip
        settings_file = source / "config.json"
        settings_file.write_text(json.dumps(config), encoding="utf-8")
        try:
            words = transformers.AutoTokenizer.from_pretrained(source).get_vocab()
            config["vocab_size"] = 1 + max(words.values())
            settings_file.write_text(json.dumps(config), encoding="utf-8")
            converter = Converter(source, gguf.LlamaFileType.ALL_F32, made, eager=True)
            converter.with_vocabulary = True
            converter.write_vocab()
        except Exception as error:
            LOG.append(f"{type(error).__name__}: {error}")
            raise Refused("tokenizer_file") from error
        params = api.llama_model_default_params()
        params.vocab_only = True
        return api.llama_model_get_vocab(opened(made, params))


def do_tokenizer(request: dict[str, Any], given: dict[str, np.ndarray]) -> dict[str, Any]:
    arguments = request["arguments"]
    call = dict(arguments.get("call", {}))
    split = call.pop("split_special_tokens", False)
    others = [name for name in ("options", "added_tokens", "pair", "words_given") if arguments.get(name)]
    others += sorted(set(call) - {"add_special_tokens"})
    if others or "text_utf16_hex" in arguments:
        raise Unsupported(f"a text with {others}")
    vocab = vocabulary(request["model"])
    if not {"text", "ids"} & set(arguments):
        return {}  # a file that should not load
    if "ids" in arguments:
        ids = arguments["ids"]
    else:
        text = arguments["text"].encode("utf-8")
        room = (api.llama_token * (len(text) + 8))()
        count = api.llama_tokenize(vocab, text, len(text), room, len(room), False, not split)
        if count < 0:
            raise Refused("text")
        ids = list(room[:count])
    return {
        "ids": ids,
        "decoded": text_of(vocab, ids, True),
        "decoded_without_special_tokens": text_of(vocab, ids, False),
    }


def text_of(vocab: Any, ids: list[int], special: bool) -> str:
    tokens = (api.llama_token * max(len(ids), 1))(*ids)
    room = ctypes.create_string_buffer(64 * len(ids) + 64)
    length = api.llama_detokenize(vocab, tokens, len(ids), room, len(room), False, special)
    return room.raw[: max(length, 0)].decode("utf-8", "replace")


# ---- the talk


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["operation"] == "hello":
        return {
            "protocol": 1,
            "name": "llama.cpp",
            "version": f"of llama-cpp-python {llama_cpp.__version__}",
            "dtype": "float32",
            "has": HAS,
            "lacks": LACKS,
            "details": {
                "weights and cache": "float32, on CPU",
                "converter": "its own, with rotary settings "
                + ("under their old names" if OLD_NAMES else "as in the folder"),
            },
        }
    operation = globals().get(f"do_{request['operation']}")
    if operation is None:
        return {"unsupported": request["operation"]}
    given = {name: load_file(value["file"])[value["tensor"]] for name, value in request["tensors"].items()}
    try:
        outputs = operation(request, given)
    except Unsupported as error:
        return {"unsupported": str(error)}
    except Refused as error:
        return {"error": {"kind": error.kind, "message": str(error)[-300:]}}
    arrays = {k: np.ascontiguousarray(v) for k, v in outputs.items() if isinstance(v, np.ndarray)}
    if arrays:
        save_file(arrays, request["results"])
    values = {k: {"file": request["results"], "tensor": k} if k in arrays else v for k, v in outputs.items()}
    return {"outputs": values}


def main() -> None:
    api.llama_log_set(remember, ctypes.c_void_p(0))
    api.llama_backend_init()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        LOG.clear()
        answers.write(json.dumps({"id": request["id"], **answer(request)}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
