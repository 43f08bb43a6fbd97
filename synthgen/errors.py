"""What can go wrong, as the user meets it. Every message is one line: what, where, what was got, what is
allowed, what to do next. The command line prints it and exits with `exit_status`."""


class SynthgenError(Exception):
    """Bad input: nothing was changed."""

    exit_status = 2


class RecipeError(SynthgenError):
    """The recipe, or a file that it names, is wrong."""


class UnansweredError(RecipeError):
    """A language model has not been asked yet."""


class FolderError(SynthgenError):
    """The run's folder is not what the command needs."""


class ModelError(SynthgenError):
    """A model cannot be found, loaded or called as the recipe says."""


class WorkError(SynthgenError):
    """Work failed half-way. What was published stays; the same command goes on."""

    exit_status = 1


class LostClaimError(WorkError):
    """Another worker has taken over the unit; what this one made is dropped."""


class ReplyError(WorkError):
    """A language model gave no reply; asked again, it may. `wait_seconds` is what its server asks for, 0 is
    nothing.
    """

    def __init__(self, message: str, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class OutOfMemoryError(WorkError):
    """The device has too little memory for what the recipe asks."""


class DeviceError(WorkError):
    """The accelerator failed; only a new process can use it again."""


MOST_LISTED = 1100
"""Characters of a list of names in a message; a longer one is not shown."""


def nearest(word: str, known: list[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, then all of them, or of many the
    like.
    """
    import difflib

    close = difflib.get_close_matches(word, known, n=6, cutoff=0.6)
    hint = f'; did you mean "{close[0]}"?' if close else "."
    every = ", ".join(sorted(known))
    if len(every) <= MOST_LISTED:
        return f"{hint} Known: {every}"
    return f"{hint} {len(known)} are known" + (f", among them {', '.join(close)}" if close else "")


def require_least(what: str, number: int | None, least: int) -> None:
    """Raises FolderError where a number is there and is less than it may be."""
    if number is not None and number < least:
        raise FolderError(f"{what}: got {number}; a whole number from {least} is wanted")
