"""Copies through an auto-encoder: against a second writing of the net, for any size, and looked at once."""

import sys
import types
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fakedet
from fakedet.errors import UserError
from fakedet.methods.destroy import Joined, TraceDestroyer
from fakedet.models.autoencoders import DiffusersAutoencoder, TinyAutoencoder
from fakedet.models.backbones import FrozenEncoder
from fakedet.models.features import FeatureCache

NAMES = {False: ("plain", 4), True: ("pools", 32)}


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    FeatureCache.clear()
    monkeypatch.delenv("FAKEDET_FEATURES", raising=False)


def files(folder: Path, pools: bool, scale: float = 0.04) -> dict[str, dict[str, Tensor]]:
    """Write random weights of the published layout, by the names of their layers alone."""
    name, latent = NAMES[pools]
    generator = torch.Generator().manual_seed(int(pools))
    states: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}

    def put(part: str, key: str, shape: tuple[int, ...], bias: bool = True) -> None:
        states[part][f"{key}.weight"] = scale * torch.randn(shape, generator=generator)
        states[part] |= {f"{key}.bias": 0.1 * torch.randn(shape[0], generator=generator)} if bias else {}

    def block(part: str, index: int, middle: bool) -> None:
        for layer in (0, 2, 4):
            put(part, f"{index}.conv.{layer}", (64, 64, 3, 3))
        if middle and pools:
            put(part, f"{index}.pool.0", (256, 64, 1, 1), bias=False)
            put(part, f"{index}.pool.1", (256,))
            put(part, f"{index}.pool.3", (64, 256, 1, 1), bias=False)

    for part, ends, halves, blocks in (
        ("encoder", {"0": (64, 3), "14": (latent, 64)}, (2, 6, 10), (1, 3, 4, 5, 7, 8, 9, -11, -12, -13)),
        ("decoder", {"1": (64, latent), "19": (3, 64)}, (7, 12, 17), (-3, -4, -5, 8, 9, 10, 13, 14, 15, 18)),
    ):
        for key, shape in ends.items():
            put(part, key, (*shape, 3, 3))
        for index in halves:
            put(part, str(index), (64, 64, 3, 3), bias=False)
        for index in blocks:
            block(part, abs(index), index < 0)
    for part, state in states.items():
        torch.save(state, folder / f"{name}_{part}.pth")
    return states


