import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tuneleak.data.imageset import ImageSet
from tuneleak.errors import InputError
from tuneleak.finetune import methods, private, private_data
from tuneleak.models import latent_diffusion, modelset
from tuneleak.models.pipeline import load_base, load_tuned
from tuneleak.options import DiffusionOptions, PrivacyOptions, PrivateFinetuneOptions
from tuneleak.privacy import accounting, conditioned, gradients, mechanism, trainable

KINDS = ("attention", "all", "resblocks", "input", "bias", "lora")
PROMPTS = {name: f"picture of person {name}" for name in ("ada", "bob", "cyd", "dee")}
PRIVACY = {"epsilon": 2, "delta": 1e-3, "expected_batch": 8, "public_size": 16, "steps": 4, "clip": 1e-3}


def options(privacy=None, **changes):
    values = {"prompts": PROMPTS, "lr": 1e-2, "physical_batch": 8, "rank": 4, "checkpoint_every": 2, "gradients": "ghost"}
    return PrivateFinetuneOptions(**values | changes, privacy=PrivacyOptions(**PRIVACY | (privacy or {})))


class Problem:
    """A tiny network with one trainable set and a few random pictures, class numbers and draws."""

    def __init__(self, folder, kind="attention", pictures=4, draws=1, tokens=3, **changes):
        self.base = load_base(folder)
        made = options(trainable=kind, context_tokens=tokens, **changes)
        self.network, self.parameters, self.selection, self.embedder = private.prepare(self.base, made, 0)
        random = torch.Generator().manual_seed(0)
        for name, parameter in self.base.unet.named_parameters():
            if ".lora_B." in name:
                parameter.data.normal_(0, 0.1, generator=random)
        rows = pictures * draws
        self.pictures, self.draws = pictures, draws
        self.x, self.target = torch.randn(2, rows, *self.base.latent_shape, generator=random)
        self.t = torch.randint(1000, (rows,), generator=random)
        self.classes = torch.arange(pictures).remainder(3).repeat_interleave(draws)  # two pictures share a class, and with it a row of the table

    def errors(self, rows=slice(None)):
        return lambda network: (network(self.x[rows], self.t[rows], self.classes[rows]) - self.target[rows]).square().flatten(1).mean(1)

    def loop(self):
        """The gradient of each picture by itself, `(pictures, weights)`: the mean over its draws."""
        found = []
        for index in range(self.pictures):
            error = self.errors(slice(index * self.draws, (index + 1) * self.draws))(self.network).mean()
            parts = torch.autograd.grad(error, self.parameters, materialize_grads=True)
            found.append(torch.cat([part.flatten() for part in parts]))
        return torch.stack(found)

    def clipped(self, method, clip, keep=None):
        """Clipped sum as one vector and norms, of all pictures or those in `keep`."""
        keep = list(range(self.pictures)) if keep is None else keep
        rows = torch.tensor([index * self.draws + draw for index in keep for draw in range(self.draws)])
        sums = gradients.make(method, self.network, self.parameters)
        try:
            found, norms = sums.clipped(self.errors(rows), len(keep), clip)
        finally:
            sums.close()
        return torch.cat([part.flatten() for part in found]).detach(), norms


@pytest.fixture(scope="module")
def other_base(make_tiny_base, tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("bases") / "other", seed=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["channels first", "channels last"])
@pytest.mark.parametrize("kind", KINDS)
def test_clipped_sums_equal_a_loop_over_pictures(tiny_base, kind, layout):
    problem = Problem(tiny_base, kind, draws=2)
    problem.x = problem.x.contiguous(memory_format=layout)  # latents come out of the autoencoder as channels last
    loop = problem.loop()
    norms = loop.norm(dim=1)
    clip = float(norms.median())  # some are clipped, some not
    expected = (loop / norms.clamp(min=clip)[:, None]).sum(0)
    for method in ("hooks", "ghost"):
        found, seen = problem.clipped(method, clip)
        assert torch.allclose(found, expected, atol=1e-5), method
        assert torch.allclose(seen, norms, rtol=1e-5), method
    assert all(parameter.requires_grad for parameter in problem.parameters)


