"""Generates and scores the pool of a recipe: requests, images, annotations.

python scripts/generate.py prompts/emoji -o shards/emoji
accelerate launch scripts/generate.py prompts/emoji -o shards/emoji
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
    parser.add_argument("--limit", type=int, help="make at most so many images")
    parser.add_argument("--workers", type=int, help="processes (default: one a GPU, or a core)")
    options = parser.parse_args()
    try:
        folder = synthgen.run(
            options.recipe,
            options.output,
            stages=("plan", "generate", "annotate"),
            limit=options.limit,
            workers=options.workers,
        )
        found = synthgen.status(folder)
    except synthgen.SynthgenError as error:
        sys.exit(f"generate.py: {error}")
    print(f"{folder}: {found['requests']} requested, {found['written']} written, {found['failed']} failed")


if __name__ == "__main__":
    main()
