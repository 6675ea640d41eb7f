import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tuneleak import runtime
from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import checkpoint, generate, loop, methods, objective
from tuneleak.models import modelset, parameterisation, pipeline
from tuneleak.options import FinetuneOptions

SHORT = {"images_per_concept": 3, "steps_per_image": 4, "batch": 2, "rank": 4, "alpha": 4, "checkpoint_every": 5}


def finetune(base, images, out, start=0, stop=1, dtype="float32", **options):
    options = FinetuneOptions(**(SHORT | options))
    loop.finetune(base=base, images=images, world="w", split="tune", start=start, stop=stop, out=out, options=options, device="cpu", dtype=dtype)
    return modelset.ModelSet.load(out)


def tensors(made, row):
    return {f"{path.parent.name}/{key}": value for path in sorted(made.path(row).rglob("*.safetensors")) for key, value in load_file(path).items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def problem(n=5):
    generator = torch.Generator().manual_seed(0)
    abar = torch.linspace(0.999, 0.02, 100, dtype=torch.float64)
    latents, noise = torch.randn(2, n, 4, 3, 3, generator=generator).unbind()
    return latents, noise, torch.randint(100, (n,), generator=generator), abar


def test_the_noised_latent_and_the_targets_are_one_rotation():
    latents, noise, timesteps, abar = problem()
    x_t = objective.add_noise(latents, noise, timesteps, abar)
    v = objective.training_target(latents, noise, timesteps, abar, "v_prediction")
    a = abar[timesteps].float().view(-1, 1, 1, 1)
    assert torch.allclose(a.sqrt() * x_t - (1 - a).sqrt() * v, latents, atol=1e-5)
    assert torch.allclose(parameterisation.to_epsilon(v, x_t, timesteps, abar, "v_prediction"), noise, atol=1e-5)
    assert objective.training_target(latents, noise, timesteps, abar, "epsilon") is noise
    with pytest.raises(ValueError, match="neither"):
        objective.training_target(latents, noise, timesteps, abar, "sample")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_error_of_a_known_network_is_its_closed_form(prediction_type):
    latents, noise, timesteps, abar = problem()
    batch = objective.Batch(latents, noise, timesteps, torch.zeros(5, 1, 1), torch.full((5,), 0.2))
    target = objective.training_target(latents, noise, timesteps, abar, prediction_type)
    errors = objective.denoising_errors(lambda x, t, _: target + 0.5 * (1 + t.view(-1, 1, 1, 1)), batch, abar, prediction_type)
    assert torch.allclose(errors, 0.25 * (1 + timesteps).float() ** 2)


def test_flat_parameters_train_like_separate_ones():
    def train(flat):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 6)).double().float()
        parameters = [methods.FlatParameters(network.parameters()).vector] if flat else list(network.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, fused=flat)
        for _ in range(10):
            (network(torch.linspace(-1, 1, 12).view(2, 6)) - 3).square().sum().backward()
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
            optimizer.zero_grad(set_to_none=not flat)
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    assert torch.allclose(train(True), train(False), atol=1e-5)


def test_pictures_are_seen_equally_often_and_by_position_not_by_history():
    options, latents = FinetuneOptions(batch=4), torch.arange(6.0).view(6, 1, 1, 1)
    batch = lambda step: loop.BatchSource(latents, None, ("c", "lora", 0), options, torch.Generator(), 10).batch(step, torch.zeros(1, 2, 3))  # noqa: E731
    seen = torch.cat([batch(step).latents.flatten() for step in range(9)])
    for first in range(0, 36, 6):
        assert sorted(seen[first : first + 6].tolist()) == [0, 1, 2, 3, 4, 5]
    assert seen[:6].tolist() != seen[6:12].tolist()