@pytest.mark.parametrize("kind", ["all", "resblocks", "unconditional-attention"])
def test_clipped_sums_of_an_unconditional_network_equal_a_loop(kind):
    """Attention of a UNet2DModel hands its convolutions pictures that do not lie row by row in memory."""
    options = DiffusionOptions(block_out_channels=[16, 32], layers_per_block=1, attention_levels=[0, 1], head_width=8, norm_num_groups=8, residual_updown=True)
    torch.manual_seed(0)
    unet = latent_diffusion.build_unet(options, 3, 8)
    parameters = trainable.apply(unet, trainable.select(unet, kind))
    network = conditioned.Conditioned(unet, None, lambda net, x, t, context: net(x, t, return_dict=False)[0])
    x, target = torch.randn(2, 3, 3, 8, 8)
    errors_of = lambda net: (net(x, torch.tensor([3, 50, 700]), torch.zeros(3, 1, 1)) - target).square().flatten(1).mean(1)  # noqa: E731
    gradients_of = [torch.autograd.grad(error, parameters, retain_graph=True) for error in errors_of(network)]
    loop = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in gradients_of])
    clip = float(loop.norm(dim=1).median())
    expected = (loop / loop.norm(dim=1).clamp(min=clip)[:, None]).sum(0)
    for way in ("ghost", "hooks"):
        sums = gradients.make(way, network, parameters)
        found, norms = sums.clipped(errors_of, 3, clip)
        sums.close()
        assert torch.allclose(norms, loop.norm(dim=1), rtol=1e-4), way
        assert torch.allclose(torch.cat([part.flatten() for part in found]).detach(), expected, atol=1e-5), way
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_gradients_through_the_text_encoder_equal_a_loop(tiny_base):
    problem = Problem(tiny_base, conditioning="text-encoder", draws=2)
    problem.classes = problem.base.token_ids([f"picture {name}" for name in "abcd"]).repeat_interleave(2, 0)
    loop = problem.loop()
    clip = float(loop.norm(dim=1).median())
    expected = (loop / loop.norm(dim=1).clamp(min=clip)[:, None]).sum(0)
    assert torch.allclose(problem.clipped("ghost", clip)[0], expected, atol=1e-5)
    assert torch.allclose(problem.clipped("hooks", clip)[0], expected, atol=1e-5)
    names = [name for name, parameter in problem.embedder.named_parameters() if parameter.requires_grad]
    assert any("token_embedding" in name for name in names) and not any("position_embedding" in name for name in names)


