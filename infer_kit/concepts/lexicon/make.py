"""Make the lexicon from the files of WordNet 3.0.

    python -m infer_kit.concepts.lexicon.make WORDNET_DIR

WORDNET_DIR holds index.sense, noun.exc and adj.exc (Debian: /usr/share/wordnet). Only people who
change the lexicon need this: its result, wordnet.txt.gz, is part of the package. The licence of
WordNet is beside it, in LICENSE.wordnet, and goes where the file goes.
"""

import gzip
import sys
from collections import defaultdict
from pathlib import Path

from infer_kit.errors import InferKitError

TARGET = Path(__file__).with_name("wordnet.txt.gz")
_NEEDED = ("index.sense", "noun.exc", "adj.exc")
_PARTS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}  # ss_type; 5 is a satellite adjective
_ANIMATE = {"05", "18"}  # lex_filenum of noun.animal and noun.person


def lexicon_text(folder: str | Path) -> str:
    """The lexicon as text: sections of sorted lines, each under a line [name].

    nouns: every noun lemma. adjectives, verbs: those of one word. animate: nouns of one word whose
    first sense is a person or an animal. counts: "word n v a r", the tags of all senses of a part
    of speech in the texts that were tagged for WordNet, where there are any. plurals, comparatives:
    the exceptions, "form lemma ...".

    Raises:
        InferKitError: a file is missing.
    """
    folder = Path(folder)
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise InferKitError(
            f"{str(folder)!r} has no {', '.join(missing)}.",
            hint="Give the folder of WordNet 3.0's database files (Debian: /usr/share/wordnet).",
        )
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    animate = set()
    for line in _lines(folder / "index.sense"):
        key, _, number, tagged = line.split()
        lemma, sense = key.rsplit("%", 1)
        part = _PARTS[sense[0]]
        counts[lemma][part] = counts[lemma].get(part, 0) + int(tagged)
        if part == "n" and number == "1" and sense.split(":")[1] in _ANIMATE:
            animate.add(lemma)
    single = {lemma: found for lemma, found in counts.items() if "_" not in lemma}
    sections = {
        "nouns": [lemma for lemma, found in counts.items() if "n" in found],
        "adjectives": [lemma for lemma, found in single.items() if "a" in found],
        "verbs": [lemma for lemma, found in single.items() if "v" in found],
        "animate": [lemma for lemma in animate if "_" not in lemma],
        "counts": [
            " ".join([lemma, *(str(found.get(part, 0)) for part in "nvar")])
            for lemma, found in single.items()
            if any(found.values()) and set(found) != {"r"}
        ],
        "plurals": _exceptions(folder / "noun.exc"),
        "comparatives": _exceptions(folder / "adj.exc"),
    }
    return "".join(
        "\n".join([f"[{name}]", *sorted(lines)]) + "\n" for name, lines in sections.items()
    )


def write(text: str, path: str | Path) -> None:
    """Compress without a time or a name, so that one text gives one file (with one zlib)."""
    Path(path).write_bytes(gzip.compress(text.encode("ascii"), 9, mtime=0))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="ascii").splitlines()


def _exceptions(path: Path) -> list[str]:
    return [line for line in _lines(path) if "_" not in line]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(str(__doc__))
    write(lexicon_text(sys.argv[1]), TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")
