"""Make the GPT-NeoX part of `golden/tokenizer/`: vocabularies, and texts with what the `tokenizers` package gives.

The published vocabularies are not part of this repository.  `neox_20b_sparse` and `gpt2_sparse` hold of them what the
texts of the cases can meet: all tokens that are a part of one of their words, and all merges that make one.  With the
environment variable REFIMPL_DATA (a folder with `neox20b/` and `gpt2/`) both are made again and every case is checked
against the full ones; without it only the cases are made.  The ids in `neox_published.jsonl` were printed by others.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import neox_texts as texts
import neox_vocabularies as vocabularies
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPTNeoXTokenizer

MAKE = Path(__file__).resolve().parent
FOLDER = MAKE.parent / "tokenizer"
SPECIAL = ("<|endoftext|>", "<|padding|>")
SPEC = "docs/tokenizer.md#gpt-neox-byte-level-bpe"
TRANSFORMERS = "https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/gpt_neox/"
KERAS = (
    "https://github.com/keras-team/keras-hub/blob/71453d08f59edc90d276e999319fc51e61cbf82c/"
    "keras_hub/src/models/gpt_neo_x/gpt_neo_x_tokenizer_test.py"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CONFIG = {
    "add_prefix_space": False,
    "bos_token": SPECIAL[0],
    "eos_token": SPECIAL[0],
    "unk_token": SPECIAL[0],
    "pad_token": SPECIAL[1],
    "tokenizer_class": "GPTNeoXTokenizer",
}

Content = dict[str, Any]
Line = dict[str, Any]


# ---- vocabularies


def byte_characters() -> list[str]:
    """Byte -> its character in tokens, as the library writes it."""
    encoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found = {}
    for code in range(0x110000):
        if not 0xD800 <= code < 0xE000 and len(found) < 243:
            for byte, character in zip(
                chr(code).encode(), encoder.pre_tokenize_str(chr(code))[0][0], strict=True
            ):
                found[byte] = character
    rest = iter(sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(found.values())))
    return [found[byte] if byte in found else next(rest) for byte in range(256)]


BYTES = byte_characters()


def content_of(
    vocabulary: dict[str, int], merges: list[Any], added_tokens: list[Content], **model: Any
) -> Content:
    """What a tokenizer.json holds."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            **model,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def train() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and merges of the text for training, with the merges that are traps behind them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator([vocabularies.TRAINING], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    vocabulary = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    for left, right in (trap.split(" ") for trap in vocabularies.TRAPS):
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append((left, right))
    return vocabulary, merges


def special_entries() -> list[Content]:
    return [{"id": i, **vocabularies.added(token, special=True)} for i, token in enumerate(SPECIAL)]


