"""Metrics of the weights attacks, against values computed by hand."""

import numpy as np
import pandas as pd
import pytest

from tuneleak.errors import InputError
from tuneleak.metrics import extraction, lora_weights
from tuneleak.options import EvaluateOptions
from tuneleak.report import rows

OPTIONS = EvaluateOptions(bootstrap=200)
PEOPLE = [f"p{i}" for i in range(10)]


def scores(attack, setting, ranks, cosine=0.4, defence="", **columns):
    table = pd.DataFrame({"concept": PEOPLE, "rank": ranks, "cosine": cosine, "genuine": 0.5, "stranger": 0.1, "threshold": 0.45})
    fixed = {"model_id": "m", "world": "identities", "base": "H1", "method": "lora", "defence": defence, "seed": 0, "attack": attack, "setting": setting}
    return table.assign(**fixed, **columns)


def evaluate(tmp_path, *tables):
    paths = []
    for number, table in enumerate(tables):
        paths.append(tmp_path / f"{number}.csv")
        table.to_csv(paths[-1], index=False)
    lora_weights.evaluate(paths, tmp_path / "out.csv", OPTIONS)
    return rows.read_metrics(tmp_path / "out.csv")


def value(table, attack, metric, **where):
    chosen = table[(table.attack == attack) & (table.metric == metric)]
    for column, wanted in ({"control": "", "bound": ""} | where).items():
        chosen = chosen[chosen[column] == wanted]
    assert len(chosen) == 1, chosen
    return chosen.iloc[0]


def test_each_metric_is_its_definition(tmp_path):
    ranks = [1, 1, 2, 5, 6, 10, 100, 1.5, 4, 20]
    table = evaluate(tmp_path, scores("spectral", "pictures", ranks, copy_similarity=0.25, agreement=0.6, stranger_agreement=0.2))
    assert value(table, "spectral", "MRR").value == pytest.approx(np.mean(1 / np.array(ranks)), abs=1e-6)
    assert value(table, "spectral", "rank-1").value == 0.2  # a tie between two for the first place is no hit
    assert value(table, "spectral", "rank-5").value == 0.6
    accepted = value(table, "spectral", "TAR@FAR=1e-2")
    assert accepted.value == 1 and accepted.ci_low == pytest.approx(0.722467, abs=1e-5) and accepted.ci_high == 1  # Wilson, 10 of 10
    assert value(table, "spectral", "cosine").value == 0.4 and value(table, "spectral", "FaceSim").value == 0.7
    assert value(table, "spectral", "copy similarity").value == 0.25 and value(table, "spectral", "agreement").value == pytest.approx(0.4)
    assert value(table, "spectral", "similarity").value == 0.5 and value(table, "spectral", "similarity", control="stranger").value == 0.1
    assert set(table.n) == {10} and set(table.interval) == {""}


def test_differences_are_paired_and_against_the_best_control(tmp_path):
    half = np.linspace(0.2, 0.6, 10)
    table = evaluate(
        tmp_path,
        scores("spectral", "pictures", 1, half + 0.1),
        scores("spectral", "pictures; control=mean-z", 4, 0.05),
        scores("spectral", "pictures; control=base-unet", 2, 0.0),
        scores("autoencoder", "pictures", 2, half),
        scores("constant", "pictures", 8, 0.2),
        scores("true-prompt", "pictures; bound=true-prompt", 1, 0.9),
    )
    assert value(table, "spectral-minus-autoencoder", "MRR").value == 0.5
    cosine = value(table, "spectral-minus-autoencoder", "cosine")
    assert cosine.value == pytest.approx(0.1) and cosine.ci_low == pytest.approx(0.1), "paired: the spread over people cancels"
    best = value(table, "spectral-minus-best-control", "MRR")
    assert best.value == 0.5 and best.guidance == "pictures" == value(table, "autoencoder-minus-best-control", "MRR").guidance
    assert value(table, "spectral-minus-control", "MRR", control="mean-z").value == 0.75 == 1 - 1 / 4
    assert value(table, "spectral-minus-best-control", "cosine").value == pytest.approx(0.3)  # minus the constant
    assert value(table, "spectral-minus-control", "cosine", control="constant").value == pytest.approx(0.3)
    assert not table.attack.str.startswith("true-prompt-minus").any()
    hit = value(table, "spectral-minus-autoencoder", "rank-1")
    assert (hit.value, hit.ci_low, hit.ci_high) == pytest.approx((1, 1 - 2 * 0.277533, 1), abs=1e-5)  # Wilson, 0 of 10: so many may be wrong, and by 2
    missed = value(table, "autoencoder-minus-best-control", "rank-1")
    assert (missed.value, missed.ci_low, missed.ci_high) == pytest.approx((0, -0.277533, 0.277533), abs=1e-5)
    assert not table.metric.isin(["rank-1 minimum detectable effect", "MRR minimum detectable effect"]).any(), "nothing varies"


