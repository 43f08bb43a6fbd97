"""What a terminal shows of a run, as lines of text. For `cli`."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from synthgen.costs import spell_bytes

if TYPE_CHECKING:
    from synthgen.combining import Combined
    from synthgen.costs import Cost, Made, ModelCost
    from synthgen.doctor import Finding
    from synthgen.explaining import Explained, Sample
    from synthgen.exporting import Exported
    from synthgen.inspection import Status
    from synthgen.preview import Preview, Sheet, Terms
    from synthgen.provenance import Found
    from synthgen.tables import Recipe
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
    return f", {found['images_per_second']:.1f} images/s, {_clock(found['seconds_left'])} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def preview_lines(recipe: "Recipe", found: "Preview") -> list[str]:
    more = f" ({found.extra} of them added)" if found.extra else ""
    if recipe.curates:
        return [
            f"{found.recipe}: valid; makes no images, curates {found.requests} samples in {found.folder}",
            f"classes: {found.classes}",
            f"annotators: {', '.join(table.name for table in recipe.annotate) or 'none'}",
            f"rules: {', '.join(table.use for table in recipe.select) or 'none'}",
            *some("name", found.names),
        ]
    return [
        f"{found.recipe}: valid",
        f"classes: {found.classes}{more}, axes: {', '.join(found.axes) or 'none'}",
        f"requests: {found.requests} ({found.not_planned} not planned yet), in {found.folder}",
        *_quota(recipe),
        f"prompts: {found.texts} different ones",
        *([f"groups: {found.groups}"] if found.groups else []),
        *[f"  {example}" for example in found.examples],
        *[f"model {name}: {about}" for name, about in found.models.items()],
        f"annotators: {', '.join(table.name for table in recipe.annotate) or 'none'}",
        f"rules: {', '.join(table.use for table in recipe.select) or 'none'}",
        f"cost: synthgen plan {found.recipe} --dry-run",
        *(["diversity:"] if found.figures else []),
        *[f"  {key:24}{_figure(value)}" for key, value in found.figures.items()],
        *some("note", found.notes),
        *some("name", found.names),
        *_ambiguous(list(found.ambiguous)),
    ]


def cost_lines(found: "Cost") -> list[str]:
    """What a dataset costs, for a terminal: tables of the models, what they lose of prompts, disk, time."""
    left = "all left to make" if found.left == found.requests else f"{found.left:,} left to make"
    lines = [f"{found.recipe}: {found.requests:,} requests, {left}, in {found.folder}; nothing was written"]
    cells = "classes" if found.per == ["class"] else "cells"
    rows = [["model", "requests", cells, "each", "prompts", "size", "TFLOP/image", "TFLOP/prompt"]]
    for model in found.models:
        _, least, most = model.cells
        rows.append(
            [
                model.model,
                f"{model.requests:,}",
                f"{model.cells.cells:,}",
                f"{least}" if least == most else f"{least} to {most}",
                f"{model.prompts:,}",
                f"{model.width}x{model.height}{'?' * model.is_guessed}",
                _figure_of(model.flops_per_image, 1e12),
                _figure_of(model.flops_per_prompt, 1e12),
            ]
        )
    lines += _table(rows)
    lines += [f"cells: each {' x '.join(found.per)}"] if cells == "cells" else []
    if found.budget > found.requests:
        lines.append(
            f"quota: until enough is accepted, up to {found.budget - found.requests:,} more requests are made"
        )
    lines += [f"{model.model}: {model.path}: {model.unknown}" for model in found.models if model.unknown]
    hours = {model.model: model.gpu_hours for model in found.models if model.gpu_hours and model.left}
    if hours:
        gpus = list(next(iter(hours.values())))
        if len(hours) > 1:
            hours["together"] = {gpu: sum(own[gpu] for own in hours.values()) for gpu in gpus}
        rows = [[name, *(_figure_of(own[gpu]) for gpu in gpus)] for name, own in hours.items()]
        bits = sorted({"32" if m.dtype == "float32" else "16" for m in found.models if m.model in hours})
        lines += _table([["GPU-hours", *gpus], *rows])
        lines.append(
            f"  arithmetic: {found.utilisation:.0%} of the dense {' or '.join(bits)}-bit peak; "
            "few steps or single images reach less"
        )
    for model in found.models:
        lines += _lost(model)
    part = found.final_part
    bound, rate = ("at most ", "") if part == 1 else ("", f" ({part:.0%} of the requests)")
    free = "unknown" if found.free_bytes is None else spell_bytes(found.free_bytes)
    pool, final = spell_bytes(found.pool_bytes), spell_bytes(found.final_bytes)
    lines.append(f"disk: pool {pool} more, final {bound}{final}{rate}; {free} free")
    for model in found.models:
        by = _shards(model.made) if model.made else "constants"
        lines.append(
            f"  {model.model}: {spell_bytes(model.bytes_per_image)} an image in {found.image_format}, by {by}"
        )
    for model in found.models:
        if model.made:
            each, all_left = model.made.seconds, _clock(model.made.seconds * model.left)
            lines.append(
                f"time: {model.model}: {each:.3g} s an image on {model.made.devices}, by "
                f"{_shards(model.made)}; {all_left} left for one worker"
            )
    return lines


def _shards(made: "Made") -> str:
    return f"{made.shards} finished shard{'s' * (made.shards > 1)}"


def _table(rows: list[list[str]]) -> list[str]:
    """Columns under each other: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]