def small_content(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Content:
    entries = [{"id": len(vocabulary) + i, **token} for i, token in enumerate(vocabularies.ADDED_TOKENS)]
    return content_of(vocabulary, [list(pair) for pair in merges], special_entries() + entries)


def order_content() -> Content:
    """Letters, and rules of which the ranks are not the ids."""
    merges = [tuple(rule.split(" ")) for rule in vocabularies.ORDER_MERGES]
    tokens = dict.fromkeys(["Ġ", *"abcdefghijklmnopqr", *(a + b for a, b in merges)])
    vocabulary = {token: len(tokens) - 1 - i for i, token in enumerate(tokens)}
    return content_of(vocabulary, [" ".join(pair) for pair in merges], [])


def unknown_content() -> Content:
    tokens = ["<unk>", "a", "b", "Ġ", "ab", "abba", "ba"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    entry = {"id": 0, **vocabularies.added("<unk>")}
    return content_of(
        vocabulary, ["a b", "b a"], [entry], unk_token="<unk>", fuse_unk=True, ignore_merges=True
    )


def keras_tables() -> tuple[dict[str, int], list[tuple[str, str]]]:
    merges = [tuple(rule.split(" ")) for rule in vocabularies.KERAS_MERGES]
    return {token: i for i, token in enumerate(vocabularies.KERAS_TOKENS)}, merges


def sparse(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], wanted: Iterable[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Of a vocabulary the parts of the words in the texts, and of its merges those that make one."""
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    normalizer = normalizers.NFC()
    found: set[str] = set(BYTES) | set(SPECIAL)
    for text in wanted:
        for form in {text, " " + text, normalizer.normalize_str(text)}:
            for word, _ in cutter.pre_tokenize_str(form):
                ends = range(1, len(word) + 1)
                found |= {word[i:j] for j in ends for i in range(max(0, j - 64), j)}
    kept = {token: index for token, index in vocabulary.items() if token in found}
    rules = [pair for pair in merges if "".join(pair) in found]
    return kept, rules


def read_two(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return json.loads((folder / "vocab.json").read_text(encoding="utf-8")), merges  # type: ignore[return-value]


def write_json(name: str, content: Any) -> None:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def write_two(name: str, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    write_json(f"{name}/vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (FOLDER / name / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_content(folder: Path) -> Content:
    """A folder as what its tokenizer.json holds or would hold."""
    if (folder / "tokenizer.json").exists():
        return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, merges = read_two(folder)
    entries = [
        {"id": vocabulary[token], **vocabularies.added(token, special=True)}
        for token in SPECIAL
        if token in vocabulary
    ]
    return content_of(vocabulary, [list(pair) for pair in merges], entries)


# ---- what the library does


def tokenizer_of(
    content: Content, options: Content, added_tokens: Iterable[Content], trim: bool
) -> Tokenizer:
    """The library's tokenizer of a tokenizer.json, with the options of a case."""
    content = copy.deepcopy(content)
    space = options.get("add_prefix_space", False)
    byte_level = {**BYTE_LEVEL, "add_prefix_space": space, "trim_offsets": trim}
    content["post_processor"] = byte_level
    if space:
        content["pre_tokenizer"] = byte_level
    if options.get("nfc") is False:
        content["normalizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens([AddedToken(**token) for token in added_tokens])
    before = [SPECIAL[0]] if options.get("add_bos_token") else []
    after = [options.get("eos_token", SPECIAL[0])] if options.get("add_eos_token") else []
    if before or after:
        around = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[
                *before,
                "$A",
                *after,
                *(f"{token}:1" for token in before),
                "$B:1",
                *(f"{t}:1" for t in after),
            ],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in {*before, *after}],
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), around])
    return tokenizer


def encoding_line(case: texts.Case, content: Content, vocabulary: str) -> Line:
    """What the library makes of one case."""
    options, call = case.options or {}, case.call or {}
    line: Line = {
        "id": f"tokenizer/{vocabulary.replace('_', '-').removesuffix('-sparse')}/{case.name}",
        "title": case.title,
        "features": list(case.features),
        "vocabulary": vocabulary,
    }
    if not case.required:
        line["required"] = False
    if case.words is None:
        line |= {"text": case.text, "text_hex": case.text.encode().hex()}
    else:
        line["words_given"] = list(case.words)
    if case.pair is not None:
        line["pair"] = case.pair
    added = with_ids(case.added_tokens, content)
    line |= {
        key: value for key, value in (("options", options), ("call", call), ("added_tokens", added)) if value
    }
    encodings = []
    for trim in (True, False):
        tokenizer = tokenizer_of(content, options, case.added_tokens, trim)
        assert all(tokenizer.token_to_id(token["content"]) == token["id"] for token in added), case.name
        tokenizer.encode_special_tokens = call.get("split_special_tokens", False)
        given = case.text if case.words is None else list(case.words)
        encodings.append(
            tokenizer.encode(
                given,
                case.pair,
                is_pretokenized=case.words is not None,
                add_special_tokens=call.get("add_special_tokens", True),
            )
        )
    trimmed, whole = encodings
    assert (trimmed.ids, trimmed.tokens, trimmed.word_ids) == (whole.ids, whole.tokens, whole.word_ids)
    line |= {
        "ids": trimmed.ids,
        "tokens": trimmed.tokens,
        "words": trimmed.word_ids,
        "offsets": trimmed.offsets,
        "offsets_untrimmed": whole.offsets,
    }
    if case.pair is not None or 1 in trimmed.special_tokens_mask:
        line |= {"type_ids": trimmed.type_ids, "special_tokens_mask": trimmed.special_tokens_mask}
    return line | decoded(tokenizer, trimmed.ids, content)


