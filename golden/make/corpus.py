"""The text that the embedded model is trained on: public-domain works of Aozora Bunko.

Where the works come from, in this order:

1. `$REFIMPL_DATA/aozora/`: `index.tsv` (columns file, author, died, title, subtitle, orthography_guess, chars, bytes,
   source_path) and one UTF-8 text file per work, already stripped of Aozora's annotations.
2. A clone of the public repository below, named by `$AOZORA_CLONE`, together with the same `index.tsv` (column
   source_path names the file there).  Those files are cp932 with ruby and annotations, which `strip_annotations`
   removes.

The works that are held back from training are the 60 with the smallest sha256 of their file name; their names
are in `held_back.txt`.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = "https://github.com/aozorahack/aozorabunko_text"
COMMIT = "0984f7dc18a2270bdfd2ff99bf14fd1b3ebb4f65"
HELD_BACK_WORKS = 60
HELD_BACK_LIST = Path(__file__).parent / "held_back.txt"


@dataclass(frozen=True)
class Work:
    """One work: where its text lies, and what the index says of it."""

    file: str
    author: str
    title: str
    orthography: str
    path: Path
    annotated: bool

    def text(self) -> str:
        """The text without Aozora's annotations, lines ended by a single newline."""
        if not self.annotated:
            return self.path.read_text(encoding="utf-8").strip("\n")
        return strip_annotations(self.path.read_text(encoding="cp932", errors="replace")).strip("\n")


def find_works(orthography: str = "new_kanji/new_kana") -> list[Work]:
    """All works in this orthography, in order of file name; exits with what to do when there are none."""
    data = os.environ.get("REFIMPL_DATA")
    if not data or not (Path(data) / "aozora" / "index.tsv").is_file():
        raise SystemExit(_HOW_TO)
    folder = Path(data) / "aozora"
    clone = os.environ.get("AOZORA_CLONE")
    works = []
    with open(folder / "index.tsv", encoding="utf-8", newline="") as index:
        for row in csv.DictReader(index, delimiter="\t", quoting=csv.QUOTE_NONE):
            path = Path(clone) / row["source_path"] if clone else folder / row["file"]
            if row["orthography_guess"] == orthography:
                works.append(Work(row["file"], row["author"], row["title"], orthography, path, bool(clone)))
    missing = [work.file for work in works if not work.path.is_file()]
    if missing:
        raise SystemExit(f"{len(missing)} of {len(works)} works are missing, first {missing[0]}.\n{_HOW_TO}")
    return sorted(works, key=lambda work: work.file)


_HOW_TO = f"""The training corpus is not here. Set REFIMPL_DATA to a folder with aozora/index.tsv and the texts; or
  git clone {REPOSITORY} && git -C aozorabunko_text checkout {COMMIT}
then set AOZORA_CLONE to that folder, and REFIMPL_DATA to one with aozora/index.tsv (columns file, author, title,
orthography_guess and source_path, a path inside the clone, for every work to train on)."""


def split(works: list[Work]) -> tuple[list[Work], list[Work]]:
    """(training works, held-back works); refuses to go on when the list in `held_back.txt` says otherwise."""
    ranked = sorted(works, key=lambda work: hashlib.sha256(work.file.encode()).hexdigest())
    held_back = sorted(ranked[:HELD_BACK_WORKS], key=lambda work: work.file)
    if HELD_BACK_LIST.is_file():
        listed = [line.split("\t")[0] for line in HELD_BACK_LIST.read_text(encoding="utf-8").splitlines()]
        if [work.file for work in held_back] != listed:
            raise SystemExit(
                f"the works held back here are not those listed in {HELD_BACK_LIST.name}: other corpus?"
            )
    else:
        lines = "".join(f"{work.file}\t{work.author}\t{work.title}\n" for work in held_back)
        HELD_BACK_LIST.write_text(lines, encoding="utf-8")
    names = {work.file for work in held_back}
    return [work for work in works if work.file not in names], held_back


def strip_annotations(text: str) -> str:
    """An Aozora source file as plain text: no header, ruby, typesetting notes or colophon.

    Format: https://www.aozora.gr.jp/annotation/ .  A character that cp932 lacks is written there as a note with its
    Unicode or JIS X 0213 number; where it has neither it becomes 〓.
    """
    text = text.replace("\r\n", "\n")
    parts = re.split(r"^-{20,}\n", text, maxsplit=2, flags=re.MULTILINE)
    body = parts[2] if len(parts) == 3 else text.partition("\n\n")[2]
    body = re.split(r"^底本：", body, maxsplit=1, flags=re.MULTILINE)[0]
    body = re.sub(r"※［＃[^］]*］", _described_character, body)
    body = re.sub(r"［＃[^］]*］", "", body)
    body = re.sub(r"《[^》\n]*》", "", body)
    return body.replace("｜", "")


def _described_character(note: re.Match[str]) -> str:
    if unicode := re.search(r"U\+([0-9A-Fa-f]{4,5})", note[0]):
        return chr(int(unicode[1], 16))
    if jis := re.search(r"([12])-(\d{1,2})-(\d{1,2})", note[0]):
        plane, row, cell = map(int, jis.groups())
        # EUC shifts the second plane with 0x8f and counts rows and cells from 0xa0.
        code = b"\x8f" * (plane - 1) + bytes([0xA0 + row, 0xA0 + cell])
        return code.decode("euc_jis_2004", errors="replace").replace("\ufffd", "〓")
    return "〓"
