"""SimSiam (Chen & He 2021, arXiv 2011.10566): an encoder with a projector, and a predictor for
training.
"""

from __future__ import annotations

from torch import Tensor, nn

from counterfactory.models.classifiers import ConvNet
from counterfactory.models.resnet import ResNet50


class SimSiam(nn.Module):
    """An encoder whose last layer, the attribute `last`, is replaced by the projector, whose output
    is returned.

    inputs: number of inputs of the encoder's last layer; dim: the output's size; hidden: width of
    the predictor's bottleneck, 0 for no predictor. Only training uses the predictor.
    """

    def __init__(
        self, encoder: nn.Module, last: str, *, inputs: int, dim: int, hidden: int
    ) -> None:
        super().__init__()
        setattr(encoder, last, projector(inputs, dim))
        self.encoder = encoder
        self.predictor = nn.Sequential()
        if hidden:
            self.predictor.extend(
                [
                    nn.Linear(dim, hidden, bias=False),
                    nn.BatchNorm1d(hidden),
                    nn.ReLU(),
                    nn.Linear(hidden, dim),
                ]
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return projections z (B,dim) of normalised images (B,3,H,W)."""
        z: Tensor = self.encoder(images)
        return z


def projector(inputs: int, dim: int) -> nn.Sequential:
    """Return three layers with batch norm, the last norm without weights (section 3 of the
    paper).
    """
    return nn.Sequential(
        *(nn.Linear(inputs, inputs, bias=False), nn.BatchNorm1d(inputs), nn.ReLU()),
        *(nn.Linear(inputs, inputs, bias=False), nn.BatchNorm1d(inputs), nn.ReLU()),
        *(nn.Linear(inputs, dim), nn.BatchNorm1d(dim, affine=False)),
    )


def simsiam_resnet50(*, dim: int = 2048, hidden: int = 512) -> SimSiam:
    """Return the paper's network; the authors' checkpoints load into it unchanged."""
    return SimSiam(ResNet50(outputs=1), "fc", inputs=2048, dim=dim, hidden=hidden)


def simsiam_convnet(
    *, width: int = 16, stages: int = 4, dim: int = 128, hidden: int = 32
) -> SimSiam:
    """Return a small network for images of 32 to 128 px."""
    encoder = ConvNet(outputs=1, width=width, stages=stages)
    return SimSiam(encoder, "head", inputs=encoder.head.in_features, dim=dim, hidden=hidden)
