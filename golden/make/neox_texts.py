"""The texts of the GPT-NeoX tokenizer goldens, by the rule that each one shows."""

from __future__ import annotations

from typing import Any, NamedTuple

from neox_vocabularies import added


class Case(NamedTuple):
    """One text and how it is to be encoded; the fields are those of a line of the jsonl file."""

    name: str
    title: str
    text: str
    features: tuple[str, ...]
    options: dict[str, Any] | None = None
    call: dict[str, Any] | None = None
    added_tokens: tuple[dict[str, Any], ...] = ()
    pair: str | None = None
    words: tuple[str, ...] | None = None
    required: bool = True


class Decode(NamedTuple):
    """Tokens to be decoded: their bytes, one entry for each token (an added token, or one byte, as text)."""

    name: str
    title: str
    tokens: tuple[str, ...]
    added_tokens: tuple[dict[str, Any], ...] = ()


CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")

SMALL = (
    Case("sentence", "A sentence: words with the space before them", "The ships passed in the night.", ()),
    Case("empty", "The empty text has no ids", "", ()),
    Case("one-space", "A space alone", " ", ("white-space",)),
    Case("first-word", "The first word of a text has no space, and so another token", "the the", ()),
    *(
        Case(
            f"contraction{mark.replace(chr(39), '-')}",
            f"it{mark}: a contraction is a word",
            f"it{mark}x",
            ("pattern",),
        )
        for mark in CONTRACTIONS
    ),
    Case("contraction-upper-case", "'S and 'LL are no contractions", "IT'S 'LL 'Re", ("pattern",)),
    Case("contraction-long-s", "ſ (U+017F) is no s, whatever case folding says", "it'ſ", ("pattern",)),
    Case("contraction-curly", "U+2019 begins no contraction", "it’s", ("pattern",)),
    Case("contraction-after-space", "A contraction takes no space before it", "it 's 'll", ("pattern",)),
    Case(
        "contraction-inside",
        "'s is cut off even where a word goes on: 'story",
        "'story 'twas 'dare",
        ("pattern",),
    ),
    Case("contraction-order", "'r is none, 're is; 'v is none", "'r 're 'v 've 'l 'll", ("pattern",)),
    Case(
        "quotes",
        "Two apostrophes: the second one begins the contraction only alone",
        "''s '''ll",
        ("pattern",),
    ),
    Case("letters-and-digits", "Letters and digits are cut apart", "a1a 1a1", ("pattern",)),
    Case("letters-and-underscore", "An underscore is neither letter nor digit", "a_a _a", ("pattern",)),
    Case("digits", "Digits stay together, with one space before them", "12345 1999 2000000", ("pattern",)),
    Case(
        "signs",
        "Other characters stay together, with one space before them",
        "?! ... === ((())) <<<>>>",
        ("pattern",),
    ),
    Case("space-before-sign", "Every kind of word takes one space before it", "a b 1 ! é", ("pattern",)),
    # Classes of characters: Unicode 16.0, whatever the language of the port knows.
    Case(
        "digits-other-scripts",
        "Digits of all scripts are numbers: Arabic, Devanagari",
        "1٣\n١٢٣ १२३",
        ("classes",),
    ),
    Case("digits-superscript", "² and ½ are numbers", "1²\n1½", ("classes",)),
    Case("digits-roman", "Ⅷ (Nl) and 〇 (Nl) are numbers", "1Ⅷ\n1〇", ("classes",)),
    Case("digits-mathematical", "Digits beyond U+FFFF are numbers", "1𝟘𝟙", ("classes",)),
    Case("letters-ordinal", "ª and º (Lo) are letters", "aª\naº", ("classes",)),
    Case("letters-modifier", "ʰ (Lm) is a letter", "aʰ", ("classes",)),
    Case("letters-circled", "ⓐ (So) is no letter", "aⓐ", ("classes",)),
    Case("letters-mathematical", "Letters beyond U+FFFF are letters", "a𝒜𝒷", ("classes",)),
    Case("marks", "Marks are no letters: a word ends at them", "q\u0301q नि ปี", ("classes",)),
    Case(
        "letters-unicode-15",
        "U+1DF25, U+31350: letters since Unicode 15.0",
        "a\U0001df25\na\U00031350",
        ("classes",),
    ),
    Case("letters-unicode-15-1", "U+2EBF0: a letter since Unicode 15.1", "a\U0002ebf0", ("classes",)),
    Case(
        "letters-unicode-16",
        "U+10D4A, U+A7DC: letters since Unicode 16.0",
        "a\U00010d4a\na\ua7dc",
        ("classes",),
    ),
    Case("digits-unicode-16", "U+10D40: a digit since Unicode 16.0", "1\U00010d40", ("classes",)),
    Case(
        "letters-unicode-17",
        "U+323B0 and U+A7CE are no letters: newer than Unicode 16.0",
        "!\U000323b0 !\ua7ce",
        ("classes",),
    ),
    Case(
        "private-use",
        "Private use and unassigned characters are signs",
        "!\ue000 !\U00010000 !\U0010ffff",
        ("classes",),
    ),
    Case(
        "no-spaces",
        "U+001C-001F, U+200B, U+180E, U+FEFF are no white space",
        "!\x1c! !\x1d\x1e\x1f !\u200b! !\u180e! !\ufeff!",
        ("classes", "white-space"),
    ),
    Case(
        "spaces-latin",
        "U+000B, U+000C, U+0085, U+00A0 are white space",
        "!\x0b! !\x0c! !\x85! !\xa0!",
        ("classes", "white-space"),
    ),
    Case(
        "spaces-other",
        "U+1680, U+2003, U+2028, U+202F, U+205F, U+3000 are white space",
        "!\u1680! !\u2003! !\u2028! !\u202f! !\u205f! !\u3000!",
        ("classes", "white-space"),
    ),
    # Characters and bytes
    Case(
        "scripts",
        "Words of several scripts, known and unknown",
        "Größe été море θάλασσα 海 바다 بيت ים ทะเล հայ ქარ",
        ("utf-8",),
    ),
    Case("bytes", "A character without a token is its bytes", "ÿ ؆ ⁂ 𓀀", ("utf-8",)),
    Case("emoji", "Emoji: variation selector, skin tone, flag", "😀 ❤️ 👍🏽 🇯🇵 🦙", ("utf-8",)),
    Case("emoji-joined", "Emoji joined by U+200D", "👨‍👩‍👧‍👦 🏳️‍🌈", ("utf-8",)),
    Case("nul", "U+0000 is a character like others", "a\x00b\x00", ("utf-8",)),
    Case("controls", "Control characters", "\x01\x7f\x80\x1b[0m", ("utf-8",)),
    Case("noncharacters", "U+FFFF, U+FFFE, U+FDD0", "\uffff\ufffe\ufdd0", ("utf-8",)),
    Case("replacement-character", "U+FFFD in a text is that character", "a\ufffdb", ("utf-8",)),
    Case("byte-order-mark", "U+FEFF at the beginning stays", "\ufeffthe", ("utf-8",)),
    Case(
        "right-to-left",
        "Hebrew and Arabic with marks of direction",
        "\u200fהים\u200e 12 \u202bبحر\u202c",
        ("utf-8",),
    ),
    Case(
        "byte-characters",
        "Ġ and Ċ in a text are these letters, not a space and a line end",
        "Ġthe Ċ",
        ("utf-8",),
    ),
    Case("long-word", "A word of 300 letters", "ha" * 150, ("merges",)),
    Case("long-run", "A run of one sign", "=" * 130, ("merges",)),
    Case(
        "source-code",
        "Indented source code",
        "def f(x):\n    if x:\n        return 1\n\treturn 2\n",
        ("white-space",),
    ),
    Case("line-ends", "CR LF, CR, LF", "a\r\nb\rc\nd\r\n\r\n", ("white-space",)),
    # Normalisation: NFC, the characters of Unicode 9.0
    Case("nfc-compose", "A letter and a mark become one character", "e\u0301te\u0301 u\u0308ber", ("nfc",)),
    Case("nfc-stays", "What is composed stays", "été über", ("nfc",)),
    Case(
        "nfc-two-marks",
        "Marks change places before they are composed",
        "a\u0323\u0302 a\u0302\u0323 s\u0307\u0323",
        ("nfc",),
    ),
    Case(
        "nfc-blocked",
        "A mark behind one of its own class is not composed",
        "a\u0300\u0301 e\u0308\u0301",
        ("nfc",),
    ),
    Case(
        "nfc-hangul", "Jamo become syllables", "\u1112\u1161\u11ab\u1100\u1173\u11af \uac00\u11a8", ("nfc",)
    ),
    Case("nfc-singleton", "Å, Ω and K signs become letters", "\u212b \u2126 \u212a", ("nfc",)),
    Case(
        "nfc-exclusions",
        "Composed characters that NFC takes apart",
        "\u0958 \ufb1d \u0344 \U0001d15e",
        ("nfc",),
    ),
    Case("nfc-kana", "か and U+3099 become が; half-width kana stay", "か\u3099 ｶﾞ", ("nfc",)),
    Case("nfc-not-nfkc", "ﬁ, ①, ², full-width letters stay: not NFKC", "ﬁ ① x² ＡＢＣ", ("nfc",)),
    Case("nfc-cjk", "Compatibility ideographs become the unified ones", "\uf900 \U0002f800", ("nfc",)),
    Case(
        "nfc-unicode-13",
        "U+1ABF (Unicode 13) does not change places",
        "q\u1abf\u0334",
        ("nfc", "classes"),
    ),
    Case(
        "nfc-unicode-14",
        "U+0898 (Unicode 14) does not change places",
        "q\u0898\u0323 e\u0898\u0301",
        ("nfc", "classes"),
    ),
    Case(
        "nfc-composition-unicode-13",
        "U+11935 and U+11930 (Unicode 13) are not composed",
        "\U00011935\U00011930",
        ("nfc", "classes"),
    ),
    Case(
        "nfc-composition-unicode-16",
        "U+105D2 and U+0307 (Unicode 16) are not composed",
        "\U000105d2\u0307",
        ("nfc", "classes"),
    ),
    Case(
        "nfc-mark-unicode-10-nukta",
        "U+1133B (Unicode 11) does not change places",
        "q\U0001133b\u0334",
        ("nfc", "classes"),
    ),
    Case(
        "nfc-in-word",
        "Normalisation before the words are cut: the mark is part of the word",
        "cafe\u0301s",
        ("nfc",),
    ),
    Case("nfc-makes-token", "U+0340 becomes U+0300, which composes", "a\u0340 o\u0341", ("nfc",)),
    Case("no-nfc", "normalizer null: nothing is composed", "e\u0301 \u212b", ("nfc",), {"nfc": False}),
    # Added tokens of the file
    Case("special", "<|endoftext|> in a text is its id", "the<|endoftext|>the", ("added-tokens",)),
    Case(
        "special-twice",
        "Special tokens side by side",
        "<|endoftext|><|endoftext|><|padding|>",
        ("added-tokens",),
    ),
    Case(
        "special-broken",
        "What only looks like one is text",
        "<|endoftext |> <|ENDOFTEXT|> <|endoftext",
        ("added-tokens",),
    ),
    Case("special-nested", "Signs around a special token", "<<|endoftext|>>", ("added-tokens",)),
    Case(
        "special-keeps-space", "The white space around it is text", "the <|endoftext|> the", ("added-tokens",)
    ),
    Case(
        "special-ends-word",
        "A contraction and a space after an added token",
        "it<|endoftext|>'s <|endoftext|> it",
        ("added-tokens",),
    ),
    Case(
        "special-as-text",
        "split_special_tokens: special tokens are read as text, other added ones are not",
        "<|endoftext|>  <word>",
        ("added-tokens",),
        None,
        {"split_special_tokens": True},
    ),
    Case(
        "space-token",
        "Two spaces are one added token; the third belongs to the run",
        "a  b   c",
        ("added-tokens", "white-space"),
    ),
    Case(
        "space-token-before-word",
        "After spaces that are a token, a word has no space",
        "the  the",
        ("added-tokens", "white-space"),
    ),
    Case("space-token-and-tab", "A tab ends a run of spaces", "a  \t  b", ("added-tokens", "white-space")),
    Case(
        "space-token-and-line-end",
        "A line end ends a run of spaces",
        "a   \n    b\n\n  c",
        ("added-tokens", "white-space"),
    ),
    Case(
        "space-token-no-break",
        "U+00A0 is no space of these tokens",
        "a \xa0 b",
        ("added-tokens", "white-space"),
    ),
    Case(
        "space-token-before-special",
        "Spaces before and after a special token",
        "a  <|endoftext|>   b",
        ("added-tokens", "white-space"),
    ),
    Case(
        "single-word",
        "single_word: not beside a letter, a digit, a mark or an underscore",
        "<word> a<word> <word>1 _<word> q\u0301<word> -<word>-",
        ("added-tokens",),
    ),
    Case(
        "single-word-edges",
        "single_word at both ends of a text, and beside CJK",
        "<word>。<word>海<word>",
        ("added-tokens",),
    ),
    Case(
        "single-word-twice",
        "single_word beside itself: < is no part of words",
        "<word><word>",
        ("added-tokens",),
    ),
    Case("single-word-number", "² is no part of words, Ⅷ is", "²<word> Ⅷ<word>", ("added-tokens", "classes")),
    Case(
        "strip",
        "lstrip and rstrip take the white space on both sides, of any kind",
        "a \t\u3000<cut>\x85\n b",
        ("added-tokens",),
    ),
    Case("strip-not-controls", "U+001C and U+200B are not taken", "a\x1c<cut>\u200bb", ("added-tokens",)),
    Case(
        "strip-twice",
        "White space that rstrip has taken is still searched: the two spaces come again",
        "<cut>  <cut>",
        ("added-tokens",),
    ),
    Case(
        "strip-ends",
        "The same behind the token; lstrip takes only what no token before it has",
        "  <cut>  ",
        ("added-tokens",),
    ),
)

