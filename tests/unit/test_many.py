"""Many LoRAs at once end where one at a time with peft ends."""

import copy

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tuneleak import runtime
from tuneleak.data.imageset import ImageSet, as_tensor
from tuneleak.errors import InputError
from tuneleak.finetune import loop, many
from tuneleak.models import batched_lora, modelset, pipeline, weightset
from tuneleak.options import CollectOptions, FinetuneOptions

RECIPE = {"method": "lora", "images_per_concept": 3, "steps_per_image": 4, "batch": 2, "rank": 3, "alpha": 6, "lr": 1e-2, "target_modules": ["to_q", "to_v"]}


def options(recipe=None, **values):
    return CollectOptions(recipe=FinetuneOptions(**(RECIPE | (recipe or {}))), **values)


def collect(base, images, out, knobs, **where):
    many.collect(base=base, images=images, world="w", out=out, options=knobs, device="cpu", **where)
    return load_file(out / "weights.safetensors"), modelset.ModelSet.load(out)


def trained_with_peft(base, images, concept, recipe, steps):
    """One model in float64 with peft, torch's AdamW and torch's clip, its loop written out; {layer: (A, B)}."""
    from peft import LoraConfig

    unet = copy.deepcopy(base.unet)
    pictures = images.where(concept=concept, fold="train").pixels()[: recipe.images_per_concept]
    latents, context = base.encode_images(as_tensor(pictures)), base.encode_text([f"picture of person {concept}"]).double()
    generator = runtime.generator("finetune", concept, "lora", 0)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=recipe.target_modules))
    adapter = [(name, value.requires_grad_(True)) for name, value in unet.named_parameters() if ".lora_" in name]
    for name, value in adapter:
        drawn = torch.randn(value.shape, generator=generator) / recipe.rank if ".lora_A." in name else torch.zeros(value.shape)
        value.data = drawn.double()
    parameters = [value for _, value in adapter]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    abar = base.alphas_cumprod
    source = loop.BatchSource(latents, None, (concept, "lora", 0), recipe, generator, len(abar))
    for step in range(steps):
        batch = source.batch(step, context)
        a = abar[batch.timesteps].view(-1, 1, 1, 1)
        noise = batch.noise.double()
        predicted = unet(a.sqrt() * batch.latents.double() + (1 - a).sqrt() * noise, batch.timesteps, encoder_hidden_states=batch.context).sample
        optimizer.zero_grad()
        ((predicted - noise) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
    found = {}
    for name, value in adapter:
        layer, _, side = name.partition(".lora_")
        found[f"{layer}.lora_{side[0]}"] = value.detach()
    return found


def test_batched_training_is_training_one_at_a_time_in_double_precision(tiny_base, tiny_images):
    base, images = pipeline.load_base(tiny_base), ImageSet.load(tiny_images)
    knobs = options({"images_per_concept": 4, "steps_per_image": 5, "max_grad_norm": 0.05})  # a clip that bites
    base.unet.double()
    group = many.plan(images, "w", "", 0, 3, knobs)
    together = many.train_group(base, group, knobs)
    for number, concept in enumerate(("ada", "bob", "cyd")):
        alone = trained_with_peft(base, images, concept, knobs.recipe, steps=20)
        assert alone.keys() == together.keys()
        for name, matrix in alone.items():
            assert (together[name][number] - matrix).abs().max() < 1e-6, name
        moved = max(float(matrix.abs().max()) for name, matrix in alone.items() if name.endswith("_B"))
        assert moved > 1e-2, "nothing was trained"


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"augment": "cutout", "augment_views": 3, "augment_strength": 0.7},
        {"augment": "randaugment", "near_duplicates": 1},
        {"loss": "mmd", "mmd_noise": 0.6},
        {"optimizer": "sgd"},
    ],
    ids=["plain", "cutout", "randaugment", "dpgm", "sgd"],
)
def test_the_two_verbs_give_one_model_up_to_float32_rounding(recipe, tiny_base, tiny_images, tmp_path, record_property):
    knobs = options({"lr": 1e-3, "steps_per_image": 7} | recipe)
    stacked, made = collect(tiny_base, tiny_images, tmp_path / "many", knobs, split="tune")
    loop.finetune(base=tiny_base, images=tiny_images, world="w", split="tune", out=tmp_path / "one", options=knobs.recipe, device="cpu")
    base = pipeline.load_base(tiny_base)
    first, second = (weightset.load([tmp_path / name], base) for name in ("many", "one"))
    assert list(first.table.concept) == list(second.table.concept) == ["ada", "bob"] and set(made.table.step) == {"21"}
    assert list(first.table.images) == list(second.table.images) and list(first.table.caption) == list(second.table.caption)
    drift = max(float((a - b).norm() / b.norm()) for name in first.layers for a, b in zip(first.pairs[name], second.pairs[name], strict=True))
    record_property("float32_drift", drift)
    assert drift < 1e-3
    # alpha / rank = 2 sits in B, once
    name = first.layers[0]
    assert torch.allclose(first.pairs[name][1], 2 * stacked[f"{name}.lora_B"]) and torch.equal(first.pairs[name][0], stacked[f"{name}.lora_A"])


