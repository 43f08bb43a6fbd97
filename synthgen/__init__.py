"""synthgen turns a recipe into a labelled image dataset: the verbs of the command line, in Python.

Names are loaded when they are used; `import synthgen` imports nothing heavy.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from synthgen.errors import SynthgenError as SynthgenError
    from synthgen.exporting import to_datacomp as to_datacomp
    from synthgen.generation.sampling import make_generator as make_generator
    from synthgen.inspection import status as status
    from synthgen.inspection import verify as verify
    from synthgen.intake import bring as bring
    from synthgen.loader import open_loader as open_loader
    from synthgen.pipeline import run as run

_HOMES = {
    "bring": "synthgen.intake",
    "SynthgenError": "synthgen.errors",
    "make_generator": "synthgen.generation.sampling",
    "open_loader": "synthgen.loader",
    "run": "synthgen.pipeline",
    "status": "synthgen.inspection",
    "to_datacomp": "synthgen.exporting",
    "verify": "synthgen.inspection",
}
__all__ = [
    "SynthgenError",
    "__version__",
    "bring",
    "make_generator",
    "open_loader",
    "run",
    "status",
    "to_datacomp",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'synthgen' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