def naive(states: dict[str, dict[str, Tensor]], x: Tensor) -> Tensor:
    """Encode and decode by functions, layer by layer."""

    def convolve(part: str, key: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = states[part][f"{key}.weight"]
        return F.conv2d(x, weight, states[part].get(f"{key}.bias"), stride, weight.shape[-1] // 2)

    def block(part: str, index: int, x: Tensor) -> Tensor:
        if f"{index}.pool.0.weight" in states[part]:
            wide = convolve(part, f"{index}.pool.0", x)
            groups = wide.unflatten(1, (4, 64))
            mean, var = groups.mean((2, 3, 4), True), groups.var((2, 3, 4), correction=0, keepdim=True)
            normed = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
            scale, shift = (states[part][f"{index}.pool.1.{one}"].view(1, -1, 1, 1) for one in ("weight", "bias"))
            x = x + convolve(part, f"{index}.pool.3", (normed * scale + shift).clamp(min=0))
        inner = convolve(part, f"{index}.conv.0", x).clamp(min=0)
        inner = convolve(part, f"{index}.conv.2", inner).clamp(min=0)
        return (convolve(part, f"{index}.conv.4", inner) + x).clamp(min=0)

    x = block("encoder", 1, convolve("encoder", "0", x))
    for down, blocks in ((2, (3, 4, 5)), (6, (7, 8, 9)), (10, (11, 12, 13))):
        x = convolve("encoder", str(down), x, stride=2)
        for index in blocks:
            x = block("encoder", index, x)
    x = convolve("encoder", "14", x)
    x = convolve("decoder", "1", 3 * torch.tanh(x / 3)).clamp(min=0)
    for blocks, up in (((3, 4, 5), 7), ((8, 9, 10), 12), ((13, 14, 15), 17)):
        for index in blocks:
            x = block("decoder", index, x)
        x = convolve("decoder", str(up), x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    return convolve("decoder", "19", block("decoder", 18, x))


@pytest.mark.parametrize("pools", [False, True])
def test_weights_of_either_layout_give_what_their_layers_say(pools: bool, tmp_path: Path) -> None:
    states = files(tmp_path, pools)
    x = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    wanted = naive(states, x)
    for path in (tmp_path, tmp_path / NAMES[pools][0]):
        torch.testing.assert_close(TinyAutoencoder(path)(x), wanted, rtol=1e-4, atol=1e-4)
    files(tmp_path, not pools)  # now a folder with two nets: one of them is named
    torch.testing.assert_close(TinyAutoencoder(str(tmp_path / NAMES[pools][0]))(x), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"must hold one file \*_encoder.*plain_encoder.pth, pools_encoder.pth"):
        TinyAutoencoder(tmp_path)


def test_missing_and_foreign_weights_are_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "taef2", tmp_path / "nowhere" / "taef2"):
        with pytest.raises(UserError, match=r"no such file.*NAME_decoder.pth.*github.com/madebyollin/taesd"):
            TinyAutoencoder(path)
    with pytest.raises(UserError, match=r"kind vae need a tiny auto-encoder.*FAKEDET_VAE"):
        TraceDestroyer(["vae"], autoencoder=TinyAutoencoder())
    for part in ("encoder", "decoder"):
        torch.save({"0.weight": torch.zeros(3)}, tmp_path / f"other_{part}.pth")
    with pytest.raises(UserError, match=r"other holds weights of another model.*fetch"):
        TinyAutoencoder(tmp_path / "other")
    with pytest.raises(UserError, match=r"need model\.copies\.autoencoder"):
        TraceDestroyer(["vae"])


class Shifted(nn.Module):
    """Takes sizes that are multiples of 8; moves the picture by a pixel, so that it shows where it was padded."""

    calls = 0

    def __init__(self, by: float = 0.0) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, images: Tensor) -> Tensor:
        assert not images.shape[-1] % 8
        assert not images.shape[-2] % 8
        Shifted.calls += len(images)
        return images.roll(-1, dims=3) + self.by


@pytest.mark.parametrize(("height", "width"), [(24, 24), (23, 17), (9, 8), (3, 2)])
def test_copies_have_the_size_of_their_originals(height: int, width: int) -> None:
    x = (torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    made = TraceDestroyer(["vae"], min_strength=1.0, autoencoder=Shifted())(x, torch.Generator())
    beyond = x[..., :1] if width % 8 == 0 else x[..., -2:-1] if width > 8 else x[..., -1:]
    torch.testing.assert_close(made, torch.cat([x[..., 1:], beyond], dim=3), atol=3e-3, rtol=0)


def test_a_copy_depends_on_its_image_and_draws_alone(tmp_path: Path) -> None:
    files(tmp_path, True)
    destroyer = TraceDestroyer(["vae", "resample"], recompress=[75, 96], autoencoder=TinyAutoencoder(tmp_path))
    x, draws = torch.rand(6, 3, 30, 30), torch.rand(6, destroyer.width)
    made = destroyer(x, draws=draws)
    assert torch.equal(destroyer(x.flip(0), draws=draws.flip(0)).flip(0), made)
    assert torch.equal(destroyer(x[2:3], draws=draws[2:3])[0], made[2])
    assert not destroyer.state_dict()  # checkpoints hold no copies
    assert not list(destroyer.parameters())


def test_an_auto_encoder_of_the_users_own_is_checked() -> None:
    for wrong in (nn.AvgPool2d(2), nn.Conv2d(3, 3, 8)):
        with pytest.raises(UserError, match=r"model.copies.autoencoder: \w+2d maps black images .* to \(1, 3, "):
            TraceDestroyer(["vae"], autoencoder=wrong)


def frozen() -> FrozenEncoder:
    torch.manual_seed(0)
    return FrozenEncoder("test_efficientnet", False, input_size=None, hidden=8).eval()


def test_fixed_copies_are_made_and_looked_at_once(tmp_path: Path) -> None:
    encoder, other = frozen(), frozen()
    x = torch.rand(4, 3, 40, 40)
    draws, changed = torch.rand(3, 11), torch.rand(3, 11)

    def embedded(by: float = 0.0, rows: Tensor = draws, fixed: bool = True, **settings: float) -> tuple[Tensor, int]:
        destroyer = TraceDestroyer(["vae"], autoencoder=Shifted(by), **settings)  # type: ignore[arg-type]
        Shifted.calls = 0
        return Joined(x, x[1:], destroyer, rows, fixed, [encoder, other]).embed(encoder), Shifted.calls

    known, calls = embedded()
    assert known.shape == (7, 8)
    assert calls == 3
    anew, calls = embedded(fixed=False)
    assert calls == 3
    torch.testing.assert_close(anew, known)
    again, calls = embedded()  # another object with the same settings, as in the next run
    assert calls == 0
    assert torch.equal(again, known)
    FeatureCache.keep(tmp_path / "f.pt")
    FeatureCache.clear()
    FeatureCache.restore(tmp_path / "f.pt")
    assert embedded()[1] == 0
    for difference in ({"by": 0.1}, {"rows": changed}, {"min_strength": 0.9}, {"recompress": [50, 60]}):
        width = 14 if "recompress" in difference else 11
        rows = torch.rand(3, width) if width == 14 else difference.pop("rows", draws)
        others, calls = embedded(rows=rows, **difference)
        assert calls == 3
        assert torch.equal(others[:4], known[:4])
        assert not torch.allclose(others[4:], known[4:])


def test_an_encoder_that_is_trained_sees_the_copies_themselves() -> None:
    seen = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
    x, destroyer = torch.rand(2, 3, 16, 16), TraceDestroyer(["vae"], autoencoder=Shifted())
    draws = torch.rand(2, destroyer.width)
    made = Joined(x, x, destroyer, draws, True, [seen, frozen()]).embed(seen)
    assert torch.equal(made, seen(torch.cat([x, destroyer(x, draws=draws)])))


def test_diffusers_models_are_called_in_their_own_range(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(nn.Module):
        @classmethod
        def from_pretrained(cls, name: str, subfolder: str | None) -> nn.Module:
            if name != "here" or subfolder != "vae":
                raise OSError("nothing there")
            return cls()

        def encode(self, x: Tensor) -> types.SimpleNamespace:
            assert float(x.min()) < 0.0
            return types.SimpleNamespace(latent_dist=types.SimpleNamespace(mode=lambda: x))

        def decode(self, latent: Tensor) -> types.SimpleNamespace:
            return types.SimpleNamespace(sample=latent / 2)

    monkeypatch.setitem(sys.modules, "diffusers", types.SimpleNamespace(AutoencoderKL=Half))
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(DiffusersAutoencoder("here", "vae")(x), 0.25 + x / 2)
    with pytest.raises(UserError, match=r"no AutoencoderKL 'there' here: .*nothing there"):
        DiffusersAutoencoder("there")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"diffusers cannot be imported.*pip install diffusers"):
        DiffusersAutoencoder("here")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_diffusers_own_models_are_loaded_from_a_folder(kind: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    if kind == "AutoencoderKL":
        model = diffusers.AutoencoderKL(block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
                                        up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip
    else:
        model = diffusers.AutoencoderTiny()
    model.save_pretrained(tmp_path / "vae")
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        coded = model.eval().encode(2 * x - 1)
        wanted = (model.decode(coded.latent_dist.mean if kind == "AutoencoderKL" else coded.latents).sample + 1) / 2
    torch.testing.assert_close(DiffusersAutoencoder(str(tmp_path), "vae", kind)(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bce", "ntf"])
def test_a_second_training_makes_no_copies(
    model: str, tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies in stage 2, and in stage 1 for NTF; the first training makes each once in its two epochs."""
    files(tmp_path, False)
    forward, made = TinyAutoencoder.forward, list[int]()
    monkeypatch.setattr(TinyAutoencoder, "forward", lambda net, x: made.append(len(x)) or forward(net, x))
    kinds = ["copies.kinds=[vae]", f"copies.autoencoder.path='{tmp_path / 'plain'}'", "fixed_copies=true"]
    settings = [f"model.{one}" for one in (*kinds, "copies_per_real=1")]
    settings += [f"stage1.{one}" for one in kinds if model == "ntf"]
    logits = []
    for folder in ("first", "second"):
        made.clear()
        run = fakedet.train(
            "experiment=" + {"bce": "frozen", "ntf": "ntf_frozen"}[model], f"model={model}", *settings,
            f"data.manifest={tiny_manifest}", "data.crop_size=64", "model.encoder.name=test_efficientnet",
            "model.encoder.pretrained=false", "model.encoder.weights=null", "model.encoder.input_size=null",
            "model.encoder.hidden=8", "trainer.max_epochs=2", "header_audit=false", "threads=1", "seed=3",
            output_dir=tmp_path / folder,
        )  # fmt: skip
        logits.append(pd.read_parquet(run.folder / "predictions.parquet")["logit"])
        if folder == "first":
            # The training split's reals: for NTF by the random backbones of stage 1, of the source and of stage 2.
            reals = 16 * {"bce": 1, "ntf": 3}[model]
            assert reals <= sum(made) <= reals + 4  # and the checks at the start
    assert sum(made) <= 4  # the checks at the start
    assert logits[0].equals(logits[1])
