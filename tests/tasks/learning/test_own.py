"""A user's network answers two clips before it is trained; what it cannot do is one sentence with its line."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vidistill.models import OWN
from vidistill.models.dropout import seed_dropout
from vidistill.storage.errors import RequestError
from vidistill.tasks.learning import training
from vidistill.tasks.learning.own import imported, named

NETS = """
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.classes, self.head, self.calls = classes, nn.Linear(channels, classes), 0

    def forward(self, x_BCTHW):
        self.calls += 1
        return self.head(x_BCTHW.mean((2, 3, 4)) + torch.rand(1))

class More(Base):
    def __init__(self, classes, channels):
        super().__init__(classes + 2, channels)

class Needs(Base):
    def __init__(self, classes, width):
        super().__init__(classes, 3)

class Pair(Base):
    def forward(self, x_BCTHW):
        return super().forward(x_BCTHW), 0

class Names(Base):
    def forward(self, x_BCTHW):
        logits = super().forward(x_BCTHW)
        return logits if self.training else logits.argmax(1)

class Fails(Base):
    def forward(self, x_BCTHW):
        raise KeyError("no weights")

class Grouped(Base):
    def forward(self, x_BCTHW):
        return nn.functional.group_norm(super().forward(x_BCTHW), 2)

class Small(Base):
    def forward(self, x_BCTHW):
        return self.head(x_BCTHW.flatten(1))

class Lazy(Base):
    def __init__(self, classes, channels):
        super().__init__(classes, channels)
        self.head = nn.LazyLinear(classes)

class Frozen(Base):
    def __init__(self, classes, channels):
        super().__init__(classes, channels)
        self.requires_grad_(False)

class Thing:
    def __init__(self, classes):
        pass
"""
SAID = {
    "More": r"two clips give \(2, 5\) in training, not logits \(2, 3\)",
    "Needs": r"TypeError: .*missing 1 required positional argument: 'width'",
    "Pair": "two clips give tuple in training",
    "Names": r"two clips give \(2,\) in evaluation",
    "Fails": r"KeyError: 'no weights' \(nets\.py, line \d+\)",
    "Grouped": r"(RuntimeError|ValueError): .*\(nets\.py, line \d+\)",
    "Small": r"RuntimeError: mat1 and mat2 shapes cannot be multiplied .*\(nets\.py, line \d+\)",
    "Lazy": "its layers are lazy",
    "Frozen": "it has no weights to train",
    "Thing": "AttributeError: 'Thing' object has no attribute",
}


def built(folder: Path, called: str) -> torch.nn.Module:
    (folder / "nets.py").write_text(NETS)
    name, _ = named(f"{folder / 'nets.py'}:{called}")
    return training.build_network(name, 3, (4, 8, 8, 3), seed=0)


@pytest.mark.parametrize("called", SAID)
def test_what_it_cannot_do_is_said_before_it_is_trained(tmp_path: Path, called: str) -> None:
    said = rf"^The network {called.lower()}@\w+ cannot tell 3 classes of clips of 4 frames of 8×8: .*{SAID[called]}"
    with pytest.raises(RequestError, match=said):
        built(tmp_path, called)


def test_a_front_is_tried_too_before_a_network_is_trained_behind_it(tmp_path: Path) -> None:
    (tmp_path / "front.py").write_text("def early(x_BCTHW):\n    return x_BCTHW[:, :, :-1]\n")
    (tmp_path / "wrong.py").write_text("def wrong(x_BCTHW):\n    return x_BCTHW.view(1, 3, 4, 8, 8)\n")
    early, wrong = (named(str(tmp_path / spec))[0] for spec in ("front.py:early", "wrong.py:wrong"))
    assert training.build_network(f"{early}:r2plus1d_small", 3, (8, 32, 32, 3), seed=0)
    with pytest.raises(RequestError, match=rf"^The network {wrong}:minic3d cannot tell .*\(wrong\.py, line 2\)"):
        training.build_network(f"{wrong}:minic3d", 3, (4, 8, 8, 3), seed=0)


def test_a_file_of_postponed_annotations_is_imported_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "modern.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import Literal\n"
        "from pydantic import BaseModel\n\n@dataclass\nclass Kept:\n    place: str\n\n"
        "class Asked(BaseModel):\n    how: Literal['a', 'b'] = 'a'\n"
    )
    assert imported(tmp_path / "modern.py").Asked(how="b").how == "b"


def test_being_tried_leaves_no_trace(tmp_path: Path) -> None:
    network = built(tmp_path, "Base")
    drawn = torch.rand(1)
    assert (network.calls, network.training) == (0, True)
    torch.manual_seed(0)
    OWN[next(name for name in OWN if name.startswith("base@"))](3, 3)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("drawn", ["F.dropout(x, 0.5, self.training)", "self.lstm(x[None])[0][0]", "x + torch.rand(1)"])
def test_what_draws_from_torch_s_own_generator_draws_from_the_seed_and_alone(tmp_path: Path, drawn: str) -> None:
    """Beside it networks are made, whose first weights are drawn from that generator too."""
    (tmp_path / "draws.py").write_text(
        "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\nclass Draws(nn.Module):\n"
        "    def __init__(self, classes):\n        super().__init__()\n        self.seed = 3\n"
        "        self.lstm, self.head = nn.LSTM(3, 3, 2, dropout=0.5), nn.Linear(3, classes)\n\n"
        "    def embed(self, x_BCTHW, scale=1):\n        x = scale * x_BCTHW.mean((2, 3, 4))\n"
        f"        return {drawn}\n\n"
        "    def forward(self, x_BCTHW):\n        return self.head(self.embed(x_BCTHW, scale=2))\n"
    )
    name, _ = named(f"{tmp_path / 'draws.py'}:Draws")
    network, x_BCTHW = training.build_network(name, 3, (4, 8, 8, 3), seed=0), torch.ones(8, 3, 4, 8, 8)

    def answers(network: torch.nn.Module, seed: int) -> torch.Tensor:
        seed_dropout(network, seed)
        return torch.cat([called(x_BCTHW) for _ in range(15) for called in (network, network.embed)]).detach()

    def weights(seed: int) -> torch.Tensor:
        made = training.build_network("minic3d", 3, (4, 8, 8, 3), seed)
        return torch.nn.utils.parameters_to_vector(made.parameters())

    other = training.build_network(name, 3, (4, 8, 8, 3), seed=1)
    other.load_state_dict(network.state_dict())
    assert not torch.equal(other(x_BCTHW), network(x_BCTHW))  # before they are seeded, too
    expected, alone = answers(network, 5), weights(0)
    assert not torch.equal(*expected.chunk(2))  # another draw at each pass
    with ThreadPoolExecutor() as pool:
        made = [pool.submit(weights, 0) for _ in range(20)]
        assert torch.equal(answers(copy.deepcopy(network), 5), expected)
        assert all(torch.equal(each.result(), alone) for each in made)
    assert not torch.equal(answers(network, 6), expected)
