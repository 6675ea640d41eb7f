"""The verbs `calibrate`, `evaluate finextract` and `join-metrics` on tables whose answers are known."""

import json
import sys
from subprocess import run

import numpy as np
import pandas as pd
import pytest

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.metrics.finextract import COLUMNS, best_setting, calibrate, evaluate
from tuneleak.metrics.join import join
from tuneleak.options import EvaluateOptions

OPTIONS = EvaluateOptions(bootstrap=200)
SETTINGS = {"direct": ["none"], "cfg": ["w=3"], "finextract": ["w=3,k=-0.02"], "base": ["w=3"]}
LEVEL = {"direct": 0.5, "cfg": 0.6, "finextract": 0.7, "base": 0.3}


def matches(concepts=9, seeds=(0, 1), images=4, method="lora", attacks=tuple(SETTINGS), shift=0.0, settings=None, world="people"):
    """Rows as `attack extraction` writes them: a level per attack plus noise that all attacks on a picture share."""
    random, rows = np.random.default_rng(0), []
    noise = random.normal(0, 0.05, (concepts, len(seeds), images))
    for attack in attacks:
        for place, setting in enumerate((settings or {}).get(attack, SETTINGS[attack])):
            for concept, seed, image in np.ndindex(noise.shape):
                value = LEVEL[attack] + shift + 0.01 * place + noise[concept, seed, image]
                name = f"c{concept:02}"
                row = {"model_id": f"{name}-{seed}", "world": world, "base": "H1", "concept": name, "method": method, "defence": "none", "seed": seeds[seed]}
                row |= {"attack": attack, "setting": setting, "image_id": f"{name}-{image}", "extracted": value, "match_file": "x.png", "match_size": 3}
                row |= {"oracle": value + 0.1, "random": value - 0.2, "heldout": value - 0.3, "n_extracted": 3 + seed, "threshold": 0.5}
                row |= {"true_mouth": f"m{image}", "read_extracted_mouth": f"m{image}", "read_heldout_mouth": f"m{random.integers(4)}"}
                rows.append(row)
    return pd.DataFrame(rows)


def evaluated(folder, *tables, options=OPTIONS, tau=0.65):
    folder.mkdir(exist_ok=True)
    for index, table in enumerate(tables):
        files.write_csv(folder / f"{index}.csv", table)
    files.write_json(folder / "tau.json", {"world": "people", "tau": tau})
    evaluate([folder / f"{index}.csv" for index in range(len(tables))], folder / "main.csv", options, tau=[folder / "tau.json"] if tau else [])
    return pd.read_csv(folder / "main.csv", keep_default_na=False)


def one(table, **values):
    found = table[np.logical_and.reduce([table[name] == value for name, value in values.items()])]
    assert len(found) == 1, f"{len(found)} rows for {values}"
    return found.iloc[0]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Matches of two methods and the metrics table of them."""
    tables = matches(), matches(method="dreambooth", seeds=(0,), shift=0.05)
    return *tables, evaluated(tmp_path_factory.mktemp("study"), *tables)


def test_values_by_hand(study):
    lora, _, table = study
    rows = lora[lora.attack == "cfg"]
    key = {"attack": "cfg", "method": "lora", "setting": "w=3"}
    average = one(table, metric="AS", **key)
    assert average.value == pytest.approx(rows.extracted.mean(), abs=1e-6)
    assert average.ci_low < average.value < average.ci_high
    assert average.n == 72 and average.seeds == "0;1" and average.system == "finextract"
    for metric, threshold in (("A-ESR@0.6", 0.6), ("A-ESR@0.7", 0.7), ("A-ESR@tau", 0.65)):
        assert one(table, metric=metric, **key).value == pytest.approx((rows.extracted >= threshold).mean(), abs=1e-6)
    size = one(table, metric="extracted set size", **key)
    assert size.value == 3.5 and size.n == 18
    clustered = one(table, metric="similarity threshold", **key)
    assert clustered.value == clustered.ci_low == clustered.ci_high == 0.5


def test_all_or_none_extracted_still_has_an_interval(study):
    """No success in 9 concepts: Wilson's upper bound z^2 / (9 + z^2), and its mirror image for all."""
    bound = 1.959964**2 / (9 + 1.959964**2)
    none = one(study[2], metric="A-ESR@0.7", attack="base", method="lora", setting="w=3")
    assert (none.value, none.ci_low, none.ci_high) == pytest.approx((0, 0, bound), abs=1e-6)
    everything = one(study[2], metric="A-ESR@0.6", attack="finextract", method="dreambooth", setting="w=3,k=-0.02; bound=oracle")
    assert (everything.value, everything.ci_low, everything.ci_high) == pytest.approx((1, 1 - bound, 1), abs=1e-6)


