"""The disk is full, or takes nothing: exit code 2, one line that says what to do, and the same
command finishes.
"""

from __future__ import annotations

import pytest
from conftest import FORKS, Job  # type: ignore[import-not-found]
from crash import REFUSED, At, on_small_disk


def on_disk(job: Job, *options: str) -> list[str]:
    """What the command said on a tmpfs with each of the options; the run is where the job's is
    afterwards.
    """
    disk = job.folder / "disk"
    disk.mkdir()
    argv = [*job.argv(), "--set", f"out={disk}"]
    child = FORKS.Process(
        target=on_small_disk, args=(argv, str(disk), str(job.folder / "out"), options, str(job.log))
    )
    child.start()
    child.join(900)
    if child.exitcode == REFUSED:
        pytest.skip("this system lets no process mount a tmpfs of its own")
    assert child.exitcode == 0, job.said
    return job.said.splitlines()


def test_disk_full(job: Job) -> None:
    said = on_disk(job, "size=48k", "size=16m")
    end = said.index("exit 2")
    room = (
        f"counterfactory: expected room in {job.folder / 'disk' / 'job'}, got ENOSPC: free some and"
        " run the same"
    )
    assert said[end - 1].startswith(room)
    assert "Traceback" not in job.said
    assert said[-1] == "exit 0"
    job.expect_whole()


def test_read_only_output(job: Job) -> None:
    said = on_disk(job, "ro", "size=16m")
    assert said[1] == "exit 2"
    assert said[0].startswith(
        f"counterfactory: expected {job.folder / 'disk' / 'job'} to be readable and writable"
    )
    assert "got EROFS" in said[0]
    assert said[-1] == "exit 0"
    job.expect_whole()


@pytest.mark.parametrize(
    "path", ["data/generate/", "commit/generate/", "attempt/generate/", "plan.json"]
)
def test_no_room_for_a_file(job: Job, path: str) -> None:
    """The same at each kind of file, on any system: the error that a full disk gives is raised
    where it is written.
    """
    verb = "put_new" if path.startswith(("commit", "plan")) else "write"
    code, said = job.run(At(verb, path, nth=1 if path == "plan.json" else 3, what="full"))
    assert code == 2
    assert (
        f"expected room in {job.store.uri}, got ENOSPC: free some and run the same command again"
        in said
    )
    assert "Traceback" not in said
    job.finish()
