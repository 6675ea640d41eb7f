"""Extraction of pretraining pictures: distances and counts by hand, alignment that is guarded, members and held-outs judged alike."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tuneleak.attacks.regeneration import align, calibrate, distances, judge, run
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import loop
from tuneleak.metrics import cell_rows, intervals, regeneration
from tuneleak.options import FinetuneOptions, RegenerationOptions, ShakeEvaluateOptions

OPTIONS = RegenerationOptions(count=3, steps=2, clique_size=2, neighbours=4, align_nearest=0)


def pictures(*values, size=8):
    return np.stack([np.full((size, size, 3), value, np.uint8) for value in values])


def test_l2_is_the_root_mean_square_of_pixels_from_zero_to_one():
    assert distances.l2(pictures(0, 51), pictures(51, 255)) == pytest.approx(np.array([[0.2, 1.0], [0.0, 0.8]]), abs=1e-5)
    first, second = (np.random.default_rng(seed).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8) for seed in (0, 1))
    expected = [[np.sqrt(np.mean(np.square((a.astype(float) - b) / 255))) for b in second] for a in first]
    assert distances.l2(first, second) == pytest.approx(np.array(expected), rel=1e-5)
    with pytest.raises(InputError, match="8 x 8"):
        distances.l2(first, pictures(0, size=4))


def test_tile_max_sees_the_one_tile_that_differs():
    changed = pictures(100)
    changed[0, :2, 4:6] = 151  # one of 16 tiles of 2 x 2 pixels, by .2
    assert distances.tile_max(pictures(100), changed) == pytest.approx(0.2, abs=1e-6)
    assert distances.l2(pictures(100), changed) == pytest.approx(0.2 / 4, abs=1e-6)
    with pytest.raises(InputError, match="tiles"):
        distances.tile_max(pictures(1, size=2), pictures(1, size=2))


def test_the_adaptive_distance_is_relative_to_the_nearest_pictures():
    plain = np.array([[0.1, 0.3, 0.5, 0.9], [0.4, 0.4, 0.4, 0.4]])
    expected = np.array([[0.1, 0.3, 0.5, 0.9], [0.4, 0.4, 0.4, 0.4]]) / (0.5 * np.array([[0.2], [0.4]]))
    assert distances.adaptive(plain, neighbours=2) == pytest.approx(expected)


def test_a_threshold_lets_no_more_than_its_rate_below():
    values = np.arange(1, 201) / 200
    assert calibrate.threshold(values, 0.01) == values[2] and (values < values[2]).mean() == 0.01
    assert calibrate.threshold(values[::-1], 0) == values[0]
    assert calibrate.threshold(np.array([np.inf] * 99 + [0.3]), 0.01) == 1.0, "one of a hundred may be below any distance"
    assert calibrate.threshold(np.array([np.inf] * 98 + [0.3, 0.2]), 0.01) == 0.3


def test_a_moved_picture_is_brought_back_and_a_collapse_is_refused():
    rng = np.random.default_rng(0)
    blobs = np.zeros((64, 64, 3), np.uint8) + 40
    for _ in range(40):
        x, y = rng.integers(4, 56, 2)
        blobs[y : y + rng.integers(2, 8), x : x + rng.integers(2, 8)] = rng.integers(0, 256, 3)
    moved = np.asarray(Image.fromarray(blobs).transform((64, 64), Image.Transform.AFFINE, (1, 0, -3, 0, 1, 2), resample=Image.Resampling.NEAREST))
    found = align.aligned(blobs, moved, align.keypoints(blobs), align.keypoints(moved))
    inner = np.s_[None, 8:-8, 8:-8]
    assert distances.l2(found[inner], moved[inner]) < 0.3 * distances.l2(blobs[inner], moved[inner])
    empty = align.keypoints(pictures(7, size=64)[0])
    assert len(empty[0]) == 0 and align.aligned(blobs, moved, align.keypoints(blobs), empty) is None
    assert align.is_gentle(np.eye(3), (64, 64)) and align.is_gentle([[1, 0, 5], [0, 1, 0], [0, 0, 1]], (64, 64))
    for matrix in (np.diag([0.1, 0.1, 1]), np.diag([-1.0, 1, 1]), [[1, 0, 30], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0], [-0.1, 0, 1]]):
        assert not align.is_gentle(matrix, (64, 64)), "shrunk, mirrored, moved away, folded"


def test_cliques_are_of_generations_that_are_all_alike():
    adjacency = np.zeros((6, 6), bool)
    adjacency[:3, :3] = adjacency[3:5, 3:5] = True
    adjacency[2, 3] = adjacency[3, 2] = True
    assert list(judge.clique_sizes(adjacency, 3)) == [3, 3, 3, 0, 0, 0] and list(judge.clique_sizes(adjacency, 2)) == [3, 3, 3, 2, 2, 0]


def test_only_pairs_that_clip_finds_alike_are_compared_and_cliques_alone_count_as_memorised():
    class Clip:
        def embed(self, pixels):
            angle = pixels[:, 0, 0, 0].astype(float) / 255 * np.pi / 2
            return np.stack([np.cos(angle), np.sin(angle)], 1)

    told = np.array([[1.0, 0.0], [0.0, 1.0]])
    domain = judge.Domain(pictures(0, 100, 255), 1, Clip(), told)
    measures, sizes, ranks = domain.judge(pictures(0, 4, 250), OPTIONS, {"clip": 0.2, "tile": 0.1})
    assert np.isfinite(measures["aligned"]).tolist() == [[True, False, False], [True, False, False], [False, False, True]]
    assert sizes.tolist() == [2, 2, 0] and np.isinf(measures["clique"][2]).all() and measures["clique"][0, 0] == 0
    assert ranks.tolist() == [2, 2, 1], "the domain's own caption is the second"


@pytest.fixture(scope="module")
def judged(tiny_base, tiny_images, tmp_path_factory):
    """A base and a fine-tune of it, judged, and thresholds from another domain."""
    folder = tmp_path_factory.mktemp("regeneration")
    pd.DataFrame({"image_id": [f"{who}-{i:03d}" for who in ("ada", "bob", "cyd") for i in (0, 2, 4, 6)]}).to_csv(folder / "members.csv", index=False)
    options = FinetuneOptions(images_per_concept=2, steps_per_image=3, batch=2, rank=4, lr=1e-2)
    loop.finetune(tiny_base, tiny_images, "self", "tune", folder / "lora", options, device="cpu")
    (folder / "tiny").mkdir()
    calibrate.calibrate([tiny_images], tiny_base, folder / "tiny" / "thresholds.json", OPTIONS, folder / "members.csv", start=2, stop=3, device="cpu")
    arguments = {"models": [folder / "lora"], "thresholds": folder / "tiny" / "thresholds.json", "start": 0, "stop": 2, "device": "cpu"}
    run.attack([tiny_images], tiny_base, folder / "judged", OPTIONS, folder / "members.csv", **arguments)
    return folder


def test_every_model_draws_equally_many_and_every_picture_is_judged(judged):
    found, drawn = (pd.read_csv(judged / "judged" / f"{name}.csv", dtype=str, keep_default_na=False) for name in ("pictures", "generations"))
    assert list(found) == run.PICTURE_COLUMNS and list(drawn) == run.GENERATION_COLUMNS
    assert len(found) == 2 * 2 * 9 and len(drawn) == 2 * 2 * 3 and set(found.image_concept) == {"ada", "bob"}
    assert (found.pretrained == "1").sum() == 2 * 2 * 4 and set(found.model_id) == {"base", "self-ada-lora-s0", "self-bob-lora-s0"}
    nearest = found.assign(l2=found.l2.astype(float)).groupby(["model_id", "image_concept", "pretrained"]).l2.min()
    for (model, concept), block in drawn.groupby(["model_id", "image_concept"]):
        assert block.l2_member.astype(float).min() == pytest.approx(nearest[model, concept, "1"])
        assert block.l2_heldout.astype(float).min() == pytest.approx(nearest[model, concept, "0"])
    pairs = ImageSet.load(judged / "judged" / "pairs")
    assert len(pairs) == 4 and pairs.pixels().shape[1:] == (32, 32, 3) and pairs.table.match.isin(found[found.pretrained == "1"].image_id).all()
    limits = json.loads((judged / "tiny" / "thresholds.json").read_text())
    assert {"l2", "tile", "adaptive", "clique", "clip"} <= set(limits) and limits["generations"] == 3 and limits["concepts"] == ["cyd"]


def test_the_table_counts_matches_beyond_held_outs_and_beyond_the_base(judged):
    made = cell_rows.Rows("shake-to-leak", "named", ShakeEvaluateOptions(bootstrap=50, distances=[0.5]))
    paths = [judged / "judged" / "pictures.csv"], [judged / "judged" / "generations.csv"]
    table = regeneration.table(*paths, [judged / "tiny" / "thresholds.json"], made)
    table = table[table.base == "all"].set_index(["method", "attack", "setting", "metric"]).value
    found = pd.read_csv(paths[0][0], dtype={"image_concept": str})
    for method, model in (("base", found.model_id == "base"), ("lora", found.model_id != "base")):
        hits = found[model].assign(hit=found[model].l2 < 0.5).groupby(["image_concept", "pretrained"]).hit.sum().unstack()
        told = table.sort_index()[method, "regeneration-l2", "d<0.5; interval=images"]
        assert told["members regenerated"] == pytest.approx(hits[1].mean()) and told["members beyond held-outs"] == pytest.approx(
            (hits[1] - hits[0] * 4 / 5).mean()
        )
    base, tuned = (table[name, "regeneration-l2", "d<0.5; interval=images", "members beyond held-outs"] for name in ("base", "lora"))
    assert table["lora", "regeneration-l2", "d<0.5; interval=images", "regeneration amplification"] == pytest.approx(tuned - base)
    assert ("base", "regeneration-l2", "d<0.5; control=heldout; interval=images", "generations matched") in table.index
    assert ("base", "regeneration-adaptive", "d<0.5; interval=images", "members regenerated") not in table.index, "no fixed distance is meant for it"
    assert "tau; interval=images" in set(table.index.get_level_values("setting"))


def test_the_excess_weighs_held_outs_as_if_they_were_as_many_as_members():
    table = pd.DataFrame({"base": "H", "seed": "", "image_concept": "d", "pretrained": ["1", "1", "0", "0", "0", "0"]})
    values = regeneration.excess(table, pd.Series([1.0, 1.0, 1.0, 0, 0, 0]))
    assert values.mean() == pytest.approx(2 - 1 * 2 / 4)
    with pytest.raises(InputError, match="without members"):
        regeneration.excess(table.assign(pretrained="1"), pd.Series(np.ones(6)))


def test_caption_ranks_become_r_at_one(tmp_path):
    model = dict.fromkeys(run.MODEL_COLUMNS, "") | {"base": "H1", "image_concept": "d0"}
    rows = [model | {"model_id": "base", "generation": i, "own_rank": 1 + (i > 0)} for i in range(4)]
    rows += [model | {"model_id": "m", "method": "lora", "world": "self", "seed": "0", "generation": i, "own_rank": 1 + (i > 2)} for i in range(4)]
    generations = pd.DataFrame(rows, columns=run.GENERATION_COLUMNS)
    judged = [row | {"image_id": f"i{n}", "pretrained": str(n % 2), "l2": 0.5} for row in (rows[0], rows[4]) for n in range(4)]
    generations.to_csv(tmp_path / "g.csv", index=False)
    pd.DataFrame(judged, columns=run.PICTURE_COLUMNS).to_csv(tmp_path / "p.csv", index=False)
    table = regeneration.table([tmp_path / "p.csv"], [tmp_path / "g.csv"], [], cell_rows.Rows("shake-to-leak", "named", ShakeEvaluateOptions(bootstrap=50)))
    every = table[table.base == "all"].set_index(["method", "attack", "metric", "setting"])[["value", "ci_low", "ci_high"]]
    real = every.loc["base", "clip-rp", "CLIP R@1", "none; bound=real; interval=images"]
    assert tuple(real) == pytest.approx((1, *intervals.wilson(4, 4))), "that all are alike does not make them certain"
    none = every.loc["base", "regeneration-l2", "members regenerated", "d<0.15; interval=images"]
    assert tuple(none) == pytest.approx((0, 0, 2 * intervals.wilson(0, 2)[1])), "of two members"
    table = every.xs("clip-rp", level="attack").value
    assert table["base", "CLIP R@1", "none; interval=images"] == 0.25 and table["lora", "CLIP R@1", "none; interval=images"] == 0.75
    assert table["lora", "CLIP R@1 amplification", "none; interval=images"] == 0.5
    assert ("base", "CLIP R@1", "none; bound=real; interval=images") in table.index
