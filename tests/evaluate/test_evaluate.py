"""`p2p evaluate` and `p2p causality` from the command line to the page."""

import dataclasses
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p.actions import HEADS
from p2p.cli import main
from p2p.evaluate.figures import new_figure, plain_log_scale
from p2p.evaluate.metrics import Estimate, bootstrap, calibration_errors
from p2p.evaluate.report import Reliability, Report, page


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


def estimates(**values: float) -> dict[str, Estimate]:
    return {name.replace("__", "/"): Estimate(value, value - 0.01, value + 0.01) for name, value in values.items()}


def made_report(**changes: Any) -> Report:
    columns = {
        "policy": estimates(perplexity=2.0, key_onset_f1=0.3, key_f1=0.7, button_f1=0.1, ece__keys=0.02),
        "repeat previous": estimates(perplexity=3.0, key_onset_f1=0.0, key_f1=0.9, button_f1=0.2, ece__keys=0.02),
        "mean": estimates(perplexity=9.0),
    }
    curves = {head: Reliability((0.5,), (0.4,), (1.0,)) for head in HEADS}
    report = Report("policy", "stream", 4, 100, columns, [], curves, used=("keys", "mouse_x"))
    return dataclasses.replace(report, **changes)


def bold(page: str) -> dict[str, list[int]]:
    """Per row of the first table, which columns stand out."""
    rows = re.findall(r"<tr>(.*?)</tr>", page.split("</table>")[0].split("<tbody>")[1])
    cells = [re.findall(r"<td( class=\"best\")?>(.*?)</td>", row) for row in rows]
    return {row[0][1]: [i for i, (mark, _) in enumerate(row) if mark] for row in cells}


def test_the_best_of_each_row_stands_out_whoever_has_it() -> None:
    shown = bold(page(made_report(), b""))
    assert shown == {
        "perplexity": [1], "key onset F1": [1], "key F1": [2], "calibration error, keys": [1, 2],
    }  # fmt: skip


def test_what_the_recordings_never_use_is_left_out_and_said() -> None:
    text = page(made_report(), b"")
    assert "button F1" not in text
    assert "The recordings never use buttons, mouse y: left out." in text
    assert "button F1" in page(made_report(used=HEADS), b"")


@pytest.mark.parametrize(
    ("perplexity", "onset", "words"),
    [
        (2.0, 0.3, "the policy predicts better .* and finds new presses better"),
        (3.005, 0.3, "the policy predicts about as well .*3.005.*beside 3.000"),
        (4.0, 0.0, "the policy predicts worse .* and finds new presses about as well"),
    ],
)
def test_the_page_opens_with_a_verdict(perplexity: float, onset: float, words: str) -> None:
    columns = dict(made_report().columns) | {"policy": estimates(perplexity=perplexity, key_onset_f1=onset)}
    text = page(made_report(columns=columns), b"")
    assert re.search(f"</h1><p><strong>Beside repeating the previous action, {words}.*?</strong>", text)


def test_a_calibration_error_lies_in_its_own_interval() -> None:
    rng = np.random.default_rng(0)
    tallies = []
    for _ in range(8):  # each recording is off by chance, all together are not
        count = np.full((4, 15), 100.0)
        tallies.append(
            {"bin_count": count, "bin_confidence": 50 + 0 * count, "bin_correct": rng.binomial(100, 0.5, (4, 15))}
        )
    estimate = bootstrap(tallies, calibration_errors)["ece/keys"]
    assert 0 <= estimate.low <= estimate.value <= estimate.high
    assert estimate.high - estimate.low > 0.005


def test_a_curve_within_a_decade_has_plain_numbers_on_its_axis() -> None:
    figure, axes = new_figure(6, 3)
    axes.plot([1, 2], [1.12, 1.6])
    plain_log_scale(axes)
    figure.canvas.draw()
    labels = [label.get_text() for label in (*axes.get_yticklabels(), *axes.get_yticklabels(minor=True))]
    shown = [label for label in labels if label]
    assert shown
    assert all(re.fullmatch(r"[0-9.]+", label) for label in shown), shown


def test_a_long_evaluation_says_how_far_it_is_and_with_which_weight(
    policy_folder: Path, stream_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("p2p.evaluate.evaluate.PROGRESS_S", 0.0)
    caplog.set_level(logging.INFO)
    command = ["evaluate", str(policy_folder), "--data", str(stream_folder), "--device", "cpu", "--chunks", "4"]
    command += ["--free-chunks", "0", "--causality-repeats", "0", "--batch-size", "1"]
    losses = {}
    for weight in ("0", "0.5"):
        assert main([*command, "--out", str(tmp_path / weight), "--z-weight", weight]) == 0
        report = json.loads((tmp_path / weight / "report.json").read_text())
        losses[weight] = report["columns"]["policy"]["loss"]["value"]
        assert f"with a weight of {weight} (--z-weight)" in (tmp_path / weight / "report.html").read_text()
    assert losses["0.5"] > losses["0"] + 1
    assert "teacher-forced: 2 of 4 chunks" in caplog.text
    assert main([*command, "--z-weight", "-1"]) == 2


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
