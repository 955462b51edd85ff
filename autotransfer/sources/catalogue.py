"""The catalogue: from the patterns that users write to sources.

A pattern is a timm name or glob (`resnet18.a1_in1k`, `convnext_*.fb_in1k`), `hf-hub:org/model`,
`local-dir:PATH` (globs match folders), or `embedded:NAME` (globs too; `embedded:*` is all of them).
"""

import difflib
import fnmatch
import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterable, Sequence
from glob import glob, has_magic
from pathlib import Path

from autotransfer.errors import SourceError
from autotransfer.sources.embedded import embedded_folder, embedded_names
from autotransfer.sources.source import Source

logger = logging.getLogger(__name__)


def find_sources(patterns: Iterable[str]) -> list[Source]:
    """The sources that `patterns` name, in the patterns' order, each once.

    Raises:
        SourceError: a pattern matches nothing; the message says what was looked for and what comes near.
    """
    found: dict[str, Source] = {}
    for pattern in patterns:
        for source in _match(pattern):
            found.setdefault(source.name, source)
    return list(found.values())


def load_plugins(modules: Sequence[str]) -> None:
    """Import user modules that register architectures with timm.

    Args:
        modules: importable names (`my_models`) or paths of Python files (`../models/my_models.py`).

    Raises:
        SourceError: a module cannot be found or fails on import.
    """
    for module in modules:
        try:
            _import_plugin(module)
        except SourceError:
            raise
        except Exception as error:  # a user's module may raise anything
            raise SourceError(
                f"plugin '{module}' failed on import: {type(error).__name__}: {error}. "
                "A plugin is a Python module that registers architectures with timm.models.register_model."
            ) from error


def plugin_file(module: str) -> Path:
    """The file of a loaded plugin."""
    return Path(str(sys.modules[plugin_name(module)].__file__))


def plugin_name(module: str) -> str:
    """The name that a plugin, given by name or file, is imported under."""
    return Path(module).stem if module.endswith(".py") else module


def _import_plugin(module: str) -> None:
    if plugin_name(module) in sys.modules and not module.endswith(".py"):
        return
    if not module.endswith(".py"):
        if importlib.util.find_spec(module) is None:
            raise SourceError(
                f"plugin '{module}' cannot be found. Give the path of its file (--plugin path/to/{module}.py) "
                "or put its folder on PYTHONPATH."
            )
        importlib.import_module(module)
        return
    path = Path(module).expanduser().resolve()
    if not path.is_file():
        raise SourceError(f"plugin '{module}': no such file (looked for {path}).")
    if path.stem in sys.modules:
        if Path(str(getattr(sys.modules[path.stem], "__file__", ""))).resolve() == path:
            return
        raise SourceError(
            f"plugin '{module}': another module is called '{path.stem}' already. Give the file a name of its own."
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SourceError(f"plugin '{module}' is not a Python file.")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[path.stem]
        raise


def _match(pattern: str) -> list[Source]:
    scheme, _, rest = pattern.partition(":")
    if scheme == "embedded" and rest:
        return _match_embedded(rest)
    if scheme == "local-dir" and rest:
        return _match_folders(rest)
    if scheme == "hf-hub" and rest:
        return [Source(name=pattern, timm_name=pattern, kind="hf-hub")]
    return _match_timm(pattern)


def _match_embedded(pattern: str) -> list[Source]:
    names = [name for name in embedded_names() if fnmatch.fnmatch(name, pattern)]
    if not names:
        raise SourceError(f"no embedded source matches '{pattern}'. There are: {', '.join(embedded_names())}.")
    return [
        Source(name=f"embedded:{name}", timm_name=f"local-dir:{embedded_folder(name)}", kind="embedded")
        for name in names
    ]


def _match_folders(pattern: str) -> list[Source]:
    expanded = str(Path(pattern).expanduser())
    literal = Path(expanded).is_dir() or not has_magic(expanded)
    folders = [expanded] if literal else sorted(glob(expanded))  # noqa: PTH207, Path.glob takes no absolute one
    usable = [Path(folder) for folder in folders if (Path(folder) / "config.json").is_file()]
    if not usable:
        raise SourceError(
            f"no source in 'local-dir:{pattern}': a source is a folder with timm's config.json and "
            "model.safetensors (what timm.models.save_for_hf writes)."
        )
    return [
        Source(name=f"local-dir:{folder}", timm_name=f"local-dir:{folder.resolve()}", kind="local-dir")
        for folder in usable
    ]


def _match_timm(pattern: str) -> list[Source]:
    import timm

    known = timm.list_pretrained()
    if has_magic(pattern):
        names = [name for name in known if fnmatch.fnmatch(name, pattern)]
    elif pattern in known:
        names = [pattern]
    elif "." not in pattern and timm.is_model(pattern):
        names = [f"{pattern}.{tag}" for tag in _default_tag(pattern)]
    else:
        names = []
    if not names:
        near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise SourceError(
            f"no source matches '{pattern}'.{hint} `autotransfer sources PATTERN` lists what timm has; "
            "local-dir:PATH, hf-hub:ORG/MODEL and embedded:NAME name the others."
        )
    return [Source(name=name, timm_name=name, kind="timm") for name in names]


def _default_tag(architecture: str) -> list[str]:
    import timm

    config = timm.get_pretrained_cfg(architecture)
    return [config.tag] if config is not None and config.tag and config.has_weights else []
