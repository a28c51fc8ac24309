"""`p2p upload`: a policy folder, or shards, to the Hub, with a card that says what it is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p import gate
from p2p.console import say
from p2p.hub.cards import dataset_card, policy_card
from p2p.hub.publish import LocalFile, publish

if TYPE_CHECKING:
    from p2p.format import RecordingEntry

CARD = "README.md"
_MAX_CARD_BYTES = 1 << 20
_MAX_STATS_BYTES = 256 << 20
_SCORES = ("play.json", "evaluation/report.json")  # beside a policy, as p2p demo leaves them
INDEX = "index.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `p2p upload`."""
    parser.add_argument("folder", type=Path, metavar="POLICY|SHARDS", help="a policy folder, or OUT of a conversion")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the repository; made where there is none")
    parser.add_argument("--dataset", action="store_true", help="the folder holds shards")
    parser.add_argument("--private", action="store_true", help="where the repository is made: for you alone")
    parser.add_argument("--card", type=Path, metavar="FILE", help="your own README.md (default: one is written)")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="of the training (default: recipe.yaml of the run)")
    parser.add_argument(
        "--scores",
        type=Path,
        action="append",
        metavar="FILE",
        help="of p2p play --json, or a report.json of p2p evaluate; again for more (default: those beside the policy)",
    )


def run(args: argparse.Namespace) -> int:
    """Upload, and say what came of it."""
    if args.dataset:
        files = list(shard_files(args.folder))
        card = _shards_card(args.folder, args.repo)
    else:
        files, card = policy_files(args.folder, args.repo, args.recipe, args.scores)
    content = card.encode() if args.card is None else gate.read_regular(args.card, _MAX_CARD_BYTES)
    files.append(LocalFile(CARD, content, is_last=True))
    num_new, address = publish(args.repo, "dataset" if args.dataset else "model", files, args.private)
    say(f"{address}: {num_new} of {len(files)} files are new, the others were there")
    return 0


# ------------------------------------------------------------------ a policy


def policy_files(
    folder: Path, repo: str, recipe: Path | None = None, scores: list[Path] | None = None
) -> tuple[list[LocalFile], str]:
    """The files of a policy folder, and its card. The policy is loaded first: what does not load is not published.

    Raises:
        ValueError: when it is no policy folder, is damaged, or its scores are.
    """
    from dataclasses import asdict

    from p2p.manifest import MANIFEST, describe
    from p2p.model.weights import CONFIG_NAME, WEIGHTS_NAME, read_policy_folder

    policy = read_policy_folder(folder)
    names = [CONFIG_NAME, WEIGHTS_NAME, *([MANIFEST] if (folder / MANIFEST).is_file() else [])]
    run_folder = folder.resolve().parent
    if recipe is None and (run_folder / "recipe.yaml").is_file():
        recipe = run_folder / "recipe.yaml"
    if scores is None:
        scores = [run_folder / name for name in _SCORES if (run_folder / name).is_file()]
    digests = {name: describe(folder / name).sha256 for name in names}
    num_parameters = sum(each.numel() for each in policy.parameters())
    card = policy_card(repo, asdict(policy.config), num_parameters, digests, recipe, scores)
    return [LocalFile(name, folder / name, is_last=name == MANIFEST) for name in names], card


# ------------------------------------------------------------------ shards


def shard_files(root: Path) -> Iterator[LocalFile]:
    """The shards of all streams below a folder, each compared with its index; the indexes are last.

    What else lies there (reports, rejected recordings, which name places of this machine) is not published.

    Raises:
        ValueError: when there is no stream, or a shard is missing or damaged.
    """
    from p2p.format import content_damage

    for stream, entries, _ in _streams(root):
        prefix = "" if stream == "." else f"{stream}/"
        for entry in entries:
            stored = entry["zip_data"] or entry["raw_data"]
            path = root / stream / gate.plain_name(stored["basename"], f"{root / stream}: a shard")
            damage = content_damage(memoryview(gate.read_regular(path, stored["bytes"])), stored)
            if damage:
                raise ValueError(f"{path}: {damage}; p2p-convert verify {root} looks at all of it")
            yield LocalFile(f"{prefix}{path.name}", path)
        yield LocalFile(f"{prefix}{INDEX}", root / stream / INDEX, is_last=True)


def _streams(root: Path) -> Iterator[tuple[str, Sequence[dict[str, Any]], Sequence[RecordingEntry]]]:
    """(path below root, shard entries, recordings) of each stream."""
    from p2p.format import MAX_INDEX_BYTES, decode_index

    found = sorted(
        path for path in root.rglob(INDEX) if not any(p.startswith(".") for p in path.relative_to(root).parts)
    )
    if not found:
        raise ValueError(f"{root}: no {INDEX} below it; expected the OUT of a p2p-convert that has ended")
    for path in found:
        stream = path.parent.relative_to(root).as_posix()
        if stream != ".":
            gate.plain_path(stream, f"{root}: a stream")
        yield stream, *decode_index(gate.read_regular(path, MAX_INDEX_BYTES), str(path))


def _shards_card(root: Path, repo: str) -> str:
    from p2p.actions import FRAME_RATE_HZ

    streams: dict[str, dict[str, tuple[int, int]]] = {}
    for stream, _, recordings in _streams(root):
        games = streams.setdefault("" if stream == "." else stream, {})
        for recording in recordings:
            before = games.get(recording.game, (0, 0))
            games[recording.game] = (before[0] + 1, before[1] + recording.num_frames)
    return dataset_card(repo, streams, FRAME_RATE_HZ, _counts(root / "stats.json"))


def _counts(path: Path) -> Mapping[str, int]:
    if not path.is_file():
        return {}
    where = f"{path}: counts"
    content = gate.mapping(gate.parse_json(gate.read_regular(path, _MAX_STATS_BYTES), str(path)), str(path))
    counts = gate.mapping(content.get("counts", {}), where)
    return {
        kind: gate.whole_number(count, f"{where}: {gate.shown(kind)}", 0, 1 << 53) for kind, count in counts.items()
    }
