"""Opening a policy by what a person names: a folder, an original checkpoint, the Hub, or a recipe's shape."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from p2p.config import PolicyConfig, from_dict, read_yaml
from p2p.manifest import MANIFEST
from p2p.model.policy import Policy
from p2p.model.weights import CONFIG_NAME, WEIGHTS_NAME, read_policy_folder

# The sizes of the released models, for random weights without a recipe file: (dim, num_layers).
SIZES = {"150M": (1024, 10), "300M": (1024, 20), "600M": (2048, 9), "1200M": (2048, 22)}
HUB_PREFIX = "hf:"


def load_policy(source: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Policy:
    """Open a policy, in evaluation mode, its weights as they were trained (see `for_inference`).

    Args:
        source: a policy folder (`p2p export` and `p2p import` write them), an original `.ckpt` (with its
            model_config.yaml beside it), `hf:OWNER/NAME`, a policy that `p2p upload` sent, or `hf:OWNER/NAME/SIZE`, a
            released checkpoint; these are downloaded once, below ~/.cache/p2p.
        device: "cpu", "cuda", "cuda:1"; "auto" is the first GPU if there is one, else the CPU.
        dtype: of the floating-point weights; default float32. On the CPU they stay mapped from the file where types
            agree.

    Raises:
        ValueError: when nothing of the kind is there, it is damaged, its weights do not fit its configuration or are
            not finite, or the device is none of this machine's.
    """
    device, name = choose_device(device), str(source)
    if name.startswith(HUB_PREFIX) and name.count("/") == 1:
        return read_policy_folder(_download_policy(name.removeprefix(HUB_PREFIX)), device, dtype)
    if name.startswith(HUB_PREFIX):
        checkpoint, config = _download(name.removeprefix(HUB_PREFIX))
    elif name.endswith(".ckpt"):
        checkpoint, config = Path(source), None
    else:
        return read_policy_folder(source, device, dtype)
    from p2p.model.original import load_checkpoint

    return load_checkpoint(checkpoint, config, dtype).to(device)


def _download(name: str) -> tuple[Path, Path | None]:
    repository, _, size = name.rpartition("/")
    if repository.count("/") != 1:
        raise ValueError(
            f"{HUB_PREFIX}{name}: expected hf:OWNER/NAME, or hf:OWNER/NAME/SIZE, such as hf:elefantai/open-p2p/150M"
        )
    from p2p.hub.model import download_model
    from p2p.hub.transfer import Repository

    return download_model(Repository(repository, "model", None), size, _cache(repository))


def _download_policy(repository: str) -> Path:
    from p2p.hub.model import download_policy
    from p2p.hub.transfer import Repository

    names = {MANIFEST: False, CONFIG_NAME: True, WEIGHTS_NAME: True}
    return download_policy(Repository(repository, "model", None), names, _cache(repository) / "policy")


def _cache(repository: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "p2p"
    return cache / repository.replace("/", "--")


def choose_device(name: str | torch.device) -> torch.device:
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
        raise ValueError(
            f"device {str(name)!r} cannot be used here ({reason}); write auto, cpu, cuda or cuda:1"
        ) from error
    return device


def choose_dtype(name: str) -> torch.dtype | None:
    """The type that `name` says; None for 'auto', which `for_inference` decides."""
    return {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def random_policy(recipe: str, seed: int = 0, device: str | torch.device = "cpu") -> Policy:
    """A policy of a recipe's shape with random weights, for measuring and for trying things out.

    Raises:
        ValueError: when `recipe` is neither the path of a recipe or config.yaml nor one of SIZES.
    """
    torch.manual_seed(seed)
    return Policy(recipe_config(recipe)).to(device).eval()


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
