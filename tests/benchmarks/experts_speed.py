"""A training step of several experts: one after the other, and in one pass vectorised over their weights.

    python tests/benchmarks/experts_speed.py                    # five MiniC3D, 16 clips of 8×32² each, one thread
    python tests/benchmarks/experts_speed.py --device cuda --frames 16 --size 112

Both give the same gradients, which is checked; each time is the shortest of the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from vidistill.models import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape_THWC = (options.frames, options.size, options.size, 3)
    networks = []
    for seed in range(options.experts):
        torch.manual_seed(seed)
        network = build("minic3d", classes=options.classes, frames=options.frames, size=options.size).eval()
        networks.append(network.to(options.device, memory_format=torch.channels_last_3d))
    x_EBCTHW = torch.randn(options.experts, options.batch, 3, *shape_THWC[:3], device=options.device)
    labels_EB = torch.randint(options.classes, (options.experts, options.batch), device=options.device)
    stacked, _ = stack_module_state(networks)

    def loss(weights: dict[str, torch.Tensor], x_BCTHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        return cross_entropy(functional_call(networks[0], weights, (x_BCTHW,)), labels_B)

    def apart() -> list[torch.Tensor]:
        found = []
        for network, x_BCTHW, labels_B in zip(networks, x_EBCTHW, labels_EB, strict=True):
            x_BCTHW = x_BCTHW.contiguous(memory_format=torch.channels_last_3d)
            found.append(torch.autograd.grad(cross_entropy(network(x_BCTHW), labels_B), list(network.parameters()))[0])
        return found

    def together() -> list[torch.Tensor]:
        return list(vmap(grad(loss))(stacked, x_EBCTHW, labels_EB)[next(iter(stacked))])

    for one, other in zip(apart(), together(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    seconds = {step.__name__: min(timed(step) for _ in range(options.rounds)) for step in (apart, together)}
    print(f"{options.experts} experts, {options.batch} clips each: apart {seconds['apart']:.3f} s, together "
          f"{seconds['together']:.3f} s ({seconds['apart'] / seconds['together']:.2f}×)")  # fmt: skip


def timed(step: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    first = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - first


if __name__ == "__main__":
    main()
