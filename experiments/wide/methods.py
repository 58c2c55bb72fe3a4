"""Methods over a frozen backbone that the study compares with fakedet's; each is a config in experiment/wide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from fakedet.methods.base import Detector, Scores, first_view, watched
from fakedet.models.backbones import FrozenBackbone
from fakedet.models.heads import Classifier

ALL = 1_000_000  # more than there are training images


class Collected(Detector):
    """A score that is fitted to the features of all training images at once, before the first step.

    Subclasses keep what they fit in buffers, of any number of rows, and override ``fit`` and ``logit``.

    Args:
        encoder: a :class:`fakedet.models.backbones.FrozenEncoder` without a hidden layer.
    """

    features_only = True

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(optimizer=None)
        self.encoder = encoder
        # Lightning trains by an optimiser, a parameter and its gradient: it takes one step, which changes nothing.
        self.nothing = nn.Parameter(torch.zeros(()))

    def fit(self, reals: Tensor, fakes: Tensor, generators: Tensor) -> None:
        """Fit to features (R, D) of reals and (F, D) of fakes, whose generators (F,) have numbers."""
        raise NotImplementedError

    def logit(self, features: Tensor) -> Tensor:
        """Compute the logits (N,) of features (N, D)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Scores:
        """Score float RGB (N, 3, H, W) in [0, 1]."""
        features = self.encoder(images)
        logit = self.logit(features)
        return Scores(logit, features, torch.full_like(logit, float("nan")))

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Standardise the encoder on reals, then fit."""
        super().on_fit_start()
        (reals, _), (fakes, generators) = (map(torch.cat, zip(*self._features(label), strict=True)) for label in (0, 1))
        self.fit(reals, fakes, generators)

    def _features(self, label: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self.trainer.datamodule.bank_dataloader(ALL, label)  # type: ignore[attr-defined]
        for batch in watched(batches, "features of training images"):
            yield self.encoder(first_view(batch).to(self.device)), batch["generator"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimiser of nothing."""
        return torch.optim.SGD([self.nothing], lr=0.0)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return a loss of nothing."""
        return self.nothing.square()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *more: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):  # they have as many rows as were fitted
            if prefix + name in state:
                setattr(self, name, buffer.new_empty(state[prefix + name].shape))
        super()._load_from_state_dict(state, prefix, *more)


class Neighbours(Collected):
    """k nearest neighbours: log-odds-like, (mean cosine to the k nearest fakes − to the k nearest reals) / τ.

    Args:
        encoder: see :class:`Collected`.
        neighbours: k of each class.
        clusters: null: the neighbours are images; else they are prototypes, this many k-means centres (1: the mean) of
            the reals and of the fakes of each generator.
        temperature: τ.
    """

    reals: Tensor
    fakes: Tensor

    def __init__(
        self, encoder: nn.Module, neighbours: int, clusters: int | None = None, temperature: float = 0.05
    ) -> None:
        super().__init__(encoder)
        self.neighbours, self.clusters, self.temperature = neighbours, clusters, temperature
        for name in ("reals", "fakes"):  # half the precision, half the checkpoint: 10 MB
            self.register_buffer(name, torch.zeros(0, int(encoder.embedding_dim), dtype=torch.float16))  # type: ignore[arg-type]

    def fit(self, reals: Tensor, fakes: Tensor, generators: Tensor) -> None:
        """Keep the normalised features, or their centres."""
        reals, fakes = F.normalize(reals, dim=1), F.normalize(fakes, dim=1)
        if self.clusters is not None:
            fakes = torch.cat([self._centres(fakes[generators == one]) for one in generators.unique()])
            reals = self._centres(reals)
        self.reals, self.fakes = reals.half(), fakes.half()

    def _centres(self, rows: Tensor) -> Tensor:
        means = KMeans(min(self.clusters or 1, len(rows)), n_init=3, random_state=0).fit(rows.cpu().numpy())
        return F.normalize(torch.as_tensor(means.cluster_centers_, dtype=rows.dtype), dim=1).to(rows.device)

    def logit(self, features: Tensor) -> Tensor:
        """Compare the nearest fakes with the nearest reals."""
        rows, near = F.normalize(features, dim=1), []
        for kept in (self.fakes, self.reals):
            cosine = rows @ kept.to(rows.dtype).T
            near.append(cosine.topk(min(self.neighbours, len(kept)), dim=1).values.mean(dim=1))
        return (near[0] - near[1]) / self.temperature


class Blend(Detector):
    """Latent blending (SimLBR, arXiv 2602.20412, its idea): fakes that are partly a photograph are still fakes.

    In training, with probability ``p`` a fake's features become a · fake + (1 − a) · real, with a real of the batch and
    a uniform in ``weight``; the loss is cross-entropy.

    Args:
        encoder: a :class:`fakedet.models.backbones.FrozenEncoder` with a hidden layer.
        optimizer: see fakedet.methods.base.configure_optimiser.
        p: share of the fakes that are blended.
        weight: least and greatest a.
    """

    features_only = True

    def __init__(self, encoder: nn.Module, optimizer: Any, p: float, weight: tuple[float, float]) -> None:
        super().__init__(optimizer)
        self.encoder, self.p, self.weight = encoder, p, weight
        self.classifier = Classifier(int(encoder.embedding_dim))  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Scores:
        """Score float RGB (N, 3, H, W) in [0, 1]."""
        embedding = self.encoder(images)
        logit = self.classifier(embedding)
        return Scores(logit, embedding, torch.full_like(logit, float("nan")))

    def blend(self, features: Tensor, labels: Tensor) -> Tensor:
        """Blend some fakes of features (N, D), labels (N,), each with a random real among them."""
        reals = features[labels == 0]
        if not len(reals):
            return features
        drawn = torch.rand(2, len(labels), 1, device=features.device)
        a = torch.where(drawn[0] < self.p, self.weight[0] + drawn[1] * (self.weight[1] - self.weight[0]), 1.0)
        a = torch.where(labels[:, None] == 1, a, 1.0)
        partners = reals[torch.randint(len(reals), (len(labels),), device=features.device)]
        return a * features + (1 - a) * partners

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute the cross-entropy of blended features."""
        labels, encoder = batch["label"], self.encoder
        features = self.blend(encoder.features(self.take(batch)[:, 0]), labels)  # type: ignore[operator]
        logit = self.classifier(encoder.embed(features))  # type: ignore[operator]
        loss = F.binary_cross_entropy_with_logits(logit, labels.float())
        self.log_step(loss, len(labels))
        return loss


