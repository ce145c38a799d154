"""What a network costs: multiplications, memory of a training step, and images per second, measured in turn.

Multiplications and memory are computed without arithmetic, on torch's "meta" device: they are the same on every
machine. Throughput is what this machine does, and differs from run to run.
"""

import time
import weakref

import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from thyroid_lib import network
from thyroid_lib.common.memory import keep_memory
from thyroid_lib.inspection import structure

MIB = 2**20


def table(configs: dict[str, dict], size: int, batch_size: int) -> pd.DataFrame:
    """Parameters, multiplications and memory of several networks; nothing is allocated.

    Args:
        configs: name -> configuration for `network.build`. size: of the image, px a side.
        batch_size: images of the training step whose memory is told.

    Returns:
        Index arm, the name; columns parameters, gmacs (10^9, one image), training_mib (of `training_memory`).
    """
    memory = [training_memory(config, size, batch_size) / MIB for config in configs.values()]
    return structure.costs(configs, size).assign(training_mib=memory).set_index("variant").rename_axis("arm")


def training_memory(config: dict, size: int, batch_size: int) -> int:
    """The most bytes that tensors hold during one training step in float32 with AdamW.

    Weights, their two moments, gradients, and whatever forward and backward pass keep alive at once; work space
    inside an operation is not seen. Counted by following every storage from its birth to its death.

    Args:
        config: for `network.build`. size: of the images, px a side. batch_size: images of the step.
    """
    with torch.device("meta"):
        model = network.build(config).train()
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    moments = 2 * sum(parameter.nbytes for parameter in model.parameters())
    with torch.device("meta"), _Living(model.state_dict().values()) as living:
        images = torch.empty(batch_size, config["in_chans"], size, size)
        labels = torch.zeros(batch_size, dtype=torch.long)
        cross_entropy(model(images), labels).backward()
    return weights + moments + living.most


class _Living(TorchDispatchMode):
    """Follows the bytes of all tensors that come into being within the context: now, and at most so far.

    Args:
        before: tensors that are there already; views of them are no news.
    """

    def __init__(self, before):
        super().__init__()
        self.now, self.most = 0, 0
        self.known = {tensor.untyped_storage()._cdata for tensor in before}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor))
        for storage in (tensor.untyped_storage() for tensor in tensors):
            key = storage._cdata
            if key not in self.known:  # a view has the storage of another
                self.known.add(key)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._died, key, storage.nbytes())
        return made

    def _died(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def throughput(
    configs: dict[str, dict], size: int, *, batch_size: int = 32, precision: str = "32", rounds: int = 3
) -> pd.DataFrame:
    """Images per second in training steps and in classification, the networks taking turns.

    Whatever else the machine does meanwhile disturbs all of them alike; the median of the rounds counts.

    Args:
        configs: name -> configuration for `network.build`. size: of the images, px a side.
        batch_size: images at a time.
        precision: "32" or "bf16". rounds: measurements of each, every one after a pass that does not count.

    Returns:
        Index arm, the name; columns training, classifying (images/s) and, on a GPU, gpu_mib: the most its
        allocator gave out during a training step, weights and moments included.
    """
    keep_memory()
    turns = pd.DataFrame(
        {"arm": name} | _turn(config, size, batch_size, precision)
        for _ in range(rounds)
        for name, config in configs.items()
    ).groupby("arm", sort=False)
    rates = batch_size / turns[["training", "classifying"]].median()
    return rates.assign(gpu_mib=turns["gpu_mib"].max()) if torch.cuda.is_available() else rates


def _turn(config: dict, size: int, batch_size: int, precision: str) -> dict[str, float]:
    """Seconds of one training step and of classifying one batch; MiB of a GPU that the former takes, 0 without one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = network.build(config).to(memory_format=torch.channels_last)
        x = torch.randn(batch_size, config["in_chans"], size, size)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.arange(batch_size, device=device) % config["num_classes"]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    low = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def step() -> None:
        with low:
            loss = cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def classify() -> None:
        with torch.inference_mode(), low:
            model(x).argmax(1)

    def seconds(work) -> float:
        work()  # the first pass chooses kernels and fills the optimizer's state
        wait()
        begin = time.perf_counter()
        work()
        wait()
        return time.perf_counter() - begin

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model.train()
    found = {"training": seconds(step), "gpu_mib": torch.cuda.max_memory_allocated() / MIB}
    model.eval()
    return found | {"classifying": seconds(classify)}
