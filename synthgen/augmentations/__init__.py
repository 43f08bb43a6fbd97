"""Augmentations that torchvision does not have, as transforms of its v2; knows nothing of runs or loaders.

Names are loaded when they are used: who only looks at settings of `Recorded` imports no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synthgen.augmentations.adainf import ADAINF_REPLICATION as ADAINF_REPLICATION
    from synthgen.augmentations.adainf import adainf_augmentation as adainf_augmentation
    from synthgen.augmentations.fields import RandomFieldAffine as RandomFieldAffine
    from synthgen.augmentations.fields import RandomFieldColor as RandomFieldColor
    from synthgen.augmentations.mixing import ResizeMix as ResizeMix
    from synthgen.augmentations.recorded import Recorded as Recorded

_HOMES = {
    "ADAINF_REPLICATION": "adainf",
    "RandomFieldAffine": "fields",
    "RandomFieldColor": "fields",
    "Recorded": "recorded",
    "ResizeMix": "mixing",
    "adainf_augmentation": "adainf",
}
__all__ = [
    "ADAINF_REPLICATION",
    "RandomFieldAffine",
    "RandomFieldColor",
    "Recorded",
    "ResizeMix",
    "adainf_augmentation",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'synthgen.augmentations' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"synthgen.augmentations.{_HOMES[name]}"), name)
