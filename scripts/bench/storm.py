"""Kills three workers on one folder at random, stops some for longer than their lease, gives each a clock of
its own, and compares what they made with a run that nobody disturbed.

    python scripts/bench/storm.py --kills 100        # 19 minutes on two cores: 10 rounds, 20 stops
    python scripts/bench/storm.py --kills 10         # 4 minutes

Prints one line of JSON; where anything differs, also what, and the folders stay. Work that ends before the
kills are used up begins anew on another folder: a round. The lease is LEASE_SECONDS here, so that a stopped
worker loses its claim soon. A preloaded library, made by `cc`, sets the clocks, while files keep the file
system's time (libfaketime 0.9.10 breaks the timed waits of Python 3.11); without `cc`, "skew" is false.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import synthgen
from synthgen import shards

LEASE_SECONDS = 3.0
HANG_SECONDS = 600.0
SKEWS = (-86400, 0, 86400)  # one a worker
WORKER = (
    f"import sys; from synthgen import claims; claims.LEASE_SECONDS = {LEASE_SECONDS}; "
    "from synthgen.cli import main; sys.exit(main())"
)
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t which, struct timespec *now) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int status = real(which, now);
  if (which == CLOCK_REALTIME && getenv("SKEW")) now->tv_sec += atol(getenv("SKEW"));
  return status;
}
"""
PROBE = "import time, torch, threading; threading.Event().wait(0.1); print(time.time())"


