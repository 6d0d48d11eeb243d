"""One page about runs: ``python -m metarl.report runs/a runs/b`` writes a single HTML file that needs no network.

It shows what ``metarl.evaluate``, ``metarl.diagnose`` and ``metarl.references`` have written. ``make=true`` calls the first two
before, and with ``references=TASKS`` the third.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import metarl.run.arguments as arguments
from metarl import diagnose, evaluate, references
from metarl.analysis.methods import METHODS, SHOT_METHODS
from metarl.run.command import guarded, say
from metarl.run.values import write_paths
from metarl.settings import SettingsError, setting

_OF_REFERENCES = ("methods", "seeds", "multiples", "pretrain")
_OF_MAKE = ("tasks", "steps", "best", "retrain", "references", *_OF_REFERENCES)


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """Write one HTML page about runs; the first was evaluated, the others are compared with it."""

    runs: tuple[str, ...] = setting((), "run directories; they may stand alone: python -m metarl.report RUN RUN2")
    to: str = setting("report.html", "the file to write")
    curve: str = setting("", "the evaluation to show; empty takes the first run's evaluation/curve.json")
    make: bool = setting(False, "evaluate the runs and diagnose the first before, with tune=true")
    film: bool = setting(True, "a film strip of the first run, drawn here unless its evaluation has one")
    tasks: int = setting(40, "held-out tasks of make=true", low=2)
    steps: int = setting(3, "inner updates of make=true", low=1)
    best: float | None = setting(None, "a return that none exceeds, for the risk of make=true")
    retrain: int | None = setting(
        None, "leave every task of a finite set out once, too, by trainings of so many meta-updates (make=true)", low=1
    )
    references: int | None = setting(
        None, "make references of the first run on so many of the tasks, too (make=true); null: none", low=1
    )
    methods: tuple[str, ...] = setting((), "which references; empty: all that fit", choices=(*METHODS, *SHOT_METHODS))
    seeds: int | None = setting(None, "trainings of every reference (RL); null takes metarl.references' own", low=1)
    multiples: tuple[int, ...] = setting((), "multiples of steps that references take (RL); empty: likewise", low=2)
    pretrain: int | None = setting(
        None, "environment steps of references on training tasks (RL); null: likewise", low=2
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Check the arguments, read, write; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _main(words))


def _main(argv: list[str]) -> int:
    if arguments.wants_help(argv):
        print(arguments.help_for(ReportSettings, "metarl.report"))
        return 0
    alone = [token for token in argv if "=" not in token]
    words = [references.listed(token) for token in argv if "=" in token]
    given = arguments.parse(words, ReportSettings, paths={"to", "curve"}, path_lists={"runs"})
    settings = ReportSettings(**{**given, "runs": (*alone, *given.get("runs", ()))})
    if not settings.runs:
        raise SettingsError("runs are missing: name run directories, python -m metarl.report runs/NAME")
    from metarl.run.directory import EVALUATION, read_config

    idle = [f"{name}=" for name in _OF_MAKE if name in given and not settings.make]
    idle += [f"{name}=" for name in _OF_REFERENCES if name in given and settings.make and not settings.references]
    if idle:
        needed = "make=true references=TASKS" if settings.make else "make=true"
        raise SettingsError(f"{', '.join(idle)} without {needed} would have no effect; add it, or leave this out")
    paths = [pathlib.Path(path) for path in settings.runs]
    for path in paths:
        read_config(path)
    if settings.make:
        _make(settings, paths)
    from metarl.analysis import published
    from metarl.analysis import references as made
    from metarl.analysis.film import of_run
    from metarl.analysis.page import Sources, render
    from metarl.run.disk import replace_file

    names = dict(zip(evaluate.names(paths), paths, strict=True))
    place = pathlib.Path(settings.curve) if settings.curve else paths[0] / EVALUATION / "curve.json"
    found_curve = _read(place, needed=bool(settings.curve))
    curve = None if found_curve is None else published.beside(found_curve)
    found = {name: _read(path / EVALUATION / "diagnostics.json") for name, path in names.items()}
    diagnoses = {name: diagnosis for name, diagnosis in found.items() if diagnosis is not None}
    trained = _read(paths[0] / EVALUATION / made.RESULT)
    beyond = _read(paths[0] / EVALUATION / "bands.json")
    strip = of_run(paths[0], curve, next(iter(names))) if settings.film else None
    page = render(Sources(names, curve, diagnoses, references=trained, bands=beyond, film=strip), diagnose.TEXTS)
    try:
        replace_file(pathlib.Path(settings.to), page.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise SettingsError(
            f"to={settings.to} cannot be written: {error.strerror or error}; name another place"
        ) from error
    missing = made.command(paths[0], read_config(paths[0]), curve)
    if missing and not trained:
        say(f"no references yet; this command makes them: {missing}")
    say(f"written: {os.fsencode(settings.to).decode('utf-8', 'backslashreplace')}")
    return 0


def _make(settings: ReportSettings, paths: Sequence[pathlib.Path]) -> None:
    """Evaluate all runs, diagnose the first, and make its references; what fails has said why.

    A run that learns by memory has no inner updates, whose number or size could be told, and no diagnosis.
    """
    from metarl.run.directory import read_config

    memory = [evaluate.remembers(read_config(path)) for path in paths]
    updates, own_updates = (
        [] if forgone else [f"steps={settings.steps}", "tune=true"] for forgone in (all(memory), memory[0])
    )
    others = [str(path) for path in paths[1:]]
    words = [
        f"run={paths[0]}",
        *([f"compare={write_paths(others)}"] if others else []),
        f"tasks={settings.tasks}",
        *updates,
    ]
    more = [f"{key}={value}" for key in ("best", "retrain") if (value := getattr(settings, key)) is not None]
    commands = [(evaluate.main, words)]
    if not memory[0]:
        commands.append((diagnose.main, [f"run={paths[0]}", *more, f"tasks={settings.tasks}"]))
    if settings.references:
        asked = [f"run={paths[0]}", f"tasks={settings.references}", *own_updates]
        asked += [f"{key}={value}" for key in ("seeds", "pretrain") if (value := getattr(settings, key)) is not None]
        lists = {key: ",".join(map(str, getattr(settings, key))) for key in ("methods", "multiples")}
        asked += [f"{key}=[{text}]" for key, text in lists.items() if text]
        references.checked(asked)  # before hours of the others
        commands.append((references.main, asked))
    for command, given in commands:
        if command(given):
            raise SettingsError(
                "make=true: the command above failed; call it by itself, and the report without make=true"
            )


def _read(path: pathlib.Path, needed: bool = False) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except FileNotFoundError as error:
        if needed:
            raise SettingsError(f"{path} does not exist; name a curve.json that metarl.evaluate has written") from error
        return None
    except (ValueError, OSError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
