"""Makes synthgen/wordnet-3.0-nouns.parquet, the nouns of WordNet 3.0, the licence beside it, and
wordnet-3.0-first-senses.parquet: what other words mean first, and the irregular forms of all.

    python scripts/wordnet.py /usr/share/wordnet

The folder holds WordNet's `data.noun`, `index.*` and `*.exc`, as the Debian package wordnet-base (3.0)
installs them; `dpkg -x wordnet-base_*.deb DIR` unpacks it anywhere. The same input and pyarrow give the same
bytes.
"""

import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TARGET = Path(__file__).parent.parent / "synthgen"
NUMBER = re.compile(r"^ +\d+ ")  # of a line of the licence, which opens both files
EXAMPLE = re.compile(r'(?<!e\.g\.)[;:,]\s*"')
POS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
HYPERNYMS = ("@", "@i")  # of kinds, and of instances: NLTK's path similarity walks both


def main(folder: Path) -> None:
    senses = read_index(folder / "index.noun")
    lines = (folder / "data.noun").read_text("ascii").splitlines()
    licence = [NUMBER.sub("", line).rstrip() for line in lines if NUMBER.match(line)]
    rows = [read_synset(line, senses) for line in lines if not NUMBER.match(line)]
    check(rows, senses)
    schema = pa.schema(
        {
            "offset": pa.int32(),
            "lemmas": pa.list_(pa.string()),
            "senses": pa.list_(pa.int8()),
            "hypernyms": pa.list_(pa.int32()),
            "definition": pa.string(),
        }
    )
    target = TARGET / "wordnet-3.0-nouns.parquet"
    write(pa.Table.from_pylist(rows, schema), target)
    (TARGET / "wordnet-3.0-LICENSE.txt").write_text("\n".join(licence).strip() + "\n")
    print(f"{target}: {len(rows)} synsets, {len(senses)} words, {target.stat().st_size / 1e6:.1f} MB")
    others = read_first_senses(folder)
    schema = pa.schema(
        {"pos": pa.string(), "word": pa.string(), "offset": pa.int32(), "bases": pa.list_(pa.string())}
    )
    target = TARGET / "wordnet-3.0-first-senses.parquet"
    write(pa.Table.from_pylist(others, schema), target)
    print(f"{target}: {len(others)} words, {target.stat().st_size / 1e6:.1f} MB")


def write(table: pa.Table, target: Path) -> None:
    pq.write_table(
        table, target, compression="zstd", compression_level=19, use_dictionary=False, write_statistics=False
    )


def read_first_senses(folder: Path) -> list[dict[str, object]]:
    """The offset of the first synset of each verb, adjective and adverb; and, of them and of nouns, the
    irregular forms (offset null) with what they are forms of.
    """
    rows: list[dict[str, object]] = []
    for pos, name in POS.items():
        words = {} if pos == "n" else read_index(folder / f"index.{name}")
        rows += [
            {"pos": pos, "word": word, "offset": offsets[0], "bases": []} for word, offsets in words.items()
        ]
        forms = {
            form: bases
            for form, *bases in map(str.split, (folder / f"{name}.exc").read_text("ascii").splitlines())
        }  # of a form that is there twice the last line counts, as in NLTK
        rows += [{"pos": pos, "word": form, "offset": None, "bases": bases} for form, bases in forms.items()]
    return rows


def read_index(path: Path) -> dict[str, list[int]]:
    """Each word, in lower case, with the offsets of its synsets in the order of its senses."""
    index = {}
    for line in path.read_text("ascii").splitlines():
        if not NUMBER.match(line):
            word, _, count, *rest = line.split()
            index[word] = [int(offset) for offset in rest[-int(count) :]]
    return index


def read_synset(line: str, senses: dict[str, list[int]]) -> dict[str, object]:
    """A line of data.noun (wndb(5WN)): words stand in hexadecimal number, pointers in decimal."""
    head, gloss = line.split("|", 1)
    fields = head.split()
    offset, n_words = int(fields[0]), int(fields[3], 16)
    lemmas = fields[4 : 4 + 2 * n_words : 2]
    pointers = fields[5 + 2 * n_words :]
    definition = EXAMPLE.split(gloss)[0].strip(" ;")
    return {
        "offset": offset,
        "lemmas": lemmas,
        "senses": [senses[lemma.lower()].index(offset) + 1 for lemma in lemmas],
        "hypernyms": [
            int(target)
            for symbol, target in zip(pointers[0::4], pointers[1::4], strict=False)
            if symbol in HYPERNYMS
        ],
        "definition": definition if definition.count('"') % 2 == 0 else definition.replace('"', ""),
    }


def check(rows: list[dict], senses: dict[str, list[int]]) -> None:
    """The rows give index.noun back, are in order of offset, and lead up to one root."""
    again: dict[str, dict[int, int]] = {}
    for row in rows:
        for lemma, sense in zip(row["lemmas"], row["senses"], strict=True):
            again.setdefault(lemma.lower(), {})[sense] = row["offset"]
    assert {word: [found[k] for k in sorted(found)] for word, found in again.items()} == senses
    offsets = [row["offset"] for row in rows]
    assert offsets == sorted(set(offsets))
    assert [row["lemmas"] for row in rows if not row["hypernyms"]] == [["entity"]]
    assert all(row["definition"] for row in rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