def test_controls_and_bound(study):
    table = study[2]
    average = one(table, metric="AS", attack="finextract", method="lora", setting="w=3,k=-0.02").value
    for name, offset in (("control=random", -0.2), ("control=heldout", -0.3), ("bound=oracle", 0.1)):
        assert one(table, metric="AS", attack="finextract", method="lora", setting=f"w=3,k=-0.02; {name}").value == pytest.approx(average + offset, abs=2e-6)
    assert not table[table.metric.str.startswith("A-ESR") & table.setting.str.contains("control")].size, "no success rate of a mean over draws"


def test_leaked_bits(study):
    bits = one(study[2], metric="leaked bits", attack="cfg", method="lora")
    assert bits.value == pytest.approx(2, abs=0.15) and bits.ci_low > 1.5


def test_per_concept_rows(study):
    lora, _, table = study
    rows = table[(table.metric == "AS per concept") & (table.attack == "cfg") & (table.method == "lora")]
    assert list(rows.setting) == [f"w=3; concept=c{index:02}" for index in range(9)]
    part = lora[(lora.attack == "cfg") & (lora.concept == "c04")]
    assert rows.value.iloc[4] == pytest.approx(part.extracted.mean(), abs=1e-6) and rows.n.iloc[4] == 8
    assert (rows.ci_low < rows.value).all() and (rows.value < rows.ci_high).all()


def test_differences_are_paired(study):
    """The shared noise cancels, so that the interval of a difference is a point although each AS has one of some width."""
    table = study[2]
    for attack, value in (("finextract-minus-cfg", 0.1), ("cfg-minus-direct", 0.1), ("finextract-minus-base", 0.4)):
        row = one(table, metric="AS", attack=attack, method="lora")
        assert (row.value, row.ci_low, row.ci_high) == pytest.approx((value, value, value), abs=1e-6)
    assert one(table, metric="AS", attack="finextract-minus-cfg", method="lora").setting == "w=3,k=-0.02 minus w=3"
    assert not ((table.metric == "AS minimum detectable effect") & (table.attack == "finextract-minus-cfg") & (table.method == "lora")).any(), "nothing varies"


def test_methods_are_paired_on_common_seeds(study):
    lora, dreambooth, table = study
    row = one(table, metric="AS", attack="finextract", method="lora-minus-dreambooth")
    assert row.n == 36 and row.seeds == "0"
    first, second = (part[(part.attack == "finextract") & (part.seed == 0)].extracted.mean() for part in (lora, dreambooth))
    assert row.value == pytest.approx(first - second, abs=1e-6)
    assert row.ci_low < row.value < row.ci_high
    assert one(table, metric="AS minimum detectable effect", attack="finextract", method="lora-minus-dreambooth").value > 0


def test_few_concepts_say_so(tmp_path):
    table = evaluated(tmp_path, matches(concepts=3))
    assert set(table[table.metric.isin(["AS", "A-ESR@tau", "leaked bits"])].setting.str.split("; ").str[-1]) == {"interval=images"}
    sizes = table[table.metric == "extracted set size"]
    assert set(sizes.setting.str.split("; ").str[-1]) == {"interval=models"} and (sizes.ci_low < sizes.ci_high).all()


def test_the_same_input_gives_the_same_file(tmp_path):
    evaluated(tmp_path / "a", matches())
    evaluated(tmp_path / "b", matches())
    assert (tmp_path / "a/main.csv").read_bytes() == (tmp_path / "b/main.csv").read_bytes()
    assert json.loads((tmp_path / "a/main.csv.meta.json").read_text())["tau"] == {"people": 0.65}