@pytest.mark.parametrize("draws", [1, 4, 8])
def test_removing_a_picture_moves_the_sum_by_at_most_the_clip(tiny_base, draws):
    problem = Problem(tiny_base, draws=draws)
    clip = 0.5 * float(problem.loop().norm(dim=1).min())  # everything is clipped: the bound is met, not only kept
    whole, norms = problem.clipped("ghost", clip)
    assert bool((norms > clip).all())
    for removed in range(problem.pictures):
        without, _ = problem.clipped("ghost", clip, [index for index in range(problem.pictures) if index != removed])
        assert float((whole - without).norm()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("layer", ["linear", "bias", "convolution", "embedding", "wide"])
def test_a_gradient_that_cancels_keeps_its_share_within_one(layer, scale):
    """Two draws with opposite gradients leave rounding, which no clip may blow up: 1 / C of it would be far longer than the clip."""
    generator = torch.Generator().manual_seed(0)
    made = {
        "linear": lambda: torch.nn.Linear(64, 64, bias=False), "bias": lambda: torch.nn.Linear(64, 64), "wide": lambda: torch.nn.Linear(4, 4),
        "convolution": lambda: torch.nn.Conv2d(4, 4, 3, padding=1), "embedding": lambda: torch.nn.Embedding(3, 64),
    }  # fmt: skip
    module = made[layer]()
    draws = {"embedding": lambda: torch.tensor([[1], [1]]), "convolution": lambda: torch.randn(1, 4, 8, 8, generator=generator).repeat(2, 1, 1, 1)}
    x = draws.get(layer, lambda: torch.randn(1, 64 if layer != "wide" else 4, generator=generator).repeat(2, 1))()
    sums = gradients.make("ghost", module, list(module.parameters()))
    for _ in range(20):
        weight = scale * torch.randn(1, *module(x).shape[1:], generator=generator)
        nearly = torch.cat([weight, -weight * (1 + 1e-6 * torch.rand(weight.shape, generator=generator))])
        found, _ = sums.clipped(lambda network, nearly=nearly: (network(x) * nearly).flatten(1).sum(1), 1, 1e-3)
        assert float(torch.cat([part.flatten() for part in found]).norm()) <= 1 + 1e-5
    sums.close()


def test_ghost_norms_are_refused_where_there_is_no_float64():
    on_mps = SimpleNamespace(device=torch.device("mps"))
    with pytest.raises(InputError, match="float64, which mps lacks"):
        gradients.make("ghost", torch.nn.Linear(1, 1), [on_mps])


def test_repeating_a_picture_and_clipping_each_copy_breaks_the_bound(tiny_base):
    """The mistake of public DP-LoRA code: K rows clipped one by one let a picture weigh up to K times the clip."""
    problem = Problem(tiny_base, pictures=1, draws=8)
    problem.x[:], problem.t[:], problem.target[:] = problem.x[:1].clone(), problem.t[:1].clone(), problem.target[:1].clone()  # draws that agree
    right, _ = problem.clipped("hooks", 1e-6)
    wrong, _ = gradients.make("hooks", problem.network, problem.parameters).clipped(problem.errors(), 8, 1e-6)
    assert float(right.norm()) == pytest.approx(1.0, abs=1e-3)
    assert float(torch.cat([part.flatten() for part in wrong]).norm()) == pytest.approx(8.0, abs=1e-2)


def test_the_sum_does_not_depend_on_the_clip_when_all_are_clipped(tiny_base):
    problem = Problem(tiny_base)
    smallest = float(problem.loop().norm(dim=1).min())
    assert torch.allclose(problem.clipped("ghost", 0.9 * smallest)[0], problem.clipped("ghost", 1e-6 * smallest)[0], atol=1e-6)


def test_with_one_context_token_queries_and_keys_of_cross_attention_get_no_gradient(tiny_base):
    base = load_base(tiny_base)
    base.unet.requires_grad_(True)
    x, t = torch.randn(2, *base.latent_shape), torch.tensor([10, 500])
    base.unet(x, t, encoder_hidden_states=torch.randn(2, 1, 32)).sample.square().sum().backward()
    dead = [name for name, _ in base.unet.named_parameters() if ".transformer_blocks." in name and any(part in name for part in trainable.SINGLE_TOKEN_DEAD)]
    own = dict(base.unet.named_parameters())
    assert dead and max(float(own[name].grad.abs().max()) for name in dead) < 1e-6
    assert float(own[dead[0].split("attn2")[0].split("norm2")[0] + "attn2.to_v.weight"].grad.abs().max()) > 1e-4
    left = trainable.select(base.unet, "attention", context_tokens=1).names
    assert set(trainable.select(base.unet, "attention", context_tokens=2).names) - set(left) == set(dead)


def test_blocks_are_counted_in_the_order_they_are_run(tiny_base):
    unet = load_base(tiny_base).unet
    order = [name for name, _ in trainable.attention_blocks(unet)]
    assert order == ["down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]
    late = trainable.select(unet, "attention", [2, 4])
    assert {name.rsplit(".attentions.")[0] for name in late.names} == {"up_blocks.1"} and late.blocks == (2, 4)
    with pytest.raises(InputError, match="within the 4 attention blocks"):
        trainable.select(unet, "attention", [2, 5])
    with pytest.raises(InputError, match="counted for attention"):
        trainable.select(unet, "bias", [0, 1])
    with pytest.raises(InputError, match="finds nothing"):
        trainable.select(unet, "unconditional-attention")


def test_unconditional_attention_blocks_are_found_and_clipped():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=8,
        attention_head_dim=8, norm_num_groups=8,
        down_block_types=("AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D"), mid_block_type="UNetMidBlock2D",
    )  # fmt: skip
    parameters = trainable.apply(unet, trainable.select(unet, "unconditional-attention"))
    assert 0 < sum(parameter.numel() for parameter in parameters) < sum(parameter.numel() for parameter in unet.parameters()) / 4
    call = lambda net, x_t, t, context: net(x_t, t, context, return_dict=False)[0]  # noqa: E731
    network, x = conditioned.Conditioned(unet, None, call), torch.randn(3, 4, 8, 8)
    errors = lambda net: net(x, torch.tensor([3, 5, 7]), torch.zeros(3, 2, 8)).square().flatten(1).mean(1)  # noqa: E731
    found = {method: gradients.make(method, network, parameters).clipped(errors, 3, 1e-4) for method in ("ghost", "hooks")}
    assert torch.allclose(found["ghost"][1], found["hooks"][1], rtol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found["ghost"][0], found["hooks"][0], strict=True))


