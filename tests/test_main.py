"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vtlite.__main__ import main


def vtlite(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vtlite", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        encoding="utf-8",
    )


def test_tour_writes_table_json_csv_and_figure(tmp_path: Path) -> None:
    done = vtlite(
        "tour",
        "--methods",
        "linear,bitfit",
        "--task",
        "shapes-count",
        "--epochs",
        "1",
        "--json",
        "a/t.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "a/t.json").read_text(encoding="utf-8"))
    methods = ["finetuning/linear", "parameter/bias/bitfit", "two_towers/zero_shot"]
    assert [row["method"] for row in rows] == methods
    assert all(f"{row['trainable']:,}" in done.stdout for row in rows)
    assert (tmp_path / "out/tour.csv").read_text(encoding="utf-8").count("\n") == 4
    assert (tmp_path / "out/tour.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tour", "--methods", "lorra"], "unknown method 'lorra': did you mean 'lora'"),
        (["tour", "--task", "twemojis"], "unknown task 'twemojis': did you mean 'twemoji'"),
        (
            ["tour", "--backbone", "vtlite-tinny"],
            "unknown backbone 'vtlite-tinny': did you mean 'vtlite-tiny'",
        ),
        (["tour", "--methods", "linear", "--epochs", "0"], "epochs"),
        (["tour", "--figure", "x.exe"], "expected a figure that ends in"),
        (["list", "--group", "adaptor"], "did you mean 'adapter'"),
        (["show", "lorra"], "did you mean 'lora'"),
        (["data", "show", "digit"], "did you mean 'digits'"),
        (
            ["data", "build", "--packages", "no", "--fashion", "no"],
            "expected the source file",
        ),
        (["pretrain", "--name", "vit_tiny"], "unknown backbone 'vit_tiny'"),
        (["data", "show", "digits", "--figure", "x.nope"], "expected a figure that ends in .png"),
        (["tour", "--epochs", "0"], "expected epochs of at least 1, found 0"),
        (["tour", "--json", "/proc/no/x.json"], "check the path and its permissions"),
        (["bench", "--workers", "0"], "expected workers of at least 1, found 0"),
        (["classroom", "release"], "expected notebooks in solutions, found none"),
        (
            ["classroom", "grade", "nowhere"],
            "expected a folder of submissions, found none at nowhere",
        ),
    ],
)
def test_a_mistake_is_one_sentence_without_traceback(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ")
    assert sentence in error[-1]
    assert "Traceback" not in "\n".join(error)


def test_an_interruption_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vtlite.__main__._run", interrupted)
    assert main(["list"]) == 130
    assert "none is half written" in capsys.readouterr().err


def test_data_list_and_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "list"]) == 0
    assert "shapes-count: Classification, structured;" in capsys.readouterr().out
    assert main(["data", "show", "shapes-count"]) == 0
    assert (tmp_path / "out/shapes-count.png").is_file()
