"""Make the sentencepiece part of `golden/tokenizer/`: three small models, and what transformers 4 makes of texts.

The files of rinna's and LINE's GPT-NeoX models name T5Tokenizer, and mean its form in Python (`use_fast=False`), which
ended with transformers 4.  It needs the environment of `requirements-v4.txt` (torch apart):

    .venv-v4/bin/python golden/make/make_sentencepiece.py

`python golden/make/make_all.py --v4 .venv-v4/bin/python` runs it with all the others.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import sentencepiece_texts as texts
import transformers
from transformers import AddedToken, T5Tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "tokenizer"
VERSIONS = ("4.46.3", "0.2.3")
SPEC = "docs/tokenizer.md#unigram-rinna-line"
REFUSED_TOO = "the library refuses the file too"
STRICT = "follows from the rule that nothing is guessed"

SHARED = {
    "model_type": "unigram",
    "vocab_size": 300,
    "hard_vocab_limit": False,
    "max_sentencepiece_length": 8,
    "num_threads": 1,
    "minloglevel": 2,
}
NORMALISED = {"normalization_rule_tsv": "rules.tsv"}
BYTES = {"byte_fallback": True, "pad_id": 3, "vocab_size": 540}

#: What the trainer is given, as far as it changes what a model does: as for rinna's models of 2021, for those of
#: 2023, and for LINE's.
TRAINER: dict[str, dict[str, Any]] = {
    "small": {**NORMALISED, "control_symbols": ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]},
    "bytes": {
        **BYTES,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<NL>"],
    },
    "line": {**NORMALISED, **BYTES},
}
CONFIG: dict[str, Any] = {
    "tokenizer_class": "T5Tokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "extra_ids": 0,
    "additional_special_tokens": [],
    "sp_model_kwargs": {},
}
CONFIGS = {
    "small": CONFIG
    | {
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
        "do_lower_case": False,
    },
    "bytes": CONFIG,
    # Without a list of further tokens `extra_ids` makes them as it does for T5.
    "line": {key: value for key, value in CONFIG.items() if key != "additional_special_tokens"},
}

#: Contents of spiece.model that are none.
NO_MODELS = {
    "text": ("spiece.model holds a text", "This is no model.\n"),
    "lfs-pointer": (
        "spiece.model is what Git leaves in the place of a large file",
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 786216\n",
    ),
}

Line = dict[str, Any]


def folder_of(kind: str) -> Path:
    return FOLDER / f"sentencepiece_{kind}"


def train(kind: str) -> None:
    """Write the folder of a vocabulary.  The trainer writes the name of the rules into the model, so it is short."""
    model, here = io.BytesIO(), Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        Path("rules.tsv").write_text(texts.normalization_rules(), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts.training_lines()), model_writer=model, **(SHARED | TRAINER[kind])
        )
        os.chdir(here)
    folder = folder_of(kind)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    settings = json.dumps(CONFIGS[kind], indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")


def tokenizer_of(kind: str, options: dict[str, Any], added: tuple[dict[str, Any], ...]) -> Any:
    options = dict(options)
    lower = options.pop("do_lower_case", False)
    tokenizer = T5Tokenizer.from_pretrained(folder_of(kind), **{"legacy": True, **options})
    tokenizer.do_lower_case = lower  # the library ignores it in files and among the options
    tokenizer.add_tokens([AddedToken(**token) for token in added])
    return tokenizer


def head(kind: str, name: str, title: str, *features: str) -> Line:
    return {
        "id": f"tokenizer/sentencepiece-{kind}/{name}",
        "title": title,
        "features": ["sentencepiece", *features],
        "vocabulary": f"sentencepiece_{kind}",
        "required": False,
    }


def encoding_line(kind: str, case: texts.Case) -> Line:
    """What the library makes of one text."""
    options, call = case.options or {}, case.call or {}
    tokenizer = tokenizer_of(kind, options, case.added_tokens)
    added = [{"id": tokenizer.convert_tokens_to_ids(t["content"]), **t} for t in case.added_tokens]
    line = head(kind, case.name, case.title) | {"text": case.text, "text_hex": case.text.encode().hex()}
    line |= {} if case.pair is None else {"pair": case.pair}
    given = {"options": options, "call": call, "added_tokens": added}
    line |= {key: value for key, value in given.items() if value}
    line["ids"] = tokenizer(case.text, case.pair, **call)["input_ids"]
    if case.pair is None:
        line["tokens"] = tokenizer.tokenize(case.text)
    return line | decoded(tokenizer, line["ids"])


def decoding_lines(kind: str) -> list[Line]:
    tokenizer, lines = tokenizer_of(kind, {}, ()), []
    for name, (title, kinds, pieces) in texts.DECODE.items():
        if not kinds or kind in kinds:
            ids = tokenizer.convert_tokens_to_ids(list(pieces))
            line = head(kind, f"decode-{name}", title, "decode") | {"ids": ids} | decoded(tokenizer, ids)
            assert line["pieces"] == list(pieces), (line["id"], line["pieces"])
            lines.append(line)
    return lines


def decoded(tokenizer: Any, ids: list[int]) -> Line:
    return {
        "pieces": tokenizer.convert_ids_to_tokens(ids),
        "decoded": tokenizer.decode(ids, clean_up_tokenization_spaces=False),
        "decoded_without_special_tokens": tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ),
    }


def refused_lines() -> list[Line]:
    """Texts, ids and files that are refused."""
    size = len(tokenizer_of("small", {}, ()))
    wrong = [
        ("text-lone-surrogate", "Half a character", "text", {"text_utf16_hex": "732bd83d72ac"}, STRICT),
        ("ids-too-large", "An id that no token has", "input", {"ids": [1, size]}, STRICT),
        ("ids-negative", "A negative id", "input", {"ids": [1, -1]}, STRICT),
    ]
    for name, (title, content) in NO_MODELS.items():
        try:
            sentencepiece.SentencePieceProcessor(model_proto=content.encode())
        except RuntimeError:
            more = {"files": {"spiece.model": content}}
            wrong.append((f"file-refused-{name}", title, "tokenizer_file", more, REFUSED_TOO))
        else:
            raise AssertionError(f"the package reads {name}")
    return [
        head("small", name, title, "errors")
        | more
        | {"expect": {"kind": "error", "error": error}, "source": {"kind": "analytic", "how": how}}
        for name, title, error, more, how in wrong
    ]


def check(lines: list[Line]) -> None:
    """The package alone finds the same ids where nothing but a text is given."""
    for line in lines:
        plain = line.get("call") == texts.PLAIN and not {"options", "added_tokens", "pair"} & line.keys()
        if plain and "<" not in line["text"] and "[" not in line["text"]:
            kind = line["vocabulary"].removeprefix("sentencepiece_")
            package = sentencepiece.SentencePieceProcessor(model_file=str(folder_of(kind) / "spiece.model"))
            assert package.EncodeAsIds(line["text"]) == line["ids"], line["id"]


def main() -> None:
    found = (transformers.__version__, sentencepiece.__version__)
    assert found == VERSIONS, f"needs transformers and sentencepiece {VERSIONS}, found {found}"
    lines = []
    for kind in TRAINER:
        train(kind)
        cases = [case for case in texts.CASES if not case.vocabularies or kind in case.vocabularies]
        lines += [encoding_line(kind, case) for case in cases] + decoding_lines(kind)
    check(lines)
    lines += refused_lines()
    rows = [json.dumps({**line, "spec": SPEC}, ensure_ascii=False) for line in lines]
    (FOLDER / "sentencepiece.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"sentencepiece.jsonl: {len(lines)} cases")


if __name__ == "__main__":
    main()
