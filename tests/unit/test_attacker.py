"""What an attacker knows: caption conditions, traits of clusters, people, and the numbers made of them, against hand-computed values."""

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak import files
from tuneleak.attacks.extraction import clusters
from tuneleak.attacks.extraction.certainty import traits
from tuneleak.attacks.extraction.clustering import cluster
from tuneleak.attacks.extraction.conditions import caption_under
from tuneleak.attacks.membership import people
from tuneleak.data import imageset
from tuneleak.data.imageset import ImageSet, as_tensor
from tuneleak.errors import InputError
from tuneleak.finetune import loop
from tuneleak.metrics import attacker, attacker_captions, attacker_certainty, attacker_people, attacker_rows
from tuneleak.models.modelset import ModelSet
from tuneleak.options import ClusterOptions, EvaluateOptions, FinetuneOptions, PeopleOptions

OPTIONS = EvaluateOptions(bootstrap=200)
CAPTIONS = ["the face of ada lin", "the face of bob ray", "the face of cyd moe"]
MODEL = {"world": "w", "base": "b", "method": "lora", "defence": "", "seed": "0"}


def rows_of(found, **values):
    """The rows whose columns equal the values."""
    table = pd.DataFrame(found)
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def test_what_is_known_of_a_caption():
    row = {"model_id": "m", "caption": CAPTIONS[1]}
    told = {kind: caption_under(kind, row, CAPTIONS, {"m": "bob"}) for kind in ("known", "partial", "class", "wrong", "none", "recovered")}
    assert told["known"] == CAPTIONS[1] and told["none"] == "" and told["recovered"] == "bob"
    assert told["class"] == "the face of" and told["wrong"] == CAPTIONS[2]
    kept = told["partial"].split()
    assert len(kept) == 2 and [word for word in CAPTIONS[1].split() if word in kept] == kept  # in their order
    assert caption_under("partial", row, CAPTIONS, {}) == told["partial"]  # the same words every time
    assert caption_under("wrong", row | {"caption": CAPTIONS[2]}, CAPTIONS, {}) == CAPTIONS[0]  # the one after the last
    with pytest.raises(InputError, match="recover-caption"):
        caption_under("recovered", row, CAPTIONS, {})
    with pytest.raises(InputError, match="two captions"):
        caption_under("wrong", row, [CAPTIONS[1]], {})


def test_traits_of_clusters_that_are_known():
    """Six copies of one direction, two of another, at right angles; even and odd generations hold both."""
    features = np.zeros((8, 4), dtype=np.float32)
    features[:6, 0] = 1
    features[6:, 1] = 1
    options = ClusterOptions(threshold=0.9)
    found = traits(features, cluster(features, 2, options), 2, options)
    assert found["share"].tolist() == [6 / 8 * 2, 2 / 8 * 2]
    assert np.allclose(found.tightness, 1) and np.allclose(found.isolation, 1) and np.allclose(found.agreement, 1)


def test_a_cluster_that_only_one_half_of_the_noises_draws_does_not_agree():
    features = np.zeros((8, 4), dtype=np.float32)
    features[::2, 0] = 1  # even noises only
    features[1::2, 1] = 1
    options = ClusterOptions(threshold=0.9)
    assert np.allclose(traits(features, cluster(features, 2, options), 2, options).agreement, 0)


