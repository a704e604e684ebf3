"""What the doctor says about a classifier that can only be asked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.pinned.black_box import Asked
from configs.schema import resolve_run
from counterfactory.models.wrapping.black_box import BlackBox
from pipelines.doctor.black_box import check_black_box
from pipelines.doctor.job import doctor
from pipelines.run import run
from tests.counterfactory.models.wrapping.model_servers import Faults
from tests.pipelines.generate.test_black_box_run import biased as biased  # fixtures
from tests.pipelines.generate.test_black_box_run import config, settings
from tests.pipelines.generate.test_black_box_run import here as here
from tests.pipelines.generate.test_black_box_run import served as served


def said(run_config: Any, level: str | None = None) -> list[str]:
    found = doctor(run_config)
    return [str(one) for one in found if level is None or one.level == level]


def test_it_times_a_black_box_and_says_what_a_run_will_ask(
    here: Path, faces: Path, served: Any
) -> None:
    told = Faults()
    lines = said(config(served(told), faces, max_queries=5000))
    text = "\n".join(lines)
    assert "a black box (kserve) at http://127.0.0.1:" in text
    assert "which gives scores; at most 5,000 images a command, 4 requests at a time" in text
    assert "models.classifier: answers requests of 1 in " in text
    assert "states version 3, and gives the same twice" in text
    assert "up to 19 queries a row, 228 for 12 rows" in text
    assert "untrained" not in text
    assert not [line for line in lines if line.startswith("problem")]


def test_it_names_another_model_than_the_runs(
    here: Path, faces: Path, served: Any, biased: Any
) -> None:
    run(config(served(), faces), stages=("generate",))
    other = served(predict=lambda pixels: biased(np.asarray(pixels)[..., ::-1]))
    assert any(
        "than the run was started with" in one for one in said(config(other, faces), "problem")
    )


class Slow:
    """An adapter whose time grows with the square of the images."""

    rows: int | None = None

    def predict(self, images: np.ndarray) -> np.ndarray:
        time.sleep(0.01 * len(images) ** 2)
        return np.full((len(images), 2), 0.5)

    def version(self) -> str | None:
        return None


def test_it_warns_of_requests_that_are_slower_when_larger(here: Path, faces: Path) -> None:
    box = BlackBox(Slow(), classes=["a", "b"], rows=4)
    model = Asked(box, "classifier", None, 0)
    found = check_black_box(config("http://h", faces), "classifier", model, torch.zeros(3, 3, 8, 8))
    lines = [str(one) for one in found]
    assert "larger requests are slower" in lines[1]
    assert "set ask.batch: 1" in lines[1]


def test_it_reports_a_server_that_is_away_and_a_method_that_needs_gradients(
    here: Path, faces: Path
) -> None:
    raw = settings("http://127.0.0.1:9", faces, retries=0) | {"method": "fgsm-demo"}
    problems = "\n".join(said(resolve_run(raw, [], "test"), "problem"))
    assert "no connection" in problems
    assert "FGSM needs the classifier's gradients" in problems
