"""The text that the embedded model is trained on: public-domain works of Aozora Bunko.

`works.tsv` lists them: a name, and the path in the public repository below.  Where their texts come from:

1. `$REFIMPL_DATA/aozora/`, one UTF-8 file per work under its name, already stripped of Aozora's annotations.
2. Otherwise the repository itself, at the pinned commit: the clone that `$AOZORA_CLONE` names, or one that is
   fetched into `scratch/`.  Those files are cp932 with ruby and annotations, which `strip_annotations` removes.

The works that are held back from training are the 60 with the smallest sha256 of their name; they are listed in
`held_back.txt`.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = "https://github.com/aozorahack/aozorabunko_text"
COMMIT = "0984f7dc18a2270bdfd2ff99bf14fd1b3ebb4f65"
HELD_BACK_WORKS = 60
HERE = Path(__file__).parent
WORKS, HELD_BACK_LIST = HERE / "works.tsv", HERE / "held_back.txt"


@dataclass(frozen=True)
class Work:
    """One work: its name, where its text lies, and whether that is Aozora's own annotated file."""

    file: str
    path: Path
    annotated: bool

    def text(self) -> str:
        """The text without Aozora's annotations, lines ended by a single newline."""
        if not self.annotated:
            return self.path.read_text(encoding="utf-8").strip("\n")
        return strip_annotations(self.path.read_text(encoding="cp932", errors="replace")).strip("\n")


def find_works() -> list[Work]:
    """All works, in order of their names; exits with what to do when some are missing."""
    listed = [line.split("\t") for line in WORKS.read_text(encoding="utf-8").splitlines()]
    data = os.environ.get("REFIMPL_DATA")
    if data and (Path(data) / "aozora").is_dir():
        folder = Path(data) / "aozora"
        works = [Work(name, folder / name, False) for name, _ in listed]
    else:
        folder = Path(os.environ.get("AOZORA_CLONE") or fetch())
        works = [Work(name, folder / path, True) for name, path in listed]
    missing = [work.file for work in works if not work.path.is_file()]
    if missing:
        raise SystemExit(
            f"{len(missing)} of {len(works)} works are not in {folder}, the first is {missing[0]}. Set REFIMPL_DATA to "
            f"a folder with aozora/, or AOZORA_CLONE to a clone of {REPOSITORY} at {COMMIT}."
        )
    return works


def fetch() -> Path:
    """The repository at its pinned commit, without its history; fetched once."""
    folder = HERE / "scratch" / "aozorabunko_text"
    if not (folder / ".git" / "FETCH_HEAD").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"fetching {REPOSITORY} at {COMMIT}", flush=True)
        for command in (["init", "-q"], ["fetch", "-q", "--depth", "1", REPOSITORY, COMMIT]):
            subprocess.run(["git", "-C", str(folder), *command], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "-q", COMMIT], check=True)
    return folder


def split(works: list[Work]) -> tuple[list[Work], list[Work]]:
    """(training works, held-back works); refuses to go on when the list in `held_back.txt` says otherwise."""
    ranked = sorted(works, key=lambda work: hashlib.sha256(work.file.encode()).hexdigest())
    held_back = sorted(ranked[:HELD_BACK_WORKS], key=lambda work: work.file)
    listed = [line.split("\t")[0] for line in HELD_BACK_LIST.read_text(encoding="utf-8").splitlines()]
    if [work.file for work in held_back] != listed:
        raise SystemExit(f"the works held back here are not those of {HELD_BACK_LIST.name}: another corpus?")
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
