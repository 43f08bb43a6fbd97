"""What a terminal shows while something is made or asked: one live line, or lines now and then. For `cli`."""

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from synthgen.display import pace
from synthgen.errors import SynthgenError
from synthgen.language_models import plain_address

if TYPE_CHECKING:
    from synthgen.asking import Counts
    from synthgen.generation.trials import Trial
    from synthgen.inspection import Status


@contextlib.contextmanager
def progress(root: Path, stages: tuple[str, ...], *, quiet: bool) -> Iterator[None]:
    """Shows how far the folder is while the block runs: one live line on a terminal, else a line now and
    then.
    """
    stopped = threading.Event()
    live = sys.stderr.isatty()

    def show() -> None:
        from synthgen.inspection import status

        last, cache, pause = "", dict[str, object](), 0.0
        while not stopped.wait(max(pause, 0.5 if live else 2.0)):
            begun = time.monotonic()
            try:
                found = status(root, cache)
            except (SynthgenError, OSError):
                continue  # not made yet, or a file is being replaced
            pause = 20 * (time.monotonic() - begun)  # a large folder is looked at less often
            line = _progress_line(found, stages)
            if live:
                print(
                    f"\r\033[2K{line}"[: shutil.get_terminal_size().columns + 4],
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
            elif line.partition(",")[0] != last and (last or line != "finishing"):
                print(line, file=sys.stderr, flush=True)
            last = line.partition(",")[0]
        if live:
            print("\r\033[2K", end="", file=sys.stderr, flush=True)

    if quiet:
        yield
        return
    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _progress_line(found: "Status", stages: tuple[str, ...]) -> str:
    """The first unfinished stage in words; images of unfinished shards count."""
    for stage, count in found["stages"].items():
        if stage.partition(" ")[0] in stages and count["done"] < count["total"]:
            line = f"{stage}: {count['done']} of {count['total']} shards"
            if stage == "generate":
                pool = [lease["done"] for unit, lease in found["claimed"].items() if unit.startswith("pool/")]
                made = found["written"] + found["failed"] + sum(pool)
                line += f" ({made} of {found['requests']} images)" + pace(found)
            return line
    return "finishing"


@contextlib.contextmanager
def asking(recipe: str, local: str) -> "Iterator[tuple[Callable[[int], None], Callable[[Counts], None]]]":
    """Says how many questions there are, and, on a terminal, how many are answered."""
    live = sys.stderr.isatty()

    def begin(number: int) -> None:
        where = local or plain_address(os.environ.get("OPENAI_BASE_URL", "")) or "OpenAI"
        print(f"{recipe}: {number} questions to {where}; Ctrl-C stops, answers stay", file=sys.stderr)

    def show(counts: "Counts") -> None:
        if live:
            done = f"{counts.answered} of {counts.asked} questions answered, {counts.failed} failed"
            print(f"\r\033[2K{done}", end="", file=sys.stderr, flush=True)

    try:
        yield begin, show
    finally:
        if live:
            print("\r\033[2K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def importing(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Says on a terminal which part of a source this process has just done."""
    live = sys.stderr.isatty() and not quiet

    def show(unit: str) -> None:
        if live:
            print(f"\r\033[2K{unit} done", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if live:
            print("\r\033[2K", end="", file=sys.stderr, flush=True)


def say_trial(model: str, trial: "Trial") -> None:
    """Shows that another batch size was tried; a trial may take minutes."""
    print(
        f"{model}: {trial.batch_size} at once, {trial.images_per_second:.2f} images/s",
        file=sys.stderr,
        flush=True,
    )
