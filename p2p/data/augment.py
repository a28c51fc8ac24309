"""Augmentation of frames in training, on their device: one draw per chunk, applied to all its frames.

What is drawn comes from torch's CPU generator (noise fields from that of the frames' device), so a run that
seeds torch per update repeats them. Letters: T timesteps, Y height, X width; images are float in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ROTATION_DEG = 3.0
MAX_TRANSLATION = 0.03  # of the width
MAX_JITTER = 0.2
ODD_KERNELS = (3, 5, 7)
# Gains of red and blue at 6,000, 9,000, 12,000 and 15,000 K, green as 1: the colour of a black body (locus of
# Kim et al. 2002) in linear sRGB.
PLANCK_GAINS = ((1.111, 0.974), (0.911, 1.351), (0.832, 1.576), (0.791, 1.719))


@dataclass(frozen=True)
class Draw:
    """What happens to one chunk; None: this step does not."""

    rotation_deg: float
    translation: float | None  # to the right, as a share of the width
    jitter: tuple[float, float, float, float] | None  # brightness, contrast, saturation, hue (of a turn)
    planck: int | None  # index into PLANCK_GAINS
    iso: tuple[float, float] | None  # colour shift (of a turn), intensity
    gaussian: tuple[int, float] | None  # kernel size, sigma
    motion: tuple[int, float] | None  # kernel size, angle in degrees
    sharpness: float | None  # 1 leaves the image as it is


def draw(generator: torch.Generator | None = None) -> Draw:
    """Draw one chunk's augmentation."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def chosen(probability: float) -> bool:
        return uniform(0, 1) < probability

    def index(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    blurred, gaussian = chosen(0.2), chosen(0.5)
    kernel = ODD_KERNELS[index(len(ODD_KERNELS))]
    return Draw(
        rotation_deg=uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG),
        translation=uniform(-MAX_TRANSLATION, MAX_TRANSLATION) if chosen(0.25) else None,
        jitter=_four(uniform) if chosen(0.25) else None,
        planck=index(len(PLANCK_GAINS)) if chosen(0.25) else None,
        iso=(uniform(0.01, 0.2), uniform(0.1, 0.6)) if chosen(0.1) else None,
        gaussian=(kernel, uniform(0.1, 2.0)) if blurred and gaussian else None,
        motion=(kernel, uniform(0, 180)) if blurred and not gaussian else None,
        sharpness=uniform(0.5, 1.5) if chosen(0.15) else None,
    )


def _four(uniform: object) -> tuple[float, float, float, float]:
    assert callable(uniform)
    a, b, c, d = (float(uniform(0, MAX_JITTER)) for _ in range(4))
    return a, b, c, d


