"""What the lessons need besides the package itself: the source of a definition, shown where it is
taught."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtlite.storage import VTError

if TYPE_CHECKING:
    from IPython.display import Markdown

_PACKAGE = Path(__file__).parent


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
