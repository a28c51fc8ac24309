"""The policy that is served: from a policy folder, an original checkpoint, the Hub, or random weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from p2p.config import PolicyConfig, from_dict, read_yaml
from p2p.model import Policy, load_policy
from p2p.model.inference import for_inference

# The sizes of the released models, for --random-weights without a recipe file: (dim, num_layers).
SIZES = {"150M": (1024, 10), "300M": (1024, 20), "600M": (2048, 9), "1200M": (2048, 22)}
HUB_PREFIX = "hf:"


def choose_device(name: str) -> torch.device:
    """'auto' is the first GPU if there is one, else the CPU.

    Raises:
        ValueError: for a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); write auto, cpu, cuda or cuda:1") from error
    return device


def choose_dtype(name: str) -> torch.dtype | None:
    """The type that `name` says; None for 'auto', which `for_inference` decides."""
    return {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def open_policy(source: str, device: torch.device, dtype: torch.dtype | None) -> Policy:
    """A policy folder, an original `.ckpt` (with its model_config.yaml beside it), or `hf:OWNER/NAME/SIZE`.

    Raises:
        ValueError: when nothing of the kind is there, or its weights do not fit its configuration.
    """
    if source.startswith(HUB_PREFIX):
        return _open_checkpoint(*_download(source.removeprefix(HUB_PREFIX)), device, dtype)
    path = Path(source)
    if path.suffix == ".ckpt":
        return _open_checkpoint(path, None, device, dtype)
    return for_inference(load_policy(path, device=device), dtype)


def _open_checkpoint(path: Path, config: Path | None, device: torch.device, dtype: torch.dtype | None) -> Policy:
    from p2p.model.original import load_checkpoint

    return for_inference(load_checkpoint(path, config).to(device), dtype)


def _download(name: str) -> tuple[Path, Path | None]:
    repository, _, size = name.rpartition("/")
    if repository.count("/") != 1:
        raise ValueError(f"{HUB_PREFIX}{name}: expected hf:OWNER/NAME/SIZE, such as hf:elefantai/open-p2p/150M")
    from p2p.hub import download_model
    from p2p.hub.transfer import Repository

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2p"
    return download_model(Repository(repository, "model", None), size, cache / repository.replace("/", "--"))


def random_policy(recipe: str, seed: int, device: torch.device, dtype: torch.dtype | None) -> Policy:
    """A policy of a recipe's shape with random weights, for measuring and for trying things out.

    Raises:
        ValueError: when `recipe` is neither the path of a recipe or config.yaml nor one of SIZES.
    """
    torch.manual_seed(seed)
    return for_inference(Policy(recipe_config(recipe)).to(device), dtype)


def recipe_config(recipe: str) -> PolicyConfig:
    """The architecture that a recipe file (its `policy` section), a config.yaml, or a name in SIZES stands for."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        content = read_yaml(path)
        section = content.get("policy", content)
        return from_dict(PolicyConfig, section, str(path))
    if recipe not in SIZES:
        raise ValueError(f"recipe {recipe!r}: expected one of {', '.join(SIZES)}, or the path of a .yaml file")
    dim, num_layers = SIZES[recipe]
    return PolicyConfig(dim=dim, num_layers=num_layers)


def cache_mib(policy: Policy) -> float:
    """Memory of one session's keys and values, which is all that a session adds."""
    config = policy.config
    steps = sum(min(history, config.num_timesteps - 1) + 2 for history in config.histories)
    return 2 * steps * (config.tokens_per_timestep - 1) * config.dim * policy.out_token.element_size() / 2**20
