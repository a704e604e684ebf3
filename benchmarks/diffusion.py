"""What the diffusion methods cost: the papers' loop one image at a time, our exact presets, and the
fast ones.

    python -m benchmarks.diffusion --out benchmarks/diffusion.md      # about half an hour

One set of weights and rows: drawn faces, first `--rows` of them, of which the plain loops take the
first `--plain`. Every case runs in a fresh process with one thread, one case at a time, so that
ratios are those of a core; the engine has such a process on each core (benchmarks/overhead.md has
what that gives).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from actors.pinned.load import load_models
from benchmarks import diffusion_plain
from configs.schema import load_run
from counterfactory.metrics.cout import cout
from counterfactory.metrics.flops import tflops

CASES: dict[str, tuple[str, dict[str, Any]]] = {  # name: preset, and what is laid over it
    "ACE, plain loop": ("ace-l1", {}),
    "ACE, exact": ("ace-l1", {}),
    "ACE, fast": ("ace-fast", {}),
    "CECAS, plain loop": ("cecas-celeba", {}),
    "CECAS, exact": ("cecas-celeba", {}),
    "CECAS, fast": ("cecas-fast", {}),
    "DiME, plain loop": ("dime", {"perceptual": 0.0}),
    "DiME, exact": ("dime", {"perceptual": 0.0}),
    "DiME, fast": ("dime-fast", {"perceptual": 0.0}),
}
DISTANCE = "stlpips"  # the perceptual distance, where its package is installed
Figures = dict[str, Any]


class Contiguous(torch.nn.Module):
    """A network and its input in the memory format that models come in."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network: torch.nn.Module = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        return self.network(x.contiguous(), t)


def settings_of(case: str) -> tuple[str, dict[str, Any]]:
    """The class of a case's method, and its settings."""
    preset, over = CASES[case]
    found = yaml.safe_load(
        (Path(__file__).parents[1] / "configs" / "method" / f"{preset}.yaml").read_text()
    )
    return found["target"], {**found["settings"], **over}


