"""One page about runs, of what their files hold: pictures inside, no network, no script."""

from __future__ import annotations

import importlib.resources
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np

from metarl.analysis import groups, parts, plots, references, sections, shot_references
from metarl.analysis.film import Strip
from metarl.analysis.parts import Finding, Picture, Table
from metarl.run.config import RunConfig
from metarl.run.directory import METRICS, PROVENANCE, read_config
from metarl.settings import SettingsError


class Sources(NamedTuple):
    """What a page is made from.

    Attributes:
        runs: run directories by name.
        curve: what ``curve.json`` holds; None where nothing has been evaluated.
        diagnoses: what ``diagnostics.json`` holds, by the run's name, with the lines that were printed of each.
        references: what ``references.json`` of the first run holds; None where there are none.
        film: of the first run, or why there is none; None says nothing.
        bands: what ``bands.json`` of the first run holds; None where no tasks beyond training's have been tried.
    """

    runs: Mapping[str, pathlib.Path]
    curve: Mapping[str, Any] | None
    diagnoses: Mapping[str, Mapping[str, Any]]
    references: Mapping[str, Any] | None = None
    bands: Mapping[str, Any] | None = None
    film: Strip | None = None


def render(sources: Sources, texts: Mapping[str, Callable[[Mapping[str, Any]], str]]) -> str:
    """Return the page as HTML.

    Args:
        sources: of the numbers.
        texts: how each diagnostic is told in a line.

    Raises:
        SettingsError: if a run's files cannot be read.
    """
    first = next(iter(sources.runs.values()))
    config = read_config(first)
    rows = {name: _rows(path) for name, path in sources.runs.items()}
    sessions = {name: _sessions(path) for name, path in sources.runs.items()}
    last = {name: found[-1] for name, found in sessions.items() if found}
    made = [f"{len(own):,} iterations, {own[-1]['env_steps']:,} steps" for own in rows.values() if own]
    curve = sources.curve
    commands = [found[0]["command"] for found in sessions.values() if found]
    commands += [curve["command"]] if curve else []
    commands += [sources.bands["command"]] if sources.bands else []
    commands += [found["command"] for found in sources.diagnoses.values()]
    commands += [sources.references["command"]] if sources.references else []
    tables = [
        *(_groups(curve) if curve else []),
        *sections.along(curve),
        *sections.published(curve),
        *sections.bands(sources.bands),
        *_references(sources, config),
        *_diagnoses(sources.diagnoses, texts),
        *_timing(rows),
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = importlib.resources.files("metarl") / "pages" / "report.html"
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        title=f"{config.env}: {', '.join(sources.runs)}",
        subtitle=f"{config.algo}; {'; '.join(made) or 'no iteration yet'}",
        findings=[*_findings(curve), *_compared(sources.references), *_warnings(sources.diagnoses)],
        pictures=_pictures(sources, rows),
        tables=tables,
        commands=commands,
        origin=[line for name, session in last.items() for line in _origin(name, session)],
    )


def _findings(curve: Mapping[str, Any] | None) -> list[Finding]:
    """Say whether adaptation worked, and how sure that is."""
    if curve is None:
        return [Finding("Nothing has been evaluated yet: python -m metarl.evaluate says how well the runs adapt.")]
    found, sign, metric = [], 1.0 if curve["higher_is_better"] else -1.0, curve["metric"]
    members = _members(curve)
    summary = groups.summarise(curve, members)
    for label, group in summary.items():
        values = np.array([curve["runs"][name]["values"][: len(group["iqm"])] for name in group["runs"]])
        shown = [
            f"{v:.4g} [{low:.4g}, {high:.4g}]" for v, (low, high) in zip(group["iqm"], group["iqm_ci95"], strict=True)
        ]
        if len(shown) == 1:
            found.append(Finding(f"{label}: {metric} {shown[0]}, not adapted (interquartile mean and 95 % interval)."))
            continue
        gains = sign * (values[:, -1] - values[:, 0]).mean(0)
        better, seeds = int((gains > 0).sum()), len(group["runs"])
        learned = f"{group['updates'][-1]} inner updates on {group['rollouts'][-1]} {_seen(curve)} of a task"
        if not group["updates"][-1]:  # it learns by memory
            learned = f"{group['rollouts'][-1]} {_seen(curve)} of a task"
        over = f"{seeds} seed{'s' if seeds > 1 else ''} and {len(gains)} {curve['split']} tasks"
        text = (
            f"{label}: after {learned} the {metric} is {shown[-1]} (interquartile mean and 95 % interval over {over}), before it"
            f" was {shown[0]}; {better} of {len(gains)} tasks became better."
        )
        found.append(Finding(text, warns=2 * better < len(gains)))
    if len(summary) > 1:
        for pair in groups.compare(curve, members):
            low, high = pair["ci95"]
            found.append(
                Finding(
                    f"{pair['group']} does better than {pair['against']} on a task with probability {pair['probability']:.2f}"
                    f" [{low:.2f}, {high:.2f}]."
                )
            )
    return found