# Each case adds its tokens behind those of the file.
ADDED = (
    Case(
        "longest",
        "Of those that begin at one place the longest is taken",
        "abc abcd ab",
        ("added-tokens",),
        added_tokens=(added("ab"), added("abcd")),
    ),
    Case(
        "leftmost",
        "The leftmost is taken, even if a longer one begins inside",
        "abcdef",
        ("added-tokens",),
        added_tokens=(added("ab"), added("bcdef")),
    ),
    Case(
        "leftmost-across-kinds",
        "All with normalized false come first, even if one with true stands before",
        "abcdef",
        ("added-tokens",),
        added_tokens=(added("ab", normalized=True), added("bcdef")),
    ),
    Case(
        "not-inside-itself",
        "What is taken is not looked into again",
        "aaaaa",
        ("added-tokens",),
        added_tokens=(added("aa"),),
    ),
    Case(
        "longest-refused",
        "Where the longest may not stand, no shorter one is looked for",
        "xlonger longer longe",
        ("added-tokens",),
        added_tokens=(added("longer", single_word=True), added("longe")),
    ),
    Case(
        "normalized",
        "normalized true: looked for in the normalised text",
        "e\u0301! é!",
        ("added-tokens", "nfc"),
        added_tokens=(added("é!", normalized=True),),
    ),
    Case(
        "normalized-itself",
        "normalized true: the token itself is normalised too",
        "é! e\u0301!",
        ("added-tokens", "nfc"),
        added_tokens=(added("e\u0301!", normalized=True),),
    ),
    Case(
        "not-normalized",
        "normalized false: looked for in the text as it is",
        "e\u0301! é!",
        ("added-tokens", "nfc"),
        added_tokens=(added("e\u0301!"),),
    ),
    Case(
        "mark-goes-first",
        "A mark that is an added token leaves its letter alone",
        "e\u0301é",
        ("added-tokens", "nfc"),
        added_tokens=(added("\u0301"),),
    ),
    Case(
        "normalized-parts",
        "Text is normalised between added tokens, not across them",
        "e<|endoftext|>\u0301",
        ("added-tokens", "nfc"),
    ),
    Case(
        "composed-away",
        "A token in normalised text is not found where its letter was composed",
        "e\u0301e",
        ("added-tokens", "nfc"),
        added_tokens=(added("e", normalized=True),),
    ),
    Case("lstrip", "lstrip alone", "a  <m>  b", ("added-tokens",), added_tokens=(added("<m>", lstrip=True),)),
    Case("rstrip", "rstrip alone", "a  <m>  b", ("added-tokens",), added_tokens=(added("<m>", rstrip=True),)),
    Case(
        "lstrip-line-end",
        "lstrip takes line ends",
        "a\n\n<m>\nb",
        ("added-tokens",),
        added_tokens=(added("<m>", lstrip=True),),
    ),
    Case(
        "special-strip",
        "A special token with lstrip",
        "a <mask> b",
        ("added-tokens",),
        added_tokens=(added("<mask>", lstrip=True, special=True),),
    ),
    Case(
        "token-with-space",
        "A token that begins with a space",
        "the a b",
        ("added-tokens",),
        added_tokens=(added(" a", normalized=True),),
    ),
    Case(
        "word-of-vocabulary",
        "An added token that merges could make too",
        "The The",
        ("added-tokens",),
        added_tokens=(added("The", normalized=True),),
    ),
    Case(
        "cjk-token",
        "A token without spaces around it",
        "我们<我>们",
        ("added-tokens",),
        added_tokens=(added("们"),),
    ),
    Case(
        "token-twice-in-a-word",
        "Inside a word, which it cuts",
        "seahouse househouse",
        ("added-tokens",),
        added_tokens=(added("house"),),
    ),
)