class Worker:
    """Worker k of three: one process at a time."""

    def __init__(self, root: Path, k: int, keys: list[str], clock: dict[str, str]) -> None:
        self.root, self.k, self.starts = root, k, 0
        self.environment = os.environ | clock | {"SKEW": str(SKEWS[k]), "HF_HUB_OFFLINE": "1"}
        self.command = [sys.executable, "-c", WORKER, "run", "emoji", "-o", str(root), "--workers", "1"]
        self.command += ["--share", f"{k}/{len(SKEWS)}", *(part for key in keys for part in ("--set", key))]
        self.start()

    def start(self) -> None:
        self.starts += 1
        with self.root.with_name(f"{self.root.name}-{self.k}-{self.starts}.log").open("w") as log:
            self.process = subprocess.Popen(self.command, env=self.environment, stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def make_clock(folder: Path) -> dict[str, str]:
    """The environment in which SKEW, in seconds, moves a process's clock; empty where that does not work."""
    clock, source = {"LD_PRELOAD": str(folder / "clock.so")}, folder / "clock.c"
    source.write_text(CLOCK)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", clock["LD_PRELOAD"], source, "-ldl"], check=True)
        environment = os.environ | clock | {"SKEW": "86400"}
        said = subprocess.check_output([sys.executable, "-c", PROBE], env=environment, timeout=120)
        return clock if abs(float(said) - time.time() - 86400) < 60 else {}
    except (OSError, subprocess.SubprocessError):
        return {}


def holders(root: Path, publishing: bool = False) -> set[int]:
    """Processes that hold a claim; publishing: those that have named a file of it and are not through."""
    pids = set[int]()
    for path in root.glob(".work/claims/[!.]*"):
        staged = root.glob(f".work/tmp/{path.name}.*/*") if publishing else ()
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile
            if not publishing or any(file.stat().st_nlink > 1 for file in staged):
                pids.add(json.loads(path.read_bytes())["pid"])
    return pids


def wait_for(moment: str, workers: list[Worker], dice: random.Random) -> Worker | None:
    """A worker at that moment; None where all have ended."""
    end = time.monotonic() + HANG_SECONDS
    while running := {each.process.pid: each for each in workers if each.process.poll() is None}:
        pids = running if moment == "any" else holders(workers[0].root, moment == "publish") & set(running)
        if pids:
            return running[dice.choice(sorted(pids))]
        if time.monotonic() > end:
            raise TimeoutError(f"{workers[0].root}: nothing to {moment} for {HANG_SECONDS:.0f} s")
        time.sleep(0.001 if moment == "publish" else 0.02)
    return None


def stop(worker: Worker, dice: random.Random) -> bool:
    """Stops a worker for longer than a lease; whether another one took over what it held."""
    worker.process.send_signal(signal.SIGSTOP)
    pid, started = worker.process.pid, time.monotonic()
    held = pid in holders(worker.root)
    time.sleep(LEASE_SECONDS + 1)
    while pid in holders(worker.root) and time.monotonic() < started + 30:  # others may be importing
        time.sleep(0.05)
    taken = held and pid not in holders(worker.root)
    time.sleep(dice.uniform(0, 0.5))  # it wakes while the other one is at work on it
    worker.process.send_signal(signal.SIGCONT)
    return taken


def storm(workers: list[Worker], kills: int, pace: float, dice: random.Random, counts: Counter[str]) -> None:
    """Kills until all kills are used up or the workers have ended; then waits for their end."""
    while counts["kills"] < kills:
        time.sleep(dice.uniform(0, 2 * pace))
        moment = dice.choice(["any", "hold", "hold", "publish", "publish"])
        if not (worker := wait_for(moment, workers, dice)):
            break
        if moment != "any" and dice.random() < 0.12:
            counts["stops"] += 1
            counts["taken_over_while_stopped"] += stop(worker, dice)
        else:
            worker.kill()
            worker.start()
            counts["kills"] += 1
    for worker in workers:
        worker.process.wait(HANG_SECONDS)


def data_digests(root: Path) -> dict[Path, str]:
    """sha256 of every data file of a run, by path."""
    files = [path for kind in ("tar", "parquet", "np[yz]") for path in root.glob(f"[!.]*/**/*.{kind}")]
    return {path.relative_to(root): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differences(root: Path, wanted: dict[Path, str], workers: list[Worker]) -> list[str]:
    """A line for each thing that is not as in the undisturbed run."""
    ends = [(each.k, each.process.returncode) for each in workers]
    found = [f"{root}: worker {k} ended with status {status}" for k, status in ends if status]
    logs = sorted(root.parent.glob(f"{root.name}-*.log"))
    found += [f"{log}: a traceback" for log in logs if "Traceback" in log.read_text()]
    made = data_digests(root)
    found += [f"{root / name}: differs" for name in made | wanted if made.get(name) != wanted.get(name)]
    tables = {name: map(shards.read_table, root.glob(f"{name}/*.parquet")) for name in ("plan", "pool")}
    uids = {name: sorted(str(uid) for each in read for uid in each["uid"]) for name, read in tables.items()}
    if uids["plan"] != uids["pool"] or len(set(uids["plan"])) < len(uids["plan"]):
        found.append(f"{root}: the pool does not hold every planned uid once")
    found += [f"verify: {problem}" for problem in synthgen.verify(root)]
    left = [path for name in ("tmp", "claims", "attempts") for path in root.glob(f".work/{name}/*")]
    return found + [f"{path}: left behind" for path in left]


def takeovers(root: Path) -> int:
    """How many attempts at shards and their annotations did not end well, as the records count them."""
    records = [*root.glob("pool/*_stats.json"), *root.glob("annotations/hashes/*_stats.json")]
    return sum(json.loads(path.read_bytes())["attempts"] - 1 for path in records)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--requests", type=int, default=5, help="images of each of the 48 classes, 4 a shard")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pace", type=float, default=4.0, help="mean seconds between kills, without waiting")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice, counts, started = random.Random(options.seed), Counter[str](kills=0, stops=0), time.monotonic()
    keys = [f"quota.requests={options.requests}", f"models.0.steps={options.steps}"]
    keys += ["models.0.batch_size=4", "images.shard_size=4"]
    folder, found = Path(tempfile.mkdtemp(prefix="storm-")), list[str]()
    clock = make_clock(folder)
    wanted = data_digests(synthgen.run("emoji", folder / "undisturbed", settings=keys, workers=1))
    while counts["kills"] < options.kills and len(found) < 20:
        counts["rounds"] += 1
        root = folder / f"round-{counts['rounds']}"
        workers = [Worker(root, k, keys, clock) for k in range(len(SKEWS))]
        try:
            storm(workers, options.kills, options.pace, dice, counts)
            found += differences(root, wanted, workers)
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            found.append(f"{root}: hangs: {error}")
        finally:
            for worker in workers:
                worker.kill()
        counts.update(images=options.requests * 48, takeovers=takeovers(root))
        print(f"round {counts['rounds']}: {dict(counts)}", *found, sep="\n", file=sys.stderr)
    end = {"skew": bool(clock), "seconds": round(time.monotonic() - started)}
    print(json.dumps(dict(counts) | end | {"result": found[0] if found else "equal"}))
    if found:
        sys.exit(f"{folder} stays: {found[0]}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
