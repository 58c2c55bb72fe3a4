"""The methods of experiments/wide, which no package knows, against numpy and scikit-learn, and trained end to end."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import fakedet
from fakedet.models.features import FeatureCache

WIDE = Path(__file__).parent.parent / "experiments" / "wide"
SMALL: dict[str, Any] = {
    "model__encoder__name": "test_vit", "model__encoder__pretrained": False, "model__encoder__weights": None,
    "model__encoder__input_size": 160, "model__encoder__levels": [-2, -1], "data__crop_size": 40,
    "data__batch_size": 16, "threads": 1, "header_audit": False, "bootstrap__resamples": 0, "pictures": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch, tiny_manifest: Path) -> None:
    FeatureCache.clear()
    monkeypatch.delenv("FAKEDET_FEATURES", raising=False)
    monkeypatch.setenv("FAKEDET_WIDE", str(tiny_manifest.parent))
    monkeypatch.setattr(sys, "path", [str(WIDE.parent), *sys.path])
    monkeypatch.setenv("PYTHONPATH", "")


def rows(seed: int, count: int, dim: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32) + seed / 3


def fitted(name: str, reals: np.ndarray, fakes: np.ndarray, generators: np.ndarray, **settings: Any) -> Any:
    import wide.methods

    encoder = torch.nn.Identity()
    encoder.embedding_dim = reals.shape[1]  # type: ignore[assignment]
    method = getattr(wide.methods, name)(encoder=encoder, **settings)
    method.fit(*map(torch.from_numpy, (reals, fakes, generators)))
    return method


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_neighbours_are_those_of_scikit_learn() -> None:
    reals, fakes, images = rows(0, 40), rows(1, 30), rows(2, 9)
    method = fitted("Neighbours", reals, fakes, np.zeros(30, int), neighbours=5, temperature=0.1)
    near = [
        1 - NearestNeighbors(n_neighbors=5, metric="cosine").fit(kept).kneighbors(images)[0].mean(axis=1)
        for kept in (fakes, reals)
    ]
    wanted = (near[0] - near[1]) / 0.1
    np.testing.assert_allclose(method.logit(torch.from_numpy(images)), wanted, atol=0.02)  # kept in half precision
    assert np.std(wanted) > 0.5


def test_prototypes_are_the_means_of_reals_and_of_each_generator() -> None:
    reals, fakes, images = rows(0, 40), rows(1, 30), rows(2, 9)
    generators = np.repeat([3, 5], [10, 20])
    for clusters in (1, 3):
        method = fitted("Neighbours", reals, fakes, generators, neighbours=1, clusters=clusters, temperature=1.0)
        best = []
        for parts in ([fakes[:10], fakes[10:]], [reals]):
            means = [KMeans(clusters, n_init=3, random_state=0).fit(unit(part)).cluster_centers_ for part in parts]
            best.append((unit(images) @ unit(np.concatenate(means)).T).max(axis=1))
        np.testing.assert_allclose(method.logit(torch.from_numpy(images)), best[0] - best[1], atol=2e-3)
        assert len(method.fakes) == 2 * clusters


def test_blended_fakes_lie_between_themselves_and_a_real_and_reals_stay() -> None:
    import wide.methods

    encoder = torch.nn.Identity()
    encoder.embedding_dim = 4  # type: ignore[assignment]
    method = wide.methods.Blend(encoder, {}, p=0.5, weight=(0.5, 0.8))
    labels = torch.arange(4000) % 2
    features = torch.where(labels[:, None] == 1, torch.eye(4)[0], torch.eye(4)[1 + torch.arange(4000) % 3])
    torch.manual_seed(0)
    made = method.blend(features, labels)
    assert torch.equal(made[labels == 0], features[labels == 0])
    share = made[labels == 1, 0]
    blended = share < 1
    assert 0.45 < float(blended.float().mean()) < 0.55
    assert 0.5 <= float(share[blended].min()) < 0.51
    assert 0.79 < float(share[blended].max()) <= 0.8
    assert float(share[blended].mean()) == pytest.approx(0.65, abs=0.01)
    torch.testing.assert_close(made.sum(dim=1), torch.ones(4000))
    assert ((made[labels == 1][blended][:, 1:] > 0).sum(dim=1) == 1).all(), "each with one real"
    assert (made[labels == 1][:, 1:] > 0).float().mean(dim=0).min() > 0.1, "with any of them"


def test_likelihood_is_that_of_a_gaussian_of_the_nearest_reals() -> None:
    reals, images = rows(0, 60), rows(1, 7)
    settings = {"neighbours": 9, "components": 6, "shrinkage": 0.3, "content_dim": 4}
    method = fitted("ContentLikelihood", reals, rows(2, 5), np.zeros(5, int), **settings)
    pca = PCA(6, whiten=True, svd_solver="full").fit(reals)
    scale = np.sqrt(60 / 59)  # scikit-learn's variance is unbiased
    white = pca.transform(reals) * scale

    def surprise(image: np.ndarray, leave: int | None = None) -> float:
        cosine = (unit(reals[:, -4:]) @ unit(image[None, -4:]).T)[:, 0]
        near = [index for index in np.argsort(-cosine) if index != leave][:9]
        centre, like = white[near].mean(axis=0), white[near]
        sigma = 0.7 * np.cov(like.T, bias=True) + 0.3 * np.eye(6)
        away = pca.transform(image[None])[0] * scale - centre
        return 0.5 * away @ np.linalg.inv(sigma) @ away + 0.5 * np.log(np.linalg.det(sigma))

    own = np.array([surprise(image, index) for index, image in enumerate(reals)])
    wanted = (np.array([surprise(image) for image in images]) - own.mean()) / own.std(ddof=1)
    np.testing.assert_allclose(method.logit(torch.from_numpy(images)), wanted, rtol=1e-3, atol=1e-3)
    again = fitted("ContentLikelihood", reals, rows(3, 8), np.zeros(8, int), **settings)
    assert torch.equal(again.logit(torch.from_numpy(images)), method.logit(torch.from_numpy(images)))


def test_tiles_change_places_and_nothing_else() -> None:
    import wide.methods

    settings = {"name": "test_vit", "pretrained": False, "weights": None, "input_size": 160, "levels": [-1]}
    shuffle = wide.methods.Shuffle(tiles=4, seed=0)
    views = [{}, {"shuffle": {"tiles": 4, "seed": 0}}]
    encoder = wide.methods.ViewsEncoder(views, hidden=None, pool="class", **settings)
    images = torch.rand(2, 3, 40, 24)
    made = shuffle(images)
    order = np.random.default_rng(0).permutation(16)
    for place, source in enumerate(order):
        (y, x), (v, u) = divmod(place, 4), divmod(int(source), 4)
        ours = made[:, :, y * 10 : (y + 1) * 10, x * 6 : (x + 1) * 6]
        assert torch.equal(ours, images[:, :, v * 10 : (v + 1) * 10, u * 6 : (u + 1) * 6])
    net = encoder.backbone
    torch.testing.assert_close(encoder(images), torch.cat([net(images), net(made)], dim=1))
    encoder.fit_reals([images, images.flip(3)])
    together = encoder(torch.cat([images, images.flip(3)]))
    torch.testing.assert_close(together.mean(dim=0), torch.zeros(together.shape[1]), atol=1e-3, rtol=0)


def test_the_middle_is_enlarged_as_pillow_enlarges_it() -> None:
    import wide.methods

    smooth = np.kron(np.random.default_rng(0).random((6, 5, 3)), np.ones((8, 8, 1))).astype(np.float32)
    made = wide.methods.Centre(2)(torch.from_numpy(smooth).permute(2, 0, 1)[None])[0]
    assert made.shape == (3, 48, 40)
    for channel in range(3):
        middle = Image.fromarray(smooth[12:36, 10:30, channel])
        wanted = np.asarray(middle.resize((40, 48), Image.Resampling.BICUBIC)).clip(0, 1)
        # torch's bicubic has another free parameter (-0.75, Pillow's is -0.5): alike, not equal.
        assert np.abs(made[channel].numpy() - wanted).max() < 0.06
        assert np.abs(made[channel].numpy() - wanted).mean() < 0.01


@pytest.mark.parametrize("name", ["knn", "prototypes", "clide", "blend", "shuffle", "shuffle_beside", "zoom_beside"])
def test_a_method_is_trained_measured_without_a_family_and_loaded_again(name: str, tmp_path: Path) -> None:
    more = {"model__content_dim": 64, "model__components": 4} if name == "clide" else {}
    run = fakedet.train(
        f"--config-dir={WIDE}", experiment=f"wide/{name}", output_dir=str(tmp_path / name), model__epochs=1,
        data__hold_out_families=["gen_a"], data__measure="held_out", **SMALL, **more,
    )  # fmt: skip
    assert run.metrics is not None
    assert list(run.metrics["per_generator"]) == ["gen_a"]
    detector = run.load("cpu")
    assert detector.info["operating_point"] is not None
    evaluated = fakedet.evaluate(
        run.checkpoint, None, "data=wide", trust=["wide"], data__hold_out_families=["gen_a"],
        data__measure="held_out", output_dir=str(tmp_path / "again"), bootstrap__resamples=0,
    )  # fmt: skip
    first = fakedet.evaluation.predictions.read_predictions(run.folder / "predictions.parquet")[0]
    np.testing.assert_allclose(evaluated.predictions["logit"], first["logit"], rtol=1e-4, atol=1e-4)
    assert first["logit"].nunique() > 2