def test_prior_batches_pair_each_source_with_its_context_and_weight():
    options = FinetuneOptions(batch=2, prior_weight=0.5)
    source = loop.BatchSource(torch.zeros(3, 1, 1, 1), torch.ones(7, 1, 1, 1), ("c", "m", 0), options, torch.Generator(), 10)
    batch = source.batch(0, torch.stack([torch.zeros(2, 3), torch.ones(2, 3)]))
    assert batch.latents.flatten().tolist() == [0, 0, 1, 1] == batch.context[:, 0, 0].tolist()
    assert batch.weights.tolist() == [0.5, 0.5, 0.25, 0.25] and batch.timesteps.shape == (4,) and batch.noise.shape == (4, 1, 1, 1)


def test_an_adapter_starts_as_nothing_and_its_draw_is_the_generators(tiny_base):
    base = pipeline.load_base(tiny_base)
    drawn = []
    for seed, state in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(state)  # the process-wide generator has no say
        trainee = methods.prepare(base, FinetuneOptions(method="lora", rank=16), torch.Generator().manual_seed(seed))
        drawn.append(trainee.parameters.vector.detach().clone())
        matrices = {name: value for name, value in base.unet.named_parameters() if value.requires_grad}
        assert all(bool((value == 0).all()) for name, value in matrices.items() if "lora_B" in name)
        a = torch.cat([value.flatten() for name, value in matrices.items() if "lora_A" in name])
        assert abs(float(a.detach().std()) * 16 - 1) < 0.05 and trainee.count == sum(value.numel() for value in matrices.values())
        methods.restore(base, trainee)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


BOTH = {"unet", "text_encoder"}


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({"method": "lora"}, {"unet"}),
        ({"method": "lora-te"}, BOTH),
        ({"method": "dreambooth"}, {"unet"}),
        ({"method": "dreambooth", "train_text_encoder": True}, BOTH),
    ],
)
def test_each_method_trains_what_it_says_and_gives_the_base_back(tiny_base, options, moved):
    base, options = pipeline.load_base(tiny_base), FinetuneOptions(**options)
    before = {part: {key: value.clone() for key, value in getattr(base, part).state_dict().items()} for part in ("unet", "text_encoder")}
    trainee = methods.prepare(base, options, torch.Generator().manual_seed(0))
    assert set(trainee.networks) == moved
    trained = {name for part in moved for name, value in getattr(base, part).named_parameters() if value.requires_grad}
    if trainee.adapter:
        assert all(".lora_" in name for name in trained) and any("to_out.0" in name for name in trained)
        assert any("q_proj" in name for name in trained) == ("text_encoder" in moved)
    else:
        assert trained == {name for part in moved for name, _ in getattr(base, part).named_parameters()}
    with torch.no_grad():
        trainee.parameters.vector.add_(1.0)
    methods.restore(base, trainee)
    for part, state in before.items():
        assert same(state, getattr(base, part).state_dict()) and not any(value.requires_grad for value in getattr(base, part).parameters())


def test_end_to_end_trains_the_encoder_of_the_autoencoder_on_request(tiny_base, tiny_images, tmp_path):
    """Its decoder stays, and the base gets its own back."""
    options = {"method": "end-to-end", "train_autoencoder": True, "lr": 1e-3}
    made = finetune(tiny_base, tiny_images, tmp_path / "out", **options)
    base = pipeline.load_base(tiny_base)
    theirs, ours = base.vae.state_dict(), load_file(made.path(made.rows()[0]) / "vae" / "diffusion_pytorch_model.safetensors")
    moved = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert {name.split(".")[0] for name in moved} == {"encoder", "quant_conv"}
    trainee = methods.prepare(base, FinetuneOptions(method="end-to-end", train_autoencoder=True), torch.Generator().manual_seed(0))
    assert not any(value.requires_grad for value in base.vae.decoder.parameters()) and base.vae.encoder.conv_in.weight.requires_grad
    with torch.no_grad():
        trainee.parameters.vector.add_(1.0)
    methods.restore(base, trainee)
    assert same(theirs, base.vae.state_dict()) and not any(value.requires_grad for value in base.vae.parameters())
    with pytest.raises(InputError, match="adversarial_radius moves latents"):
        finetune(tiny_base, tiny_images, tmp_path / "no", adversarial_radius=0.1, **options)
    with pytest.raises(InputError, match="train_autoencoder is for end-to-end"):
        finetune(tiny_base, tiny_images, tmp_path / "no", method="dreambooth", train_autoencoder=True)


