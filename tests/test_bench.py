"""`moonlet bench` finds the script that a name means, hands the options on, and says where there are none."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from moonlet import bench
from moonlet.cli import app
from moonlet.errors import InputError

SCRIPT = "import sys; print(sys.argv); sys.exit(len(sys.argv) - 1)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("kda_layer", "llama_cpp", "train", "train_step"):
        (tmp_path / f"{name}.py").write_text(SCRIPT)
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "script"),
    [("kda", "kda_layer"), ("llama.cpp", "llama_cpp"), ("train-step", "train_step"), ("train", "train")],
)
def test_name_of_a_script(folder: Path, name: str, script: str, capfd: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(app, ["bench", name, "--repeats", "3", "-x"])
    assert done.exit_code == 3
    assert capfd.readouterr().out.strip() == str([str(folder / f"{script}.py"), "--repeats", "3", "-x"])


@pytest.mark.parametrize("name", ["", "t", "gpu", "../kda_layer"])
def test_no_such_script(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match="not one of kda_layer, llama_cpp, train, train_step"):
        bench.main(name, [])


def test_an_installed_package_has_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "FOLDER", folder / "nowhere")
    with pytest.raises(InputError, match="checkout"):
        bench.main("kda", [])


def test_the_scripts_of_the_checkout() -> None:
    assert {"roofline", "kda_layer", "train_step", "decode"} <= {path.stem for path in bench.FOLDER.glob("*.py")}
