"""A user's own matching method: mean features of the real clips, and of what moves in them."""

import numpy as np
import torch
from pydantic import Field

from vidistill.storage.parameters import Parameters
from vidistill.tasks.match import core, sets
from vidistill.tasks.match.losses import class_means, mean_embedding_distance
from vidistill.tasks.match.real import RealClips
from vidistill.tasks.methods import Material, Method


class MotionParameters(Parameters):
    iterations: int = Field(200, ge=0)
    lr: float = Field(30.0, gt=0, description="Of the pixels, in standard deviations.")
    batch_real: int = Field(16, ge=1, description="Real clips a class and iteration.")
    motion: float = Field(1.0, ge=0, description="Weight of the differences between frames.")


class Motion(Method):
    Parameters = MotionParameters

    def distil(self, material: Material):
        parameters = self.parameters
        start = sets.start_clips(material, "real")
        real = RealClips(material.clips, material.seed, material.device)

        def means(network, x_BCTHW, labels_B):
            slots_B = torch.from_numpy(np.searchsorted(material.labels, labels_B)).to(x_BCTHW.device)
            return class_means(network.embed(x_BCTHW), slots_B, len(material.labels))

        def loss(iteration, learnt):
            network = core.fresh_network(material, "minic3d", iteration)
            real_BCTHW, labels_B = real.batch(iteration, material.labels, parameters.batch_real)
            total = 0
            for weight, view in ((1, lambda x: x), (parameters.motion, lambda x: x - x.roll(1, dims=2))):
                with torch.no_grad():
                    wanted_KD = means(network, view(real_BCTHW), labels_B)
                ours_KD = means(network, view(learnt["clips"]), start.labels_N)
                total = total + weight * mean_embedding_distance(wanted_KD, ours_KD)
            return core.differentiated(total, learnt)

        learnt = {"clips": core.leaf(start.x_NCTHW)}
        sgd = torch.optim.SGD(learnt.values(), lr=parameters.lr, momentum=0.5)
        loop = core.Loop(parameters.iterations, project=sets.keep_in_range(material.clips, material.device))
        curve = core.optimise(learnt, loss, sgd, material, loop)
        return sets.finished(material, start, learnt["clips"], curve)
