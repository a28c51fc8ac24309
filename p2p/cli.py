"""The `p2p` command: `p2p COMMAND ...`.

Each command lives in a module of its own that is loaded only when the command is typed, so that
`p2p --help` is quick and a command needs only its own extra. Such a module has
`add_arguments(parser)` and `run(args) -> int`; the two programs that are distributions of their own, p2p-convert and
p2p-serve, have `main(argv) -> int` and are commands too.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from p2p.console import USER_ERROR, fail, log_to_stderr, reader_is_gone, say

INTERRUPTED = 130


@dataclass(frozen=True)
class Command:
    """Where a command lives and what it is for, in one line of the help.

    `is_program`: the module has `main(argv) -> int`, and sees to its options, logging and errors itself.
    """

    module: str
    summary: str
    is_program: bool = False


COMMANDS = {
    "demo": Command("p2p.demo", "everything once: record, convert, train, serve, play, report"),
    "doctor": Command("p2p.doctor", "what is installed, which device is used, what is missing"),
    "download": Command("p2p.download", "released weights and the public dataset from the Hub"),
    "upload": Command("p2p.upload", "a policy or shards to the Hub, with a card"),
    "record": Command("p2p.play.record", "record the play of a scripted player, or of a person in a window"),
    "repair": Command("p2p.play.repair", "make whole what a kill or a full disk left of recordings"),
    "convert": Command("p2p_convert.cli", "recordings into shards (also: p2p-convert)", is_program=True),
    "train": Command("p2p.train.command", "train a policy by a recipe"),
    "serve": Command("p2p_serve.cli", "a policy behind a socket, in real time (also: p2p-serve)", is_program=True),
    "play": Command("p2p.play.command", "play episodes of a game through a running server"),
    "bench": Command("p2p.bench.command", "a policy on suites of games, beside an expert and controls"),
    "export": Command("p2p.train.export", "a training checkpoint into a policy folder"),
    "import": Command("p2p.model.import_command", "a released .ckpt into a policy folder"),
    "export-dataset": Command("p2p_convert.export_dataset", "shards into a LeRobot dataset, for its viewers"),
    "flops": Command("p2p.train.flops", "parameters, FLOPs, memory and hours of a recipe"),
    "validate": Command("p2p.evaluate.validate", "every checkpoint of a folder on held-out recordings"),
    "evaluate": Command("p2p.evaluate.evaluate", "offline report of one policy beside its baselines"),
    "causality": Command("p2p.evaluate.causality", "does the policy look, or copy its own past?"),
    "view": Command("p2p.evaluate.view", "a recording with its actions and a policy's: video or page"),
}

# Which extra of pixel2play brings an import that a command may miss.
EXTRA_OF_MODULE = {
    "av": "data",
    "composer": "train",
    "gymnasium": "play",
    "huggingface_hub": "hub",
    "matplotlib": "plot",
    "PIL": "plot",
    "pyarrow": "hub",
    "streaming": "data",
    "torchvision": "train",
    "vizdoom": "play",
    "wandb": "train",
    "Xlib": "play",
    "xxhash": "data",
    "zstandard": "data",
}
DISTRIBUTION_OF_MODULE = {"p2p_convert": "p2p-convert", "p2p_serve": "p2p-serve"}


def _overview() -> str:
    lines = ["usage: p2p COMMAND [options]     (p2p COMMAND --help: the options of one command)", ""]
    width = max(map(len, COMMANDS))
    lines += [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(lines)


def _missing_module_message(error: ModuleNotFoundError) -> str | None:
    """What to install, or None when the missing module is not one of an extra."""
    root = (error.name or "").partition(".")[0]
    if root in EXTRA_OF_MODULE:
        extra = EXTRA_OF_MODULE[root]
        return f"the module {root!r} is not installed; it comes with: pip install 'pixel2play[{extra}]'"
    if root in DISTRIBUTION_OF_MODULE:
        name = DISTRIBUTION_OF_MODULE[root]
        folder = name.removeprefix("p2p-")
        return f"the package {root!r} is not installed; pip install {name} (from a checkout: pip install . ./{folder})"
    return None


def _load(name: str) -> ModuleType:
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see p2p --help"
        raise ValueError(f"unknown command {name!r}; {hint}")
    return importlib.import_module(COMMANDS[name].module)


def _run(name: str, arguments: Sequence[str]) -> int:
    module = _load(name)
    if COMMANDS[name].is_program:
        status: int = module.main(arguments)
        return status
    log_to_stderr(logging.INFO)
    parser = argparse.ArgumentParser(prog=f"p2p {name}", description=COMMANDS[name].summary)
    module.add_arguments(parser)
    result: int = module.run(parser.parse_args(arguments))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 2 for a user's error, or what the command says."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        say(_overview())
        return 0 if arguments else USER_ERROR
    if arguments[0] == "--version":
        from p2p import __version__

        say(f"p2p {__version__}")
        return 0
    try:
        return _run(arguments[0], arguments[1:])
    except ModuleNotFoundError as error:
        message = _missing_module_message(error)
        if message is None:
            raise
        return fail(message)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        return reader_is_gone()
    except (ValueError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
