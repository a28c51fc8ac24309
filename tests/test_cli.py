"""The `p2p` command: its help, its errors, and that it needs no more than the command that was typed."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from p2p import __version__, doctor
from p2p.cli import COMMANDS, EXTRA_OF_MODULE, main
from p2p.train import command as train_command
from p2p_convert.cli import main as p2p_convert
from p2p_serve.cli import main as p2p_serve

SCREEN_LINES = 40


def run_without(missing: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`p2p ...` in a process where one module is not installed."""
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom p2p.cli import main\nsys.exit(main({list(arguments)!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_help_names_every_command_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 100


def test_no_command_is_an_error_that_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: p2p COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["p2p", "p2p-convert", "p2p-serve"])
def test_every_program_tells_its_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    program = {"p2p": main, "p2p-convert": p2p_convert, "p2p-serve": p2p_serve}[name]
    try:
        status = program(["--version"])
    except SystemExit as ended:
        status = ended.code
    assert status == 0
    assert capsys.readouterr().out == f"{name} {__version__}\n"


def test_the_package_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "p2p", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, f"p2p {__version__}\n")


@pytest.mark.parametrize("typed", ["RTX4090", "rtx-4090", "RTX 4090", "NVIDIA GeForce RTX 4090"])
def test_a_gpu_is_known_however_its_name_is_spaced(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", "doom-tiny", "--gpu", typed]) == 0
    assert "x 165 TFLOP/s" in capsys.readouterr().out
    assert main(["flops", "doom-tiny", "--gpu", "Voodoo"]) == 2
    assert "--gpu 'Voodoo' is not known; choose one of" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(name for name, command in COMMANDS.items() if not command.is_program))
def test_the_help_of_each_command_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: p2p {command}")
    assert len(text.splitlines()) <= SCREEN_LINES


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("doktor", "unknown command 'doktor'; did you mean 'doctor'?"),
        ("xyzzy", "unknown command 'xyzzy'; see p2p --help"),
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
    ],
)
def test_an_unknown_command_is_answered_in_one_line(
    typed: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([typed]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("no such thing: 7"), FileNotFoundError(2, "No such file", "there")])
def test_a_users_error_is_one_line_and_status_2(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == f"p2p: error: {error}\n"


def test_our_own_mistake_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise AssertionError("never")

    monkeypatch.setattr(doctor, "run", fail)
    with pytest.raises(AssertionError):
        main(["doctor"])


def test_ctrl_c_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", interrupt)
    assert main(["doctor"]) == 130


def test_a_command_without_its_extra_names_the_extra(tmp_path: Path) -> None:
    result = run_without("huggingface_hub", "download", "model", "150M", "--output", str(tmp_path))
    assert result.returncode == 2
    expected = (
        "p2p: error: the module 'huggingface_hub' is not installed; it comes with: pip install 'pixel2play[hub]'\n"
    )
    assert result.stderr == expected


def test_training_without_its_extra_names_it() -> None:
    result = run_without("composer", "train", "doom-tiny")
    assert result.returncode == 2
    assert result.stderr.endswith("it comes with: pip install 'pixel2play[train]'\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["170M"], "recipe '170M': expected the path of a .yaml file, or one of 1200M, 150M"),
        (["doom-tiny", "max_duratoin=2ba"], "unknown key 'max_duratoin'; did you mean 'max_duration'?"),
        (["-n", "0", "doom-tiny"], "-n is 0; expected a whole number in 1..1024"),
        (["-n", "1000000", "doom-tiny"], "-n is 1000000; expected a whole number in 1..1024"),
    ],
)
def test_a_mistake_about_training_is_told_before_a_process_is_started(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_training_runs_in_any_folder_and_ends_with_the_status_of_its_processes(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('a file of the current folder was run')\n")
    command = [sys.executable, "-P", "-m", "p2p", "train", "doom-tiny", "data.train=absent"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "p2p: error: data.train is 'absent': no such folder" in result.stderr
    assert result.returncode == 2, result.stderr


def test_every_extra_that_an_error_may_name_exists(repository: Path) -> None:
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert set(EXTRA_OF_MODULE.values()) | set(doctor.NEEDS) - {doctor.CORE} <= set(project["optional-dependencies"])


def test_every_command_has_the_functions_of_a_command() -> None:
    for command in COMMANDS.values():
        module = importlib.import_module(command.module)
        for name in ("main",) if command.is_program else ("add_arguments", "run"):
            assert callable(getattr(module, name)), command.module


@pytest.mark.parametrize(
    ("command", "program", "arguments"),
    [
        ("convert", p2p_convert, ["--help"]),
        ("convert", p2p_convert, ["verify", "absent"]),
        ("serve", p2p_serve, ["--help"]),
        ("serve", p2p_serve, ["--policy", "absent"]),
    ],
)
def test_a_program_is_the_same_under_both_of_its_names(
    command: str, program: Callable[[list[str]], int], arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    def answer(run: Callable[[list[str]], int], typed: list[str]) -> tuple[object, str, str]:
        try:
            status: object = run(typed)
        except SystemExit as ended:
            status = ended.code
        return status, *capfd.readouterr()

    expected = answer(program, arguments)
    assert expected[1] + expected[2] != ""
    assert expected[0] == (0 if arguments == ["--help"] else 2)
    assert answer(main, [command, *arguments]) == expected


def test_doctor_tells_device_and_packages_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    topics = {line.split()[1] for line in lines if not line.startswith(" ")}
    assert {"python", "device", "p2p", *doctor.NEEDS} <= topics
    assert any("torch" in line and ("cpu" in line or "cuda" in line) for line in lines)


def test_doctor_says_what_to_install() -> None:
    result = run_without("vizdoom", "doctor")
    assert result.returncode == 0, "the core is there"
    assert "missing: vizdoom (the game)" in result.stdout
    assert "-> pip install 'pixel2play[play]'" in result.stdout


def test_doctor_ends_with_1_when_the_core_is_not_whole() -> None:
    result = run_without("safetensors", "doctor")
    assert result.returncode == 1
    assert "missing: safetensors (weights)" in result.stdout


def test_the_launcher_is_for_several_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def become(program: str, command: list[str], environment: dict[str, str]) -> NoReturn:
        started.append(command[1:])
        sys.exit(0)

    monkeypatch.setattr("os.execve", become)
    monkeypatch.setattr(train_command, "run_processes", lambda command, number, _: started.append([str(number)]))
    training = ["-m", "p2p.train", "doom-tiny", "data.train=x"]
    with pytest.raises(SystemExit):
        main(["train", "-n", "1", *training[2:]])
    main(["train", "-n", "2", *training[2:]])
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SystemExit):
        main(["train", "-n", "2", *training[2:]])
    assert started == [training, ["2"], ["-m", "composer.cli", "-n", "2", *training]]
