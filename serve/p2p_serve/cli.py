"""The `p2p-serve` command: `p2p-serve --policy DIR`, and the tools echo, playback, loadtest and bench."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from p2p import __version__
from p2p.console import ProgressBar, fail, log_to_stderr, say
from p2p.sockets import DEFAULT_SOCKET

if TYPE_CHECKING:
    import torch

    from p2p.model import Policy
    from p2p_serve.app import AppOptions
    from p2p_serve.players import PolicyPlayer
    from p2p_serve.text import TextSource

TOOLS = ("echo", "playback", "loadtest", "bench")

_DESCRIPTION = """Serve a policy in real time: frames in, keys and mouse out, over Recap's protocol.

  p2p-serve --policy DIR                  a policy folder (or model.ckpt, or hf:OWNER/NAME/SIZE)
  p2p-serve --random-weights --recipe 150M
  p2p-serve echo                          answer without a model      (each tool has its own --help)
  p2p-serve playback RECORDING            answer with the actions of a recording
  p2p-serve loadtest --fps 20             a client that measures round trips
  p2p-serve bench --policy DIR            how fast the model alone is here"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, or 2 for a user's error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    log_to_stderr(logging.INFO)
    try:
        tool, args = parse(arguments)
        return _RUNNERS[tool](args)
    except ModuleNotFoundError as error:
        extra = {
            "av": "--record needs PyAV: pip install av",
            "huggingface_hub": "hf: needs pip install huggingface-hub",
        }
        if error.name not in extra:
            raise
        return fail(extra[error.name])
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130


