"""Exercise 2.7, `count_vit`."""

from __future__ import annotations

import torch

from vtlite.backbones.vit import VisionTransformer
from vtlite.checks.base import expect, passed, plain, same
from vtlite.checks.harness import (
    Answer,
    check,
)


@check
def count_vit(student: Answer) -> None:
    """2.7: `count_vit(image, patch, width, depth, classes)` -> (parameters, floating-point
    operations of one image)."""
    from vtlite.accounting import flops as count_flops

    for image, patch, D, depth, classes in (
        (16, 4, 12, 2, 5),
        (24, 8, 30, 3, 7),
        (35, 7, 9, 5, 11),
    ):
        with torch.random.fork_rng(devices=[]):
            model = VisionTransformer(
                image, patch, 3, classes, embed_dim=D, depth=depth, num_heads=3
            )
        parameters, operations = (
            sum(p.numel() for p in model.parameters()),
            count_flops(model.eval(), torch.zeros(1, 3, image, image)),
        )
        case = f"image {image}, patch {patch}, width {D}, depth {depth}, {classes} classes"
        returned = plain(student(image, patch, D, depth, classes))
        expect(
            isinstance(returned, tuple | list) and len(returned) == 2,
            f"expected two numbers, found {returned!r}",
            "return (parameters, operations)",
        )
        patches = (image // patch) ** 2
        N = patches + 1
        same(
            f"parameters for {case}",
            returned[0],
            parameters,
            {
                "D numbers are missing: the class token, its position, or the bias of the patch embedding": (
                    parameters - D
                ),
                "2 D numbers are missing: the final norm, or the class token with its position": (
                    parameters - 2 * D
                ),
                "the biases of the blocks' linear layers are missing": parameters - depth * 9 * D,
                "all biases of linear layers are missing": parameters - depth * 9 * D - D - classes,
                "the norms of the blocks are missing: two per block, 2 D each": (
                    parameters - depth * 4 * D
                ),
                "the head is missing": parameters - D * classes - classes,
                "the positions are missing": parameters - N * D,
                "the patch embedding sees three channels": parameters - 2 * patch * patch * D,
                "qkv makes three vectors per token": parameters - depth * 2 * D * D,
            },
            tolerance=1e-9,
        )
        attention, linear = depth * 4 * N * N * D, depth * 2 * N * 12 * D * D
        same(
            f"operations for {case}",
            returned[1],
            operations,
            {
                "a multiply-add counts as two operations": operations / 2,
                "attention itself is missing: q k^T and A v have 2 N N D operations each": (
                    operations - attention
                ),
                "attention has two products: q k^T and A v": operations - attention / 2,
                "the class token passes the blocks too: N is the number of patches plus one": (
                    operations - depth * (2 * 12 * D * D + 4 * D * (N * N - patches * patches))
                ),
                "the head is missing": operations - 2 * D * classes,
                "the head reads one token, not all": operations + 2 * D * classes * (N - 1),
                "the patch embedding is missing": operations - 2 * patches * 3 * patch * patch * D,
                "the MLP is missing: 8 D D multiply-adds per token": (
                    operations - depth * 2 * N * 8 * D * D
                ),
                "the linear layers of the blocks are missing": operations - linear,
                "biases and norms are left out of this count": operations + depth * N * 9 * D,
            },
            tolerance=1e-9,
        )
    passed(
        "count_vit",
        "parameters of three networks entry by entry",
        "operations as torch counts them",
    )
