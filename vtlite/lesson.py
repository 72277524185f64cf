"""What the lessons need besides the package itself: source shown where it is taught, figures with a
text for those who cannot see them, sentences computed from results, and a number to play with."""

from __future__ import annotations

import inspect
import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vtlite.storage import VTError
from vtlite.version import __version__

if TYPE_CHECKING:
    from IPython.display import Markdown
    from matplotlib.figure import Figure

_PACKAGE = Path(__file__).parent
_OLDEST_TORCH = (2, 8)


def set_up(seed: int = 0) -> None:
    """Stop in a sentence under a torch that is too old; else seed it, and print the versions."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise SystemExit(
            f"The lessons need torch {oldest} or newer, found {torch.__version__}:"
            " pip install --upgrade torch torchvision"
        )
    torch.manual_seed(seed)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, vtlite {__version__}, {threads} threads, seed {seed}")


def show_source(obj: Any) -> Markdown:
    """The source of a class, function or method of vtlite, as a highlighted block under the name of
    its file.

    A lesson shows the lines that matter this way and never pastes them: there is one definition.
    Raises `VTError` for what has no source in the package, such as a value or a built-in.
    """
    from IPython.display import Markdown

    try:
        obj = inspect.unwrap(obj)  # from under a decorator such as torch.no_grad
        file, source = Path(inspect.getfile(obj)).resolve(), textwrap.dedent(inspect.getsource(obj))
        name = f"vtlite/{file.relative_to(_PACKAGE).as_posix()}"
    except (
        TypeError,
        OSError,
        ValueError,
    ) as error:  # no source at all, or a file outside the package
        raise VTError(
            f"expected a class, function or method of vtlite, found {type(obj).__name__}"
            f" {getattr(obj, '__name__', obj)}; pass the object itself"
        ) from error
    return Markdown(f"`{name}`\n```python\n{source}```")


def show_figure(figure: Figure, alt: str) -> None:
    """Show a figure with its alt text, and close it.

    `alt` says what is drawn: the kind of picture, its axes, its curves. How it came out is for
    `read`. JupyterLab drops the alt text of an output, so it also stands below, folded. Raises
    `VTError` for a text too short to say what is drawn.
    """
    import matplotlib.pyplot as plt
    from IPython.display import Image, Markdown, display

    if len(alt) < 30:
        raise VTError(
            f"expected an alt text that says what the figure draws, found {alt!r}; name its kind,"
            " its axes and its curves"
        )
    png = io.BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight")
    plt.close(figure)
    display(Image(png.getvalue(), alt=alt))
    display(Markdown(f"<details><summary>The figure in words</summary>{alt}</details>"))


def read(*sentences: str) -> None:
    """Display what there is to read from a result: sentences computed from it."""
    from IPython.display import Markdown, display

    display(Markdown("*Read*: " + " ".join(sentence for sentence in sentences if sentence)))


def claim(condition: Any, sentence: str, otherwise: str | None = None) -> str:
    """`sentence` where the result shows it, else `otherwise`.

    Without `otherwise` the sentence must be true: an `AssertionError` stops the lesson, whose text
    then has to say the other thing.
    """
    if condition:
        return sentence
    assert otherwise is not None, f"the result does not show this: {sentence}"
    return otherwise


def against(value: float, other: float, noise: float = 0.01) -> str:
    """How one accuracy in [0, 1] stands to another, in words to be followed by the other's name:
    "2.1 points above", "2.1 points below", or "within 1 point of" where they differ by no more than
    `noise`."""
    points = round(100 * (value - other), 6)
    if abs(points) <= 100 * noise:
        return f"within {100 * noise:.2g} point{'s' * (noise != 0.01)} of"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: "a, b and c", or "none"."""
    if len(names) < 2:
        return names[0] if names else "none"
    return f"{', '.join(names[:-1])} and {names[-1]}"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Markdown:
    """Rows of values as a Markdown table; columns of numbers stand at the right."""
    from IPython.display import Markdown

    numbers = [
        all(str(value)[:1] in "+-0123456789" for value in column)
        for column in zip(*rows, strict=True)
    ]
    rule = "|" + "|".join("---:" if number else "---" for number in numbers) + "|"
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (columns, *rows)]
    return Markdown("\n".join([lines[0], rule, *lines[1:]]))


def knob(turn: Callable[[Any], object], start: Any, values: Sequence[Any]) -> None:
    """Run `turn(start)`, and below it, where ipywidgets is installed, offer a slider over `values`
    that runs it again. Without a slider a reader changes `start` in the cell, to any number."""
    from IPython.display import display

    turn(start)
    try:
        import ipywidgets
    except ImportError:
        return
    slider = ipywidgets.SelectionSlider(
        options=sorted({*values, start}), value=start, continuous_update=False, description="turn"
    )
    output = ipywidgets.Output()

    def moved(change: dict[str, Any]) -> None:
        output.clear_output(wait=True)
        with output:
            turn(change["new"])

    slider.observe(moved, names="value")
    display(ipywidgets.VBox([slider, output]))
