"""What the documents tell people to type exists: make targets, commands with their options, recipes, linked files."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

import p2p_convert.cli
import p2p_serve.cli
from p2p.cli import COMMANDS
from p2p.recipe import load_recipe

REPOSITORY = Path(__file__).resolve().parent.parent
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
DOCUMENTS = [*(REPOSITORY / name for name in TOP), *sorted((REPOSITORY / "docs").glob("*.md"))]
PROGRAMS = ("make", "p2p", "p2p-serve")


def typed_lines(document: Path) -> list[str]:
    """The lines of code blocks that begin with one of our programs, without comments and continuation marks.

    Blocks fenced as ```text hold pictures and output, and are left out.
    """
    lines = []
    without_text = re.sub(r"^```text\n.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in without_text.replace("\\\n", " ").splitlines():
        text = re.sub(r"^(    |\t)*(\$ )?", "", line).strip()
        if line.startswith((" ", "\t", "$", *(f"{program} " for program in PROGRAMS))):
            words = text.split()
            if words and words[0] in PROGRAMS:
                lines.append(re.split(r" # |\s{3,}", text)[0].strip())
    return lines


def command_lines(program: str) -> list[str]:
    return sorted({line for document in DOCUMENTS for line in typed_lines(document) if line.split()[0] == program})


@pytest.mark.parametrize("line", command_lines("make"))
def test_documented_make_targets_exist(line: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    words = [word for word in shlex.split(line)[1:] if "=" not in word and not word.startswith("[")]
    assert set(words) <= targets


@pytest.mark.parametrize("line", command_lines("p2p-serve"))
def test_documented_servers_parse(line: str) -> None:
    p2p_serve.cli.parse(shlex.split(re.split(r"\s{2,}", line)[0])[1:])


@pytest.mark.parametrize("line", command_lines("p2p"))
def test_documented_p2p_commands_parse(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    assert name in COMMANDS
    if COMMANDS[name].is_program:
        {"serve": p2p_serve.cli.parse, "convert": p2p_convert.cli.parse}[name](arguments)
        return
    parser = argparse.ArgumentParser(prog=f"p2p {name}")
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    args = parser.parse_args(arguments)
    if name == "train":
        assert load_recipe(args.recipe, args.overrides).name


def test_the_documents_show_how_each_recipe_is_trained() -> None:
    trained = {
        words[-1] for line in command_lines("p2p") if (words := shlex.split(line.partition(" data.")[0]))[1] == "train"
    }
    assert {"150M", "300M", "600M", "1200M", "doom-tiny"} <= trained


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert missing == []


def test_the_readme_shows_the_two_commands_on_its_first_screen() -> None:
    first_screen = "\n".join((REPOSITORY / "README.md").read_text().splitlines()[:60])
    assert "$ make demo" in first_screen
    assert "$ make test" in first_screen