def test_tuning_and_best_setting(tmp_path):
    grid = {"cfg": ["w=1", "w=2", "w=3"], "finextract": ["w=1,k=0", "w=2,k=0", "w=2,k=-0.02"]}
    table = evaluated(tmp_path, matches(concepts=4, attacks=("cfg", "finextract"), settings=grid), tau=None)
    assert not table.attack.str.contains("minus").any(), "many settings have no one difference"
    assert not (table.metric == "A-ESR@tau").any()
    best = best_setting(table)
    assert dict(zip(best.attack, best.setting, strict=True)) == {"cfg": "w=3", "finextract": "w=2,k=-0.02"}
    assert (best.tried == 3).all() and best.value.tolist() == pytest.approx([0.62, 0.72], abs=0.05)


def test_without_heldouts_and_factors(tmp_path):
    table = matches(concepts=8).drop(columns=["true_mouth", "read_extracted_mouth", "read_heldout_mouth"]).assign(heldout="")
    result = evaluated(tmp_path, table)
    assert not result.setting.str.contains("heldout").any() and not (result.metric == "leaked bits").any()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: pd.concat([table, table.head(1)]), "two rows"),
        (lambda table: table.drop(columns="oracle"), "oracle"),
        (lambda table: table.assign(extracted="high"), "not a number"),
        (lambda table: table.assign(extracted=""), "empty"),
        (lambda table: table.head(0), "no row of any matches.csv"),
        (lambda table: table.assign(world="elsewhere"), "tau.json"),
        (lambda table: table[(table.attack != "cfg") | (table.concept != "c03")], "all shards"),
    ],
)
def test_bad_matches_are_refused(tmp_path, spoil, message):
    with pytest.raises(InputError, match=message):
        evaluated(tmp_path, spoil(matches()))
    assert not (tmp_path / "main.csv").exists()


def test_join(tmp_path, study):
    table = study[2]
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    table.to_csv(first, index=False)
    table.assign(world="artists").to_csv(second, index=False)
    join([first, second], tmp_path / "metrics.csv")
    joined = pd.read_csv(tmp_path / "metrics.csv", keep_default_na=False)
    assert list(joined) == list(COLUMNS) and len(joined) == 2 * len(table)
    assert (tmp_path / "metrics.csv").read_text().startswith(first.read_text())
    with pytest.raises(InputError, match="same number"):
        join([first, first], tmp_path / "twice.csv")
    table[[*COLUMNS[1:], "system"]].to_csv(second, index=False)
    with pytest.raises(InputError, match="columns"):
        join([first, second], tmp_path / "order.csv")
    with pytest.raises(InputError, match="no such file"):
        join([tmp_path / "absent.csv"], tmp_path / "absent-out.csv")


def test_metrics_do_not_import_torch():
    code = "import sys, tuneleak.metrics.finextract, tuneleak.metrics.join, tuneleak.metrics.roc; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def embedder(tmp_path):
    """An untrained copy embedder's folder."""
    import torch
    from safetensors.torch import save_file

    from tuneleak.models.embedders import build

    config = {"name": "tiny", "kind": "copy", "width": 4, "dimensions": 8, "image_size": 32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        (tmp_path / "embedder").mkdir()
        files.write_json(tmp_path / "embedder/config.json", config)
        save_file(build(config).state_dict(), tmp_path / "embedder/model.safetensors")
    return tmp_path / "embedder"


def test_calibrate_uses_the_concepts_it_is_given(tmp_path, tiny_images, embedder):
    calibrate(tiny_images, embedder, 2, tmp_path / "people" / "tau.json", OPTIONS.model_copy(update={"false_match_rate": 0.2}), device="cpu")
    both = json.loads((tmp_path / "people" / "tau.json").read_text())
    assert both["world"] == "people" and both["set_size"] == 2
    assert (both["n_training"], both["n_heldout"], both["n_concepts"]) == (8, 5, 2)
    assert 0 <= both["achieved_rate"] <= 0.2 and -1 <= both["tau"] <= 1.001
    calibrate(tiny_images, embedder, 2, tmp_path / "tau.json", OPTIONS, world="named", start=1, stop=2, device="cpu")
    second = json.loads((tmp_path / "tau.json").read_text())
    assert second["world"] == "named" and second["n_concepts"] == 1
    assert json.loads((tmp_path / "tau.json.meta.json").read_text())["concepts"] == ["bob"]
    with pytest.raises(InputError, match="the slice 5: is empty"):
        calibrate(tiny_images, embedder, 2, tmp_path / "tau.json", OPTIONS, start=5, device="cpu")
