"""What changed since a run was planned, in words."""

from __future__ import annotations

from storage.records import Plan


def what_changed(ours: Plan, standing: Plan) -> str:
    """Return a line about the first input file or model that differs between two plans, and how to
    go on; "" where none does.
    """
    fields = [
        name
        for name in ours.fingerprint
        if ours.fingerprint[name] != standing.fingerprint.get(name)
    ]
    if "format" in fields:
        made = standing.versions.get("counterfactory", "an unknown version")
        return (
            f"expected a run of this version, got one planned by counterfactory {made}, whose ids"
            " and seeds are others: finish it with that version"
        )
    if "data" in fields:
        return _data(_versions(ours), _versions(standing))
    for field in fields:
        name = field.removeprefix("models.")
        before, now = standing.models.get(name), ours.models.get(name)
        if field.startswith("models.") and before is not None and before != now:
            return (
                f"models.{name}: expected the weights the run was planned with, sha256 {before},"
                f" got {now}"
            )
    return ""


def _data(now: dict[str, str], before: dict[str, str]) -> str:
    for file, version in before.items():
        if file not in now:
            return f"data.path: expected {file}, which the run was planned with, got no such file"
        if now[file] != version:
            told = (
                ""
                if "-" not in version
                else " (bytes and time of the last change: `cp -p` keeps it)"
            )
            return (
                f"data.path: {file} changed since the run was planned: expected {version}, got"
                f" {now[file]}{told}"
            )
    more = next((file for file in now if file not in before), None)
    return (
        ""
        if more is None
        else f"data.path: expected the files the run was planned with, got {more} as well"
    )


def _versions(plan: Plan) -> dict[str, str]:
    return {shard.file: shard.version for shard in plan.shards}
