"""The loop that every worker runs: take a unit that can be made now, claim it, make it. Knows no stage.

No worker is special and none talks to another: all they share is the folder. A worker may die at any moment,
join or leave; a unit that kills `MAX_ATTEMPTS` workers of one command is given up by that command.
"""

import contextlib
import errno
import faulthandler
import logging
import math
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from synthgen import claims, storage
from synthgen.claims import MAX_ATTEMPTS, Claim
from synthgen.errors import DeviceError, LostClaimError, SynthgenError, WorkError

WAIT_SECONDS = 0.5
HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of the file system that the next unit would meet too."""


class Unit(NamedTuple):
    """One piece of work. `done` looks at the folder; `make` does it while the claim is held.

    Attributes:
        needs: a unit of the same list that has to be done before; the worker that makes that one makes this
            one next.
        model: the generator that it loads; a worker prefers units of the one that it has.
    """

    name: str
    done: Callable[[], bool]
    make: Callable[[Claim], None]
    needs: "Unit | None" = None
    model: str = ""


class Stopped(BaseException):
    """The process was asked to stop, by a signal of this number."""

    def __init__(self, number: int) -> None:
        self.number = number


class _Stop:
    """Signals are the process's, and so is this."""

    asked = 0
    is_busy = False


def stop(number: int, frame: object = None) -> None:
    """Handler of SIGTERM and SIGINT: stops at the next micro-batch, or at once where there is none in work.

    A second signal does not wait.
    """
    again, _Stop.asked = _Stop.asked, number
    if again or not _Stop.is_busy:
        raise Stopped(number)


def listen(*numbers: int) -> None:
    """Lets these signals end the process as `stop` does."""
    _Stop.asked = 0
    for number in numbers:
        signal.signal(number, stop)


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """Puts signals off while a unit is made."""
    _Stop.is_busy = True
    try:
        yield
    finally:
        _Stop.is_busy = False
    if _Stop.asked:
        raise Stopped(_Stop.asked)


class _Outcome(Enum):
    DONE = auto()
    MADE = auto()
    HELD = auto()  # by another worker, or not ready
    FAILED = auto()
    GIVEN_UP = auto()


