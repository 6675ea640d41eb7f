"""Membership attacks against closed forms, the public definitions, and the verb that runs them."""

import importlib
import math
import shutil
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch

from tuneleak import options as knobs
from tuneleak.attacks.membership import clid, loss, pfami, pia, pian, run, secmi_nns, secmi_stat, sima
from tuneleak.attacks.membership.query import Pictures, Query, robust_scale
from tuneleak.errors import InputError
from tuneleak.finetune import loop
from tuneleak.metrics import defended_scores
from tuneleak.models import pipeline, schedule
from tuneleak.options import FinetuneOptions, MembershipOptions

ALPHAS = schedule.alphas_cumprod({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
OPTIONS = MembershipOptions(loss_timesteps=[40, 300], pfami_timesteps=[0, 200], pfami_crops=[0.9, 0.75], nns_epochs=1)


def embed(captions):
    """Contexts `(n, 1, 3)` of captions: how many words, characters and letters a."""
    return torch.tensor([[[len(text.split()), len(text), text.count("a")]] for text in captions], dtype=torch.float32)


def query(noise_pred, n=5, captions=None, options=OPTIONS, size=16):
    """A query about `n` random pictures whose latents are their pixels at a quarter of the size."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    table = pd.DataFrame({"image_id": [f"i{i}" for i in range(n)], "concept": "c"})
    pictures = Pictures(table, pixels, lambda x: torch.nn.functional.avg_pool2d(x, 4), options.seed)
    return Query(pictures, captions or ["a face"] * n, noise_pred, embed, ALPHAS, batch=4)


def gaussian(mean, deviation):
    """The exact epsilon of data ~ N(mean, deviation^2)."""

    def noise_pred(x, t, context):
        abar = float(ALPHAS[t])
        return (math.sqrt(1 - abar) * (x.double() - math.sqrt(abar) * mean) / (abar * deviation**2 + 1 - abar)).float()

    return noise_pred


def ratio(start, end, deviation):
    """By what a deterministic step from timestep start to end multiplies the distance to the scaled mean of a Gaussian."""
    a, b = float(ALPHAS[start]), float(ALPHAS[end])
    return (math.sqrt(a * b) * deviation**2 + math.sqrt((1 - a) * (1 - b))) / (a * deviation**2 + 1 - a)


@pytest.mark.parametrize(("last", "stride"), [(100, 10), (140, 10), (60, 20)])
def test_secmi_on_a_gaussian_has_its_closed_form(last, stride):
    mean, deviation, options = 0.3, 0.2, MembershipOptions(secmi_timestep=last, secmi_stride=stride)
    asked = query(gaussian(mean, deviation))
    up = math.prod(ratio(t, t + stride, deviation) for t in range(0, last, stride))
    there_and_back = ratio(last, last + stride, deviation) * ratio(last + stride, last, deviation)
    distance = asked.latents.double() - math.sqrt(float(ALPHAS[0])) * mean
    expected = -((there_and_back - 1) * up * distance).square().flatten(1).sum(1)
    assert torch.allclose(secmi_stat.score(asked, options), expected, rtol=1e-3)
    assert asked.calls == 5 * secmi_stat.calls(options) == 5 * (last // stride + 2)


def test_secmi_is_the_public_definition_at_140_of_its_38_calls():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1))
    calls = []

    def noise_pred(x, t, context):
        calls.append(len(x))
        with torch.no_grad():
            return network(x + math.sin(t)) + 0.1 * context[:, :, :1, None]

    options = MembershipOptions(secmi_timestep=140)
    asked = query(noise_pred)
    mine, made = secmi_stat.score(asked, options), sum(calls) / 5
    calls.clear()

    def public_step(x, t, to):  # the authors' two schedulers in one: predicted x_0, then its noised form at the other timestep
        eps = noise_pred(x, t, asked.context)
        clean = (x - (1 - ALPHAS[t]).sqrt().float() * eps) / ALPHAS[t].sqrt().float()
        return ALPHAS[to].sqrt().float() * clean + (1 - ALPHAS[to]).sqrt().float() * eps

    reverse = [asked.latents]
    for t in range(0, 190, 10):
        reverse.append(public_step(reverse[-1], t, t + 10))
    denoised = [public_step(reverse[19 - i], 190 - 10 * i, 180 - 10 * i) for i in range(19)]
    assert sum(calls) / 5 == 38 and made == 16
    public = (denoised[-15] - reverse[14]).square().flatten(1).sum(1)
    assert torch.allclose(-mine, public.double(), rtol=1e-4)


def test_pia_on_a_gaussian_has_its_closed_form():
    mean, deviation, t = -0.2, 0.4, 300
    asked = query(gaussian(mean, deviation))
    options = MembershipOptions(pia_timestep=t)
    slope = [math.sqrt(1 - float(a)) / (float(a) * deviation**2 + 1 - float(a)) for a in (ALPHAS[0], ALPHAS[t])]
    x, a0, at = asked.latents.double(), float(ALPHAS[0]), float(ALPHAS[t])
    first = slope[0] * (x - math.sqrt(a0) * mean)
    second = lambda eps: slope[1] * (math.sqrt(at) * x + math.sqrt(1 - at) * eps - math.sqrt(at) * mean)  # noqa: E731
    expected = -(first - second(first)).flatten(1).norm(p=4, dim=1)
    assert torch.allclose(pia.score(asked, options), expected, rtol=1e-4) and asked.calls == 10
    scaled = first * math.sqrt(2 / math.pi) / first.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    assert torch.allclose(pian.score(asked, options), -(scaled - second(scaled)).flatten(1).norm(p=4, dim=1), rtol=1e-4)
    assert float(scaled[0].abs().mean()) == pytest.approx(float(torch.randn(10**6, generator=torch.Generator().manual_seed(0)).abs().mean()), rel=1e-2)


def test_sima_is_the_norm_of_the_prediction_on_the_clean_picture():
    asked = query(lambda x, t, context: x * t)
    expected = -(asked.latents.double() * 70).abs().pow(4).flatten(1).sum(1).pow(0.25)
    assert torch.allclose(sima.score(asked, MembershipOptions(sima_timestep=70)), expected, rtol=1e-5) and asked.calls == 5


def test_loss_is_averaged_over_timesteps_and_draws_of_noise_that_belongs_to_the_picture():
    asked = query(lambda x, t, context: torch.full_like(x, 0.5))
    options = MembershipOptions(loss_timesteps=[40, 300], loss_draws=3)
    noises = torch.stack([asked.pictures.noise(t, draw) for t in (40, 300) for draw in range(3)])
    assert torch.allclose(loss.score(asked, options), -(noises.double() - 0.5).square().flatten(2).mean((0, 2)), atol=1e-6) and asked.calls == 5 * 6
    alone = query(lambda x, t, context: x, n=5)
    alone.pictures.table = alone.pictures.table.iloc[[3]]
    alone.pictures._noise.clear()
    assert torch.equal(alone.pictures.noise(40, 0)[0], asked.pictures.noise(40, 0)[3])


def test_pfami_is_the_relative_rise_of_the_loss_on_centre_crops():
    asked = query(lambda x, t, context: x)
    expected = torch.zeros(5, dtype=torch.float64)
    for t in (0, 200):
        a, noise = float(ALPHAS[t]), asked.pictures.noise(t, 0).double()
        of = lambda x, a=a, noise=noise: (a**0.5 * x.double() + (1 - a) ** 0.5 * noise - noise).square().flatten(1).mean(1)  # noqa: E731
        own = of(asked.latents)
        for share in (0.9, 0.75):
            side = round(16 * share)
            top = (16 - side) // 2
            pixels = torch.from_numpy(asked.pictures.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            crop = torch.nn.functional.interpolate(pixels[..., top : top + side, top : top + side], (16, 16), mode="bilinear", antialias=True)
            expected += (of(torch.nn.functional.avg_pool2d(crop, 4)) - own) / own / 4
    assert torch.allclose(pfami.score(asked, OPTIONS), expected, rtol=1e-4) and asked.calls == 5 * pfami.calls(OPTIONS) == 5 * 6


def test_clid_combines_the_loss_with_the_rise_when_words_are_taken_away():
    captions = ["a face with banana hat", "one two", "a b c d e f", "a face", "x yy aaa"]
    asked = query(lambda x, t, context: 0.1 * context[:, :, :1, None].expand(x.shape), captions=captions)
    for caption, share, kept in (("one two three", 0.3, 2), ("one two three", 0.7, 1), ("one", 0.5, 0), ("", 0.5, 0)):
        assert len(clid.shorten(asked, caption, share).split()) == kept
    assert clid.shorten(asked, "a banana it", 0.3) == "a it", "the word without which the encoding moves most goes first"
    words = torch.tensor([len(caption.split()) for caption in captions], dtype=torch.float64)
    noise = torch.stack([asked.pictures.noise(t, 0).double() for t in (440, 450, 460)])
    of = lambda count: torch.stack([(0.1 * count[i] - noise[:, i]).square().mean() for i in range(5)])  # noqa: E731
    shares = [words - torch.tensor([max(1, round(share * int(w))) for w in words]) for share in (0.3, 0.5, 0.7)] + [0 * words]
    own = of(words)
    rise = torch.stack([of(count) for count in shares]).mean(0) - own
    expected = -(0.1 * robust_scale(own) + 0.9 * robust_scale(-rise))
    asked.calls = 0
    assert np.allclose(clid.score(asked, MembershipOptions()).numpy(), expected, atol=1e-4) and asked.calls == 5 * 15 == 5 * clid.calls(MembershipOptions())


def test_robust_scaling_has_median_zero_and_unit_quartile_range():
    scaled = robust_scale([0.0, 1, 2, 3, 100])
    assert np.median(scaled) == 0 and np.quantile(scaled, 0.75) - np.quantile(scaled, 0.25) == 1
    assert list(robust_scale([2.0, 2.0])) == [0, 0]


def test_members_score_higher_by_every_attack_when_the_model_knows_them():
    """The direction is fixed: a model that has memorised half of the pictures gives these the higher scores."""
    holder = {}

    def noise_pred(x, t, context):
        """Exact for data that are the members with a little spread."""
        members, abar, spread = holder["members"], float(ALPHAS[t]), 0.1**2
        away, variance = x[:, None] - abar**0.5 * members[None], abar * spread + 1 - abar
        near = torch.softmax(-away.flatten(2).square().sum(2) / (2 * variance), 1)[..., None, None, None]
        return (1 - abar) ** 0.5 * (near * away).sum(1) / variance

    for name in set(get_args(knobs.MembershipAttack)) - {"secmi-nns", "clid", "pian"}:  # clid: captions; pian hides the magnitude on purpose
        asked = query(noise_pred, n=12)
        holder["members"] = asked.latents[:6]
        module = importlib.import_module(f"tuneleak.attacks.membership.{name.replace('-', '_')}")
        scores = module.score(asked, MembershipOptions(pia_timestep=100)).numpy()
        assert scores.shape == (12,) and (scores[:6, None] > scores[None, 6:]).mean() > 0.9, name
        assert asked.calls == 12 * module.calls(MembershipOptions()), name


def test_secmi_nns_learns_what_is_in_the_maps():
    generator = torch.Generator().manual_seed(0)
    maps, labels = torch.rand(96, 3, 8, 8, generator=generator), torch.arange(96) % 2
    maps[labels == 1, :, :4] *= 0.3
    predict = secmi_nns.learn(maps[:64], labels[:64], MembershipOptions(nns_epochs=8, nns_batch=8), ("test",))
    scores = predict(maps[64:]).numpy()
    truth = labels[64:].numpy() == 1
    assert (scores[truth][:, None] > scores[~truth][None]).mean() > 0.9
    again = secmi_nns.learn(maps[:64], labels[:64], MembershipOptions(nns_epochs=8, nns_batch=8), ("test",))
    assert torch.equal(predict(maps), again(maps))


ATTACKS = ["loss", "secmi-stat", "secmi-nns", "pia", "sima"]


@pytest.fixture(scope="module")
def scored(tiny_base, tiny_images, tmp_path_factory):
    """Scores of a base and of two fine-tunes of it, in one job."""
    folder = tmp_path_factory.mktemp("membership")
    short = FinetuneOptions(images_per_concept=2, steps_per_image=4, batch=2, rank=4, lr=1e-2)
    for name, options in (("lora", short), ("lr0", short.model_copy(update={"lr": 0.0}))):
        loop.finetune(tiny_base, tiny_images, name, "tune", folder / name, options, stop=2, device="cpu")
    pd.DataFrame({"image_id": [f"{who}-{i:03d}" for who in ("ada", "bob") for i in (0, 2, 4, 6, 8)]}).to_csv(folder / "members.csv", index=False)
    options = MembershipOptions(attacks=ATTACKS, captions=["true", "swapped"], secmi_timestep=20, loss_timesteps=[50], nns_epochs=1)
    run.infer([tiny_images], tiny_base, folder / "scores.csv", options, [folder / "lora", folder / "lr0"], folder / "members.csv", "cpu")
    return pd.read_csv(folder / "scores.csv", dtype=str, keep_default_na=False), folder


def test_every_picture_of_a_concept_is_scored_by_its_models_and_once_by_the_base(scored):
    table, _ = scored
    assert list(table) == run.COLUMNS and not table.duplicated([*run.MODEL_COLUMNS, "attack", "caption", "image_id"]).any()
    assert len(table) == 5 * 2 * 3 * 2 * 9  # attacks, captions, models (base, lora, lr0), concepts, pictures
    base = table[table.model_id == "base"]
    assert len(base) == 5 * 2 * 18 and set(base.base) == {"tiny"} and set(base.image_concept) == {"ada", "bob"}
    tuned = table[table.model_id != "base"]
    assert (tuned.concept == tuned.image_concept).all() and set(tuned.world) == {"lora", "lr0"}
    assert set(table[table.pretrained == "1"].image_id) == {f"{who}-{i:03d}" for who in ("ada", "bob") for i in (0, 2, 4, 6, 8)}
    assert set(tuned[tuned.finetuned == "1"].image_id) == {f"{who}-{i:03d}" for who in ("ada", "bob") for i in (0, 1)} and (base.finetuned == "0").all()
    assert dict(table.groupby("attack").model_calls.first()) == {"loss": "2", "secmi-stat": "4", "secmi-nns": "4", "pia": "2", "sima": "1"}


def test_a_fine_tune_of_rate_zero_scores_exactly_like_the_base_and_a_real_one_does_not(scored):
    table, _ = scored
    keys = ["attack", "caption", "image_id"]
    base = table[(table.model_id == "base") & (table.attack != "secmi-nns")].set_index(keys).score
    for world, equal in (("lr0", True), ("lora", False)):
        tuned = table[(table.world == world) & (table.attack != "secmi-nns")].set_index(keys).score
        assert (tuned.reindex(base.index) == base).all() == equal, world


def test_a_model_with_an_autoencoder_of_its_own_is_asked_about_its_own_latents(scored, tiny_base, tiny_images, tmp_path):
    """At rate zero they are the base's; else the scores are others than the same UNet and text encoder give to the base's latents."""
    short = FinetuneOptions(method="end-to-end", train_autoencoder=True, images_per_concept=2, steps_per_image=4, batch=2)
    for name, lr in (("still", 0.0), ("moved", 1e-3)):
        loop.finetune(tiny_base, tiny_images, name, "tune", tmp_path / name, short.model_copy(update={"lr": lr}), stop=1, device="cpu")
    shutil.copytree(tmp_path / "moved", tmp_path / "plain")
    (autoencoder,) = (tmp_path / "plain").glob("*/vae")
    shutil.rmtree(autoencoder)
    options, scores = MembershipOptions(attacks=["pia", "sima"]), {}
    for name in ("still", "moved", "plain"):
        run.infer([tiny_images], tiny_base, tmp_path / f"{name}.csv", options, [tmp_path / name], None, "cpu")
        table = pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False)
        table = table[table.image_concept == "ada"]
        scores["base"], scores[name] = table[table.model_id == "base"].score.to_numpy(), table[table.model_id != "base"].score.to_numpy()
    assert (scores["still"] == scores["base"]).all() and not np.isclose(scores["moved"], scores["plain"], rtol=1e-4).any()


def test_a_score_does_not_depend_on_the_job_it_was_computed_in(scored, tiny_base, tiny_images, tmp_path):
    table, folder = scored
    options = MembershipOptions(attacks=["pia", "loss"], secmi_timestep=20, loss_timesteps=[50], batch=4)
    run.infer([tiny_images], tiny_base, tmp_path / "alone.csv", options, [folder / "lora"], None, "cpu")
    alone = pd.read_csv(tmp_path / "alone.csv", keep_default_na=False)
    both = alone.merge(table[table.caption == "true"].astype({"score": float}), on=["model_id", "world", "attack", "image_id"])
    assert len(both) == 2 * 2 * 18 and np.allclose(both.score_x, both.score_y, rtol=1e-5)
    assert (alone.pretrained == "").all()


def test_an_attack_that_learns_runs_on_fine_tuning_members_too(scored, tiny_base, tiny_images, tmp_path):
    """As in the matrix of defences: members are each model's own pictures, of which the base has none."""
    options = MembershipOptions(attacks=["sima", "secmi-nns"], secmi_timestep=20, nns_epochs=1)
    run.infer([tiny_images], tiny_base, tmp_path / "scores.csv", options, [scored[1] / "lora"], device="cpu")
    table = pd.read_csv(tmp_path / "scores.csv")
    assert "base" in set(table[table.attack == "sima"].model_id) and "base" not in set(table[table.attack == "secmi-nns"].model_id)
    found = defended_scores.read(membership=[tmp_path / "scores.csv"])
    assert set(found.attack) == {"sima", "secmi-nns", "reference-sima"} and np.isfinite(found.score.astype(float)).all()


def test_an_interrupted_job_goes_on_and_ends_with_the_same_table(scored, tiny_base, tiny_images, tmp_path, monkeypatch):
    _, folder = scored
    options = MembershipOptions(attacks=["sima", "secmi-nns"], secmi_timestep=20, nns_epochs=1)
    arguments = ([tiny_images], tiny_base, tmp_path / "scores.csv", options, [folder / "lora"], folder / "members.csv", "cpu")
    real, done = run.Runner._model, []

    def model(self, *given):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(given)
        return real(self, *given)

    monkeypatch.setattr(run.Runner, "_model", model)
    with pytest.raises(KeyboardInterrupt):
        run.infer(*arguments)
    monkeypatch.setattr(run.Runner, "_model", lambda self, *given: done.append(given) or real(self, *given))
    run.infer(*arguments)
    assert len(done) == 4, "two models before the interruption and two after it"
    whole = tmp_path / "whole" / "scores.csv"
    run.infer(*arguments[:2], whole, *arguments[3:])
    assert whole.read_bytes() == (tmp_path / "scores.csv").read_bytes() and not list(tmp_path.glob("**/.*partial*"))


def test_bad_input_is_named(tiny_base, tiny_images, tmp_path, scored):
    _, folder = scored
    with pytest.raises(InputError, match="given twice"):
        run.infer([tiny_images], tiny_base, tmp_path / "s.csv", OPTIONS, [folder / "lora", folder / "lora"])
    with pytest.raises(InputError, match=r"no image_id|lacks the columns image_id"):
        run.infer([tiny_images], tiny_base, tmp_path / "s.csv", OPTIONS, [], folder / "lora" / "train.csv")
    with pytest.raises(InputError, match="not a multiple"):
        secmi_stat.score(query(gaussian(0, 1)), MembershipOptions(secmi_timestep=105))
    with pytest.raises(InputError, match="other concepts"):
        options = MembershipOptions(attacks=["secmi-nns"], secmi_timestep=10)
        base = pipeline.load_base(tiny_base)
        one = run.ImageSet.load(tiny_images).where(concept="ada")
        run.Runner(base, [one], {"ada-000"}, options, tmp_path / "partial").run(run.plan([], [one]))
