"""The trace residual against scikit-learn's PCA and naive loops, and what it is for."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from fakedet.errors import UserError
from fakedet.methods.residual import TraceResidual


def rows(seed: int, count: int, noise: float = 0.3, offset: float = 0.0) -> torch.Tensor:
    """Draw features that vary in six directions out of twenty, and a little in the others."""
    random, directions = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(6, 20))
    content = random.normal(offset, 1.0, size=(count, 6)) @ directions
    return torch.from_numpy(content + noise * random.normal(size=(count, 20))).float()


def naive(
    reals: np.ndarray,
    half: np.ndarray,
    fakes: np.ndarray,
    image: np.ndarray,
    dims: int,
    k: int,
    bound: float = np.inf,
    reach: float = np.inf,
) -> float:
    """Follow the class's description, one image and one half at a time."""
    sides = []
    for side in (0, 1):
        pca = PCA(dims, svd_solver="full").fit(reals[half == side].astype(np.float64))

        def look(row: np.ndarray, pca: PCA = pca) -> tuple[np.ndarray, float]:
            place = pca.transform(row[None])[0]
            rebuilt = pca.inverse_transform(place[None])[0]
            return place / np.linalg.norm(place), float(np.log(((row - rebuilt) ** 2).sum()))

        references = [[look(row) for row in group] for group in (reals[half != side], fakes)]
        own = np.array([residual for _, residual in references[0]])
        place, residual = look(image)
        near, like = [], []
        for group in references:
            ordered = sorted(group, key=lambda entry: -float(entry[0] @ place))[:k]
            near.append(np.mean([value for _, value in ordered]))
            like.append(np.mean([float(other @ place) for other, _ in ordered]))
        spread = own.std(ddof=1)
        known = np.exp(-max(0.0, like[0] - like[1]) / reach)
        sides.append(known * (near[1] - near[0]) / spread * min(max((residual - own.mean()) / spread, -bound), bound))
    return float(np.mean(sides))


def fitted(reals: torch.Tensor, fakes: torch.Tensor, **settings: float | None) -> TraceResidual:
    residual = TraceResidual(20, **{"dims": 6, "neighbours": 5, "size": 100, **settings})
    residual.fit(reals, torch.arange(len(reals)) % 2, fakes)
    return residual


@pytest.mark.parametrize(("bound", "reach"), [(None, None), (1.0, None), (None, 0.1), (1.0, 0.02)])
def test_evidence_is_what_its_description_says(bound: float | None, reach: float | None) -> None:
    reals, fakes, images = rows(1, 61), rows(2, 40, noise=0.6), torch.cat([rows(3, 5), rows(4, 5, noise=0.9)])
    residual = fitted(reals, fakes, bound=bound, reach=reach)
    half = np.arange(61) % 2
    limits = (np.inf if bound is None else bound, np.inf if reach is None else reach)
    wanted = [
        naive(reals.numpy(), half, fakes.numpy(), image, 6, 5, *limits) for image in images.numpy().astype(np.float64)
    ]
    plain = fitted(reals, fakes)(images).numpy()
    assert (bound is None and reach is None) == np.allclose(residual(images), plain)
    np.testing.assert_allclose(residual(images), wanted, rtol=2e-3, atol=2e-3)
    assert residual(images[:0]).shape == (0,)


def test_of_content_without_known_fakes_little_is_said() -> None:
    """Photographs of two kinds of content, fakes of one: of the other, as far outside, there is little evidence."""
    known, unknown = {"offset": -4.0}, {"offset": 4.0}
    reals = torch.stack([rows(1, 100, **known), rows(2, 100, **unknown)], dim=1).flatten(0, 1)
    images = [rows(4, 50, noise=0.6, **content) for content in (known, unknown)]
    said = {}
    for reach in (None, 0.02):
        residual = TraceResidual(20, dims=6, neighbours=5, size=200, reach=reach)
        residual.fit(reals, torch.arange(200) // 2 % 2, rows(3, 60, noise=0.6, **known))
        said[reach] = [residual(image).abs().mean().item() for image in images]
    assert said[0.02][0] > 0.5 * said[None][0], "where fakes are known it speaks as before"
    assert said[None][1] > 1, "without reach, fakes of other content speak loudly"
    assert said[0.02][1] < 0.01 * said[None][1]


def test_fakes_outside_the_directions_are_told_and_content_alone_is_not() -> None:
    residual = fitted(rows(1, 200), rows(2, 100, noise=0.6))
    new_fakes, other_content = rows(5, 100, noise=0.5), rows(6, 100, offset=1.0)
    labels = np.repeat([0, 1], 100)
    assert roc_auc_score(labels, residual(torch.cat([rows(7, 100), new_fakes]))) > 0.95
    assert abs(roc_auc_score(labels, residual(torch.cat([rows(7, 100), other_content]))) - 0.5) < 0.15


def test_where_known_fakes_lie_nearer_than_reals_a_distance_speaks_for_real() -> None:
    """Two kinds of content: fakes of one lie outside, fakes of the other are more regular than its photographs."""
    near, far = {"offset": -4.0}, {"offset": 4.0}
    reals = torch.stack([rows(1, 100, **near), rows(2, 100, **far)], dim=1).flatten(0, 1)
    half = torch.arange(200) // 2 % 2
    residual = TraceResidual(20, dims=6, neighbours=5, size=200)
    residual.fit(reals, half, torch.cat([rows(3, 60, noise=0.6, **near), rows(4, 60, noise=0.15, **far)]))
    labels = np.repeat([0, 1], 50)
    for content, noise in ((near, 0.6), (far, 0.15)):
        seen = residual(torch.cat([rows(5, 50, **content), rows(6, 50, noise=noise, **content)]))
        assert roc_auc_score(labels, seen) > 0.9, content


def test_only_so_many_are_kept_and_a_checkpoint_carries_them() -> None:
    residual, images = fitted(rows(1, 90), rows(2, 64, noise=0.6), size=16), rows(3, 7)
    assert residual.counts.tolist() == [[16, 16], [16, 16]]
    other = TraceResidual(20, dims=6, neighbours=5, size=16)
    other.load_state_dict(residual.state_dict())
    assert torch.equal(other(images), residual(images))
    exported = torch.export.export(residual, (images,)).module()
    torch.testing.assert_close(exported(images), residual(images))


def test_what_cannot_be_is_told() -> None:
    for settings in ({"dims": 20}, {"dims": 2.5}, {"dims": 0}, {"neighbours": 0}, {"size": 3}):
        with pytest.raises(UserError, match=r"model\.residual: dims="):
            TraceResidual(20, **{"dims": 6, "neighbours": 5, "size": 100, **settings})
    for name in ("bound", "reach"):
        for value in (-1, 0, "a"):
            with pytest.raises(UserError, match=rf"model\.residual: {name}={value}: a number above 0, or null"):
                TraceResidual(20, dims=6, neighbours=5, size=100, **{name: value})
    for place in (0, 1):
        features = [rows(1, 40), rows(2, 40)]
        features[place][3, 3] = float("nan")
        with pytest.raises(UserError, match="features that are not finite"):
            fitted(*features)
    with pytest.raises(UserError, match="here are 6 and 40; lower"):
        fitted(rows(1, 13), rows(2, 40))
    with pytest.raises(UserError, match="here are 20 and 4; lower"):
        fitted(rows(1, 40), rows(2, 4))
    with pytest.raises(RuntimeError, match="not fitted"):
        TraceResidual(20, dims=6, neighbours=5, size=100)(rows(1, 2))
