"""Surgery: what is kept, what is fresh and what is fixed, for one architecture of each of many families."""

import pytest
import timm
import torch
from random_sources import MORE_FAMILIES, SMALL_FAMILIES, write_source
from torch import nn

from autotransfer.errors import SourceError
from autotransfer.sources import Source, weights_hash
from autotransfer.transfer.surgery import TransferModel, transfer

CLASSES = 3
NESTED_TOO_LITTLE = {"hrnet_w18_small"}  # timm computes its branches together: what lies above stays in a cut network
ENDS_IN_MORE = {"volo_d1_224", "efficientvit_m0"}  # an auxiliary head beside, a norm before the linear layer
ALL_FAMILIES = [
    *SMALL_FAMILIES,
    *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAMILIES),
]


@pytest.fixture(params=ALL_FAMILIES)
def source(request, get_source) -> Source:
    return get_source(request.param)


def cut(source: Source, k: int, upper: str = "drop", f: int = 0, seed: int = 7, **options) -> TransferModel:
    torch.manual_seed(seed)
    options = {"num_classes": CLASSES, **options}
    return transfer(source, transferred_layers=k, upper_layers=upper, frozen_layers=f, **options)


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def is_classifier(model: TransferModel, parameter: nn.Parameter) -> bool:
    return any(parameter is mine for mine in model.classifier.parameters())


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Running means and variances by the name of their module."""
    found = {name: getattr(module, "running_var", None) for name, module in model.named_modules()}
    return {name: value.clone() for name, value in found.items() if value is not None}


@pytest.mark.parametrize("upper", ["drop", "reinit"])
def test_levels_up_to_k_are_the_sources_and_the_rest_is_fresh_or_gone(source, upper):
    pretrained = source.load()
    theirs, their_statistics = dict(pretrained.named_parameters()), statistics(pretrained)
    for k, level in enumerate([None, *source.levels]):
        model = cut(source, k, upper, pretrained=pretrained)
        kept = level.parameters if level else frozenset()
        found = dict(model.backbone.named_parameters())
        assert kept <= found.keys()
        for name, parameter in found.items():
            if not is_classifier(model, parameter):
                assert torch.equal(parameter, theirs[name]) == (name in kept), (k, name)
        for name, value in statistics(model.backbone).items():
            assert torch.equal(value, their_statistics[name]) == (level is not None and name in level.modules), name
        above = source.levels[-1].parameters - kept
        if upper == "reinit" or k == 0:
            assert above <= found.keys()
        elif source.architecture not in NESTED_TOO_LITTLE:
            assert not above & found.keys()


@pytest.mark.parametrize("upper", ["drop", "reinit"])
def test_every_depth_gives_logits_for_the_new_classes(source, upper):
    for k in range(len(source.levels) + 1):
        model = cut(source, k, upper)
        assert model.training
        logits = model(images())
        assert logits.shape == (4, CLASSES)
        assert logits.isfinite().all()
        width = source.levels[k - 1].channels if k and upper == "drop" else source.levels[-1].channels
        assert model.classifier.weight.shape == (CLASSES, width)


def test_a_cut_network_has_the_features_of_the_uncut_one(source):
    pretrained = source.load()
    with torch.inference_mode():
        _, outputs = pretrained.forward_intermediates(images())
        expected = [outputs[level.timm_index].mean(dim=(2, 3)) for level in source.levels[:-1]]
        whole = pretrained.forward_head(pretrained.forward_features(images()), pre_logits=True).flatten(1)
        for level, wanted in zip(source.levels, [*expected, whole], strict=True):
            model = cut(source, level.index, pretrained=pretrained).eval()
            features = model.features(images())
            assert features.shape == (4, level.channels)
            torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-4)


def test_at_full_depth_with_the_sources_classifier_nothing_has_changed(source):
    pretrained = source.load()
    classifier = pretrained.get_classifier()
    if not isinstance(classifier, nn.Linear) or source.architecture in ENDS_IN_MORE:
        pytest.skip("the source's own classifier is more than one linear layer")
    model = cut(source, len(source.levels), num_classes=classifier.out_features).eval()
    model.classifier.load_state_dict(classifier.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(model(images()), pretrained(images()), rtol=1e-4, atol=1e-4)


def depths(source: Source) -> list[tuple[int, int, str]]:
    """Some k with some f > 0."""
    top = len(source.levels)
    middle = max(1, top // 2)
    return [(middle, middle, "drop"), (middle, 1, "reinit"), (top, middle, "drop"), (top, top, "drop")]


def test_frozen_levels_do_not_change_in_training_and_all_else_does(source):
    for k, f, upper in depths(source):
        model = cut(source, k, upper, f)
        frozen = source.levels[f - 1]
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        statistics_before = statistics(model.backbone)
        model.eval().train()  # as between epochs
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
        nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            if name.removeprefix("backbone.") in frozen.parameters:
                assert torch.equal(parameter, before[name]), (k, f, name)
                assert not parameter.requires_grad
            elif parameter.grad is not None and parameter.grad.any():
                assert not torch.equal(parameter, before[name]), (k, f, name)
            else:
                assert parameter.requires_grad
        assert model.classifier.weight.grad is not None
        changed = {
            name
            for name, value in statistics(model.backbone).items()
            if not torch.equal(value, statistics_before[name])
        }
        assert not changed & frozen.modules
        if f < k or upper == "reinit":
            assert changed == set(statistics_before) - frozen.modules - unused_norms(model)


def unused_norms(model: TransferModel) -> set[str]:
    """Norms that are there and take no part in the logits."""
    norms = {n: m for n, m in model.backbone.named_modules() if getattr(m, "running_var", None) is not None}
    return {n for n, m in norms.items() if m.weight is not None and m.weight.requires_grad and m.weight.grad is None}


def test_gradients_reach_everything_that_is_not_frozen(source):
    model = cut(source, len(source.levels))
    nn.functional.cross_entropy(model(images()), torch.tensor([0, 1, 2, 0])).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert len(without) <= 0.05 * len(list(model.parameters())), without


def test_frozen_levels_have_no_randomness_left(tmp_path):
    source = write_source(tmp_path, "test_vit", img_size=64, drop_path_rate=0.6, proj_drop_rate=0.3, attn_drop_rate=0.3)
    frozen, trained = cut(source, 6, f=6), cut(source, 6)
    for model, same in ((frozen, True), (trained, False)):
        assert model.training
        assert torch.equal(model.features(images()), model.features(images())) == same


def test_dropout_before_the_classifier_is_for_training_only(get_source):
    model = cut(get_source("test_vit"), 3, f=3, drop_rate=0.5)
    assert not torch.equal(model(images()), model(images()))
    model.eval()
    assert torch.equal(model(images()), model(images()))


@pytest.mark.parametrize("architecture", ["ghostnet_050", "rexnetr_100"])  # 0.2 in a function, 0.2 in a module
def test_dropout_that_an_architecture_brings_is_replaced_by_the_one_asked_for(architecture, tmp_path):
    source = write_source(tmp_path, architecture)
    top = len(source.levels)
    assert source.build().drop_rate == 0.2
    model = cut(source, top, f=top)
    assert torch.equal(model(images()), model(images()))


def test_the_given_network_is_not_changed(get_source):
    source = get_source("test_efficientnet")
    pretrained = source.load()
    before = weights_hash(pretrained)
    model = cut(source, 3, "reinit", 2, pretrained=pretrained)
    model(images()).sum().backward()
    assert weights_hash(pretrained) == before
    assert not pretrained.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in pretrained.parameters())


def test_a_loaded_network_or_none_makes_no_difference(get_source):
    source = get_source("test_efficientnet")
    assert weights_hash(cut(source, 3, "reinit", pretrained=source.load())) == weights_hash(cut(source, 3, "reinit"))


def test_what_is_fresh_depends_on_the_seed_alone(get_source):
    source = get_source("test_convnext")
    assert weights_hash(cut(source, 0, seed=1)) == weights_hash(cut(source, 0, seed=1))
    assert weights_hash(cut(source, 0, seed=1)) != weights_hash(cut(source, 0, seed=2))


def test_cutting_makes_a_network_smaller(get_source):
    source = get_source("resnet10t")
    sizes = [sum(p.numel() for p in cut(source, k).parameters()) for k in range(1, 6)]
    assert sizes == sorted(sizes)
    heads = [CLASSES * (level.channels + 1) for level in source.levels]
    assert sizes == [level.parameter_count + head for level, head in zip(source.levels, heads, strict=True)]


def test_what_is_reinitialised_has_timms_own_distribution(get_source):
    """Above the cut, each parameter has the mean and spread that it has over timm's own fresh networks."""
    source = get_source("test_efficientnet")
    fresh = [dict(source.build(CLASSES).named_parameters()) for _ in range(12)]
    made = [dict(cut(source, 2, "reinit", seed=seed).backbone.named_parameters()) for seed in range(12)]
    for name in source.levels[-1].parameters - source.levels[1].parameters:
        theirs, ours = (torch.stack([network[name].detach() for network in kind]) for kind in (fresh, made))
        spread = theirs.std()
        assert (ours.mean() - theirs.mean()).abs() <= 6 * spread / theirs.numel() ** 0.5 + 1e-8, name
        assert ours.std() == pytest.approx(spread.item(), rel=6 / theirs.numel() ** 0.5 + 1e-6), name


