"""The README tells the truth: its example runs."""

import contextlib
import io
import re
from pathlib import Path

import yaml

from bandolero import load_experiment

README = Path(__file__).parents[1] / "README.md"


def block(language: str) -> str:
    """The README's first block of a language."""
    found = re.search(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_example_runs_and_finds_the_better_variant() -> None:
    """The README's example ends with most of the traffic on the better variant."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block("python"), "README.md", "exec"), {})
    shares, decision = out.getvalue().splitlines()
    assert float(re.findall(r"'urgent': ([\d.]+)", shares)[0]) > 0.9
    assert decision.startswith("Drawn(arm=")


def test_the_example_is_twenty_lines_or_so() -> None:
    """The example stays readable at a glance."""
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 25


def test_the_experiment_file_is_valid() -> None:
    """The README's experiment file loads."""
    experiment = load_experiment(block("yaml").encode())
    assert experiment.variant_ids == ["v1", "v2"]
    assert yaml.safe_load(block("yaml"))["allocation"]["holdout_share"] == 0.05
