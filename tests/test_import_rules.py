"""Who may import whom, read from the source and seen in running processes; docs/architecture.md says why."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = {
    "p2p": REPOSITORY / "p2p",
    "p2p_convert": REPOSITORY / "convert" / "p2p_convert",
    "p2p_serve": REPOSITORY / "serve" / "p2p_serve",
}
OURS = tuple(PACKAGES)
TRAINER = ("composer", "wandb")
LIGHT = (*TRAINER, "torch", "torchvision", "streaming", "vizdoom")


@dataclass(frozen=True)
class Rule:
    """`may`: the modules of ours (with all below them) that a module may import; `never`: packages of others."""

    may: tuple[str, ...]
    never: tuple[str, ...] = ()


# What everybody may import: the checks of what comes from outside, the writing of files, the words to a person.
COMMON = ("p2p.gate", "p2p.files", "p2p.manifest", "p2p.plain_yaml", "p2p.console")

# The longest name that a module starts with decides. Everything may import from its own package, `p2p` itself, COMMON.
RULES = {
    "p2p": Rule((), LIGHT),
    "p2p.__main__": Rule(("p2p.cli",), LIGHT),
    "p2p.gate": Rule((), (*LIGHT, "av")),
    "p2p.files": Rule((), (*LIGHT, "av")),
    "p2p.manifest": Rule((), (*LIGHT, "av")),
    "p2p.plain_yaml": Rule((), (*LIGHT, "av")),
    "p2p.console": Rule((), (*LIGHT, "av")),
    "p2p.proto": Rule((), (*LIGHT, "av")),
    "p2p.actions": Rule((), (*LIGHT, "av")),
    "p2p.config": Rule(("p2p.actions",), (*LIGHT, "av")),
    "p2p.protocol": Rule(("p2p.actions", "p2p.proto"), (*LIGHT, "av")),
    "p2p.sockets": Rule((), (*LIGHT, "av")),
    "p2p.recording": Rule(("p2p.actions", "p2p.proto", "p2p.config"), LIGHT),
    "p2p.format": Rule(("p2p.actions", "p2p.proto", "p2p.config", "p2p.recording"), (*LIGHT, "av")),
    "p2p.recipe": Rule(("p2p.actions", "p2p.config"), LIGHT),
    "p2p.object_storage": Rule((), (*LIGHT, "av")),
    "p2p.storage": Rule(("p2p.object_storage",), (*LIGHT, "av")),
    "p2p.checkpoints": Rule(
        ("p2p.config", "p2p.model", "p2p.object_storage", "p2p.storage"), (*TRAINER, "streaming", "vizdoom", "av")
    ),
    "p2p.game_names": Rule((), (*LIGHT, "av")),
    "p2p.parquet": Rule((), (*LIGHT, "av")),
    "p2p.text": Rule((), (*TRAINER, "streaming", "vizdoom", "av")),
    "p2p.model": Rule(
        ("p2p.actions", "p2p.config", "p2p.data.resize", "p2p.text"),
        (*TRAINER, "streaming", "vizdoom", "av", "matplotlib"),
    ),
    "p2p.model.opening": Rule(("p2p.config", "p2p.hub", "p2p.model"), (*TRAINER, "streaming", "vizdoom", "av")),
    "p2p.model.import_command": Rule(("p2p.config", "p2p.model", "p2p.recipe"), (*TRAINER, "streaming", "av")),
    "p2p.data": Rule(("p2p.actions", "p2p.config", "p2p.format", "p2p.object_storage"), (*TRAINER, "vizdoom")),
    "p2p.data.resize": Rule((), (*LIGHT, "av")),
    "p2p.train": Rule(
        (
            "p2p.actions",
            "p2p.checkpoints",
            "p2p.config",
            "p2p.data",
            "p2p.evaluate",
            "p2p.format",
            "p2p.model",
            "p2p.object_storage",
            "p2p.proto",
            "p2p.recipe",
            "p2p.recording",
        ),
        ("vizdoom",),
    ),
    "p2p.evaluate": Rule(
        (
            "p2p.actions",
            "p2p.checkpoints",
            "p2p.config",
            "p2p.data",
            "p2p.format",
            "p2p.model",
            "p2p.object_storage",
            "p2p.recording",
            "p2p.storage",
        ),
        ("composer", "vizdoom"),
    ),
    "p2p.processes": Rule((), (*TRAINER, "torch", "streaming", "vizdoom", "av")),
    "p2p.desktop": Rule(("p2p.actions", "p2p.processes"), (*TRAINER, "torch", "streaming", "vizdoom", "av")),
    "p2p.levels": Rule(("p2p.actions",), (*LIGHT, "av")),
    "p2p.environments": Rule(
        ("p2p.actions", "p2p.config", "p2p.data.resize", "p2p.desktop", "p2p.levels", "p2p.processes"),
        (*TRAINER, "torch", "streaming", "av"),
    ),
    "p2p.agents": Rule(
        ("p2p.actions", "p2p.environments", "p2p.processes", "p2p.protocol", "p2p.sockets"),
        (*TRAINER, "torch", "streaming", "vizdoom", "av"),
    ),
    "p2p.play": Rule(
        (
            "p2p.actions",
            "p2p.agents",
            "p2p.config",
            "p2p.environments",
            "p2p.processes",
            "p2p.recording",
            "p2p.text",
        ),
        (*TRAINER, "torch", "streaming", "vizdoom"),
    ),
    "p2p.bench": Rule(
        ("p2p.actions", "p2p.agents", "p2p.environments", "p2p.play", "p2p.processes"),
        (*TRAINER, "torch", "streaming", "vizdoom", "av"),
    ),
    "p2p.doctor": Rule((), (*TRAINER, "streaming", "vizdoom")),
    "p2p.hub": Rule(("p2p.config", "p2p.game_names", "p2p.parquet"), LIGHT),
    "p2p.download": Rule(("p2p.hub", "p2p.model"), LIGHT),
    "p2p.upload": Rule(("p2p.actions", "p2p.format", "p2p.hub", "p2p.model"), LIGHT),
    "p2p.demo": Rule(("p2p", "p2p_serve", "p2p_convert"), ("composer", "streaming")),
    "p2p_convert": Rule(
        (
            "p2p.actions",
            "p2p.config",
            "p2p.data.resize",
            "p2p.data.video",
            "p2p.format",
            "p2p.game_names",
            "p2p.hub",
            "p2p.object_storage",
            "p2p.parquet",
            "p2p.proto",
            "p2p.recording",
            "p2p.storage",
        ),
        (*TRAINER, "vizdoom"),
    ),
    "p2p_serve": Rule(
        (
            "p2p.actions",
            "p2p.config",
            "p2p.data.resize",
            "p2p.model",
            "p2p.proto",
            "p2p.protocol",
            "p2p.recording",
            "p2p.sockets",
            "p2p.text",
        ),
        (*TRAINER, "streaming", "vizdoom", "torchvision"),
    ),
}


def table_of_rules() -> str:
    """RULES as the table of docs/architecture.md: modules with the same rule share a row."""
    rows: dict[Rule, list[str]] = {}
    for module, rule in RULES.items():
        rows.setdefault(rule, []).append(module)
    lines = ["| modules | may import of ours | never import |", "|---|---|---|"]
    for rule, names in rows.items():
        cells = [", ".join(f"`{name}`" for name in column) or "–" for column in (names, rule.may, sorted(rule.never))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name; the generated ones of p2p.proto are left out."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            if not name.endswith("_pb2"):
                found[name] = path
    return found


MODULES = modules()


def is_below(name: str, ancestor: str) -> bool:
    return name == ancestor or name.startswith(ancestor + ".")


def imported_names(source: str, module: str, is_package: bool = False) -> set[str]:
    """The dotted names that the source imports anywhere; `from p2p import actions` gives p2p.actions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
                base = ".".join([*parents, base]).rstrip(".")
            below = {f"{base}.{alias.name}" for alias in node.names}
            names |= {name for name in below if name in MODULES} or {base}
    return names


