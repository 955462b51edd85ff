"""The catalogue: what patterns mean, and what is said when they mean nothing."""

import sys
from pathlib import Path

import pytest
import timm
from random_sources import write_source

from autotransfer.errors import SourceError
from autotransfer.sources import find_sources, load_plugins, plugin_file
from autotransfer.sources.embedded import embedded_folder, embedded_names

PLUGIN = """
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models._builder import build_model_with_cfg

@register_model
def {architecture}(pretrained=False, **kwargs):
    return build_model_with_cfg(ResNet, "{architecture}", pretrained, block=BasicBlock, layers=(1, 1, 1, 1), **kwargs)
"""


@pytest.fixture
def plugin(tmp_path: Path):
    """Write a plugin `name`.py that registers an architecture; forgotten by Python and timm afterwards."""
    written = []

    def write(name: str, text: str | None = None) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(PLUGIN.format(architecture=f"{name}_net") if text is None else text)
        written.append(name)
        return path

    yield write
    for name in written:
        sys.modules.pop(name, None)


def names(*patterns: str) -> list[str]:
    return [source.name for source in find_sources(patterns)]


def test_a_name_with_its_tag_is_that_source():
    (source,) = find_sources(["resnet18.tv_in1k"])
    assert (source.name, source.timm_name, source.kind) == ("resnet18.tv_in1k", "resnet18.tv_in1k", "timm")
    assert source.folder is None


def test_a_bare_architecture_is_its_default_weights():
    (name,) = names("resnet18")
    assert name == f"resnet18.{timm.get_pretrained_cfg('resnet18').tag}"


def test_a_glob_is_every_pretrained_source_that_it_matches():
    found = names("convnext_atto*.d2_in1k")
    assert found == [name for name in timm.list_pretrained("convnext_atto*") if name.endswith(".d2_in1k")]
    assert len(found) >= 1
    assert len(names("resnet18.*")) > 3


def test_patterns_keep_their_order_and_each_source_comes_once():
    found = names("resnet18.tv_in1k", "embedded:*", "resnet18.*")
    assert found[0] == "resnet18.tv_in1k"
    assert found[1 : 1 + len(embedded_names())] == [f"embedded:{name}" for name in embedded_names()]
    assert len(found) == len(set(found))


def test_embedded_sources_are_found_by_name_and_glob():
    assert names("embedded:*") == [f"embedded:{name}" for name in embedded_names()]
    (source,) = find_sources(["embedded:test_vit.fractals"])
    assert (source.kind, source.folder) == ("embedded", embedded_folder("test_vit.fractals"))
    assert names("embedded:test_vit.frac*") == ["embedded:test_vit.fractals"]
    tasks = [f"embedded:{name}" for name in embedded_names() if name.startswith("resnet10t.")]
    assert names("embedded:resnet10t.*") == tasks and len(tasks) > 1


def test_folders_are_found_by_path_and_glob(tmp_path: Path):
    for name in ("first", "second"):
        write_source(tmp_path / name, "test_vit", img_size=64)
    (tmp_path / "no source").mkdir()
    (source,) = find_sources([f"local-dir:{tmp_path / 'first'}"])
    assert (source.name, source.kind, source.folder) == (
        f"local-dir:{tmp_path / 'first'}",
        "local-dir",
        tmp_path / "first",
    )
    assert names(f"local-dir:{tmp_path}/*") == [f"local-dir:{tmp_path / name}" for name in ("first", "second")]


def test_a_folder_may_have_the_signs_of_a_glob_in_its_name(tmp_path: Path):
    folder = tmp_path / "run[1]"
    assert write_source(folder, "test_vit", img_size=64).name == f"local-dir:{folder}"


