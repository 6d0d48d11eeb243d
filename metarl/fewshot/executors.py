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

# Images of 28x28 to a chunk on the CPU. Eight tasks of 10 images, as groups of one convolution, take two thirds of the time that
# they take one by one, because small operations cost as much as large ones; two tasks of 80 hold twice the memory of one.
CPU_IMAGES = 80
# Where tasks share their filters (ANIL), several tasks are one batch, and little is kept: twice as fast at 10 images a task.
CPU_SHARED_IMAGES = 160


def tasks_at_once(net: Net, images: int, device: torch.device, shared: bool = False) -> int | None:
    """Choose an executor, as a number of tasks; None leaves it to the number of samples (:func:`metarl.core.parallel.chunks`).

    A network of vectors takes as many tasks at once as fit a core's cache. On the CPU a convolutional one takes a few small tasks
    as groups, or loops over larger ones; a module of torch's own loops, because ``vmap`` over convolutions takes longer. On a
    GPU many tasks at once save launches.

    Args:
        net: the network.
        images: examples of a task, support and query set together.
        device: where it runs.
        shared: whether tasks share their filters, because the last layer alone adapts.
    """
    if not convolves(net):
        return None
    if device.type != "cpu":
        return max(1, GPU_IMAGES // images)
    if not isinstance(net, Conv4):
        return 1
    _, height, width = net.input_shape
    # pooled, the first block keeps four times as many positions
    each = max(1.0, height * width / 28**2) * (1 if net.downsampling == "stride" else 4)
    return max(1, int((CPU_SHARED_IMAGES if shared else CPU_IMAGES) / (each * images)))


def convolves(net: Net) -> bool:
    """Tell whether a network has convolutions; for others the number of examples of a task does not matter."""
    if isinstance(net, ModuleNet):
        return any(isinstance(module, nn.modules.conv._ConvNd) for module in net.module.modules())
    return isinstance(net, Conv4)
