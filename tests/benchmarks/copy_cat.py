"""Remedies against the copy-cat, at equal numbers of updates. `python tests/benchmarks/copy_cat.py`

Trains recipes/doom-defend.yaml in several variants on the same recordings of doom:defend_the_center, plays each
policy sampled and greedy, and prints a table. Variants are trained side by side, one per core; what is done already
is reused, so that it can be interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
GAME = "doom:defend_the_center"
LONG = ("global_batch=8", "policy.num_timesteps=16")
HISTORY = (*LONG, "policy.attention_history=8")


@dataclass(frozen=True)
class Variant:
    """One row of the table: what differs from the recipe."""

    name: str
    text: str
    overrides: tuple[str, ...] = ()
    clean: bool = False  # trained on recordings without disturbance
    control: bool = False  # also plays with frames of other moments


VARIANTS = (
    Variant("recipe-0", "the recipe: no history, 32 chunks of 4; training seed 0", control=True),
    Variant("recipe-1", "the same, training seed 1", ("seed=1",), control=True),
    Variant("recipe-2", "the same, training seed 2", ("seed=2",), control=True),
    Variant("history", "history 8, 8 chunks of 16, past actions as they were", HISTORY),
    Variant("long", "no history, 8 chunks of 16", LONG),
    Variant("replaced", "history 8, past actions replaced at random, p 0.7", (*HISTORY, "data.corruption.replace=0.7")),
    Variant("masked", "history 8, past actions masked, p 0.7", (*HISTORY, "data.corruption.nothing=0.7")),
    Variant("dropped", "history 8, a chunk's past dropped, p 0.9", (*HISTORY, "data.corruption.drop_history=0.9")),
    Variant("short", "history 2, 32 chunks of 4", ("policy.attention_history=2",)),
    Variant("clean", "no history, 32 chunks of 4, recordings without disturbance", clean=True),
)


def run(log: Path, *command: str) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        status = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
        ).returncode
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}; see {log}")


def record(out: Path, name: str, disturbance: float) -> Path:
    """66 episodes of the scripted player as shards."""
    raw, shards = out / f"{name}-raw", out / f"{name}-shards"
    if not (shards / "train" / "index.json").exists():
        how = ("--game", GAME, "--episodes", "66", "--disturbance", str(disturbance), "--out", str(raw))
        run(out / "logs" / f"{name}-record.log", str(BIN / "p2p"), "record", *how)
        split = ("--split", "val=0.1")
        run(out / "logs" / f"{name}-convert.log", str(BIN / "p2p-convert"), str(raw), str(shards), *split)
    return shards


def train(variant: Variant, shards: Path, updates: int, out: Path) -> None:
    folder = out / variant.name
    if (folder / "policy" / "model.safetensors").exists():
        return
    data = (f"data.train={shards / 'train'}", f"data.val={shards / 'val'}")
    where = (f"name={variant.name}", f"run_folder={folder}", f"max_duration={updates}ba")
    command = (str(BIN / "composer"), "launch", "recipes/doom-defend.yaml", *data, *where, *variant.overrides)
    run(out / "logs" / f"{variant.name}-train.log", *command)


def play(variant: Variant, episodes: int, out: Path, greedy: bool) -> None:
    result = played(variant, out, greedy)
    if result.exists():
        return
    policy = str(out / variant.name / "policy")
    how = ["--game", GAME, "--episodes", str(episodes), "--workers", "1", "--json", str(result)]
    how += ["--greedy"] if greedy else []
    how += ["--compare", "shuffled"] if variant.control and not greedy else []
    log = out / "logs" / f"{result.parent.name}-{result.stem}.log"
    run(log, str(BIN / "p2p"), "play", policy, *how)


def played(variant: Variant, out: Path, greedy: bool) -> Path:
    return out / variant.name / ("greedy.json" if greedy else "sampled.json")


def score(path: Path, player: str = "policy") -> str:
    """Mean score and its standard error."""
    if not path.exists():
        return ""
    scores = [e["score"] for e in json.loads(path.read_text())["episodes"] if e["player"] == player]
    if not scores:
        return ""
    mean = sum(scores) / len(scores)
    deviation = (sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) ** 0.5
    return f"{mean:.1f} ± {deviation / len(scores) ** 0.5:.1f}"


def table(variants: Sequence[Variant], out: Path) -> str:
    lines = [
        "| variant | validation perplexity of the keys | sampled | greedy | frames of other moments |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for variant in variants:
        metrics = (out / variant.name / "metrics.jsonl").read_text().splitlines()
        perplexity = json.loads(metrics[-1])["val/perplexity_keys"]
        sampled, greedy = (played(variant, out, is_greedy) for is_greedy in (False, True))
        cells = (f"{perplexity:.3f}", score(sampled), score(greedy), score(sampled, "shuffled"))
        lines.append(f"| {variant.text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/copy-cat"))
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2, help="variants at once")
    parser.add_argument("--only", nargs="+", help="names of variants", choices=[v.name for v in VARIANTS])
    args = parser.parse_args()
    variants = [v for v in VARIANTS if not args.only or v.name in args.only]
    shards = {False: record(args.out, "disturbed", 0.03)}
    if any(v.clean for v in variants):
        shards[True] = record(args.out, "clean", 0.0)

    def whole(variant: Variant) -> None:
        train(variant, shards[variant.clean], args.updates, args.out)
        play(variant, args.episodes, args.out, greedy=False)
        play(variant, args.episodes, args.out, greedy=True)
        print(f"done: {variant.name}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        for _ in pool.map(whole, variants):
            pass
    print(table(variants, args.out))


if __name__ == "__main__":
    main()
