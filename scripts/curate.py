"""Chooses from a generated pool by the recipe's rules, and writes final shards and the report: seconds,
repeatable.

python scripts/curate.py prompts/emoji -o shards/emoji
python scripts/curate.py prompts/emoji -o shards/emoji --set select.0.minimum=0.1 --subset strict
"""

import argparse
import sys

import synthgen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="folder with a recipe.toml, or the name of a recipe that ships")
    parser.add_argument("-o", "--output", help="the run's folder (default: shards/<name>)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key"
    )
    parser.add_argument("--subset", default="main", help="the name of this selection (default: main)")
    options = parser.parse_args()
    try:
        folder = synthgen.run(
            options.recipe,
            options.output,
            stages=("select", "reshard", "report"),
            settings=options.set,
            subset=options.subset,
            workers=1,
        )
    except synthgen.SynthgenError as error:
        sys.exit(f"curate.py: {error}")
    print(f"{folder}: subset {options.subset}: {synthgen.status(folder)['final'][options.subset]}")


if __name__ == "__main__":
    main()
