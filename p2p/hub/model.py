"""A released checkpoint and its configuration from a repository of the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from p2p.hub.transfer import Downloads, Repository

CHECKPOINT_SUFFIX = ".ckpt"
CONFIG_NAME = "model_config.yaml"


def download_policy(repository: Repository, names: Mapping[str, bool], output: Path) -> Path:
    """Bring a policy folder's files from the root of a repository; `names` says of each whether it must be there.

    Raises ValueError when one is missing.
    """
    there = {file.path: file for file in repository.files()}
    missing = [name for name, is_needed in names.items() if is_needed and name not in there]
    if missing:
        raise ValueError(
            f"{repository.repo_id} is no policy: it has no {missing[0]}; "
            "for a released checkpoint write hf:OWNER/NAME/SIZE"
        )
    with Downloads(repository, output) as downloads:
        for name in names:
            if name in there:
                downloads.fetch(there[name])
    return output


def download_model(repository: Repository, size: str, output: Path) -> tuple[Path, Path | None]:
    """Bring the checkpoint and the configuration of one size below `output`; returns their paths.

    None: there is no configuration, and the checkpoint's tensors have to tell the architecture.
    Raises ValueError when the repository has no folder of that size, or not one checkpoint in it.
    """
    files = [file for file in repository.files() if size in PurePosixPath(file.path).parent.parts]
    checkpoints = [file for file in files if file.path.endswith(CHECKPOINT_SUFFIX)]
    configs = [file for file in files if PurePosixPath(file.path).name == CONFIG_NAME]
    if len(checkpoints) != 1 or len(configs) > 1:
        found = ", ".join(file.path for file in files) or "nothing"
        raise ValueError(
            f"{repository.repo_id} should hold one *{CHECKPOINT_SUFFIX} and at most one {CONFIG_NAME} in a folder "
            f"{size!r}; it holds {found}; check --repo and --revision"
        )
    with Downloads(repository, output) as downloads:
        return downloads.fetch(checkpoints[0]), downloads.fetch(configs[0]) if configs else None
