"""The network's own rules: what it must not see, refuse, or compute twice."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from p2p.config import PolicyConfig
from p2p.model import Policy
from p2p.model import attention as attention_module
from p2p.model.attention import AttentionPattern, attention_for
from p2p.model.image import DepthwiseConv, EfficientNetB0Stages, fold_batch_norm
from p2p.model.mask import TokenLayout
from tests.masks import count_pairs, dense_mask

TINY = PolicyConfig(
    dim=32, num_layers=2, num_heads=4, num_timesteps=4, attention_history=4, image_encoder="small_cnn",
    decoder_num_heads=4, decoder_num_layers=1, text_dim=16,
)  # fmt: skip


@pytest.mark.parametrize("num_sinks", [0, 2])
@pytest.mark.parametrize("history", [0, 3, 40])
@pytest.mark.parametrize("only_out", [False, True])
def test_grouped_attention_equals_the_dense_mask(num_sinks: int, history: int, only_out: bool) -> None:
    torch.manual_seed(0)
    layout, num_timesteps = TokenLayout(1, 1, 2, 8), 40
    mask = dense_mask(layout, num_timesteps, history, num_sinks)
    s = layout.tokens_per_timestep
    q = torch.randn(2, 3, num_timesteps * s, 8)
    k, v = (torch.randn(2, 3, num_sinks + num_timesteps * s, 8) for _ in range(2))
    rows = slice(layout.out if only_out else None, None, s if only_out else None)
    expected = nn.functional.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=mask[rows])
    pattern = AttentionPattern(layout, num_timesteps, history, num_sinks, only_out)
    torch.testing.assert_close(attention_for(pattern, q.device)(q[:, :, rows], k, v), expected)

    weights = torch.randn_like(expected)
    gradients = []
    dense = partial(nn.functional.scaled_dot_product_attention, attn_mask=mask[rows])
    for attend in (attention_for(pattern, q.device), dense):
        inputs = tuple(x.clone().requires_grad_() for x in (q, k, v))
        attended = attend(inputs[0][:, :, rows], *inputs[1:])
        gradients.append(torch.autograd.grad((weights * attended).sum(), inputs))
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got, wanted)


def test_counts_say_what_is_skipped() -> None:
    pattern = AttentionPattern(TokenLayout(1, 1, 1, 8), 200, 200, 0)
    for device in ("cpu", "cuda"):
        count = count_pairs(pattern, device)
        assert count.total == 2400**2
        assert count.visible == int(dense_mask(pattern.layout, 200, 200).sum())
        assert count.visible < count.computed < 0.6 * count.total


def test_the_masks_that_are_kept_serve_training_too() -> None:
    attention_module.query_groups.cache_clear()
    policy = Policy(TINY)
    frames = torch.zeros(1, 4, 3, 192, 192, dtype=torch.uint8)
    arguments = (frames, torch.zeros(1, 4, 8, dtype=torch.int64), torch.zeros(1, 4, 1, 16))
    with torch.inference_mode():
        policy(*arguments)
    policy(*arguments).keys.sum().backward()
    assert policy.out_token.grad is not None


def test_actions_reach_later_timesteps_only() -> None:
    policy = Policy(TINY).eval()
    frames, text = torch.zeros(1, 4, 3, 192, 192, dtype=torch.uint8), torch.zeros(1, 4, 1, 16)
    actions = torch.zeros(1, 4, 8, dtype=torch.int64)
    changed = actions.clone()
    changed[0, 1] = 1
    with torch.no_grad():
        before, after = policy.transform(frames, actions, text), policy.transform(frames, changed, text)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2:], after[:, 2:], atol=1e-6)


def test_decoding_chosen_timesteps_gives_their_rows() -> None:
    policy = Policy(TINY).eval()
    frames = torch.randint(256, (2, 4, 3, 192, 192), dtype=torch.uint8)
    actions, text = torch.randint(4, (2, 4, 8)), torch.randn(2, 4, 1, 16)
    chosen = torch.tensor([[True, False, True, True], [False, False, True, False]])
    with torch.no_grad():
        full = policy(frames, actions, text)
        some = policy(frames, actions, text, decode=chosen.flatten().nonzero()[:, 0])
    for whole, rows in zip(full, some, strict=True):
        torch.testing.assert_close(rows, whole[chosen], atol=1e-6, rtol=1e-5)


def test_history_actions_replace_the_past_but_not_the_teacher() -> None:
    policy = Policy(TINY).eval()
    frames, text = torch.zeros(1, 4, 3, 192, 192, dtype=torch.uint8), torch.zeros(1, 4, 1, 16)
    actions, other = torch.zeros(1, 4, 8, dtype=torch.int64), torch.ones(1, 4, 8, dtype=torch.int64)
    with torch.no_grad():
        got = policy(frames, actions, text, history_actions=other)
        expected = policy.heads(
            policy.decoder(policy.transform(frames, other, text)[0], policy.action_embedding(actions[0]))
        )
    torch.testing.assert_close(got.keys[0], expected.keys)


@pytest.mark.parametrize("argument", ["frames", "actions", "text"])
def test_wrong_shapes_are_named(argument: str) -> None:
    shapes = {"frames": (1, 4, 3, 192, 192), "actions": (1, 4, 8), "text": (1, 4, 1, 16)}
    shapes[argument] = (*shapes[argument][:-1], 7)
    with pytest.raises(ValueError, match=f"{argument} has shape .*expects"):
        Policy(TINY)(*(torch.zeros(shape, dtype=torch.int64) for shape in shapes.values()))


@pytest.mark.pinned
def test_the_image_stages_equal_torchvision() -> None:
    from torchvision.models import efficientnet_b0

    torch.manual_seed(0)
    theirs = efficientnet_b0(weights=None).features[:6].eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    ours = EfficientNetB0Stages().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 192, 192)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)
        folded = fold_batch_norm(ours)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        assert any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())  # ours is left alone
        torch.testing.assert_close(folded(x), theirs(x), atol=1e-4, rtol=1e-3)


def test_stochastic_depth_drops_whole_frames_at_its_rate() -> None:
    probabilities = [block.drop_probability for block in EfficientNetB0Stages().modules() if hasattr(block, "has_skip")]
    assert probabilities == pytest.approx([0.0125 * k for k in range(11)])
    torch.manual_seed(0)
    block = next(b for b in EfficientNetB0Stages().modules() if getattr(b, "has_skip", False))
    block.drop_probability = 0.5
    x = torch.randn(400, block.block[0][0].in_channels, 4, 4)
    dropped = (block.train()(x) == x).flatten(1).all(1).float().mean()
    assert 0.4 < dropped < 0.6


def test_vit_makes_one_token_per_patch_row_by_row() -> None:
    config = dataclasses.replace(
        TINY, image_encoder="vit", frame_height=32, frame_width=48, num_image_tokens=6, vit_patch_size=16
    )
    policy = Policy(config).eval()
    frames = torch.zeros(1, 3, 32, 48, dtype=torch.uint8)
    frames[:, :, :16, 16:32] = 255  # the second patch of the first row
    tokens = policy.observation_tokens(frames, torch.zeros(1, 1, 16)) - policy.observation_tokens(
        frames * 0, torch.zeros(1, 1, 16)
    )
    assert [bool(t.abs().sum() > 1e-3) for t in tokens[0, 1:7]] == [False, True, False, False, False, False]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_gradients_on_the_cpu_are_those_of_the_library(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    ours = DepthwiseConv(8, 8, kernel, stride, padding=kernel // 2, groups=8, bias=False).train()
    theirs = nn.Conv2d(8, 8, kernel, stride, padding=kernel // 2, groups=8, bias=False)
    theirs.load_state_dict(ours.state_dict())
    gradients = []
    for conv, dtype in ((ours, torch.bfloat16), (theirs, torch.float32)):
        x = torch.linspace(-1, 1, 2 * 8 * 12 * 12).reshape(2, 8, 12, 12).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        handed_on: list[torch.Tensor] = []
        x.register_hook(handed_on.append)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = conv(x)
        y.float().square().sum().backward()
        gradients.append((y.detach().float(), x.grad.float(), conv.weight.grad))
        in_place = handed_on[0].is_contiguous(memory_format=torch.channels_last)
        assert in_place or conv is theirs, "the gradient lies in memory as x does, or what follows is slow"
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=0.03, atol=0.03 * float(expected.abs().max()))
