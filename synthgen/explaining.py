"""`synthgen select --explain`: what rejects most, of which classes, models and templates; and what each rule
saw in one sample.
"""

from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from synthgen import shards, subsets
from synthgen.errors import FolderError
from synthgen.job import Job
from synthgen.selection.explaining import PASSED, REJECTED, Look, explain


class Explained(NamedTuple):
    """A subset's funnel, with the groups of each kind that lose most first."""

    subset: str
    expression: str  # of what it was combined, "" where rules chose it
    requested: int
    failed: int
    kept: int
    funnel: list[dict[str, object]]
    groups: dict[str, list[subsets.Group]]


class Sample(NamedTuple):
    """One sample's way through the rules."""

    subset: str
    uid: str
    about: dict[str, str]
    verdict: str
    looks: list[Look]


def explain_subset(job: Job) -> Explained:
    """What became of all samples, as the subset's JSON file says it."""
    told = subsets.told(job.root, job.subset)
    return Explained(
        job.subset,
        told["inputs"].get("expression", ""),
        told["requested"],
        told["failed"],
        told["kept"],
        told["funnel"],
        {what: subsets.groups(told, what) for what in told["left"]},
    )


def explain_sample(job: Job, uid: str) -> Sample:
    """What each rule saw in the sample whose uid begins so.

    Raises:
        FolderError: there is none, or several.
    """
    columns = job.columns()
    uids = columns.stored("uid")
    found = np.flatnonzero(pc.starts_with(uids, uid).to_numpy()).tolist()
    if len(found) != 1:
        several = f"is the beginning of {len(found)} uids, such as {uids[found[0]]}" if found else ""
        raise FolderError(f"{job.root}: {uid} {several or 'is no uid of the pool'}")
    (row,) = found
    told = [name for name in ("class_name", "text", "template", "model") if name in columns]
    about = {name: str(columns[name][row]) for name in told}
    table = shards.read_table(job.root / shards.SUBSETS / f"{job.subset}.parquet", ["uid", "verdict"])
    verdict = str(table["verdict"][row])
    if job.is_given(job.subset):
        expression = str(subsets.told(job.root, job.subset)["inputs"]["expression"])
        looks = [Look(expression, verdict, PASSED if verdict == "kept" else REJECTED)]
    else:
        chosen = job.selected(columns, job.subset)
        looks = explain(columns, row, chosen, job.rules_of(job.subset), job.quota_of(job.subset))
    return Sample(job.subset, str(uids[row]), about, verdict, looks)