def _figure_of(number: float | None, unit: float = 1.0) -> str:
    """A number in units, with three digits or so."""
    if number is None:
        return "unknown"
    value = number / unit
    return (
        "0" if not value else "<0.01" if value < 0.01 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    )


def _lost(model: "ModelCost") -> list[str]:
    lines = []
    for one in model.lost:
        what = f"tokens: {model.model}: {one.tokenizer} reads {one.limit}"
        if not one.texts:
            lines.append(f"{what}; no prompt has more")
            continue
        most = max(tokens for _, tokens, _ in one.texts)
        lines.append(
            f"{what}; {len(one.texts):,} of {model.prompts:,} prompts have more, up to {most}; lost:"
        )
        lines += [f'  "...{end[-70:]}" ({tokens} tokens)' for _, tokens, end in one.texts[:2]]
    return lines


def terms_lines(found: "Sequence[Terms]") -> list[str]:
    """Models and sources with their licences, a table."""
    widths = [max(len(one[column]) for one in found) for column in range(2)]
    return [f"{one.key:{widths[0]}}  {one.path:{widths[1]}}  {one.license}" for one in found]


def _quota(recipe: "Recipe") -> list[str]:
    quota = recipe.quota
    of = f"of each {' x '.join(quota.cell)}" if quota.cell else "in all"
    said = f"quota: {quota.accepted} accepted {of}, in rounds, {quota.max_requests} requests at most"
    return [said] if quota.accepted else []


def _ambiguous(names: list[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return [f"name: {len(names)} may mean several things ({shown}); a synset would say which, --json what"]


def _figure(value: float) -> str:
    if math.isnan(value):
        return "too few to say"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


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
    lines = [f"subset {found.subset}: {found.kept} of {found.requested} kept{of}", *_table(rows)]
    for what, groups in found.groups.items():
        if len(groups) > 1:
            lines.append(f"{what}, least kept of {len(groups)}:")
            shown = groups[:SHOWN]
            counts = [[f"{one.kept} of {one.requested}", _share(one.kept, one.requested)] for one in shown]
            table = _table([[one.name or "(none)", *own] for one, own in zip(shown, counts, strict=True)])
            by = ["; ".join(f"{n} {step}" for step, n in one.rejected.items()) for one in shown]
            lines += [f"  {row}  {said}".rstrip() for row, said in zip(table, by, strict=True)]
    return lines


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.0f}%"


def sample_lines(found: "Sample") -> list[str]:
    """What each rule saw in a sample."""
    lines = [f"{found.uid}: {found.verdict}"]
    lines += [f"  {name:24}{value}" for name, value in found.about.items() if value]
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
    return lines + [f"  {key:24}{value}" for key, value in found.provenance.items() if value != ""]


def sheet_lines(sheets: "Sequence[Sheet]", *, everything: bool) -> list[str]:
    """The prompts of classes: some of some, or all of all."""
    lines = []
    for sheet in sheets if everything else sheets[:SHOWN]:
        rejected = ", ".join(f"{len(texts)} x {reason}" for reason, texts in sheet.rejected.items())
        lines.append(
            f"{sheet.class_name}: {len(sheet.accepted)} prompts"
            + (f"; rejected: {rejected}" if rejected else "")
        )
        lines += [f"  {text}" for text in (sheet.accepted if everything else sheet.accepted[:3])]
        for reason, texts in sheet.rejected.items() if everything else ():
            lines += [f"  rejected ({reason}): {text}" for text in texts]
    if len(sheets) > SHOWN and not everything:
        lines.append(f"{len(sheets) - SHOWN} more classes; --all shows all prompts of all")
    return lines


def doctor_lines(findings: "Sequence[Finding]", lines: Sequence[str]) -> list[str]:
    """What `doctor` prints: a table a model, and the lines to paste."""
    shown = list[str]()
    for one in findings:
        total = sum(one.weights_bytes.values())
        largest = sorted(one.weights_bytes.items(), key=lambda entry: -entry[1])
        parts = ", ".join(f"{part} {_size(size)}" for part, size in largest[:SHOWN])
        free = "" if one.free_bytes is None else f", {_size(one.free_bytes)} free"
        shown.append(f"{one.model}: {one.path} on {one.device}{free}")
        shown.append(f"weights in {one.dtype}: {_size(total)} ({parts})")
        if one.error:
            shown += [f"not tried: {one.error}", ""]
            continue
        shown.append(f"{'batch size':>10} {'images/s':>10} {'s a batch':>10} {'peak memory':>12}")
        for trial in one.trials:
            peak = "unknown" if trial.peak_bytes is None else _size(trial.peak_bytes)
            shown.append(
                f"{trial.batch_size:>10} {trial.images_per_second:>10.2f} {trial.seconds:>10.2f} {peak:>12}"
            )
        shown += [f"stopped: {one.stopped}", ""]
    if lines:
        shown += ["add to the command, or write into the recipe:", *(f"  {line}" for line in lines)]
    elif any(one.batch_size for one in findings):
        shown.append("the recipe's batch sizes are the best of these")
    return shown


def _size(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