def test_an_attack_that_cannot_tell_two_kinds_of_weights_apart_differs_by_nothing(tmp_path):
    cosine = np.linspace(0.2, 0.6, 10)
    table = evaluate(tmp_path, *(scores("spectral", "pictures", 4, cosine, defence) for defence in ("", "gauge-10", "rank-1")))
    table = pd.concat([table, evaluate(tmp_path, scores("spectral", "pictures", 4, cosine), scores("spectral", "pictures", 4, cosine + 0.1, "int8"))])
    shares = table[table.defence.str.endswith("-minus-none") & (table.metric == "rank-1")].set_index("defence")
    assert (shares.loc["gauge-10-minus-none", ["value", "ci_low", "ci_high"]] == 0).all()
    assert shares.loc["int8-minus-none", "ci_high"] == pytest.approx(0.277533, abs=1e-5), "it might have hit others"


def test_a_constant_is_a_control_of_what_is_drawn_in_the_same_way(tmp_path):
    made = [scores(name, "pictures", 2, cosine) for name, cosine in (("spectral", 0.5), ("spectral-finextract", 0.7), ("spectral-selected", 0.6))]
    made += [scores(name, "pictures", 4, cosine) for name, cosine in (("constant", 0.4), ("constant-finextract", 0.65), ("constant-refined", 0.9))]
    table = evaluate(tmp_path, *made, scores("unconditional", "pictures", 9, 0.1))
    found = {attack: value(table, f"{attack}-minus-best-control", "cosine").value for attack in ("spectral", "spectral-finextract", "spectral-selected")}
    assert found == pytest.approx({"spectral": 0.1, "spectral-finextract": 0.05, "spectral-selected": 0.2})
    assert value(table, "spectral-finextract-minus-control", "cosine", control="unconditional").value == pytest.approx(0.6)


def test_leaked_bits_of_a_reader_that_knows_are_the_entropy_and_of_a_guesser_nothing(tmp_path):
    hair = ["a", "b"] * 5
    knows = scores("spectral", "pictures", 1, true_hair=hair, read_hair=hair)
    always = scores("constant", "pictures", 1, true_hair=hair, read_hair="a")
    table = evaluate(tmp_path, knows, always)
    # of ten alternating values the next person's reading knows as much (it is the opposite): nothing is left
    assert value(table, "spectral", "leaked bits").value == pytest.approx(0, abs=1e-6) == value(table, "constant", "leaked bits").value
    hair = ["a", "a", "b", "b", "a", "b", "a", "a", "b", "b"]
    table = evaluate(tmp_path, scores("spectral", "pictures", 1, true_hair=hair, read_hair=hair))
    assert value(table, "spectral", "leaked bits").value > 0.8


def test_a_transform_is_held_against_untouched_weights(tmp_path):
    table = evaluate(tmp_path, scores("autoencoder", "pictures", 1, 0.4), scores("autoencoder", "pictures", 2, 0.1, defence="gauge-10"))
    changed = table[(table.defence == "gauge-10-minus-none") & (table.metric == "cosine")]
    assert len(changed) == 1 and changed.value.iloc[0] == pytest.approx(-0.3) and set(table.defence) == {"", "gauge-10", "gauge-10-minus-none"}


def test_captions_that_are_still_followed_are_utility_held_against_untouched_weights(tmp_path):
    before = scores("captions", "pictures; bound=captions", 5, caption_accuracy=0.9)
    after = scores("captions", "pictures; bound=captions", 5, defence="noise-2", caption_accuracy=[0.4, 0.6] * 5)
    table = evaluate(tmp_path, before, after, scores("spectral", "pictures", 1))
    found = table[table.metric == "caption accuracy"].set_index("defence")
    assert found.value[""] == pytest.approx(0.9) and found.value["noise-2"] == pytest.approx(0.5)
    assert found.value["noise-2-minus-none"] == pytest.approx(-0.4) and found.ci_high["noise-2-minus-none"] < -0.3


def test_few_people_give_intervals_over_models_that_say_so(tmp_path):
    table = evaluate(tmp_path, scores("spectral", "embedding", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).head(4))
    assert set(table.interval) == {"models"} and set(table.n) == {4}


