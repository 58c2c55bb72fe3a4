"""Manifests: what is read, what is filled in, and every mistake named."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fakedet.data.manifest import load_manifest
from fakedet.errors import UserError


@pytest.fixture
def table() -> pd.DataFrame:
    n = 12
    return pd.DataFrame({
        "path": [f"{'real' if i % 2 == 0 else 'gen_a'}/image {i}.x.png" for i in range(n)],
        "label": [i % 2 for i in range(n)],
        "generator": ["real_x" if i % 2 == 0 else "gen_a" for i in range(n)],
        "split": ["train"] * 4 + ["val"] * 4 + ["test"] * 4,
        "group": [f"photo{i // 2}" for i in range(n)],
    })  # fmt: skip


@pytest.fixture
def load(tmp_path: Path):
    def write_and_load(table: pd.DataFrame, name: str = "manifest.csv", **settings):
        for image in table.get("path", []):
            if isinstance(image, str) and image and not image.startswith(("/", "..")):
                file = tmp_path / image.replace("\\", "/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        path = tmp_path / name
        table.to_parquet(path) if name.endswith("parquet") else table.to_csv(path, index=False)
        return load_manifest(path, **settings)

    return write_and_load


def test_columns_are_filled_in_and_the_index_is_the_id(table: pd.DataFrame, load) -> None:
    manifest = load(table.assign(licence="none"))
    assert list(manifest.frame) == ["path", "label", "generator", "source", "split", "group", "family"]
    assert manifest.frame.index.tolist() == list(range(12))
    for column in ("path", "label", "generator", "split", "group"):
        assert manifest.frame[column].tolist() == table[column].tolist()
    assert set(manifest.frame["source"]) == {""}
    assert manifest.frame["label"].dtype == np.int64
    assert manifest.notes == ["columns not used: licence"]


def test_a_generator_is_its_own_family_unless_the_table_names_another(table: pd.DataFrame, load) -> None:
    plain = load(table)
    assert plain.sha256 == "4d70fa3f44e7462480e0b74da4ab845b6270d9bd0445dfeb0e4c8fcb77e2107a", "as before families"
    assert plain.frame["family"].tolist() == table["generator"].tolist()
    same = table.assign(family=table["generator"].where(table["label"] == 1, ""))
    for name in ("manifest.csv", "manifest.parquet"):
        assert load(same, name).sha256 == plain.sha256
    other = load(table.assign(family=["", "ldm"] * 6), "manifest.parquet")
    assert other.frame["family"].tolist() == ["real_x", "ldm"] * 6
    assert other.sha256 != plain.sha256
    assert load(table.assign(family=["", "gan"] * 6)).sha256 not in (other.sha256, plain.sha256)
    # The reals of ForenSynths have their generator's name; they have no family of models.
    load(table.assign(generator="gen_a", family=["", "ldm"] * 6))
    for families in (["", "ldm", "", "gan"] * 3, ["", "ldm", "", "ldm", "", ""] * 2):
        first, second = sorted(["ldm", families[-1] or "gen_a"])
        with pytest.raises(UserError, match=f"the generator 'gen_a' has two families, '{first}' and '{second}'"):
            load(table.assign(family=families))


def test_csv_and_parquet_are_one_manifest_told_apart_by_content(table: pd.DataFrame, load) -> None:
    as_csv, as_parquet = load(table), load(table, "manifest.parquet")
    pd.testing.assert_frame_equal(as_csv.frame, as_parquet.frame, check_dtype=False)
    assert as_csv.sha256 == as_parquet.sha256
    (as_csv.root / "manifest.parquet").rename(as_csv.root / "table.csv")
    assert load_manifest(as_csv.root / "table.csv").sha256 == as_csv.sha256
    changed = table.copy()
    changed.loc[3, "generator"] = "gen_b"
    assert load(changed).sha256 != as_csv.sha256


@pytest.mark.parametrize("column", ["path", "label", "generator", "source", "split", "group"])
def test_any_other_value_is_another_manifest(table: pd.DataFrame, load, column: str) -> None:
    table["source"] = ["cat", ""] * 6
    table["group"] = table["path"]
    changed = table.copy()
    changed.loc[7, column] = {"label": 0, "split": "test", "path": "other.png"}.get(column, "other")
    digests = {load(rows, name).sha256 for rows in (table, changed) for name in ("a.csv", "a.parquet")}
    assert len(digests) == 2
    # What moves from one text to the next is another value too.
    moved = table.assign(generator=["ab", "c"] * 6), table.assign(generator=["a", "bc"] * 6)
    assert load(moved[0]).sha256 != load(moved[1]).sha256


def test_the_column_types_of_a_parquet_make_no_difference(table: pd.DataFrame, load) -> None:
    table["group"] = [i // 2 for i in range(12)]
    plain = load(table.assign(group=table["group"].astype(str)))
    for kind in ("category", "string", object):
        typed = table.assign(
            generator=table["generator"].astype(kind), split=table["split"].astype(kind),
            path=table["path"].astype(kind), label=table["label"].astype("int8"),
        )  # fmt: skip
        assert load(typed, "typed.parquet").sha256 == plain.sha256
    table.to_parquet(path := plain.root / "groups of rows.parquet", row_group_size=5)
    assert load_manifest(path).sha256 == plain.sha256
    filtered = pd.concat([table, table.assign(path="x" + table["path"])]).iloc[:12].sort_values("path")
    given = load(filtered, "filtered.parquet")
    assert given.notes == []
    assert given.frame["path"].tolist() == sorted(table["path"])


@pytest.mark.parametrize(
    "twin",
    ["a", "é.png", "a folder/with a long name/of an image.png", "é" * 40, "x" * 200 + ("/" + "y" * 200) * 2],
)
def test_a_path_that_stands_twice_is_found_whatever_its_length(load, twin: str) -> None:
    names = [f"images/{i:04d}{'x' * (i % 17)}.png" for i in range(500)]
    table = pd.DataFrame({"path": names, "label": [0, 1] * 250, "generator": ["real", "gen"] * 250})
    assert len(load(table).frame) == 500
    table.loc[[123, 321], "path"] = twin
    for name in ("manifest.csv", "manifest.parquet"):
        with pytest.raises(UserError, match="rows 124 and 322 have the same path"):
            load(table, name)


def test_text_that_is_no_utf8_is_a_damaged_file(table: pd.DataFrame, tmp_path: Path) -> None:
    raw = pa.array([b"a\xff.png"] * 12, pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 12, raw.buffers())
    pq.write_table(pa.Table.from_pandas(table).set_column(0, "path", broken), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match="damaged parquet"):
        load_manifest(tmp_path / "manifest.parquet")


def test_paths_are_normalised_row_by_row(table: pd.DataFrame, load) -> None:
    table["path"] = ["./a.png", "b//c.png", "d/./e.png", "f\\g.png", ".hidden", "h./i.png", "/".join("jkl"),
                     "m..png", "n/../o.png", "p.", "/q.png"[1:], "r"]  # fmt: skip
    wanted = ["a.png", "b/c.png", "d/e.png", "f/g.png", ".hidden", "h./i.png", "j/k/l", "m..png", "o.png",
              "p.", "q.png", "r"]  # fmt: skip
    for name in ("manifest.csv", "manifest.parquet"):
        assert load(table, name).frame["path"].tolist() == wanted


def test_a_backslash_is_a_part_of_the_name_where_such_a_file_is(table: pd.DataFrame, load, tmp_path: Path) -> None:
    (tmp_path / "train\\0.png").touch()
    table.loc[:1, "path"] = ["train\\0.png", "train\\1.png"]
    assert load(table).frame["path"].tolist()[:2] == ["train\\0.png", "train/1.png"]


def test_absolute_paths_below_the_root_are_made_relative(table: pd.DataFrame, load, tmp_path: Path) -> None:
    load(table)
    expected = table["path"].tolist()
    (tmp_path / "link").symlink_to(tmp_path)
    for base in (tmp_path, tmp_path / "link"):
        table["path"] = [f"{base}/{path}" for path in expected]
        assert load(table, root=base).frame["path"].tolist() == expected
    assert load(table, root="/").frame["path"][0] == f"{tmp_path}/link/{expected[0]}"[1:]
    with pytest.raises(UserError, match=f"All absolute paths are below {tmp_path}/link: pass that as the root"):
        load(table, root=tmp_path / "real")


@pytest.mark.parametrize("separator", ["\t", ";", "|"])
def test_the_first_line_tells_what_parts_the_columns(table: pd.DataFrame, load, separator: str, tmp_path: Path) -> None:
    table["group"] = [f"a, {name}" for name in table["group"]]
    expected = load(table)
    table.to_csv(tmp_path / "other.csv", index=False, sep=separator)
    assert load_manifest(tmp_path / "other.csv").sha256 == expected.sha256
    text = (tmp_path / "other.csv").read_text()
    (tmp_path / "other.csv").write_text(f"sep={separator}\n{text}", encoding="utf-16")
    assert load_manifest(tmp_path / "other.csv").sha256 == expected.sha256


def test_columns_of_lists_are_named(table: pd.DataFrame, load) -> None:
    table["label"] = [[label] for label in table["label"]]
    with pytest.raises(UserError, match=r"the column 'label' holds lists or structures \(list<.*>\)"):
        load(table, "manifest.parquet")


def test_class_names_in_the_metadata_of_a_table_decide(table: pd.DataFrame, load, tmp_path: Path) -> None:
    load(table)
    names = {"info": {"features": {"label": {"names": ["FAKE", "REAL"], "_type": "ClassLabel"}}}}
    named = pa.Table.from_pandas(table, preserve_index=False)
    pq.write_table(named.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "named.parquet")
    assert load_manifest(tmp_path / "named.parquet").frame["label"].tolist() == [1 - label for label in table["label"]]


def test_text_stays_text(table: pd.DataFrame, load) -> None:
    table["generator"] = ["NA", "null"] * 6
    table["group"] = [f"{i // 2:03d}" for i in range(12)]
    manifest = load(table)
    assert set(manifest.frame["generator"]) == {"NA", "null"}
    assert manifest.frame["group"].tolist() == table["group"].tolist()


def test_split_names_have_aliases_and_labels_may_be_floats(table: pd.DataFrame, load) -> None:
    table["split"] = ["training", "Train"] * 2 + ["valid", "validation", "dev", "val"] + ["testing", "TEST"] * 2
    manifest = load(table.assign(label=table["label"].astype(float)))
    assert manifest.frame["split"].tolist() == ["train"] * 4 + ["val"] * 4 + ["test"] * 4


def test_blank_groups_and_sources_are_filled_in(table: pd.DataFrame, load) -> None:
    for name in ("manifest.csv", "manifest.parquet"):
        given = table.assign(group=[None] * 2 + table["group"].tolist()[2:], source=["cat", None] * 6)
        manifest = load(given, name)
        assert manifest.frame["group"].tolist()[:2] == table["path"].tolist()[:2]
        assert manifest.frame["source"].tolist() == ["cat", ""] * 6


def test_without_a_split_groups_are_split_by_hash(load) -> None:
    n = 2000
    table = pd.DataFrame({"path": [f"a/{i}.png" for i in range(n)], "label": [0, 1] * (n // 2),
                          "generator": ["real", "gen"] * (n // 2),
                          "group": [f"g{i // 2}" for i in range(n)]})  # fmt: skip
    manifest = load(table)
    shares = manifest.frame["split"].value_counts(normalize=True)
    for split, share in (("train", 0.70), ("val", 0.15), ("test", 0.15)):
        assert abs(shares[split] - share) < 4 * (share * (1 - share) / (n / 2)) ** 0.5
    assert (manifest.frame.groupby("group")["split"].nunique() == 1).all()
    assert load(table).sha256 == manifest.sha256
    assert load(table, split_seed=1).sha256 != manifest.sha256
    assert "no split in the table" in manifest.notes[0]
    # A row's split does not depend on which other rows there are.
    part = load(table.iloc[500:])
    assert part.frame["split"].tolist() == manifest.frame["split"].tolist()[500:]


def test_a_group_that_crosses_splits_is_a_leak_unless_forced(table: pd.DataFrame, load) -> None:
    table.loc[4, "group"] = "photo1"
    with pytest.raises(UserError, match=r"1 groups .* 'photo1' in train, val.*data\.allow_group_leak=true"):
        load(table)
    assert "allowed" in load(table, allow_group_leak=True).notes[0]


def change(column: str, row: int, value):
    def apply(table: pd.DataFrame) -> pd.DataFrame:
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
        return table

    return apply


@pytest.mark.parametrize(("mistake", "message"), [
    (lambda t: t.rename(columns={"label": "lable"}), "no column 'label'; the table has 'lable'"),
    (lambda t: t.drop(columns="generator"), "no column 'generator'; the table has: path, label"),
    (lambda t: t.iloc[:0], "empty"),
    (lambda t: t.assign(label=["real", "fake"] * 6), r"row 1 has 'real'; 12 rows are wrong"),
    (change("label", 4, 2), "row 5 has '2'"),
    (change("label", 4, 0.5), r"row 5 has '0\.5'"),
    (change("label", 4, None), "label must be 0"),
    (lambda t: t.assign(label=[False, True] * 6), "row 1 has 'False'"),
    (change("path", 2, None), "row 3 has no path"),
    (change("generator", 2, "  "), "row 3 has no generator"),
    (change("path", 2, "/etc/a.png"), "row 3 .*'/etc/a.png'.*relative to data.root"),
    (change("path", 2, "real/../../a.png"), "stay inside it"),
    (change("path", 2, "..\\a.png"), "stay inside it"),
    (change("path", 2, "./real//image 0.x.png"), "rows 1 and 3 have the same path 'real/image 0.x.png'"),
    (change("split", 2, "tset"), "row 3 has the split 'tset'; did you mean 'test'"),
    (change("split", 2, None), "row 3 has no split, though others have one"),
], ids=lambda value: None if callable(value) else str(value))  # fmt: skip
@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
def test_mistakes_in_the_table_are_named(table: pd.DataFrame, load, mistake, message: str, name: str) -> None:
    changed = mistake(table)
    if name.endswith("parquet"):  # Arrow wants one type a column
        for column in changed:
            if changed[column].dtype == object:
                changed[column] = changed[column].map(lambda value: value if value is None else str(value))
    with pytest.raises(UserError, match=message):
        load(changed, name)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"),
    (b"\n\n", "is empty"),
    (b"\x89PNG\r\n\0\0", "binary"),
    (b"PAR1 and then nothing", "damaged parquet"),
    (b"path,label,generator\na.png,0,real,extra\n", "not a well-formed CSV"),
    (b"path,label,generator\n\"a.png,0,real\n", "not a well-formed CSV"),
    ("path,label,generator\nä.png,0,real\n".encode("latin-1"), "UTF-8"),
    (b"path:label:generator\na.png:0:real\n", "no column 'path'"),
])  # fmt: skip
def test_files_that_are_no_tables_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_manifest(path)


def test_a_byte_order_mark_is_no_part_of_a_name(table: pd.DataFrame, load, tmp_path: Path) -> None:
    plain = load(table)
    (tmp_path / "bom.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "manifest.csv").read_bytes())
    assert load_manifest(tmp_path / "bom.csv").sha256 == plain.sha256


def test_missing_files_and_folders_are_named(table: pd.DataFrame, load, tmp_path: Path) -> None:
    load(table)
    path = tmp_path / "manifest.csv"
    with pytest.raises(UserError, match=r"nowhere\.csv: there is no such file"):
        load_manifest(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="is a folder"):
        load_manifest(tmp_path)
    with pytest.raises(UserError, match=r"data\.root=.*nowhere: there is no such folder"):
        load_manifest(path, tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such folder"):
        load_manifest(path, path)
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="the folder is empty"):
        load_manifest(path, tmp_path / "void")
    with pytest.raises(UserError, match=r"another root\? First missing: real/image 0\.x\.png"):
        load_manifest(path, tmp_path / "real")
    (tmp_path / "real/image 0.x.png").unlink()
    load_manifest(path)  # a single missing file is quarantined later


def test_splits_are_required_with_both_classes(table: pd.DataFrame, load) -> None:
    manifest = load(table[table["split"] != "val"])
    manifest.require("train", both_classes=True)
    with pytest.raises(UserError, match=r"'val' is empty: the manifest has (train|test) \(4\), "):
        manifest.require("val")
    reals = load(table[table["label"] == 0])
    reals.require("train")
    with pytest.raises(UserError, match="'train' has no fake images"):
        reals.require("train", both_classes=True)
