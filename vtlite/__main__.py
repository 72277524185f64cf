"""The command line: `python -m vtlite tour | list | show | zero-shot | data | pretrain | bench |
bench-ops | networks | classroom`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vtlite", description="Visual tuning from scratch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    tour = commands.add_parser(
        "tour", help="tune with one method of each group and more; table, figure, JSON and CSV"
    )
    tour.add_argument(
        "--methods",
        help="comma-separated names (default: at least one of each group; see vtlite/tour.py)",
    )
    tour.add_argument(
        "--task",
        default="shapes-location",
        help="an embedded task, torchvision:NAME or folder:PATH (default: %(default)s)",
    )
    tour.add_argument(
        "--backbone",
        default="vtlite-tiny",
        help=(
            "an embedded backbone, timm:NAME or a .safetensors file, also of a published CLIP with"
            " open_clip's names (default: %(default)s)"
        ),
    )
    tour.add_argument(
        "--quick-gelu",
        action="store_true",
        default=None,
        help="the file holds OpenAI's weights, which do not say so themselves",
    )
    tour.add_argument("--epochs", type=int, default=10)
    tour.add_argument("--json", type=Path, default=Path("out/tour.json"))
    tour.add_argument("--csv", type=Path, default=Path("out/tour.csv"))
    tour.add_argument("--figure", type=Path, default=Path("out/tour.png"))

    listing = commands.add_parser(
        "list", help="the survey's taxonomy and what of it is implemented"
    )
    listing.add_argument("--group", help="one group or leaf, e.g. adapter or parameter/weight")
    listing.add_argument("--json", action="store_true")

    show = commands.add_parser(
        "show", help="one method: idea, formula, settings, paper, parameters on ViT-B/16"
    )
    show.add_argument("name")

    naming = commands.add_parser(
        "zero-shot", help="name pictures of your own: the words that lie nearest to each"
    )
    naming.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    naming.add_argument(
        "--names", help='what they may show, e.g. "apple, cat, car" (default: all emoji names)'
    )
    naming.add_argument(
        "--template", default="{}", help='e.g. "a drawing of {}" (default: the name alone)'
    )

    data = commands.add_parser(
        "data", help="the embedded tasks: list them, draw one, or build the image sheets again"
    )
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="every task: kind, classes, sizes, source and licence")
    draw = actions.add_parser("show", help="draw training images of one task with their answers")
    draw.add_argument("task")
    draw.add_argument("--figure", type=Path, help="default: out/TASK.png")
    build = actions.add_parser(
        "build", help="make the image sheets from their source packages (see vtlite/data/build.py)"
    )
    build.add_argument(
        "--packages",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="node_modules with the npm packages",
    )
    build.add_argument("--fashion", type=Path, required=True, metavar="FOLDER")
    build.add_argument("--out", type=Path, help="default: the package's own assets")

    pretrain = commands.add_parser(
        "pretrain", help="make an embedded network again; continues a run that was stopped"
    )
    pretrain.add_argument("--name", default="vtlite-clip")
    pretrain.add_argument("--steps", type=int, default=8_500)
    pretrain.add_argument("--lr", type=float, default=1e-3)
    pretrain.add_argument("--batch-size", type=int, default=128)
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--out", type=Path, help="default: out/NAME.safetensors")

    bench = commands.add_parser(
        "bench", help="every method on every embedded task, three seeds; continues where it stopped"
    )
    bench.add_argument("--results", type=Path, default=Path("benchmarks/results.json"))
    bench.add_argument("--costs", type=Path, default=Path("benchmarks/costs.json"))
    bench.add_argument(
        "--group",
        help=(
            "one group of the survey, such as parameter, beside full fine-tuning and a linear probe"
        ),
    )
    bench.add_argument(
        "--task",
        action="append",
        help="an embedded task; may be given more than once (default: all)",
    )
    bench.add_argument(
        "--study",
        metavar="NAME",
        help="instead: another kind of task (masks, motion, ...), kept in NAME.json beside RESULTS",
    )
    bench.add_argument("--workers", type=int, default=2)
    bench.add_argument(
        "--counted",
        type=Path,
        metavar="FILE",
        help=(
            "instead: what one training step of each method costs on ViT-B/16, written to this JSON"
        ),
    )
    bench.add_argument(
        "--update",
        type=Path,
        metavar="FILE",
        help="also write the tables into this Markdown file, between its markers",
    )

    operations = commands.add_parser(
        "bench-ops",
        help=(
            "the custom operations beside plain PyTorch and torch.compile; see vtlite/bench_ops.py"
        ),
    )
    operations.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    operations.add_argument(
        "--json", type=Path, help="write the table with the device and the versions"
    )
    operations.add_argument("--ops", help="comma-separated names (default: all)")
    operations.add_argument(
        "--repeats", type=int, help="rounds, each way once a round (default: 25, on a GPU 50)"
    )
    operations.add_argument(
        "--tiny",
        action="store_true",
        help="a smoke test: small sizes, no torch.compile, times that mean nothing",
    )
    kind = operations.add_mutually_exclusive_group()
    kind.add_argument(
        "--models",
        action="store_true",
        help="training steps of whole ViTs instead of single operations",
    )
    kind.add_argument(
        "--estimate",
        action="store_true",
        help="count bytes and arithmetic; run nothing, time nothing",
    )

    networks = commands.add_parser(
        "networks", help="every method on small random networks of timm's kinds; writes the table"
    )
    networks.add_argument("--out", type=Path, default=Path("benchmarks"), metavar="FOLDER")
    networks.add_argument(
        "--network",
        action="append",
        help='a name in the table, such as "DINOv3"; may be given more than once (default: all)',
    )

    classroom = commands.add_parser(
        "classroom", help="make exercises from solutions, and grade what came back"
    )
    actions = classroom.add_subparsers(dest="action", required=True, metavar="ACTION")
    release = actions.add_parser("release", help="make exercises/ from solutions/")
    release.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail if an exercise is not what its solution gives",
    )
    release.add_argument("--exercises", type=Path, default=Path("exercises"))
    grade = actions.add_parser(
        "grade",
        help=(
            "mark FOLDER/STUDENT/ASSIGNMENT.ipynb, FOLDER/STUDENT.ipynb, or what Moodle or Canvas"
            " exports; continues where it stopped"
        ),
    )
    grade.add_argument("folder", type=Path)
    grade.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("grades.csv"),
        help="feedback pages go to the folder of that name",
    )
    grade.add_argument(
        "--assignment",
        default="",
        help="such as 02_fine_tuning; needed when files are named by student alone",
    )
    grade.add_argument(
        "--seconds", type=int, default=180, help="for one whole notebook (default: %(default)s)"
    )
    grade.add_argument(
        "--cell-seconds", type=int, default=30, help="for one cell or check (default: %(default)s)"
    )
    grade.add_argument(
        "--memory", type=int, default=4096, help="MB of data per process (default: %(default)s)"
    )
    grade.add_argument(
        "--disk", type=int, default=256, help="MB of a submission's files (default: %(default)s)"
    )
    grade.add_argument(
        "--workers", type=int, default=2, help="submissions at a time (default: %(default)s)"
    )
    report = actions.add_parser(
        "report", help="one page on the class from the grades, and the points for Moodle and Canvas"
    )
    report.add_argument("grades", type=Path, help="what `classroom grade -o` wrote")
    report.add_argument(
        "-o", "--out", type=Path, help="the page (default: GRADES-report.html beside the grades)"
    )
    report.add_argument(
        "--roster",
        type=Path,
        help="a CSV of the class with ids, such as Canvas and Moodle export; see solutions/README.md",
    )
    progress = actions.add_parser(
        "progress", help="for a learner: which exercises pass, and what comes next"
    )
    progress.add_argument("--exercises", type=Path, default=Path("exercises"))
    progress.add_argument("--lessons", type=Path, default=Path("notebooks"))
    for action in (release, grade, report):
        action.add_argument("--solutions", type=Path, default=Path("solutions"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake prints one sentence and returns 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a letter gets a "?" for it
            stream.reconfigure(errors="replace")
    arguments = _parser().parse_args(argv)
    from vtlite.storage import VTError

    try:
        _run(arguments)
    except VTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted: files that were finished are kept, none is half written", file=sys.stderr
        )
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:  # a folder that can't be made, a file that can't be read
        print(f"error: {error}; check the path and its permissions", file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "tour":
            from vtlite.tour import run

            outputs = {"json": arguments.json, "csv": arguments.csv, "figure": arguments.figure}
            a = arguments
            run(a.methods, a.task, a.backbone, a.epochs, outputs, a.quick_gelu)
        case "list":
            from vtlite.show import list_systems

            list_systems(arguments.group, arguments.json)
        case "show":
            from vtlite.show import show_method

            show_method(arguments.name)
        case "zero-shot":
            _zero_shot(arguments)
        case "data":
            _data(arguments)
        case "pretrain":
            from vtlite.pretrain import pretrain

            out = arguments.out or Path("out") / f"{arguments.name}.safetensors"
            out.parent.mkdir(parents=True, exist_ok=True)
            a = arguments
            pretrain(a.name, out, a.steps, a.lr, a.seed, a.batch_size)
            print(f"written: {out} and its card {out.with_suffix('.md')}")
        case "bench":
            a = arguments
            (_counted if a.counted else _study if a.study else _bench)(a)
        case "bench-ops":
            from vtlite.bench_ops import bench_ops

            a = arguments
            bench_ops(a.device, a.json, a.tiny, a.ops, a.models, a.estimate, a.repeats)
        case "networks":
            from vtlite.networks import NETWORKS, networks

            networks(arguments.out, arguments.network or NETWORKS)
            print(f"written: {arguments.out / 'networks.md'} and networks.json")
        case "classroom":
            _classroom(arguments)


def _zero_shot(arguments: argparse.Namespace) -> None:
    from vtlite.backbones import load_clip
    from vtlite.data.sheets import emoji
    from vtlite.zero_shot import name_pictures

    if arguments.names is None:
        names = list(dict.fromkeys(fact["label"] for fact in emoji("noto")[1]))
    else:
        names = [name.strip() for name in arguments.names.split(",") if name.strip()]
    found = name_pictures(load_clip(), arguments.pictures, names, arguments.template)
    for path, best in zip(arguments.pictures, found, strict=True):
        print(path)
        for name, probability in best:
            print(f"  {probability:6.1%}  {name}")


def _classroom(arguments: argparse.Namespace) -> None:
    from vtlite.storage import VTError

    try:
        import IPython  # noqa: F401
        import nbformat  # noqa: F401
    except ImportError as error:
        raise VTError(
            "the classroom needs IPython and nbformat; install them with: pip install"
            " 'vtlite[classroom]'"
        ) from error
    if arguments.action == "release":
        from vtlite.classroom.release import release

        for path in release(arguments.solutions, arguments.exercises, arguments.check):
            print(f"{'right' if arguments.check else 'written'}: {path}")
        return
    if arguments.action == "report":
        from vtlite.classroom.report import report

        grades = arguments.grades
        out = arguments.out or grades.with_name(f"{grades.stem}-report.html")
        said, written = report(grades, out, arguments.solutions, arguments.roster)
        print(said, *(f"written: {path}" for path in written), sep="\n")
        return
    if arguments.action == "progress":
        from vtlite.classroom.progress import progress

        progress(arguments.exercises, arguments.lessons)
        return
    from vtlite.arguments import whole
    from vtlite.classroom.grade import Limits, grade, what_holds

    numbers = ("seconds", "cell_seconds", "memory", "disk", "workers")
    *amounts, workers = [whole(name, getattr(arguments, name)) for name in numbers]
    limits = Limits(*amounts)
    print(f"limits: {what_holds(limits)}")
    rows = grade(
        arguments.folder,
        arguments.out,
        arguments.solutions,
        arguments.assignment,
        limits,
        workers,
    )
    for row in rows:
        print(f"{row['student']:20} {row['points']:5g} of {row['of']:g}  {row['status']}")
    print(f"written: {arguments.out} and a page per student in {arguments.out.with_suffix('')}")


def _counted(arguments: argparse.Namespace) -> None:
    from vtlite.counting import counted, table
    from vtlite.show import write_between

    found = table(counted(arguments.counted))
    print(found)
    if arguments.update:
        write_between(arguments.update, "counted", found)


def _bench(arguments: argparse.Namespace) -> None:
    from vtlite.arguments import whole
    from vtlite.bench import (
        BENCHED,
        REMAPPED,
        bench,
        costs,
        costs_markdown,
        entries_of,
        markdown,
        summary,
    )
    from vtlite.storage import unknown

    for task in arguments.task or ():
        if task not in BENCHED:
            raise unknown("task", task, BENCHED)
    entries, workers = entries_of(arguments.group), whole("workers", arguments.workers)
    runs = bench(arguments.results, workers, entries, tuple(arguments.task or BENCHED))
    rows = summary([run for run in runs if run["entry"] in entries])
    others = REMAPPED if arguments.group == "remapping" else ()
    measured = costs(arguments.costs, (*entries, *others))
    tables = {
        "accuracy": markdown(rows),
        "costs": costs_markdown([*rows, *({"entry": name} for name in others)], measured),
    }
    print(*tables.values(), sep="\n\n")
    if arguments.update:
        from vtlite.show import write_between

        tables = {
            f"{arguments.group or 'all'}-{name}": table for name, table in tables.items()
        }  # <!-- parameter-costs:begin -->
        text = arguments.update.read_text(encoding="utf-8")
        for name in [
            name for name in tables if f"<!-- {name}:begin -->" in text
        ] or tables:  # without any, the first one says so
            write_between(arguments.update, name, tables[name])


def _study(arguments: argparse.Namespace) -> None:
    from vtlite.arguments import whole
    from vtlite.bench import bench, markdown, summary
    from vtlite.storage import unknown
    from vtlite.studies import OWN_STUDIES, STUDIES

    name, workers = arguments.study, whole("workers", arguments.workers)
    results = arguments.results.with_name(f"{name}.json")
    if name in OWN_STUDIES:
        own = import_module(OWN_STUDIES[name])
        table = own.table(own.run(results, workers))
    elif name in STUDIES:
        study = STUDIES[name]
        runs = bench(results, workers, study.entries, study.tasks, study.epochs)
        table = markdown(summary(runs, study.tasks))
    else:
        raise unknown("study", name, (*STUDIES, *OWN_STUDIES))
    print(table)
    if arguments.update:
        from vtlite.show import write_between

        write_between(arguments.update, name, table)


def _data(arguments: argparse.Namespace) -> None:
    if arguments.action == "build":
        from vtlite.data.build import ASSETS, build

        for path in build(arguments.packages, arguments.fashion, arguments.out or ASSETS):
            print(f"{path} {path.stat().st_size:,} bytes")
        return
    from vtlite.data.tasks import TASKS, load_task

    if arguments.action == "list":
        for name in TASKS:
            print(_about_task(name))
        return
    from vtlite.plots import save_figure, show_task
    from vtlite.storage import VTError

    figure = arguments.figure
    if figure is not None and figure.suffix not in (".png", ".svg", ".pdf"):
        raise VTError(f"expected a figure that ends in .png, .svg or .pdf, found {figure.name}")
    task = load_task(arguments.task)
    path = (
        arguments.figure
        or Path("out") / f"{arguments.task.replace(':', '-').replace('/', '-')}.png"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(show_task(task, rows=3), path)
    print(f"written: {path}")


def _about_task(name: str) -> str:
    """One task in three lines: its kind and sizes, what is asked, where the pictures come from."""
    from vtlite.data.tasks import load_task, source_of
    from vtlite.task import Several, Stream

    task = load_task(name)
    classes = f"{task.num_classes} classes"
    if isinstance(task, Several):
        classes = " and ".join(
            f"{n} ({part.num_classes} classes)" for n, part in task.parts.items()
        )
    if isinstance(task, Stream):
        classes += f"; stages {', '.join(stage.name for stage in task.stages)}"
    sizes = " + ".join(map(str, task.sizes))
    return (
        f"{name}: {type(task).__name__}, {task.group}; {sizes} items; {classes}\n"
        f"    {task.description}\n    {source_of(name)}"
    )


if __name__ == "__main__":
    sys.exit(main())
