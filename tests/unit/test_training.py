"""The training loop of the shipped models: learning-rate schedule, exact resume, averaged weights."""

import numpy as np
import pytest
import torch
from torch import nn

from tuneleak import runtime
from tuneleak.errors import InputError
from tuneleak.metrics import curve
from tuneleak.models import optimizer as optimisers
from tuneleak.models import training
from tuneleak.models.optimizer import MuonAdamW
from tuneleak.options import AutoencoderOptions, BaseOptions


class Stopped(Exception):
    """Stands for a kill."""


def run(folder, stop_at=None, ema=0.9, snapshots=0, device="cpu"):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)).to(device)

    def batch_at(step):
        if step == stop_at:
            raise Stopped
        return (torch.randn(16, 4, generator=runtime.generator("test", step)),)

    def loss_of(x):
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {"mean": x.mean()}

    training.train(module, batch_at, loss_of, BaseOptions(steps=30, lr=1e-2), folder, "test", ema=ema, checkpoint_every=10, snapshots=snapshots)
    return {name: value.cpu() for name, value in module.state_dict().items()}


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stop_at=17)
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole/train.csv").read_text().count("\n") == (tmp_path / "cut/train.csv").read_text().count("\n")


def test_a_training_that_left_the_finite_numbers_stops(tmp_path):
    module = nn.Linear(4, 1)
    with pytest.raises(InputError, match="not finite at step 20"):
        training.train(
            module,
            lambda step: (torch.full((2, 4), 1.0 if step < 7 else float("inf")),),
            lambda x: (module(x).square().mean(), {}),
            BaseOptions(steps=50),
            tmp_path,
            "test",
        )


def test_averaged_weights_differ_from_the_last_ones(tmp_path):
    averaged, last = run(tmp_path / "a", ema=0.9), run(tmp_path / "b", ema=0.0)
    assert not torch.equal(averaged["0.weight"], last["0.weight"])


def test_learning_rate_warms_up_peaks_and_ends_at_zero():
    rates = [training.learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01) and rates[99] == pytest.approx(1.0)
    assert rates[550] == pytest.approx(0.5, abs=1e-3) and rates[-1] < 1e-5
    assert max(rates) == pytest.approx(1.0)


@pytest.mark.parametrize("fast", [True, False], ids=["bfloat16", "float32"])
def test_muon_turns_a_matrix_by_its_orthogonal_factor(monkeypatch, fast):
    """As a processor with units for bfloat16 does, and as one without."""
    monkeypatch.setattr(optimisers, "bfloat16_is_fast", lambda device: fast)
    layer = nn.Linear(6, 4, bias=False)
    start = layer.weight.detach().clone()
    optimizer = MuonAdamW(layer, lr=1.0, muon_lr=0.1, weight_decay=0.0)
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    layer.weight.grad = gradient.clone()
    optimizer.set_rate(0.5)
    optimizer.step()
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    change = (start - layer.weight.detach()) / 0.05  # half of the peak rate; Newton-Schulz leaves singular values between about .7 and 1.2
    assert torch.allclose(u.T @ change @ v.T, torch.eye(4), atol=0.35)
    assert (u.T @ change @ v.T - torch.diag(torch.diag(u.T @ change @ v.T))).abs().max() < (0.05 if fast else 1e-4)


def test_matrices_orthogonalised_together_move_as_torch_moves_them_one_by_one():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 4), nn.Conv2d(2, 4, (1, 3)), nn.Linear(6, 4, bias=False), nn.Linear(5, 9, bias=False))
    ours = MuonAdamW(layers, lr=0.0, muon_lr=0.1, weight_decay=0.02)
    matrices = [parameter for parameter in layers.parameters() if parameter.ndim > 1]
    theirs = [nn.Parameter(parameter.detach().flatten(1).clone()) for parameter in matrices]
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.02)
    for step in range(4):
        for ours_too, parameter in zip(matrices, theirs, strict=True):
            parameter.grad = torch.randn_like(parameter)
            ours_too.grad = parameter.grad.reshape(ours_too.shape).clone()
        for parameter in layers.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        factor = 1 - step / 8
        reference.param_groups[0]["lr"] = 0.1 * factor
        reference.step()
        ours.set_rate(factor)
        ours.step()
    for ours_too, parameter in zip(matrices, theirs, strict=True):
        assert torch.allclose(ours_too.detach().flatten(1), parameter, atol=5e-3)  # torch's in bfloat16, ours too where that is fast
    assert len(ours.shapes) == 2 and len(ours.shapes[(4, 6)]) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: graphs are recorded on one only")