class ContentLikelihood(Collected):
    """Real-only likelihood conditioned on content (CLIDE, arXiv 2512.05590, its idea): how unlikely among its like.

    Features are whitened by the principal components of training reals. An image's negative log-likelihood is that of
    its whitened features under a Gaussian fitted to its ``neighbours`` training reals that are nearest by the last
    level's features (cosine), with covariance (1 − s) S + s I, s the ``shrinkage``. The logit is this in standard
    deviations above the mean of training reals, each of which is measured among the others. No fake is looked at.

    Args:
        encoder: see :class:`Collected`.
        neighbours: k.
        components: kept of the whitening.
        shrinkage: s in (0, 1].
        content_dim: of the last features, those of the last level: the content.
    """

    mean: Tensor
    whiten: Tensor
    rows: Tensor
    content: Tensor
    spread: Tensor

    def __init__(
        self, encoder: nn.Module, neighbours: int, components: int, shrinkage: float, content_dim: int = 768
    ) -> None:
        super().__init__(encoder)
        self.neighbours, self.components, self.shrinkage = neighbours, components, shrinkage
        self.content_dim, size = content_dim, int(encoder.embedding_dim)  # type: ignore[arg-type]
        empty = {"mean": (size,), "whiten": (size, 0), "rows": (0, 0), "content": (0, content_dim)}
        for name, shape in empty.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("spread", torch.tensor([0.0, 1.0]))

    def fit(self, reals: Tensor, fakes: Tensor, generators: Tensor) -> None:
        """Whiten, keep the reals, and measure each among the others."""
        self.mean = reals.mean(dim=0)
        _, scale, axes = torch.linalg.svd(reals - self.mean, full_matrices=False)
        kept = min(self.components, len(scale))
        self.whiten = (axes[:kept] / scale[:kept, None] * len(reals) ** 0.5).T.contiguous()
        self.rows, self.content = (reals - self.mean) @ self.whiten, self._content(reals)
        values = torch.cat([self._surprise(part, others=1) for part in reals.split(256)])
        self.spread = torch.stack([values.mean(), values.std()])

    def logit(self, features: Tensor) -> Tensor:
        """Measure how unlikely features (N, D) are."""
        return (self._surprise(features) - self.spread[0]) / self.spread[1]

    def _content(self, features: Tensor) -> Tensor:
        return F.normalize(features[:, -self.content_dim :], dim=1)

    def _surprise(self, features: Tensor, others: int = 0) -> Tensor:
        """Compute negative log-likelihoods (N,) but for a constant; images are their own ``others`` nearest."""
        cosine = self._content(features) @ self.content.T
        near = cosine.topk(min(self.neighbours + others, len(self.rows)), dim=1).indices[:, others:]
        like = self.rows[near]  # (N, k, m)
        centre = like.mean(dim=1, keepdim=True)
        scatter = (like - centre).transpose(1, 2) @ (like - centre) / like.shape[1]
        eye = torch.eye(scatter.shape[1], device=scatter.device)
        root = torch.linalg.cholesky((1 - self.shrinkage) * scatter + self.shrinkage * eye)
        away = ((features - self.mean) @ self.whiten)[:, None] - centre
        z = torch.linalg.solve_triangular(root, away.transpose(1, 2), upper=False).squeeze(2)
        return 0.5 * z.square().sum(dim=1) + root.diagonal(dim1=1, dim2=2).log().sum(dim=1)


