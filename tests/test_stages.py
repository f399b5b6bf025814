"""What a run's stages share."""

from pathlib import Path

import pytest

from moonlet import recipe
from moonlet.model.linear import has_bf16
from moonlet.stages import Context

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart.toml"


@pytest.mark.parametrize(("precision", "bf16"), [("auto", has_bf16()), ("fp32", False), ("bf16", True)])
def test_precision(precision: str, bf16: bool, tmp_path: Path) -> None:
    context = Context(recipe.load(QUICKSTART, [f"run.precision={precision}", "run.threads=1"]), tmp_path, {})
    assert context.stepper.bf16 == bf16 and context.manifest == {"precision": "bf16" if bf16 else "fp32"}
    context.close()
