"""Work on chunks of tasks, in threads on the CPU and one after another on a GPU.

Tasks are independent until their gradients are added, so a meta-batch is cut into chunks whose activations stay in cache
(and whose graphs bound the memory), each chunk runs single-threaded, and the threads never wait for each other inside an
operation. Results are added in the order of the chunks: they do not depend on the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

# About this many samples to a chunk keep an MLP's activations in a core's cache (measured: 1 MB a layer at width 64);
# a GPU wants the whole meta-batch at once and is bounded by its memory alone.
CPU_SAMPLES = 4096
GPU_SAMPLES = 1 << 20


class Workers:
    """A fixed number of threads that map a function over chunks, in order.

    Args:
        threads: threads on the CPU, at least 1.
        device: where the tensors live; anything but the CPU runs chunk after chunk in the calling thread.
    """

    def __init__(self, threads: int = 1, device: torch.device | str = "cpu") -> None:
        self.threads = max(1, threads)
        self.device = torch.device(device)
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return ``[function(item) for item in items]``; the first exception is raised after all have ended."""
        return list(self.each(function, items))

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[R, None, None]:
        """Yield the same one after the other and keep none, for whoever adds them up."""
        if self.device.type != "cpu":
            yield from map(function, items)
            return
        if self._pool is None:
            # torch's own threads would be started from each of ours and fight for the same cores. A single thread goes
            # through the pool too, so that every count of threads computes the same bits.
            self._pool = ThreadPoolExecutor(self.threads, "metarl", initializer=torch.set_num_threads, initargs=(1,))
        futures = deque(self._pool.submit(function, item) for item in items)
        try:
            while futures:
                result = futures[0].result()
                futures.popleft()
                yield result
        finally:  # after an interrupt, too: whoever comes next may use the same simulations
            for future in futures:
                future.cancel()
            wait(futures)


def chunks(num_tasks: int, samples_per_task: int, device: torch.device, chunk_tasks: int | None = None) -> list[slice]:
    """Cut M tasks into chunks of consecutive tasks.

    Args:
        num_tasks: M.
        samples_per_task: N, which decides how many tasks fit a cache or a GPU.
        device: where the work runs.
        chunk_tasks: tasks to a chunk, where it is to be fixed by hand.

    Returns:
        Slices that cover 0..M in order. They depend on these arguments only, never on the number of threads.
    """
    if chunk_tasks is None:
        budget = CPU_SAMPLES if device.type == "cpu" else GPU_SAMPLES
        chunk_tasks = max(1, budget // max(1, samples_per_task))
    return [slice(start, min(start + chunk_tasks, num_tasks)) for start in range(0, num_tasks, chunk_tasks)]