def violations(module: str, names: set[str]) -> list[str]:
    """What the rules forbid among the names that a module imports."""
    owner = max((name for name in RULES if is_below(module, name)), key=len)
    rule = RULES[owner]
    own = owner if owner != "p2p" else module
    wrong = []
    for name in sorted(names):
        if name.partition(".")[0] in OURS:
            allowed = name in ("p2p", *COMMON) or any(is_below(name, may) for may in (own, *rule.may))
        else:
            allowed = name.partition(".")[0] not in rule.never
        if not allowed:
            wrong.append(f"{module} imports {name}")
    return wrong


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_what_it_may(module: str) -> None:
    path = MODULES[module]
    names = imported_names(path.read_text(), module, path.name == "__init__.py")
    assert violations(module, names) == []


def imports_of_ours() -> dict[str, set[str]]:
    """Each module's imports among ours, those inside functions and for types included.

    Left out is `p2p` itself: its names load on demand, and everybody may ask it for the version.
    """
    graph = {}
    for module, path in MODULES.items():
        names = imported_names(path.read_text(), module, path.name == "__init__.py")
        graph[module] = (names & MODULES.keys()) - {module, "p2p"}
    return {module: names for module, names in graph.items() if module != "p2p"}


def package_of(module: str) -> str:
    """`p2p.model.cache` belongs to `p2p.model`, `p2p.gate` is its own, `p2p_serve.app` belongs to `p2p_serve`."""
    first, *rest = module.split(".")
    return f"{first}.{rest[0]}" if first == "p2p" else first


