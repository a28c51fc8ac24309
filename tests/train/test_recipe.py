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
        ("max_duration=20", "max_duration is 20; write 20ba (updates) or 20ep (epochs)"),
        ("save_interval=20", "save_interval is 20; write 20ba (updates)"),
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


def test_a_recipe_takes_nothing_from_the_environment(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2P_SECRET", "hunter2")
    path = tmp_path / "stranger.yaml"
    path.write_text("name: stranger\nsave_folder: s3://${oc.env:P2P_SECRET}/x\n")
    with pytest.raises(ValueError, match=r"stranger\.yaml: save_folder: .* is an interpolation") as error:
        load_recipe(path)
    assert "hunter2" not in str(error.value)
    with pytest.raises(ValueError, match="is an interpolation") as error:
        load_recipe(recipe_file, ["data.train=${oc.env:P2P_SECRET}"])
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=.nan", ".nan is no finite number"),
        ("optimizer.lr='nan'", "nan is no finite number"),
        ("optimizer.clip=.inf", ".inf is no finite number"),
        ("optimizer.weight_decay=1e999", "no finite number"),
        ("policy.sampling.temperature=.inf", ".inf is no finite number"),
        ("optimizer.betas=[0.9, .nan]", ".nan is no finite number"),
        ("data.num_workers=1000000000", "data.num_workers is 1000000000; expected a whole number in 0..1024"),
        ("seed=5000000000", "expected a whole number in 0..4294967295"),
        ("global_batch=0", "expected a whole number in 1.."),
        ("policy.num_layers=1000000000", "policy.num_layers is 1000000000; expected a whole number in 1..256"),
        ("parallel.timeout_s=0", "parallel.timeout_s"),
        ("max_duration=99999999999999ba", "write a number of updates"),
        ("data.train=\x1b[2J", "'data.train=\\x1b[2J'"),
        ('data.train="\\x1b[2J"', "control characters"),
        ("data.val=*x", "aliases (*) are not read"),
        ("data.val=!!python/name:os.system ''", "the tag"),
    ],
)
def test_a_value_that_would_break_a_run_is_refused_before_it_starts(
    recipe_file: Path, override: str, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        load_recipe(recipe_file, [override])
    assert message in str(error.value)
    assert str(error.value).isprintable()


def test_a_recipe_of_the_project_is_known_by_its_bare_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("150M").name == "150M"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("name: mine\n")
    assert load_recipe("mine").name == "mine"
    (tmp_path / "300M").mkdir()  # such as a folder of weights
    assert load_recipe("300M").name == "300M"
    with pytest.raises(ValueError, match=r"recipe '170M': expected the path of a \.yaml file, or one of 1200M, 150M"):
        load_recipe("170M")


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
