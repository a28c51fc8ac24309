"""Recipes are read strictly: what is mistyped is named, with the nearest that exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p.recipe import Recipe, load_recipe, save_recipe

RECIPES = ("doom-tiny", "150M", "300M", "600M", "1200M")


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text("name: small\noptimizer: {lr: 1e-3}\n")
    return path


def test_overrides_reach_nested_keys_and_keep_the_rest(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["optimizer.clip=1", "max_duration=2ba", "data.val={a: x}", "data.val.b=y"])
    assert (recipe.optimizer.lr, recipe.optimizer.clip) == (1e-3, 1.0)
    assert recipe.max_duration == "2ba"
    assert recipe.data.val_sets == {"a": "x", "b": "y"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_duratoin=2ba", "unknown key 'max_duratoin'; did you mean 'max_duration'"),
        ("optimizer.learning=1", "unknown key 'learning' in optimizer"),
        ("data.corruption.replce=0.1", "unknown key 'replce' in data.corruption; did you mean 'replace'"),
        ("optimizer.lr.x=1", "optimizer.lr is a value, not a section"),
        ("max_duration", "expected key=value"),
        ("max_duration=2", "expected str, got 2"),
        ("max_duration=2min", "write a number of updates such as 600ba"),
        ("seed=[1", "not a YAML value"),
        ("optimizer.lr=-1", "optimizer.lr is -1.0"),
        ("policy.num_heads=3", "even multiple"),
        ("precision=fp16", "choose one of amp_bf16, fp32"),
        ("data.corruption={replace: 0.7, nothing: 0.6}", "add up to more than 1"),
        ("name=../elsewhere", "name is '../elsewhere'"),
    ],
)
def test_an_override_that_does_not_fit_is_explained_in_one_line(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load_recipe(recipe_file, [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_key_in_the_file_names_the_file_and_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\noptimiser: {lr: 1e-3}\n")
    with pytest.raises(ValueError, match=r"bad\.yaml: unknown key 'optimiser'; did you mean 'optimizer'"):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.yaml: no such file"):
        load_recipe(tmp_path / "absent.yaml")


def test_data_paths_come_from_the_environment(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("P2P_TRAIN", str(tmp_path))
    assert load_recipe(repository / "recipes" / "150M.yaml").data.train == str(tmp_path)
    monkeypatch.delenv("P2P_TRAIN")
    assert load_recipe(repository / "recipes" / "150M.yaml").data.train is None


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_being_written_and_read(repository: Path, name: str, tmp_path: Path) -> None:
    recipe = load_recipe(repository / "recipes" / f"{name}.yaml")
    assert recipe.name == name
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize(
    ("name", "chunks_per_gpu", "lr"), [("150M", 10, 1e-4), ("300M", 8, 1e-4), ("600M", 8, 1e-4), ("1200M", 5, 3e-5)]
)
def test_the_four_recipes_train_as_the_original_did(
    repository: Path, name: str, chunks_per_gpu: int, lr: float
) -> None:
    recipe = load_recipe(repository / "recipes" / f"{name}.yaml")
    assert recipe.global_batch == 8 * chunks_per_gpu
    assert recipe.optimizer.lr == lr
    assert recipe.optimizer.betas == (0.9, 0.999)
    assert recipe.optimizer.weight_decay == 1e-4
    assert recipe.optimizer.clip is None
    assert recipe.schedule.shape == "constant"
    assert recipe.schedule.warmup == 0
    assert recipe.max_duration == "500000ba"
    assert recipe.policy.num_timesteps == 200


def test_the_run_folder_is_named_by_the_recipe(recipe_file: Path) -> None:
    assert load_recipe(recipe_file).checkpoint_path == Path("runs/small/checkpoints")
    assert load_recipe(recipe_file, ["run_folder=x", "save_folder=s3://b/c"]).checkpoint_path == Path("x/checkpoints")
    assert Recipe(name="small", save_folder="elsewhere").checkpoint_path == Path("elsewhere")