def augment(frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """uint8 [B, T, 3, Y, X] -> the same, each chunk by a draw of its own."""
    return torch.stack([augment_chunk(chunk, draw(generator)) for chunk in frames])


def augment_chunk(frames: Tensor, drawn: Draw) -> Tensor:
    """uint8 [T, 3, Y, X] -> uint8; every frame gets the same."""
    image = move(frames.float() / 255, drawn.rotation_deg, drawn.translation or 0.0)
    if drawn.jitter is not None:
        image = jitter(image, *drawn.jitter)
    if drawn.planck is not None:
        red, blue = PLANCK_GAINS[drawn.planck]
        image = image * constants(image, red, 1.0, blue)[:, None, None]
    if drawn.iso is not None:
        image = iso_noise(image.clamp(0, 1), *drawn.iso)
    if drawn.gaussian is not None:
        image = convolve(image, gaussian_kernel(*drawn.gaussian, image.device))
    if drawn.motion is not None:
        image = convolve(image, motion_kernel(*drawn.motion, image.device))
    if drawn.sharpness is not None:
        image = sharpen(image, drawn.sharpness)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def constants(image: Tensor, *values: float) -> Tensor:
    """[len(values)], written on the image's device: a copy to a GPU would wait until it has computed all before."""
    return torch.stack([image.new_full((), value) for value in values])


# ------------------------------------------------------------------ geometry


def move(image: Tensor, rotation_deg: float, translation: float) -> Tensor:
    """Rotate the unit square about its centre and shift it to the right; the border is repeated outside."""
    angle = math.radians(rotation_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    theta = constants(image, cos, -sin, -2 * translation, sin, cos, 0.0)
    grid = F.affine_grid(theta.reshape(1, 2, 3), [1, 1, *image.shape[-2:]], align_corners=False)
    return F.grid_sample(
        image.flatten(0, 1)[None], grid, mode="bilinear", padding_mode="border", align_corners=False
    ).reshape(image.shape)


# ------------------------------------------------------------------ colour


def jitter(image: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """Brighter by `brightness`, contrast and saturation raised by their shares, hue turned by a share of a turn."""
    image = (image + brightness).clamp(0, 1)
    mean = luminance(image).mean((-2, -1), keepdim=True)
    image = (mean + (image - mean) * (1 + contrast)).clamp(0, 1)
    grey = luminance(image)
    image = (grey + (image - grey) * (1 + saturation)).clamp(0, 1)
    return turn_hue(image, torch.full((), hue, device=image.device))


def luminance(image: Tensor) -> Tensor:
    """[..., 3, Y, X] -> [..., 1, Y, X] (BT.601)."""
    weights = constants(image, 0.299, 0.587, 0.114)[:, None, None]
    return (image * weights).sum(-3, keepdim=True)


def turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Rotate colours about the grey axis by `turn` (1 is a full turn), a number or [1, Y, X]; clamped."""
    angle = 2 * math.pi * turn
    cos, sin = angle.cos(), angle.sin()
    red, green, blue = image.unbind(-3)
    same = cos + (1 - cos) / 3
    less, more = (1 - cos) / 3 - sin / math.sqrt(3), (1 - cos) / 3 + sin / math.sqrt(3)
    mixed = (
        same * red + less * green + more * blue,
        more * red + same * green + less * blue,
        less * red + more * green + same * blue,
    )
    return torch.stack(mixed, dim=-3).clamp(0, 1)


def iso_noise(image: Tensor, colour_shift: float, intensity: float) -> Tensor:
    """Sensor noise at a high ISO: hue and lightness of each pixel, by one field for all frames."""
    shape, device = image.shape[-2:], image.device
    spread = (luminance(image).std() * intensity / 255).sqrt()
    hue = torch.randn(shape, device=device) * (colour_shift * intensity)
    light = torch.randn(shape, device=device) * spread
    return (turn_hue(image, hue) + light * (1 - luminance(image))).clamp(0, 1)


# ------------------------------------------------------------------ blur


def gaussian_kernel(size: int, sigma: float, device: torch.device | None = None) -> Tensor:
    """float [size, size], sum 1."""
    offsets = torch.arange(size, dtype=torch.float32, device=device) - size // 2
    weights = torch.exp(-offsets.square() / (2 * sigma * sigma))
    weights = weights / weights.sum()
    return weights[:, None] * weights


def motion_kernel(size: int, angle_deg: float, device: torch.device | None = None) -> Tensor:
    """float [size, size], sum 1: a line through the centre."""
    kernel = torch.zeros(size, size, device=device)
    angle, centre = math.radians(angle_deg), size // 2
    for step in range(-centre, centre + 1):
        kernel[round(centre - step * math.sin(angle)), round(centre + step * math.cos(angle))].fill_(1.0)
    return kernel / kernel.sum()


def convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of [T, 3, Y, X] by one kernel; the border is repeated."""
    half = kernel.shape[-1] // 2
    planes = F.pad(image.flatten(0, 1)[:, None], (half, half, half, half), mode="replicate")
    return F.conv2d(planes, kernel[None, None]).reshape(image.shape)


def sharpen(image: Tensor, factor: float) -> Tensor:
    """Away from (factor > 1) or towards (< 1) a smoothed image; 1 leaves it as it is."""
    smooth = torch.ones(3, 3, device=image.device)
    smooth[1, 1].fill_(5.0)
    blurred = convolve(image, smooth / smooth.sum())
    return blurred + (image - blurred) * factor