def parse(arguments: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """What is to run, "serve" or one of TOOLS, and its options; exits with status 2 when they are wrong."""
    tool = arguments[0] if arguments and arguments[0] in TOOLS else "serve"
    return tool, _PARSERS[tool]().parse_args(arguments if tool == "serve" else arguments[1:])


# ------------------------------------------------------------------ arguments


def _listening_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where it listens")
    group.add_argument("--socket", type=Path, help=f"a Unix socket (default: {DEFAULT_SOCKET}, unless --tcp is given)")
    group.add_argument("--socket-mode", type=_octal, default=0o600, metavar="MODE", help="its mode (default: 600)")
    group.add_argument("--tcp", metavar="HOST:PORT", help="a TCP address too, or instead")
    group.add_argument(
        "--max-frame", type=_size, default=(1200, 1920), metavar="WxH", help="drop larger frames (default: 1920x1200)"
    )
    group.add_argument("--latency-png", type=Path, metavar="FILE", help="a picture of the latencies of each session")


def _octal(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise argparse.ArgumentTypeError(f"{text!r} is no mode; write octal digits such as 660")
    return mode


def _policy_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the policy")
    group.add_argument(
        "--policy", metavar="SOURCE", help="policy folder, model.ckpt, hf:OWNER/NAME or hf:OWNER/NAME/SIZE"
    )
    group.add_argument("--random-weights", action="store_true", help="no policy: random weights of --recipe's shape")
    group.add_argument(
        "--recipe", default="150M", help="150M, 300M, 600M, 1200M or a .yaml file (with --random-weights)"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16"],
        help="type of the weights (auto: the quicker one)",
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads of the model")
    group.add_argument("--seed", type=int, help="for repeatable actions (default: none)")


def _sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how actions are drawn (defaults: those of the policy)")
    group.add_argument("--temperature", type=float)
    group.add_argument("--top-p", type=float)
    group.add_argument("--greedy", action="store_true", default=None)
    group.add_argument("--mouse-sampling", choices=["truncated_normal", "mean", "conservative"])


def _serve_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "p2p-serve", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"p2p-serve {__version__}")
    _policy_arguments(parser)
    _sampling_arguments(parser)
    _listening_arguments(parser)
    group = parser.add_argument_group("sessions")
    group.add_argument("--sessions", type=int, default=1, metavar="N", help="clients at a time (default: 1)")
    group.add_argument("--clear-every", type=int, default=0, metavar="N", help="forget the history every N frames")
    group.add_argument(
        "--forget-after", type=float, default=0.0, metavar="S", help="forget it when frames stop for S seconds"
    )
    group.add_argument("--record", type=Path, metavar="DIR", help="write each session as a recording below DIR")
    group = parser.add_argument_group("instructions (typed, one a line; an empty line: none)")
    group.add_argument("--text", nargs="?", const="", metavar="INSTRUCTION", help="read instructions; begin with this")
    group.add_argument("--text-embedder", metavar="NAME", help="null, minilm, gemma, gemma:FOLDER or an .npz table")
    group.add_argument("--text-file", type=Path, metavar="FILE", help="its first line is the instruction")
    group.add_argument("--text-socket", type=Path, metavar="PATH", help="a Unix socket that takes instructions")
    return parser


def _echo_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("p2p-serve echo", description="Answer every frame at once, without a model.")
    parser.add_argument(
        "--keys", nargs="*", default=[], metavar="KEY", help="keys that the answer holds (default: none)"
    )
    _listening_arguments(parser)
    return parser


def _playback_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("p2p-serve playback", description="Answer with the actions of a recording.")
    parser.add_argument("recording", type=Path, help="a recording's folder, or its annotation.proto")
    _listening_arguments(parser)
    return parser


def _loadtest_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("p2p-serve loadtest", description="Send frames to a server and time its answers.")
    parser.add_argument("--socket", type=Path, default=Path(DEFAULT_SOCKET), help="default: %(default)s")
    parser.add_argument("--any-user", action="store_true", help="even if another user runs the server there")
    parser.add_argument("--tcp", metavar="HOST:PORT")
    parser.add_argument("--fps", type=float, default=20.0, help="frames a second (default: 20)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long (default: 60)")
    parser.add_argument("--size", type=_size, metavar="WxH", help="default: 192x192, as a policy sees them")
    return parser


def _size(text: str) -> tuple[int, int]:
    """'1920x1080' -> (1080, 1920), height first."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT, such as 192x192")
    return int(height), int(width)


def _bench_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("p2p-serve bench", description="Time the model alone, with a full cache.")
    _policy_arguments(parser)
    parser.add_argument("--steps", type=int, default=200, help="frames to time (default: 200)")
    return parser


# ------------------------------------------------------------------ runners


def _open_policy(args: argparse.Namespace) -> tuple[Policy, str]:
    """The policy, and a description of it in a few words."""
    if args.random_weights == (args.policy is not None):
        raise ValueError("name a policy with --policy SOURCE, or write --random-weights --recipe 150M")
    import torch

    from p2p.model.inference import for_inference
    from p2p.model.opening import choose_device, choose_dtype, load_policy, random_policy

    if args.threads is not None:
        if args.threads < 1:
            raise ValueError(f"--threads is {args.threads}; write 1 or more")
        torch.set_num_threads(args.threads)
    device, dtype = choose_device(args.device), choose_dtype(args.dtype)
    if args.random_weights:
        policy = random_policy(args.recipe, args.seed or 0, device)
        name = f"{args.recipe} with random weights"
    else:
        policy = load_policy(args.policy, device)
        name = args.policy
    policy = for_inference(policy, dtype)
    type_name = str(policy.out_token.dtype).removeprefix("torch.")
    return policy, f"{name} ({_count(policy)} parameters, {_device_name(device)}, {type_name})"


def _count(policy: Policy) -> str:
    number = sum(parameter.numel() for parameter in policy.parameters())
    return f"{number / 1e6:.1f}M"


def _device_name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.get_num_threads()} threads"


def _run_serve(args: argparse.Namespace) -> int:
    if args.sessions < 1:
        raise ValueError(f"--sessions is {args.sessions}; write 1 or more")
    from p2p.text import make_embedder
    from p2p_serve.text import TextSource

    chosen = None if args.text_embedder is None else make_embedder(args.text_embedder)
    policy, what = _open_policy(args)
    wants_text = args.text is not None or args.text_file is not None or args.text_socket is not None
    embedder = chosen or make_embedder(policy.config.text_embedder if wants_text else "null")
    from p2p.model.cache import cache_bytes
    from p2p_serve.app import run

    if args.sessions > 1:
        what += f" · {args.sessions} sessions with {cache_bytes(policy) / 2**20:.0f} MiB each"
    shape = (policy.config.num_text_tokens, policy.config.text_dim)
    text = TextSource(embedder, shape, policy.config.text_embedder)
    if args.text:
        try:
            text.set(args.text)
        except ValueError as error:  # playing goes on without
            logging.getLogger(__name__).warning("%s", error)
    if args.record is not None:
        import av  # noqa: F401 (to learn now, not at the first client, that it is missing)
    players = [_make_player(args, policy, text, number) for number in range(args.sessions)]
    return run(players, _app_options(args, what), text)


def _make_player(args: argparse.Namespace, policy: Policy, text: TextSource, number: int) -> PolicyPlayer:
    from p2p_serve.players import PolicyPlayer, SessionRecorder

    config = policy.config
    size = (config.frame_height, config.frame_width)
    said = {name: getattr(args, name) for name in ("temperature", "top_p", "greedy", "mouse_sampling")}
    session = policy.session(
        seed=None if args.seed is None else args.seed + number,
        sampling=replace(config.sampling, **{name: value for name, value in said.items() if value is not None}),
        clear_every=args.clear_every,
    )
    return PolicyPlayer(
        session,
        text,
        forget_after_s=args.forget_after,
        recorder=None if args.record is None else SessionRecorder(args.record, size, config.text_embedder),
    )


def _app_options(args: argparse.Namespace, what: str) -> AppOptions:
    from p2p_serve.app import AppOptions
    from p2p_serve.options import ServerOptions

    path = args.socket if args.socket is not None or args.tcp is not None else Path(DEFAULT_SOCKET)
    return AppOptions(
        socket=path,
        socket_mode=args.socket_mode,
        tcp=args.tcp,
        text_file=getattr(args, "text_file", None),
        text_socket=getattr(args, "text_socket", None),
        latency_png=args.latency_png,
        what=what,
        server=ServerOptions(max_frame_pixels=math.prod(args.max_frame)),
    )


def _run_echo(args: argparse.Namespace) -> int:
    from p2p.actions import Action
    from p2p_serve.app import run
    from p2p_serve.players import EchoPlayer

    return run([EchoPlayer(Action(tuple(args.keys)))], _app_options(args, "echo, no model"))


def _run_playback(args: argparse.Namespace) -> int:
    from p2p_serve.app import run
    from p2p_serve.players import PlaybackPlayer, recorded_actions

    actions = recorded_actions(args.recording)
    what = f"playback of {args.recording} ({len(actions)} actions)"
    return run([PlaybackPlayer(actions)], _app_options(args, what))


def _run_loadtest(args: argparse.Namespace) -> int:
    from p2p.config import FRAME_SIZE
    from p2p.sockets import connect_tcp, connect_unix
    from p2p_serve.loadtest import run_load

    if not (0 < args.fps < math.inf and 0 < args.seconds < math.inf):
        raise ValueError(f"--fps {args.fps:g} --seconds {args.seconds:g}: both must be above 0, and not endless")
    with connect_tcp(args.tcp) if args.tcp else connect_unix(args.socket, any_user=args.any_user) as connection:
        result = run_load(connection, args.fps, args.seconds, args.size or (FRAME_SIZE, FRAME_SIZE))
    say(result.report())
    return 0 if len(result.round_trips_ms) else 1


def _run_bench(args: argparse.Namespace) -> int:
    policy, what = _open_policy(args)
    from p2p_serve.bench import time_steps

    say(what)
    progress = ProgressBar("measuring", policy.config.num_timesteps + args.steps, "frames")
    table = time_steps(policy, args.steps, args.seed, progress.update)
    progress.close()
    say(table)
    return 0


_PARSERS = {
    "serve": _serve_parser,
    "echo": _echo_parser,
    "playback": _playback_parser,
    "loadtest": _loadtest_parser,
    "bench": _bench_parser,
}
_RUNNERS = {
    "serve": _run_serve,
    "echo": _run_echo,
    "playback": _run_playback,
    "loadtest": _run_loadtest,
    "bench": _run_bench,
}

if __name__ == "__main__":
    sys.exit(main())
