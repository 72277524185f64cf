"""All methods. The folders are the survey's taxonomy; importing a file here puts its method into `METHODS`."""

from vtlite.methods.adapter.parallel.adaptformer import AdaptFormer
from vtlite.methods.base import METHODS, Method, find_method, make_method, method
from vtlite.methods.finetuning.full import Full
from vtlite.methods.finetuning.linear import Linear
from vtlite.methods.parameter.bias.bitfit import BitFit
from vtlite.methods.parameter.both.ssf import SSF
from vtlite.methods.parameter.weight.lora import LoRA
from vtlite.methods.prompt.vision.vpt_deep import VPTDeep
from vtlite.methods.remapping.distillation.kd import KD

__all__ = [
    "KD",
    "METHODS",
    "SSF",
    "AdaptFormer",
    "BitFit",
    "Full",
    "Linear",
    "LoRA",
    "Method",
    "VPTDeep",
    "find_method",
    "make_method",
    "method",
]
