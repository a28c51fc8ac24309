"""Image tokenizers: frames to image tokens.

`efficientnet_b0` is the first six stages of EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946) with
torchvision's parameter names, so that serving needs no torchvision; `small_cnn` is for small machines;
`vit` cuts the frame into patches.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from p2p.config import PolicyConfig

# expansion, kernel, stride, channels in, channels out, number of blocks
EFFICIENTNET_B0_STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
)
STOCHASTIC_DEPTH_STEP = 0.2 / 16  # the full network has 16 blocks and ends at 0.2


class _DepthwiseOnCPU(torch.autograd.Function):
    """Depthwise convolution in bfloat16 whose gradients are taken in float32.

    The CPU's bfloat16 kernels for these gradients are up to five times slower than the float32 ones
    (`make bench` shows the step with and without).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight.to(x.dtype), None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        # Both at once and from x itself, not from its shape: so the gradient lies in memory as x does. In another
        # layout it slows everything behind it down, the batch norm's backward most of all.
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            gradients[0].float(),
            x.float(),
            weight.float(),
            None,
            [ctx.stride] * 2,
            [ctx.padding] * 2,
            [1, 1],
            False,
            [0, 0],
            len(weight),
            [True, True, False],
        )
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None, None


class DepthwiseConv(nn.Conv2d):
    """One filter per channel."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.dtype == torch.bfloat16 and x.device.type == "cpu":
            y: Tensor = _DepthwiseOnCPU.apply(x, self.weight, self.stride[0], self.padding[0])
            return y
        return super().forward(x)


class ConvNorm(nn.Sequential):
    """Convolution without bias, BatchNorm, and SiLU unless `activate` is false."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True):
        kind = DepthwiseConv if groups > 1 else nn.Conv2d
        conv = kind(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(c_out), *([nn.SiLU()] if activate else []))


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels' means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * gate


class MBConv(nn.Module):
    """Inverted residual block; in training the branch is dropped per frame with `drop_probability`."""

    def __init__(
        self, expansion: int, kernel: int, stride: int, c_in: int, c_out: int, drop_probability: float
    ) -> None:
        super().__init__()
        c_mid = c_in * expansion
        parts: list[nn.Module] = [ConvNorm(c_in, c_mid, 1)] if expansion > 1 else []
        parts.append(ConvNorm(c_mid, c_mid, kernel, stride, groups=c_mid))
        parts.append(SqueezeExcitation(c_mid, max(1, c_in // 4)))
        parts.append(ConvNorm(c_mid, c_out, 1, activate=False))
        self.block = nn.Sequential(*parts)
        self.has_skip = stride == 1 and c_in == c_out
        self.drop_probability = drop_probability

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.block(x)
        if not self.has_skip:
            return branch
        if self.training and self.drop_probability > 0:
            keep = 1.0 - self.drop_probability
            kept = torch.rand((len(x), 1, 1, 1), device=x.device) < keep
            branch = branch * (kept / keep).to(branch.dtype)
        return x + branch


class EfficientNetB0Stages(nn.Sequential):
    """frames float [N, 3, Y, X] -> features [N, 112, Y/16, X/16]."""

    out_channels = 112
    reduction = 16

    def __init__(self) -> None:
        stages: list[nn.Module] = [ConvNorm(3, 32, 3, stride=2)]
        block_index = 0
        for expansion, kernel, stride, c_in, c_out, num_blocks in EFFICIENTNET_B0_STAGES:
            blocks = []
            for i in range(num_blocks):
                first = i == 0
                drop = STOCHASTIC_DEPTH_STEP * block_index
                blocks.append(MBConv(expansion, kernel, stride if first else 1, c_in if first else c_out, c_out, drop))
                block_index += 1
            stages.append(nn.Sequential(*blocks))
        super().__init__(*stages)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class SmallCNN(nn.Sequential):
    """frames float [N, 3, Y, X] -> features [N, 64, Y/48, X/48]: a 3x3 mean, then four convolutions.

    Batch-independent (GroupNorm), so that what one session sees does not depend on the others.
    """

    out_channels = 64
    reduction = 48

    def __init__(self) -> None:
        def layer(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, 3, stride, 1), nn.GroupNorm(4, c_out), nn.SiLU()]

        super().__init__(nn.AvgPool2d(3), *layer(3, 16, 2), *layer(16, 32, 2), *layer(32, 64, 2), *layer(64, 64, 2))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = super().forward(
            x.to(self[1].weight.dtype)
        )  # the means in the weights' type, whatever autocast
        return features


class ConvTokenizer(nn.Module):
    """frames -> encoder -> Linear -> LayerNorm -> [N, num_image_tokens, D]."""

    def __init__(self, encoder: nn.Module, num_features: int, num_tokens: int, dim: int):
        super().__init__()
        self.encoder = encoder
        self.projection = nn.Linear(num_features, dim * num_tokens)
        self.norm = nn.LayerNorm(dim * num_tokens)
        self.num_tokens = num_tokens

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x).flatten(1)
        tokens: Tensor = self.norm(self.projection(features))
        return tokens.unflatten(1, (self.num_tokens, -1))


class PatchTokenizer(nn.Module):
    """frames -> one token per patch, row by row: [N, num_patches, D]."""

    def __init__(self, patch_size: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Linear(3 * patch_size**2, dim)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)
        tokens: Tensor = self.projection(patches)
        return tokens


def build_image_tokenizer(config: PolicyConfig) -> nn.Module:
    if config.image_encoder == "vit":
        return PatchTokenizer(config.vit_patch_size, config.dim)
    encoder = EfficientNetB0Stages() if config.image_encoder == "efficientnet_b0" else SmallCNN()
    height, width = (-(-side // encoder.reduction) for side in (config.frame_height, config.frame_width))
    return ConvTokenizer(encoder, encoder.out_channels * height * width, config.num_image_tokens, config.dim)


def normalise_frames(frames: Tensor) -> Tensor:
    """uint8 -> bfloat16 in [0, 1], divided in bfloat16 as the released weights expect."""
    return frames.to(torch.bfloat16) / 255


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A copy for inference: each BatchNorm that follows a convolution becomes part of its weights."""
    module = copy.deepcopy(module).eval()
    for part in module.modules():
        if isinstance(part, ConvNorm):
            conv, norm = part[0], part[1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                part[0] = fuse_conv_bn_eval(conv, norm)
                part[1] = nn.Identity()
    return module
