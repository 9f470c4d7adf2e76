"""Hugging Face transformers as an engine of the conformance protocol (docs/conformance/protocol.md).

    refimpl conform run --cmd "python docs/conformance/adapters/transformers_engine.py " \
        --xfail docs/conformance/adapters/transformers.xfail

Needs torch, transformers, tokenizers and safetensors; imports nothing of refimpl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, DynamicCache
from transformers.activations import ACT2FN

LACKS = {
    # version 5 has neither, and the suite requires neither
    "features": ["transformers-4"],
    # weights are quantized by bitsandbytes; processors are called one by one in the suite's own maker
    "operations": ["quantize", "process_scores"],
    # this project's other reading of the vocabulary; and the library's decoding is that of `decoded`
    "outputs": ["ids_original", "decoded_original", "offsets_untrimmed"],
}
KINDS = {"float32": torch.float32, "float64": torch.float64}


class Engine:
    def __init__(self, dtype: str):
        self.name, self.dtype = dtype, KINDS[dtype]
        self.model = lru_cache(maxsize=2)(self.load)

    # ---- the talk

    def hello(self) -> dict[str, Any]:
        return {
            "protocol": 1,
            "name": "transformers",
            "version": transformers.__version__,
            "dtype": self.name,
            "lacks": LACKS,
            "details": {
                "torch": torch.__version__,
                "tokenizers": tokenizers.__version__,
                "attention": "eager",
            },
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["operation"] == "hello":
            return self.hello()
        operation = getattr(self, f"do_{request['operation']}")
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                outputs = operation(request, {k: read(v) for k, v in request["tensors"].items()})
        except NotImplementedError as error:
            return {"unsupported": str(error)}
        except Exception as error:
            # What the library raises says nothing of the kind; where it comes from does.
            kind = "config" if isinstance(error, KindOfConfig) else self.kind(request)
            return {"error": {"kind": kind, "message": f"{type(error).__name__}: {error}"[:300]}}
        wanted = set(request["outputs"])
        return {"outputs": write({k: v for k, v in outputs.items() if k in wanted}, request["results"])}

    @staticmethod
    def kind(request: dict[str, Any]) -> str:
        if request["operation"] == "load":
            return "checkpoint"
        if request["operation"] != "tokenizer":
            return "input"
        if "text_utf16_hex" in request["arguments"]:
            return "text"
        return "input" if "ids" in request["arguments"] else "tokenizer_file"

    # ---- operations

    def floats(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in tensors.items()}

    def do_activation(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        function = ACT2FN[request["arguments"]["name"]]
        given = self.floats(given)
        for name in request["arguments"]["parameters"]:
            attribute = getattr(function, name)
            attribute.data = given[name].reshape(attribute.shape)
        return {"y": function(given["x"])}

    def do_layer_norm(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        given = self.floats(given)
        x, eps = given["x"], request["arguments"]["eps"]
        return {"y": torch.nn.functional.layer_norm(x, x.shape[-1:], given["weight"], given["bias"], eps)}

    def do_linear(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        given = self.floats(given)
        return {"y": torch.nn.functional.linear(given["x"], given["weight"], given.get("bias"))}

    def do_softmax(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {"y": torch.softmax(self.floats(given)["x"], -1)}

    def do_rotary(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

        given = self.floats(given)
        # The library's tables hold each half twice.
        cos, sin = (torch.cat([given[name]] * 2, -1) for name in ("cos", "sin"))
        return {"y": apply_rotary_pos_emb(given["x"], given["x"], cos, sin)[0]}

    def do_rotary_tables(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        from transformers import GPTNeoXConfig
        from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

        arguments = request["arguments"]
        rope = arguments.get("rope_parameters") or {
            "rope_type": "default",
            "rope_theta": arguments["rotary_emb_base"],
            "partial_rotary_factor": arguments["rotary_pct"],
        }
        length = arguments.get("max_position_embeddings", 2048)
        config = GPTNeoXConfig(
            hidden_size=2 * arguments["head_dim"],
            num_attention_heads=2,
            max_position_embeddings=length,
            rope_parameters=dict(rope),
        )
        rotary = GPTNeoXRotaryEmbedding(config)
        positions = given["position_ids"]
        if self.dtype == torch.float64:
            raise NotImplementedError("the library computes its tables in float32")
        cos, sin = rotary(torch.zeros(1, dtype=self.dtype), positions)
        half = cos.shape[-1] // 2
        return {"cos": cos[..., :half], "sin": sin[..., :half]}

    def do_attention(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        from transformers.models.gpt_neox.modeling_gpt_neox import eager_attention_forward

        given, module = self.floats(given), torch.nn.Module()
        module.eval()
        context, weights = eager_attention_forward(
            module, given["query"], given["key"], given["value"], given["mask"], request["arguments"]["scale"]
        )
        return {"context": context.transpose(1, 2), "weights": weights}

    # ---- models

    def load(self, folder: str) -> Any:
        try:
            config = AutoConfig.from_pretrained(folder)
        except Exception as error:
            raise KindOfConfig(str(error)) from error
        cls = getattr(transformers, config.architectures[0])
        try:
            model, info = cls.from_pretrained(
                folder, dtype=self.dtype, attn_implementation="eager", output_loading_info=True
            )
        except (KeyError, AttributeError, ZeroDivisionError) as error:
            raise KindOfConfig(f"{type(error).__name__}: {error}") from error
        ignored = {
            key
            for key in info["unexpected_keys"]
            if "rotary_emb" in key or key.endswith((".masked_bias", ".bias"))
        }
        wrong = (set(info["missing_keys"]) | set(info["unexpected_keys"])) - ignored
        wrong = {key for key in wrong if "embed_out" not in key}
        if wrong or info["mismatched_keys"]:
            raise ValueError(
                f"missing or unexpected: {sorted(wrong)}, of wrong shape: {info['mismatched_keys']}"
            )
        return model.eval()

    def do_load(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        self.load(request["model"])
        return {}

    def call(self, model: Any, given: dict[str, torch.Tensor], arguments: dict[str, Any], cache: Any) -> Any:
        given = {k: v.to(self.dtype) if k == "inputs_embeds" else v for k, v in given.items()}
        return model(
            **given,
            **arguments,
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
            output_hidden_states=True,
        )

    def do_model(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        model = self.model(request["model"])
        return named(self.call(model, given, request["arguments"], DynamicCache(config=model.config)))

    def do_tuple_cache(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        model = self.model(request["model"])
        cache = DynamicCache(config=model.config)
        for layer in range(model.config.num_hidden_layers):
            parts = (given.pop(f"past_key_values.{layer}.{part}").to(self.dtype) for part in ("key", "value"))
            cache.update(*parts, layer)
        return named(self.call(model, given, request["arguments"], cache))

    def do_cached_model(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        model, outputs = self.model(request["model"]), {}
        for way, lengths in enumerate(request["arguments"]["feed_lengths"]):
            cache, start, pieces = DynamicCache(config=model.config), 0, []
            for length in lengths:
                part = {k: v[:, start : start + length] for k, v in given.items() if k != "attention_mask"}
                if "attention_mask" in given:
                    part["attention_mask"] = given["attention_mask"][:, : start + length]
                pieces.append(model(**part, past_key_values=cache, use_cache=True).logits)
                start += length
            outputs[f"logits.{way}"] = torch.cat(pieces, 1)
        return outputs

    def do_generate(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {"sequences": self.model(request["model"]).generate(**given, **request["arguments"])}

    def do_layers(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        model = self.load(request["model"])
        base, seen, handles = model.base_model, {}, []
        modules = dict(base.named_modules())

        def keep(path: str) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                seen[path] = output[0] if isinstance(output, tuple) else output
                if path.endswith("attention.dense"):
                    seen[path.removesuffix("dense") + "context"] = inputs[0]

            return hook

        for path in request["outputs"]:
            if path in modules:
                handles.append(modules[path].register_forward_hook(keep(path)))
        with rotations(type(base).__module__) as rotated:
            seen["logits"] = model(**given).logits
        for handle in handles:
            handle.remove()
        head_dim = model.config.hidden_size // model.config.num_attention_heads
        width = int(head_dim * model.config.rope_parameters["partial_rotary_factor"])
        for layer, (query, key) in enumerate(rotated):
            seen[f"layers.{layer}.attention.rotary_query"] = query[..., :width]
            seen[f"layers.{layer}.attention.rotary_key"] = key[..., :width]
        return seen

    # ---- tokenizers

    def do_tokenizer(self, request: dict[str, Any], given: dict[str, torch.Tensor]) -> dict[str, Any]:
        arguments, folder = request["arguments"], Path(request["model"])
        if "text_utf16_hex" in arguments:
            units = bytes.fromhex(arguments["text_utf16_hex"])
            arguments["text"] = "".join(
                chr(int.from_bytes(units[i : i + 2])) for i in range(0, len(units), 2)
            )
        if (folder / "spiece.model").exists():
            return sentencepiece(folder, arguments)
        return japanese(folder, arguments) if (folder / "emoji.json").exists() else neox(folder, arguments)


class KindOfConfig(Exception):
    """The config is to blame."""


class rotations:
    """While it is open, what the rotary function of a module of the library gives: one pair for each layer."""

    def __init__(self, module: str):
        self.module, self.seen = sys.modules[module], []

    def __enter__(self) -> list[Any]:
        self.plain = self.module.apply_rotary_pos_emb

        def rotary(*args: Any, **kwargs: Any) -> Any:
            self.seen.append(self.plain(*args, **kwargs))
            return self.seen[-1]

        self.module.apply_rotary_pos_emb = rotary
        return self.seen

    def __exit__(self, *_: Any) -> None:
        self.module.apply_rotary_pos_emb = self.plain


def named(out: Any) -> dict[str, torch.Tensor]:
    outputs = {k: v for k, v in out.items() if isinstance(v, torch.Tensor)}
    outputs["last_hidden_state"] = out.hidden_states[-1]
    for key in ("hidden_states", "attentions"):
        outputs |= {f"{key}.{i}": tensor for i, tensor in enumerate(out[key])}
    cache = getattr(out, "past_key_values", None)  # some heads do not hand it on
    for i, layer in enumerate(cache.layers if cache is not None else ()):
        outputs |= {f"past_key_values.{i}.key": layer.keys, f"past_key_values.{i}.value": layer.values}
    return outputs


@lru_cache(maxsize=4)
def japanese_tokenizer(folder: Path, do_clean_text: bool) -> Any:
    unk = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["unk_token"]
    return transformers.GPTNeoXJapaneseTokenizer(
        folder / "vocab.txt", folder / "emoji.json", unk_token=unk, do_clean_text=do_clean_text
    )


def decoded(tokenizer: Any, ids: list[int]) -> dict[str, str]:
    return {
        "decoded": tokenizer.decode(ids),
        "decoded_without_special_tokens": tokenizer.decode(ids, skip_special_tokens=True),
    }


def japanese(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    tokenizer = japanese_tokenizer(folder, arguments.get("do_clean_text", False))
    if "ids" in arguments:
        ids = arguments["ids"]
        return {"pieces": tokenizer.convert_ids_to_tokens(ids), **decoded(tokenizer, ids)}
    arguments["text"].encode("utf-8")  # the library would go on with half a character
    ids = tokenizer(arguments["text"])["input_ids"]
    return {"ids": ids, "tokens": tokenizer.tokenize(arguments["text"]), **decoded(tokenizer, ids)}


def sentencepiece(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    options = dict(arguments.get("options", {}))
    lower = options.pop("do_lower_case", False)
    tokenizer = transformers.T5Tokenizer.from_pretrained(folder, **options)
    tokenizer.do_lower_case = lower  # as the users of these models set it
    for token in arguments.get("added_tokens", ()):
        tokenizer.add_tokens([tokenizers.AddedToken(**{k: v for k, v in token.items() if k != "id"})])
    outputs, ids = {}, arguments.get("ids")
    if ids is None:
        given = [arguments["text"]] + ([arguments["pair"]] if "pair" in arguments else [])
        ids = tokenizer(*given, **arguments.get("call", {}))["input_ids"]
        outputs = {"ids": ids, "tokens": tokenizer.tokenize(given[0])}
    return {**outputs, "pieces": tokenizer.convert_ids_to_tokens(ids), **decoded(tokenizer, ids)}


def neox(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    options = dict(arguments.get("options", {}))
    if (folder / "tokenizer.json").exists():
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        tokenizer = transformers.GPTNeoXTokenizer.from_pretrained(folder)
    set_options(tokenizer.backend_tokenizer, **options)
    for token in arguments.get("added_tokens", ()):
        tokenizer.add_tokens([tokenizers.AddedToken(**{k: v for k, v in token.items() if k != "id"})])
    if "ids" in arguments:
        ids = arguments["ids"]
        return {"pieces": tokenizer.convert_ids_to_tokens(ids), **decoded(tokenizer, ids)}
    words = {"is_split_into_words": True} if "words_given" in arguments else {}
    given = [arguments["words_given"] if words else arguments["text"]]
    given += [arguments["pair"]] if "pair" in arguments else []
    encoding = tokenizer(
        *given, **arguments.get("call", {}), **words, return_offsets_mapping=True,
        return_token_type_ids=True, return_special_tokens_mask=True,
    )  # fmt: skip
    ids = encoding["input_ids"]
    return {
        "ids": ids,
        "tokens": encoding.tokens(),
        "words": encoding.word_ids(),
        "offsets": [list(span) for span in encoding["offset_mapping"]],
        "type_ids": encoding["token_type_ids"],
        "special_tokens_mask": encoding["special_tokens_mask"],
        **decoded(tokenizer, ids),
    }


def set_options(
    tokenizer: Any,
    nfc: bool = True,
    add_prefix_space: bool = False,
    add_bos_token: bool = False,
    add_eos_token: bool = False,
    eos_token: str = "<|endoftext|>",
) -> None:
    """The options of the suite, set in the parts of the tokenizer that do them."""
    if not nfc:
        tokenizer.normalizer = tokenizers.normalizers.Sequence([])
    if add_prefix_space:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trim = tokenizers.processors.ByteLevel(trim_offsets=True, add_prefix_space=add_prefix_space)
    before, after = ["<|endoftext|>"] * add_bos_token, [eos_token] * add_eos_token
    if not before and not after:
        tokenizer.post_processor = trim
        return
    second = [f"{token}:1" for token in before], [f"{token}:1" for token in after]
    template = tokenizers.processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *second[0], "$B:1", *second[1]],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}],
    )
    tokenizer.post_processor = tokenizers.processors.Sequence([trim, template])


# ---- tensors


def read(value: dict[str, Any]) -> torch.Tensor:
    with safe_open(value["file"], "pt") as file:
        return file.get_tensor(value["tensor"])


def write(outputs: dict[str, Any], path: str) -> dict[str, Any]:
    tensors = {k: v.detach().clone().contiguous() for k, v in outputs.items() if isinstance(v, torch.Tensor)}
    if tensors:
        save_file(tensors, path)
    return {k: {"file": path, "tensor": k} if k in tensors else v for k, v in outputs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=KINDS, default="float32")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    engine = Engine(parser.parse_args().dtype)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps({"id": request["id"], **engine.answer(request)}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