def test_gradient_checkpointing_changes_nothing_and_the_other_kind_is_refused(tiny_base):
    plain = Problem(tiny_base, "attention")
    recomputed = Problem(tiny_base, "attention", gradient_checkpointing=True)
    assert torch.allclose(plain.clipped("hooks", 1e-3)[0], recomputed.clipped("hooks", 1e-3)[0], atol=1e-5)
    recomputed.base.unet.enable_gradient_checkpointing()  # diffusers' default is not re-entrant
    with pytest.raises((InputError, ValueError)):
        recomputed.clipped("hooks", 1e-3)
    with pytest.raises(InputError, match="every activation once"):
        gradients.make("ghost", plain.network, plain.parameters, gradient_checkpointing=True)


def test_poisson_batches_are_independent_draws_at_the_public_rate():
    sizes = torch.tensor([float(len(mechanism.poisson_batch(200, 0.1, "k", step))) for step in range(400)])
    assert abs(float(sizes.mean()) - 20) < 4 * math.sqrt(18 / 400)
    assert abs(float(sizes.var()) / 18 - 1) < 0.35


def test_an_empty_batch_is_noise_and_counts(tiny_base, tiny_images):
    trainer = make_trainer(tiny_base, tiny_images, sigma=2.0)
    trainer.data.latents = trainer.data.latents[:0]
    before = trainer.vector.detach().clone()
    trainer.step()
    assert trainer.ledger.history == [[2.0, 0.5, 1]] and not torch.equal(before, trainer.vector)
    assert float(trainer.vector.grad.std()) == pytest.approx(2.0 / 8, rel=0.05)  # sigma over the expected batch


def make_trainer(base, images, sigma=0.0, privacy=None, kind="ghost", **changes):
    made = options(privacy, **changes)
    loaded = load_base(base)
    data = private_data.PrivateRecords(loaded, ImageSet.load(images).where(fold="train"), made)
    network, parameters, *_ = private.prepare(loaded, made, 0)
    flat = methods.FlatParameters(parameters)
    return private.Trainer(data, parameters, flat.vector, gradients.make(kind, network, parameters), sigma, ("w", 0), made)


@pytest.mark.parametrize("kind", ["ghost", "hooks"])
def test_physical_batches_change_neither_gradient_nor_ledger(tiny_base, tiny_images, kind):
    found = []
    for rows in (5, 100, 2, 1):  # two records and some, all, one, less than one
        trainer = make_trainer(tiny_base, tiny_images, sigma=0.5, kind=kind, physical_batch=rows, privacy={"multiplicity": 2})
        for parameter in trainer.parameters:
            parameter.grad = torch.ones_like(parameter)  # left over from elsewhere: no record may see it
        trainer.step()
        trainer.sums.close()
        found.append((trainer.vector.grad, trainer.ledger.history))
    for gradient, history in found:
        assert torch.allclose(gradient, found[1][0], atol=1e-6) and history == [[0.5, 0.5, 1]]
    assert all(parameter.grad is None for parameter in trainer.parameters)