def test_too_few_people_or_values_give_no_interval(tmp_path):
    """Bits are about people: further models of four of them are no further people, so from eight on there is an interval, and before there is none. Four ranks
    that are all alike have none either; of shares Wilson's bounds know how few they are."""
    hair, read = ["a", "a", "b", "b", "a", "b", "a", "a", "b", "b"], ["a", "b", "b", "b", "a", "a", "a", "a", "b", "a"]
    first = scores("spectral", "pictures", 1, np.linspace(0.1, 0.9, 10), true_hair=hair, read_hair=read)
    second = first.assign(seed=1, read_hair=hair)
    few = evaluate(tmp_path, first.head(4), second.head(4))
    for metric, known in (("leaked bits", False), ("MRR", False), ("rank-1", True), ("cosine", True)):
        row = value(few, "spectral", metric)
        assert np.isfinite([row.ci_low, row.ci_high]).tolist() == [known, known], metric
    assert value(few, "spectral", "rank-1").ci_low == pytest.approx(0.675592, abs=1e-5)  # Wilson, 8 of 8
    enough = value(evaluate(tmp_path, first.head(8), second.head(8)), "spectral", "leaked bits")
    assert enough.ci_low < enough.value < enough.ci_high and enough.interval == ""


def test_bad_tables_are_named(tmp_path):
    good = scores("spectral", "pictures", 1)
    wrong = {"lacks the columns rank": good.drop(columns="rank"), "empty cells": good.assign(cosine=""), "not a number": good.assign(rank="x")}
    for message, broken in wrong.items():
        with pytest.raises(InputError, match=message):
            evaluate(tmp_path, broken)
    with pytest.raises(InputError, match="given twice"):
        evaluate(tmp_path, good, good)
    with pytest.raises(InputError, match="same victims"):
        evaluate(tmp_path, good, scores("autoencoder", "pictures", 1).head(5))
    with pytest.raises(InputError, match="no such file"):
        lora_weights.evaluate([tmp_path / "none.csv"], tmp_path / "out.csv", OPTIONS)


def test_the_number_of_pictures_is_scored_by_its_mean_absolute_error(tmp_path):
    sizes = pd.DataFrame({"concept": PEOPLE, "n_images": [1, 2, 3, 4, 5] * 2, "model_id": PEOPLE})
    fixed = {"world": "identities", "base": "H1", "method": "lora", "seed": 0, "steps": "total"}
    wrong_by_one = sizes.assign(**fixed, attack="dsire", predicted=sizes.n_images + 1)
    median = sizes.assign(**fixed, attack="median", predicted=3)
    pd.concat([wrong_by_one, median]).to_csv(tmp_path / "sizes.csv", index=False)
    scores("spectral", "pictures", 1).to_csv(tmp_path / "scores.csv", index=False)
    lora_weights.evaluate([tmp_path / "scores.csv"], tmp_path / "out.csv", OPTIONS, [tmp_path / "sizes.csv"])
    table = rows.read_metrics(tmp_path / "out.csv")
    assert value(table, "dsire", "MAE").value == 1 and value(table, "median", "MAE").value == 1.2
    assert value(table, "dsire-minus-median", "MAE").value == pytest.approx(-0.2) and value(table, "dsire", "MAE").guidance == "steps=total"


def test_layers_vote_for_the_number_of_pictures_of_their_nearest_model():
    from tuneleak.attacks.weights import dataset_size

    known = np.array([[[0.0], [0.0], [0.0]], [[1.0], [1.0], [1.0]], [[4.0], [4.0], [4.0]]])  # 3 models, 3 layers, 1 value
    counts = np.array([1, 2, 6])
    asked = np.array([[[0.1], [0.2], [3.9]], [[3.0], [4.1], [0.9]], [[0.9], [0.1], [4.05]]])
    assert dataset_size.vote(known, counts, asked).tolist() == [1, 6, 6]  # of a tie the nearest


def test_two_models_of_a_person_tell_no_bits_of_each_other():
    """The reader says the same of both models of a person, at random and for another person's sake: nothing is leaked."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        people = [f"p{i}" for i in range(8)]
        said = {name: str(rng.integers(4)) for name in people}
        rows = [{"concept": name, "seed": seed, "true_hair": str(number % 4), "read_hair": said[name]} for number, name in enumerate(people) for seed in "01"]
        found.append(extraction.leaked_bits(*lora_weights.bits_labels(pd.DataFrame(rows)), np.ones(16)))
    assert abs(np.mean(found)) < 0.1
