"""The training loop of the shipped models: learning-rate schedule, exact resume, averaged weights."""

import pytest
import torch
from torch import nn

from tuneleak import runtime
from tuneleak.models import training
from tuneleak.options import BaseOptions


class Stopped(Exception):
    """Stands for a kill."""


def run(folder, stop_at=None, ema=0.9):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def loss_at(step):
        if step == stop_at:
            raise Stopped
        x = torch.randn(16, 4, generator=runtime.generator("test", step))
        return (module(x) - x.sum(1, keepdim=True)).square().mean(), {}

    training.train(module, loss_at, BaseOptions(steps=30, lr=1e-2), folder, "test", ema=ema, checkpoint_every=10)
    return module.state_dict()


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(Stopped):
        run(tmp_path / "cut", stop_at=17)
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole/train.csv").read_text().count("\n") == (tmp_path / "cut/train.csv").read_text().count("\n")


def test_averaged_weights_differ_from_the_last_ones(tmp_path):
    averaged, last = run(tmp_path / "a", ema=0.9), run(tmp_path / "b", ema=0.0)
    assert not torch.equal(averaged["0.weight"], last["0.weight"])


def test_learning_rate_warms_up_peaks_and_ends_at_zero():
    rates = [training.learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01) and rates[99] == pytest.approx(1.0)
    assert rates[550] == pytest.approx(0.5, abs=1e-3) and rates[-1] < 1e-5
    assert max(rates) == pytest.approx(1.0)