def test_a_group_in_one_network_is_each_model_in_its_own(tiny_base):
    base = pipeline.load_base(tiny_base)
    layers = batched_lora.linear_modules(base.unet, ["to_q", "to_v"])
    draw = torch.Generator().manual_seed(0)
    pairs = {name: (torch.randn(2, 3, i, generator=draw), torch.randn(2, o, 3, generator=draw)) for name, (i, o) in layers.items()}
    x, context = torch.randn(4, *base.latent_shape, generator=draw), torch.randn(4, 16, 32, generator=draw)
    plain = base.noise_pred(x, 10, context)
    with batched_lora.BatchedLora(base.unet, layers) as lora, torch.no_grad():
        assert torch.equal(base.noise_pred(x, 10, context), plain)
        lora.use(pairs, torch.tensor([0.5, 2.0]))
        both = base.predict_noise(base.unet, x, 10, context)
        for k, scale in enumerate((0.5, 2.0)):
            for name, layer in lora.layers.items():
                layer.pair = None
                merged = scale * pairs[name][1][k] @ pairs[name][0][k]
                layer.base_layer.weight.data += merged
            assert torch.allclose(both[2 * k : 2 * k + 2], base.predict_noise(base.unet, x[2 * k : 2 * k + 2], 10, context[2 * k : 2 * k + 2]), atol=1e-4)
            for name, layer in lora.layers.items():
                layer.base_layer.weight.data -= scale * pairs[name][1][k] @ pairs[name][0][k]
    assert not any(isinstance(layer, batched_lora.BatchedLinear) for layer in base.unet.modules())
    assert torch.allclose(base.noise_pred(x, 10, context), plain, atol=1e-5)


def test_snapshots_counts_and_steps(tiny_base, tiny_images, tmp_path):
    knobs = options(snapshot_every=5, initial=True, image_counts=[1, 3], steps="per-image", models_at_once=2)
    stacked, made = collect(tiny_base, tiny_images, tmp_path / "out", knobs)
    steps = made.table.astype({"step": int, "n_images": int, "index": int})
    assert {run: list(part.step) for run, part in steps.groupby("run")} == {
        "w-ada-lora-s0-n1": [0, 4], "w-bob-lora-s0-n3": [0, 5, 10, 12], "w-cyd-lora-s0-n1": [0, 4], "w-dee-lora-s0-n3": [0, 5, 10, 12],
    }  # fmt: skip
    assert sorted(steps["index"]) == list(range(12)) and all(len(tensor) == 12 for tensor in stacked.values())
    for name, tensor in stacked.items():
        start = tensor[steps["index"][steps.step == 0].tolist()]
        assert bool((start == 0).all()) == name.endswith("_B")
    last = weightset.load([tmp_path / "out"], pipeline.load_base(tiny_base)).table
    assert list(last.model_id) == list(made.table.model_id)


def test_another_set_of_the_same_person_and_a_random_trigger(tiny_images):
    images = ImageSet.load(tiny_images)
    (row, pictures, steps), *_ = many.plan(images, "w", "test", 0, None, options(skip_images=1, trigger="a face of {word}"))
    assert list(pictures.table.image_id) == ["cyd-001", "cyd-002", "cyd-003"] == row["images"].split(";") and steps == 12
    word = row["caption"].removeprefix("a face of ")
    assert 4 <= len(word) <= 11 and word.isalpha() and word.islower()
    again = many.plan(images, "w", "test", 0, None, options(trigger="a face of {word}"))
    assert again[0][0]["caption"] == row["caption"] != again[1][0]["caption"]


def test_a_killed_shard_keeps_its_finished_groups(tiny_base, tiny_images, tmp_path, monkeypatch):
    knobs = options(models_at_once=1)
    whole, _ = collect(tiny_base, tiny_images, tmp_path / "whole", knobs)
    real, trained = many.train_group, []

    def killed(base, group, *rest):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(group[0][0]["concept"])
        return real(base, group, *rest)

    monkeypatch.setattr(many, "train_group", killed)
    with pytest.raises(KeyboardInterrupt):
        collect(tiny_base, tiny_images, tmp_path / "killed", knobs)
    assert not (tmp_path / "killed" / "manifest.csv").exists()
    monkeypatch.setattr(many, "train_group", lambda base, group, *rest: (trained.append(group[0][0]["concept"]), real(base, group, *rest))[1])
    resumed, made = collect(tiny_base, tiny_images, tmp_path / "killed", knobs)
    assert trained == ["ada", "bob", "cyd", "dee"] and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list((tmp_path / "killed").glob(".partial-*")) and len(made) == 4


@pytest.mark.parametrize(
    ("recipe", "where", "message"),
    [
        ({"method": "dreambooth"}, {}, "not 'lora'"),
        ({"caption_randomisation": 0.5}, {}, "leave out caption_randomisation"),
        ({"images_per_concept": 9}, {}, "has 4 training pictures"),
        ({}, {"start": 4}, "empty or leaves them"),
        ({"lr": 1e30}, {"stop": 1}, "not finite"),
        ({"target_modules": ["conv_in"]}, {}, "no linear layer"),
    ],
)
def test_bad_input_says_so(tiny_base, tiny_images, tmp_path, recipe, where, message):
    with pytest.raises(InputError, match=message):
        collect(tiny_base, tiny_images, tmp_path / "out", options(recipe), **where)


def test_a_stack_that_is_not_of_this_base_is_refused(tiny_base, tiny_images, tmp_path):
    from safetensors.torch import save_file

    stacked, made = collect(tiny_base, tiny_images, tmp_path / "out", options(), stop=1)
    base = pipeline.load_base(tiny_base)
    name = next(iter(stacked))
    for broken in ({**stacked, name: stacked[name][:, :, :-1].contiguous()}, {**stacked, name: stacked[name] * torch.nan}, {"x.lora_A": stacked[name]}):
        save_file(broken, tmp_path / "out" / "weights.safetensors", metadata={"rank": "3", "alpha": "6"})
        with pytest.raises(InputError):
            weightset.load([tmp_path / "out"], base)
    save_file(stacked, tmp_path / "out" / "weights.safetensors")
    with pytest.raises(InputError, match="rank and alpha"):
        weightset.load([tmp_path / "out"], base)
    assert isinstance(made.table, pd.DataFrame)
