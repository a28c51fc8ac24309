"""The cards of what is published: README.md of a policy and of shards, from what stands beside them.

Values come from files, so they are taken through the gate and cannot end a table or begin another heading. Places of
this machine do not belong on a card: of an address its last part stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2p import gate
from p2p.config import read_yaml

_MAX_SCORES_BYTES = 256 << 20
_MOST_ROWS = 200
_RECIPE = (
    "name",
    "max_duration",
    "global_batch",
    "precision",
    "seed",
    "optimizer",
    "schedule",
    "ema_half_life",
    "data",
)


def policy_card(
    repo_id: str,
    config: Mapping[str, Any],
    num_parameters: int,
    files: Mapping[str, str],
    recipe: Path | None,
    scores: Sequence[Path],
) -> str:
    """Of a policy folder; `files` are its names and SHA-256, `scores` files of `p2p play --json` and `p2p evaluate`."""
    name = repo_id.rpartition("/")[2]
    shape = ("dim", "num_layers", "num_timesteps", "attention_history", "image_encoder", "text_embedder")
    parts = [
        _front(["games", "behaviour-cloning", "imitation-learning", "pixel2play"], "pixel2play"),
        f"# {name}",
        "A policy that plays from pixels, with keyboard and mouse, 20 times a second: "
        f"{num_parameters / 1e6:.1f} M parameters.",
        "## Use",
        f"    p2p serve --policy hf:{repo_id}",
        "In Python:",
        f'    policy = p2p.load_policy("hf:{repo_id}")',
        "## Network",
        table(["setting", "value"], [[key, _plain(config[key])] for key in shape if key in config]),
    ]
    if recipe is not None:
        parts += ["## Training", _recipe(recipe)]
    for path in scores:
        parts += _scores(path)
    if not scores:
        parts += ["## Scores", "None were given."]
    parts += ["## Files", table(["file", "SHA-256"], [[file, digest] for file, digest in sorted(files.items())])]
    parts.append("Weights are safetensors and the configuration is plain YAML: nothing in them runs when it is loaded.")
    return "\n\n".join(parts) + "\n"


def dataset_card(
    repo_id: str, streams: Mapping[str, Mapping[str, tuple[int, int]]], frame_rate_hz: int, counts: Mapping[str, Any]
) -> str:
    """Of shards: `streams` holds (recordings, frames) by game, by stream; `counts` what was odd, by kind."""
    total = sum(frames for games in streams.values() for _, frames in games.values())
    rows = [
        [stream, game or "(no name)", f"{recordings:,}", f"{frames:,}", f"{frames / frame_rate_hz / 3600:.2f}"]
        for stream, games in sorted(streams.items())
        for game, (recordings, frames) in sorted(games.items(), key=lambda item: -item[1][1])
    ]
    stream = next((name for name in sorted(streams) if name.startswith("train")), next(iter(sorted(streams)), ""))
    address = f"hf://datasets/{repo_id}/{stream}".rstrip("/")
    parts = [
        _front(["games", "behaviour-cloning", "video", "pixel2play"], None),
        f"# {repo_id.rpartition('/')[2]}",
        f"Recorded play as shards to train on: {total / frame_rate_hz / 3600:.2f} hours, {total:,} frames, "
        f"{frame_rate_hz} a second.",
        "## Use",
        f"    p2p train RECIPE data.train={address}",
        "## Games",
        table(["stream", "game", "recordings", "frames", "hours"], rows),
    ]
    if counts:
        odd = sorted(counts.items(), key=lambda item: -item[1])
        parts += [
            "## What the conversion counted",
            table(["frames or recordings", "what"], [[f"{n:,}", k] for k, n in odd]),
        ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table of at most 200 rows; no cell can leave its own."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(_plain, row)) + " |" for row in rows[:_MOST_ROWS]]
    return "\n".join([*lines, *([f"\n({len(rows) - _MOST_ROWS} more)"] if len(rows) > _MOST_ROWS else [])])


def _front(tags: Sequence[str], library: str | None) -> str:
    lines = ["---", *([f"library_name: {library}"] if library else []), "tags:", *(f"- {tag}" for tag in tags), "---"]
    return "\n".join(lines)


def _plain(value: object) -> str:
    """A value in a cell of a table: one line, without what Markdown or HTML would read as more than text."""
    text = gate.shown(value, quote=False)
    for sign in "\\|`<>[]*_#":
        text = text.replace(sign, "\\" + sign)
    return text


def _recipe(path: Path) -> str:
    """The parts of a recipe that say how a policy was trained, and on what; of places only their last part."""
    content = read_yaml(path)
    rows = []
    for name in _RECIPE:
        value = content.get(name)
        if isinstance(value, Mapping):
            rows += [
                [f"{name}.{key}", _without_place(each)] for key, each in value.items() if each not in (None, {}, [])
            ]
        elif value is not None:
            rows.append([name, _without_place(value)])
    return table(["setting", "value"], rows)


def _without_place(value: object) -> str:
    text = gate.shown(value, quote=False)
    last = text.rstrip("/").rpartition("/")[2]
    return "(an address)" if "@" in last else last


def _scores(path: Path) -> list[str]:
    content = gate.mapping(gate.parse_json(gate.read_regular(path, _MAX_SCORES_BYTES), str(path)), str(path))
    if "summary" in content:
        return _played(content, str(path))
    if "columns" in content:
        return _report(content, str(path))
    raise gate.Refused(
        f"{path}: neither scores of p2p play --json (summary) nor a report.json of p2p evaluate (columns)"
    )


def _played(content: Mapping[str, Any], where: str) -> list[str]:
    rows = []
    for row in gate.sequence(content["summary"], f"{where}: summary", _MOST_ROWS):
        row = gate.mapping(row, f"{where}: summary")
        numbers = [
            _number(row.get(key), f"{where}: {key}")
            for key in ("num_episodes", "mean", "standard_error", "lowest", "highest")
        ]
        rows.append([gate.text(row.get("player"), f"{where}: player", 200), *numbers])
    head = ["player", "episodes", "mean score", "standard error", "lowest", "highest"]
    game = gate.text(content.get("game", ""), f"{where}: game", 200)
    return [
        f"## Play in {_plain(game)}",
        "`shuffled` is the same policy, shown frames of other moments.",
        table(head, rows),
    ]


def _report(content: Mapping[str, Any], where: str) -> list[str]:
    columns = gate.mapping(content["columns"], f"{where}: columns")
    names = list(columns)[:8]
    metrics = list(
        dict.fromkeys(m for name in names for m in gate.mapping(columns[name], f"{where}: {gate.shown(name)}"))
    )
    rows = [[metric, *(_value(columns[name].get(metric), where) for name in names)] for metric in metrics]
    parts = ["## On recordings that it has not seen", table(["metric", *map(_plain, names)], rows)]
    causality = content.get("causality")
    if causality:
        found = [[key, _number(value, f"{where}: causality")] for key, value in gate.mapping(causality, where).items()]
        parts += ["## Causality: what the picture changes", table(["measure", "value"], found)]
    return parts


def _value(estimate: Any, where: str) -> str:
    if estimate is None:
        return "-"
    return _number(gate.mapping(estimate, where).get("value"), where)


def _number(value: object, where: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{gate.whole_number(value, where, -(1 << 53), 1 << 53):,}"
    return f"{gate.number(value, where, -1e300, 1e300):.4g}"
