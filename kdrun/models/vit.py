"""A small vision transformer for 32-pixel images, trained from scratch: width 128, depth 6, patch 4, 4 heads.

timm's VisionTransformer does the work, so tokens, intermediates and heads are read as with any timm model; timm is
imported only here, because its import takes two seconds, which a CNN pair can save.
"""

from __future__ import annotations

from torch import nn

TINY = {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4, "class_token": True}


def vit_cifar_tiny(num_classes: int, image_size: int = 32) -> nn.Module:
    """Build a ViT with a class token (Dosovitskiy et al. 2021) at CIFAR size."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=image_size, num_classes=num_classes, **TINY)


def vit_cifar_tiny_distilled(num_classes: int, image_size: int = 32) -> nn.Module:
    """Build the same with DeiT's distillation token and head (Touvron et al. 2021): inference averages both heads."""
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(img_size=image_size, num_classes=num_classes, **TINY)
