"""Drawing class ids from logits, repeatably when the uniform numbers are given."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_TEMPERATURE = 1e-8
MAX_UNIFORM = 1.0 - 2.0**-24


def sample_from_logits(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float = 1.0,
    top_p: float | None = None,
    greedy: bool = False,
    num_choices: Tensor | None = None,
) -> Tensor:
    """One class per row by inversion of the cumulative distribution.

    Args:
        logits: [..., V]; classes that do not exist are -inf at the end of the row.
        uniforms: [...] in (0, 1), one number a row.
        temperature: divides the float32 logits.
        top_p: a class goes when the probability of those before it, most probable first, already
            exceeds this; 1 or None keeps all.
        greedy: take the most probable class; `uniforms` is not read.
        num_choices: int64 [...], classes that exist in each row; default V.

    Returns:
        int64 [...]: the first class whose cumulative probability reaches the uniform number.
    """
    if greedy or temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / max(temperature, MIN_TEMPERATURE), dim=-1)
    if top_p is not None and 0 < top_p < 1:
        probabilities = _keep_nucleus(probabilities, top_p)
    cumulative = probabilities.cumsum(-1)
    classes = torch.arange(logits.shape[-1], device=logits.device)
    last = (torch.full_like(uniforms, logits.shape[-1]) if num_choices is None else num_choices) - 1
    cumulative = torch.where(classes >= last[..., None], 1.0, cumulative)
    threshold = uniforms.float().clamp(0.0, MAX_UNIFORM)
    return (cumulative < threshold[..., None]).sum(-1)


def _keep_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before > top_p, 0.0)
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, order, kept)
