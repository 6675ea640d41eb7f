"""What things are called in print, and in which order they stand. Imports nothing heavy."""

_ATTACKS = {
    "direct": "direct",
    "cfg": "CFG",
    "finextract": "FineXtract",
    "finextract-unconditional": "FineXtract, unconditional",
    "base": "base (control)",
    "spectral": "ours (invariant)",
    "spectral-selected": "ours, selected",
    "spectral-finextract": "ours, FineXtract",
    "spectral-refined": "ours, $z$ refined",
    "autoencoder-refined": "autoencoder, $z$ refined",
    "constant-refined": "constant $z$, refined",
    "autoencoder-leak": "autoencoder, gradient leak",
    "autoencoder-online": "autoencoder, trained along",
    "autoencoder-finextract": "autoencoder, FineXtract",
    "constant-finextract": "constant $z$, FineXtract",
    "autoencoder": "network autoencoder",
    "autoencoder-final": "autoencoder, final weights",
    "autoencoder-known": "autoencoder, $A_0$ known",
    "linear": "linear (control)",
    "constant": "constant $z$ (control)",
    "searched-prompt": "searched prompt",
    "guessed-prompt": "guessed prompt",
    "update-matching": "update matching",
    "unconditional": "unconditional",
    "attributes": "attributes (bound)",
    "true-prompt": "true prompt (bound)",
    "captions": "captions of others (utility)",
    "loss": "loss",
    "secmi-stat": "SecMI (statistic)",
    "secmi-nns": "SecMI (network)",
    "pia": "PIA",
    "pian": "PIAN",
    "sima": "SimA",
    "pfami": "PFAMI",
    "clid": "CLiD",
    "model-blind": "model-blind (control)",
    "regeneration-l2": "distance",
    "regeneration-tile": "largest tile",
    "regeneration-adaptive": "adaptive",
    "regeneration-aligned": "CLIP, aligned",
    "regeneration-clique": "cliques of ten",
    "clip-rp": "CLIP-RP",
}
_METHODS = {
    "end-to-end": "end to end",
    "dreambooth": "DreamBooth",
    "dreambooth-prior": "DreamBooth with prior",
    "dreambooth+hypernetwork": "DreamBooth + hypernetwork",
    "lora": "LoRA",
    "dora": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "oft": "OFT",
    "lora-te": "LoRA with text encoder",
    "dreambooth+lora": "DreamBooth + LoRA",
    "textual-inversion+lora": "textual inversion + LoRA",
    "hypernetwork": "hypernetwork",
    "textual-inversion+hypernetwork": "textual inversion + hypernetwork",
    "textual-inversion": "textual inversion",
    "gaussian": "random perturbation",
    "attention": "attention",
    "all": "all weights",
    "resblocks": "residual blocks",
    "input": "input blocks",
    "bias": "biases",
    "unconditional-attention": "unconditional attention",
    "dp-mepf": "DP-MEPF",
    "dpagg-ti": "DPAgg-TI",
}
_WORLDS = {
    "identities": "identities",
    "named": "named people",
    "artists": "artists",
    "dreambooth": "DreamBooth objects",
    "wikiart": "WikiArt artists",
    "lora-identities": "LoRA identities",
    "celebahq": "CelebA-HQ",
    "near": "near style",
    "near-long": "near style, longer",
    "far": "far style",
    "near-text": "near style, text",
    "few": "few pictures per artist",
    "celeba-hq": "CelebA-HQ",
    "imagenet32-to-cifar10": "class network",
    "laion-to-celeba-hq-text": "text network",
    "stable-diffusion-v1": "Stable Diffusion v1",
}
_CONTROLS = {
    "heldout": "held-outs",
    "best-control": "best control",
    "mean-z": "mean $z$",
    "other-weights": "another's weights",
    "shuffled-modules": "modules shuffled",
    "base-unet": "base UNet",
    "stranger": "stranger",
}


def attack_name(attack):
    """An attack, a control or a difference a-minus-b in words; an unknown one keeps its own name."""
    return _difference(attack, _ATTACKS | _CONTROLS)


def control_name(control):
    """A control in words."""
    return _CONTROLS.get(control, control)


def method_name(method):
    """A fine-tuning method, or a difference of two, in words."""
    return _difference(method, _METHODS)


def world_name(world):
    """A world in words."""
    return _WORLDS.get(world, world)


def attacks_in_order(attacks):
    """Attacks from the weakest to the strongest knowledge, the control last; unknown ones follow alphabetically."""
    return _in_order(attacks, _ATTACKS)


def methods_in_order(methods):
    """Methods, those with fewer trained weights later."""
    return _in_order(methods, _METHODS)


def worlds_in_order(worlds):
    """Worlds, people before artists, drawings before photographs."""
    return _in_order(worlds, _WORLDS)


def _difference(name, known):
    first, minus, second = name.partition("-minus-")
    return f"{known.get(first, first)} minus {known.get(second, second)}" if minus else known.get(name, name)


def _in_order(names, known):
    order = list(known)
    return sorted(set(names), key=lambda name: (order.index(name) if name in order else len(order), name))
