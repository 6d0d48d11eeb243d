"""Meta-train: ``python -m metarl.train env=halfcheetah-vel seed=1 env.horizon=100 algo.max_kl=0.02``.

Start reading here: train -> :mod:`metarl.run.trainer` -> :mod:`metarl.learner` -> :mod:`metarl.core.adapt`.
``--help`` lists every setting. A misspelt name or value ends with exit code 2 before torch is imported.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Sequence

from metarl.run import arguments
from metarl.run.command import guarded, say


def main(argv: Sequence[str] | None = None) -> int:
    """Check the arguments, compose the configuration, train; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _main(words))


def _main(argv: list[str]) -> int:
    if arguments.wants_help(argv):
        print(arguments.help_text(argv))
        return 0
    arguments.check(argv)

    from metarl.run.compose import compose, expand
    from metarl.run.directory import check

    configs = [compose(job) for job in expand(argv)]
    for config in configs:
        check(config)
    # a GPU's matrix library repeats its bits only with a workspace of fixed size, set before it starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    import torch

    from metarl.run.build import cores
    from metarl.run.memory import keep_freed_memory
    from metarl.run.trainer import train

    # the learner brings its own threads; torch's would wait for the physics' and the physics' for them
    torch.set_num_threads(1)
    keep_freed_memory(max(config.run.threads or cores() for config in configs))
    command = shlex.join(["python", "-m", "metarl.train", *argv])
    if len(configs) == 1:
        return train(configs[0], command)
    codes = []
    for number, (job, config) in enumerate(zip(expand(argv), configs, strict=True)):
        say(f"job {number}: {shlex.join(job)}")
        # a job that fails says so, and the next ones run all the same
        codes.append(guarded(functools.partial(train, config, command)))
        if codes[-1] > 128:
            break
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