def _seen(curve: Mapping[str, Any]) -> str:
    """What a task is learned from."""
    return "rollouts" if curve["metric"] == "return" else "examples"


def _warnings(diagnoses: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    found = []
    for name, diagnosis in diagnoses.items():
        risk = diagnosis["diagnostics"].get("risk", {})
        if risk.get("overfits"):
            text = f"{name} overfits its training tasks: held-out losses are {risk['ratio']:.2f} times theirs."
            found.append(Finding(text, warns=True))
        left_out = diagnosis["diagnostics"].get("left_out", {})
        if left_out.get("overfits"):
            text = (
                f"{name}: trained without one of {len(left_out['tasks'])} tasks, its loss there is {left_out['ratio']:.2f} times"
                " that of the others: it does not carry over to a new task."
            )
            found.append(Finding(text, warns=True))
    return found


def _members(curve: Mapping[str, Any]) -> dict[str, str]:
    """Return the group of each run: as evaluated, or, of an older result, by its name."""
    if "groups" in curve:
        return {name: label for label, group in curve["groups"].items() for name in group["runs"]}
    return groups.by_name(list(curve["runs"]))


def _pictures(sources: Sources, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Picture]:
    found, curve = [], sources.curve
    if curve:
        by = (
            "rollouts"
            if any(len(set(run["updates"])) < len(run["updates"]) for run in curve["runs"].values())
            else "updates"
        )
        reading = (
            "Score on fresh data of held-out tasks before and after each step of adapting; bars are 95 % intervals over tasks."
            " A line that rises (or falls, where lower is better) is adaptation; the level of an oracle is what could be reached."
        )
        found.append(Picture("Adaptation", reading, parts.svg(lambda path: plots.adaptation(curve, path, by))))
        if any(len(run["values"]) > 1 for run in curve["runs"].values()):
            reading = (
                "A point is a task: before adapting across, after it upwards. Points off the diagonal have changed."
            )
            found.append(Picture("Task by task", reading, parts.svg(lambda path: plots.before_and_after(curve, path))))
    found += sections.film(sources.film)
    found += sections.beyond(sources.bands)
    known = {name: own for name, own in rows.items() if own}
    metric = (
        next(key.removeprefix("post_") for own in known.values() for key in own[0] if key.startswith("post_"))
        if known
        else ""
    )
    unit = curve["unit"] if curve else ""
    if known:
        reading = "Training tasks before and after adapting, a running mean of ten iterations. The distance of the two is the gain."
        found.append(Picture("Learning", reading, parts.svg(lambda path: plots.learning(known, metric, unit, path))))
    if sources.references:
        found.append(sections.references(sources.references))
    return found


def _groups(curve: Mapping[str, Any]) -> list[Table]:
    members = _members(curve)
    rows = []
    for label, group in groups.summarise(curve, members).items():
        for point, updates in enumerate(group["updates"]):
            cells = [
                f"{group[s][point]:.4g} [{group[f'{s}_ci95'][point][0]:.4g}, {group[f'{s}_ci95'][point][1]:.4g}]"
                for s in ("iqm", "mean")
            ]
            rows.append([label, str(len(group["runs"])), str(updates), str(group["rollouts"][point]), *cells])
    reading = (
        "Runs that differ in their seeds alone are one group. Intervals are a bootstrap's over seeds and tasks; of one seed they"
        " say nothing of how seeds differ."
    )
    return [
        Table(
            f"{curve['metric']} of groups",
            reading,
            ["group", "seeds", "updates", _seen(curve), "interquartile mean", "mean"],
            rows,
        )
    ]


def _compared(result: Mapping[str, Any] | None) -> list[Finding]:
    if result is not None and shot_references.holds(result):
        return shot_references.findings(result)
    return [] if result is None else [Finding(sentence) for sentence in references.sentences(result)]


def _references(sources: Sources, config: RunConfig) -> list[Table]:
    """Return the scores of references; where there are none, what makes them, if the run can have any."""
    title, result = "References from libraries, in numbers", sources.references
    if result is None:
        command = references.command(next(iter(sources.runs.values())), config, sources.curve)
        return [Table("References", f"Not made yet. This command does it: {command}", [], [])] if command else []
    if shot_references.holds(result):
        return [sections.shots_compared(result)]
    rows = []
    curves = {f"{result['run']} ({result['algorithm']})": result["meta_learner"], **result["references"]}
    for name, curve in curves.items():
        for steps, mean, (low, high) in zip(curve["steps"], curve["mean"], curve["ci95"], strict=True):
            rows.append([name, curve.get("about", ""), f"{steps:,}", f"{mean:.4g} [{low:.4g}, {high:.4g}]"])
    seeds = f"{result['seeds']} seed{'s' if result['seeds'] > 1 else ''}"
    reading = (
        f"Mean and 95 % interval over {len(result['tasks'])} {result['split']} tasks, of references over {seeds}, too. They have"
        " the libraries' default hyper-parameters, which are in references.json; tuned ones could need fewer steps."
    )
    return [Table(title, reading, ["", "what it is", "environment steps on the test task", result["metric"]], rows)]


def _diagnoses(
    diagnoses: Mapping[str, Mapping[str, Any]], texts: Mapping[str, Callable[[Mapping[str, Any]], str]]
) -> list[Table]:
    tables = []
    for name, diagnosis in diagnoses.items():
        rows = []
        for what, found in diagnosis["diagnostics"].items():
            told = found["not_applicable"] if "not_applicable" in found else texts[what](found)
            rows.append([what, told, diagnosis["reading"][what]])
        tables.append(
            Table(
                f"Diagnosis of {name}", "How it adapts, and whether that holds.", ["", "found", "how to read it"], rows
            )
        )
    return tables


def _timing(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Table]:
    known = {name: own for name, own in rows.items() if own}
    if not known:
        return []
    parts = sorted({key for own in known.values() for key in own[-1] if key.startswith("seconds_")})
    table = [
        [name, *(f"{sum(row.get(part, 0.0) for row in own):.1f}" for part in parts)] for name, own in known.items()
    ]
    heads = ["run", *(part.removeprefix("seconds_").replace("_", " ") for part in parts)]
    return [Table("Where the time went", "Seconds of the whole training; physics is a part of sampling.", heads, table)]


def _origin(name: str, session: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{package} {version}" for package, version in session["versions"].items())
    hardware = f"{session['cpu']}, {session['cores']} cores, {session['device']}, {session['threads']} threads"
    return [(f"{name}: commit", session["commit"]), (f"{name}: hardware", hardware), (f"{name}: versions", versions)]


def _rows(path: pathlib.Path) -> list[dict[str, float]]:
    try:
        lines = (path / METRICS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except FileNotFoundError:
        return []
    except (ValueError, OSError) as error:
        raise SettingsError(f"{path / METRICS} cannot be read: {error}") from error


def _sessions(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads((path / PROVENANCE).read_text(encoding="utf-8"))
        return found
    except FileNotFoundError:
        return []
    except (ValueError, OSError) as error:
        raise SettingsError(f"{path / PROVENANCE} cannot be read: {error}") from error
