"""Chunks and threads, and parameters as a vector space."""

from __future__ import annotations

import threading
import time
import weakref

import pytest
import torch

from metarl.core.parallel import CPU_SAMPLES, Workers, chunks
from metarl.core.params import expand, is_finite, leaf, ravel, rows, stack_rows, unravel

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_tasks", [1, 2, 7, 40])
@pytest.mark.parametrize("chunk", [1, 2, 7, 100, None])
@pytest.mark.parametrize("samples", [1, CPU_SAMPLES // 2, CPU_SAMPLES, 10 * CPU_SAMPLES])
def test_chunks_cover_every_task_once_in_order(num_tasks, chunk, samples):
    """A task that is lost or counted twice at the edge of a chunk biases the meta-gradient."""
    cuts = chunks(num_tasks, samples, CPU, chunk)
    assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(num_tasks))
    assert all(cut.stop - cut.start <= (chunk or max(1, CPU_SAMPLES // samples)) for cut in cuts)


def test_map_keeps_the_order_uses_the_threads_and_raises():
    """Two threads must really run at once (each waits for the other here), or nothing is gained by them."""
    workers = Workers(2)
    assert workers.map(lambda x: x * x, range(20)) == [x * x for x in range(20)]
    barrier = threading.Barrier(2, timeout=20)
    assert len(set(workers.map(lambda _: (barrier.wait(), threading.get_ident())[1], range(2)))) == 2
    for w in (workers, Workers(1)):
        with pytest.raises(ZeroDivisionError):
            w.map(lambda x: 1 // x, [1, 0, 2])


def test_torch_in_a_worker_is_single_threaded():
    """Threads that each start a team of their own fight for the cores."""
    assert Workers(2).map(lambda _: torch.get_num_threads(), range(4)) == [1, 1, 1, 1]


def test_ravel_and_unravel_are_inverse_and_keep_names_in_order():
    params = {"b": torch.arange(3.0), "a": torch.arange(6.0).view(2, 3) + 10, "s": torch.tensor(5.0)}
    assert ravel(params).tolist() == [0, 1, 2, 10, 11, 12, 13, 14, 15, 5]
    back = unravel(ravel(params), params)
    assert list(back) == list(params)
    assert all(torch.equal(back[n], params[n]) for n in params)


def test_expand_gives_every_task_its_own_copy_and_sums_their_gradients():
    theta = leaf({"w": torch.ones(2)})
    expanded = expand(theta, 3)
    (expanded["w"] * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    assert theta["w"].grad.tolist() == [111.0, 111.0]
    parts = [rows(expanded, slice(0, 2)), rows(expanded, slice(2, 3))]
    assert torch.equal(stack_rows(parts)["w"], expanded["w"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_is_finite_looks_at_every_number(bad):
    good = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
    assert is_finite(good)
    assert not is_finite({**good, "b": torch.tensor([[0.0, bad], [0.0, 0.0]])})


def test_an_error_waits_for_the_other_chunks():
    """A failed rollout is tried again in the same simulations: none of its threads may still step them."""
    begun, ended = threading.Event(), []

    def work(item):
        if item == 0:
            begun.wait(20)
            raise ValueError("first")
        begun.set()
        time.sleep(0.2)
        ended.append(item)

    with pytest.raises(ValueError, match="first"):
        Workers(2).map(work, [0, 1])
    assert ended == [1]


def test_what_waits_for_a_thread_is_not_begun_after_an_error_or_when_nobody_wants_more():
    """A meta-gradient that failed, or whose caller has gone, would go on for the rest of the tasks."""
    workers, begun = Workers(1), []

    def work(item):
        begun.append(item)
        time.sleep(0.05)
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        workers.map(work, [1, 0, *range(2, 40)])
    assert len(begun) < 10
    begun.clear()
    results = workers.each(work, range(1, 40))
    assert next(results) == 1
    results.close()
    assert len(begun) < 10


def test_each_keeps_no_result():
    """The gradients of all tasks at once would take more memory than the graph of one."""

    class Result:
        pass

    alive = weakref.WeakSet()

    def work(item):
        del item
        time.sleep(0.01)
        result = Result()
        alive.add(result)
        return result

    assert max(len(alive) for _ in Workers(2).each(work, range(20))) <= 6
