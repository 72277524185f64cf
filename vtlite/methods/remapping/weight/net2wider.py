"""Net2Wider: more units inside every block, and the same function."""

from __future__ import annotations

from dataclasses import dataclass

from vtlite.method import LOW_LRS, Backbone, Method
from vtlite.methods.remapping.weight.growing import copies, inner_widths, widen


@dataclass
class Net2Wider(Method):
    """Copy units inside every block, divide what reads them between the copies, and train the wider
    network on.

        W1'[j] = W1[g(j)],   W2'[:, j] = s_j W2[:, g(j)],   g(j) = j for the old units, else drawn;   the s of all copies of a unit sum to 1

    Exact for whatever lies between and treats each unit alone: ReLU, GELU, a batch norm, which is
    copied too. Widened are the MLPs of Transformers and the inside of residual blocks; the width
    between blocks stays, so the head does. Chen, Goodfellow, Shlens, "Net2Net: Accelerating
    Learning via Knowledge Transfer", ICLR 2016, arXiv 1511.05641. On ViT-B/16 with factor 2:
    142,458,624 parameters, all trained. The paper's s is one over the number of copies, and noise
    on the weights lets the copies part, which changes the function a little; here uneven shares
    let them part, and change nothing (`spread` 0 is the paper's, without noise).
    """

    lr = 6e-4
    lrs = LOW_LRS

    factor: float = 2.0  # how many times more units
    spread: float = 0.5  # how far a copy's share may lie from an even one

    def __post_init__(self) -> None:
        self.expect(self.factor >= 1, "factor", "of at least 1")
        self.expect(0 <= self.spread < 1, "spread", "in [0, 1)")

    def attach(self, backbone: Backbone) -> None:
        for inner in inner_widths(backbone, "net2wider"):
            wanted = round(self.factor * inner.width)
            widen(inner, *copies(inner.width, wanted, self.spread))
        backbone.requires_grad_(True)
