"""Makes the class lists in prompts/lists/: ImageNet's 1,000 and 21,841 classes, and LVIS v1's 1,203.

    python scripts/lists.py lvis_v1_categories.csv

imagenet-1k   synsets in class order from timm (timm/data/_info/imagenet_synsets.txt); names from open_clip
              (IMAGENET_CLASSNAMES: OpenAI's, which tell "crane bird" from "construction crane").
imagenet-21k  synsets from timm (imagenet22k_synsets.txt): all 21,841 classes of the Fall 2011 release, in
              order of synset, which is the usual order of labels. Names come from WordNet when it is read.
lvis-v1       the table given: `id,name,synset,frequency,synonyms,image_count`, as in the `categories` of
              lvis_v1_train.json, names and synonyms (separated by |) with their underscores.
Also clip-80.txt: CLIP's 80 templates for ImageNet, from open_clip (OPENAI_IMAGENET_TEMPLATES).
"""

import csv
import io
import re
import sys
from importlib.resources import files
from pathlib import Path

from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

from synthgen import wordnet
from synthgen.errors import RecipeError

LISTS = Path(__file__).parent.parent / "prompts" / "lists"
LVIS_PROMPTS = {
    "bow (decorative ribbons)": "bow of decorative ribbons",
    "football (American)": "American football",
    "home plate (baseball)": "home plate of a baseball field",
    "monitor (computer equipment) computer monitor": "computer monitor",
    "mound (baseball)": "mound of a baseball field",
    "parasail (sports)": "parasail",
    "passenger car (part of a train)": "passenger car of a train",
    "pin (non jewelry)": "pin for fastening",
    "postbox (public)": "public postbox",
    "railcar (part of a train)": "railcar of a train",
    "shaver (electric)": "electric shaver",
    "speaker (stero equipment)": "stereo speaker",
}
"""How templates call classes whose words in brackets are no kind and no purpose."""
LVIS_DEFINITIONS = {"stop sign": "a red road sign with eight sides that tells drivers to stop"}
"""Of the classes that WordNet has not."""


def main(lvis: Path) -> None:
    LISTS.mkdir(exist_ok=True)
    synsets = info("imagenet_synsets.txt")
    write("imagenet-1k", ["id", "name", "synset"], list(zip(IMAGENET_CLASSNAMES, synsets, strict=True)))
    write("imagenet-21k", ["id", "synset"], [(synset,) for synset in info("imagenet22k_synsets.txt")])
    with lvis.open(encoding="utf-8", newline="") as file:
        rows = [lvis_row(row) for row in csv.DictReader(file)]
    write("lvis-v1", ["id", "name", "prompt", "synset", "synonyms", "definition"], rows, first=1)
    write_templates()


def info(name: str) -> list[str]:
    return files("timm").joinpath("data", "_info", name).read_text().split()


def lvis_row(row: dict[str, str]) -> tuple[str, ...]:
    """A class of LVIS: name, prompt ("" where it is the name), synset, synonyms and definition."""
    name, *others = [row["name"].replace("_", " "), *row["synonyms"].replace("_", " ").split("|")]
    try:
        synset = wordnet.find(row["synset"]).id
    except RecipeError as error:
        print(f"class {row['id']}: {error}")
        synset = ""
    synonyms = "|".join(word for word in others if word != name)
    return name, lvis_prompt(name), synset, synonyms, LVIS_DEFINITIONS.get(name, "")


def lvis_prompt(name: str) -> str:
    """What a model is asked for: "bow, a kind of weapon" for "bow (weapon)", "iron for clothing"; "" for the
    name.
    """
    match = re.fullmatch(r"(.+) \((.+)\)", name)
    if name in LVIS_PROMPTS or not match:
        return LVIS_PROMPTS.get(name, "")
    word, what = match[1], match[2].removeprefix("type of ")
    return f"{word} {what}" if what.startswith(("for ", "on ", "at ")) else f"{word}, a kind of {what}"


def write(name: str, columns: list[str], rows: list[tuple[str, ...]], first: int = 0) -> None:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows((str(first + k), *row) for k, row in enumerate(rows))
    (LISTS / f"{name}.csv").write_text(sink.getvalue(), encoding="ascii")
    print(f"{name}.csv: {len(rows)} classes, {len(sink.getvalue()) / 1e3:.0f} kB")


def write_templates() -> None:
    head = '# CLIP\'s 80 templates for ImageNet, as published, so with "a origami". Slot: {class}\n'
    lines = [template("{class}") for template in OPENAI_IMAGENET_TEMPLATES]
    (LISTS / "clip-80.txt").write_text(head + "\n".join(lines) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
