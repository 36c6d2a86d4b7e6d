"""A small one-stage detector, to be trained from scratch where no detector's weights can be had.

Shapes: B pictures, H height, W width, h = H/4 and w = W/4 cells, P = h·w. `x_BCHW` is RGB in 0…1; boxes are
(x0, y0, x1, y1) in pixels of the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDE, WIDTH = 4, 32


class Detector(nn.Module):
    """At each cell whether an object's middle is there, and how far off its sides are (FCOS, one level, one class).

    0.1 million weights. The dilated layers see 90 pixels around a cell.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_layer(3, WIDTH // 2, stride=2), _layer(WIDTH // 2, WIDTH, stride=2))
        self.body = nn.Sequential(*(_layer(WIDTH, WIDTH, dilation=dilation) for dilation in (1, 2, 4, 8, 1, 2, 4, 1)))
        self.head = nn.Conv2d(WIDTH, 5, 3, padding=1)
        nn.init.constant_(self.head.bias[:1], -4.0)  # type: ignore[index]
        nn.init.constant_(self.head.bias[1:], 1.0)  # type: ignore[index]

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, P) of an object's middle, and its box seen from each cell (B, P, 4)."""
        out_B5hw = self.head(self.body(self.stem(x_BCHW)))
        sides_BP4 = out_B5hw[:, 1:].flatten(2).transpose(1, 2).clamp(max=6).exp() * STRIDE
        centres_P2 = centres(*out_B5hw.shape[2:]).to(x_BCHW.device)
        boxes_BP4 = torch.cat([centres_P2 - sides_BP4[..., :2], centres_P2 + sides_BP4[..., 2:]], dim=-1)
        return out_B5hw[:, 0].flatten(1), boxes_BP4


def _layer(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def centres(rows: int, columns: int) -> Tensor:
    """The middles (P, 2) of the cells, as (x, y) in pixels."""
    y_hw, x_hw = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack([x_hw, y_hw], dim=-1).flatten(0, 1) + 0.5) * STRIDE


def detection_loss(logits_BP: Tensor, boxes_BP4: Tensor, truth_B4: Tensor, columns: int) -> Tensor:
    """Focal loss over all cells and GIoU over those in the middle half of the one true box of each picture."""
    from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

    centres_P2 = centres(logits_BP.shape[1] // columns, columns).to(logits_BP.device)
    middle_B2 = (truth_B4[:, :2] + truth_B4[:, 2:]) / 2
    reach_B2 = ((truth_B4[:, 2:] - truth_B4[:, :2]) / 4).clamp(min=STRIDE)
    inside_BP = ((centres_P2 - middle_B2[:, None]).abs() < reach_B2[:, None]).all(-1)
    focal = sigmoid_focal_loss(logits_BP, inside_BP.float(), reduction="sum")
    truth_BP4 = truth_B4[:, None].expand_as(boxes_BP4)
    giou = generalized_box_iou_loss(boxes_BP4[inside_BP], truth_BP4[inside_BP], reduction="sum")
    loss: Tensor = (focal + giou) / inside_BP.sum().clamp(min=1)
    return loss