def test_an_architecture_that_cannot_be_cut_is_offered_at_full_depth_only(tmp_path, monkeypatch, caplog):
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    source = write_source(tmp_path, "resnet10t")
    (level,) = source.levels
    assert "is offered at full depth only: ResNet cannot be cut" in caplog.text
    assert source.name in caplog.text
    model, pretrained = cut(source, 1).eval(), source.load()
    assert level.parameters == {name for name, _ in pretrained.named_parameters()} - {"fc.weight", "fc.bias"}
    with torch.inference_mode():
        whole = pretrained.forward_head(pretrained.forward_features(images()), pre_logits=True)
        torch.testing.assert_close(model.features(images()), whole)
    assert cut(source, 0)(images()).shape == (4, CLASSES)
    with pytest.raises(SourceError, match=rf"transferred_layers must be 0\.\.1 for '{source.name}' but got 2"):
        cut(source, 2)


@pytest.mark.parametrize("k", [-1, 6])
def test_a_depth_out_of_range_is_told(get_source, k):
    with pytest.raises(SourceError, match=rf"transferred_layers must be 0\.\.5 for 'local-dir:.*' but got {k}\."):
        cut(get_source("resnet10t"), k)


@pytest.mark.parametrize(("k", "f"), [(3, 4), (3, -1), (0, 1)])
def test_more_frozen_than_transferred_is_told(get_source, k, f):
    with pytest.raises(SourceError, match=rf"frozen_layers must be 0\.\.{k} \(transferred_layers\) but got {f}\."):
        cut(get_source("resnet10t"), k, f=f)
