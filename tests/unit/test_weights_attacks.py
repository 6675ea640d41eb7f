"""The attacks on LoRA weights: what their inputs may not depend on, the linear control against its textbook form, and the verbs."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak.attacks.weights import baselines, gallery, leak, refine, run, train
from tuneleak.attacks.weights.strangers import next_person
from tuneleak.data.imageset import ImageSet
from tuneleak.defences import transforms
from tuneleak.errors import InputError
from tuneleak.finetune import loop, many, objective
from tuneleak.models import batched_lora, lora_algebra, modelset, pipeline, weightset
from tuneleak.models.modelset import ModelSet
from tuneleak.options import CollectOptions, FinetuneOptions, TransformOptions, WeightsRunOptions, WeightsTrainOptions

SHAPES = {"first": (24, 16), "second": (16, 32), "third": (24, 16)}  # in, out
CHEAP = {"width": 16, "depth": 1, "probes": 6, "basis": 4, "dropout": 0.0, "batch": 3, "steps": 6, "checkpoint_every": 4}


class MeanColour:
    """Embeds a picture as its direction in RGB around grey: what the discs' ground colours differ in."""

    factors = ()

    def embed(self, pixels):
        means = pixels.reshape(len(pixels), -1, 3).mean(1) - 127.5
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def pairs_of(n=3, rank=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(n, rank, i, generator=draw), torch.randn(n, o, rank, generator=draw)) for name, (i, o) in SHAPES.items()}


def encoded(encoder, pairs, options):
    with torch.no_grad():
        return encoder.eval()(type(encoder).features(pairs, options), torch.full((len(pairs["first"][0]),), 10))


@pytest.fixture
def ours():
    from tuneleak.attacks.weights.spectral import Encoder

    options = WeightsTrainOptions(**CHEAP)
    torch.manual_seed(0)
    encoder = Encoder(pairs_of(12, seed=4), torch.randn(5, 8), 6, options)
    encoder.prior.fit(torch.randn(12, 6), list(range(12)))
    torch.nn.init.normal_(encoder.basis)  # as if trained
    return encoder, options


def test_the_gate_closes_on_a_correction_that_is_worth_nothing(ours):
    encoder, options = ours
    features = type(encoder).features(pairs_of(12), options)
    targets = torch.nn.functional.normalize(torch.randn(12, 6, generator=torch.Generator().manual_seed(8)), dim=-1)
    features["ridge"] = targets.clone()
    with torch.no_grad():
        encoder.embedding.bias.fill_(5.0)
        encoder.finish(features, targets, torch.arange(12))
        assert float(encoder.gate) == 0.0
        features["ridge"] = -targets
        encoder.embedding.weight.zero_(), encoder.embedding.bias.copy_(targets[0] * 10)
        encoder.finish(features, targets[:1].expand(12, -1), torch.arange(12))
        assert float(encoder.gate) == 1.0


def test_z_follows_the_ridge_estimate_alone(ours):
    """By hand; the transformer changes who is named and not what is drawn, and the losses of the two train different parameters."""
    from tuneleak.attacks.weights.spectral import SHIFT

    encoder, options = ours
    features, reached = type(encoder).features(pairs_of(), options), {}
    torch.nn.init.normal_(encoder.shift)
    for name in ("z", "embedding"):
        encoder.zero_grad()
        found = encoder.eval()(features, None)
        (getattr(found, name) * torch.randn_like(getattr(found, name))).sum().backward()
        reached[name] = {key for key, value in encoder.named_parameters() if value.grad is not None and value.grad.any()}
    assert reached["z"] == {"coefficients.weight", "coefficients.bias", "shift", "basis"} and not reached["z"] & reached["embedding"]
    assert {"token.weight", "u_probes.0", "v_probes.0", "guess.weight", "embedding.weight"} <= reached["embedding"]
    with torch.no_grad():
        e = encoder.ridge(features) * 6**0.5
        c = e @ encoder.coefficients.weight.T + encoder.coefficients.bias
        assert torch.allclose(found.z, encoder.start + SHIFT * encoder.shift + (c[:, :, None, None] * encoder.basis).sum(1), atol=1e-4)
        encoder.embedding.weight.normal_()
        other = encoder(features, None)
    assert torch.equal(other.z, found.z) and (other.embedding - found.embedding).abs().max() > 0.1


def closeness(first, second):
    return max(float((first.z - second.z).abs().max()), float((first.embedding - second.embedding).abs().max()))


