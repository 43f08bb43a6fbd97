"""What a terminal shows of a recipe before its run: prompts, costs, licences, trials. For `cli`."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from synthgen.costs import spell_bytes
from synthgen.display import SHOWN, clock, some, table

if TYPE_CHECKING:
    from synthgen.costs import Cost, Made, ModelCost
    from synthgen.doctor import Finding
    from synthgen.preview import Preview, Sheet, Terms
    from synthgen.tables import Recipe


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
    lines += table(rows)
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
        lines += table([["GPU-hours", *gpus], *rows])
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
            each, all_left = model.made.seconds, clock(model.made.seconds * model.left)
            lines.append(
                f"time: {model.model}: {each:.3g} s an image on {model.made.devices}, by "
                f"{_shards(model.made)}; {all_left} left for one worker"
            )
    return lines


def _shards(made: "Made") -> str:
    return f"{made.shards} finished shard{'s' * (made.shards > 1)}"


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
