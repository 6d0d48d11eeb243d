"""How many tasks are evaluated at once: a loop over tasks (1), chunks of some, or the whole meta-batch as one batch.

There is one functional core, batched over M tasks; an executor is the number of tasks that it is given at once
(``chunk_tasks``). All give the same result but for rounding. Chunks run on as many threads as there are, and bound the memory:
what is kept for the meta-gradient is that of one chunk a thread.
"""

from __future__ import annotations

import torch
from torch import nn

from metarl.nets import Conv4, Net
from metarl.nets.module import ModuleNet

# Images to a chunk on a GPU; at 28x28 and 64 filters each is some 0.15 MB of feature maps in every pass that is kept.
GPU_IMAGES = 16384

# Images to a chunk on the CPU where tasks share their filters (ANIL), so that several tasks are one batch: twice as fast as one
# by one at 10 images a task, some 10 % at 80 (measured).
CPU_SHARED_IMAGES = 160


def tasks_at_once(net: Net, images: int, device: torch.device, shared: bool = False) -> int | None:
    """Choose an executor, as a number of tasks; None leaves it to the number of samples (:func:`metarl.core.parallel.chunks`).

    A network of vectors takes as many tasks at once as fit a core's cache. A convolution fills it by a single task, and
    grouped convolutions of several only leave it: on the CPU such a network loops over tasks. On a GPU it saves launches.

    Args:
        net: the network.
        images: examples of a task, support and query set together.
        device: where it runs.
        shared: whether tasks share their filters, because the last layer alone adapts.
    """
    if not _convolutional(net):
        return None
    if device.type != "cpu":
        return max(1, GPU_IMAGES // images)
    return max(1, CPU_SHARED_IMAGES // images) if shared else 1


def _convolutional(net: Net) -> bool:
    if isinstance(net, ModuleNet):
        return any(isinstance(module, nn.modules.conv._ConvNd) for module in net.module.modules())
    return isinstance(net, Conv4)