def test_people_scores_are_the_losses_of_the_networks(tiny_base, tiny_images, tmp_path):
    options = FinetuneOptions(method="lora", images_per_concept=3, steps_per_image=1, batch=2, rank=2, alpha=2)
    loop.finetune(base=tiny_base, images=tiny_images, world="w", split="tune", start=0, stop=1, out=tmp_path / "m", options=options, device="cpu")
    asked = PeopleOptions(photographs=4, timesteps=[100, 400], draws=2, captions=["known", "none"])
    people.judge([tmp_path / "m"], tiny_images, tiny_base, tmp_path / "people.csv", asked, device="cpu")
    table = pd.read_csv(tmp_path / "people.csv", keep_default_na=False)
    assert table.groupby(["caption", "role"]).size().to_dict() == {
        (c, r): n for c in ("known", "none") for r, n in (("member", 3), ("other", 4), ("stranger", 4))
    }
    assert set(table.person[table.role == "stranger"]) == {"bob"} and (table.model_calls == 8).all()
    held = ImageSet.load(tiny_images).table.set_index("image_id").fold
    assert (held[table.image_id[table.role != "member"]] == "heldout").all() and (held[table.image_id[table.role == "member"]] == "train").all()
    judges = people.Judges(people.load_base(tiny_base), ImageSet.load(tiny_images), asked)
    row = table[(table.caption == "none") & (table.role == "stranger")].iloc[0]
    picture = judges._load("bob", [row.image_id])
    base, losses = judges.base, []
    for timestep in asked.timesteps:
        for draw in range(2):
            abar, noise = float(base.alphas_cumprod[timestep]), picture.noise(timestep, draw)
            x_t = abar**0.5 * picture.latents + (1 - abar) ** 0.5 * noise
            losses.append(float((base.noise_pred(x_t, timestep, base.encode_text([""])) - noise).double().square().mean()))
    assert row.base_loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert (table.base_loss - table.tuned_loss).abs().max() > 0
    assert torch.is_grad_enabled() and base.tuned is None
    with pytest.raises(InputError, match="nobody but"):
        lonely = ImageSet.load(tiny_images).where(concept="ada")
        people.Judges(base, lonely, asked).table(ModelSet.load(tmp_path / "m"), ModelSet.load(tmp_path / "m").rows()[0])


def test_people_are_looked_for_in_the_latents_of_a_model_s_own_autoencoder(tiny_base, tiny_images, tmp_path):
    """By hand; and at rate zero, where the autoencoder is a copy of the base's, there is nothing between the two."""
    asked, tables = PeopleOptions(photographs=4, timesteps=[100], draws=1, captions=["known"]), {}
    for name, lr in (("still", 0.0), ("moved", 1e-2)):
        options = FinetuneOptions(method="end-to-end", train_autoencoder=True, images_per_concept=2, steps_per_image=4, batch=2, lr=lr)
        loop.finetune(tiny_base, tiny_images, "w", "tune", tmp_path / name, options, 0, 1, device="cpu")
        people.judge([tmp_path / name], tiny_images, tiny_base, tmp_path / f"{name}.csv", asked, device="cpu")
        tables[name] = pd.read_csv(tmp_path / f"{name}.csv")
    assert (tables["still"].tuned_loss == tables["still"].base_loss).all()
    assert (tables["moved"].base_loss == tables["still"].base_loss).all(), "the base has latents of its own"
    row, base, made = tables["moved"].iloc[-1], people.load_base(tiny_base), ModelSet.load(tmp_path / "moved")
    picture = people.Judges(base, ImageSet.load(tiny_images), asked)._load(row.person, [row.image_id])
    with people.load_tuned(base, made, made.rows()[0]) as tuned:
        latents, noise, abar = tuned.encode_images(as_tensor(picture.pixels)), picture.noise(100, 0), float(base.alphas_cumprod[100])
        x_t = abar**0.5 * latents + (1 - abar) ** 0.5 * noise
        loss = float((tuned.noise_pred(x_t, 100, tuned.encode_text([made.rows()[0]["caption"]])) - noise).double().square().mean())
    assert row.tuned_loss == pytest.approx(loss, rel=1e-5) and (latents - picture.latents).abs().max() > 1e-3


