"""The toy experiment's world, its training step, and the ordering it must reproduce."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

WIDTH = 10


@pytest.fixture(scope="module")
def toy(repository: Path) -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("toy_causality", repository / "examples" / "toy_causality.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def torch_net(nets: Any, net: int, depth: int) -> torch.nn.Sequential:
    """The same MLP in torch, with a copy of the weights of net number `net`."""
    layers: list[torch.nn.Module] = []
    num_in = 5
    for layer in [*range(depth), nets.num_layers - 1]:
        num_out = 1 if layer == nets.num_layers - 1 else WIDTH
        linear = torch.nn.Linear(num_in, num_out, dtype=torch.float64)
        linear.weight.data = torch.from_numpy(nets.weights[layer, net, :num_out, :num_in].copy())
        linear.bias.data = torch.from_numpy(nets.weights[layer, net, :num_out, WIDTH].copy())
        layers += [linear, torch.nn.ReLU()]
        num_in = num_out
    return torch.nn.Sequential(*layers[:-1])


def test_training_equals_torch_sgd_for_every_depth(toy: Any) -> None:
    rng = np.random.default_rng(0)
    nets = toy.Nets((0, 1, 4), seeds=2)
    nets.rates[nets.rates > 0] = 0.1  # large steps, so that a wrong gradient shows
    reference = [torch_net(nets, net, (0, 1, 4)[net // 2]) for net in range(6)]
    observations, brakes = rng.standard_normal((30, 2, 5)), rng.integers(0, 2, (30, 2)).astype(float)
    nets.train(observations, brakes)
    probe = rng.standard_normal((8, 2, 5))
    logits = nets.logits(probe)
    for net, module in enumerate(reference):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for row, brake in zip(observations[:, net % 2], brakes[:, net % 2], strict=True):
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                module(torch.from_numpy(row)), torch.tensor([brake])
            )
            loss.backward()
            optimizer.step()
        expected = module(torch.from_numpy(probe[:, net % 2]))[:, 0].detach().numpy()
        np.testing.assert_allclose(logits[:, net], expected, atol=1e-10)


def test_obstacles_stay_and_go_at_the_stated_rates(toy: Any) -> None:
    seen = toy.obstacles(400_000, np.random.default_rng(3))
    before, after = seen[:-1], seen[1:]
    assert len(seen) == 400_000
    assert abs(after[~before].mean() - 0.1) < 0.005
    assert abs((~after)[before].mean() - 0.025) < 0.002


def test_a_handmade_linear_policy_scores_ten(toy: Any) -> None:
    nets = toy.Nets((0,), seeds=1)
    nets.weights[:] = 0
    nets.weights[0, 0, 0, [0, WIDTH]] = 20.0, -10.0  # brake exactly when the obstacle bit is set
    np.testing.assert_allclose(toy.causal_scores(nets, np.random.default_rng(0)), [[10.0]], atol=1e-3)
    nets.weights[0, 0, 0, [0, 1]] = 0.0, 20.0  # brake exactly when the light is on
    np.testing.assert_allclose(toy.causal_scores(nets, np.random.default_rng(0)), [[-10.0]], atol=1e-3)


def test_a_deep_net_is_causal_long_before_a_linear_one(toy: Any, tmp_path: Path) -> None:
    result = toy.run_toy(40_000, seeds=2, depths=(0, 3), learning_rate=10 * toy.LEARNING_RATE)
    linear, deep = result.scores[-1]
    assert (deep > linear.max() + 0.5).all()
    assert "not reached" in toy.table(result).splitlines()[2]  # the linear row
    toy.plot(result, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
