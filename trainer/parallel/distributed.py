"""A team over torch.distributed (gloo on CPUs, NCCL on GPUs): every process holds the whole model and gradients are
summed after the last row (`ddp`), or `fully_shard` splits weights, gradients and optimizer state (`fsdp`)."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.parallel.team import Anything, Team


@contextmanager
def joined(rank: int, size: int, *, sharded: bool, meeting: Path) -> Iterator[Team]:
    """Join as process `rank` of `size`; all use the same file `meeting`, which must not exist before."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=size)
    yield ProcessTeam(rank, size, sharded)
    dist.destroy_process_group()  # not after an error: it might wait forever for failed processes


@dataclass(frozen=True, slots=True)
class ProcessTeam(Team):
    """One process of torch's default process group."""

    def gather(self, value: Anything) -> list[Anything]:
        """The values of all, by rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def place(self, model: Any) -> Any:
        """Shard the model, adapters included, in place."""
        return shard(model, self.size) if self.sharded else model

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum over processes (`fully_shard` has done so); a parameter that no process used keeps no gradient."""
        if self.sharded:
            return
        listed = list(parameters)
        used = self.gather([parameter.grad is not None for parameter in listed])
        works = []
        for parameter, users in zip(listed, zip(*used, strict=True), strict=True):
            if any(users):
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                works.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in works:
            work.wait()

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather the parts, one tensor after the other; only the leader keeps them, on the CPU."""
        whole: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.leads:
                whole[name] = value.detach().cpu()
        return whole

    def part(self, whole: Tensor, *, like: Tensor) -> Tensor:
        """Every process has the whole tensor, so nothing is sent."""
        if not isinstance(like, DTensor):
            return whole
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def shard(model: nn.Module, size: int) -> nn.Module:
    """Shard the model block by block (`_no_split_modules`), then the rest. The root is resharded after its forward
    pass: torch would go on using it as it was after weights have been loaded or a reference has moved."""
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (size,))
    blocks = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    for module in reversed([module for module in model.modules() if type(module).__name__ in blocks]):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # a sum over processes, not a mean
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sums
    return model
