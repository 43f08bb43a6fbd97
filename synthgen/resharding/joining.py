"""Whether the samples of several pools can be one dataset: its classes, its members, the keys of its json."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from synthgen.errors import FolderError
from synthgen.resharding.choosing import Chosen
from synthgen.resharding.copying import ENDINGS, read_sample

Keys = dict[str, type]
PLAIN = (str, bool, int, float)


def classes_of(chosen: Chosen, names: Sequence[str], own: Mapping[str, int]) -> dict[str, int]:
    """The classes of joined pools: name -> id, those of the recipe first.

    Args:
        own: the recipe's classes.

    Raises:
        FolderError: a class has another id in another pool, or an id another class.
    """
    if "class_name" not in chosen.columns:
        return dict(own)
    labels, class_names = (chosen.columns[name] for name in ("class_id", "class_name"))
    width = max(len(class_names.values), 1)
    keys = (chosen.runs * max(len(labels.values), 1) + labels.numbers) * width + class_names.numbers
    found = {name: (number, names[0]) for name, number in own.items()}
    by_id = {number: (name, names[0]) for name, number in own.items()}
    for key in np.unique(keys).tolist():
        run, number = divmod(key // width, max(len(labels.values), 1))
        class_id, name, where = labels.values[number], class_names.values[key % width], names[run]
        if not isinstance(class_id, int) or not isinstance(name, str):
            continue
        other, there = found.setdefault(name, (class_id, where))
        if other != class_id:
            raise FolderError(
                f'the class "{name}" has id {other} in {there} and {class_id} in {where}; give it one id in '
                "both (a classes.csv with columns id and name) and make one of them anew; sources that are "
                "imported into one folder share their ids"
            )
        twin, there = by_id.setdefault(class_id, (name, where))
        if twin != name:
            raise FolderError(
                f'id {class_id} is the class "{twin}" in {there} and "{name}" in {where}; give one of them '
                "another id (a classes.csv with columns id and name) and make it anew; sources that are "
                "imported into one folder share their ids"
            )
    return {name: number for name, (number, _) in found.items()}


def check_members(
    chosen: Chosen, names: Sequence[str], *, image: str, leave_out: Sequence[str], is_common: bool
) -> Keys | None:
    """With `is_common`, the keys and types that the json of every sample is to have; None where all have the
    same ones already, so that they stay as they are.

    Readers take members and keys from the first few samples and fail, or drop what is missing, where later
    ones have others. The keys of a source, or a pool of our own, are those of its first sample.

    Args:
        names: of the pools, for messages.
        image: the ending that all images get, "" for their own.
        leave_out: the members that are left out.

    Raises:
        FolderError: some samples have other members; or other keys, without `is_common`.
    """
    pairs = chosen.runs * max(len(chosen.kinds), 1) + chosen.kind
    _, rows, counts = np.unique(pairs, return_index=True, return_counts=True)
    if len(rows) < 2:
        return None
    found = list[_Found]()
    for row, count in zip(rows.tolist(), counts.tolist(), strict=True):
        source = chosen.kinds[int(chosen.kind[row])].source
        where = names[int(chosen.runs[row])] + (f" (source {source})" if source else "")
        members = read_sample(chosen, row)
        named = {image if image and name in ENDINGS else name for name in members} - {*leave_out}
        found.append(_Found(where, count, sorted(named), members.get("json", b"")))
    first = found[0]
    for other in found[1:]:
        if other.members != first.members:
            differ = set(other.members) ^ set(first.members)
            hint = 'set reshard.image = "jpg" to give all images one ending; their bytes stay'
            if not differ <= {*ENDINGS, "cls", "txt"}:
                others = json.dumps(sorted(differ - {*ENDINGS, "cls", "txt"}))
                hint = f"set reshard.leave_out = {others} to leave them out"
            raise FolderError(
                f"{first.samples} samples of {first.where} have the members {', '.join(first.members)}, "
                f"{other.samples} of {other.where} have {', '.join(other.members)}; all samples of a dataset "
                f"have the same: {hint if differ - {'cls', 'txt'} else 'select those that do'}"
            )
    if "json" not in first.members:
        return None
    of = {one.where: one for one in reversed(found)}  # the first of each source
    keys = [(where, _keys(one.json)) for where, one in reversed(of.items())]
    differing = [
        f"{key} ({_spell(keys[0][1].get(key))} in {keys[0][0]}, {_spell(own.get(key))} in {name})"
        for name, own in keys[1:]
        for key in dict.fromkeys([*keys[0][1], *own])
        if keys[0][1].get(key) is not own.get(key)
    ]
    if not differing:
        return None
    if not is_common:
        raise FolderError(
            f"the json members differ in {', '.join(differing[:3])}"
            + (f" and {len(differing) - 3} more" if len(differing) > 3 else "")
            + '; readers want one set of keys: set reshard.json_keys = "common" to rewrite them'
        )
    return common_keys([own for _, own in keys])


class _Found(NamedTuple):
    """So many samples with these members, and the json of the first of them."""

    where: str
    samples: int
    members: list[str]
    json: bytes


def common_keys(parts: Sequence[Keys]) -> Keys:
    """The keys that all have with one type, and what else is text, which may be ""."""
    every = dict.fromkeys(key for part in parts for key in part)
    kinds = {key: {part[key] for part in parts if key in part} for key in every}
    return {
        key: kind.pop()
        for key, kind in kinds.items()
        if len(kind) == 1 and (kind == {str} or all(key in part for part in parts))
    }


def _keys(data: bytes) -> Keys:
    values = json.loads(data)
    return {key: type(value) for key, value in values.items() if isinstance(value, PLAIN)}


def _spell(kind: type | None) -> str:
    names = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    return names[kind] if kind else "absent"
