"""Putting questions to a language model and keeping the answers, one JSON line each, in `texts/<stem>.jsonl`.

An answer is on the disk before the next is waited for, so what is answered is never asked again, however a
run ends. Knows neither what is asked nor which model replies.
"""

import json
import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synthgen import claims, storage
from synthgen.claims import Claim
from synthgen.errors import FolderError, ReplyError, WorkError
from synthgen.prompts.questions import Question, parse
from synthgen.shards import TEXTS

MOST_WAIT_SECONDS = 300.0
"""What a server may ask us to wait, at most."""


class Counts(NamedTuple):
    """What became of a set of questions. `asked = answered + failed`, at the end."""

    asked: int
    answered: int
    already: int
    failed: int
    reasons: dict[str, int]


class _Tried(NamedTuple):
    """One attempt at a question. `raw` is None where no reply came; `fault` ends everything."""

    question: Question
    attempt: int
    raw: str | None
    error: str
    seconds: float
    is_last: bool
    fault: BaseException | None = None


def backoff(attempt: int) -> float:
    """Seconds to wait after the n-th failed attempt, from 0: 1, 2, 4 ... 60, less up to a half by chance."""
    return min(60.0, 2.0**attempt) * random.uniform(0.5, 1)


def ask(
    questions: Sequence[Question],
    reply: Callable[[Question, int], str],
    *,
    root: Path,
    stem: str,
    saved: Iterable[Path] = (),
    concurrency: int = 8,
    retries: int = 5,
    patience: int = 20,
    pause: Callable[[int], float] = backoff,
    on_progress: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Asks what is not answered yet, and returns what there is then.

    Every reply is appended to `<root>/texts/<stem>.jsonl`, the wrong ones with their reason. A question
    without a usable reply stays unanswered: the next call asks it again.

    Args:
        reply: a back end of `synthgen.language_models`.
        saved: more files of answers, such as those in the recipe's folder; only read.
        concurrency: questions in flight at once; 1 asks in the caller's thread, as a local model should be.
        retries: attempts after the first one, for a question. They are numbered on over all calls, so that
            a model that always says the same to the same seed is not asked the same again.
        patience: that many questions in a row without a usable reply, and the rest is not asked.
        pause: seconds to wait after the n-th attempt that got no reply; a server's Retry-After is obeyed on
            top. After a wrong reply there is no wait.
        on_progress: told the counts after each answer.

    Raises:
        FolderError: another process is asking there, or the folder cannot be written to.
        ModelError: the back end says that no question can be answered.
        WorkError: `patience` is at its end.
    """
    storage.make_folder(root / TEXTS)
    unit = f"{TEXTS}/{stem}"
    with claims.claim(root, unit) as claim:
        if claim is None:
            held = claims.claims(root).get(unit)
            who = f"process {held['pid']} on {held['host']}" if held else "another process"
            raise FolderError(f"{root}: {who} is asking for {unit}; wait until it has ended, or end it")
        claims.forget_attempts(root, unit)  # of one that was killed: nothing is left of it but answers
        path = root / TEXTS / f"{stem}.jsonl"
        answers, bad = (
            read_answers([path, *saved]),
            Counter(entry["key"] for entry in _entries([path], False)),
        )
        wanted = {question.key: question for question in questions}
        waiting = [question for key, question in wanted.items() if key not in answers]
        started = Counts(len(waiting), 0, len(wanted) - len(waiting), 0, {})
        if not waiting:
            return started
        return _Asking(reply, path, claim, retries, pause, bad).ask(
            waiting, started, concurrency, patience, on_progress
        )


class _Asking:
    """Threads that wait for replies, and the caller's own thread, which alone writes."""

    def __init__(
        self,
        reply: Callable[[Question, int], str],
        path: Path,
        claim: Claim,
        retries: int,
        pause: Callable[[int], float],
        bad: Mapping[str, int],
    ) -> None:
        self.reply, self.path, self.claim, self.retries, self.pause = reply, path, claim, retries, pause
        self.bad = bad  # wrong replies that earlier calls have had, by the key of the question
        self.waiting, self.tried = deque[Question](), deque[_Tried]()
        self.news, self.over = threading.Semaphore(0), threading.Event()
        self.not_before = 0.0  # by the monotonic clock: the server wants quiet, from all threads

    def ask(
        self,
        waiting: Sequence[Question],
        counts: Counts,
        concurrency: int,
        patience: int,
        on_progress: Callable[[Counts], None],
    ) -> Counts:
        self.waiting.extend(waiting)
        n_threads = min(concurrency, len(waiting)) if concurrency > 1 else 0
        # daemons: a stopped run does not wait for replies in flight
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(n_threads)]
        own = self._attempts()
        in_row, reasons = list[str](), Counter[str]()
        try:
            for thread in threads:
                thread.start()
            while counts.answered + counts.failed < len(waiting):
                if threads:
                    self.news.acquire()
                else:
                    next(own)
                for tried in self._keep():
                    if tried.fault:
                        raise tried.fault
                    if not tried.error:
                        counts, in_row = counts._replace(answered=counts.answered + 1), []
                    elif tried.is_last:
                        in_row.append(tried.error)
                        reasons[tried.error] += 1
                        counts = counts._replace(failed=counts.failed + 1)
                counts = counts._replace(reasons=dict(reasons.most_common()))
                self.claim.progress(counts.answered)
                on_progress(counts)
                if len(in_row) >= patience:
                    why = ", ".join(f"{n} x {reason}" for reason, n in Counter(in_row).most_common(3))
                    raise WorkError(
                        f"{self.path}: given up after {len(in_row)} questions in a row without a usable "
                        f"reply ({why}); {counts.answered + counts.already} are answered and stay, the same "
                        "command asks the rest"
                    )
            return counts
        finally:
            self.over.set()
            self._keep()

    def _keep(self) -> list[_Tried]:
        """Writes the replies that have come, and returns the attempts. They leave the queue only when they
        are on the disk, so a signal in between loses none.
        """
        batch = [self.tried[place] for place in range(len(self.tried))]  # threads go on appending
        lines = [_line(tried) for tried in batch if tried.raw is not None]
        if lines:
            self.claim.check()
            storage.append(self.path, b"".join(lines))
        for _ in batch:
            self.tried.popleft()
        return batch

    def _work(self) -> None:
        for _ in self._attempts():
            self.news.release()

    def _attempts(self) -> Iterator[None]:
        """Asks questions until there are none, and hands over after each attempt."""
        while not self.over.is_set():
            try:
                question = self.waiting.popleft()
            except IndexError:
                return
            for number in range(self.retries + 1):
                self.over.wait(self.not_before - time.monotonic())
                if self.over.is_set():
                    return
                tried, wait_seconds = self._try(question, number)
                self.tried.append(tried)
                yield
                if tried.fault or not tried.error:
                    break
                if not tried.is_last:
                    self.over.wait(wait_seconds)

    def _try(self, question: Question, number: int) -> tuple[_Tried, float]:
        """The n-th attempt of this call, and the seconds to wait before the next."""
        begun, is_last = time.monotonic(), number == self.retries
        attempt = self.bad.get(question.key, 0) + number
        try:
            raw = self.reply(question, attempt).encode("utf-8", "replace").decode()
            error, wait_seconds = parse(question, raw).error, 0.0
        except ReplyError as failure:
            raw, error, wait_seconds = None, str(failure), self.pause(number)
            if failure.wait_seconds:
                quiet = min(failure.wait_seconds, MOST_WAIT_SECONDS)
                self.not_before = max(self.not_before, time.monotonic() + quiet)
        except BaseException as fault:
            return _Tried(question, attempt, None, str(fault), 0.0, True, fault), 0.0
        if error and not is_last:
            logging.getLogger(__name__).info("%s %d: %s", question.class_name, question.number, error)
        return _Tried(question, attempt, raw, error, time.monotonic() - begun, is_last), wait_seconds


