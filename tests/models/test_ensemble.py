"""Several networks asked as one."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.video import mc3_18

from vidistill.models import OWN, build
from vidistill.models.ensemble import Ensemble


def test_an_ensemble_answers_with_the_mean_probability_and_learns_one_by_one() -> None:
    members = [build("r2plus1d_small", classes=3, frames=4, size=16) for _ in range(3)]
    ensemble, x_BCTHW = Ensemble(members).eval(), torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        each = torch.stack([member(x_BCTHW).softmax(1) for member in members])
        torch.testing.assert_close(ensemble(x_BCTHW).exp(), each.mean(0))
        assert ensemble.embed(x_BCTHW).shape == (2, 3 * 96)
        ensemble.train()
        assert ensemble(x_BCTHW).shape == (6, 3)


def test_networks_of_torchvision_make_an_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OWN, "mc3", lambda classes: mc3_18(num_classes=classes))
    with torch.device("meta"):
        ensemble = Ensemble([build("mc3", classes=3, frames=4, size=16) for _ in range(2)]).eval()
        assert ensemble(torch.empty(2, 3, 4, 16, 16)).shape == (2, 3)