PREFIX = {"add_prefix_space": True}
AROUND = (
    Case(
        "prefix-space",
        "add_prefix_space: the first word as if after a space",
        "the the",
        ("prefix-space",),
        PREFIX,
    ),
    Case("prefix-space-there", "No second space where one is there", " the", ("prefix-space",), PREFIX),
    Case("prefix-space-other", "Before other white space a space is put", "\nthe", ("prefix-space",), PREFIX),
    Case("prefix-space-empty", "The empty text stays empty", "", ("prefix-space",), PREFIX),
    Case(
        "prefix-space-added",
        "Each piece between added tokens gets its space",
        "the<|endoftext|>the <word> the",
        ("prefix-space", "added-tokens"),
        PREFIX,
    ),
    Case(
        "prefix-space-nfc",
        "The space comes after normalisation",
        "e\u0301te\u0301",
        ("prefix-space", "nfc"),
        PREFIX,
    ),
    Case("prefix-space-digit", "Before digits and signs too", "1", ("prefix-space",), PREFIX),
    Case(
        "prefix-space-contraction",
        "A contraction that begins the text stays one",
        "'s",
        ("prefix-space",),
        PREFIX,
    ),
    Case("bos", "add_bos_token", "the ships", ("special-tokens",), {"add_bos_token": True}),
    Case(
        "eos",
        "add_eos_token",
        "the ships",
        ("special-tokens",),
        {"add_eos_token": True, "eos_token": "<|padding|>"},
    ),
    Case(
        "bos-eos",
        "Both",
        "the ships",
        ("special-tokens",),
        {"add_bos_token": True, "add_eos_token": True, "eos_token": "<|padding|>"},
    ),
    Case(
        "bos-eos-empty",
        "Both around the empty text",
        "",
        ("special-tokens",),
        {"add_bos_token": True, "add_eos_token": True},
    ),
    Case(
        "pair",
        "Two texts without special tokens are joined",
        "the ships",
        ("special-tokens", "pair"),
        pair=" passed",
    ),
    Case(
        "pair-bos-eos",
        "Both around each of two texts",
        "the ships",
        ("special-tokens", "pair"),
        {"add_bos_token": True, "add_eos_token": True, "eos_token": "<|padding|>"},
        pair="passed",
    ),
    Case(
        "pair-eos",
        "The eos token after each of two texts",
        "the",
        ("special-tokens", "pair"),
        {"add_eos_token": True},
        pair="ships",
    ),
    Case(
        "no-special-tokens",
        "add_special_tokens false: nothing around the text",
        "the",
        ("special-tokens",),
        {"add_bos_token": True},
        {"add_special_tokens": False},
    ),
    Case(
        "words-given",
        "Words that are given are encoded one by one, without a space",
        "",
        ("words-given",),
        words=("The", "ships", "", "'s", "passed"),
    ),
    Case(
        "words-given-prefix",
        "With add_prefix_space each of them has one",
        "",
        ("words-given", "prefix-space"),
        PREFIX,
        words=("The", "ships", "e\u0301"),
    ),
)