def with_ids(added_tokens: Iterable[Content], content: Content) -> list[Content]:
    """Added tokens with the ids that they get: that of the vocabulary, else the next free ones."""
    ids = {
        **content["model"]["vocab"],
        **{token["content"]: token["id"] for token in content["added_tokens"]},
    }
    for token in added_tokens:
        ids.setdefault(token["content"], max(ids.values()) + 1)
    return [{"id": ids[token["content"]], **token} for token in added_tokens]


def decoded(tokenizer: Tokenizer, ids: list[int], content: Content) -> Line:
    """The texts of ids.  An added token is its own text; the library takes one that is spelled like bytes for bytes."""
    line: Line = {}
    vocabulary = content["model"]["vocab"]
    added = {
        i: token
        for i, token in tokenizer.get_added_tokens_decoder().items()
        if token.content not in vocabulary
    }
    for key, skip in (("decoded", False), ("decoded_without_special_tokens", True)):
        theirs = tokenizer.decode(ids, skip_special_tokens=skip)
        ours = "".join(
            ("" if skip and added[run[0]].special else added[run[0]].content)
            if run[0] in added
            else tokenizer.decode(run, skip_special_tokens=skip)
            for run in runs(ids, added)
        )
        line[key] = ours
        if theirs != ours:
            line[f"{key}_by_library"] = theirs
    return line


def runs(ids: list[int], added: Iterable[int]) -> list[list[int]]:
    """The ids cut so that each added token stands alone."""
    parts: list[list[int]] = []
    for index in ids:
        if parts and index not in added and parts[-1][0] not in added:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts


def lines_of(cases: Iterable[texts.Case], content: Content, vocabulary: str) -> list[Line]:
    return [encoding_line(case, content, vocabulary) for case in cases]


def decoding_lines(content: Content) -> list[Line]:
    lines = []
    for case in texts.DECODE:
        tokenizer = tokenizer_of(content, {}, case.added_tokens, True)
        added = with_ids(case.added_tokens, content)
        known = {token["content"] for token in [*content["added_tokens"], *added]}
        pieces = [token if token in known else BYTES[ord(token)] for token in case.tokens]
        ids = [tokenizer.token_to_id(piece) for piece in pieces]
        line: Line = {
            "id": f"tokenizer/neox-small/decode-{case.name}",
            "title": case.title,
            "features": ["decode"],
            "vocabulary": "neox_small",
            **({"added_tokens": added} if added else {}),
            "ids": ids,
            "pieces": pieces,
        }
        lines.append(line | decoded(tokenizer, ids, content))
    return lines


# ---- the other lines


def changed(content: Content, path: list[str | int], value: Any) -> Content:
    content = copy.deepcopy(content)
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return content


def file_lines(small: Content) -> list[Line]:
    """Files that say the same in other words, and files that are refused."""
    head = {"vocabulary": "neox_small"}
    lines = []
    case = texts.Case("", "", "The  ships' été e\u0301: it's 12 <word><|endoftext|>", ("files",))
    for name, (title, path, value) in vocabularies.SAME_FILES.items():
        line = encoding_line(
            case._replace(name=f"file-{name}", title=title), changed(small, path, value), "neox_small"
        )
        lines.append({**line, "changes": [{"path": path, "value": value}]})
    for name in ("GPTNeoXTokenizer", "GPTNeoXTokenizerFast", "PreTrainedTokenizerFast"):
        title = f"tokenizer_config.json names {name}: tokenizer.json decides"
        line = encoding_line(case._replace(name=f"config-{name}", title=title), small, "neox_small")
        lines.append(
            {**line, "files": {"tokenizer_config.json": json.dumps({**CONFIG, "tokenizer_class": name})}}
        )
    for name, (title, path, value) in vocabularies.REFUSED_FILES.items():
        lines.append(
            {
                "id": f"tokenizer/neox-small/file-refused-{name}",
                "title": title,
                "features": ["errors"],
                **head,
                "changes": [{"path": path, "value": value}],
                "expect": {"kind": "error", "error": "tokenizer_file"},
                "source": {"kind": "analytic", "how": verdict(changed(small, path, value))},
            }
        )
    lines.append(
        {
            "id": "tokenizer/neox-small/config-refused-broken",
            "title": "tokenizer_config.json is cut off",
            "features": ["errors"],
            **head,
            "files": {"tokenizer_config.json": vocabularies.BROKEN_CONFIG},
            "expect": {"kind": "error", "error": "tokenizer_file"},
            "source": {"kind": "analytic", "how": "follows from the rule that a file is read strictly"},
        }
    )
    return lines


