"""R3D-18 (Tran et al. 2018, arXiv 1711.11248): torchvision's `r3d_18`, as a student.

Legend: B clips, C channels, T frames, H height, W width, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models.video import r3d_18

from vidistill.models.minic3d import KERNEL, PADDING, STRIDE, Conv3d, guarded


class R3D18(nn.Module):
    """33.2 M weights and 513·K; its stem takes any number of channels.

    Args:
        classes: K.
        channels: C of what it sees.
    """

    scale_C111: Tensor
    shift_C111: Tensor

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.net = r3d_18(weights=None, num_classes=classes)
        self.net.stem[0] = Conv3d(channels, self.net.stem[0].out_channels, KERNEL, STRIDE, PADDING, bias=False)
        guarded(self.net)
        self.begun = False

    def begin_with(self, weights: Mapping[str, Tensor], scale_C: Tensor, shift_C: Tensor) -> None:
        """Begin with a state dict of torchvision's `r3d_18`, all but the classifier's.

        Args:
            weights: the state dict.
            scale_C: with `shift_C`: x·scale + shift is a clip normalised as those that the weights were trained on.
            shift_C: see `scale_C`.

        Raises:
            RuntimeError: it is another network's.
        """
        fresh = {name: tensor for name, tensor in self.net.state_dict().items() if name.startswith("fc.")}
        self.net.load_state_dict({name: weights[name] for name in weights if name not in fresh} | fresh)
        self.register_buffer("scale_C111", scale_C.view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("shift_C111", shift_C.view(-1, 1, 1, 1), persistent=False)
        self.begun = True

    def embed(self, x_BCTHW: Tensor) -> Tensor:
        """`emb_BD`, D = 512: the last layer's output, averaged over T, H, W."""
        net = self.net
        if self.begun:
            x_BCTHW = x_BCTHW * self.scale_C111 + self.shift_C111
        maps_BCTHW = net.layer4(net.layer3(net.layer2(net.layer1(net.stem(x_BCTHW)))))
        emb_BD: Tensor = net.avgpool(maps_BCTHW).flatten(1)
        return emb_BD

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """`logits_BK` of normalised clips."""
        logits_BK: Tensor = self.net.fc(self.embed(x_BCTHW))
        return logits_BK
