"""The commands of the command line, with their arguments, help and examples; `cli` runs them."""

import argparse

from synthgen import __version__
from synthgen.errors import nearest

MAKE = {
    "run": ("everything: plan, generate, annotate, select, reshard, report", None),
    "plan": ("write the requests; no image is made", ("plan",)),
    "generate": ("plan, then make the images of the pool", ("plan", "generate")),
    "annotate": ("score the images of the pool", ("annotate",)),
    "reinforce": ("write down what a teacher says of augmented views of the images", ("annotate",)),
    "select": ("choose the good ones by the recipe's rules", ("select",)),
    "reshard": ("write the chosen ones as final shards", ("reshard",)),
}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="synthgen",
        description="Turns a recipe into a labelled image dataset.",
        epilog="example: synthgen run emoji --limit 16",
    )
    found.add_argument("--version", action="version", version=f"synthgen {__version__}")
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"example: {example}"
        )

    def add_recipe(command: argparse.ArgumentParser, *, selects: bool = True) -> None:
        command.add_argument(
            "recipe", help="folder with a recipe.toml, or the name of a recipe that ships (emoji)"
        )
        command.add_argument(
            "-o", "--output", metavar="DIR", help="the run's folder (default: shards/<name>)"
        )
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key"
        )
        if selects:
            command.add_argument(
                "--limit", type=_positive, metavar="N", help="make at most N images, a balanced prefix"
            )
            command.add_argument(
                "--subset", default="main", metavar="NAME", help="name of the selection (default: main)"
            )

    for name, (text, _) in MAKE.items():
        command = add(name, text, f"synthgen {name} prompts/emoji --set quota.requests=2")
        add_recipe(command)
        command.add_argument(
            "--replace", action="store_true", help="make final/<subset> anew if its rules changed"
        )
        command.add_argument(
            "--workers", type=_positive, metavar="N", help="processes (default: one a GPU, or a core)"
        )
        command.add_argument(
            "--share", default="", metavar="k/n", help="this launch's share among n on one folder"
        )
        command.add_argument(
            "--threads", type=_positive, default=1, metavar="N", help="CPU threads a worker (default: 1)"
        )
        command.add_argument(
            "--engine", default="local", metavar="NAME", help="local processes, or ray (default: local)"
        )
        command.add_argument(
            "--deadline",
            type=_positive,
            default=1800,
            metavar="SECONDS",
            help="end a worker whose micro-batch takes longer (default: 1800)",
        )
        command.add_argument(
            "--strict",
            action="store_true",
            help="refuse a mixture of library versions, devices or threads, and halved micro-batches",
        )
        command.add_argument("--json", action="store_true", help="print the result as JSON")
        if name == "select":
            command.add_argument(
                "--explain",
                nargs="?",
                const="",
                metavar="UID",
                help="say what rejected how many, of which classes, models and templates; with the beginning "
                "of a uid what each rule saw in that sample",
            )
        if name == "plan":
            command.add_argument(
                "--dry-run", action="store_true", help="write nothing; say what would be made and its cost"
            )
        if name in ("run", "annotate"):
            command.add_argument(
                "--only",
                type=lambda text: text.split(","),
                default=[],
                metavar="A,B",
                help="of the annotations make only these, and those that they read",
            )
        if name in ("run", "reshard"):
            command.add_argument(
                "--add",
                action="append",
                default=[],
                metavar="RUN[:SUBSET]",
                help="join what another run has chosen (its subset; default: main)",
            )
        if name in ("run", "generate"):
            command.add_argument(
                "--force", action="store_true", help="start even where the disk has too little room"
            )
        if name == "run":
            command.add_argument(
                "--stages", type=_stages, metavar="A,B", help="only these stages, in their order"
            )
    command = add(
        "check",
        "validate a recipe, say what it would ask for and how diverse that is",
        "synthgen check prompts/emoji --fail-under vendi=20",
    )
    add_recipe(command)
    command.add_argument(
        "--embed", default="", metavar="NAME", help="measure diversity by the texts of this clip annotation"
    )
    command.add_argument(
        "--licenses",
        action="store_true",
        help="only list the licences of models and sources, from cards here and on the hub, and warn",
    )
    doctor = add(
        "doctor",
        "try batch sizes on this device: images a second, peak memory, what to put into the recipe",
        "synthgen doctor prompts/emoji --most 16",
    )
    add_recipe(doctor, selects=False)
    doctor.add_argument(
        "--most", type=_positive, default=64, metavar="N", help="the largest batch size to try (default: 64)"
    )
    doctor.add_argument("--threads", type=_positive, default=1, metavar="N", help="CPU threads (default: 1)")
    prompts = add(
        "prompts",
        "ask the recipe's language model (at OPENAI_BASE_URL), and show the prompts",
        "synthgen prompts prompts/birds --save",
    )
    add_recipe(prompts, selects=False)
    prompts.add_argument(
        "--limit", type=_positive, metavar="N", help="ask at most N questions; of templates show N prompts"
    )
    prompts.add_argument(
        "--save", action="store_true", help="keep the answers in the recipe's folder: it needs no model then"
    )
    prompts.add_argument(
        "--local", default="", metavar="PATH", help="ask a transformers model here (folder or hub id)"
    )
    for name, kind, default, text in (
        ("concurrency", _positive, 8, "questions in flight at once"),
        ("retries", _count, 5, "attempts after the first, for a question"),
        ("timeout", _positive, 120, "seconds that a reply may take"),
    ):
        prompts.add_argument(
            f"--{name}", type=kind, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    for loads in (doctor, commands.choices["run"], commands.choices["generate"]):
        loads.add_argument(
            "--offload",
            choices=("model", "sequential"),
            default="",
            help="keep weights on the CPU, and on the GPU the part, or the layer, that runs",
        )
    doctor.add_argument("--json", action="store_true", help="print the result as JSON")
    prompts.add_argument("--show", action="store_true", help="ask nothing, show what there is")
    prompts.add_argument(
        "--all", action="store_true", help="show all prompts of all classes, and rejected texts"
    )
    prompts.add_argument("--json", action="store_true", help="print the result as JSON")
    for option, text in (("--fail-under", "below"), ("--fail-over", "above")):
        command.add_argument(
            option,
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help=f"exit status 1 where a figure is {text} this, or not defined",
        )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    for name, text in (
        ("status", "how far a run is"),
        ("verify", "read everything again and compare it with the records"),
        ("report", "make the report page anew"),
    ):
        command = add(name, text, f"synthgen {name} shards/emoji")
        command.add_argument("folder", help="a run's folder")
        if name == "report":
            command.add_argument(
                "--subset", default="main", metavar="NAME", help="which selection (default: main)"
            )
        else:
            command.add_argument("--json", action="store_true", help="print the result as JSON")
    command = add(
        "combine",
        "make a subset of subsets: and, or, minus, parentheses",
        "synthgen combine shards/emoji clean 'main minus bad.npy'",
    )
    command.add_argument("folder", help="a run's folder")
    command.add_argument("name", metavar="NAME", help="of the new subset")
    command.add_argument(
        "expression",
        metavar="EXPRESSION",
        help="of names of subsets, `pool` (every sample), and paths of files of uids, DataComp's among them",
    )
    command.add_argument(
        "--replace", action="store_true", help="take also the name of a subset that the recipe's rules make"
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command = add(
        "show", "say what the mark in an image says, and where the image is from", "synthgen show image.webp"
    )
    command.add_argument("path", help="an image; with UID: a .tar shard, or a run's folder")
    command.add_argument("uid", nargs="?", default="", metavar="UID", help="its uid, or how that begins")
    command.add_argument(
        "-o", "--output", metavar="DIR", help="the run that made the image file (default: the one around it)"
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command = add(
        "import",
        "bring other people's data into a folder, in place: webdataset, images, a table, COCO",
        "synthgen import birds.csv --image path --label y -o shards/birds",
    )
    command.add_argument("source", nargs="+", help="a folder, a .tar, a table of image paths, a COCO .json")
    command.add_argument("-o", "--output", required=True, metavar="DIR", help="the pool's folder")
    command.add_argument("--name", default="", metavar="NAME", help="of the source (default: its folder's)")
    for option, text in (
        ("image", "paths of images"),
        ("label", "classes"),
        ("group", "what ties samples together"),
        ("split", "splits"),
    ):
        command.add_argument(
            f"--{option}", default="", metavar="COLUMN", help=f"the column of a table with {text}"
        )
    command.add_argument(
        "--columns", action="append", default=[], metavar="NEW=OLD", help="give a column another name"
    )
    command.add_argument("--copy", action="store_true", help="copy the samples into tars of the pool")
    command.add_argument(
        "--decode", action="store_true", help="decode every image, to find those damaged in the middle"
    )
    command.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one a core)")
    command.add_argument(
        "--share", default="", metavar="k/n", help="this launch's share among n on one folder"
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command = add(
        "export",
        "write a pool's columns and features as DataComp's metadata, for its baselines.py",
        "synthgen export datacomp shards/birds -o DIR",
    )
    command.add_argument("form", choices=("datacomp",), help="what to write: datacomp")
    command.add_argument("folder", help="a run's folder")
    command.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="a folder; DIR/metadata is made"
    )
    command.add_argument(
        "--columns", action="append", default=[], metavar="NEW=OLD", help="columns that DataComp calls NEW"
    )
    command.add_argument(
        "--features", action="append", default=[], metavar="NEW=OLD", help="features that DataComp calls NEW"
    )
    command.add_argument("--subset", default="", metavar="NAME", help="only this selection (default: all)")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command = add("init", "copy a recipe that ships, to start from", "synthgen init birds --from emoji")
    command.add_argument("folder", help="a folder that does not exist yet")
    command.add_argument(
        "--from", dest="source", default="emoji", metavar="NAME", help="which (default: emoji)"
    )
    return found


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'a whole number from 1 is wanted, got "{text}"')
    return int(text)


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _stages(text: str) -> tuple[str, ...]:
    from synthgen.stages import STAGES

    for stage in text.split(","):
        if stage not in STAGES:
            raise argparse.ArgumentTypeError(f'unknown stage "{stage}"{nearest(stage, list(STAGES))}')
    return tuple(stage for stage in STAGES if stage in text.split(","))
