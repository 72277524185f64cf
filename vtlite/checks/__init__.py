"""Checks of the exercises: `from vtlite import checks as check`, then `check.NAME(what_you_wrote)`
at the end of its cell.

A check runs what it is given on seeded inputs of awkward shapes and compares with the most naive
reference. It prints what it verified, or raises `CheckFailed` with what was expected, what was
found, where they differ first, and the likely mistake.
"""

from vtlite.checks.base import CheckFailed
from vtlite.checks.e2_1_freeze_except import freeze_except
from vtlite.checks.e2_2_cached_features import cached_features
from vtlite.checks.e2_3_layerwise_lrs import layerwise_lrs
from vtlite.checks.e2_4_l2_sp_penalty import l2_sp_penalty
from vtlite.checks.e2_5_lp_ft_lrs import lp_ft_lrs
from vtlite.checks.e2_6_wise_ft import wise_ft
from vtlite.checks.e2_7_count_vit import count_vit
from vtlite.checks.e3_1_class_texts import class_texts
from vtlite.checks.e3_2_similarity_logits import similarity_logits
from vtlite.checks.e3_3_prompted_attention import prompted_attention
from vtlite.checks.e3_4_transport import transport
from vtlite.checks.e3_5_aligned_gradient import aligned_gradient
from vtlite.checks.e3_6_cocoop_logits import cocoop_logits
from vtlite.checks.e3_7_confident_entropy import confident_entropy
from vtlite.checks.e3_8_framed import framed
from vtlite.checks.e3_9_domain_answers import domain_answers
from vtlite.checks.e3_10_base_to_new import base_to_new
from vtlite.checks.e4_1_bottleneck import bottleneck
from vtlite.checks.e4_2_half_block import half_block
from vtlite.checks.e4_3_repadapter_merge import repadapter_merge
from vtlite.checks.e4_4_ladder import ladder
from vtlite.checks.e4_5_st_adapter import st_adapter
from vtlite.checks.e4_6_tip_logits import tip_logits
from vtlite.checks.e4_7_vqt_attention import vqt_attention
from vtlite.checks.e4_8_kept_bytes import kept_bytes
from vtlite.checks.e5_1_bitfit import bitfit
from vtlite.checks.e5_2_lora_forward import lora_forward
from vtlite.checks.e5_3_lora_merge import lora_merge
from vtlite.checks.e5_4_kron_forward import kron_forward
from vtlite.checks.e5_5_count_updates import count_updates
from vtlite.checks.e5_6_ssf_merge import ssf_merge
from vtlite.checks.e5_7_dylora_forward import dylora_forward
from vtlite.checks.e5_8_private_gradient import private_gradient
from vtlite.checks.e6_1_distillation_loss import distillation_loss
from vtlite.checks.e6_2_decoupled_parts import decoupled_parts
from vtlite.checks.e6_3_attention_loss import attention_loss
from vtlite.checks.e6_4_widened import widened
from vtlite.checks.e6_5_identity_layer import identity_layer
from vtlite.checks.e6_6_mixed_node import mixed_node
from vtlite.checks.e6_7_darts_gradient import darts_gradient
from vtlite.checks.e6_8_concrete_sample import concrete_sample
from vtlite.checks.e7_1_lora_linear_backward import lora_linear_backward
from vtlite.checks.e7_2_attention_fake import attention_fake
from vtlite.checks.e7_3_tile_places import tile_places
from vtlite.checks.e7_4_online_attention import online_attention
from vtlite.checks.e7_5_kd_gradient import kd_gradient
from vtlite.checks.e7_6_kron_backward import kron_backward

__all__ = [
    "CheckFailed",
    "aligned_gradient",
    "attention_fake",
    "attention_loss",
    "base_to_new",
    "bitfit",
    "bottleneck",
    "cached_features",
    "class_texts",
    "cocoop_logits",
    "concrete_sample",
    "confident_entropy",
    "count_updates",
    "count_vit",
    "darts_gradient",
    "decoupled_parts",
    "distillation_loss",
    "domain_answers",
    "dylora_forward",
    "framed",
    "freeze_except",
    "half_block",
    "identity_layer",
    "kd_gradient",
    "kept_bytes",
    "kron_backward",
    "kron_forward",
    "l2_sp_penalty",
    "ladder",
    "layerwise_lrs",
    "lora_forward",
    "lora_linear_backward",
    "lora_merge",
    "lp_ft_lrs",
    "mixed_node",
    "online_attention",
    "private_gradient",
    "prompted_attention",
    "repadapter_merge",
    "similarity_logits",
    "ssf_merge",
    "st_adapter",
    "tile_places",
    "tip_logits",
    "transport",
    "vqt_attention",
    "widened",
    "wise_ft",
]