def test_home_is_expanded(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_source(tmp_path / "models" / "mine", "test_vit", img_size=64)
    assert find_sources(["local-dir:~/models/mine"])[0].folder == tmp_path / "models" / "mine"


def test_a_hub_name_is_taken_without_asking_the_hub():
    (source,) = find_sources(["hf-hub:some-org/some-model"])
    assert (source.name, source.kind) == ("hf-hub:some-org/some-model", "hf-hub")


@pytest.mark.parametrize("typo", ["resnt18", "resnet18.a1_in1kk", "Resnet18"])
def test_a_typing_error_gets_a_hint(typo):
    with pytest.raises(SourceError, match=rf"no source matches '{typo}'\. Did you mean resnet18\."):
        find_sources([typo])


@pytest.mark.parametrize("pattern", ["qqqzzzxxx", "", "qq*zz", "embedded:", "local-dir:", "hf-hub:"])
def test_a_pattern_that_matches_nothing_tells_the_ways_to_name_sources(pattern):
    with pytest.raises(SourceError, match=r"local-dir:PATH, hf-hub:ORG/MODEL and embedded:NAME"):
        find_sources(["resnet18", pattern])


def test_an_architecture_without_weights_is_no_source(plugin):
    load_plugins([str(plugin("no_weights_plugin"))])
    with pytest.raises(SourceError, match="no source matches 'no_weights_plugin_net'"):
        find_sources(["no_weights_plugin_net"])


def test_an_unknown_embedded_source_lists_those_there_are():
    with pytest.raises(SourceError, match=r"'nothing\*'.*resnet10t\.glyphs.*test_vit\.fractals"):
        find_sources(["embedded:nothing*"])


@pytest.mark.parametrize("pattern", ["missing", "*"])
def test_a_folder_that_is_no_source_says_what_is_one(tmp_path: Path, pattern):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"config\.json and model\.safetensors"):
        find_sources([f"local-dir:{tmp_path / pattern}"])


def test_a_plugin_file_adds_its_architectures(tmp_path: Path, plugin):
    path = plugin("file_plugin")
    load_plugins([str(path)])
    assert timm.is_model("file_plugin_net")
    source = write_source(tmp_path / "model", "file_plugin_net")
    assert [level.channels for level in source.levels] == [64, 64, 128, 256, 512]
    assert plugin_file(str(path)) == plugin_file("file_plugin") == path


def test_a_plugin_module_is_imported_by_name(tmp_path: Path, plugin, monkeypatch):
    path = plugin("module_plugin")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["module_plugin"])
    assert timm.is_model("module_plugin_net")
    assert plugin_file("module_plugin") == path


def test_a_plugin_runs_once(tmp_path: Path, plugin):
    path = plugin("counting_plugin", f"open({str(tmp_path / 'runs')!r}, 'a').write('x')")
    load_plugins([str(path)])
    load_plugins([str(path), str(path)])
    assert (tmp_path / "runs").read_text() == "x"


def test_a_plugin_that_fails_is_told_and_may_be_mended(plugin):
    path = plugin("failing_plugin", "raise OSError('disk on fire')")
    with pytest.raises(SourceError, match=r"failing_plugin\.py' failed on import: OSError: disk on fire"):
        load_plugins([str(path)])
    path = plugin("failing_plugin")
    load_plugins([str(path)])
    assert timm.is_model("failing_plugin_net")


def test_a_plugin_with_a_syntax_error_is_told(plugin):
    with pytest.raises(SourceError, match="failed on import: SyntaxError"):
        load_plugins([str(plugin("garbled_plugin", "def ("))])


def test_a_plugin_that_registers_nothing_leaves_its_architecture_unknown(tmp_path: Path, plugin):
    source = write_source(tmp_path / "model", "test_vit", img_size=64)
    config = source.folder / "config.json"
    config.write_text(config.read_text().replace("test_vit", "nothing_plugin_net"))
    load_plugins([str(plugin("nothing_plugin", "ANSWER = 42"))])
    with pytest.raises(SourceError, match=r"no architecture 'nothing_plugin_net'.*--plugin"):
        _ = find_sources([source.name])[0].levels


def test_an_absent_plugin_says_where_it_was_looked_for(tmp_path: Path):
    with pytest.raises(SourceError, match=rf"no such file \(looked for {tmp_path}/gone\.py\)"):
        load_plugins([str(tmp_path / "gone.py")])
    with pytest.raises(SourceError, match=r"'no_such_plugin' cannot be found.*--plugin path/to/no_such_plugin\.py"):
        load_plugins(["no_such_plugin"])


def test_a_plugin_with_the_name_of_another_module_is_told(tmp_path: Path):
    path = tmp_path / "json.py"
    path.write_text("raise AssertionError")
    with pytest.raises(SourceError, match=r"another module is called 'json' already.*name of its own"):
        load_plugins([str(path)])