def test_the_average_moves_with_real_steps_only(tiny_base, tiny_images):
    trainer = make_trainer(tiny_base, tiny_images, physical_batch=1, ema=0.5)
    start = trainer.vector.detach().clone()
    trainer.step()
    decay = min(0.5, 1 / 10)
    assert torch.allclose(trainer.average, start.lerp(trainer.vector.detach(), 1 - decay), atol=1e-7)


def run(base, images, out, **changes):
    private.finetune_private(base, images, "w", out, options(**changes), device="cpu")
    return modelset.ModelSet.load(out)


@pytest.fixture(scope="module")
def made(tiny_base, tiny_images, tmp_path_factory):
    return run(tiny_base, tiny_images, tmp_path_factory.mktemp("private") / "attention")


def test_a_run_changes_what_it_trains_and_nothing_else(made, tiny_base):
    row = made.rows()[0]
    tuned, base = load_file(made.path(row) / "unet/diffusion_pytorch_model.safetensors"), load_base(tiny_base).unet
    chosen = set(trainable.select(base, "attention").names)
    changed = {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, tuned[name])}
    assert changed == chosen
    contexts = conditioned.load_class_contexts(made.path(row) / modelset.CLASS_FILE, 32)
    assert list(contexts) == list(PROMPTS)
    with load_tuned(load_base(tiny_base), made, row) as model:
        assert torch.isfinite(model.noise_pred(torch.zeros(1, 4, 8, 8), 5, contexts["ada"][None])).all()


def test_the_record_says_what_is_promised(made):
    row = made.rows()[0]
    facts = json.loads((made.path(row) / private.RECORD).read_text())
    assert facts["epsilon"] <= 2 and facts["epsilon"] == pytest.approx(2, abs=0.05) and facts["delta"] == 1e-3
    assert facts["history"] == [[facts["noise_multiplier"], 0.5, 4]] and facts["sample_rate"] == 8 / 16
    assert facts["unit"] == "image" and "Not covered" in facts["statement"] and row["defence"] == "epsilon=2"


def test_a_person_is_bounded_by_group_privacy_or_told_that_nothing_is_promised(made, tiny_base, tiny_images, tmp_path):
    person = {"unit": "person", "epsilon": 0.5, "delta": 1e-6}
    alone = run(tiny_base, tiny_images, tmp_path / "person", privacy=person | {"pictures_per_unit": 6})
    facts = json.loads((alone.path(alone.rows()[0]) / private.RECORD).read_text())
    assert facts["pictures_per_unit"] == 6, "the public bound, not the true number, 4"
    assert facts["unit_epsilon"] == pytest.approx(6 * facts["epsilon"])
    assert "a useful bound and a useful model exclude each other" in facts["statement"]
    with pytest.raises(InputError, match="more than pictures_per_unit=3"):
        run(tiny_base, tiny_images, tmp_path / "more", privacy=person | {"pictures_per_unit": 3})
    with pytest.raises(ValueError, match="needs pictures_per_unit"):
        PrivacyOptions(**PRIVACY | person)


def test_a_record_says_the_same_of_sets_that_differ_in_a_picture(tiny_base, tiny_images, make_tiny_images, tmp_path):
    smaller = make_tiny_images(tmp_path / "smaller", train=3)
    budget = {"unit": "person", "epsilon": 0.5, "delta": 1e-6, "pictures_per_unit": 4}
    found = [run(tiny_base, images, tmp_path / f"{number}", privacy=budget) for number, images in enumerate((tiny_images, smaller))]
    first, second = ((made.path(made.rows()[0]) / private.RECORD).read_text() for made in found)
    assert first == second


