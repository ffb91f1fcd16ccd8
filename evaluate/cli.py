"""The command line: `extratime train | evaluate | import | report | allocate | tune`."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  extratime train sft --config recipes/sft/embedded.yaml
  extratime train self_eval --config recipes/self_eval/embedded.yaml --learning_rate 1e-3
  extratime evaluate recipes/evaluate/demo.yaml --dry-run
  extratime evaluate recipes/evaluate/demo.yaml --set limit=50 --set 'budgets=[1,4,16]'
  extratime evaluate recipes/evaluate/demo.yaml --shard 3/8
  extratime import recipes/evaluate/demo.yaml generations.jsonl
  extratime report runs/demo
  extratime report --training runs/constant runs/cosine
  extratime allocate runs/demo --by 'best_of_n(self_eval)'
  extratime tune recipes/tune/sums.yaml --set tune.trials=20
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command != "train":
        parser.error(f"unknown argument {rest[0]!r}; `extratime {args.command} --help` lists what there is")
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("lm_eval").setLevel(logging.INFO if args.verbose else logging.ERROR)
    try:
        return int(COMMANDS[args.command](args, rest) or 0)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ArithmeticError, FileNotFoundError, LookupError, RuntimeError, ValueError) as error:
        if args.verbose:
            raise
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        print(f"extratime {args.command}: {_said(error)}{notes}", file=sys.stderr)
        return 2


def _said(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="extratime",
        description="Train language models to use more compute at inference, and measure what every extra token buys.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log progress and show full tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _train_parser(commands)
    _evaluate_parser(commands)
    _import_parser(commands)
    report = commands.add_parser(
        "report", help="leaderboard, figures and a page from a run folder; or training curves"
    )
    report.add_argument("folder", type=Path, nargs="+", help="run folder, e.g. runs/demo, or the recipe that fills it")
    report.add_argument(
        "--training",
        action="store_true",
        help="the folders are training runs of one model, data, peak learning rate and batch: fit the annealing law "
        "to their logs and predict other schedules",
    )
    _override_argument(report)
    _allocate_parser(commands)
    tune = commands.add_parser(
        "tune", help="search strategies and their options; show the holdout through a guard only"
    )
    _recipe_arguments(tune)
    return parser


def _train_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser(
        "train",
        help="run a training recipe in this process",
        description="Runs `python -m extratime.train.RECIPE …`; all further options are the recipe's own. For several "
        "processes use `accelerate launch --config_file recipes/accelerate/zero2.yaml -m extratime.train.RECIPE …`.",
        add_help=False,
    )
    train.add_argument("recipe", help="sft, self_eval, rollouts, …: a file in train/ with a `main`")


def _evaluate_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="run checkpoint × tasks × strategies × budgets from a recipe, then report",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _recipe_arguments(evaluate)
    evaluate.add_argument(
        "--shard", type=_shard, default=(0, 1), metavar="I/N", help="every N-th document, I = 0 … N-1"
    )
    evaluate.add_argument("--dry-run", action="store_true", help="print the grid, the documents and an estimate; stop")
    evaluate.add_argument("--replay", action="store_true", help="answer from the run's streams alone, with no engine")
    evaluate.add_argument("--no-report", action="store_true", help="leave the report to `extratime report`")


def _import_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "import",
        help="keep generations drawn elsewhere as the first draws of a recipe's model",
        description="Each line of FILE is a JSON mapping of prompt and text, and, where known, tokens (ids), logprobs "
        "and finished (default true). Evaluations of the recipe then read these draws before drawing more.",
    )
    _recipe_arguments(command)
    command.add_argument("file", type=Path, help="JSONL file")


def _allocate_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    allocate = commands.add_parser(
        "allocate",
        help="choose the best strategy for each difficulty, from a run folder",
        description="Cross-validated accuracy of the compute-optimal choice, and entries for recipes that make it.",
    )
    allocate.add_argument("folder", type=Path, help="run folder, e.g. runs/demo")
    allocate.add_argument(
        "--by",
        default="",
        metavar="LABEL",
        help="what tells difficulty: a strategy of plain draws with a verifier, or `oracle`; by default the first one",
    )
    allocate.add_argument(
        "--terms", choices=("budget", "tokens"), default="budget", help="what is equal at a point of the curve"
    )
    allocate.add_argument("--bins", type=int, default=5, help="quantiles of difficulty (default 5)")
    allocate.add_argument(
        "--edges", type=float, nargs="+", default=(), help="difficulties between the bins instead, e.g. 0.5 0.1"
    )
    allocate.add_argument("--look", type=int, default=4, help="draws that predict difficulty (default 4)")


def _recipe_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", type=Path, help="YAML file, e.g. recipes/evaluate/demo.yaml")
    _override_argument(command)


def _override_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the recipe",
    )


def _shard(text: str) -> tuple[int, int]:
    try:
        i, n = (int(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 3/8") from None
    if not 0 <= i < n:
        raise argparse.ArgumentTypeError(f"{text!r}: the shard must be in 0 … {n - 1}")
    return i, n


def _train(args: argparse.Namespace, rest: list[str]) -> None:
    files = (Path(__file__).parents[1] / "train").glob("*.py")
    known = sorted(file.stem for file in files if "\ndef main(" in file.read_text(encoding="utf-8"))
    if args.recipe not in known:
        raise ValueError(f"no training recipe {args.recipe!r}; there are {', '.join(known)}")
    module = importlib.import_module(f"extratime.train.{args.recipe}")
    sys.argv = [f"extratime train {args.recipe}", *rest]
    module.main()


def _evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    from extratime.evaluate.grid import read_recipe

    recipe = read_recipe(args.recipe, args.overrides)
    if args.dry_run:
        from extratime.evaluate.plan import describe

        print(describe(recipe, args.shard))
        return
    from extratime.evaluate.run import run_recipe

    folder = run_recipe(recipe, args.shard, args.replay)
    if args.shard[1] == 1 and not args.no_report:
        _show(folder)
    else:
        print(f"{folder}: done; `extratime report {folder}` makes the leaderboard")


def _import(args: argparse.Namespace, rest: list[str]) -> None:
    from extratime.evaluate.grid import read_recipe
    from extratime.evaluate.importing import import_generations

    recipe = read_recipe(args.recipe, args.overrides)
    print(f"{recipe.output}: {import_generations(recipe, args.file)}")


def _report(args: argparse.Namespace, rest: list[str]) -> None:
    from extratime.evaluate.grid import read_recipe

    if args.training:
        from extratime.evaluate.report import training

        print(training.report(args.folder))
        return
    for place in args.folder:
        recipe = args.overrides or place.is_file()
        _show(read_recipe(place, args.overrides).output if recipe else place)


def _allocate(args: argparse.Namespace, rest: list[str]) -> None:
    from extratime.evaluate.report import compute_optimal
    from extratime.evaluate.report.read import read

    run = read(args.folder)
    curve = compute_optimal.compute_optimal(run, args.by, args.terms, args.bins, args.edges, args.look)
    print(compute_optimal.as_markdown(curve))
    print(f"written: {compute_optimal.write(run, curve)}")


def _tune(args: argparse.Namespace, rest: list[str]) -> None:
    try:
        from extratime.evaluate.tuning.tune import as_text, tune
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{error.name} is not installed: pip install 'extratime[tune]'") from error
    print(as_text(tune(args.recipe, args.overrides)))


def _show(folder: Path) -> None:
    from extratime.evaluate.report.page import report

    page = report(folder)
    print((folder / "leaderboard.md").read_text(encoding="utf-8"))
    print(f"page: {page.resolve()}")


COMMANDS = {
    "train": _train,
    "evaluate": _evaluate,
    "import": _import,
    "report": _report,
    "allocate": _allocate,
    "tune": _tune,
}


if __name__ == "__main__":
    sys.exit(main())