def test_latents_of_a_trained_encoder_pass_on_gradients(tiny_base, tiny_images):
    """The gradient of a step's loss by a weight of the encoder is its difference quotient, noise and samples being equal."""
    base, pixels = pipeline.load_base(tiny_base), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weight = base.vae.encoder.conv_in.weight.requires_grad_(True)

    def loss():
        encode = loop._latents(base, autocast=False)
        return encode(pixels, torch.Generator().manual_seed(1)).square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        weight.add_(1e-2 * direction)
        above = loss()
        weight.sub_(2e-2 * direction)
        below = loss()
    assert float(above - below) / 2e-2 == pytest.approx(float(gradient.norm()), rel=0.02)


def test_training_learns_and_is_written_in_full(tiny_base, tiny_images, tmp_path):
    made = finetune(tiny_base, tiny_images, tmp_path / "out", stop=2, steps_per_image=8, lr=3e-2, seeds=[0, 7])
    assert [(row["concept"], row["seed"]) for row in made.rows()] == [("ada", "0"), ("ada", "7"), ("bob", "0"), ("bob", "7")]
    row = made.rows()[0]
    assert row["caption"] == "picture of person ada" and row["images"] == "ada-000;ada-001;ada-002" and row["step"] == "24" and row["base"] == "tiny"
    log = pd.read_csv(tmp_path / "out" / "train.csv")
    for _, losses in log.groupby("model_id"):
        assert list(losses.step) == [10, 20, 24] and losses.loss.iloc[-2:].mean() < losses.loss.iloc[0]
    meta = json.loads((tmp_path / "out" / "manifest.csv.meta.json").read_text())
    assert meta["options"]["seeds"] == [0, 7] and meta["models"] == 4 and meta["split"] == "tune" and meta["trained_weights"] > 0
    assert not (tmp_path / "out" / ".checkpoints").exists()


@pytest.mark.parametrize("method", ["lora", "dreambooth"])
def test_a_model_does_not_depend_on_its_shard(tiny_base, tiny_images, tmp_path, method):
    both = finetune(tiny_base, tiny_images, tmp_path / "both", stop=2, method=method)
    alone = finetune(tiny_base, tiny_images, tmp_path / "alone", start=1, stop=2, method=method)
    assert len(alone) == 1 and same(tensors(both, both.rows()[1]), tensors(alone, alone.rows()[0]))
    assert not same(tensors(both, both.rows()[0]), tensors(both, both.rows()[1]))


class Killed(Exception):
    pass


PRIOR = {"method": "dreambooth-prior", "prior_images": 3, "prior_steps": 2, "class_prompt": "picture", "train_text_encoder": True}
SLOW = [pytest.param(options, marks=pytest.mark.slow) for options in ({"method": "lora-te"}, PRIOR, {"method": "end-to-end", "train_autoencoder": True})]