def work(case: str, data: str, rows: int, batch: int) -> Figures:
    """A case: seconds, evaluations and the stored answers."""
    import pyarrow.parquet as pq

    from counterfactory.methods.contract import ImageQueries
    from storage.codec import decode

    torch.set_num_threads(1)
    target, settings = settings_of(case)
    sets = [f"models.spurious={json.dumps('faces-causal-plain')}", "models.distractors=own-rows"]
    config = load_run("faces", sets).model_dump()
    models = load_models(config, ["classifier", "denoiser", "spurious"], torch.device("cpu"))
    file = sorted(Path(data).glob("*.parquet"))[0]
    found = pq.read_table(file, columns=["image"]).slice(0, rows)["image"].to_pylist()
    pictures = [decode(row["bytes"], size=64, crop=None, max_pixels=10**6) for row in found]
    x = torch.stack([torch.from_numpy(p).permute(2, 0, 1).float().div(255) for p in pictures])
    with torch.no_grad():
        source = models["classifier"](x).argmax(1)
    queries = ImageQueries(images=x, source=source, target=1 - source, seed=torch.arange(rows) + 1)
    told: Figures = {"source": source.tolist()}

    if case.endswith("plain loop"):
        denoiser: Any = models["denoiser"]
        denoiser.network = Contiguous(denoiser.network)
        loop = getattr(diffusion_plain, target.rpartition(".")[2].lower())
        began, cpu, answers = time.perf_counter(), time.process_time(), []
        for image, wanted, seed in zip(
            x, queries.target.tolist(), queries.seed.tolist(), strict=True
        ):
            answers.append(loop(image, wanted, seed, models, settings))
        stored = torch.stack(answers)
    else:
        module, _, name = target.rpartition(".")
        method = getattr(__import__(module, fromlist=[name]), name)(**settings)
        needed = {key: models[key] for key in ("classifier", *method.needs)}
        began, cpu, parts = time.perf_counter(), time.process_time(), []
        for at in range(0, rows, batch):
            here = slice(at, at + batch)
            asked = ImageQueries(
                images=x[here],
                source=source[here],
                target=queries.target[here],
                seed=queries.seed[here],
            )
            parts.append(method(asked, **needed))
        stored = torch.cat([part.counterfactual for part in parts])
        told["forward"] = [n for part in parts for n in part.forward.tolist()]
        told["backward"] = [n for part in parts for n in part.backward.tolist()]
    told |= {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    told["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told["answers"] = stored.mul(255).round().to(torch.uint8).flatten(1).tolist()
    with torch.no_grad():
        told["flipped"] = (models["classifier"](stored).argmax(1) == queries.target).tolist()
    told["cout"] = cout(models["classifier"], x, stored, source, queries.target).tolist()
    told["l1"] = (stored - x).abs().flatten(1).mean(1).tolist()
    told["lpips"] = distances(config, x, stored)
    if not case.endswith("plain loop"):
        one = ImageQueries(
            images=x[:1], source=source[:1], target=queries.target[:1], seed=queries.seed[:1]
        )
        told["tflops"] = tflops(lambda: method(one, **needed))
    return told


def distances(config: dict[str, Any], a: torch.Tensor, b: torch.Tensor) -> list[float] | None:
    """Perceptual distances, None where their package is not installed."""
    from configs.strict import UserError

    try:
        spec = load_run("faces", [f"models.perceptual={DISTANCE}"]).model_dump()
        network: Any = load_models(spec, ["perceptual"], torch.device("cpu"))["perceptual"]
    except (UserError, ImportError):
        return None
    with torch.no_grad():
        found: list[float] = network(a, b).tolist()
    return found


def run(case: str, args: argparse.Namespace) -> Figures:
    """A case in a process of its own."""
    rows = args.plain if case.endswith("plain loop") else args.rows
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.diffusion",
            "--case",
            case,
            "--data",
            args.data,
        ]
        command += ["--rows", str(rows), "--batch", str(args.batch), "--out", str(out)]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        found: Figures = json.loads(out.read_text())
    return {
        **found,
        "case": case,
        "rows": rows,
        "seconds": found["seconds"] / rows,
        "cpu": found["cpu"] / rows,
    }


def mean(values: list[float] | None, digits: int) -> str:
    return "" if values is None else f"{sum(values) / len(values):.{digits}f}"


def report(cases: list[Figures], args: argparse.Namespace) -> str:
    """The tables as Markdown."""
    by = {found["case"]: found for found in cases}
    lines = [
        "# What the diffusion methods cost",
        "",
        (
            f"    python -m benchmarks.diffusion --rows {args.rows} --plain {args.plain} --out"
            " benchmarks/diffusion.md"
        ),
        "",
        f"{datetime.now(UTC):%d %B %Y}, one thread on a shared machine of two cores, no GPU, torch",
        (
            f"{torch.__version__}. Drawn faces of 64 px, `faces-plain` explained through"
            " `faces-denoiser`;"
        ),
        (
            f"{args.rows} rows, of which the plain loops took the first {args.plain}; batches of"
            f" {args.batch}."
        ),
        (
            "Evaluations are the method's own count, of every network; memory is a whole process's"
            " peak, torch included."
        ),
        "DiME is without its perceptual distance, whose network is not shipped.",
        "",
        (
            "| case | rows | s / image | CPU-s / image | forward | backward | TFLOP / image | peak"
            f" MB | flip rate | COUT | l1 | lpips[{DISTANCE}] |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for found in cases:
        count = f"{found['tflops']:.3f}" if "tflops" in found else ""
        lines.append(
            f"| {found['case']} | {found['rows']} | {found['seconds']:.2f} | {found['cpu']:.2f} |"
            f" {mean(found.get('forward'), 0)} | {mean(found.get('backward'), 0)} | {count} |"
            f" {found['peak']:.0f} | {mean(found['flipped'], 3)} | {mean(found['cout'], 3)} |"
            f" {mean(found['l1'], 4)} | {mean(found['lpips'], 4)} |"
        )
    lines += [
        "",
        (
            "| ratio | by the clock | by the processor's time | rows with the same verdict | values"
            " that differ | COUT, difference |"
        ),
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(found["case"].split(",")[0] for found in cases):
        for slow, quick in (("plain loop", "exact"), ("exact", "fast")):
            a, b = by.get(f"{name}, {slow}"), by.get(f"{name}, {quick}")
            if a is None or b is None:
                continue
            n = min(a["rows"], b["rows"])
            same = sum(p == q for p, q in zip(a["flipped"][:n], b["flipped"][:n], strict=True))
            values = [
                u != v
                for p, q in zip(a["answers"][:n], b["answers"][:n], strict=True)
                for u, v in zip(p, q, strict=True)
            ]
            apart = f"{sum(values) / len(values):.2%}" if quick == "exact" else ""
            off = sum(b["cout"][:n]) / n - sum(a["cout"][:n]) / n
            lines.append(
                f"| {name}: {quick} over {slow} | {a['seconds'] / b['seconds']:.1f} x |"
                f" {a['cpu'] / b['cpu']:.1f} x | {same} of {n} | {apart} | {off:+.3f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--plain", type=int, default=8, help="rows of the plain loops")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", nargs="*", default=[], help="cases whose name starts so")
    parser.add_argument("--data", default="runs/demo/data", help="what `prepare faces` wrote")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.case:
        args.out.write_text(json.dumps(work(args.case, args.data, args.rows, args.batch)))
        return
    chosen = [case for case in CASES if not args.only or case.startswith(tuple(args.only))]
    cases = []
    for case in chosen:
        cases.append(found := run(case, args))
        print(
            f"{case}: {found['seconds']:.2f} s and {found['cpu']:.2f} CPU-s an image",
            file=sys.stderr,
            flush=True,
        )
    text = report(cases, args)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
