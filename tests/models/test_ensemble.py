"""Several networks asked as one."""

from __future__ import annotations

import torch

from vidistill.models import build
from vidistill.models.ensemble import Ensemble


def test_an_ensemble_answers_with_the_mean_probability_and_learns_one_by_one() -> None:
    members = [build("r2plus1d_small", classes=3, frames=4, size=16) for _ in range(3)]
    ensemble, x_BCTHW = Ensemble(members).eval(), torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        each = torch.stack([member(x_BCTHW).softmax(1) for member in members])
        torch.testing.assert_close(ensemble(x_BCTHW).exp(), each.mean(0))
        assert ensemble.embed(x_BCTHW).shape == (2, ensemble.features)
        ensemble.train()
        assert ensemble(x_BCTHW).shape == (6, 3)