# The vocabulary of the other file form: no tokens for spaces, so that the pattern alone decides.
FILES = (
    Case("sentence", "vocab.json and merges.txt: the same ids", "The ships passed in the night.", ()),
    Case(
        "special",
        "<|endoftext|> and <|padding|> are added tokens by default",
        "a<|endoftext|>b<|padding|>",
        ("added-tokens",),
    ),
    *(
        Case(f"spaces-{n}", f"{n} spaces: all but the last are one word", f"a{' ' * n}b", ("white-space",))
        for n in (1, 2, 3, 4, 8, 9, 24, 25)
    ),
    Case(
        "spaces-before-digit", "The last space belongs to whatever follows", "a   1   !   é", ("white-space",)
    ),
    Case("spaces-at-end", "At the end of a text they stay together", "a    ", ("white-space",)),
    Case("spaces-only", "Nothing but spaces", "     ", ("white-space",)),
    Case("spaces-before-line-end", "A run goes on over line ends", "a   \n   b", ("white-space",)),
    Case(
        "line-ends", "A run of line ends: the last is a word of its own", "a\nb\n\nc\n\n\nd", ("white-space",)
    ),
    Case(
        "line-end-and-space",
        "Only a space joins the next word, no line end",
        "a\n b\n\n  c",
        ("white-space",),
    ),
    Case(
        "space-and-line-end",
        "A line end behind a space does not join the next word",
        "a \nb  \nc",
        ("white-space",),
    ),
    Case("tabs", "No tab joins the next word", "\t\ta\tb \tc\t d", ("white-space",)),
    Case("carriage-returns", "CR LF is a run of two", "a\r\nb\r\n\r\nc\r\n d", ("white-space",)),
    Case(
        "ideographic-space",
        "U+3000 is white space that joins no word",
        "海\u3000海\u3000 海 \u3000海",
        ("white-space",),
    ),
    Case("next-line", "U+0085 and U+00A0 in a run with spaces", "a \x85b\xa0 c \xa0\x85 d", ("white-space",)),
    Case("not-in-the-run", "U+001C ends a run of white space", "a  \x1c  b", ("white-space",)),
    Case(
        "contraction-after-run",
        "After a run of spaces a contraction has lost its space",
        "it  's",
        ("white-space", "pattern"),
    ),
    Case(
        "source-code",
        "Indented source code",
        "def f(x):\n    if x:\n        return 1\n\treturn 2\n",
        ("white-space",),
    ),
    Case("nfc", "The files say nothing of normalisation; the class does it", "e\u0301te\u0301", ("nfc",)),
)

