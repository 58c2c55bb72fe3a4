"""Every layout on a small copy of its tree, row by row."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fakedet.cli.app import launch
from fakedet.data.index import Settings, index_folder
from fakedet.data.layouts import LAYOUTS
from fakedet.errors import UserError


def image(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make(root: Path, names: list[str]) -> None:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(seed))


def indexed(root: Path, tmp_path: Path, **settings: object) -> pd.DataFrame:
    found = index_folder(root, tmp_path / "out" / "m.parquet", Settings(**settings))  # type: ignore[arg-type]
    return pd.read_parquet(found.manifest).set_index("path")


def told(frame: pd.DataFrame) -> dict[str, tuple[object, ...]]:
    columns = frame[["label", "generator", "source", "split"]].astype(object)
    return {str(path): tuple(row) for path, row in zip(frame.index, columns.to_numpy().tolist(), strict=True)}


# name of the layout -> path -> (label, generator, source, split); None for the split: by hash
TREES: dict[str, tuple[str, dict[str, tuple[int, str, str, str | None]]]] = {
    "CNNDetection, whole": ("forensynths", {
        "train/airplane/0_real/0001.png": (0, "progan", "airplane", "train"),
        "train/airplane/1_fake/0002.png": (1, "progan", "airplane", "train"),
        "train/train/0_real/a b.c.PNG": (0, "progan", "train", "train"),
        "val/cat/1_fake/0003.png": (1, "progan", "cat", "val"),
        "test/biggan/0_real/1.png": (0, "biggan", "", "test"),
        "test/biggan/1_fake/1.png": (1, "biggan", "", "test"),
        "test/stylegan/bedroom/0_real/2.png": (0, "stylegan", "bedroom", "test"),
        "test/stylegan/bedroom/1_fake/2.jpeg": (1, "stylegan", "bedroom", "test"),
    }),
    "ForenSynths' test folders alone": ("forensynths", {
        "progan/horse/0_real/1.png": (0, "progan", "horse", None),
        "progan/horse/1_fake/1.png": (1, "progan", "horse", None),
        "deepfake/1_fake/1.png": (1, "deepfake", "", None),
        "deepfake/0_real/1.png": (0, "deepfake", "", None),
    }),
    "UniversalFakeDetect beside ForenSynths": ("universalfakedetect", {
        "diffusion_datasets/imagenet/0_real/1.png": (0, "imagenet", "imagenet", "test"),
        "diffusion_datasets/laion/0_real/1.png": (0, "laion", "laion", "test"),
        "diffusion_datasets/guided/1_fake/1.png": (1, "guided", "imagenet", "test"),
        "diffusion_datasets/ldm_200_cfg/1_fake/1.png": (1, "ldm_200_cfg", "laion", "test"),
        "test/progan/cat/0_real/1.png": (0, "progan", "cat", "test"),
        "test/progan/cat/1_fake/1.png": (1, "progan", "cat", "test"),
    }),
    "UniversalFakeDetect's diffusion sets": ("universalfakedetect", {
        "imagenet/0_real/1.png": (0, "imagenet", "imagenet", "test"),
        "laion/0_real/1.png": (0, "laion", "laion", "test"),
        "guided/1_fake/1.png": (1, "guided", "imagenet", "test"),
        "dalle/1_fake/1.png": (1, "dalle", "laion", "test"),
    }),
    "GenImage": ("genimage", {
        "Midjourney/imagenet_midjourney/val/ai/1.png": (1, "Midjourney", "", "test"),
        "Midjourney/imagenet_midjourney/val/nature/n01.png": (0, "Midjourney", "", "test"),
        "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/val/AI/1.png": (1, "stable_diffusion_v_1_4", "", "test"),
        "stable_diffusion_v_1_4/imagenet_ai_0419_sdv4/val/Nature/1.png": (0, "stable_diffusion_v_1_4", "", "test"),
        "BigGAN/val/ai/1.png": (1, "BigGAN", "", "test"),
        "BigGAN/val/nature/1.png": (0, "BigGAN", "", "test"),
    }),
    "DiffusionForensics": ("diffusionforensics", {
        "images/train/lsun_bedroom/real/1.png": (0, "lsun_bedroom", "lsun_bedroom", "train"),
        "images/train/lsun_bedroom/adm/1.png": (1, "adm", "lsun_bedroom", "train"),
        "images/test/imagenet/real/1.png": (0, "imagenet", "imagenet", "test"),
        "images/test/imagenet/adm/1.png": (1, "adm", "imagenet", "test"),
        "images/val/imagenet/real/1.png": (0, "imagenet", "imagenet", "val"),
        "images/val/imagenet/sdv1/1.png": (1, "sdv1", "imagenet", "val"),
    }),
    "DRCT-2M, test": ("drct", {
        "MSCOCO/val2017/000000000139.png": (0, "MSCOCO", "MSCOCO", "test"),
        "stable-diffusion-xl-base-1.0/val2017/000000000139.png":
            (1, "stable-diffusion-xl-base-1.0", "MSCOCO", "test"),
    }),
    "Community Forensics' folders": ("real_fake", {
        "sd-turbo/real/1.png": (0, "sd-turbo", "", None),
        "sd-turbo/fake/1.png": (1, "sd-turbo", "", None),
        "gan.v2/fake/1.png": (1, "gan.v2", "", None),
    }),
    "real and fake": ("real_fake", {
        "test/real/1.png": (0, "real", "", "test"),
        "test/fake/sd/1.png": (1, "sd", "", "test"),
        "training/real/2.png": (0, "real", "", "train"),
        "validation/fake/sd/2.png": (1, "sd", "", "val"),
    }),
    "a folder a generator": ("generators", {
        "real_coco/1.png": (0, "real_coco", "", None),
        "stylegan3/a/1.png": (1, "stylegan3", "", None),
        "midjourney/1.webp": (1, "midjourney", "", None),
    }),
}  # fmt: skip


@pytest.mark.parametrize("case", TREES)
def test_layout_is_recognised_and_every_row_is_right(case: str, tmp_path: Path) -> None:
    name, rows = TREES[case]
    root = tmp_path / "dataset"
    make(root, list(rows))
    found = index_folder(root, tmp_path / "out" / "m.parquet", Settings())
    assert found.layout == name
    got = told(pd.read_parquet(found.manifest).set_index("path"))
    assert set(got) == set(rows)
    for path, expected in rows.items():
        assert got[path][:3] == expected[:3], path
        assert got[path][3] == expected[3] or (expected[3] is None and got[path][3] in ("train", "val", "test"))


@pytest.mark.parametrize("case", TREES)
def test_every_layout_can_be_named(case: str, tmp_path: Path) -> None:
    name, rows = TREES[case]
    make(tmp_path / "dataset", list(rows))
    automatic = told(indexed(tmp_path / "dataset", tmp_path))
    named = told(indexed(tmp_path / "dataset", tmp_path, layout=name))
    assert automatic == named


def test_root_may_be_one_generator(tmp_path: Path) -> None:
    make(tmp_path / "biggan", ["0_real/1.png", "1_fake/2.png"])
    frame = indexed(tmp_path / "biggan", tmp_path)
    assert set(frame["generator"]) == {"biggan"}


def test_a_layout_with_train_and_test_gets_a_validation_split_out_of_train(tmp_path: Path) -> None:
    names = [f"sd/train/{kind}/{number}.png" for kind in ("ai", "nature") for number in range(100)]
    make(tmp_path / "genimage", [*names, "sd/val/ai/x.png", "sd/val/nature/y.png"])
    frame = indexed(tmp_path / "genimage", tmp_path)
    counts = frame["split"].value_counts()
    assert counts["test"] == 2
    assert 8 <= counts["val"] <= 35  # 10 % of 200, by hash
    assert set(frame.loc[frame["split"] == "val", "label"]) == {0, 1}


def test_dire_reconstructions_are_left_aside(tmp_path: Path) -> None:
    names = [f"{top}/test/imagenet/{kind}/1.png" for top in ("images", "dire", "recons") for kind in ("real", "adm")]
    make(tmp_path / "dire_data", names)
    frame = indexed(tmp_path / "dire_data", tmp_path)
    assert sorted(frame.index) == ["images/test/imagenet/adm/1.png", "images/test/imagenet/real/1.png"]


def test_siblings_of_coco_photographs_are_groups(tmp_path: Path) -> None:
    names = [f"{kind}/{split}/{number:012d}.png" for kind in ("MSCOCO", "ldm", "sdxl")
             for split in ("train2017", "val2017") for number in range(100, 130)]  # fmt: skip
    make(tmp_path / "drct", names)
    frame = indexed(tmp_path / "drct", tmp_path)
    # train2017 and val2017 of this test share numbers, as COCO's never do; within a split siblings agree
    train = frame[frame["split"] != "test"]
    assert (train.groupby("group").size() == 3).all()
    assert (train.groupby("group")["split"].nunique() == 1).all()


def test_reals_can_be_named(tmp_path: Path) -> None:
    make(tmp_path / "d", ["flickr/1.png", "coco/1.png", "sd/1.png"])
    with pytest.raises(UserError, match=r"cannot be told.*coco \(1 images\).*reals="):
        indexed(tmp_path / "d", tmp_path)
    frame = indexed(tmp_path / "d", tmp_path, reals=["flickr", "co*"])
    assert frame["label"].to_dict() == {"coco/1.png": 0, "flickr/1.png": 0, "sd/1.png": 1}


@pytest.mark.parametrize(("name", "label"), [
    ("Real-ESRGAN", 1), ("real_dream_xl", 1), ("Photo-Real", 1), ("nature_gan", 1), ("RealVisXL_V5", 1),
    ("photoreal", 1),
    ("Realistic_Vision", 1), ("real-anime", 1), ("natural-diffusion", 1), ("photo_sdxl", 1), ("Photorealistic v2", 1),
    ("unreal", 1), ("Photos_by_Midjourney", 1), ("real_fake_mix", 1), ("human_gan", 1), ("airplane", 1),
    ("0_real", 0), ("Real Photos", 0), ("real_coco", 0), ("real-ffhq-256", 0), ("real_imagenet1k", 0), ("photos", 0),
    ("nature", 0), ("RealImages", 0), ("authentic", 0), ("real_celeba_hq", 0), ("photographs", 0), ("Pristine", 0),
    ("real_ffhq_png", 0), ("real_bsds500", 0), ("real_clothing", 0), ("REAL", 0), ("human-made", 0),
])  # fmt: skip
def test_only_plain_names_are_reals(name: str, label: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "d", [f"{name}/1.png", "sdxl/2.png", "flux/3.png", "real/4.png"])
    found = index_folder(tmp_path / "d", tmp_path / "m.parquet", Settings())
    frame = pd.read_parquet(found.manifest).set_index("path")
    if name.lower() != "real":
        assert frame["label"].to_dict() == {f"{name}/1.png": label, "sdxl/2.png": 1, "flux/3.png": 1, "real/4.png": 0}
    assert found.why[label, name]


def test_options_overrule_guesses_and_the_table_tells_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "d", ["photos/1.png", "real_mine/2.png", "sdxl/3.png", "RealVis/4.png"])
    assert launch("index", [f"source={tmp_path}/d"]) == 0
    out = capsys.readouterr().out
    assert "RealVis, real_mine; if they hold photographs, pass reals=" in " ".join(out.split())
    lines = [line.split() for line in out.splitlines()]
    assert ["real", "photos"] in [line[:2] for line in lines if line[-3:] == ["by", "its", "name"]]
    assert ["fake", "sdxl"] in [line[:2] for line in lines if line[-2:] == ["beside", "reals"]]
    frame = indexed(tmp_path / "d", tmp_path, reals=["real_*"], fakes=["photo*"])
    assert frame["label"].to_dict() == {"photos/1.png": 1, "real_mine/2.png": 0, "sdxl/3.png": 1, "RealVis/4.png": 1}
    with pytest.raises(UserError, match="fakes: no top folder is called 'RealViz'; did you mean 'RealVis'"):
        indexed(tmp_path / "d", tmp_path, fakes=["RealViz"])
    with pytest.raises(UserError, match="reals and fakes both name 'photos'"):
        indexed(tmp_path / "d", tmp_path, reals=["photos"], fakes=["ph*"])
    with pytest.raises(UserError, match="layout=real_fake takes none"):
        indexed(tmp_path / "d", tmp_path, reals=["photos"], layout="real_fake")


@pytest.mark.parametrize(("names", "labels"), [
    # What pictures show may bear the name of a class.
    (["nature/real/1.png", "nature/fake/2.png", "city/real/3.png", "city/fake/4.png"], [0, 1, 0, 1]),
    (["train/human/real/1.png", "train/human/fake/2.png"], [0, 1]),
    (["ai/nature/1.png", "ai/human/2.png", "photos/nature/3.png", "photos/human/4.png"], [1, 1, 0, 0]),
    (["sdxl/human/1.png", "flux/human/2.png", "photos/human/3.png"], [1, 1, 0]),
    (["fake/nature/1.png", "real/nature/2.png"], [1, 0]),
    (["Midjourney/ai/1.png", "Midjourney/nature/2.png", "ADM/ai/3.png"], [1, 0, 1]),
    (["train_real/1.png", "train_fake/2.png"], [0, 1]),
    # Many photographs beside few fakes do not make a layout without fakes.
    ([*(f"real/{number}.png" for number in range(30)), "sdxl/1.png"], [*[0] * 30, 1]),
    (["COCO/val2017/000000000001.png", "sdxl/val2017/000000000001.png"], [0, 1]),
])  # fmt: skip
def test_topics_are_no_classes(names: list[str], labels: list[int], tmp_path: Path) -> None:
    make(tmp_path / "d", names)
    frame = indexed(tmp_path / "d", tmp_path)
    assert [frame["label"].to_dict().get(name) for name in names] == labels


def test_pictures_in_the_root_itself_are_told(tmp_path: Path) -> None:
    make(tmp_path / "flat", ["one.png", "two.png"])
    with pytest.raises(UserError, match=r"cannot be told. Seen: \. \(2 images\).*real_fake:"):
        indexed(tmp_path / "flat", tmp_path)


def test_unseen_generators_and_their_siblings_go_to_test(tmp_path: Path) -> None:
    names = [f"{kind}/{number:04d}.png" for kind in ("real", "sd", "dalle2") for number in range(40)]
    make(tmp_path / "d", names)
    frame = indexed(tmp_path / "d", tmp_path, unseen=["dalle*"], group="stem")
    # stems are shared by all three, so everything is a sibling of something unseen
    assert set(frame["split"]) == {"test"}
    frame = indexed(tmp_path / "d", tmp_path, unseen=["dalle*"])
    assert set(frame.loc[frame["generator"] == "dalle2", "split"]) == {"test"}
    assert set(frame.loc[frame["generator"] == "sd", "split"]) == {"train", "val", "test"}
    with pytest.raises(UserError, match="did you mean 'dalle2'"):
        indexed(tmp_path / "d", tmp_path, unseen=["dalle22"])


def test_groups_by_regular_expression(tmp_path: Path) -> None:
    make(
        tmp_path / "d",
        [f"{kind}/{photo}_{crop}.png" for kind in ("real", "sd") for photo in range(9) for crop in "abc"],
    )
    frame = indexed(tmp_path / "d", tmp_path, group=r"(\d+)_\w\.png$")
    assert set(frame["group"]) == {str(photo) for photo in range(9)}
    assert (frame.groupby("group")["split"].nunique() == 1).all()
    with pytest.raises(UserError, match="parentheses"):
        Settings(group=r"\d+")
    with pytest.raises(UserError, match="not a regular expression"):
        Settings(group="(")


def test_split_by_hash_does_not_depend_on_other_files(tmp_path: Path) -> None:
    names = [f"{kind}/{number}.png" for kind in ("real", "sd") for number in range(30)]
    make(tmp_path / "d", names)
    before = indexed(tmp_path / "d", tmp_path)["split"]
    make(tmp_path / "d", [*names, *(f"sd2/{number}.png" for number in range(30))])
    after = indexed(tmp_path / "d", tmp_path)["split"]
    assert after[before.index].tolist() == before.tolist()


def test_documentation_names_every_layout() -> None:
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    assert [name for name in LAYOUTS if f"`{name}`" not in text] == []
