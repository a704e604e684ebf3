"""The command line: `counterfactory COMMAND ...`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from configs.strict import NothingMade, UserError, presets
from counterfactory.models.roles import ROLES, TRAINED_ROLES
from pipelines.engine.guard import describe_fault, reader_left
from pipelines.engine.stop import report_stop, stopped_by_signals
from pipelines.engine.terminal import print_line, printable
from storage.errors import TOLD, NoAnswer
from storage.secrets import hide

if TYPE_CHECKING:
    from configs.schema import RunConfig
    from pipelines.engine.part import Part
    from storage.uri import Store

ONE_STAGE = ("generate", "score", "judge", "augment", "report")
# The commands by purpose, as the help lists them.
PURPOSES = {
    "run": (
        *("demo", "run", "sweep", "audit", "retrain", *ONE_STAGE[:2]),
        *("interventions", "attribution", *ONE_STAGE[2:]),
    ),
    "look": ("list", "show", "review", "interaction", "verify", "gc"),
    "prepare": ("init", "prepare", "doctor"),
    "extend": ("train", "completion"),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options."""
    from pipelines.audit import job as audit
    from pipelines.elsewhere import job as score_elsewhere
    from pipelines.init import job as init
    from pipelines.list.job import GROUPS
    from pipelines.prepare import job as prepare
    from pipelines.review import job as review

    main = argparse.ArgumentParser(
        prog="counterfactory",
        description="A batch factory for counterfactuals.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--version", action="store_true", help="print the version and exit")
    commands = main.add_subparsers(
        dest="command", metavar="COMMAND", help="`COMMAND --help` lists its options"
    )

    def command(
        name: str, text: str, job: Callable[[argparse.Namespace], int]
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, description=text)
        sub.set_defaults(job=job)
        return sub

    demo = command("demo", "run all stages on drawn faces and write one report", _demo)
    demo.add_argument(
        "--out", default="runs/demo", help="folder for data, runs and report (default %(default)s)"
    )
    demo.add_argument(
        "--loop",
        action="store_true",
        help="audit, augmentation set, retraining, second audit: about 3 minutes on two cores",
    )
    _settings(demo)
    run = command("run", "run all stages; the same command resumes a run that was stopped", _run)
    run.add_argument("config", help="a preset's name or a YAML file")
    run.add_argument(
        "--print-config", action="store_true", help="print the resolved settings and exit"
    )
    _settings(run, out=True)
    _part(run)
    for name in ONE_STAGE:
        stage = command(name, f"run the {name} stage of a run again", _stage)
        stage.add_argument(
            "run", help="a run's folder, or its config", nargs="?" if name == "score" else None
        )
        if name == "judge":
            stage.add_argument(
                "--answers", help="parse this file of answers into judge/scores.parquet"
            )
            stage.add_argument(
                "--live", action="store_true", help="ask the server of judge.url about every row"
            )
            stage.add_argument(
                "--dry-run", action="store_true", help="print what --live would ask and cost"
            )
            stage.add_argument(
                "--retry", action="store_true", help="with --live, ask again where no scores came"
            )
            stage.add_argument(
                "--oracle",
                action="store_true",
                help="with --live, ask a local server that answers by models.oracle",
            )
            stage.add_argument(
                "--vllm",
                action="store_true",
                help="have judge.model answer on the cluster's GPUs (needs the package vllm)",
            )
        _settings(stage, out=True)
        if name == "score":
            score_elsewhere.arguments(stage)
        if name == "generate":
            _part(stage)
    command(
        "show", "show counts, flip rate, quarantined rows and failures of a run", _show
    ).add_argument("run")
    review.arguments(command("review", "judge rows on a page in your browser", _review))
    command(
        "verify", "check a run's invariants; exit code 1 if one is broken", _verify
    ).add_argument("run")
    ways = command(
        "interaction",
        "show which attributes a method such as AIP changed besides the image",
        _interaction,
    )
    ways.add_argument("run")
    ways.add_argument("--row", metavar="ID", help="show this row only")
    decides = command(
        "interventions",
        "show which part of a run's changes decides, and find the cores",
        _interventions,
    )
    decides.add_argument("run", help="a run's folder, or its config")
    _settings(decides, out=True)
    moved = command(
        "attribution",
        "show which descriptors a run's counterfactuals changed, and by how much",
        _attribution,
    )
    moved.add_argument("run", help="a run's folder, or its config")
    moved.add_argument(
        "--predictors",
        metavar="MODEL",
        help="model preset or YAML file (default: models.attribution)",
    )
    moved.add_argument(
        "--encoder",
        metavar="MODEL",
        help="the encoder they were fitted on (default: models.encoder)",
    )
    moved.add_argument(
        "--top", type=int, default=5, metavar="N", help="descriptors to show (default %(default)s)"
    )
    moved.add_argument("--row", metavar="ID", help="show this row only")
    _settings(moved, out=True)
    gc = command(
        "gc",
        "list files that a run no longer needs: orphans, old marks, older stages",
        _gc,
    )
    gc.add_argument("run")
    gc.add_argument(
        "--older-than",
        default="24h",
        metavar="AGE",
        help="only files older than this (default %(default)s)",
    )
    gc.add_argument("--delete", action="store_true", help="delete them; AGE must be 1h or more")
    init.arguments(command("init", "write a config from your data and classifier", _init))
    prepare.arguments(command("prepare", "write a data set as Parquet shards", _prepare))
    train = command("train", "train a network from Parquet", _train)
    trained = "; ".join(f"{name}: {ROLES[name].help}" for name in TRAINED_ROLES)
    train.add_argument("role", choices=TRAINED_ROLES, metavar="ROLE", help=trained)
    train.add_argument("config", help="a preset's name or a YAML file")
    _settings(train)
    sweep = command("sweep", "run a grid of settings as one job and write one table", _sweep)
    sweep.add_argument("sweep", help="a preset's name or a YAML file")
    _settings(sweep, out=True)
    mend = command("retrain", "train with counterfactuals and compare ways to do it", _retrain)
    mend.add_argument("config", help="a preset's name or a YAML file")
    _settings(mend, out=True)
    audits = command("audit", "audit new rows and compare them with an earlier audit", _audit)
    audit.arguments(audits)
    _settings(audits, out=True)
    doctor = command("doctor", "check data, models and settings before a long run", _doctor)
    doctor.add_argument("config", help="a preset's name or a YAML file")
    _settings(doctor)
    lists = command("list", "list presets and what they need, and the runs of a folder", _list)
    lists.add_argument(
        "group", nargs="?", choices=GROUPS, metavar="|".join(GROUPS), help="default: all of them"
    )
    lists.add_argument(
        "--out", default="runs", metavar="URI", help="folder of runs (default %(default)s)"
    )
    completion = command("completion", "print a script that completes commands", _completion)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    main.epilog = _by_purpose(commands.choices)
    return main