class Shuffle:
    """Let the tiles of images change places, all alike: content is broken, texture is kept.

    It is called as a :class:`fakedet.methods.destroy.TraceDestroyer` is, so that the feature cache keeps what a
    backbone says of shuffled images. (CLIP's patches of 16 pixels lie across the edges of tiles of 56.)

    Args:
        tiles: along each side; the images' sides are multiples of it.
        seed: draws the permutation.
    """

    def __init__(self, tiles: int, seed: int) -> None:
        self.tiles, self.order = tiles, np.random.default_rng(seed).permutation(tiles**2).tolist()
        self.fingerprint = f"shuffle {self.order}".encode()

    def __call__(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Shuffle images (N, 3, H, W)."""
        side = self.tiles
        cut = images.unflatten(2, (side, -1)).unflatten(4, (side, -1))  # (N, 3, row, y, column, x)
        tiles = cut.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)[self.order]
        return tiles.unflatten(0, (side, side)).permute(2, 3, 0, 4, 1, 5).flatten(4).flatten(2, 3)


class Centre:
    """Enlarge the middle of images to their whole size: what a backbone sees at twice the scale, of one crop.

    It is called as :class:`Shuffle` is.

    Args:
        scale: how much larger, above 1.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.fingerprint = f"centre {scale}".encode()

    def __call__(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Enlarge the middle of images (N, 3, H, W), bicubic."""
        height, width = images.shape[-2:]
        middle = center_crop(images, [round(height / self.scale), round(width / self.scale)])
        enlarged = F.interpolate(middle, size=(height, width), mode="bicubic", align_corners=False)
        return enlarged.clamp(0, 1)


class ViewsEncoder(nn.Module):
    """Embed several views of an image by one hidden layer over what a frozen backbone says of each.

    Features are standardised on real photographs, as those of a :class:`fakedet.models.backbones.FrozenEncoder`.

    Args:
        views: the settings of :class:`Shuffle` or :class:`Centre` (``{shuffle: {tiles: 4, seed: 0}}``), one for each
            view; an empty mapping: the image itself.
        hidden, dropout: of the layer; None: none.
        settings: of a :class:`fakedet.models.backbones.FrozenBackbone`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        views: Sequence[Mapping[str, Mapping[str, Any]]],
        hidden: int | None = 256,
        dropout: float = 0.5,
        **settings: Any,
    ) -> None:
        super().__init__()
        kinds = {"shuffle": Shuffle, "centre": Centre}
        self.views = [next((kinds[kind](**given) for kind, given in view.items()), None) for view in views]
        self.backbone = FrozenBackbone(**settings)
        size = self.backbone.out_dim * len(self.views)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.layers: nn.Module = nn.Identity()
        if hidden is not None:
            self.layers = nn.Sequential(nn.Dropout(dropout), nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.embedding_dim = hidden or size

    def forward(self, images: Tensor) -> Tensor:
        """Embed float RGB (N, 3, H, W) in [0, 1] as (N, embedding_dim)."""
        return self.embed(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Compute the standardised features (N, size)."""
        return (self._raw(images) - self.mean) / self.scale

    def embed(self, features: Tensor) -> Tensor:
        """Embed what :meth:`features` returns."""
        embedding: Tensor = self.layers(features)
        return embedding.float()

    def _raw(self, images: Tensor) -> Tensor:
        none = torch.zeros(len(images), 0)
        return torch.cat(
            [self.backbone(images, view, none) if view else self.backbone(images) for view in self.views], 1
        )

    @torch.no_grad()
    def fit_reals(self, batches: Iterable[Tensor]) -> None:
        """Fit the standardisation to real photographs."""
        rows = torch.cat([self._raw(images) for images in batches]).double()
        self.mean.copy_(rows.mean(dim=0).float())
        self.scale.copy_((rows.std(dim=0) + 1e-6).float())
