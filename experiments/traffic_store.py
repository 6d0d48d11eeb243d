"""Results that take long, each kept as soon as it is there."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from metarl.settings import SettingsError


class Store:
    """Arrays of numbers by name, such as mean times, in a file that grows by a line for each.

    Args:
        path: of the file; what is in it is known already.
        settings: of the experiment; the results of others are no part of it.
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = path, dict(settings)
        self.times: dict[str, list[Any]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                if number == len(lines) - 1:  # cut off by a kill
                    path.write_text("".join(f"{whole}\n" for whole in lines[:-1]), encoding="utf-8")
                    break
                raise SettingsError(f"{path} line {number + 1} is no result; move the file away") from error
            if record["settings"] == self._settings:
                self.times[record["name"]] = record["times"]

    def __call__(self, name: str, measure: Callable[[], np.ndarray], unit: str = " s") -> None:
        """Measure what is not known yet, write it, and show its mean; a simulation that fails is reported."""
        from metarl.families import EnvFault

        if name in self.times:
            return
        try:
            times = measure().tolist()
        except EnvFault as fault:
            print(f"{name}: {fault.reason}", flush=True)
            return
        self.times[name] = times
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "times": times, "settings": self._settings}) + "\n")
        print(f"{name}: {np.mean(times):.3g}{unit}", flush=True)