def verdict(content: Content) -> str:
    """Whether the library refuses such a file too."""
    try:
        Tokenizer.from_str(json.dumps(content))
    except Exception:
        return "the library refuses the file too"
    return (
        "follows from the rule that a file asks for nothing but this family's algorithm; the library reads it"
    )


def refused_lines() -> list[Line]:
    """Texts that are no Unicode, and ids that are none."""
    lines = []
    for name, (title, units) in texts.REFUSED_TEXTS.items():
        line = {
            "id": f"tokenizer/neox-small/{name}",
            "title": title,
            "features": ["errors"],
            "text_utf16_hex": units,
        }
        lines.append((line, "text"))
    for name, (title, ids) in texts.REFUSED_IDS.items():
        line = {"id": f"tokenizer/neox-small/ids-{name}", "title": title, "features": ["errors"], "ids": ids}
        lines.append((line, "input"))
    return [
        {
            **line,
            "vocabulary": "neox_small",
            "expect": {"kind": "error", "error": error},
            "source": {"kind": "analytic", "how": "follows from the rule that nothing is guessed"},
        }
        for line, error in lines
    ]


def padded_line(content: Content) -> Line:
    """Ids that the published embeddings have rows for, and no token."""
    tokenizer = tokenizer_of(content, {}, (), True)
    ids = [12092, 50277, 1533, 50303, 50431]
    return {
        "id": "tokenizer/neox-20b/decode-padded-ids",
        "title": "Ids behind the last token, to which embeddings are padded (50304, 50432), stand for no text",
        "features": ["decode"],
        "vocabulary": "neox_20b_sparse",
        "ids": ids,
        "pieces": ["Hello", "", "Ġworld", "", ""],
        **decoded(tokenizer, ids, content),
    }


def published(prefix: str) -> list[Line]:
    lines = (MAKE / "neox_published.jsonl").read_text(encoding="utf-8").split("\n")
    return [fact for fact in map(json.loads, filter(None, lines)) if f"{prefix}_ids" in fact]


def published_lines(prefix: str, content: Content, vocabulary: str) -> list[Line]:
    """The ids that others have printed; the library gives the same."""
    lines = []
    for fact in published(prefix):
        shown = json.dumps(fact["text"][:40] + "…" * (len(fact["text"]) > 40), ensure_ascii=False)
        case = texts.Case(fact["name"], f"Published ids of {shown}", fact["text"], ("published",))
        line = encoding_line(case, content, vocabulary)
        assert line["ids"] == fact[f"{prefix}_ids"], (line["id"], line["ids"])
        lines.append({**line, "source": {"kind": "published", "address": fact[f"{prefix}_source"]}})
    return lines


def documented_lines(
    cases: tuple[texts.Case, ...],
    expected: Iterable[list[int]],
    content: Content,
    vocabulary: str,
    address: str,
) -> list[Line]:
    lines = lines_of(cases, content, vocabulary)
    assert [line["ids"] for line in lines] == list(expected)
    return [{**line, "source": {"kind": "published", "address": address}} for line in lines]


def check_with_transformers(lines: list[Line]) -> None:
    """transformers' own class gives the same ids for the trained vocabulary."""
    theirs = GPTNeoXTokenizer.from_pretrained(FOLDER / "neox_small")
    for line in lines:
        if "text" in line and not {"options", "call", "added_tokens", "pair"} & set(line):
            assert theirs(line["text"])["input_ids"] == line["ids"], line["id"]