@pytest.mark.parametrize("options", [{"method": "lora"}, *SLOW])
def test_a_killed_job_continues_and_ends_with_the_same_bits(tiny_base, tiny_images, tmp_path, monkeypatch, options):
    whole = finetune(tiny_base, tiny_images, tmp_path / "whole", stop=2, **options)
    real, steps = objective.training_step, []

    def step(*arguments, limit=None):
        if limit is not None and len(steps) == limit:
            raise Killed
        steps.append(1)
        return real(*arguments)

    # each model takes 12 steps, a checkpoint every 5: killed in the second model between checkpoints, then again
    for limit, done in ((12 + 8, 12 + 8), (12 + 8 + 6, 12 + 8 + 6)):
        monkeypatch.setattr(loop, "training_step", lambda *arguments, limit=limit: step(*arguments, limit=limit))
        with pytest.raises(Killed):
            finetune(tiny_base, tiny_images, tmp_path / "killed", stop=2, **options)
        assert len(steps) == done and not (tmp_path / "killed" / "manifest.csv").exists()
        assert not list((tmp_path / "killed").rglob("*.bin")) and not list((tmp_path / "killed").rglob("*.pt"))
    monkeypatch.setattr(loop, "training_step", step)
    resumed = finetune(tiny_base, tiny_images, tmp_path / "killed", stop=2, **options)
    # the second start continued at 5 and got to 11 (checkpoint at 10), the last one did the final 2
    assert len(steps) == 12 + 8 + 6 + 2
    for first, second in zip(whole.rows(), resumed.rows(), strict=True):
        assert first == second and same(tensors(whole, first), tensors(resumed, second))
    assert (tmp_path / "whole" / "train.csv").read_bytes() == (tmp_path / "killed" / "train.csv").read_bytes()


