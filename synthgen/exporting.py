from typing import NamedTuple


class Exported(NamedTuple):
    folder: str
