"""What the documents tell people to type exists: make targets, commands with their options, recipes, linked files."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from p2p.cli import COMMANDS

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PROGRAMS = ("make", "p2p", "composer", "p2p-convert", "p2p-serve")


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


@pytest.mark.parametrize("line", command_lines("p2p"))
def test_documented_p2p_commands_parse(line: str) -> None:
    name, *arguments = shlex.split(line)[1:]
    assert name in COMMANDS
    parser = argparse.ArgumentParser(prog=f"p2p {name}")
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    parser.parse_args(arguments)


@pytest.mark.parametrize("line", command_lines("composer"))
def test_documented_training_commands_name_a_recipe_that_reads(line: str) -> None:
    from p2p.recipe import load_recipe

    words = shlex.split(line)
    recipe, *overrides = words[words.index("launch") + 1 :]
    overrides = [word for word in overrides if not word.startswith("[") and "..." not in word]
    assert load_recipe(str(REPOSITORY / recipe), overrides).name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert missing == []


def test_the_readme_shows_the_two_commands_on_its_first_screen() -> None:
    first_screen = "\n".join((REPOSITORY / "README.md").read_text().splitlines()[:60])
    assert "$ make demo" in first_screen
    assert "$ make test" in first_screen
