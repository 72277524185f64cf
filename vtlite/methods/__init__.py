"""All methods. The folders are the survey's taxonomy; importing a file here puts its method into
`METHODS`."""

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
from vtlite.methods.parameter.bias.adapterbias import AdapterBias
from vtlite.methods.parameter.bias.bitfit import BitFit
from vtlite.methods.parameter.bias.dp_bitfit import DPBitFit
from vtlite.methods.parameter.bias.side_tuning import SideTuning
from vtlite.methods.parameter.both.gps import GPS
from vtlite.methods.parameter.both.spt import SPT
from vtlite.methods.parameter.both.ssf import SSF
from vtlite.methods.parameter.weight.aurora import Aurora
from vtlite.methods.parameter.weight.compacter import Compacter
from vtlite.methods.parameter.weight.dldr import DLDR
from vtlite.methods.parameter.weight.dora import DoRA
from vtlite.methods.parameter.weight.dylora import DyLoRA
from vtlite.methods.parameter.weight.fact_tk import FacTTK
from vtlite.methods.parameter.weight.fact_tt import FacTTT
from vtlite.methods.parameter.weight.kadaptation import KAdaptation
from vtlite.methods.parameter.weight.krona import KronA
from vtlite.methods.parameter.weight.lora import LoRA
from vtlite.methods.parameter.weight.mosa import MoSA
from vtlite.methods.parameter.weight.phm_adapter import PHMAdapter
from vtlite.methods.parameter.weight.vera import VeRA
from vtlite.methods.prompt.vision.vpt_deep import VPTDeep
from vtlite.methods.remapping.distillation.kd import KD

__all__ = [
    "DLDR",
    "GPS",
    "KD",
    "L2SP",
    "LPFT",
    "METHODS",
    "SPT",
    "SSF",
    "AdaptFormer",
    "AdapterBias",
    "Aurora",
    "BitFit",
    "Compacter",
    "DPBitFit",
    "DoRA",
    "DyLoRA",
    "FacTTK",
    "FacTTT",
    "Full",
    "GradualUnfreezing",
    "KAdaptation",
    "KronA",
    "LayerwiseDecay",
    "Linear",
    "LoRA",
    "MLPHead",
    "Method",
    "MoSA",
    "NormTuning",
    "PHMAdapter",
    "Partial",
    "SideTuning",
    "VPTDeep",
    "VeRA",
    "WiSEFT",
    "find_method",
    "make_method",
    "method",
]
