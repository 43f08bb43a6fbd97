"""What a terminal shows of a run, as lines of text. For `cli`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthgen.combining import Combined
    from synthgen.explaining import Explained, Sample
    from synthgen.exporting import Exported
    from synthgen.inspection import Status
    from synthgen.provenance import Found
    from synthgen.tables.models import QuotaTable

SHOWN = 5
"""So many lines of one kind are shown."""
MOST_SHORT = 10
"""So many cells that are short of their quota."""
UNIT_STATES = {"claimed": "in work", "stale": "left unfinished", "given_up": "given up"}


def counts(found: "Status") -> str:
    return (
        f"{found['folder']}: {found['requests']} requested, {found['written']} written, "
        f"{found['failed']} failed"
    )


def summary(found: "Status", subsets: "Sequence[str]") -> str:
    """The lines that end a command: what there is now of these subsets, and of the first one's final."""
    lines = [counts(found), *(_kept(found, name) for name in subsets if name in found["subsets"])]
    subset = subsets[0]
    if subset in found["final"]:
        splits = [f"{split} {count}" for split, count in found["final"][subset].items()]
        lines.append(f"final/{subset}: {', '.join(splits) or 'nothing was kept'}")
    return "\n".join(lines)


def short_lines(
    short: Sequence[dict[str, Any]], quota: "QuotaTable", requests: int, stages: Sequence[str]
) -> list[str]:
    """A table of the cells that have fewer accepted images than the quota wants, and why."""
    if not short:
        return []
    missing = sum((quota.accepted or 0) - cell["kept"] for cell in short)
    spent = (
        "the budget, max_requests"
        if requests == quota.max_requests
        else f"max_requests = {quota.max_requests}"
    )
    lines = [
        f"accepted images missing: {missing}, in cells: {len(short)}, after {requests} requests "
        f"({spent}); accepted = {quota.accepted}"
    ]
    names = [", ".join(cell["cell"]) or "all" for cell in short[:MOST_SHORT]]
    width = max(map(len, names))
    for name, cell in zip(names, short, strict=False):
        rejected = ", ".join(f"{number} by {rule}" for rule, number in cell["rejected"].items())
        scores = ", ".join(
            f"{column} {least:.3g} to {greatest:.3g}, median {median:.3g}"
            for column, (least, median, greatest) in cell["scores"].items()
        )
        lines.append(f"  {name:{width}}  {cell['kept']} kept of {cell['made']} made")
        lines += [f"  {'':{width}}    rejected: {rejected}"] * bool(rejected)
        lines += [f"  {'':{width}}    {scores}"] * bool(scores)
    if len(short) > MOST_SHORT:
        lines.append(f"  {len(short) - MOST_SHORT} more cells; --json has them all")
    if requests < (quota.max_requests or 0) and "generate" not in stages:
        lines.append("  `synthgen run` asks for more")
    return lines


def pace(found: "Status") -> str:
    if found["images_per_second"] is None or found["seconds_left"] is None:
        return ""
    return f", {found['images_per_second']:.1f} images/s, {clock(found['seconds_left'])} left"


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def table(rows: list[list[str]]) -> list[str]:
    """Columns under each other: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]


def some(what: str, lines: list[str]) -> list[str]:
    """The first lines of many."""
    more = [f"{what}: {len(lines) - SHOWN} more; --json has them all"] if len(lines) > SHOWN else []
    return [f"{what}: {line}" for line in lines[:SHOWN]] + more


def status_lines(found: "Status") -> list[str]:
    """How far a run is."""
    lines = [counts(found) + pace(found)]
    lines += [f"failed: {reason}: {count}" for reason, count in found["failed_by_reason"].items()]
    for stage, units in found["stages"].items():
        more = [f"{units[key]} {word}" for key, word in UNIT_STATES.items() if units[key]]  # type: ignore[literal-required]
        lines.append(", ".join([f"{stage}: {units['done']} of {units['total']} shards", *more]))
    for name in found["subsets"]:
        short = found["short"][name]
        lines.append(_kept(found, name) + (f"; cells short of the quota: {short}" if short else ""))
    for name, splits in found["final"].items():
        lines.append(f"final/{name}: " + ", ".join(f"{split} {count}" for split, count in splits.items()))
    for unit, reason in found["given_up"].items():
        lines.append(f"given up: {unit}: {reason}; the next run tries again")
    for unit, lease in found["claimed"].items():
        does = "left unfinished by" if lease["stale"] else "in work:"
        lines.append(
            f"{unit}: {does} process {lease['pid']} on {lease['host']}, {lease['done']} samples done"
        )
    hosts = {worker.rpartition(":")[0] for worker in found["workers"]}
    if hosts:
        lines.append(f"workers seen: {len(found['workers'])} on {', '.join(sorted(hosts))}")
    return lines


def explained_lines(found: "Explained") -> list[str]:
    """A subset's funnel, and the classes, models and templates of which least is kept."""
    of = f" ({found.expression})" if found.expression else ""
    rows = [["step", "before", "rejected", "left", "share"]]
    for stage in found.funnel:
        before, after = int(str(stage["before"])), int(str(stage["after"]))
        numbers = str(before), str(before - after), str(after), _share(after, found.requested)
        rows.append([str(stage["rule"]), *numbers])
    lines = [f"subset {found.subset}: {found.kept} of {found.requested} kept{of}", *table(rows)]
    for what, groups in found.groups.items():
        if len(groups) > 1:
            lines.append(f"{what}, least kept of {len(groups)}:")
            shown = groups[:SHOWN]
            counts = [[f"{one.kept} of {one.requested}", _share(one.kept, one.requested)] for one in shown]
            under = table([[one.name or "(none)", *own] for one, own in zip(shown, counts, strict=True)])
            by = ["; ".join(f"{n} {step}" for step, n in one.rejected.items()) for one in shown]
            lines += [f"  {row}  {said}".rstrip() for row, said in zip(under, by, strict=True)]
    return lines


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.0f}%"