#: The published vocabulary: real ids beyond the published texts.
TWENTY_B = (
    *(
        Case(
            f"spaces-{n:02}",
            f"{n} space{'s' * (n > 1)} between two words: the longest added tokens from the left",
            f"a{' ' * n}b",
            ("added-tokens", "white-space"),
        )
        for n in range(1, 31)
    ),
    *(
        Case(f"spaces-alone-{n}", f"{n} spaces alone", " " * n, ("added-tokens", "white-space"))
        for n in (23, 24, 25, 47, 48, 49, 50)
    ),
    Case("nfc", "The published file normalises to NFC", "falsé false\u0301", ("nfc",)),
    Case(
        "nfc-not-in-special",
        "Normalisation stops at <|endoftext|>",
        "e<|endoftext|>\u0301é",
        ("nfc", "added-tokens"),
    ),
    Case(
        "special",
        "<|endoftext|> is 0 and <|padding|> is 1",
        "Hello<|endoftext|> world<|padding|>",
        ("added-tokens",),
    ),
    Case(
        "special-as-text",
        "split_special_tokens",
        "<|endoftext|>",
        ("added-tokens",),
        None,
        {"split_special_tokens": True},
    ),
    Case(
        "source-code",
        "Indented source code",
        "def add(a, b):\n    return a + b\n\n\nclass A:\n    def f(self):\n        pass\n",
        ("white-space",),
    ),
    Case("prefix-space", "add_prefix_space", "Hello world", ("prefix-space",), PREFIX),
    Case("bos", "add_bos_token", "Hello world", ("special-tokens",), {"add_bos_token": True}),
    Case(
        "contractions",
        "Contractions",
        "I've been told he's there, they'll see; I'd say we're not. IT'S",
        ("pattern",),
    ),
)

