"""The small pretrained sources that travel inside the package.

Each source is a folder in timm's hub layout (`config.json`, `model.safetensors`, `README.md`), so
`timm.create_model("local-dir:" + str(embedded_folder(name)), pretrained=True)` opens it without autotransfer.
They were trained by `python -m autotransfer.sources.embedded.build` on images that the recipe generates.
"""

from pathlib import Path

from autotransfer.errors import SourceError

__all__ = ["embedded_folder", "embedded_names"]

_ROOT = Path(__file__).resolve().parent


def embedded_names() -> tuple[str, ...]:
    """Name every source shipped in the package, sorted.

    Example:
        >>> "resnet10t.glyphs" in embedded_names()
        True
    """
    folders = (path.parent for path in _ROOT.glob("*/model.safetensors"))
    return tuple(sorted(folder.name for folder in folders if (folder / "config.json").is_file()))


def embedded_folder(name: str) -> Path:
    """Return the folder of an embedded source, ready for timm's `local-dir:` scheme.

    Args:
        name: one of `embedded_names()`, without the `embedded:` prefix.

    Raises:
        SourceError: there is no embedded source of that name.

    Example:
        >>> embedded_folder("resnet10t.glyphs").name
        'resnet10t.glyphs'
    """
    known = embedded_names()
    if name not in known:
        raise SourceError(
            f"There is no embedded source {name!r}. Embedded sources: {', '.join(known) or 'none'}. "
            "Write one of them as embedded:NAME."
        )
    return _ROOT / name
