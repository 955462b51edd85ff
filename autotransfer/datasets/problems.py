"""How several faults in one input are told in one message."""

from collections.abc import Sequence

from autotransfer.errors import DatasetError

SHOWN = 10


def problems_error(where: str, problems: Sequence[str], advice: Sequence[str] = ()) -> DatasetError:
    """One error for all `problems` found in `where`, each once, followed by what to do.

    Example:
        >>> print(problems_error("labels.csv", ["row 17: the label is empty"], ["Fill it in."]))
        labels.csv, row 17: the label is empty. Fill it in.
    """
    hints = " ".join(dict.fromkeys(advice))
    if len(problems) == 1:
        return DatasetError(f"{where}, {problems[0]}. {hints}".rstrip())
    lines = [f"  - {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  - ... and {len(problems) - SHOWN} more")
    return DatasetError("\n".join([f"Found {len(problems)} problems in {where}:", *lines, hints]).rstrip())


def listed(names: Sequence[str], limit: int = SHOWN) -> str:
    """Names in quotes, shortened past `limit`.

    Example:
        >>> listed(["cat", "dog", "owl"], limit=2)
        "'cat', 'dog' and 1 more"
    """
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