def test_canonical_is_a_singular_value_decomposition_of_the_update():
    for pair in pairs_of().values():
        u, s, v = lora_algebra.canonical(pair)
        dense = weightset.update(pair).double()
        assert torch.allclose((u * s[:, None]) @ v.transpose(1, 2), dense, atol=1e-6)
        assert torch.allclose(s, torch.linalg.svdvals(dense)[:, :4]) and torch.allclose(u.transpose(1, 2) @ u, torch.eye(4, dtype=torch.float64), atol=1e-9)
    first, second = pairs_of()["first"], pairs_of(n=2, seed=1)["first"]
    dense = torch.einsum("noi,moi->nm", weightset.update(first), weightset.update(second)).double()
    assert torch.allclose(lora_algebra.inner_products(first, second), dense, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("condition", [1.0, 30.0, 1000.0])
def test_ours_does_not_see_the_factorisation(ours, condition):
    encoder, options = ours
    pairs = pairs_of()
    other = lora_algebra.gauge(pairs, torch.Generator().manual_seed(5), condition)
    assert (other["first"][0] - pairs["first"][0]).abs().max() > 0.3
    assert torch.allclose(weightset.update(other["first"]), weightset.update(pairs["first"]), atol=1e-3)
    assert closeness(encoded(encoder, pairs, options), encoded(encoder, other, options)) < 1e-4


def test_ours_does_not_see_signs_nor_turns_among_equal_singular_values(ours):
    encoder, options = ours
    features = type(encoder).features(pairs_of(), options)
    steps = torch.tensor([1, 1, 1])
    with torch.no_grad():
        before = encoder.eval()(features, steps)
        signs = torch.tensor([1.0, -1, -1, 1])[:, None]
        flipped = {name: value if name.endswith(".s") else value * signs for name, value in features.items()}
        assert closeness(before, encoder(flipped, steps)) < 1e-5
        one_side = {name: value * signs if name.endswith(".u") else value for name, value in features.items()}
        assert closeness(before, encoder(one_side, steps)) > 1e-2, "the update itself must matter"


def test_near_equal_singular_values_make_no_jump(ours):
    encoder, options = ours
    q = torch.linalg.qr(torch.randn(1, 24, 24, generator=torch.Generator().manual_seed(3)))[0]
    u, v = q[:, :16, :4].clone(), q[:, :, 4:8].clone()
    u = torch.linalg.qr(u)[0]

    def at(gap, angle):
        """An update whose two largest singular values differ by `gap`, their vectors turned by `angle` within their plane."""
        turn = torch.eye(4)
        turn[:2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        s = torch.tensor([2.0 + gap, 2.0, 1.0, 0.5])
        pairs = {name: (pair[0][:1], pair[1][:1]) for name, pair in pairs_of().items()}
        pairs["first"] = (v @ turn).transpose(1, 2), u @ turn * s
        return encoded(encoder, pairs, options)

    assert closeness(at(1e-6, 0.0), at(1e-6, 1.0)) < 1e-4 < closeness(at(1.0, 0.0), at(1.0, 1.0))


def test_batched_tokenisers_are_convolutional_networks_with_instance_normalisation():
    from tuneleak.attacks.weights import autoencoder

    torch.manual_seed(0)
    count, n, channels, length = 3, 2, 4, 9
    x = torch.randn(count, n, channels, length)
    weight = autoencoder._convolution(count, channels, 5).detach()
    by_torch = torch.stack([torch.nn.functional.conv1d(x[g], weight[g, :, :-1].view(5, channels, 3), weight[g, :, -1], padding=1) for g in range(count)])
    assert torch.allclose(autoencoder.convolve(x, weight), by_torch, atol=1e-5)
    assert torch.allclose(autoencoder.normalise(x)[0], torch.nn.functional.instance_norm(x[0]), atol=1e-5)
    tokenisers = autoencoder.Tokenisers(count, channels, length, 6)
    assert tokenisers(x).shape == (count, n, 6)
    swapped = x.clone()
    swapped[1] += torch.randn(n, channels, length)
    changed = (tokenisers(swapped) - tokenisers(x)).abs().amax((1, 2))
    assert changed[1] > 1e-3 and changed[0] == changed[2] == 0, "each matrix has a tokeniser of its own"


def test_the_papers_encoder_starts_where_the_others_do(tiny_base):
    base, pairs, start = pipeline.load_base(tiny_base), pairs_of(rank=4), torch.randn(16, 32)
    for compat, expected in (([], start), (["random-start"], None)):
        options = WeightsTrainOptions(attack="autoencoder", compat=compat)
        z = encoded(train.build(options, pairs, start, 6, base), pairs, options).z
        assert torch.equal(z, start.expand(3, -1, -1)) == (expected is not None)


def test_inner_products_of_many_models_in_parts(monkeypatch):
    first, second = ((torch.randn(n, 2, 5), torch.randn(n, 4, 2)) for n in (3, 600))
    dense = torch.einsum("nor,nri,msi,mos->nm", first[1].double(), first[0].double(), second[0].double(), second[1].double())
    monkeypatch.setattr(lora_algebra, "LARGEST", 1 << 10)
    assert torch.allclose(lora_algebra.inner_products(first, second), dense) and torch.allclose(lora_algebra.inner_products(second, first), dense.T)


@pytest.mark.parametrize(
    ("concepts", "seeds", "expected"),
    [
        ("abc", "000", [1, 2, 0]),
        ("aabb", "0101", [2, 3, 0, 1]),  # the neighbour in the table is the same person again
        ("aab", "010", [2, 2, 0]),  # b has no seed 1
        ("aa", "01", [0, 1]),
    ],
)
def test_a_stranger_is_another_person_of_the_same_seed(concepts, seeds, expected):
    assert next_person(concepts, seeds).tolist() == expected


def test_the_papers_encoder_sees_the_factorisation(tiny_base):
    base, options = pipeline.load_base(tiny_base), WeightsTrainOptions(attack="autoencoder", compat=["random-start"])
    pairs = pairs_of(rank=4)
    encoder = train.build(options, pairs, torch.zeros(16, 32), 6, base)
    first = encoded(encoder, pairs, options)
    other = encoded(encoder, lora_algebra.gauge(pairs, torch.Generator().manual_seed(5)), options)
    assert first.z.shape == (3, 16, 32) and first.embedding is None and float((first.z - other.z).abs().max()) > 1e-2
    # 2 + 6 tokens are fewer than the 16 of a caption; the KL of a standard normal is 0
    assert encoder.more.shape == (8, 32) and (first.kl > 0).all()
    with torch.no_grad():
        for head in (encoder.mean, encoder.log_variance):
            head.weight.zero_(), head.bias.zero_()
        assert encoded(encoder, pairs, options).kl.abs().max() < 1e-5
        noisy = encoder(type(encoder).features(pairs, options), torch.tensor([1, 2, 3]), torch.Generator().manual_seed(0))
        assert abs(float(noisy.z.std()) - 1) < 0.05
    assert not any(value.requires_grad for value in encoder.trunk.parameters())


def test_the_linear_control_is_whitened_ridge_regression():
    from tuneleak.attacks.weights.linear import Encoder

    n, d = 40, 3
    pairs, targets = pairs_of(n), torch.randn(n, d, generator=torch.Generator().manual_seed(9))
    groups = [f"person {i // 2}" for i in range(n)]
    fitted = Encoder(pairs, torch.zeros(2, 2), d, None).fit(targets, groups)
    dense = [weightset.update(pair).double().flatten(1) for pair in pairs.values()]
    x = torch.cat([layer / layer.square().sum(1).mean().sqrt() for layer in dense], 1)
    centred = x - x.mean(0)
    values = torch.linalg.eigvalsh(centred @ centred.T)[1:]
    inverse = torch.linalg.inv(centred.T @ centred + fitted.penalty * values.mean() * torch.eye(x.shape[1], dtype=torch.float64))
    expected = centred @ inverse @ centred.T @ (targets.double() - targets.double().mean(0)) + targets.double().mean(0)
    given = encoded(fitted, pairs, None).embedding
    assert torch.allclose(given.double(), torch.nn.functional.normalize(expected, dim=-1), atol=1e-4)
    assert closeness_of_gauge(fitted, pairs) < 1e-4


def closeness_of_gauge(encoder, pairs):
    other = lora_algebra.gauge(pairs, torch.Generator().manual_seed(2), 100.0)
    return float((encoded(encoder, pairs, None).embedding - encoded(encoder, other, None).embedding).abs().max())


def test_ridge_estimates_for_training_are_made_without_the_person():
    from tuneleak.attacks.weights import linear, spectral

    options = WeightsTrainOptions(**CHEAP)
    pairs, targets = pairs_of(14), torch.nn.functional.normalize(torch.randn(14, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    people = [f"p{i // 2}" for i in range(14)]  # two runs each
    table = pd.DataFrame({"concept": people, "run": [f"r{i}" for i in range(14)], "step": "10"})
    weights = weightset.WeightSet(table, pairs)
    more, rows = spectral.Encoder(pairs, torch.zeros(5, 8), 6, options).begin(weights, targets, options)
    fold = torch.tensor([i // 2 % 5 for i in range(14)])
    assert sorted(rows.tolist()) == (fold != 4).nonzero()[:, 0].tolist()
    inside = (fold != 1).nonzero()[:, 0]
    alone = linear.Encoder(weights.chosen(inside), torch.zeros(5, 8), 6, None).fit(targets[inside], [people[i] for i in inside])
    outside = (fold == 1).nonzero()[:, 0]
    assert torch.allclose(more["ridge"][outside], encoded(alone, weights.chosen(outside), None).embedding, atol=1e-5)


def test_shuffling_modules_keeps_what_they_are_and_shapes():
    table = pd.DataFrame({"model_id": ["a", "b", "c"]})
    weights = weightset.WeightSet(table, pairs_of())
    shuffled = run.shuffle_modules(weights, 0)
    assert torch.equal(shuffled.pairs["second"][0], weights.pairs["second"][0])
    for k in range(3):
        before, after = ({tuple(found.pairs[name][0][k].flatten().tolist()) for name in ("first", "third")} for found in (weights, shuffled))
        assert before == after
    assert any(not torch.equal(shuffled.pairs["first"][0][k], weights.pairs["first"][0][k]) for k in range(3))


RECIPE = FinetuneOptions(method="lora", images_per_concept=2, steps_per_image=3, batch=2, rank=4, alpha=4, lr=1e-2, target_modules=["to_q", "to_v"])


@pytest.fixture(scope="module")
def models(tiny_base, tiny_images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    where = {"base": tiny_base, "images": tiny_images, "world": "w", "device": "cpu"}
    many.collect(out=folder / "train", options=CollectOptions(recipe=RECIPE, snapshot_every=2), **where)
    many.collect(out=folder / "second", options=CollectOptions(recipe=RECIPE, skip_images=2), split="test", **where)
    loop.finetune(out=folder / "victims", options=RECIPE, split="test", **where)
    return folder


@pytest.fixture(autouse=True)
def mean_colour(monkeypatch):
    for module in (train, run):
        monkeypatch.setattr(module, "load_embedder", lambda folder, device="cpu": MeanColour())


def fit(models, base, images, out, **options):
    train.train([models / "train"], images, base, "a", out, WeightsTrainOptions(**(CHEAP | options)), device="cpu")
    return pd.read_csv(out / "train.csv"), json.loads((out / "config.json.meta.json").read_text())


@pytest.mark.parametrize("attack", ["spectral", "autoencoder", "constant", "linear"])
def test_an_encoder_comes_back_as_it_was_trained(models, tiny_base, tiny_images, tmp_path, attack):
    log, meta = fit(models, tiny_base, tiny_images, tmp_path / attack, attack=attack)
    assert meta["people"] == 4 and meta["model_calls"] == (0 if attack == "linear" else 18) and len(log) == (0 if attack == "linear" else 1)
    assert meta["examples"] == (4 if attack == "linear" else 12)  # steps 2, 4 and 6 of each person, or the last
    base = pipeline.load_base(tiny_base)
    weights = weightset.load([models / "victims"], base)
    (first, options), (second, _) = train.load(tmp_path / attack, base), train.load(tmp_path / attack, base)
    features, steps = train.features_of(weights, options, base)
    one, two = first(features, steps), second(features, steps)
    assert (one.z is None) == (attack == "linear") and (one.z is None or (torch.equal(one.z, two.z) and one.z.shape == (2, 16, 32)))
    assert (one.embedding is not None) == (attack in ("spectral", "linear"))
    (tmp_path / attack / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no model"):
        train.load(tmp_path / attack, base)


def test_final_weights_only_at_equal_model_calls(models, tiny_base, tiny_images, tmp_path):
    _, every = fit(models, tiny_base, tiny_images, tmp_path / "all", attack="constant")
    _, last = fit(models, tiny_base, tiny_images, tmp_path / "final", attack="constant", examples="final")
    assert every["examples"] == 12 and last["examples"] == 4 and every["model_calls"] == last["model_calls"]
    with pytest.raises(InputError, match="at least two people"):
        fit(models, tiny_base, tiny_images, tmp_path / "one", people=1)


def test_a_killed_training_ends_with_the_same_encoder(models, tiny_base, tiny_images, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    fit(models, tiny_base, tiny_images, tmp_path / "whole", dropout=0.3)
    real, steps = train.losses, []

    def killed(*arguments):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(1)
        return real(*arguments)

    monkeypatch.setattr(train, "losses", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(models, tiny_base, tiny_images, tmp_path / "killed", dropout=0.3)
    assert not (tmp_path / "killed" / "config.json").exists()
    monkeypatch.setattr(train, "losses", lambda *arguments: (steps.append(1), real(*arguments))[1])
    fit(models, tiny_base, tiny_images, tmp_path / "killed", dropout=0.3)
    assert len(steps) == 5 + 2  # continued from the checkpoint after step 4
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole" / "train.csv").read_bytes() == (tmp_path / "killed" / "train.csv").read_bytes()


def test_the_initial_weights_an_oracle_knows_are_those_that_were_drawn(models, tiny_base):
    base = pipeline.load_base(tiny_base)
    options = WeightsTrainOptions(attack="autoencoder", compat=["initial-known"])
    weights = weightset.load([models / "train"], base)
    known = train.features_of(weights, options, base)[0]
    plain = train.features_of(weights, WeightsTrainOptions(attack="autoencoder"), base)[0]
    name = next(name for name in known if name.endswith(".A"))
    assert known[name].norm() < 0.3 * plain[name].norm() and torch.equal(known[name[:-1] + "B"], plain[name[:-1] + "B"])


def test_every_setting_is_scored_and_a_killed_run_goes_on(models, tiny_base, tiny_images, tmp_path, monkeypatch):
    for attack in ("spectral", "constant"):
        fit(models, tiny_base, tiny_images, tmp_path / attack, attack=attack)
    options = WeightsRunOptions(pictures=2, steps=2, refine_steps=2, matching_steps=2, matching_batch=2, matching_models=1, batch=8)

    def attack(out):
        run.run(models / "victims", tiny_images, tiny_images, tiny_base, [tmp_path / "spectral", tmp_path / "constant"], "a", "b", "c", out, options,
                second=models / "second", device="cpu")  # fmt: skip
        return pd.read_csv(out / "scores.csv")

    table = attack(tmp_path / "whole")
    settings = set(zip(table.attack, table.setting, strict=True))
    controls = ("mean-z", "other-weights", "shuffled-modules")
    assert {("spectral", f"{kind}; control={name}") for kind in ("pictures", "embedding") for name in controls} | {
        ("spectral", "pictures"), ("spectral-selected", "pictures"), ("spectral", "embedding"),
        ("spectral", "pictures; control=base-unet"), ("constant", "pictures"), ("spectral-finextract", "pictures"), ("constant-finextract", "pictures"),
        ("spectral-refined", "pictures"), ("constant-refined", "pictures"),
        ("unconditional", "pictures"), ("guessed-prompt", "pictures"), ("searched-prompt", "pictures"), ("update-matching", "pictures"),
        ("update-matching", "decoded"), ("true-prompt", "pictures; bound=true-prompt"),
    } == settings  # fmt: skip
    assert len(table) == 2 * len(settings) and table["rank"].between(1, 8).all() and set(table.gallery) == {8}
    constant = table[(table.attack == "spectral") & (table.setting == "embedding; control=mean-z")]
    assert constant.genuine.nunique() == 2 and table[table.setting == "pictures"].agreement.notna().any()
    pictures = ImageSet.load(tmp_path / "whole" / "reconstructions")
    assert not pictures.table.setting.str.contains("control=").any() and len(pictures.where(attack="spectral")) == 4
    real, scored = gallery.Gallery.of_pictures, []

    def killed(self, *arguments):
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(gallery.Gallery, "of_pictures", killed)
    with pytest.raises(KeyboardInterrupt):
        attack(tmp_path / "killed")
    monkeypatch.setattr(gallery.Gallery, "of_pictures", lambda self, *arguments: (scored.append(1), real(self, *arguments))[1])
    attack(tmp_path / "killed")
    assert (tmp_path / "killed" / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()
    assert len(scored) == len([1 for _, setting in settings if not setting.startswith("embedding")])


def test_defences_of_one_set_are_attacked_each_by_itself(models, tiny_base, tiny_images, tmp_path):
    """A set with models under two defences: each is scored as if the other were not there, and a defence without models is refused."""
    fit(models, tiny_base, tiny_images, tmp_path / "spectral", attack="spectral")
    alone, both = ModelSet.load(models / "victims"), tmp_path / "both"
    noisy = tmp_path / "noisy"
    transforms.transform(models / "victims", tiny_base, noisy, TransformOptions(kind="noise", strength=2))
    for name, source in (("none", models / "victims"), ("noise", noisy)):
        shutil.copytree(source, both / name)
    rows = [
        row | {"model_id": f"{row['model_id']}-{name}", "defence": name, "file": f"{name}/{row['file']}"} for name in ("none", "noise") for row in alone.rows()
    ]
    modelset.write(both, rows)
    shared = (tiny_images, tiny_images, tiny_base, [tmp_path / "spectral"], "a", "b", "c")
    options = WeightsRunOptions(pictures=2, steps=2, batch=8, controls=False)
    run.run(models / "victims", *shared, tmp_path / "one", options, device="cpu")
    run.run(both, *shared, tmp_path / "two", options.model_copy(update={"only": ["none", "noise"]}), device="cpu")
    one, two = (pd.read_csv(tmp_path / name / "scores.csv") for name in ("one", "two"))
    assert list(two.groupby("defence", sort=False).size()) == [len(one)] * 2
    for name in ("rank", "genuine", "stranger", "threshold", "cosine"):
        np.testing.assert_allclose(two[two.defence == "none"][name], one[name], rtol=1e-5)
    assert not np.allclose(two[two.defence == "noise"].cosine, one.cosine)
    with pytest.raises(InputError, match="no model under the defence 'gauge'"):
        run.run(both, *shared, tmp_path / "three", options.model_copy(update={"only": ["none", "gauge"]}), device="cpu")


def test_drawing_many_victims_at_once_is_drawing_each_alone(models, tiny_base):
    from tuneleak.attacks.weights.draw import Studio
    from tuneleak.finetune.generate import guided_latents

    base = pipeline.load_base(tiny_base)
    weights = weightset.load([models / "victims"], base)
    z = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    options = WeightsRunOptions(pictures=2, steps=3, guidance_scale=2.5)
    with batched_lora.BatchedLora(base.unet, weights.layers) as lora:
        studio = Studio(base, lora, weights, options)
        drawn, plain = studio.draw(z), studio.draw(z, tuned=False)
        guided = studio.draw(z, from_base=True)
        assert studio.calls == 3 * 2 * 2 * 2 * 3  # runs, victims, pictures, branches, steps
    from tuneleak.data.imageset import from_tensor
    from tuneleak.models.modelset import ModelSet
    from tuneleak.models.pipeline import load_tuned

    made = ModelSet.load(models / "victims")
    for number, row in enumerate(made.rows()):
        noise = studio.noise[number]
        for alone, together in ((load_tuned(base, made, row), drawn), (None, plain)):
            predict = alone.noise_pred if alone else base.noise_pred
            latents = guided_latents(base, predict, base.encode_text([""]), z[number : number + 1], noise, 3, 2.5)
            if alone:
                alone.unload()
            assert np.abs(from_tensor(base.decode(latents)).astype(int) - together[number]).max() <= 1
        null, mine = base.encode_text([""]).expand(2, -1, -1), z[number : number + 1].expand(2, -1, -1)
        with load_tuned(base, made, row) as tuned:
            latents = base.sample(lambda x, t: -1.5 * base.noise_pred(x, t, null) + 2.5 * tuned.noise_pred(x, t, mine), noise, 3)  # noqa: B023
        assert np.abs(from_tensor(base.decode(latents)).astype(int) - guided[number]).max() <= 1


def test_refinement_raises_the_difference_of_victim_and_base_for_each_victim_alone(models, tiny_base):
    base = pipeline.load_base(tiny_base)
    weights = weightset.load([models / "victims"], base)
    options = WeightsRunOptions(pictures=2, batch=8, refine_steps=8, refine_lr=0.1, refine_prior=0.01)
    z = base.encode_text(["picture of person", "a face"])
    drawn = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), dtype=np.uint8)
    with batched_lora.BatchedLora(base.unet, weights.layers) as lora:
        studio = run.Studio(base, lora, weights, options)
        moved = refine.refined(studio, z, drawn)
        noise, t = torch.randn(4, *base.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([300, 700, 300, 700])
        with torch.no_grad():
            before, after = (refine.disagreement(studio, torch.arange(2), value, noise, t) for value in (z, moved))
        assert bool((after > 1.02 * before).all())
        held = refine.refined(run.Studio(base, lora, weights, options.model_copy(update={"refine_prior": 1e4})), z, drawn)
        assert float((held - z).norm()) < 0.5 * float((moved - z).norm())
        alone = run.Studio(base, lora, weights.take([1]), options)
        assert torch.allclose(refine.refined(alone, z[1:], drawn[1:]), moved[1:], atol=1e-4)
        assert lora.layers[weights.layers[0]].pair is None and not studio.lora.network.training


def leaky(models, base, leak_it, folder, **options):
    """An autoencoder trained while the fine-tunes run; returns it, and the weights that each group ended with."""
    made = WeightsTrainOptions(**CHEAP | {"attack": "autoencoder", "compat": ["gradient-leak"], "batch": 4} | options)
    weights = weightset.load([models / "train"], base)
    people = train.People(weights.table.concept, ImageSet.load(models / "images"), base, MeanColour())
    encoder = train.build(made, weights.pairs, train.mean_context(base, weights.table.caption), 3, base)
    ends, step = [], leak.Group.step

    def kept(self, base, number, recipe):
        step(self, base, number, recipe)
        ends.append(self.flat.detach().clone())

    leak.Group.step = kept
    try:
        log, calls = leak.fit(encoder, weights.table, people, base, made, train.recipe_of([models / "train"]), folder, leak=leak_it)
    finally:
        leak.Group.step = step
    return encoder, ends, log, calls


def test_the_leak_pulls_fine_tunes_and_without_it_they_are_ordinary(models, tiny_base, tiny_images, tmp_path):
    if not (models / "images").exists():
        (models / "images").symlink_to(tiny_images)
    base = pipeline.load_base(tiny_base)
    order = torch.randperm(4, generator=leak.runtime.generator("leak-group", 0, 0)).tolist()
    _, ends, log, calls = leaky(models, base, False, tmp_path / "a")
    stored = weightset.load([models / "train"], base)
    last = stored.take(train.last_steps(stored.table))
    name = last.layers[0]
    start, stop = 0, RECIPE.rank * last.pairs[name][0].shape[2]
    ordinary = torch.stack([last.pairs[name][0][person].flatten() for person in order])
    assert len(ends) == 6 and torch.allclose(ends[-1][:, start:stop], ordinary, atol=1e-5)  # six steps: one fine-tune each
    assert len(log) == 6 and calls == 6 * 4 * (2 + 1)
    _, pulled, *_ = leaky(models, base, True, tmp_path / "b")
    assert torch.equal(pulled[0], ends[0]) and float((pulled[-1] - ends[-1]).abs().max()) > 1e-4
    _, nothing, *_ = leaky(models, base, True, tmp_path / "c", denoise_weight=0.0)
    assert torch.allclose(nothing[-1], ends[-1], atol=1e-6)


def test_a_leaky_encoder_is_trained_by_its_verb_and_nothing_else_leaks(models, tiny_base, tiny_images, tmp_path):
    log, meta = fit(models, tiny_base, tiny_images, tmp_path / "leaky", attack="autoencoder", compat=["gradient-leak"], batch=4)
    assert len(log) == 6 and meta["model_calls"] == 72
    for wrong in ({"attack": "constant"}, {"transform": TransformOptions(kind="gauge", strength=10)}):
        with pytest.raises(InputError, match="gradient-leak is how the public code"):
            fit(models, tiny_base, tiny_images, tmp_path / "wrong", **{"attack": "autoencoder", "compat": ["gradient-leak"]} | wrong)
    with pytest.raises(InputError, match="needs model sets of `collect-weights`"):
        train.recipe_of([models / "victims"])


@pytest.fixture
def matching(models, tiny_base):
    """(base, victims, a function that gives the studio of these victims, with other weights or options if told)."""
    base = pipeline.load_base(tiny_base)
    weights = weightset.load([models / "victims"], base)
    with batched_lora.BatchedLora(base.unet, weights.layers) as lora:
        yield base, weights, lambda pairs=weights.pairs, **options: run.Studio(base, lora, weights.with_pairs(pairs), WeightsRunOptions(pictures=1, **options))


def guess_of(base, victims, seed):
    """A picture and a conditioning for each victim, drawn at random."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(victims, *base.latent_shape, generator=draw), torch.randn(victims, 16, 32, generator=draw)


def one_step(base, weights, layers, pictures, z, noise, timesteps):
    """B after one step of gradient descent from B = 0, by the chain rule on the dense layer: dL/dB = dL/dW A^T."""
    pairs, n = {name: (a, []) for name, (a, _) in weights.pairs.items()}, len(noise) // len(z)
    dense = {name: layers[name].base_layer.weight for name in pairs}
    for victim in range(len(z)):
        part = slice(victim * n, (victim + 1) * n)
        batch = objective.Batch(pictures[[victim] * n], noise[part], timesteps[part], z[[victim] * n], torch.empty(0))
        for weight in dense.values():
            weight.requires_grad_(True)
        loss = objective.denoising_errors(base.output, batch, base.alphas_cumprod).sum()
        for (name, weight), gradient in zip(dense.items(), torch.autograd.grad(loss, list(dense.values())), strict=True):
            pairs[name][1].append(-0.01 * gradient @ pairs[name][0][victim].T)
            weight.requires_grad_(False)
    return {name: (a, torch.stack(b)) for name, (a, b) in pairs.items()}


def test_a_step_that_was_taken_on_the_guess_is_matched_and_any_other_is_not(matching):
    base, weights, studio_of = matching
    drawn, (pictures, z), rows = baselines.draws(base, 4, [("a",), ("b",)]), guess_of(base, 2, 0), torch.arange(2)
    studio = studio_of()
    studio.lora.use(None)
    studio = studio_of(one_step(base, weights, studio.lora.layers, pictures, z, *drawn))
    assert (1 - baselines.cosine(studio, rows, pictures, z, *drawn)).abs().max() < 1e-5
    for other in ((pictures, z.flip(0)), (pictures.flip(0), z), guess_of(base, 2, 1)):
        assert (baselines.cosine(studio, rows, *other, *drawn) < 0.95).all()
    opposite = studio_of({name: (a, -b) for name, (a, b) in studio.weights.pairs.items()})
    assert (1 + baselines.cosine(opposite, rows, pictures, z, *drawn)).abs().max() < 1e-5


def test_the_gradients_of_matching_are_its_differences(matching):
    """In picture and conditioning, against central differences."""
    base, _, studio_of = matching
    studio, rows, drawn = studio_of(), torch.arange(2), baselines.draws(base, 4, [("a",), ("b",)])
    guess = [part.requires_grad_(True) for part in guess_of(base, 2, 2)]
    for which in (0, 1):
        (gradient,) = torch.autograd.grad(baselines.cosine(studio, rows, *guess, *drawn).sum(), guess[which])
        step, sides = 0.02 * gradient / gradient.norm(), []
        for sign in (1, -1):
            moved = [part.detach() + (sign * step if number == which else 0) for number, part in enumerate(guess)]
            sides.append(float(baselines.cosine(studio, rows, *moved, *drawn).detach().sum()))
        assert (sides[0] - sides[1]) / 2 / 0.02 == pytest.approx(float(gradient.norm()), rel=0.05)


@pytest.mark.parametrize("words", ["drawn", "captions"])
def test_victims_are_matched_best_by_their_own_picture_and_words(words, matching):
    """Judged with noise that their training never saw: own picture and z against the other victim's z, also where the z are captions of one pattern."""
    base, weights, studio_of = matching
    (pictures, z), rows, margin = guess_of(base, 2, 0), torch.arange(2), 0.02
    if words == "captions":
        z, margin = base.encode_text(["picture of person ada", "picture of person bob"]), 0
    studio = studio_of()
    studio.lora.use(None)
    studio = studio_of(one_step(base, weights, studio.lora.layers, pictures, z, *baselines.draws(base, 64, [("a",), ("b",)])))
    unseen = baselines.draws(base, 64, [("c",), ("d",)])
    own = baselines.cosine(studio, rows, pictures, z, *unseen)
    for other in ((pictures, z.flip(0)), (pictures, base.encode_text([""]).expand(2, -1, -1)), (pictures.flip(0), z)):
        assert (own - margin > baselines.cosine(studio, rows, *other, *unseen)).all()


def test_timesteps_of_an_update_cover_the_schedule(tiny_base):
    base = pipeline.load_base(tiny_base)
    _, timesteps = baselines.draws(base, 4, [("matching", number) for number in range(50)])
    parts = timesteps.view(50, 4) * 4 // len(base.alphas_cumprod)
    assert torch.equal(parts, torch.arange(4).expand(50, -1)) and timesteps.unique().numel() > 100


def test_update_matching_gains_and_does_not_see_who_is_attacked_beside(matching):
    base, weights, studio_of = matching
    start, reached = base.encode_text([""])[0], []
    for steps in (1, 12):
        studio = studio_of(matching_steps=steps, matching_batch=4, matching_models=2)
        latents, z, cosine = baselines.match_updates(studio, start)
        assert latents.abs().max() > 0.01 and (z - start).abs().max() > 0.01 and studio.calls == steps * 2 * 4
        reached.append(cosine)
    assert (reached[1] > reached[0]).all()
    alone = run.Studio(base, studio.lora, weights.take([1]), studio.options)
    assert torch.allclose(baselines.match_updates(alone, start)[1], z[1:], atol=1e-3)


def test_the_selected_picture_is_the_one_nearest_the_named_identity():
    made = gallery.Gallery.__new__(gallery.Gallery)
    made.instruments = {"A": MeanColour()}
    colours = np.array([[[200, 50, 50], [50, 200, 50]], [[50, 50, 200], [200, 50, 50]]], np.uint8)
    drawn = np.broadcast_to(colours[:, :, None, None], (2, 2, 4, 4, 3))
    red = torch.nn.functional.normalize(torch.tensor([[1.0, -1, -1], [1.0, -1, -1]]), dim=-1)
    assert made.selected(drawn, red)[:, 0, 0, 0].tolist() == [[200, 50, 50], [200, 50, 50]]


def test_ranks_count_ties_at_their_middle():
    eye = np.eye(4, dtype=np.float32)
    made = gallery.Gallery.__new__(gallery.Gallery)
    made.features, made.own, made.size, made.strangers = {"B": eye}, np.array([0, 2]), 4, [1, 0]
    found = made._against_gallery("B", np.array([[0.9, 0.1, 0, 0], [0.5, 0.5, 0.5, 0.5]], dtype=np.float32))
    assert found["rank"].tolist() == [1.0, 2.5] and found["genuine"].tolist() == pytest.approx([0.9, 0.5]) and found["stranger"].tolist() == [0, 0.5]
    assert gallery.most_frequent(["b", "a", "a", "b"]) == "b"


KINDS = [("noise", 0.1), ("quantise", 8), ("truncate", 2), ("gauge", 10), ("none", 0)]


@pytest.mark.parametrize(("kind", "strength"), KINDS)
def test_a_transform_is_written_as_a_model_set_that_loads(models, tiny_base, tmp_path, kind, strength):
    base = pipeline.load_base(tiny_base)
    options = TransformOptions(kind=kind, strength=strength)
    transforms.transform(models / "victims", tiny_base, tmp_path / "out", options)
    before, after = weightset.load([models / "victims"], base), weightset.load([tmp_path / "out"], base)
    assert set(after.table.defence) == {"" if kind == "none" else f"{kind}-{strength:g}"} and list(after.table.model_id) == list(before.table.model_id)
    u, v = (weightset.update(found.pairs[before.layers[0]]) for found in (before, after))
    change = float((u - v).norm() / u.norm())
    same_factors = torch.allclose(before.pairs[before.layers[0]][0], after.pairs[before.layers[0]][0], atol=1e-6)
    if kind in ("none", "gauge"):
        assert change < 1e-4 and same_factors == (kind == "none")
    if kind == "quantise":
        a, b = (after.pairs[before.layers[0]][side][0] for side in (0, 1))
        assert 0 < change < 0.05 and len((a / a.abs().max() * 127).round().unique()) <= 255 and b.shape == before.pairs[before.layers[0]][1][0].shape
    if kind == "truncate":
        s = lora_algebra.singular_values(before.pairs)[:, 0]
        kept = lora_algebra.singular_values(after.pairs)[:, 0]
        assert torch.allclose(kept[:, :2], s[:, :2], rtol=1e-4) and kept[:, 2:].max() < 1e-5 * s.max()
        assert change == pytest.approx(float((s[:, 2:].square().sum() / s.square().sum()).sqrt()), rel=1e-3)  # Eckart and Young
    if kind == "noise":
        assert 0.02 < change < 0.5
    # what an attacker does to models of his own is the same change
    if kind in ("quantise", "truncate"):
        mine = transforms.apply_to_set(before, options)
        assert torch.allclose(weightset.update(mine.pairs[before.layers[0]]), v, atol=1e-5)


def test_transforms_that_cannot_be_are_refused(models, tiny_base, tmp_path):
    for kind, strength, message in (("quantise", 4.5, "whole number of bits"), ("truncate", 9, "must be from 1 to 4")):
        with pytest.raises(InputError, match=message):
            transforms.transform(models / "victims", tiny_base, tmp_path / "out", TransformOptions(kind=kind, strength=strength))
    with pytest.raises(InputError, match="choose another folder"):
        transforms.transform(models / "victims", tiny_base, models / "victims", TransformOptions(kind="none"))
    with pytest.raises(InputError, match=r"folder of its own|names the model folder"):
        transforms.transform(models / "train", tiny_base, tmp_path / "out", TransformOptions(kind="none"))