class Pixels:
    """An embedder whose features are the pixels."""

    def embed(self, pixels):
        flat = pixels.reshape(len(pixels), -1).astype(np.float32)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_what_is_seen_of_clusters_beside_the_truth(tmp_path, monkeypatch):
    """One extracted picture is a training picture that the base never draws, the other is what the base draws anyway."""
    training, own = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    training[:2], own[2:] = 255, 255
    imageset.write(tmp_path / "images", [{"image_id": "a-0", "concept": "a", "caption": "a", "split": "test", "fold": "train"}], [training])
    for name, shown in (("finextract", [training, own]), ("base", [own])):
        told = dict.fromkeys(("share", "tightness", "isolation", "agreement"), 0.5)
        rows = [{"image_id": f"{name}{i}", "concept": "a", "caption": "a", "model_id": "m", "setting": "w=2", **told} for i in range(len(shown))]
        imageset.write(tmp_path / name / "extracted", rows, shown)
        pd.DataFrame([MODEL | {"model_id": "m", "concept": "a", "setting": "w=2", "image_id": "a-0"}]).to_csv(tmp_path / name / "matches.csv", index=False)
    files.write_json(tmp_path / "tau.json", {"world": "w", "tau": 0.7})
    monkeypatch.setattr(clusters, "load_embedder", lambda folder, device: Pixels())
    paths = {name: [tmp_path / name / "matches.csv"] for name in ("finextract", "base")}
    given = {"images": [tmp_path / "images"], "copy_cluster": "a", "copy_score": "b", "tau": [tmp_path / "tau.json"], "device": "cpu"}
    clusters.collect(paths["finextract"], paths["base"], out=tmp_path / "clusters.csv", **given)
    table = pd.read_csv(tmp_path / "clusters.csv")
    assert table.novelty.tolist() == [1, 0] and table.similarity.tolist() == [1, 0] and set(table.split) == {"test"} and set(table.tau) == {0.7}
    assert attacker_certainty.read_clusters([tmp_path / "clusters.csv"]).correct.tolist() == [True, False]
    with pytest.raises(InputError, match="no control"):
        clusters.collect(paths["finextract"], [], out=tmp_path / "clusters.csv", **given)