def sample_lines(found: "Sample") -> list[str]:
    """What each rule saw in a sample."""
    lines = [f"{found.uid}: {found.verdict}"]
    lines += [f"  {name:23} {value}" for name, value in found.about.items() if value]
    for look in found.looks:
        lines.append(f"{look.verdict:12} {look.rule}" + (f": {look.saw}" if look.saw else ""))
    return lines


def import_lines(found: "Status") -> list[str]:
    """What an imported pool holds."""
    lines = [
        f"{found['folder']}: {found['written']} samples of {', '.join(found['sources'])}, "
        f"{found['failed']} with an error"
    ]
    reasons = sorted(found["failed_by_reason"].items(), key=lambda reason: -reason[1])
    lines += some("error", [f"{reason}: {count}" for reason, count in reasons])
    return [*lines, f"next: synthgen run RECIPE -o {found['folder']}, with a recipe that has no [[prompts]]"]


def export_lines(done: "Exported") -> list[str]:
    """What was written for DataComp's code, and what of it is not there."""
    lines = [f"{done.folder}: {done.rows} rows; columns {', '.join(done.columns)}"]
    lines += [f"features: {', '.join(done.features) or 'none'}"]
    return lines + some("note", done.notes)


def combined_lines(found: "Combined") -> list[str]:
    """What a combined subset keeps, and what left the others out."""
    repeats = f", {found.copies} with repeats" if found.copies != found.kept else ""
    return [
        f"subset {found.subset}: {found.kept} of {found.requested} kept{repeats} ({found.expression})",
        *(f"  {count} {reason}" for reason, count in found.rejected.items()),
    ]


def unknown_lines(found: "Combined") -> list[str]:
    """What of the operands is not in the pool."""
    return [
        f"{name}: {own.unknown} of {own.uids} uids are no written samples of the pool, "
        f"first {own.first_unknown}"
        for name, own in found.operands.items()
        if own.unknown
    ]


def _kept(found: "Status", name: str) -> str:
    kept, copies = found["subsets"][name], found["copies"][name]
    said = f"subset {name}: {kept} kept" + (f", {copies} with repeats" if copies != kept else "")
    return said + (f" ({found['combined'][name]})" if name in found["combined"] else "")


def image_lines(found: "Found") -> list[str]:
    """What an image's mark says, and where it is from."""
    if found.mark.is_ours:
        lines = [f"{found.image}: has synthgen's mark"]
    elif any(found.mark):
        lines = [f"{found.image}: has no mark of synthgen, but others' XMP"]
    else:
        lines = [f"{found.image}: has no mark"]
    lines += [f"  {key.replace('_', ' '):24}{value}" for key, value in found.mark._asdict().items() if value]
    if found.provenance:
        lines.append(f"provenance, by {found.told_by}:")
    elif found.mark.is_ours:
        lines.append("provenance: not here; -o DIR names the run that made it")
    return lines + [f"  {key:23} {value}" for key, value in found.provenance.items() if value != ""]
