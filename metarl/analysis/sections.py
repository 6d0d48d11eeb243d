"""Parts of the page about runs that stand by themselves."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from metarl.analysis import parts, plots, shot_references
from metarl.analysis.film import Strip
from metarl.analysis.parts import Picture, Table


def beyond(result: Mapping[str, Any] | None) -> list[Picture]:
    """Return the picture of ``bands.json``, where there is any."""
    if result is None:
        return []
    groups = [group for place in result["bands"].values() for group in place["groups"].values()]
    by = "rollouts" if any(len(set(group["updates"])) < len(group["updates"]) for group in groups) else "updates"
    reading = (
        "The same runs on tasks that training never drew, each band beside the tasks that it did. Where a band's line rises as"
        " the usual one does, adaptation carries over; where it ends lower, that is what the shift costs."
    )
    return [Picture("Beyond the tasks of training", reading, parts.svg(lambda path: plots.bands(result, path, by)))]


def film(strip: Strip | None) -> list[Picture]:
    """Return the film strip, or the sentence that says why there is none."""
    if strip is None:
        return []
    data = base64.b64encode(strip.png).decode("ascii")
    return [Picture("One task before and after adapting", strip.text, data, "png")]


def references(result: Mapping[str, Any]) -> Picture:
    """Return the picture of ``references.json``."""
    if shot_references.holds(result):
        reading = (
            f"The run after each inner update, and levels of what adapts nothing, by the same {len(result['tasks'])} tasks, support"
            " and query sets. On the right what the run has after its last update beyond each: an interval above 0 says that it is"
            " better, one across 0 that these tasks cannot tell. What it has beyond nearest pixels is what a trained network is"
            " worth; beyond prototypes, which use its features as they are before adapting, what adapting is worth."
        )
        return Picture(
            "References that do not adapt", reading, parts.svg(lambda path: plots.shot_references(result, path))
        )
    reading = (
        "Score on the test tasks against environment steps taken on each of them: what learning anew costs. The dotted line"
        " is the adapted policy's; where a curve crosses it, that reference has caught up. An oracle observes the task and"
        " does not learn on it. All curves are of the same tasks, which may be fewer than those above."
    )
    return Picture("References from libraries", reading, parts.svg(lambda path: plots.references(result, path)))


def shots_compared(result: Mapping[str, Any]) -> Table:
    """Return the numbers of ``references.json`` of labelled shots."""

    def shown(one: Mapping[str, Any]) -> str:
        return f"{one['mean']:.4g} [{one['ci95'][0]:.4g}, {one['ci95'][1]:.4g}]"

    ours, rows = result["meta_learner"], []
    for point, updates in enumerate(ours["updates"]):
        own = {"mean": ours["mean"][point], "ci95": ours["ci95"][point]}
        rows.append([f"{result['run']} ({result['algorithm']})", f"after {updates} inner updates", shown(own), ""])
    rows += [[name, one["about"], shown(one), shown(one["difference"])] for name, one in result["references"].items()]
    protocol = f", {result['protocol']}" if result["protocol"] else ""
    reading = (
        f"Means and Student's 95 % intervals over {len(result['tasks'])} {result['split']} tasks{protocol}; differences are of the"
        " same task. Nearest pixels look at every query by itself. What adapting the last layer alone gives is in the diagnosis"
        " (head)."
    )
    head = ["", "what it is", result["metric"], "the run's after its last update minus this"]
    return Table("References that do not adapt, in numbers", reading, head, rows)


def along(curve: Mapping[str, Any] | None) -> list[Table]:
    """Return last scores by the task parameter, where a task is one number."""
    found = curve.get("along") if curve else None
    if curve is None or found is None:
        return []
    parameter, unit = found["parameter"], curve.get("task_units", {}).get(found["parameter"], "")
    head = [
        f"{f'{low:.4g}' if low == high else f'{low:.4g} to {high:.4g}'} ({count} tasks)"
        for (low, high), count in zip(found["ranges"], found["tasks"], strict=True)
    ]
    rows = [
        [
            label,
            *(f"{mean:.4g} [{low:.4g}, {high:.4g}]" for mean, (low, high) in zip(*group.values(), strict=True)),
        ]
        for label, group in found["groups"].items()
    ]
    title = f"{curve['metric']} by {parameter}" + (f" ({unit})" if unit else "")
    return [Table(title, "After the last update: mean and 95 % interval over seeds and tasks.", ["group", *head], rows)]


def bands(result: Mapping[str, Any] | None) -> list[Table]:
    """Return means in every band, before and after adapting."""
    if result is None:
        return []
    rows = []
    for name, place in result["bands"].items():
        for label, group in place["groups"].items():
            shown = [
                f"{mean:.4g} [{low:.4g}, {high:.4g}]"
                for mean, (low, high) in zip(group["mean"], group["mean_ci95"], strict=True)
            ]
            changed = ", ".join(f"env.{key}={value}" for key, value in place["settings"].items())
            rows.append([name, changed, label, str(len(group["runs"])), shown[0], shown[-1]])
    reading = (
        f"Mean {result['metric']} and 95 % interval over seeds and {len(place['tasks'])} {result['split']} tasks of each band."
        " Step sizes are those of the usual tasks."
    )
    head = ["band", "settings", "group", "seeds", "before adapting", "after the last update"]
    return [Table(f"{result['metric']} beyond the tasks of training", reading, head, rows)]


def published(curve: Mapping[str, Any] | None) -> list[Table]:
    """Return what others have published of the family, and what is different there."""
    if curve is None or "published" not in curve:
        return []
    told, rows = curve["published"], []
    for own in told["curves"]:
        spread = own.get("ci95", [None] * len(own["values"]))
        for updates, value, half in zip(own["updates"], own["values"], spread, strict=True):
            rows.append([own["method"], str(updates), f"{value:g}" + ("" if half is None else f" ± {half:g}")])
    reading = (
        f"{told['source']}; grey marks in the picture of adaptation. Different there: {told['differs']} Such numbers say"
        " whether the order of magnitude is right, not who is better."
    )
    return [Table("Published numbers", reading, ["method", "updates", curve["metric"]], rows)]
