"""The offline report of one policy on one stream of recordings: HTML, PNG and JSON.

p2p evaluate POLICY --data STREAM [--out DIR]
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2p.config import Z_WEIGHT
from p2p.console import aligned, say

if TYPE_CHECKING:
    from p2p.evaluate.metrics import Tally
    from p2p.evaluate.report import KeyRow, Reliability, Report
    from p2p.evaluate.stream import Stream
    from p2p.model import Policy

logger = logging.getLogger(__name__)

PROGRESS_S = 10.0
POLICY_COLUMN, FREE_COLUMN = "policy", "policy, free-running"
NOTES = (
    "policy: teacher-forced, that is, with the recorded past; perplexity and calibration also with the recorded slots "
    "of the same action, everything else with the policy's own.",
    "policy, free-running: recorded frames, the policy's own past, sampled as configured, each chunk from an empty "
    "past. It has no losses.",
    "Onset: a key that the action before did not hold is pressed; matched one to one within 2 frames. Repeating the "
    "previous action presses nothing new, so it scores 0 whatever its F1.",
    "repeat previous, frequencies and mean take their rates from the evaluated recordings themselves, which favours "
    "them; the action before is known to 'repeat previous'.",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, help="policy folder, or an original .ckpt")
    parser.add_argument("--data", required=True, help="stream of recordings: a folder, or s3://...")
    parser.add_argument("--out", type=Path, help="folder of the report (default: POLICY/evaluation)")
    parser.add_argument("--chunks", type=int, help="evaluate on N chunks spread over the stream (default: all)")
    parser.add_argument("--free-chunks", type=int, default=64, help="chunks for the free run (default 64; 0: none)")
    parser.add_argument("--causality-repeats", type=int, default=3, help="repeats of the causality score (0: none)")
    parser.add_argument("--batch-size", type=int, help="chunks at a time (default: about 400 frames)")
    parser.add_argument("--z-weight", type=float, default=Z_WEIGHT, help="of loss.z_weight in its recipe (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda when there is one)")


def run(args: argparse.Namespace) -> int:
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}; write 1 or more")
    if not 0 <= args.z_weight < math.inf:
        raise ValueError(f"--z-weight is {args.z_weight}; write the recipe's loss.z_weight, 0 or more")
    from p2p.evaluate.policies import open_policy
    from p2p.evaluate.report import table_rows, write_report
    from p2p.evaluate.stream import open_stream

    policy = open_policy(args.policy, args.device)
    stream = open_stream(args.data, policy.config)
    report = evaluate(policy, stream, str(args.policy), args)
    folder = args.out or (args.policy if args.policy.is_dir() else args.policy.parent) / "evaluation"
    page = write_report(report, folder)
    say(aligned(table_rows(report)))
    if report.causality:
        say("causality {score:.2f} +- {std:.2f}, {per_step:.4f} nats a step".format(**report.causality))
    say(f"report: {page}")
    return 0


def evaluate(policy: Policy, stream: Stream, name: str, args: argparse.Namespace) -> Report:
    """All numbers of a report; `args` as `add_arguments` defines them."""
    from p2p.evaluate import metrics
    from p2p.evaluate.baselines import baseline_tallies
    from p2p.evaluate.free_running import free_running_tallies
    from p2p.evaluate.report import Report
    from p2p.evaluate.scoring import collect, policy_tallies

    space = policy.config.action_space
    recordings = collect(policy, _counted(stream, args.batch_size, args.chunks, "teacher-forced"))
    replaced = stream.replaced
    tallies = {POLICY_COLUMN: policy_tallies(recordings, space)}
    if args.free_chunks:
        batches = _counted(stream, args.batch_size, args.free_chunks, "free-running")
        free = free_running_tallies(policy, batches, policy.config.sampling, args.seed)
        tallies[FREE_COLUMN] = list(free.values())
    tallies |= baseline_tallies(recordings, space)
    columns = {
        column: metrics.bootstrap(each, lambda tally: metrics.summarise(tally, args.z_weight))
        for column, each in tallies.items()
    }
    if args.causality_repeats:
        logger.info("causality score, %d times", args.causality_repeats)
    causality, notes = _causality(policy, stream, args)
    summed = metrics.add_tallies(tallies[POLICY_COLUMN])
    repeated = metrics.add_tallies(tallies["repeat previous"])
    return Report(
        policy=name,
        data=stream.name,
        num_recordings=len(recordings),
        num_steps=int(summed["num_steps"]),
        columns=columns,
        keys=key_rows(summed, repeated),
        reliability=reliability(summed),
        causality=causality,
        used=used_heads(summed),
        notes=(
            *NOTES,
            f"Loss and perplexity over all heads take the z-loss with a weight of {args.z_weight:g} (--z-weight): a "
            "policy folder does not tell its recipe's.",
            *((f"{replaced.summary()}.",) if replaced.count else ()),
            *notes,
        ),
        replaced_chunks=replaced.count,
    )


def _counted(stream: Stream, batch_size: int | None, num_chunks: int | None, what: str) -> Iterator[dict[str, Any]]:
    """The batches of a stream; how many chunks are done is logged now and then."""
    total, done, said = min(len(stream.chunks), num_chunks or len(stream.chunks)), 0, time.monotonic()
    logger.info("%s over %d chunks", what, total)
    for batch in stream.batches(batch_size, num_chunks):
        yield batch
        done += len(batch["recording"])
        if time.monotonic() - said >= PROGRESS_S and done < total:
            said = time.monotonic()
            logger.info("%s: %d of %d chunks", what, done, total)


def used_heads(tally: Tally) -> tuple[str, ...]:
    """The heads that the recordings use at all: a key or button held, a motion along an axis."""
    from p2p.actions import HEADS

    held = [(tally[f"{kind}_tp"] + tally[f"{kind}_fn"]).sum() for kind in ("key", "button")]
    counts = (*held, *tally["mouse_moves"])
    return tuple(head for head, count in zip(HEADS, counts, strict=True) if count > 0)


def _causality(
    policy: Policy, stream: Stream, args: argparse.Namespace
) -> tuple[dict[str, float] | None, tuple[str, ...]]:
    from p2p.evaluate.causality import NUM_CHUNKS, NUM_PARTS, causality
    from p2p.evaluate.policies import on_device

    if not args.causality_repeats:
        return None, ()
    num_parts = min(NUM_PARTS, policy.config.num_timesteps)
    try:
        result = causality(on_device(policy), stream, NUM_CHUNKS, num_parts, args.causality_repeats, args.seed)
    except ValueError as error:
        return None, (f"No causality score: {error}.",)
    values = {"score": result.score, "std": result.std, "per_step": result.per_step, "loss": result.loss}
    note = (
        f"Causality score {result.score:.2f} +- {result.std:.2f} (sum over {result.num_chunks} chunks x "
        f"{result.num_parts} parts, standard deviation over {len(result.repeats)} repeats; {result.per_step:.4f} nats "
        f"a step), at a loss of {result.loss:.4f} on the same chunks: how far the answer moves when half of the frames "
        "come from other recordings."
    )
    return values, (note,)


def key_rows(policy: Tally, repeated: Tally) -> list[KeyRow]:
    """One row per key and button that was held or predicted, from the summed tallies of policy and baseline."""
    from p2p.actions import BUTTON_NAMES, KEY_NAMES
    from p2p.evaluate.metrics import f1_scores
    from p2p.evaluate.report import KeyRow

    rows = []
    for prefix, names in (("key", KEY_NAMES[1:]), ("button", BUTTON_NAMES[1:])):
        each = [f1_scores(t, p)[1] for t in (policy, repeated) for p in (prefix, f"{prefix}_onset")]
        held = policy[f"{prefix}_tp"] + policy[f"{prefix}_fn"]
        onsets = policy[f"{prefix}_onset_tp"] + policy[f"{prefix}_onset_fn"]
        for i, name in enumerate(names):
            if held[i] + policy[f"{prefix}_fp"][i] == 0:
                continue
            scores = [float(values[i]) for values in each]
            label = name if prefix == "key" else f"mouse {name}"
            rows.append(KeyRow(label, int(held[i]), int(onsets[i]), *scores))
    return rows


def reliability(tally: Tally) -> dict[str, Reliability]:
    """The reliability curve of each head."""
    from p2p.actions import HEADS
    from p2p.evaluate.report import Reliability

    curves: dict[str, Reliability] = {}
    for index, head in enumerate(HEADS):
        count, confidence, correct = (tally[f"bin_{n}"][index] for n in ("count", "confidence", "correct"))
        used = count > 0
        means: Sequence[tuple[float, ...]] = [
            tuple(float(v) for v in values[used] / count[used]) for values in (confidence, correct)
        ]
        curves[head] = Reliability(means[0], means[1], tuple(float(v) for v in count[used] / count.sum()))
    return curves