DOCUMENTED = (
    Case(
        "documentation-1",
        'Printed in the documentation of GPTNeoXTokenizer: "Hello world"',
        "Hello world",
        (),
    ),
    Case(
        "documentation-2",
        'Printed in the documentation of GPTNeoXTokenizer: " Hello world"',
        " Hello world",
        (),
    ),
)
DOCUMENTED_IDS = ([15496, 995], [18435, 995])
GPT2 = (
    Case("not-normalised", "GPT-2 itself does not normalise", "e\u0301", ("nfc",), {"nfc": False}),
    Case("special", "<|endoftext|> is 50256", "Hello<|endoftext|>", ("added-tokens",)),
)

ORDER = (
    Case("lowest-rank", "Of all pairs the lowest rank goes first, wherever it stands", "efg", ("merges",)),
    Case("leftmost", "Of equal pairs the leftmost goes first", "ddd", ("merges",)),
    Case("leftmost-run", "A run of equal pairs, from left to right", "ccccc", ("merges",)),
    Case(
        "one-at-a-time",
        "One pair at a time: the first ab makes aba possible, which ranks before the second ab",
        "abab",
        ("merges",),
    ),
    Case("one-at-a-time-longer", "The same in a longer word", "abababab", ("merges",)),
    Case("not-the-longest", "hij is a token, but i and j were joined first", "hij", ("merges",)),
    Case("two-ways", "Two rules that make the same token", "klm", ("merges",)),
    Case("middle-first", "The pair in the middle ranks last", "nopq", ("merges",)),
    Case("space-with-word", "The space is part of the word and merges with it", "rr rr", ("merges",)),
    Case("words-apart", "Rules never reach over the end of a word", "a b ab", ("merges",)),
    Case("nothing-to-merge", "No rule fits", "acegi", ("merges",)),
)