def test_a_killed_run_ends_with_the_same_weights_and_ledger(made, tiny_base, tiny_images, tmp_path, monkeypatch):
    step = private.Trainer.step

    def dies(trainer):
        if trainer.step_number == 3:
            raise KeyboardInterrupt
        step(trainer)

    monkeypatch.setattr(private.Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_base, tiny_images, tmp_path / "killed")
    monkeypatch.setattr(private.Trainer, "step", step)
    assert list((tmp_path / "killed/.checkpoints").rglob("*.private.json"))
    again = run(tiny_base, tiny_images, tmp_path / "killed")
    files = [models.path(models.rows()[0]) / "unet/diffusion_pytorch_model.safetensors" for models in (made, again)]
    assert all(torch.equal(a, b) for a, b in zip(*(load_file(file).values() for file in files), strict=True))
    records = [json.loads((models.path(models.rows()[0]) / private.RECORD).read_text()) for models in (made, again)]
    assert records[0] == records[1] and not (tmp_path / "killed/.checkpoints").exists()


def test_a_private_lora_moves_its_b_and_leaves_the_base(tiny_base, tiny_images, tmp_path):
    lora = run(tiny_base, tiny_images, tmp_path / "lora", trainable="lora", conditioning="frozen")
    tensors = load_file(lora.path(lora.rows()[0]) / "pytorch_lora_weights.safetensors")
    assert all(float(tensor.abs().max()) > 0 for name, tensor in tensors.items() if "lora_B" in name or "lora.up" in name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy": {"delta": 0.1}}, "no protection for 16"),
        ({"privacy": {"expected_batch": 32}}, "exceed public_size"),
        ({"prompts": {}}, "never read off the private pictures"),
        ({"prompts": {"ada": "picture"}}, "not in prompts"),
        ({"conditioning": "frozen", "caption_column": "nothing"}, "no column 'nothing'"),
    ],
)
def test_unsound_settings_are_refused(tiny_base, tiny_images, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(tiny_base, tiny_images, tmp_path / "refused", **changes)


def test_noise_of_two_runs_is_independent(tiny_base):
    first, second = (mechanism.NoisySum([torch.zeros(20000)]).noised(3.0, 2, *key, 0) for key in (("w", "1", 0), ("w", "10", 0)))
    assert float(first.std()) == pytest.approx(1.5, rel=0.03) and abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.03
    assert torch.equal(first, mechanism.NoisySum([torch.zeros(20000)]).noised(3.0, 2, "w", "1", 0, 0))


def test_the_budget_of_the_options_is_kept():
    privacy = options().privacy
    sigma = private._noise(privacy)
    assert accounting.epsilon([(sigma, 0.5, 4)], 1e-3) <= 2 < accounting.epsilon([(0.97 * sigma, 0.5, 4)], 1e-3)


def test_the_faster_way_is_found_on_noise_noted_and_kept(tiny_base, tiny_images, tmp_path, monkeypatch):
    asked = []

    def slow(self, *arguments):
        asked.append("ghost")
        time.sleep(0.3)
        return clipped(self, *arguments)

    clipped = gradients.GhostSums.clipped
    monkeypatch.setattr(gradients.GhostSums, "clipped", slow)
    made = run(tiny_base, tiny_images, tmp_path / "auto", gradients="auto", seeds=[0, 1], privacy={"steps": 2})
    facts = [json.loads((made.path(row) / private.RECORD).read_text()) for row in made.rows()]
    assert [fact["gradients"] for fact in facts] == ["hooks", "hooks"]
    assert len(asked) == 2  # timed once for both seeds, and not used


def test_a_way_that_does_not_fit_the_layers_is_left_out(tiny_base):
    problem = Problem(tiny_base)
    problem.network.odd = torch.nn.ConvTranspose2d(1, 1, 1)  # a kind of layer that ghost norms do not know, and that is not used
    with pytest.raises(InputError, match="ConvTranspose2d"):
        gradients.make("ghost", problem.network, [*problem.parameters, *problem.network.odd.parameters()])
    kind, seconds = gradients.fastest(problem.network, problem.parameters, problem.errors(), 4, 1e-3)
    assert set(seconds) == {"ghost", "hooks"} and seconds[kind] == min(seconds.values())
