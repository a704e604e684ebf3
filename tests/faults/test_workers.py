"""Workers on Ray are killed or hang, the driver lives: one command ends with every row answered or
set aside.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Job, make_job  # type: ignore[import-not-found]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, str]:
    """A run of two workers, of which one dies on row 1, once; one dies on row 9 every time; one
    hangs on row 18.
    """
    job = make_job(tmp_path_factory.mktemp("ray"))
    once = job.folder / "once"
    once.mkdir()
    job.sets += ["engine.kind=ray", "engine.workers=2", "engine.row_seconds=3"]
    path = str(Path(__file__).parent)
    job.environ |= {"FAULT": "once:1,kill:9,hang:18", "ONCE": str(once), "PYTHONPATH": path}
    code, said = job.run()
    assert code == 0, said
    assert list(once.iterdir())
    return job, said


def test_no_row_is_lost_or_doubled_when_workers_die(hurt: tuple[Job, str]) -> None:
    hurt[0].expect_whole(9, 18)


def test_worker_killed_once_on_ray(hurt: tuple[Job, str]) -> None:
    job, said = hurt
    assert "row-1" in job.answers()
    assert "generate: shard 0: a worker ended over it (1 so far): doing it again" in said


def test_row_that_kills_its_worker_every_time_on_ray(hurt: tuple[Job, str]) -> None:
    job, said = hurt
    assert job.quarantined()["row-9"] == "its worker died on this row"
    assert (
        "generate: shard 2: a worker ended over it (4 so far): going through it row by row" in said
    )


def test_row_that_hangs_on_ray(hurt: tuple[Job, str]) -> None:
    job, said = hurt
    assert job.quarantined()["row-18"] == "it took longer than a row may take (engine.row_seconds)"
    assert "generate: shard 4: a batch took too long: going through it row by row" in said


def test_the_driver_shows_no_traceback_of_a_death(hurt: tuple[Job, str]) -> None:
    assert "Traceback" not in hurt[1]
    assert "generate: 22 counterfactuals from 24 rows, 2 quarantined" in hurt[1].splitlines()
