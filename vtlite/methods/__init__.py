"""All methods. The folders are the survey's taxonomy; importing a file here puts its method into `METHODS`."""

from vtlite.methods.adapter.parallel.adaptformer import AdaptFormer
from vtlite.methods.base import METHODS, Method, find_method, make_method, method
from vtlite.methods.finetuning.full import Full
from vtlite.methods.finetuning.gradual_unfreezing import GradualUnfreezing
from vtlite.methods.finetuning.l2_sp import L2SP
from vtlite.methods.finetuning.layerwise_decay import LayerwiseDecay
from vtlite.methods.finetuning.linear import Linear
from vtlite.methods.finetuning.lp_ft import LPFT
from vtlite.methods.finetuning.mlp_head import MLPHead
from vtlite.methods.finetuning.norm_tuning import NormTuning
from vtlite.methods.finetuning.partial import Partial
from vtlite.methods.finetuning.wise_ft import WiSEFT
from vtlite.methods.parameter.bias.bitfit import BitFit
from vtlite.methods.parameter.both.ssf import SSF
from vtlite.methods.parameter.weight.lora import LoRA
from vtlite.methods.prompt.vision.vpt_deep import VPTDeep
from vtlite.methods.remapping.distillation.kd import KD

__all__ = [
    "KD",
    "L2SP",
    "LPFT",
    "METHODS",
    "SSF",
    "AdaptFormer",
    "BitFit",
    "Full",
    "GradualUnfreezing",
    "LayerwiseDecay",
    "Linear",
    "LoRA",
    "MLPHead",
    "Method",
    "NormTuning",
    "Partial",
    "VPTDeep",
    "WiSEFT",
    "find_method",
    "make_method",
    "method",
]