def _by_purpose(commands: dict[str, argparse.ArgumentParser]) -> str:
    """Return the commands and what they do as text, in the groups of PURPOSES."""
    width = min(100, shutil.get_terminal_size().columns) - 2
    lines = []
    for purpose, names in PURPOSES.items():
        lines.append(f"{purpose}:")
        for name in names:
            text = commands[name].description or ""
            lines += textwrap.wrap(
                text, width, initial_indent=f"  {name:<14}", subsequent_indent=" " * 16
            )
        lines.append("")
    return "\n".join(lines)


def _settings(sub: argparse.ArgumentParser, *, out: bool = False) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.KEY=VALUE",
        help="override a setting of the config",
    )
    sub.add_argument("--engine", choices=("ray", "local"), help="where the work runs")
    sub.add_argument(
        "--address",
        help="address of a running Ray cluster (default: RAY_ADDRESS, else start a local one)",
    )
    if out:
        sub.add_argument("--out", metavar="URI", help="folder to write the run's folder to")


def _part(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--limit",
        type=int,
        metavar="ROWS",
        help="process about this many rows now: whole shards, at least one",
    )
    sub.add_argument(
        "--shards",
        metavar="A:B",
        help="process only shards A to B-1, up to their scores",
    )
    sub.add_argument(
        "--retry-quarantined",
        action="store_true",
        help="also retry the quarantined rows of committed shards",
    )


def _sets(args: argparse.Namespace) -> list[str]:
    given = {"engine.kind": args.engine, "engine.address": args.address}
    return [*args.set, *(f"{key}={value}" for key, value in given.items() if value)]


def _the_part(args: argparse.Namespace) -> Part:
    from pipelines.engine.part import WHOLE, parse

    if not hasattr(args, "limit"):
        return WHOLE
    return parse(args.limit, args.shards, args.retry_quarantined)


def _demo(args: argparse.Namespace) -> int:
    from pipelines.demo import demo
    from pipelines.loop import loop

    (loop if args.loop else demo)(args.out, _sets(args))
    return 0


def _expect_access(name: str, sets: list[str]) -> None:
    """Raise UserError for a new run whose method cannot work with its classifier, before torch is
    imported, which takes a second.
    """
    from configs.access import expect_declared_access
    from configs.schema import load_run

    if name.endswith((".yaml", ".yml")) or name in presets("run"):
        expect_declared_access(load_run(name, sets))


