"""A policy made ready to play: BatchNorm folded, weights in the type that is fastest here."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from p2p.model.image import fold_batch_norm
from p2p.model.policy import Policy
from p2p.model.weights import require_finite


def for_inference(policy: Policy, dtype: torch.dtype | None = None) -> Policy:
    """Prepare a policy in place: fold BatchNorm (in the weights' own type), then cast to `dtype`.

    Without `dtype`: bfloat16 on a GPU, on a CPU whichever of float32 and bfloat16 is faster.

    Raises:
        ValueError: when folding makes numbers that are not finite (a variance below 0).
    """
    device = policy.out_token.device
    encoder = getattr(policy.image_tokenizer, "encoder", None)
    if isinstance(encoder, nn.Module):
        policy.image_tokenizer.encoder = fold_batch_norm(encoder)
        require_finite(policy.image_tokenizer.encoder.state_dict(), "the image encoder, its BatchNorms folded in")
        policy.image_tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else fastest_cpu_dtype(policy.config.dim)
    return policy.to(dtype).requires_grad_(False).eval()


@torch.inference_mode()
def fastest_cpu_dtype(dim: int = 1024, num_tokens: int = 12) -> torch.dtype:
    """float32 or bfloat16: the one whose feed-forward layer of a step is faster, measured in some ms."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        weights = [torch.randn(4 * dim, dim).to(dtype) for _ in range(4)]  # more than the caches hold
        x = torch.randn(num_tokens, dim).to(dtype)
        seconds[dtype] = min(_time_linears(x, weights) for _ in range(4))
    return min(seconds, key=seconds.__getitem__)


def _time_linears(x: Tensor, weights: list[Tensor]) -> float:
    started = time.perf_counter()
    for weight in weights:
        F.linear(x, weight)
    return time.perf_counter() - started
