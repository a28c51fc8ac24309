"""`p2p evaluate` and `p2p causality` from the command line to the page."""

import json
import re
from pathlib import Path

import pytest

from p2p.cli import main


@pytest.fixture(scope="module")
def report(policy_folder: Path, stream_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    command = ["evaluate", str(policy_folder), "--data", str(stream_folder), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--free-chunks", "3", "--causality-repeats", "1"]) == 0
    return out


def test_every_metric_stands_beside_its_baselines(report: Path) -> None:
    columns = json.loads((report / "report.json").read_text())["columns"]
    assert list(columns) == ["policy", "policy, free-running", "repeat previous", "frequencies", "mean"]
    assert columns["repeat previous"]["key_f1"]["value"] > 0.8
    assert columns["repeat previous"]["key_onset_f1"]["value"] == 0
    assert 1 < columns["repeat previous"]["perplexity"]["value"] < columns["frequencies"]["perplexity"]["value"]
    assert columns["policy"]["perplexity"]["low"] <= columns["policy"]["perplexity"]["value"]
    assert "perplexity" not in columns["policy, free-running"]
    assert columns["mean"]["mouse_x/correlation"]["value"] is None


def test_the_page_needs_no_other_file(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert "repeat previous" in page
    assert "Causality score" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert (report / "report.png").stat().st_size < 300_000


def test_causality_from_the_command_line(
    policy_folder: Path, stream_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["causality", str(policy_folder), "--data", str(stream_folder), "--device", "cpu"]
    assert main([*command, "--chunks", "4", "--repeats", "2"]) == 0
    score, std = re.search(r"causality ([\d.]+) \+- ([\d.]+)", capsys.readouterr().out).groups()  # type: ignore[union-attr]
    assert float(score) >= 0
    assert float(std) >= 0


def test_a_folder_of_streams_is_pointed_at(
    policy_folder: Path, stream_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(policy_folder), "--data", str(stream_folder.parent)]) == 2
    assert f"did you mean {stream_folder}?" in capsys.readouterr().err