def _run(args: argparse.Namespace) -> int:
    if not args.print_config and not os.path.isdir(args.config):
        _expect_access(args.config, _sets(args))
    from pipelines.run import find_run, run

    store, config = find_run(args.config, _sets(args), args.out)
    if args.print_config:
        import json

        import yaml

        print(
            yaml.safe_dump(
                json.loads(config.model_dump_json()), sort_keys=False, allow_unicode=True
            ),
            end="",
        )
        return 0
    run(config, store=store, part=_the_part(args))
    return 0


def _stage(args: argparse.Namespace) -> int:
    from pipelines.run import find_run, run, stage_needs

    if args.command == "score" and (args.originals or args.counterfactuals):
        from pipelines.elsewhere.job import main as score_elsewhere

        return score_elsewhere(args, _sets(args))
    if args.run is None:
        raise UserError("score: expected a run, or --originals and --counterfactuals, got none")
    store, config = find_run(args.run, _sets(args), args.out)
    if args.command != "generate":
        stage_needs(store, args.command)
    if args.command == "judge" and (args.live or args.dry_run or args.retry or args.oracle):
        return _judge_live(args, store, config)
    if args.command == "judge" and (args.answers or args.vllm):
        return _judge_files(args, store, config)
    run(config, stages=(args.command,), store=store, part=_the_part(args))
    return 0


def _judge_files(args: argparse.Namespace, store: Store, config: RunConfig) -> int:
    from pipelines.augment.calibration import calibrated_lines
    from pipelines.engine.disk import disk_errors
    from pipelines.judge.job import describe, parse_answers
    from pipelines.judge.vllm import judge_by_vllm
    from storage.run import add_products

    if args.answers and args.vllm:
        raise UserError("--vllm: expected without --answers, got both")
    with disk_errors(store.uri):
        if args.vllm:
            counts = judge_by_vllm(store, config)
        else:
            counts = parse_answers(store, config, args.answers)
        lines = calibrated_lines(store, config)
        add_products(store)
    print_line("\n".join([describe(counts), *lines]))
    return 0


def _judge_live(args: argparse.Namespace, store: Store, config: RunConfig) -> int:
    from pipelines.augment.calibration import calibrated_lines
    from pipelines.engine.disk import disk_errors
    from pipelines.judge.live import describe_live, dry_run, judge_live
    from storage.run import add_products

    if args.answers or args.vllm or not args.live:
        got = "--answers" if args.answers else "--vllm" if args.vllm else "no --live"
        raise UserError(f"--dry-run, --retry, --oracle: expected beside --live, got {got}")
    with disk_errors(store.uri):
        judge: Callable[..., dict[str, Any]] = judge_live
        plan: Callable[..., str] = dry_run
        if args.oracle:
            from pipelines.judge.oracle import judge_by_oracle, plan_by_oracle

            judge, plan = judge_by_oracle, plan_by_oracle
        if args.dry_run:
            print_line(plan(store, config))
            return 0
        lines: list[str] = []
        try:
            table = judge(store, config, retry=args.retry)
            lines = calibrated_lines(store, config)
        finally:
            add_products(store)
    print_line("\n".join([describe_live(table), *lines]))
    return 0


def _show(args: argparse.Namespace) -> int:
    from pipelines.engine.disk import disk_errors
    from pipelines.report.show import show
    from storage.uri import open_store

    store = open_store(args.run)
    with disk_errors(store.uri):
        print_line(show(store))
    return 0


def _review(args: argparse.Namespace) -> int:
    from pipelines.review.job import main

    code: int = main(args)
    return code


def _interaction(args: argparse.Namespace) -> int:
    from pipelines.attribution.interaction import interaction
    from pipelines.engine.disk import disk_errors
    from storage.uri import open_store

    store = open_store(args.run)
    with disk_errors(store.uri):
        print_line(interaction(store, args.row))
    return 0


def _interventions(args: argparse.Namespace) -> int:
    from pipelines.engine.committed import INTERVENED, TABLE, themes_of
    from pipelines.interventions.lines import format_table, theme_lines
    from pipelines.run import find_run, run, stage_needs
    from storage.seal import read_sealed

    store, config = find_run(args.run, _sets(args), args.out)
    stage_needs(store, "interventions")
    # The scores' verdict rests on the experiment, so an existing table is made again.
    stages = ("interventions", *(("score",) if store.exists(TABLE) else ()))
    run(config, stages=stages, store=store)
    table = read_sealed(store, INTERVENED)
    print("\n".join(format_table(table)))
    if themes := themes_of(store, table["stage"]):
        print("\n".join(theme_lines(themes)))
    return 0


