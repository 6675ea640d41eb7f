"""SecMI_NNs (Duan et al., ICML 2023): a ResNet-18 that reads the element-wise |t-error| of SecMI. It learns from *other* concepts only."""

import torch

from tuneleak import runtime
from tuneleak.attacks.membership import secmi_stat

LR, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 5e-4  # the authors' SGD


def setting(options):
    """As SecMI_stat, and the epochs of training."""
    return f"t={options.secmi_timestep},k={options.secmi_stride},epochs={options.nns_epochs}"


def calls(options):
    """Model calls per picture."""
    return secmi_stat.calls(options)


def maps(query, options):
    """|psi(phi(x~_t, t), t + k) - x~_t|, `(n, C, h, w)` float32."""
    return secmi_stat.step_error(query, options).abs().cpu()


def learn(inputs, labels, options, key):
    """Train on maps `(n, C, h, w)` and labels `(n,)` (1: member) -> a function from maps to scores `(m,)`, higher for members.

    The authors' recipe: squared error to 0 / 1, SGD with momentum; their learning rate, batch and number of epochs are options where data are few. `key`
    seeds initialisation and order.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(runtime.generator("secmi-nns", *key).initial_seed() % 2**31)
        network = build(*inputs.shape[1:3])
        scale = inputs.mean().clamp_min(1e-12)
        inputs, targets = (inputs / scale).clone(), labels.float()
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for _ in range(options.nns_epochs):
            for chosen in torch.randperm(len(inputs)).split(options.nns_batch):
                if len(chosen) > 1:  # batch normalisation needs two
                    (network(inputs[chosen])[:, 0] - targets[chosen]).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
        network.eval()

    @torch.no_grad()
    def scores(others):
        return torch.cat([network(part / scale)[:, 0] for part in others.split(256)]).double()

    return scores


def build(channels, side):
    """torchvision's ResNet-18 for maps `(n, channels, side, side)`; below 32 pixels without the pooling and the two stages that would see a single pixel."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=1)
    network.conv1 = torch.nn.Conv2d(channels, 64, 3, stride=2, padding=1, bias=False)
    if side < 32:
        network.maxpool = network.layer3 = network.layer4 = torch.nn.Identity()
        network.fc = torch.nn.Linear(128, 1)
    return network
