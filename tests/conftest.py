"""What all tests share."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, for which threads of torch's would fight
    os.environ.setdefault("OMP_NUM_THREADS", "1")
