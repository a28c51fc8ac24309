"""From a frame to the first picture that its key changed, in a real window. `python tests/benchmarks/bench_window.py`

A stand-in for a policy presses a key for some frames and lets go of it for others, and answers after a fixed time. The
client of `p2p play --window` executes its answers in turn as it does, when they come, and at the end of the tick, as it
did before; a second pair of eyes watches the window all the time. The delay is from the grab of the first frame whose
answer holds the key to the first picture that differs.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import sys
import tempfile
import threading
import time
from bisect import bisect
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2p.actions import Action
from p2p.agents.remote import RemoteAgent
from p2p.desktop.capture import WindowCapture
from p2p.desktop.display import find_window, open_display, virtual_display
from p2p.environments.registry import make_env
from p2p.environments.window import WindowEnv
from p2p.play.clock import RealtimeClock
from p2p.protocol import MessageReader, encode_action, parse_frame

HELD, LET_GO = 4, 16  # frames: a trial
NOTHING = Action()
AT_ONCE, AT_THE_END = "when it comes", "at the tick's end"
WATCH_EVERY_S = 0.002


class StandIn(threading.Thread):
    """Answers each frame after `answer_s`, with the key while `pressing`."""

    def __init__(self, address: Path, key: str, answer_s: float) -> None:
        super().__init__(daemon=True)
        self._key, self._answer_s = key, answer_s
        self.pressing = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen()

    def run(self) -> None:
        connection, reader = self._listener.accept()[0], MessageReader()
        while data := connection.recv(1 << 16):
            for payload in reader.feed(data):
                time.sleep(self._answer_s)
                action = Action((self._key,)) if self.pressing else NOTHING
                connection.sendall(encode_action(action, parse_frame(payload).id))


class Watcher(threading.Thread):
    """Pictures of the window, coarse, each with the time at which it was taken."""

    def __init__(self, capture: WindowCapture) -> None:
        super().__init__(daemon=True)
        self._capture, self._ends = capture, threading.Event()
        self.pictures: list[tuple[float, NDArray[np.uint8]]] = []

    def run(self) -> None:
        while not self._ends.wait(WATCH_EVERY_S):
            now_s = time.monotonic()
            self.pictures.append((now_s, self._capture.grab()[::8, ::8].copy()))

    def end(self) -> None:
        self._ends.set()
        self.join()

    def first_change_s(self, since_s: float, until_s: float, enough: float) -> float | None:
        """When first a share of `enough` of the pixels differed from the last picture before `since_s`."""
        times = [taken_s for taken_s, _ in self.pictures]
        first, end = bisect(times, since_s), bisect(times, until_s)
        before = self.pictures[first - 1][1].astype(np.int16)
        for taken_s, picture in self.pictures[first:end]:
            if (np.abs(picture - before).max(-1) > 8).mean() > enough:
                return taken_s
        return None


class AtTheEnd:
    """The window as an environment that executes what a tick's answers come to when the tick is over."""

    def __init__(self, env: WindowEnv) -> None:
        self.step = env.step


def play_trials(env: WindowEnv, agent: RemoteAgent, stand_in: StandIn, num_trials: int) -> list[tuple[str, float]]:
    """Each trial's way, and when the first frame whose answer holds the key was grabbed."""
    ways = [AT_ONCE, AT_THE_END] * (num_trials // 2)
    clock, trials = RealtimeClock(), []
    places: dict[str, Any] = {AT_ONCE: env, AT_THE_END: AtTheEnd(env)}
    for index, way in enumerate(ways):
        frame, info = env.reset(seed=index)
        clock.begin()
        for step in range(LET_GO + HELD + random.Random(index).randrange(3)):
            stand_in.pressing = step >= LET_GO
            if step == LET_GO:
                trials.append((way, info["time_ns"] / 1e9))
            _, (frame, *_, info) = clock.step(places[way], agent, frame, info)
        env.device.release()
    return trials


def spread(values: Sequence[float]) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75]) * 1000
    return f"{middle:.1f} ms ({low:.1f} to {high:.1f})"


def measure(game: str, key: str, title: str, answer_s: float, num_trials: int, enough: float) -> dict[str, list[float]]:
    """Delays in seconds by way; what no picture showed within 0.4 s is left out."""
    with ExitStack() as stack:
        address = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "stand-in"
        stand_in = StandIn(address, key, answer_s)
        stand_in.start()
        name = os.environ["DISPLAY"] = stack.enter_context(virtual_display())
        env: Any = stack.enter_context(closing(make_env(game, window=True, title=title)))
        print(env.description, file=sys.stderr)
        connection = open_display(name)
        window = find_window(connection, env.program.title, env.program.process)
        geometry = window.get_geometry()
        watcher = Watcher(WindowCapture(name, window.id, geometry.width, geometry.height))
        agent = stack.enter_context(closing(RemoteAgent(str(address), one_session=True)))
        agent.reset()
        agent.act(env.reset(seed=0)[0], {})
        watcher.start()
        trials = play_trials(env, agent, stand_in, num_trials)
        watcher.end()
    delays: dict[str, list[float]] = {AT_ONCE: [], AT_THE_END: []}
    for way, grabbed_s in trials:
        changed_s = watcher.first_change_s(grabbed_s, grabbed_s + 0.4, enough)
        if changed_s is not None:
            delays[way].append(changed_s - grabbed_s)
    return delays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="doom:basic", help="or program:COMMAND (%(default)s)")
    parser.add_argument("--title", default="", help="of the program's window")
    parser.add_argument("--key", default="RightArrow", help="changes the whole picture (%(default)s)")
    parser.add_argument("--answer-ms", type=float, nargs="+", default=[0, 20], help="(%(default)s)")
    parser.add_argument("--trials", type=int, default=40, help="half of them each way (%(default)s)")
    parser.add_argument("--enough", type=float, default=0.1, help="share of the pixels that must change (%(default)s)")
    args = parser.parse_args()
    print("| answer after | executed | trials | from the frame to the changed picture: median (quartiles) |")
    print("| ---: | --- | ---: | ---: |")
    for answer_ms in args.answer_ms:
        delays = measure(args.game, args.key, args.title, answer_ms / 1000, args.trials, args.enough)
        for way, found in delays.items():
            print(f"| {answer_ms:g} ms | {way} | {len(found)} | {spread(found)} |", flush=True)


if __name__ == "__main__":
    main()
