"""VFPT: VPT-deep, some of whose prompts are Fourier transforms of what is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtlite.methods.prompt.vision.vpt_deep import PromptedBlock, VPTDeep


class FourierBlock(PromptedBlock):
    """A frozen block whose first `waves` prompts are the real part of their transform over tokens
    and channels."""

    def __init__(self, *parts: Any, waves: int) -> None:
        super().__init__(*parts)
        self.waves = waves

    def seen(self) -> Tensor:
        prompts = super().seen()
        first = prompts[: self.waves]
        wide = first.to(torch.promote_types(first.dtype, torch.float32))  # no transform of bf16
        waves = torch.fft.fft2(wide).real.to(prompts.dtype) if self.waves else first
        return torch.cat([waves, prompts[self.waves :]])


@dataclass
class VFPT(VPTDeep):
    """Learn the prompts of each block partly in the frequency domain: the block sees the transform
    of the first ones, and the others as they are.

        prompts_i = [Re F(P_i[:m]); P_i[m:]],   F(P)[u, v] = sum_(n, d) P[n, d] exp(-2 pi i (u n / m + v d / D)),   m = floor(fourier * num_prompts)

    Each seen number depends on all learned ones, so that a step moves all prompts of a block
    together. Zeng, Han, Wang, Wu, Geng, Huang, Wu, Liu, "Visual Fourier Prompt Tuning", NeurIPS
    2024, arXiv 2411.01327; github.com/runtsang/VFPT. On ViT-B/16, as VPT-deep: 460,800 parameters
    with 50 prompts; the transform has none and is not scaled, as published, so that its result is
    sqrt(m D / 2) times as large as P, which the block's norm takes back. The share is searched per
    task there, from 0 to 1.
    """

    fourier: float = 0.5  # the share of prompts that are transformed; 0: VPT-deep

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect(0 <= self.fourier <= 1, "fourier", "in [0, 1]")

    def prompted(self, *parts: Any) -> PromptedBlock:
        return FourierBlock(*parts, waves=int(self.fourier * self.num_prompts))
