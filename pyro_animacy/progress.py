"""Progress bars as tqdm has them, where somebody looks: none in a file or a pipe."""

import sys
from typing import Any

import tqdm as library


def tqdm(*arguments: Any, disable: bool = False, **options: Any) -> Any:
    """A bar that is shown in a terminal or a notebook alone; one within another goes at its end.

    Args:
        *arguments: Of `tqdm.tqdm`.
        disable: Show none there either.
        **options: Of `tqdm.tqdm`.
    """
    seen = sys.stderr.isatty() or "ipykernel" in sys.modules
    bar: Any = library.tqdm
    return bar(*arguments, disable=disable or not seen, **{"leave": None, **options})