def _line(tried: _Tried) -> bytes:
    question = tried.question
    entry = {
        "key": question.key,
        "question": {
            "class_name": question.class_name,
            "task": question.task,
            "number": question.number,
            "model": question.model,
            "sampling": question.sampling,
            "messages": question.messages,
            "schema": question.schema,
        },
        "raw": tried.raw,
        "error": tried.error,
        "attempt": tried.attempt,
        "seconds": round(tried.seconds, 3),
    }
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode()


def _entries(paths: Iterable[Path], good: bool = True) -> Iterator[dict[str, Any]]:
    """The good replies in files, or the wrong ones, in order, less what a kill has cut short; a missing file
    has none.
    """
    for path in paths:
        for line in storage.read(path).split(b"\n") if storage.exists(path) else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if (
                isinstance(entry, dict)
                and all(isinstance(entry.get(name), str) for name in ("key", "raw", "error"))
                and good == (not entry["error"])
            ):
                yield entry


def read_answers(paths: Iterable[Path]) -> dict[str, str]:
    """The raw reply to each answered question, by its key; of two, the first."""
    answers: dict[str, str] = {}
    for entry in _entries(paths):
        answers.setdefault(entry["key"], entry["raw"])
    return answers


def save(
    questions: Sequence[Question], *, root: Path, stem: str, folder: Path, saved: Iterable[Path] = ()
) -> int:
    """Adds the answers to these questions to `<folder>/texts/<stem>.jsonl`, so that a recipe carries its
    texts. What the file has stays; it comes first, then these, in the order of the questions.

    Args:
        saved: more files to take answers from; those of `root` come last.

    Returns:
        How many were added.
    """
    target = folder / TEXTS / f"{stem}.jsonl"
    kept = {entry["key"]: entry for entry in _entries([target])}
    found: dict[str, dict[str, Any]] = {}
    for entry in _entries([*saved, root / TEXTS / f"{stem}.jsonl"]):
        found.setdefault(entry["key"], {name: entry[name] for name in entry if name != "seconds"})
    keys = dict.fromkeys(question.key for question in questions)
    new = [found[key] for key in keys if key in found and key not in kept]
    if new:
        lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in [*kept.values(), *new]]
        storage.write(target, "".join(lines).encode())
    return len(new)