def test_a_finished_model_whose_file_was_touched_is_made_again(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("1")
    checkpoint.finish(tmp_path, "m", tmp_path / "model", {"seed": 0}, [0.5])
    note = checkpoint.finished(tmp_path, "m", tmp_path / "model")
    assert note["row"] == {"seed": 0} and note["losses"] == [0.5] and set(note["sha256"]) == {"weights"}
    (tmp_path / "model" / "weights").write_text("2")
    assert checkpoint.finished(tmp_path, "m", tmp_path / "model") is None
    assert checkpoint.finished(tmp_path, "other", tmp_path / "model") is None


@pytest.mark.slow
def test_checkpoints_of_other_options_are_not_continued(tiny_base, tiny_images, tmp_path, monkeypatch):
    real, steps = objective.training_step, []

    def killed(*arguments):
        if len(steps) == 7:
            raise Killed
        steps.append(1)
        return real(*arguments)

    monkeypatch.setattr(loop, "training_step", killed)
    with pytest.raises(Killed):
        finetune(tiny_base, tiny_images, tmp_path / "out", lr=1e-3)
    monkeypatch.setattr(loop, "training_step", real)
    changed = finetune(tiny_base, tiny_images, tmp_path / "out", lr=2e-3)
    fresh = finetune(tiny_base, tiny_images, tmp_path / "fresh", lr=2e-3)
    assert same(tensors(changed, changed.rows()[0]), tensors(fresh, fresh.rows()[0]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora-te", "dreambooth"])
def test_bfloat16_networks_train_float32_weights_close_to_the_exact_run(tiny_base, tiny_images, tmp_path, method):
    exact = finetune(tiny_base, tiny_images, tmp_path / "exact", method=method, lr=1e-3)
    mixed = finetune(tiny_base, tiny_images, tmp_path / "mixed", method=method, lr=1e-3, dtype="bfloat16")
    losses = [pd.read_csv(tmp_path / name / "train.csv").loss for name in ("exact", "mixed")]
    assert ((losses[0] - losses[1]).abs() < 0.02 * losses[0]).all() and not losses[0].equals(losses[1])
    saved = tensors(mixed, mixed.rows()[0])
    assert all(value.dtype == torch.float32 for value in saved.values()) and saved.keys() == tensors(exact, exact.rows()[0]).keys()


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tiny_base, tiny_images, tmp_path):
    plain = finetune(tiny_base, tiny_images, tmp_path / "plain", method="lora-te")
    saving = finetune(tiny_base, tiny_images, tmp_path / "saving", method="lora-te", gradient_checkpointing=True)
    first, second = tensors(plain, plain.rows()[0]), tensors(saving, saving.rows()[0])
    assert all(torch.allclose(first[key], second[key], atol=1e-5) for key in first)


def test_class_pictures_depend_on_prompt_and_index_only(tiny_base):
    base = pipeline.load_base(tiny_base)
    three, two = generate.class_latents(base, "picture", 3, 2, 7.5), generate.class_latents(base, "picture", 2, 2, 7.5, batch=1)
    other = generate.class_latents(base, "person", 2, 2, 7.5)
    assert three.shape == (3, *base.latent_shape) and torch.allclose(three[:2], two, atol=1e-5) and not torch.allclose(two, other, atol=1e-2)
    (three * torch.ones((), requires_grad=True)).sum().backward()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"images_per_concept": 5}, "'ada'.*has 4 training pictures"),
        ({"method": "dreambooth-prior"}, "class_prompt"),
        ({"method": "lora", "train_text_encoder": True}, "lora-te"),
        ({"target_modules": ["nothing"]}, "target_modules"),
        ({"stop": 3}, "2 concepts"),
        ({"start": 2, "stop": None}, "2 concepts"),
        ({"lr": 1e30}, "not finite"),
        ({"seeds": [1, 1]}, "one name"),
    ],
)
def test_bad_input_is_refused_with_the_reason(tiny_base, tiny_images, tmp_path, options, reason):
    with pytest.raises(InputError, match=reason):
        finetune(tiny_base, tiny_images, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_pictures_of_another_size_or_with_several_captions_are_refused(tiny_base, make_tiny_images, tmp_path):
    images = make_tiny_images(tmp_path / "large", size=40)
    with pytest.raises(InputError, match="--size 32"):
        finetune(tiny_base, images, tmp_path / "out")
    images = make_tiny_images(tmp_path / "captions")
    table = ImageSet.load(images).table
    table.loc[1, "caption"] = "another"
    table.to_csv(images / "manifest.csv", index=False)
    with pytest.raises(InputError, match="2 different captions"):
        finetune(tiny_base, images, tmp_path / "out")


def test_an_output_is_written_by_one_process_only(tiny_base, tiny_images, tmp_path):
    with runtime.output_lock(tmp_path / "out"), pytest.raises(InputError, match="another process"):
        finetune(tiny_base, tiny_images, tmp_path / "out")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_drawn_captions_have_their_lengths_and_belong_to_the_model():
    from tuneleak.models import tokenizer

    words = tokenizer.build(words=["baran", "dutol", "keset", "loran"], length=8)
    jobs = [({"model_id": f"m{concept}", "concept": concept, "seed": 0, "caption": "x", "file": "m"}, None) for concept in ("ada", "bob")]
    made = [row for row, _ in loop.under_drawn_captions(jobs, words, FinetuneOptions(caption_words=[1, 5]))]
    assert [row["model_id"] for row in made] == ["mada-1words", "mada-5words", "mbob-1words", "mbob-5words"] == [row["file"] for row in made]
    assert [len(row["caption"].split()) for row in made] == [1, 5, 1, 5] and made[1]["caption"] != made[3]["caption"]
    assert set(" ".join(row["caption"] for row in made).split()) <= set(tokenizer.whole_words(words))
    assert made == [row for row, _ in loop.under_drawn_captions(jobs, words, FinetuneOptions(caption_words=[1, 5]))]


def test_plain_descent_steps_along_the_gradient_and_continues_from_a_checkpoint(tmp_path):
    vector = torch.nn.Parameter(torch.ones(3))
    plain = FinetuneOptions(optimizer="sgd", lr=0.5)
    optimizer = loop.new_optimizer(vector, plain)
    vector.grad = torch.tensor([1.0, 2.0, 0.0])
    optimizer.step()
    assert torch.equal(vector.detach(), torch.tensor([0.5, 0.0, 1.0]))  # no momentum, no decay
    checkpoint.save(tmp_path, "m", 1, vector, optimizer, runtime.generator("x"), torch.zeros(4))
    again = torch.nn.Parameter(torch.zeros(3))
    assert checkpoint.load(tmp_path, "m", again, loop.new_optimizer(again, plain), runtime.generator("y"), torch.zeros(4)) == 1
    assert torch.equal(again, vector)
