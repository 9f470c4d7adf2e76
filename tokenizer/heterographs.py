"""Heterographs: characters that are written differently but are one token.

A vocabulary line lists all forms of a token; the first form is the modern one, and the only one that is
decoded.  What Unicode itself calls a compatibility form (half-width katakana, compatibility ideographs,
Kangxi radicals, circled and parenthesised digits and letters) is computed; the table below adds what
Unicode keeps apart: the kanji of the reforms of 1946 and 1949 (source: the character lists of those
reforms) and the variants that live on in Japanese names.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata

# Modern form first, then the older ones or the ones used in names only.  龍, 遙 and the like are missing on
# purpose: beside 竜 and 遥 they are in use today, so folding them would change how a name is written.
KANJI_FORMS = """
亜亞 悪惡 圧壓 囲圍 医醫 為爲 壱壹 隠隱 栄榮 営營 衛衞 駅驛 円圓 塩鹽 縁緣 艶艷 応應 欧歐 殴毆 桜櫻 奥奧 横橫
温溫 穏穩 仮假 価價 画畫 会會 絵繪 壊壞 懐懷 概槪 拡擴 殻殼 覚覺 学學 岳嶽 楽樂 渇渴 巻卷 陥陷 勧勸 寛寬 関關
歓歡 観觀 館舘 顔顏 気氣 帰歸 亀龜 偽僞 戯戲 犠犧 旧舊 拠據 挙擧 虚虛 峡峽 挟挾 狭狹 郷鄕 暁曉 区區 駆驅 勲勳
薫薰 群羣 径徑 茎莖 恵惠 掲揭 渓溪 経經 蛍螢 軽輕 継繼 鶏鷄 芸藝 撃擊 欠缺 研硏 県縣 倹儉 剣劍劒劔 険險 圏圈
検檢 献獻 権權 顕顯 験驗 厳嚴 広廣 効效 恒恆 高髙 黄黃 鉱鑛 号號 国國囯 黒黑 済濟 砕碎 崎﨑 斎齋 剤劑 冊册 桟棧
雑雜 参參 蚕蠶 惨慘 賛贊 残殘 糸絲 歯齒 児兒 辞辭 湿濕 実實 舎舍 写寫 釈釋 寿壽 収收 従從 渋澁 獣獸 縦縱 粛肅
処處 緒緖 叙敍 将將 称稱 渉涉 焼燒 証證 奨奬 条條 状狀 乗乘 浄淨 剰剩 畳疊 縄繩 壌壤 嬢孃 譲讓 醸釀 触觸 嘱囑
真眞 寝寢 慎愼 尽盡 図圖 粋粹 酔醉 穂穗 随隨 髄髓 枢樞 数數 瀬瀨 声聲 斉齊 静靜 窃竊 摂攝 専專 浅淺 戦戰 践踐
銭錢 潜潛 繊纖 禅禪 双雙 壮壯 争爭 荘莊 捜搜 挿插 巣巢 装裝 総總 騒騷 増增 蔵藏 臓臟 属屬 続續 堕墮 対對 体體
帯帶 滞滯 台臺 滝瀧 択擇 沢澤 担擔 単單 胆膽 団團 断斷 弾彈 遅遲 痴癡 虫蟲 昼晝 鋳鑄 庁廳 聴聽 鎮鎭 逓遞 鉄鐵
点點 転轉 伝傳 都都 島嶋嶌 灯燈 当當 党黨 盗盜 稲稻 闘鬪 徳德 独獨 読讀 届屆 富冨 悩惱 脳腦 覇霸 拝拜 廃廢 売賣
麦麥 発發 髪髮 抜拔 蛮蠻 秘祕 浜濱 瓶甁 仏佛 払拂 並竝 辺邊邉 変變 弁辨瓣辯 宝寶 豊豐 峰峯 褒襃 翻飜 毎每 万萬
満滿 黙默 訳譯 薬藥 与與 予豫 余餘 誉譽 揺搖 様樣 謡謠 来來 頼賴 乱亂 覧覽 略畧 両兩 猟獵 緑綠 塁壘 涙淚 礼禮
励勵 戻戾 霊靈 齢齡 恋戀 炉爐 労勞 楼樓 録錄 湾灣 吉𠮷 呂吕
"""

WINDOW = 3  # how many characters the tokenizer looks at

# Ranges whose members Unicode decomposes to one ordinary ideograph: compatibility ideographs and radicals.
_IDEOGRAPH_RANGES = ((0xF900, 0xFADA), (0x2F800, 0x2FA1E), (0x2E80, 0x2EF4), (0x2F00, 0x2FD6))
_HALF_WIDTH = range(0xFF61, 0xFFA0)
_DIGIT_STYLES = (0x2460, 0x2474, 0x2488, 0x24F5)  # ① ⑴ ⒈ ⓵, each followed by 2 to 9
_LETTER_STYLES = {"Ａ": (0x24B6,), "ａ": (0x249C, 0x24D0)}  # Ⓐ; ⒜ ⓐ, each followed by b to z


@functools.cache
def forms() -> dict[str, tuple[str, ...]]:
    """First form -> its other forms, for every character that has any; two-character forms first."""
    found: dict[str, list[str]] = {}
    for entry in KANJI_FORMS.split():
        found.setdefault(entry[0], []).extend(other for other in entry[1:] if other != entry[0])
    # Half-width voiced katakana are two characters (ｶﾞ): a base and a sound mark that NFKC joins.
    half_width = [chr(code) for code in _HALF_WIDTH]
    pairs = [base + mark for base, mark in itertools.product(half_width, "ﾞﾟ")]
    ideographs = [chr(code) for start, stop in _IDEOGRAPH_RANGES for code in range(start, stop)]
    for other in [*pairs, *half_width, *ideographs]:
        first = _compatible(other)
        if len(first) == 1 and first != other:
            found.setdefault(first, []).append(other)
    for number in range(1, 10):
        found[chr(ord("０") + number)] = [chr(style + number - 1) for style in _DIGIT_STYLES]
    for first_letter, styles in _LETTER_STYLES.items():
        for step in range(26):
            found[chr(ord(first_letter) + step)] = [chr(style + step) for style in styles]
    return _without_chains(found)


def _compatible(text: str) -> str:
    return {"ﾞ": "゛", "ﾟ": "゜"}.get(text) or unicodedata.normalize("NFKC", text)


def _without_chains(found: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """Join lines that meet: the radical ⻑ is a form of an older kanji that itself is a form of a newer one."""
    newer = {other: entry[0] for entry in KANJI_FORMS.split() for other in entry[1:]}
    joined: dict[str, list[str]] = {}
    for first, others in found.items():
        joined.setdefault(newer.get(first, first), []).extend(others)
    return {first: tuple(dict.fromkeys(o for o in others if o != first)) for first, others in joined.items()}


@functools.cache
def folding() -> dict[int, str]:
    """A table for `str.translate` that replaces every one-character form by its first form."""
    return {ord(other): first for first, others in forms().items() for other in others if len(other) == 1}


def vocabulary_line(token: str) -> str:
    """All forms of `token`, the token itself first, separated by commas: one line of `vocab.txt`.

    The forms of a kanji sub-word are all combinations of the forms of its kanji, as in the published file
    (慶応,慶應); a katakana sub-word has its half-width form where that fits the tokenizer's three characters.
    """
    if len(token) == 1:
        return ",".join((token, *forms().get(token, ())))
    if "゠" <= token[0] <= "ヿ":
        half_width = "".join(forms().get(char, (char,))[0] for char in token)
        fits = len(half_width) <= WINDOW and not set(half_width) & set(token)
        return f"{token},{half_width}" if fits else token
    choices = [(char, *forms().get(char, ())) for char in token]
    return ",".join("".join(choice) for choice in itertools.product(*choices))
