"""Coverage-guided fuzzing (atheris, that is libFuzzer) of every reader of what comes from outside.

    python tests/benchmarks/fuzz_readers.py [READER ...] [--seconds 300] [--parallel 2] [--out runs/fuzz]

A finding is an error other than ValueError, an input that takes over 2 s of the processor (or 20 s by the clock), or
memory over 1 GB; the input is kept in OUT/READER and the exit status is 1. A finding is read again with `--input FILE`.
The inputs that reached new code stay in OUT/READER/corpus, so that a later run goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.fuzz_targets import TARGETS, Target

CPU_S, HANG_S, MEMORY_MB, LONGEST_INPUT_BYTES = 2, 20, 1024, 1 << 17  # by the clock alone a busy machine finds much
_OURS_S = 60  # to load, and to end


@dataclass(frozen=True)
class Outcome:
    """Of one reader: inputs read, edges covered, most memory in MB, slowest input in s, and what was found."""

    reader: str
    num_inputs: int
    coverage: int
    memory_mb: int
    slowest_s: int
    finding: str

    def row(self) -> str:
        values = f"{self.num_inputs:,} | {self.coverage:,} | {self.memory_mb} | {self.slowest_s}"
        return f"| {self.reader} | {values} | {self.finding or 'nothing'} |"


def fuzz(reader: str, seconds: int, out: Path) -> Outcome:
    """Fuzz a reader in a process of its own; libFuzzer's last lines tell what came of it."""
    folder = (out / reader).absolute()
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[reader].seeds()):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
    command = [sys.executable, __file__, reader, "--child", str(folder), "--seconds", str(seconds)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            status = process.wait(seconds + _OURS_S)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
    return read_log((folder / "log").read_text(errors="replace"), reader, status)


def read_log(text: str, reader: str, status: int | None) -> Outcome:
    """What libFuzzer says at its end."""

    def last(pattern: str) -> int:
        found = re.findall(pattern, text)
        return int(found[-1]) if found else 0

    finding = ""
    if status != 0:
        errors = re.findall(r"^(?:ERROR|==\d+== ERROR|\w*Error\b|\w+\.\w*Error\b|SUMMARY).*", text, re.MULTILINE)
        finding = errors[0] if errors else f"exit status {status}"
    return Outcome(
        reader=reader,
        num_inputs=last(r"stat::number_of_executed_units:\s*(\d+)") or last(r"#(\d+)\t"),
        coverage=last(r"cov: (\d+)"),
        memory_mb=last(r"stat::peak_rss_mb:\s*(\d+)") or last(r"rss: (\d+)Mb"),
        slowest_s=last(r"stat::slowest_unit_time_sec:\s*(\d+)"),
        finding=finding.replace("|", "/")[:160],
    )


def one_of(target: Target, data: bytes) -> bool:
    """Whether an input was understood; an error other than ValueError passes through.

    Raises:
        RuntimeError: when it took too long.
    """
    begin = time.process_time()
    try:
        target.run(data)
    except ValueError:
        return False
    finally:
        spent_s = time.process_time() - begin
        if spent_s > CPU_S:
            raise RuntimeError(f"an input of {len(data)} bytes took {spent_s:.1f} s of the processor")
    return True


def child(reader: str, folder: Path, seconds: int) -> None:
    """In the process of one reader: our modules are loaded with counters in them, then libFuzzer takes over."""
    import atheris

    target: Target = TARGETS[reader]
    with atheris.instrument_imports(include=["p2p", "p2p_convert"]):
        for seed in target.seeds():  # untimed: the first one loads what the reader imports
            with contextlib.suppress(ValueError):
                target.run(seed)

    def one(data: bytes) -> None:
        one_of(target, data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        assert target.mutator is not None
        return target.mutator(data, random.Random(seed))[:max_size]

    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={LONGEST_INPUT_BYTES}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
        str(folder / "corpus"),
    ]
    atheris.Setup(arguments, one, custom_mutator=mutate if target.mutator else None)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(TARGETS)}; all when none is named")
    parser.add_argument("--seconds", type=int, default=300, help="for each reader (default %(default)s)")
    parser.add_argument(
        "--parallel", type=int, default=os.cpu_count() or 1, help="readers at a time (default %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fuzz"), help="findings and corpora (default %(default)s)"
    )
    parser.add_argument("--input", type=Path, help="read one input by one reader, with its traceback")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    readers = args.readers or list(TARGETS)
    unknown = [reader for reader in readers if reader not in TARGETS]
    if unknown or args.seconds < 1 or args.parallel < 1 or (args.input and len(readers) != 1):
        parser.error(f"name readers of {', '.join(TARGETS)} (one with --input); --seconds and --parallel are 1 or more")
    if args.child:
        child(readers[0], args.child, args.seconds)
        return 0
    if args.input:
        TARGETS[readers[0]].run(args.input.read_bytes())
        return 0
    begin = time.monotonic()
    print(
        "| reader | inputs | edges covered | peak MB | slowest s | found |\n| --- | ---: | ---: | ---: | ---: | --- |"
    )
    failed = False
    with ThreadPoolExecutor(args.parallel) as pool:
        for outcome in pool.map(lambda reader: fuzz(reader, args.seconds, args.out), readers):
            print(outcome.row(), flush=True)
            failed |= bool(outcome.finding)
    print(f"\n{len(readers)} readers, {args.seconds} s each, {time.monotonic() - begin:.0f} s; inputs in {args.out}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
