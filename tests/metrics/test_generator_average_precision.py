import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from fakedet.errors import UserError
from fakedet.metrics.average_precision import GeneratorAveragePrecision
from fakedet.metrics.per_generator import evaluate_frame

CELLS = ["real_coco", "ldm", "gan", "gan", "real_laion", "lonely"]
IS_FAKE = [False, True, False, True, False, True]
COUNTERPARTS = {1: [0, 4], 3: [2], 5: []}


def _metric(**kwargs):
    return GeneratorAveragePrecision(CELLS, IS_FAKE, COUNTERPARTS, **kwargs)


def _rows(n=200, seed=0, cells=6):
    rng = np.random.default_rng(seed)
    generators = torch.from_numpy(rng.integers(0, cells, n))
    labels = torch.tensor(IS_FAKE)[generators].long()
    logits = torch.from_numpy(np.round(rng.normal(size=n) + labels.numpy(), 1)).float()
    distances = torch.from_numpy(rng.random(n)).float()
    return torch.from_numpy(rng.permutation(n)), labels, generators, logits, distances


def _take(rows, index):
    return [column[index] for column in rows]


def _same(found, expected):
    assert list(found) == list(expected)
    for key in expected:
        assert found[key] == expected[key] or (np.isnan(found[key]) and np.isnan(expected[key]))


def test_agrees_with_scikit_learn_generator_by_generator():
    rows = _rows()
    metric = _metric()
    for part in torch.arange(200).split(32):
        metric.update(*_take(rows, part))
    found = metric.compute()
    assert set(found) == {
        "map",
        "mauc",
        *(f"{m}/{g}" for m in ("ap", "auc") for g in ("ldm", "gan", "lonely")),
    }
    _, labels, generators, logits, _ = rows
    for name, codes in (("ldm", [0, 1, 4]), ("gan", [2, 3])):
        own = torch.isin(generators, torch.tensor(codes))
        oracle = labels[own].numpy(), logits[own].numpy()
        assert found[f"ap/{name}"] == pytest.approx(average_precision_score(*oracle), abs=1e-12)
        assert found[f"auc/{name}"] == pytest.approx(roc_auc_score(*oracle), abs=1e-12)
    assert np.isnan(found["ap/lonely"])
    assert found["map"] == pytest.approx((found["ap/ldm"] + found["ap/gan"]) / 2)
    assert found["mauc"] == pytest.approx((found["auc/ldm"] + found["auc/gan"]) / 2)


def test_agrees_with_the_frame():
    ids, labels, generators, logits, _ = _rows(cells=4)
    metric = _metric()
    metric.update(ids, labels, generators, logits)
    frame = pd.DataFrame({"label": labels, "generator": [CELLS[g] for g in generators], "logit": logits.double()})
    result = evaluate_frame(frame, {"ldm": "real_coco"}, None, n_resamples=0)
    found = metric.compute()
    assert found["map"] == result["map"]["value"]
    assert found["auc/gan"] == result["per_generator"]["gan"]["auc"]["value"]


def test_each_row_counts_once_and_the_first_is_kept():
    rows = _rows()
    metric, once = _metric(), _metric()
    once.update(*rows)
    metric.update(*_take(rows, slice(0, 120)))
    late = _take(rows, slice(80, 200))
    late[3] = late[3] + torch.where(torch.arange(120) < 40, 5.0, 0.0)  # repeated rows come with other logits
    metric.update(*late)
    _same(metric.compute(), once.compute())
    assert len(metric.rows()["id"]) == 200


def test_rows_come_sorted_by_id_and_whole():
    ids, labels, generators, logits, distances = _rows()
    ids = ids + 2**52 + 1  # ids that no float32 and hardly a float64 could hold
    logits[0], distances[1] = float("inf"), float("nan")
    metric = _metric()
    metric.update(ids, labels, generators, logits, distances)
    rows = metric.rows()
    order = ids.argsort()
    for name, column in zip(rows, (ids, labels, generators, logits, distances), strict=True):
        assert rows[name].dtype == column.dtype
        torch.testing.assert_close(rows[name], column[order], rtol=0, atol=0, equal_nan=True)


def test_distances_are_nan_and_logits_float32_where_not_given():
    ids, labels, generators, logits, _ = _rows()
    metric = _metric()
    metric.update(ids, labels, generators, logits.to(torch.bfloat16))
    assert metric.rows()["distance"].isnan().all()
    assert metric.rows()["logit"].dtype == torch.float32


def test_no_sigmoid_merges_large_logits():
    metric = GeneratorAveragePrecision(["real", "g"], [False, True], {1: [0]})
    labels = torch.tensor([0, 1, 0, 1])
    metric.update(torch.arange(4), labels, labels, torch.tensor([20.0, 30.0, 40.0, 50.0]))
    assert metric.compute()["map"] == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_rows_the_mean_is_nan():
    metric = _metric()
    assert np.isnan(metric.compute()["map"])
    metric.update(*_take(_rows(), slice(0, 0)))
    assert np.isnan(metric.compute()["map"])
    assert {len(column) for column in metric.rows().values()} == {0}