def _attribution(args: argparse.Namespace) -> int:
    from pipelines.attribution.job import with_models
    from pipelines.attribution.table import format_row, format_table
    from pipelines.engine.committed import ATTRIBUTED
    from pipelines.run import find_run, run, stage_needs
    from storage.seal import read_sealed

    if args.top < 1:
        raise UserError(f"--top: expected 1 or more, got {args.top}")
    store, config = find_run(args.run, _sets(args), args.out)
    stage_needs(store, "attribution")
    run(with_models(config, args.predictors, args.encoder), stages=("attribution",), store=store)
    table = read_sealed(store, ATTRIBUTED)
    print_line(
        "\n".join(format_row(store, table, args.row) if args.row else format_table(table, args.top))
    )
    return 0


def _verify(args: argparse.Namespace) -> int:
    from pipelines.engine.disk import disk_errors
    from storage.uri import open_store
    from storage.verify import unkept, verify

    store = open_store(args.run)
    with disk_errors(store.uri):
        try:
            broken = verify(store)
        except FileNotFoundError as error:
            raise UserError(str(error)) from None
        told = unkept(store)
    print_line(
        "\n".join(map(printable, broken)) if broken else f"{store.uri}: every invariant holds"
    )
    if told:
        print_line(told)
    return 1 if broken else 0


def _gc(args: argparse.Namespace) -> int:
    from pipelines.engine.disk import disk_errors
    from pipelines.gc import gc
    from storage.uri import open_store

    store = open_store(args.run)
    with disk_errors(store.uri):
        print_line(gc(store, older_than=args.older_than, do=args.delete))
    return 0


def _init(args: argparse.Namespace) -> int:
    from pipelines.init.job import main

    code: int = main(args)
    return code


def _prepare(args: argparse.Namespace) -> int:
    from pipelines.prepare.job import main

    code: int = main(args)
    return code


def _train(args: argparse.Namespace) -> int:
    from configs.schema import load_train
    from pipelines.train.job import train

    config = load_train(args.config, args.set)
    if config.role != args.role:
        raise UserError(
            f"{args.config}: expected a config that trains the role {args.role}, got {config.role}"
        )
    print(train(config))
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from configs.sweep import load_sweep
    from pipelines.sweep.job import sweep

    sweep(load_sweep(args.sweep, [f"out={args.out}"] if args.out else []), _sets(args))
    return 0


def _retrain(args: argparse.Namespace) -> int:
    from configs.retrain import load_retrain
    from pipelines.retrain.job import retrain

    retrain(load_retrain(args.config, [*_sets(args), *([f"out={args.out}"] if args.out else [])]))
    return 0


def _audit(args: argparse.Namespace) -> int:
    from pipelines.audit.job import main

    code: int = main(args, args.set)
    return code


def _doctor(args: argparse.Namespace) -> int:
    from configs.schema import load_run
    from pipelines.doctor.job import main

    code: int = main(load_run(args.config, _sets(args)))
    return code


def _list(args: argparse.Namespace) -> int:
    from pipelines.list.job import main

    code: int = main(args.group, args.out)
    return code


def _completion(args: argparse.Namespace) -> int:
    from pipelines.completion import SCRIPTS, complete

    print("\n".join(complete(parser(), args.words)) if args.words else SCRIPTS[args.shell])
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: success; 1: a check found something; 2: a user's error, printed as one line; 70: a fault of
    counterfactory itself; 75: a server does not answer, or a budget is used up; 128 + n: stopped by
    signal n.
    """
    cli = parser()
    args = cli.parse_args(argv)
    if args.version:
        from importlib.metadata import version

        print(f"counterfactory {version('counterfactory')}")
        return 0
    if args.command is None:
        cli.print_help()
        return 2
    try:
        with stopped_by_signals():
            code: int = args.job(args)
            sys.stdout.flush()
        return code
    except NothingMade as error:
        print(f"counterfactory: {printable(hide(str(error)))}", file=sys.stderr)
        return 1
    except (UserError, *TOLD) as error:
        print(f"counterfactory: {printable(hide(str(error)))}", file=sys.stderr)
        return os.EX_TEMPFAIL if isinstance(error, NoAnswer) else 2
    except KeyboardInterrupt as stop:
        return report_stop(stop)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            return 128 + signal.SIGPIPE
        print(f"counterfactory: {printable(hide(describe_fault(error)))}", file=sys.stderr)
        return os.EX_SOFTWARE


if __name__ == "__main__":
    sys.exit(main())
