"""Which emoji belong to which of the 12 classes that a vocabulary has tokens for.

The tokenizer replaces every emoji by the token of its class, in the order of `emoji.json`; the token is decoded as
one member of the class.  The table is made here from the classes below and from Unicode's rules for how longer
emoji are put together (UTS #51): variation selectors, skin tones, and sequences joined by U+200D.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

NAMES = {
    1: "faces, cheerful or calm",
    2: "faces, unhappy, unwell or frightening",
    3: "sports, play and festivals",
    4: "animals",
    5: "flags",
    6: "food and drink",
    7: "objects and music",
    8: "people and hands",
    9: "hearts and love",
    10: "symbols",
    11: "places, travel, nature and weather",
    12: "faces made of letters",
}

# `a-b` is a range of code points; spaces only separate.
MEMBERS = {
    1: """😀-😇 😉-😌 😎-😑 😛-😝 😮 😯 😲-😴 😶 😸-😺 😼 🙂 🙃 🤐 🤑 🤓 🤔 🤖 🤗 🤠 🤡 🤣 🤤 🤨-🤫 🤭
          🥱-🥳 🥸 🥹 🧐 🫠-🫣 🫨 ☺""",
    2: """😈 😒-😖 😞-😭 😰 😱 😵 😷 😾-🙁 🙄 🤒 🤕 🤢 🤥 🤧 🤬 🤮 🤯 🥴-🥶 🥺 👹-👻 👽-💀 💩 🧌 🫤 🫥 ☹ ☠""",
    3: """🎀 🎁 🎃 🎄 🎆-🎋 🎍-🎑 🎖 🎗 🎞 🎟 🎣 🎪 🎫 🎭-🎴 🎽-🏀 🏂-🏌 🏏-🏓 🏸 🏹 🕹 🚣 🚴 🚵 🛹 🛼 🤸-🤺 🤼-🤿
          🥅 🥇-🥏 🧧-🧩 🧸 🪀-🪂 🪄-🪆 🪩 🀄 🃏 ♟ ♠ ♣ ♥ ♦ ⚽ ⚾ ⛳ ⛷-⛹""",
    4: "🐀-🐿 🕊 🕷 🕸 🙈-🙊 🦀-🦮 🪰-🪳 🪶 🪸 🪼 🪽 🪿 🫎 🫏",
    5: "🏁 🏳 🏴 🚩 🎌",
    6: "🌭-🌰 🌶 🌽 🍄-🍿 🎂 🥂-🥄 🥐-🥯 🧀-🧋 🫐-🫛 ☕",
    7: """🎒 🎓 🎙-🎛 🎤-🎩 🎬 🎵-🎼 🏮 🏷 🏺 👑-👢 💄 💈-💊 💍 💎 💡 💣 💰-📚 📜-📲 📷-📽 📿 🔇-🔗 🔦-🔮 🕯 🕰
          🕶 🖇 🖊-🖍 🖥 🖨 🖱 🖲 🖼 🗂-🗄 🗑-🗓 🗜-🗞 🗡 🗳 🗿 🚪 🚬 🚽 🚿 🛁 🛋 🛍-🛏 🛒 🛞-🛡 🥁 🥻-🥿
          🦯 🦺 🦼 🦽 🧢-🧦 🧪-🧬 🧮-🧷 🧹-🧿 🩰-🩴 🩸-🩼 🪃 🪇 🪈 🪑-🪧 🪪-🪮 ⌚ ⌛ ⌨ ⏰-⏳ ☎ ⚒ ⚔ ⚖ ⚗ ⚙
          ⚜ ⚰ ⚱ ⛏ ⛑ ⛓ ✂ ✉ ✏ ✒""",
    8: """🎅 👀-👐 👣-👸 👼 💁-💃 💅-💇 💪 🕴 🕵 🕺 🖐 🖕 🖖 🗣 🙅-🙇 🙋-🙏 🚶 🛀 🛌 🤌 🤏 🤘-🤟 🤦 🤰-🤷 🥷
          🦰-🦹 🦻 🦾 🦿 🧍-🧏 🧑-🧠 🫀-🫅 🫦 🫰-🫸 ☝ ✊-✍""",
    9: "💋 💌 💏 💑 💓-💟 🖤 😍 😗-😚 😻 😽 🤍 🤎 🥰 🧡 🩵-🩷 ❣ ❤",
    10: """🏧 💠 💢 💤-💦 💨 💫-💯 📛 📳-📶 🔀-🔆 🔘-🔤 🔯-🔽 🕉 🕎 🕐-🕧 🕳 🗨 🗯 🚫 🚭-🚱 🚳 🚷-🚼 🚾 🛂-🛅 🛐 🛑
          🛗 🛜 🟠-🟫 🟰 🪯 🅰 🅱 🅾 🅿 🆎 🆑-🆚 🈁 🈂 🈚 🈯 🈲-🈺 🉐 🉑 ‼ ⁉ ™ ℹ ↔-↙ ↩ ↪ ⏏ ⏩-⏯ ⏸-⏺ Ⓜ ▪ ▫ ▶
          ◀ ◻-◾ ☑ ☢ ☣ ☦ ☪ ☮ ☯ ☸ ♀ ♂ ♈-♓ ♻ ♾ ♿ ⚕ ⚛ ⚠ ⚧ ⚪ ⚫ ⛎ ⛔ ✅ ✔ ✖ ✝ ✡ ✳ ✴ ❇ ❌ ❎ ❓-❕ ❗ ➕-➗ ➡ ➰ ➿
          ⤴ ⤵ ⬅-⬇ ⬛ ⬜ ⭕ 〰 〽 ㊗ ㊙""",
    11: """🌀-🌡 🌤-🌬 🌱-🌵 🌷-🌼 🌾-🍃 🎠-🎢 🏍 🏎 🏔-🏦 🏨-🏭 🏯 🏰 🏵 💐 💒 💧 🔥 🕋-🕍 🗺-🗾 🚀-🚢 🚤-🚨 🚲 🛕 🛖
          🛝 🛢-🛥 🛩 🛫 🛬 🛰 🛳-🛸 🛺 🛻 🥀 🧭 🪐 🪨 🪴 🪵 🪷 🪹-🪻 🫧 ☀-☄ ☔ ☘ ♨ ⚓ ⚡ ⛄ ⛅ ⛈ ⛩ ⛪ ⛰-⛲ ⛴
          ⛵ ⛺ ⛽ ✈ ✨ ❄ ⭐""",
}
# Decoded for the class.  Each is itself a member, so that decoded text has the same ids.
SHOWN = dict(enumerate(["😊", "😢", "⚽", "🐱", "🇯🇵", "🍵", "🎵", "👍", "💖", "✅", "🌸", "(^_^)"], start=1))

# Below U+10000 most emoji are old text symbols (♪ is not among them, but ♀ ♥ ▶ ↔ are).  They count as emoji when
# a variation selector asks for it; these do without, as nobody writes them for anything else.
_BARE = """⌚ ⌛ ⏩-⏬ ⏰ ⏳ ☔ ☕ ☝ ☺ ☹ ☠ ☀-☃ ☎ ♿ ⚓ ⚡ ⚽ ⚾ ⛄ ⛅ ⛎ ⛔ ⛪ ⛲ ⛳ ⛵ ⛺ ⛽ ✂ ✅ ✈-✍ ✨ ❄ ❌ ❎
           ❓-❕ ❗ ❣ ❤ ⬛ ⬜ ⭐"""

_SKIN = """☝ ⛹ ✊-✍ 🎅 🏂-🏄 🏇 🏊-🏌 👂 👃 👆-👐 👦-👩 👫-👮 👰-👸 👼 💁-💃 💅-💇 💏 💑 💪 🕴 🕵 🕺 🖐 🖕 🖖 🙅-🙇
           🙋-🙏 🚣 🚴-🚶 🛀 🛌 🤌 🤏 🤘-🤟 🤦 🤰-🤹 🤽 🤾 🥷 🦵 🦶 🦸 🦹 🦻 🧍-🧏 🧑-🧝 🫃-🫅 🫰-🫸"""
_GENDERED = """⛹ 🏃 🏄 🏊-🏌 👮 👯 👰 👱 👳 👷 💁 💂 💆 💇 🕵 🙅-🙇 🙋 🙍 🙎 🚣 🚴-🚶 🤦 🤵 🤷-🤹 🤼-🤾 🦸 🦹 🧍-🧏
               🧔 🧖-🧟"""
_ROLES = "⚕ ⚖ ✈ 🌾 🍳 🍼 🎓 🎤 🎨 🏫 🏭 💻 💼 🔧 🔬 🚀 🚒 🦯 🦼 🦽 🦰-🦳"
_JOINED = {
    1: ["😶 🌫", "😮 💨"],
    2: ["😵 💫"],
    4: ["🐕 🦺", "🐈 ⬛", "🐻 ❄", "🐦 ⬛"],
    5: ["🏳 🌈", "🏳 ⚧", "🏴 ☠"],
    8: ["🧑 🎄", "🧑🏻 🎄", "🧑🏼 🎄", "🧑🏽 🎄", "🧑🏾 🎄", "🧑🏿 🎄"],
    9: ["❤ 🔥", "❤ 🩹"],
    10: ["👁 🗨"],
}
_ADULTS, _CHILDREN = "👨👩", ["👦", "👧", "👧 👦", "👦 👦", "👧 👧"]
_TONES = ["", *map(chr, range(0x1F3FB, 0x1F400))]
_SELECTOR, _JOINER, _KEYCAP = "\ufe0f", "\u200d", "\u20e3"

# Second letters of the two-letter region codes that have a flag, by their first letter.
_REGIONS = """A:CDEFGILMOQRSTUWXZ B:ABDEFGHIJLMNOQRSTVWYZ C:ACDFGHIKLMNOPRUVWXYZ D:EGJKMOZ E:ACEGHRSTU F:IJKMOR
              G:ABDEFGHILMNPQRSTUWY H:KMNRTU I:CDELMNOQRST J:EMOP K:EGHIMNPRWYZ L:ABCIKRSTUVY
              M:ACDEFGHKLMNOPQRSTUVWXYZ N:ACEFGILOPRUZ O:M P:AEFGHKLMNRSTWY Q:A R:EOSUW
              S:ABCDEGHIJKLMNORSTVXYZ T:ACDFGHJKLMNORTVWZ U:AGMNSYZ V:ACEGINU W:FS X:K Y:ET Z:AMW"""
_COUNTRIES_OF_BRITAIN = ["gbeng", "gbsct", "gbwls"]

KAOMOJI = """
    (^_^) (^^) (^-^) (^o^) (^0^) (^▽^) (^ω^) (^∀^) (^^)v (^_^)v (^o^)丿 ＼(^o^)／ ヽ(^o^)丿 (^_^;) (^^;) (^-^;)
    (^_-) (^_-)-☆ (*^_^*) (*^^*) (*^-^*) (*^▽^*) (^.^) (^з^) (#^.^#) (*´ω`*) (´ω`) (´∀`) (*´∀`*) (´▽`) (´ε`)
    (・∀・) (・ω・) (´・ω・`) (`・ω・´) (｀・ω・´) (´；ω；`) (；ω；) (;_;) (T_T) (ToT) (TдT) (ｉ_ｉ) (>_<) (>_<;)
    (-_-) (-_-;) (-_-)zzz (¬_¬) (=_=) (x_x) (@_@) (o_o) (O_O) (゜o゜) (゜-゜) (゜д゜) (´д`) (´Д`) (；´Д`) (≧▽≦) (≧∇≦)
    (≧ω≦) (￣ー￣) (￣▽￣) (￣^￣)ゞ m(_)m m(__)m <(_)> _(:3」∠)_ (╯°□°)╯ ┐(´д`)┌ ヽ(´ー`)ノ
    （＾＾） （＾ｏ＾） （＾ω＾） （；＿；） （Ｔ＿Ｔ） （＞＿＜） ʕ•ᴥ•ʔ
"""


def expand(ranges: str) -> list[str]:
    """The characters of `"a-c x"`: a, b, c, x."""
    found = []
    for entry in ranges.split():
        found += [chr(code) for code in range(ord(entry[0]), ord(entry[-1]) + 1)]
    return found


@functools.cache
def emoji_table() -> dict[str, dict[str, str]]:
    """The content of `emoji.json`: `{"emoji": {text: token}, "emoji_inv": {token: text}}`, longest text first."""
    entries = dict(_entries())
    order = sorted(entries, key=lambda text: (-len(text), text))
    return {
        "emoji": {text: f"<|emoji{entries[text]}|>" for text in order},
        "emoji_inv": {f"<|emoji{number}|>": text for number, text in SHOWN.items()},
    }


def _entries() -> Iterator[tuple[str, int]]:
    bare, skin = set(expand(_BARE)), expand(_SKIN)
    class_of = {char: number for number, ranges in MEMBERS.items() for char in expand(ranges)}
    for char, number in class_of.items():
        yield char + _SELECTOR, number
        if ord(char) > 0xFFFF or char in bare:
            yield char, number
    for char, tone in itertools.product(skin, _TONES[1:]):
        yield char + tone, class_of[char]
    for number, sequences in _JOINED.items():
        for sequence in sequences:
            yield from ((text, number) for text in _join(sequence.split()))
    for char, tone, sign in itertools.product(expand(_GENDERED), _TONES, "♂♀"):
        if not tone or char in skin:
            yield from ((text, class_of[char]) for text in _join([char + tone, sign]))
    for person, tone, role in itertools.product("👨👩🧑", _TONES, expand(_ROLES)):
        yield from ((text, 8) for text in _join([person + tone, role]))
    yield from _couples_and_families()
    for entry in _REGIONS.split():
        for letter in entry[2:]:
            yield _regional(entry[0]) + _regional(letter), 5
    for tag in _COUNTRIES_OF_BRITAIN:
        yield "🏴" + "".join(chr(0xE0000 + ord(char)) for char in tag) + "\U000e007f", 5
    for key in "#*0123456789":
        yield key + _SELECTOR + _KEYCAP, 10
        yield key + _KEYCAP, 10
    for face in KAOMOJI.split():
        yield face, 12


def _couples_and_families() -> Iterator[tuple[str, int]]:
    pairs = ["👩👨", "👨👨", "👩👩", "🧑🧑"]
    for pair, first, second in itertools.product(pairs, _TONES, _TONES):
        if bool(first) == bool(second):
            one, two = pair[0] + first, pair[1] + second
            yield from ((text, 8) for text in _join([one, "🤝", two]))
            yield from ((text, 9) for text in [*_join([one, "❤", two]), *_join([one, "❤", "💋", two])])
    for first, second in itertools.product("🫱", "🫲"):
        for one, two in itertools.product(_TONES[1:], _TONES[1:]):
            yield from ((text, 8) for text in _join([first + one, second + two]))
    parents = [*_ADULTS, "👨 👩", "👨 👨", "👩 👩"]
    for adults, children in itertools.product(parents, _CHILDREN):
        yield from ((text, 8) for text in _join([*adults.split(), *children.split()]))


def _join(parts: list[str]) -> set[str]:
    """The parts with U+200D between them: with and without variation selectors after the old text symbols."""
    full = [part + _SELECTOR if _takes_selector(part) else part for part in parts]
    mixed = [parts[0], *full[1:]], [full[0], *parts[1:]]
    return {_JOINER.join(choice) for choice in (full, *mixed, parts)}


def _takes_selector(part: str) -> bool:
    old_symbol = len(part) == 1 and ord(part) < 0x10000 and part != "⬛"
    return old_symbol or part in set("🌫🏋🏌🏳👁🕵🗨")


def _regional(letter: str) -> str:
    return chr(0x1F1E6 + ord(letter) - ord("A"))