def check_with_full(lines: list[Line], full: Content) -> None:
    """The whole published vocabulary gives the same as its part."""
    for line in lines:
        if "text" not in line:
            continue
        tokenizer = tokenizer_of(full, line.get("options", {}), (), True)
        tokenizer.encode_special_tokens = line.get("call", {}).get("split_special_tokens", False)
        encoding = tokenizer.encode(line["text"])
        assert (encoding.ids, encoding.tokens) == (line["ids"], line["tokens"]), line["id"]
        assert encoding.offsets == [tuple(span) for span in line["offsets"]], line["id"]


def write_lines(name: str, lines: list[Line]) -> None:
    rows = [json.dumps({**line, "spec": SPEC}, ensure_ascii=False) for line in lines]
    (FOLDER / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{name}: {len(lines)} cases")


# ---- all of it


def write_own_vocabularies() -> None:
    vocabulary, merges = train()
    write_json("neox_small/tokenizer.json", small_content(vocabulary, merges))
    write_json("neox_small/tokenizer_config.json", CONFIG)
    write_two("neox_files", vocabulary, merges)
    write_json("neox_order/tokenizer.json", order_content())
    write_json("neox_unknown/tokenizer.json", unknown_content())
    write_two("neox_keras", *keras_tables())


def write_sparse_vocabularies(data: Path) -> tuple[Content, Content]:
    """Both sparse folders. Returns: the full ones."""
    neox, gpt2 = (read_content(data / name) for name in ("neox20b", "gpt2"))
    wanted = [case.text for case in texts.TWENTY_B] + [fact["text"] for fact in published("neox")]
    merges = [tuple(rule.split(" ")) for rule in neox["model"]["merges"]]
    vocabulary, rules = sparse(neox["model"]["vocab"], merges, wanted)
    # The library gives added tokens the ids of the vocabulary, if they are there, and counts on if they are not.
    vocabulary |= {token["content"]: token["id"] for token in neox["added_tokens"]}
    content = content_of(vocabulary, [" ".join(pair) for pair in rules], neox["added_tokens"])
    write_json("neox_20b_sparse/tokenizer.json", content)
    wanted = [case.text for case in (*texts.DOCUMENTED, *texts.GPT2)] + [f["text"] for f in published("gpt2")]
    write_two("gpt2_sparse", *sparse(*read_two(data / "gpt2"), wanted))
    return neox, gpt2


def main() -> None:
    data = os.environ.get("REFIMPL_DATA")
    write_own_vocabularies()
    full = write_sparse_vocabularies(Path(data)) if data else None
    names = ("small", "files", "order", "unknown", "keras", "20b_sparse")
    small, files, order, unknown, keras, twenty = (read_content(FOLDER / f"neox_{name}") for name in names)
    gpt2 = read_content(FOLDER / "gpt2_sparse")

    lines = lines_of((*texts.SMALL, *texts.ADDED, *texts.AROUND), small, "neox_small")
    check_with_transformers(lines)
    lines += [*decoding_lines(small), *file_lines(small), *refused_lines()]
    for cases, content, name in (
        (texts.FILES, files, "neox_files"),
        (texts.ORDER, order, "neox_order"),
        (texts.UNKNOWN, unknown, "neox_unknown"),
    ):
        lines += lines_of(cases, content, name)
    lines += documented_lines(texts.KERAS, texts.KERAS_IDS, keras, "neox_keras", KERAS)
    write_lines("neox.jsonl", lines)

    lines = published_lines("neox", twenty, "neox_20b_sparse")
    lines += [*lines_of(texts.TWENTY_B, twenty, "neox_20b_sparse"), padded_line(twenty)]
    address = f"{TRANSFORMERS}tokenization_gpt_neox.py"
    of_gpt2 = documented_lines(texts.DOCUMENTED, texts.DOCUMENTED_IDS, gpt2, "gpt2_sparse", address)
    of_gpt2 += [*published_lines("gpt2", gpt2, "gpt2_sparse"), *lines_of(texts.GPT2, gpt2, "gpt2_sparse")]
    if full:
        check_with_full(lines, full[0])
        check_with_full(of_gpt2, full[1])
    write_lines("neox_published.jsonl", lines + of_gpt2)


if __name__ == "__main__":
    main()