def imports_of_packages(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    packages: dict[str, set[str]] = {package_of(module): set() for module in graph}
    for module, names in graph.items():
        packages[package_of(module)] |= {package_of(name) for name in names} - {package_of(module)}
    return packages


def cycles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The largest sets of nodes that all reach one another."""
    reach = {node: set(names) for node, names in graph.items()}
    grows = True
    while grows:
        grows = False
        for names in reach.values():
            more = set().union(*(reach[name] for name in names)) - names if names else set()
            names |= more
            grows |= bool(more)
    return {
        frozenset({node, *(n for n in names if node in reach[n])}) for node, names in reach.items() if node in names
    }


def test_no_modules_import_one_another() -> None:
    assert cycles(imports_of_ours()) == set()


def test_no_packages_import_one_another() -> None:
    assert cycles(imports_of_packages(imports_of_ours())) == set()


def test_a_cycle_is_found_however_long_it_is() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": set(), "f": {"f"}}
    assert cycles(graph) == {frozenset("abc"), frozenset("f")}


def test_every_module_of_the_rules_exists() -> None:
    assert [module for module in RULES if module not in MODULES] == []


def test_the_page_on_the_architecture_shows_these_rules() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    assert table_of_rules() in page, "write what this prints into the page: python tests/test_import_rules.py"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("p2p.actions", "import torch"),
        ("p2p.model.policy", "from p2p.data import batch"),
        ("p2p.model.policy", "def f():\n    import composer.core"),
        ("p2p.data.dataset", "from ..model import policy"),
        ("p2p.play.rollout", "from p2p import train"),
        ("p2p_serve.server", "from p2p.data.dataset import GameplayDataset"),
        ("p2p_serve.server", "import streaming"),
        ("p2p.cli", "from p2p.model import load_policy"),
    ],
)
def test_the_rules_find_a_forbidden_import(module: str, source: str) -> None:
    assert len(violations(module, imported_names(source, module))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "p2p.model.policy",
            "from p2p.model.mask import x\nfrom . import cache\nimport torch\nfrom p2p import __version__",
        ),
        ("p2p_serve.server", "from p2p.data.resize import resize\nfrom p2p.model import load_policy"),
        ("p2p.recording", "import av\nfrom p2p import actions"),
    ],
)
def test_the_rules_let_a_permitted_import_pass(module: str, source: str) -> None:
    assert violations(module, imported_names(source, module)) == []


def loaded_roots(*imports: str) -> set[str]:
    """The top-level packages that a fresh process has loaded after importing these modules."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {imports!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/")
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_the_server_loads_no_trainer_loader_decoder_or_game() -> None:
    server = [name for name in MODULES if is_below(name, "p2p_serve") and not name.endswith("__main__")]
    loaded = loaded_roots(*server)
    assert "p2p_serve" in loaded
    assert loaded & {"composer", "streaming", "wandb", "av", "vizdoom", "torchvision", "transformers"} == set()


def test_the_core_loads_no_torch() -> None:
    names = (
        "gate",
        "files",
        "manifest",
        "actions",
        "config",
        "protocol",
        "format",
        "recipe",
        "object_storage",
        "data.resize",
    )
    core = [f"p2p.{name}" for name in names]
    assert loaded_roots(*core) & {*LIGHT, "av"} == set()
    assert loaded_roots("p2p") & {*LIGHT, "av", "numpy"} == set()


def test_the_commands_load_nothing_heavy_before_they_run() -> None:
    from p2p.cli import COMMANDS

    heavy = {*LIGHT, "av", "matplotlib", "pyarrow", "huggingface_hub"}
    of_model = {command.module for command in COMMANDS.values() if is_below(command.module, "p2p.model")}
    others = {command.module for command in COMMANDS.values() if not command.is_program} - of_model
    assert loaded_roots("p2p.cli", *others) & heavy == set()
    assert loaded_roots("p2p.cli", *of_model) & heavy == {"torch"}, "p2p.model is torch, and nothing else"


def test_no_file_is_longer_than_five_hundred_lines() -> None:
    files = [*MODULES.values(), *(REPOSITORY / "tests").rglob("*.py")]
    too_long = {str(path): lines for path in files if (lines := len(path.read_text().splitlines())) > 500}
    assert too_long == {}


if __name__ == "__main__":
    print(table_of_rules(), end="")