def test_replayed_updates_end_where_plain_ones_do(tmp_path, monkeypatch):
    replayed = run(tmp_path / "graph", device="cuda", snapshots=3)
    monkeypatch.setattr(training.Update, "PLAIN_STEPS", 10**9)
    plain = run(tmp_path / "plain", device="cuda")
    assert all(torch.allclose(plain[name].double(), replayed[name].double(), atol=1e-4) for name in plain)
    on_cpu = run(tmp_path / "cpu")
    assert all(torch.allclose(plain[name].double(), on_cpu[name].double(), atol=2e-2) for name in plain)
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stop_at=17, device="cuda")
    resumed = run(tmp_path / "cut", device="cuda")
    assert all(torch.allclose(plain[name].double(), resumed[name].double(), atol=1e-4) for name in plain)


def test_muon_leaves_embeddings_vectors_and_thin_matrices_to_adamw():
    module = nn.ModuleDict(
        {"conv": nn.Conv2d(3, 8, 3), "token_embedding": nn.Embedding(10, 8), "norm": nn.LayerNorm(8), "rgb": nn.Conv2d(8, 3, 3), "attn_to_q": nn.Linear(8, 8)}
    )
    optimizer = MuonAdamW(module, 1e-3, 0.02, 0.0)
    assert set(optimizer.shapes) == {(8, 27)} and set(optimizer.shapes[(8, 27)]) == {"conv.weight"}
    assert set(MuonAdamW(module, 1e-3, 0.0, 0.0).others) == {name for name, _ in module.named_parameters()}


def test_muon_refuses_weights_it_could_only_copy():
    convolution = torch.nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="contiguous"):
        MuonAdamW(convolution, 1e-3, 0.02, 0.0)


def test_snapshots_are_evenly_spaced_averages(tmp_path):
    from safetensors.torch import load_file

    last = run(tmp_path, snapshots=3)
    written = sorted((tmp_path / "snapshots").iterdir())
    assert [path.stem for path in written] == ["000010", "000020", "000030"]
    assert torch.allclose(load_file(written[-1])["0.weight"].float(), last["0.weight"], atol=1e-3)
    assert not torch.allclose(load_file(written[0])["0.weight"].float(), last["0.weight"], atol=1e-3)
    (tmp_path / "snapshots/.000010.safetensors.4711.tmp.safetensors").write_bytes(written[0].read_bytes()[:100])  # a job was killed while it wrote
    assert curve.snapshots_of(tmp_path) == written


def test_the_pixels_an_expression_changes_weigh_more():
    from tuneleak.models import autoencoder

    pictures = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    pictures[1, :, 8, 4] = 200  # differs from picture 0, which has its name, in one pixel
    assert autoencoder._partners(["a", "a", "b"]).tolist() == [1, 0, 2]
    options = AutoencoderOptions(batch=16, photograph_share=0, detail_weight=3.0)
    x, weight = autoencoder._batch(pictures, torch.tensor([1, 0, 2]), [], 16, options, 0)
    kinds = {tuple(weight[index].flatten().tolist()) for index in range(16)}
    assert {sum(kind) for kind in kinds} == {256, 256 + 3 * 9}  # nothing, or one pixel and its neighbours
    spot = x.amax((1, 2, 3)) > 0
    assert spot.any() and all(weight[index, 0].flatten()[x[index, 0].argmax()] == 4 for index in spot.nonzero())


def test_standardised_latents_leave_reconstructions_as_they_were():
    from diffusers import AutoencoderKL

    from tuneleak.models import autoencoder

    torch.manual_seed(0)
    network = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                            latent_channels=3, norm_num_groups=4).eval()  # fmt: skip
    pictures = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        network.quant_conv.weight[1] *= 20
        network.quant_conv.bias[2] += 5
        before = network.encode(pictures.float() / 127.5 - 1).latent_dist
        shown = network.decode(before.mean).sample
        autoencoder._standardise(network, pictures)
        after = network.encode(pictures.float() / 127.5 - 1).latent_dist
        assert torch.allclose(network.decode(after.mean).sample, shown, atol=1e-4)
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(3), atol=1e-3) and torch.allclose(after.mean.std((0, 2, 3)), torch.ones(3), atol=1e-3)
    scale = before.mean.std((0, 2, 3)).view(1, 3, 1, 1)
    assert torch.allclose(after.std * scale, before.std, rtol=1e-4)


@pytest.mark.slow
def test_training_the_decoder_alone_leaves_the_latents_as_they_are(tmp_path):
    from safetensors.torch import load_file

    from tuneleak.data import imageset
    from tuneleak.models import autoencoder

    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    folder = tmp_path / "set"
    imageset.write(folder, [{"image_id": str(index), "concept": "c", "split": "", "fold": "", "caption": ""} for index in range(8)], pixels)
    options = AutoencoderOptions(steps=2, batch=4, block_out_channels=[8, 16], latent_channels=4)
    found = []
    for steps in (0, 2):
        autoencoder.train([folder], tmp_path / str(steps), options.model_copy(update={"decoder_steps": steps}))
        found.append(load_file(tmp_path / f"{steps}/diffusion_pytorch_model.safetensors"))
    changed = {name.split(".")[0] for name in found[0] if not torch.equal(found[0][name], found[1][name])}
    assert changed == {"decoder", "post_quant_conv"}