def test_new_rows_and_reset_are_seen_after_compute():
    rows = _rows()
    metric, whole, second = _metric(), _metric(), _metric()
    whole.update(*rows)
    second.update(*_take(rows, slice(50, 200)))
    metric.update(*_take(rows, slice(0, 50)))
    metric.compute()
    assert len(metric.rows()["id"]) == 50
    metric.update(*_take(rows, slice(50, 200)))
    assert len(metric.rows()["id"]) == 200
    _same(metric.compute(), whole.compute())
    metric.reset()
    assert len(metric.rows()["id"]) == 0
    metric.update(*_take(rows, slice(50, 200)))
    _same(metric.compute(), second.compute())


def test_forward_gives_the_batch_and_keeps_the_rest():
    rows = _rows()
    metric, first, whole = _metric(), _metric(), _metric()
    first.update(*_take(rows, slice(0, 100)))
    whole.update(*rows)
    _same(metric(*_take(rows, slice(0, 100))), first.compute())
    metric(*_take(rows, slice(100, 200)))
    assert len(metric.rows()["id"]) == 200
    _same(metric.compute(), whole.compute())


def test_casts_copies_and_pickles_keep_the_rows():
    rows = _rows()
    metric, whole = _metric(), _metric()
    metric.update(*rows)
    whole.update(*rows)
    holder = torch.nn.Linear(1, 1)
    holder.metric = metric
    holder.half().to("cpu")
    metric.set_dtype(torch.float16)
    for copied in (metric, copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        _same(copied.compute(), whole.compute())
    assert not any("metric" in key for key in holder.state_dict())


def test_moves_by_to():
    metric = _metric()
    metric.update(*_rows())
    assert metric.to("meta").packed[0].device.type == "meta"
    assert metric.device.type == "meta"


def test_nan_logits_are_told_to_the_person():
    rows = _rows()
    rows[3][:3] = float("nan")
    metric = _metric()
    metric.update(*rows)
    with pytest.raises(UserError, match="3 of 200 logits are NaN"):
        metric.compute()
    assert len(metric.rows()["id"]) == 200


def test_contradictions_are_refused():
    ids, labels, generators, logits, _ = _rows()
    metric = _metric()
    with pytest.raises(ValueError, match="different lengths"):
        metric.update(ids[:-1], labels, generators, logits)
    metric.update(ids, 1 - labels, generators, logits)
    with pytest.raises(ValueError, match="contradict the cell"):
        metric.compute()
    metric.reset()
    metric.update(ids, labels, generators + 1, logits)
    with pytest.raises(ValueError, match="for 6 cells"):
        metric.compute()
    for arguments in (
        (["a"], [True, False], {}),
        (["a", "a"], [True, True], {}),
        (["a", "r"], [True, False], {0: [2]}),
        (["a", "r"], [True, False], {1: [0]}),
    ):
        with pytest.raises(ValueError, match=r"cell|is_fake"):
            GeneratorAveragePrecision(*arguments)


# --- on several ranks ---------------------------------------------------------------------------------------

# Which rows of _rows() each of two ranks reports. Rows 60-79 stand on both ranks.
SHARDS = {
    "uneven": (slice(0, 80), slice(60, 200)),
    "even": (slice(0, 100), slice(100, 200)),
    "rank 0 empty": (None, slice(0, 200)),
    "rank 1 empty": (slice(0, 200), None),
    "all empty": (None, None),
}


def _on_a_rank(rank, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    metric = _metric()
    for name, shards in SHARDS.items():
        metric.reset()
        if shards[rank] is not None:
            own = _take(_rows(), shards[rank])
            for part in torch.arange(len(own[0])).split(48):
                metric.update(*_take(own, part))
        local = sum(len(part) for part in metric.packed)
        values = metric.compute()
        assert sum(len(part) for part in metric.packed) == local  # unsynced
        found[name] = (values, metric.rows())
    metric.reset()
    metric.update(*_take(_rows(), SHARDS["uneven"][rank]))
    gathered = metric.rows()  # before any compute: gathers by itself
    metric.sync()
    by_hand = metric.rows()
    metric.unsync()
    found["rows"] = (gathered, by_hand)
    alone = _metric(sync_on_compute=False)
    alone.update(*_take(_rows(), SHARDS["uneven"][rank]))
    alone.compute()
    alone.sync()
    both = len(alone.rows()["id"])
    alone.unsync()
    found["alone"] = (len(alone.rows()["id"]), both)
    after = _metric()
    after.update(*_take(_rows(), SHARDS["uneven"][rank]))
    after.compute()
    torch.distributed.destroy_process_group()
    found["after"] = len(after.rows()["id"])
    torch.save(found, f"{results}/{rank}.pt")


@pytest.mark.slow
def test_two_ranks_give_exactly_what_one_gives(tmp_path):
    arguments = (str(tmp_path / "store"), str(tmp_path))
    torch.multiprocessing.spawn(_on_a_rank, args=arguments, nprocs=2)
    single = _metric()
    single.update(*_rows())
    values, rows = single.compute(), single.rows()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in SHARDS:
            if name == "all empty":
                assert np.isnan(found[name][0]["map"])
                assert len(found[name][1]["id"]) == 0
                continue
            _same(found[name][0], values)
            torch.testing.assert_close(found[name][1], rows, rtol=0, atol=0)
        for gathered in found["rows"]:
            torch.testing.assert_close(gathered, rows, rtol=0, atol=0)
        assert found["alone"] == ((80, 140)[rank], 200)
        assert found["after"] == 200
