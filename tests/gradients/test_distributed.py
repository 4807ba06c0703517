"""Two processes, half the batch each, under DistributedDataParallel: one process's gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from deqgen.layers import DEQ
from deqgen_solvers import Tolerance

REPOSITORY = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from tests.gradients.test_distributed import NAMES, make_layer, make_batch

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
mine = slice(rank, None, 2)
found = {}
for name in NAMES:
    layer = DistributedDataParallel(make_layer(name))
    layer(make_batch()[mine]).z.square().mean().backward()
    found[name] = [p.grad for p in layer.parameters()]
torch.save(found, f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""

NAMES = ("implicit", "jfb", "phantom", "unrolled", "reversible", "stochastic-jfb", "shine")


def make_layer(name: str) -> DEQ:
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.mul_(0.5)

    class Cell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.linear(z)) + x

    tol = Tolerance(atol=0.0, rtol=1e-13)
    # Broyden's default memory: SHINE asks for one pair a step.
    return DEQ(Cell(), solver="broyden", gradient=name, tol=tol, max_steps=16).train()


def make_batch() -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    # By the loopback, since a machine's own name need not resolve.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo"}
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, str(rank), str(tmp_path)],
            env=environment,
            cwd=REPOSITORY,
        )
        for rank in range(2)
    ]
    for child in children:
        assert child.wait(timeout=100) == 0
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in NAMES:
        layer = make_layer(name)
        layer(make_batch()).z.square().mean().backward()
        for parameter, first, second in zip(
            layer.parameters(), both[0][name], both[1][name], strict=True
        ):
            assert torch.equal(first, second)
            torch.testing.assert_close(first, parameter.grad, rtol=1e-6, atol=1e-9)