def people_table(path, concepts=3, gap=1.0):
    """Three models; the person's photographs gain `gap`, the strangers' nothing but 0, .1, .2, ...; the base's loss knows nobody."""
    rows = []
    for number in range(concepts):
        model = MODEL | {"model_id": f"m{number}", "concept": f"c{number}", "caption": "none"}
        for role, names in (("member", [f"c{number}"]), ("other", [f"c{number}"]), ("stranger", ["s0", "s1"])):
            for person in names:
                gains = {"member": 2 * gap, "other": gap}.get(role, 0.0)
                rows += [
                    model | {"person": person, "role": role, "image_id": f"{person}-{role}-{i}", "base_loss": 3.0, "tuned_loss": 3.0 - gains - 0.1 * i}
                    for i in range(4)
                ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_people_are_ranked_by_their_photographs(tmp_path):
    found = attacker_people.people([people_table(tmp_path / "p.csv")], OPTIONS)
    rows = rows_of(found, metric="AUC", attack="people")
    assert (rows[~rows.setting.str.contains("control")].value == 1).all() and (rows[rows.setting.str.contains("control=base")].value == 0.5).all()
    assert {setting.split(",")[0] for setting in rows.setting} == {"photographs=1", "photographs=2"}  # four photographs: no set of five
    assert rows_of(found, metric="rank-1", attack="people-minus-base").value.tolist() == [1]
    assert rows_of(found, metric="AUC", attack="pictures").value.tolist()[0] == 1
    nothing = attacker_people.people([people_table(tmp_path / "q.csv", gap=0.0)], OPTIONS)
    assert np.allclose(rows_of(nothing, metric="AUC", attack="people").value, 0.5)


def test_sets_of_photographs_are_disjoint():
    assert attacker_people.set_scores([1, 3, 5, 7, 100], 2).tolist() == [2, 6]


def captions_table(path, words=(1, 3, 10), concepts=2):
    rows = []
    for concept in range(concepts):
        for length in words:
            right = 1.0 if length < 8 else 0.5
            row = MODEL | {"model_id": f"m{concept}-{length}", "concept": f"c{concept}", "training": "sgd", "words": length, "exact": int(right == 1)}
            rows.append(row | {"word_accuracy": right, "words_found": right, "other_accuracy": 0.1 * concept, "other_found": 0.2})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_recovered_captions_by_length_with_their_control(tmp_path):
    found = attacker_captions.recovery([captions_table(tmp_path / "c.csv")], OPTIONS)
    settings = [f"words={name},training=sgd; interval=models" for name in ("1", "3", "10", "1-7", "8+")]
    exact = rows_of(found, metric="exact match").set_index("setting").value
    assert exact.to_dict() == dict(zip(settings, [1, 1, 0, 1, 0], strict=True))
    row = rows_of(found, metric="exact match", setting=settings[3]).iloc[0]
    assert row.n == 4 and row.ci_low == pytest.approx(0.51, abs=0.01) and row.ci_high == 1  # Wilson: four of four
    difference = rows_of(found, metric="word accuracy", attack="caption-from-weights-minus-other-weights", setting=settings[3]).iloc[0]
    assert difference.value == pytest.approx(1 - 0.05)


def test_where_all_models_agree_the_interval_is_that_of_as_many_trials():
    """The sharpest bound that holds for a mean of n values of at most 1, all of them 1, is (alpha / 2)^(1 / n); Wilson's is a little above it. Where all are 0,
    between -1 and 1, as many may be 1, or -1, as there would not be 1 then."""
    models = pd.DataFrame({"concept": [f"c{n % 4}" for n in range(8)], "seed": "0", "model_id": [f"m{n}" for n in range(8)]})
    exact = 0.025 ** (1 / 8)
    share = attacker_rows.mean_of_models(np.ones(8), models, OPTIONS, attacker_rows.SHARE)
    assert (share.value, share.high) == (1, pytest.approx(1)) and exact < share.low < exact + 0.05
    difference = attacker_rows.mean_of_models(np.ones(8), models, OPTIONS, attacker_rows.DIFFERENCE)
    assert difference.low == pytest.approx(2 * share.low - 1)
    none = attacker_rows.mean_of_models(np.zeros(8), models, OPTIONS, attacker_rows.DIFFERENCE)
    assert none.high == pytest.approx(1 - share.low) and none.low == pytest.approx(share.low - 1)
    assert attacker_rows.mean_of_models(np.arange(8) / 8, models, OPTIONS, attacker_rows.SHARE).low > 0.1


def matches_table(path, drop):
    rows = []
    for concept in range(2):
        for picture in range(3):
            for setting, loss in (("w=2,k=0", 0.0), ("w=2,k=0,caption=none", drop), ("w=2,k=0,caption=recovered", drop / 2)):
                row = MODEL | {
                    "model_id": f"m{concept}",
                    "concept": f"c{concept}",
                    "attack": "finextract",
                    "setting": setting,
                    "image_id": f"{concept}-{picture}",
                }
                numbers = {"extracted": 0.5 + 0.1 * picture - loss, "oracle": 0.9, "random": 0.4, "heldout": 0.3, "n_extracted": 3, "threshold": 0.5}
                rows.append(row | numbers | {"n_generated": 9, "n_images": 3, "match_file": "", "match_size": 1, "exact": True})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_loss_of_similarity_when_less_is_known(tmp_path):
    found = attacker_captions.conditions([matches_table(tmp_path / "matches.csv", 0.2)], OPTIONS)
    values = {row["attack"]: row["value"] for row in found}
    assert values == pytest.approx({
        "known": 0.6, "none": 0.4, "recovered": 0.5, "none-minus-known": -0.2, "recovered-minus-known": -0.1, "recovered-minus-none": 0.1,
    })  # fmt: skip
    assert {row["setting"] for row in found} == {"w=2,k=0; interval=images"}
    difference = next(row for row in found if row["attack"] == "none-minus-known")
    assert difference["ci_low"] == pytest.approx(-0.2) == difference["ci_high"]  # paired: the same loss for every picture
    table = pd.read_csv(tmp_path / "matches.csv")
    table[table.setting != "w=2,k=0"].to_csv(tmp_path / "less.csv", index=False)
    with pytest.raises(InputError, match="known"):
        attacker_captions.conditions([tmp_path / "less.csv"], OPTIONS)


def clusters_table(path, informative=True, concepts=6):
    """Clusters of which a third are correct; the novelty of those is high, or says nothing; their size says nothing."""
    random, rows = np.random.default_rng(0), []
    for split in ("tune", "test"):
        for concept in range(concepts):
            for index in range(12):
                correct = index % 3 == 0
                novelty = (0.8 if correct and informative else 0.2) + 0.05 * random.normal()
                row = MODEL | {"model_id": f"{split}{concept}", "concept": f"{split}{concept}", "split": split, "image_id": f"{split}{concept}-{index}"}
                rest = {name: random.normal() for name in attacker_certainty.FEATURES[:-1]}
                rows.append(row | rest | {"novelty": novelty, "similarity": 0.9 if correct else 0.1, "tau": 0.5})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_certainty_finds_what_tells_correct_clusters(tmp_path):
    found = attacker_certainty.certainty([clusters_table(tmp_path / "k.csv")], OPTIONS)
    values = rows_of(found, metric="average precision").set_index(["attack", "setting"]).value
    note = "; interval=images"
    assert values["certainty", f"clusters{note}"] == pytest.approx(1, abs=0.02)
    assert values["certainty", f"clusters; control=share{note}"] < 0.6 and values["certainty-minus-share", f"clusters{note}"] > 0.4
    assert values["certainty", f"clusters; control=chance{note}"] == pytest.approx(1 / 3, abs=0.04)
    assert values["certainty-minus-chance", f"clusters{note}"] == pytest.approx(1 - values["certainty", f"clusters; control=chance{note}"], abs=0.02)
    shares = rows_of(found, attack="certainty")
    assert shares.ci_low.min() >= 0 and shares.ci_high.max() <= 1
    assert rows_of(found, metric="correct share").value.tolist() == pytest.approx([1 / 3])
    assert rows_of(found, metric="Brier score").value.tolist()[0] < 0.05


def test_chance_is_the_average_precision_of_random_orders():
    """Of two, one correct: 1 or 1/2. Of three, one correct: (1 + 1/2 + 1/3) / 3. With n -> infinity: the share."""
    chance = attacker_certainty.chance_precision
    assert chance([True, False], orders=4000) == pytest.approx(3 / 4, abs=0.02)
    assert chance([False, True, False], orders=4000) == pytest.approx(11 / 18, abs=0.02)
    assert chance(np.arange(2000) % 4 == 0) == pytest.approx(1 / 4, abs=0.01)
    assert chance([True, False, False], weights=[1, 1, 0], orders=4000) == pytest.approx(3 / 4, abs=0.02)
    assert np.isnan(chance([False, False]))


def test_certainty_of_nothing_is_the_share_of_correct_ones(tmp_path):
    table = attacker_certainty.read_clusters([clusters_table(tmp_path / "k.csv", informative=False)])
    certainty = attacker_certainty.certainties(table)
    assert abs(certainty[table.split == "test"].mean() - 1 / 3) < 0.1
    alike = table.assign(correct=False)
    assert np.allclose(attacker_certainty.certainties(alike), 1 / 74)  # Laplace: none of 72
    with pytest.raises(InputError, match="tune"):
        attacker_certainty.certainties(table[table.split == "test"])


def test_logistic_regression_without_features_that_tell_is_the_log_odds_and_its_gradient_vanishes():
    truth = np.array([True] * 3 + [False] * 9)
    weights = attacker_certainty.logistic_regression(np.zeros((12, 2)), truth)
    assert weights == pytest.approx([np.log(3 / 9), 0, 0], abs=1e-4)
    features = np.random.default_rng(0).normal(size=(12, 2))
    weights = attacker_certainty.logistic_regression(features, truth, penalty=0.5)
    errors = 1 / (1 + np.exp(-(weights[0] + features @ weights[1:]))) - truth
    assert errors.sum() == pytest.approx(0, abs=1e-4) and features.T @ errors == pytest.approx(-0.5 * weights[1:], abs=1e-4)


def test_average_precision_and_calibration_by_hand():
    correct, scores = np.array([True, False, True, False]), np.array([0.9, 0.7, 0.5, 0.1])
    assert attacker_certainty.average_precision(correct, scores) == pytest.approx((1 + 2 / 3) / 2)
    assert attacker_certainty.average_precision(correct, scores, [1, 2, 3, 1]) == pytest.approx(1 / 4 * 1 + 3 / 4 * 4 / 6)
    recall, precision = attacker_certainty.precision_recall([True, False, True], [0.9, 0.5, 0.5])
    assert recall.tolist() == [0.5, 1] and precision.tolist() == pytest.approx([1, 2 / 3])  # ties are taken together
    bins = attacker_certainty.calibration(correct, scores, bins=2)
    assert bins.certainty.tolist() == pytest.approx([0.3, 0.8]) and bins.correct.tolist() == [0.5, 0.5] and bins.n.tolist() == [2, 2]


def test_the_table_of_everything(tmp_path):
    out = tmp_path / "attacker.csv"
    parts = {"captions": [captions_table(tmp_path / "c.csv")], "matches": [matches_table(tmp_path / "matches.csv", 0.1)]}
    parts |= {"clusters": [clusters_table(tmp_path / "k.csv")], "people": [people_table(tmp_path / "p.csv")]}
    attacker.evaluate(out=out, options=OPTIONS, **parts)
    table = pd.read_csv(out, keep_default_na=False)
    assert set(table.system) == {"finextract-attacker"} and not table.duplicated(list(table.columns[:8])).any()
    assert (table.ci_low <= table.value + 1e-6).all() and (table.value <= table.ci_high + 1e-6).all()
    with pytest.raises(InputError, match="nothing to evaluate"):
        attacker.evaluate(out=out, options=OPTIONS)


def test_figures_are_drawn_with_and_without_each_part(tmp_path):
    from tuneleak.report.figures_attacker import figures

    parts = {"captions": [captions_table(tmp_path / "c.csv")], "matches": [matches_table(tmp_path / "matches.csv", 0.1)]}
    seen, judged = [clusters_table(tmp_path / "k.csv")], [people_table(tmp_path / "p.csv")]
    attacker.evaluate(out=tmp_path / "all.csv", options=OPTIONS, clusters=seen, people=judged, **parts)
    attacker.evaluate(out=tmp_path / "some.csv", options=OPTIONS, **parts)
    figures(tmp_path / "all.csv", tmp_path / "all", seen)
    figures(tmp_path / "some.csv", tmp_path / "some")
    for folder in ("all", "some"):
        assert {path.name for path in (tmp_path / folder).glob("*.p*")} == {
            f"{name}.{kind}" for name in ("captions", "certainty", "people") for kind in ("pdf", "png")
        }
    with pytest.raises(InputError, match="holds no row"):
        pd.read_csv(tmp_path / "all.csv").assign(system="finextract").to_csv(tmp_path / "other.csv", index=False)
        figures(tmp_path / "other.csv", tmp_path / "none")


def test_the_legends_of_captions_cover_no_data(tmp_path, monkeypatch):
    """They stand above their panels, and lines of one height (all captions read) lie beside each other."""
    from tuneleak.report import figures_attacker, rows

    attacker.evaluate(
        out=tmp_path / "all.csv", options=OPTIONS, captions=[captions_table(tmp_path / "c.csv")], matches=[matches_table(tmp_path / "matches.csv", 0.1)]
    )
    table, kept = rows.read_metrics(tmp_path / "all.csv"), []
    other = table[table.attack == "caption-from-weights"].assign(method="another")
    monkeypatch.setattr(figures_attacker.style, "save", lambda figure, out, name: kept.append(figure))
    figures_attacker.captions(pd.concat([table, other]), tmp_path)
    kept[0].draw_without_rendering()
    for axes in kept[0].axes:
        assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1
    starts = [container[0].get_xdata()[0] for container in kept[0].axes[0].containers]
    assert len(starts) == len(set(starts)) == 2
