import pytest

from tuneleak.privacy import architectures


@pytest.mark.parametrize(
    ("name", "blocks", "total", "attention", "trained"),
    [
        ("imagenet32-to-cifar10", 16, 90.29, 23.87, 9.79),
        ("laion-to-celeba-hq-text", 16, 872.30, 280.02, 823.02),
        ("stable-diffusion-v1", 16, 859.52, None, None),
    ],
)
def test_weights_are_those_of_the_authors_networks(name, blocks, total, attention, trained):
    """Millions, as counted on the authors' own networks."""
    found = architectures.counts(name)
    assert found["blocks"] == blocks
    assert found["total"] / 1e6 == pytest.approx(total, abs=0.005)
    if attention:
        assert found["attention"] / 1e6 == pytest.approx(attention, abs=0.005)
        assert found["trained"] / 1e6 == pytest.approx(trained, abs=0.01)


def test_ninety_percent_fewer_is_true_of_one_architecture_only():
    shares = {name: (found := architectures.counts(name))["trained"] / found["all"] for name in architectures.ARCHITECTURES}
    assert [name for name, share in shares.items() if share < 0.12] == ["imagenet32-to-cifar10"]
    assert shares["imagenet32-to-cifar10"] == pytest.approx(0.108, abs=0.001)
