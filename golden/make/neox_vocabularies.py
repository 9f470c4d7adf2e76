"""The vocabularies of the GPT-NeoX tokenizer goldens: a trained one, made-up ones, parts of the published ones."""

from __future__ import annotations

from typing import Any

TRAINING = """\
The lighthouse keeper counted the ships that passed in the night: one, two, three, and then the fog came. She wrote
the number into her book, as her mother had done before her, and lit the lamp again. Nobody had asked for the book
in forty years. "It's not for them," she'd say when somebody wondered, "it's for the ships. They'll know that they
were seen." There weren't many visitors; there were the gulls, the postman on the first of the month, and the sea,
which isn't a visitor but the owner of the house. I'm told that she'd counted 12345 ships when she stopped, that we've
all been among them, and that you're in the book too. We don't know. Who would've thought that?

In the year 1999 there were 365 days; in the year 2000 there were 366 days; 100 200 300 1000 2000 3000.
Ha! Haha! Hahahaha! hahahaha ==== ======== --------
HELLO WORLD! Hello world! hello world! Hello there, world. What's that?! ... --- === *** ((())) [[[]]] {{{}}} <<<>>>

def count(ships):
    total = 0
    for ship in ships:
        if ship.name in ("fog", "gull"):
            continue
        total += 1
    return total

for (int i = 0; i < n; i++) { total += values[i]; } // the sum of all values
\tif (x == 0) {\r\n\t\treturn None;\r\n\t}\r\n

Die Wärterin zählte die Schiffe, die in der Nacht vorüberfuhren, und schrieb die Zahl in ihr Büchlein. Größe über
alles? Nein, die Straße führt über den Fluß. L'été est passé, et la mer a gardé ce qu'elle a reçu. Où êtes-vous ?
Это не море, это небо над морем. Он сказал, что не знает. Η θάλασσα είναι μακριά και ο ουρανός κοντά.
灯台の人は船を数えて、その数を本に書いた。これは本である。人は海を見る。海の上に船がある。船の上に人がある。
我们看见大海，大海也看见我们。바다는 집이고 집은 바다이다. 사람은 바다를 보고 바다는 사람을 본다.
समुद्र घर है और घर समुद्र है। البحر بيت والبيت بحر. הים הוא בית והבית הוא ים. ทะเลเป็นบ้าน บ้านเป็นทะเล
😀😀😀 👍👍🏽👍🏽 ❤️❤️ 👨‍👩‍👧 👨‍👩‍👧 🇯🇵🇯🇵
"""

#: Merges that no rightly cut text can use, or that only a rightly cut text can: they stand behind the trained ones
#: and join bytes on both sides of a border between classes of characters, so that a wrong class shows in the ids.
TRAPS = (
    *(
        "' S",
        "' L",
        "' Å",
        "a 1",
        "1 a",
        "a _",
        "1 Ù",
        "1 Â",
        "1 ð",
        "1 â",
        "1 ã",
        "a Â",
        "a Ê",
        "a â",
        "a ê",
    ),
    *(
        "' re",
        "' m",
        "' ll",
        "1 ãĢ",
        "! âĢ",
        "! ãĢ",
        "! ê",
        "! î",
        "! ô",
        "a ð",
        "q Ì",
        "! Â",
        "! Ĝ",
        "! ð",
        "! á",
        "! â",
        "! ã",
        "! ï",
        "! ċ",
        "Ġ Â",
        "Ġ ã",
        "Ċ Ġ",
        "Ġ Ċ",
        "Ċ b",
        "ĉ a",
    ),
)


def added(content: str, **options: bool) -> dict[str, Any]:
    """An added token with all its options; it takes the next free id."""
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"content": content, **dict.fromkeys(names, False), **options}


#: The added tokens of the trained vocabulary behind `<|endoftext|>` and `<|padding|>`: those of the 20B file (24
#: spaces first, 2 spaces last), then one that stands alone and one that takes the white space beside it.
ADDED_TOKENS = (
    *(added(" " * count, normalized=True) for count in range(24, 1, -1)),
    added("<word>", single_word=True),
    added("<cut>", lstrip=True, rstrip=True, normalized=True),
)

