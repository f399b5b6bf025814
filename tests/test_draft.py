"""`moonlet draft`: what it writes is a draft that the engine takes up, and what it cannot train on it says."""

from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_model_folder
from typer.testing import CliRunner

from moonlet import draft
from moonlet.cli import app
from moonlet.data.shards import one_a_row
from moonlet.engine.draft import FILE, load_draft
from moonlet.engine.load import load
from moonlet.errors import InputError


def test_trains_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model_folder(tmp_path)
    ids = np.random.default_rng(0).integers(0, 280, (20, 24)).tolist()
    one_a_row([(row, [1] * 24) for row in ids], 24).save(tmp_path / "data" / "sft-tool")
    one_a_row([(row[:8], [1] * 8) for row in ids], 8).save(tmp_path / "data" / "sft-short")
    assert draft.conversations(folder).seq_len == 24
    monkeypatch.setattr(draft, "HELD_OUT", 4)
    done = CliRunner().invoke(app, ["draft", str(folder), "--steps", "2"])
    assert done.exit_code == 0, done.output
    said = done.output.splitlines()
    assert said[0].startswith("step 2 of 2: loss ") and said[1].startswith("held out, accepted, by place: 0.")
    assert len(said[1].split(", ")) == draft.UNROLLED + 2
    model = load(folder)[0]
    assert load_draft(folder, model) is not None
    CliRunner().invoke(app, ["draft", str(folder), "--steps", "2", "--out", str(tmp_path / "again")])
    assert (tmp_path / "again").read_bytes() == (folder / FILE).read_bytes()


def test_a_model_without_its_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no sft-.* rows to train on"):
        draft.main(tiny_model_folder(tmp_path), None, 1)