class Worker:
    """One worker on one folder.

    Args:
        command: what this process belongs to; None is a new one. Attempts at a unit are counted for each.
        deadline: seconds that a micro-batch may take; then the process ends, as hung. None is no end.
        parent: the process that this one must not outlive; None is none.
        on_made: told the name of each unit that this worker has made.
    """

    def __init__(
        self,
        root: Path,
        *,
        command: str | None = None,
        deadline: float | None = None,
        parent: int | None = None,
        on_made: Callable[[str], None] = lambda unit: None,
    ) -> None:
        self.root, self.command = root, command or uuid.uuid4().hex
        self.deadline, self.parent = deadline, parent
        self.on_made = on_made
        self.model = ""
        self.given_up: dict[str, str] = {}
        self._looked: dict[str, float] = {}  # when the age of another's claim was last asked for

    def work(self, units: Sequence[Unit]) -> None:
        """Returns when all units are done, by this worker or by others.

        Raises:
            WorkError: some were given up, or what they need was; all others are done.
        """
        followers: dict[str, list[Unit]] = {}
        for unit in units:
            if unit.needs:
                followers.setdefault(unit.needs.name, []).append(unit)
        pending, pause = list(units), WAIT_SECONDS
        try:
            while pending:
                pending, made_any = self._pass(pending, followers)
                if pending and not made_any:
                    self._stop_if_asked()
                    time.sleep(pause)
                pause = WAIT_SECONDS if made_any else min(1.1 * pause, 4 * WAIT_SECONDS)
            self._tidy(units)
        except OSError as error:
            if error.errno not in HOPELESS:
                raise
            raise WorkError(
                f"{error.filename or self.root}: {error.strerror}; what is finished stays; when that is "
                "mended, the same command goes on"
            ) from error
        left = [unit.name for unit in units if unit.name in self.given_up and not unit.done()]
        if left:
            raise WorkError(
                f"{self.root}: {len(left)} units given up after {MAX_ATTEMPTS} attempts each, first "
                f"{left[0]} ({self.given_up[left[0]]}); what is finished stays, the same command tries again"
            )

    def _pass(self, pending: list[Unit], followers: dict[str, list[Unit]]) -> tuple[list[Unit], bool]:
        """Tries each unit once, those of the loaded model first and those that ended badly last; returns
        those that are left, and whether any was made.
        """
        left, made_any = list[Unit](), False
        tried, loaded = set(claims.attempted(self.root)), ("", self.model) if self.model else None

        def rank(unit: Unit) -> tuple[bool, bool]:
            return unit.name in tried, loaded is not None and unit.model not in loaded

        order = sorted(pending, key=rank)
        for place, unit in enumerate(order):
            before = self.model
            outcome = self._try(unit)
            if outcome is _Outcome.MADE:
                made_any = True
                for follower in followers.get(unit.name, ()):
                    self._try(follower)
            if outcome in (_Outcome.HELD, _Outcome.FAILED):
                left.append(unit)
            if self.model != before:  # another model: its units come first from now on
                return left + order[place + 1 :], True
        return left, made_any

    def _try(self, unit: Unit) -> _Outcome:
        if unit.done():
            return _Outcome.DONE
        if unit.needs and not unit.needs.done():
            return _Outcome.GIVEN_UP if unit.needs.name in self.given_up else _Outcome.HELD
        now = time.monotonic()
        ask_clock = now - self._looked.get(unit.name, -math.inf) > claims.LEASE_SECONDS / 4
        held = claims.claim(
            self.root, unit.name, command=self.command, at_step=self._step, ask_clock=ask_clock
        )
        with _busy(), held as claim:
            if claim is None:
                if ask_clock:
                    self._looked[unit.name] = now
                return _Outcome.HELD
            if unit.done():
                return _Outcome.DONE
            own = [each for each in claims.attempts(self.root, unit.name) if each["command"] == self.command]
            if len(own) >= MAX_ATTEMPTS:
                self.given_up[unit.name] = own[-1]["error"]
                return _Outcome.GIVEN_UP
            self.model = unit.model or self.model
            return self._make(unit, claim)

    def _make(self, unit: Unit, claim: Claim) -> _Outcome:
        try:
            unit.make(claim)
        except LostClaimError:
            return _Outcome.HELD
        except Exception as error:
            # what the user has to mend, for all units or for none; a WorkError is about this one
            is_hopeless = isinstance(error, OSError) and error.errno in HOPELESS
            if is_hopeless or (isinstance(error, SynthgenError) and type(error) is not WorkError):
                raise
            if not claim.is_held():  # its unfinished files went with the claim
                return _Outcome.HELD
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            claims.note_attempt(
                self.root,
                unit.name,
                {"command": self.command, "host": storage.host(), "pid": os.getpid(), "error": reason},
            )
            logging.getLogger(__name__).warning("%s: attempt failed", unit.name, exc_info=error)
            if "AcceleratorError" in {kind.__name__ for kind in type(error).__mro__}:
                raise DeviceError(
                    f"{unit.name}: {reason}; this process cannot use the device any more"
                ) from error
            return _Outcome.FAILED
        finally:
            if self.deadline:
                faulthandler.cancel_dump_traceback_later()
        claims.forget_attempts(self.root, unit.name)
        self.on_made(unit.name)
        return _Outcome.MADE

    def _step(self) -> None:
        """Between two micro-batches."""
        self._stop_if_asked()
        # not a thread of ours: it would wait for the interpreter, which may be what hangs
        if self.deadline and sys.__stderr__:
            faulthandler.dump_traceback_later(self.deadline, exit=True, file=sys.__stderr__)

    def _stop_if_asked(self) -> None:
        if _Stop.asked:
            raise Stopped(_Stop.asked)
        if self.parent is not None and os.getppid() != self.parent:
            raise Stopped(signal.SIGTERM)

    def _tidy(self, units: Sequence[Unit]) -> None:
        """Removes what workers that died left of units that are done."""
        claims.sweep(self.root)
        tried = set(claims.attempted(self.root))
        for unit in units:
            if unit.name in tried and unit.done():
                claims.forget_attempts(self.root, unit.name)