#: Rules for letters, in this order.  The ids run the other way: they are not the ranks.
ORDER_MERGES = (
    *("ab a", "a b", "c c", "cc c", "f g", "e f", "i j", "h i", "hi j", "k l", "l m", "kl m", "k lm", "d d"),
    *("n o", "p q", "o p", "no pq", "Ġ r", "r r", "Ġr r"),
)

#: keras_hub's test of its GPT-NeoX tokenizer: vocabulary, merges and the ids of both texts are published there.
KERAS_TOKENS = (
    *("!", "<|endoftext|>", "a", "ai", "air", "b", "e", "h", "i", "l", "n", "ne", "o", "p", "pl", "pla"),
    *("plane", "po", "port", "r", "rt", "t", "Ġ", "Ġa", "Ġai", "Ġair", "Ġat", "Ġb", "Ġi", "Ġt", "Ġth"),
)
KERAS_MERGES = (
    *("Ġ a", "Ġ t", "Ġ i", "Ġ b", "a i", "p l", "n e", "Ġa t", "p o", "r t", "Ġt h", "ai r", "pl a", "po rt"),
    *("Ġai r", "Ġa i", "pla ne"),
)

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

#: Changes of the small tokenizer.json that make it one that must be refused: title, path, new value.
REFUSED_FILES: dict[str, tuple[str, list[str | int], Any]] = {
    "merge-of-unknown-token": (
        "A merge of a token that is not in the vocabulary",
        ["model", "merges", 0],
        ["☃", "a"],
    ),
    "merge-of-three": ("A merge of three tokens", ["model", "merges", 0], ["a", "b", "c"]),
    "merges-mixed": ("A merge as a text among pairs", ["model", "merges", 1], "a b c"),
    "id-twice": ("Two tokens with one id", ["model", "vocab", "!"], 3),
    "id-negative": ("A negative id", ["model", "vocab", "!"], -2),
    "id-as-text": ("An id that is a text", ["model", "vocab", "!"], "2"),
    "model-type": ("Another kind of model", ["model", "type"], "WordPiece"),
    "dropout": ("Dropout: the ids would be drawn", ["model", "dropout"], 0.5),
    "byte-fallback": (
        "byte_fallback: other bytes than those of the alphabet",
        ["model", "byte_fallback"],
        True,
    ),
    "normalizer": ("A normalizer that this family does not have", ["normalizer"], {"type": "Lowercase"}),
    "pre-tokenizer": ("Another way to cut words", ["pre_tokenizer"], {"type": "Whitespace"}),
    "pattern": (
        "Another regular expression",
        ["pre_tokenizer"],
        {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": r"\p{N}{1,3}|\p{L}+"},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
    ),
    "version": ("Another version of the format", ["version"], "2.0"),
    "added-token-twice": ("An added token with the id of another", ["added_tokens", 2, "id"], 1),
    "added-token-empty": ("An added token without text", ["added_tokens", 2, "content"], ""),
}

#: Changes of the small tokenizer.json that can be read: the same pipeline in other words, and an option.
SAME_FILES: dict[str, tuple[str, list[str | int], Any]] = {
    "pattern-spelled-out": (
        "The pattern as a Split of its own before ByteLevel",
        ["pre_tokenizer"],
        {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": GPT2_PATTERN},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
    ),
    "special-by-file": (
        "A special token without a role (pad, eos, ...): skip_special_tokens leaves it out too",
        ["added_tokens", 25, "special"],
        True,
    ),
    "normalizer-sequence": (
        "The normalizer as a Sequence",
        ["normalizer"],
        {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    ),
}

#: Contents of tokenizer_config.json beside tokenizer.json.
BROKEN_CONFIG = '{"tokenizer_class": "GPTNeoXTokenizer", '