#: What published files do not use: a token for unknown bytes, and words that are taken whole.
UNKNOWN = (
    Case("unknown", "A byte without a token is the unknown token", "az", ("unknown",), required=False),
    Case("unknown-fused", "fuse_unk: several in a row are one", "azzzbz", ("unknown",), required=False),
    Case(
        "unknown-utf-8",
        "The bytes of one character are several unknown ones, fused",
        "aé海b",
        ("unknown",),
        required=False,
    ),
    Case("unknown-at-word-ends", "Fused inside a word only", "z z", ("unknown",), required=False),
    Case(
        "whole-word",
        "ignore_merges: a word that is a token is taken whole, although no merges make it",
        "abba",
        ("unknown",),
        required=False,
    ),
    Case("not-a-whole-word", "A longer word is merged", "abbaa", ("unknown",), required=False),
)

KERAS = (
    Case(
        "keras-1",
        "keras_hub: a special token at the end",
        " airplane at airport<|endoftext|>",
        ("added-tokens",),
    ),
    Case("keras-2", "keras_hub: words that share their beginning", " airplane airport", ()),
)
KERAS_IDS = ([25, 16, 26, 25, 18, 1], [25, 16, 25, 18])

DECODE = (
    Decode("nothing", "No ids, no text", ()),
    Decode("character-of-bytes", "Bytes of one character, one token each", ("\xf0", "\x9f", "\xa6", "\x99")),
    Decode(
        "character-cut", "A character without its last byte is one U+FFFD", ("a", "\xf0", "\x9f", "\xa6", "b")
    ),
    Decode("character-cut-short", "Two bytes of a character of three: one U+FFFD", ("\xe4", "\xb8", "a")),
    Decode("lone-continuation", "Each continuation byte alone is one U+FFFD", ("\x80", "\xbf", "a")),
    Decode("overlong", "C0 80 is no character: two U+FFFD", ("\xc0", "\x80")),
    Decode("overlong-three", "E0 80 80 is no character: three U+FFFD", ("\xe0", "\x80", "\x80")),
    Decode("surrogate", "ED A0 80 is a surrogate: three U+FFFD", ("\xed", "\xa0", "\x80")),
    Decode("too-large", "F4 90 80 80 is beyond U+10FFFF: four U+FFFD", ("\xf4", "\x90", "\x80", "\x80")),
    Decode("never-in-utf-8", "FE, FF, F5 never occur", ("\xfe", "\xff", "\xf5")),
    Decode("cut-then-character", "A new character ends a broken one", ("\xe4", "\xb8", "\xc3", "\xa9")),
    Decode(
        "special-in-character",
        "A special token between the bytes of a character breaks it",
        ("\xe4", "<|endoftext|>", "\xb8", "\xad"),
    ),
    Decode(
        "special-first",
        "Skipping special tokens joins the bytes around them",
        ("<|endoftext|>", "a", "<|padding|>", "b"),
    ),
    Decode("space-tokens", "Tokens for spaces are spaces", ("a", "   ", "b")),
    Decode(
        "added-not-bytes", "An added token is its own text", ("a", "日本", "é!"), (added("日本"), added("é!"))
    ),
    Decode("added-like-bytes", "Also one that is spelled like bytes", ("a", "Ġ!"), (added("Ġ!"),)),
    Decode("nul", "U+0000", ("a", "\x00", "b")),
    Decode("byte-order-mark", "EF BB BF is U+FEFF and stays", ("\xef", "\xbb", "\xbf", "a")),
    Decode("white-space-stays", "White space at both ends stays", (" ", "\n", "a", " ", "\n")),
)

#: Texts that are no Unicode, as UTF-16 code units: nothing else can hold them.
REFUSED_TEXTS = {
    "high-surrogate": ("A high surrogate without its low one", "0061d83d0062"),
    "low-surrogate": ("A low surrogate alone", "dc00"),
    "surrogates-reversed": ("A pair in the wrong order", "de00d83d"),
}
#: Ids that stand for nothing.
REFUSED_IDS = {
    "negative": ("A negative id", [5, -1]),
    "beyond-the-vocabulary": ("An id that no embedding of this model could have", [5, 2**31]),
}
