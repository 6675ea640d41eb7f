"""What a fine-tuning method trains, how it is set up in a base's networks, and what it leaves on disk.

A method is a combination of trainable parts (`PARTS`): all weights of a network, peft adapters (`adapters.KINDS`) on its attention, or small parts beside it
(`tuneleak.models.attachments`). DreamBooth fine-tunes to one prompt; with `+lora` it does so through adapters on both networks, as in Shake-to-Leak's public
code, which makes it train what `lora-te` does. `train_text_encoder` adds the text encoder's weights to dreambooth, `train_autoencoder` those of the
autoencoder's encoder to end-to-end (its decoder has no part in the loss). On a base without a text encoder (of pixels, told by classes) a method trains
what else it trains.
"""

from dataclasses import dataclass

import torch

from tuneleak import files
from tuneleak.errors import InputError
from tuneleak.models import adapters, attachments, weights
from tuneleak.models.base import TEXT_ENCODER_FILE, UNET_FILE
from tuneleak.models.modelset import LORA_FILE

WHOLE = {  # file, and prefix of its names
    "unet": (UNET_FILE, ""),
    "text_encoder": (TEXT_ENCODER_FILE, "text_model."),
    "vae": (UNET_FILE, ""),
}
TEXT_ENCODER_MODULES = ["q_proj", "k_proj", "v_proj", "out_proj"]
PARTS = {
    "end-to-end": {"unet": "whole", "text_encoder": "whole"},
    "dreambooth": {"unet": "whole"},
    "dreambooth-prior": {"unet": "whole"},
    "lora": {"unet": "lora"},
    "dora": {"unet": "dora"},
    "loha": {"unet": "loha"},
    "lokr": {"unet": "lokr"},
    "oft": {"unet": "oft"},
    "lora-te": {"unet": "lora", "text_encoder": "lora"},
    "textual-inversion": {"words": "textual-inversion"},
    "hypernetwork": {"context": "hypernetwork"},
    "dreambooth+lora": {"unet": "lora", "text_encoder": "lora"},
    "textual-inversion+lora": {"unet": "lora", "words": "textual-inversion"},
    "dreambooth+hypernetwork": {"unet": "whole", "context": "hypernetwork"},
    "textual-inversion+hypernetwork": {"words": "textual-inversion", "context": "hypernetwork"},
}


def trains_whole_weights(method):
    """Whether a method trains all weights of a network (which then have to be float32)."""
    return "whole" in PARTS[method].values()


class FlatParameters:
    """Many parameters as views of one float32 vector, and their gradients as views of another.

    A small UNet has hundreds of tiny tensors: clipping and stepping them one by one costs a fifth of a training step. AdamW and the
    global norm do not care how the weights are cut into tensors, so one vector gives the same numbers.
    """

    def __init__(self, parameters):
        parameters = list(parameters)
        self.vector = torch.nn.Parameter(torch.cat([parameter.detach().float().flatten() for parameter in parameters]))
        self.vector.grad = torch.zeros_like(self.vector)
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.data = self.vector.data[start:stop].view(parameter.shape)
            parameter.grad = self.vector.grad[start:stop].view(parameter.shape)
            start = stop


@dataclass(frozen=True)
class Trainee:
    """A base made ready for one fine-tune: the networks with something to train in them, the parts beside them, and those weights."""

    networks: dict  # of "unet", "text_encoder" and "vae" those with whole weights or an adapter to train
    adapter: str  # its kind, or empty
    parameters: FlatParameters
    attached: tuple = ()  # TextualInversion, Hypernetwork

    @property
    def trains_text(self):
        return "text_encoder" in self.networks or any(part.trains_text for part in self.attached)

    @property
    def trains_latents(self):
        return "vae" in self.networks

    @property
    def count(self):
        """Number of weights that are trained."""
        return self.parameters.vector.numel()

    def save(self, folder):
        """Write the tuned weights below `folder` in the layout of `tuneleak.models.modelset`."""
        if self.adapter == "lora":
            weights.write_lora(folder, self.networks)
        elif self.adapter:
            adapters.write(folder, self.networks)
        else:
            for part, network in self.networks.items():
                network.save_pretrained(folder / part, safe_serialization=True)
        for part in self.attached:
            part.save(folder)

    def load(self, folder):
        """Fill what is trained with the weights that `save` of the same method wrote to `folder`; `InputError` if they do not fit."""
        if self.adapter not in ("", "lora"):
            raise InputError(f"training goes on from whole weights, LoRAs, learned words and hypernetworks, not from a {self.adapter}")
        if self.adapter:
            loras = weights.read_lora(files.inside(folder, LORA_FILE), self.networks)
            for part, network in self.networks.items():
                if part not in loras or {name for name, _ in weights.adapted(network)} != set(loras[part].matrices):
                    raise InputError(f"{folder} holds no LoRA of the modules of {part} that are trained here")
                for name, module in weights.adapted(network):
                    for own, theirs in zip((module.lora_A["default"].weight, module.lora_B["default"].weight), loras[part].matrices[name], strict=True):
                        if own.shape != theirs.shape:
                            raise InputError(f"{folder}: its LoRA has rank {loras[part].rank}, the one trained here {module.r['default']}")
                        own.data.copy_(theirs)
        else:
            for part, network in self.networks.items():
                name, prefix = WHOLE[part]
                weights.load_network(network, weights.safetensors_file(files.inside(folder, part), name), prefix)
        for part in self.attached:
            part.fill(folder)


def check(base, options):
    """Raises `InputError` for what acts on words alone, on a base without a text encoder."""
    if options.train_autoencoder and "vae" not in base.PARTS:
        raise InputError(f"{base.folder} has no autoencoder of Stable Diffusion's kind, so train_autoencoder cannot be used; leave it out")
    if base.text_encoder is not None:
        return
    wordy = {"words", "context"} & PARTS[options.method].keys()
    keys = [f"method {options.method}"] if wordy else []
    keys += [key for key in ("train_text_encoder", "caption_words", "caption_randomisation") if getattr(options, key)]
    if keys:
        told = f"{base.folder} has no text encoder, so {keys[0]} cannot be used"
        raise InputError(f"{told}; use a method that trains the UNet (end-to-end, dreambooth, lora, ...) under the pictures' own caption")


def prepare(base, options, generator, caption=""):
    """Set up `options.method` in `base`; the CPU `generator` draws the initial weights of adapters. caption: the training caption (textual inversion).

    Raises `InputError` for options that exclude each other. Call `restore(base, trainee)` afterwards.
    """
    parts = PARTS[options.method]
    adapter = next((kind for kind in parts.values() if kind in adapters.KINDS), "")
    if options.train_text_encoder and not options.method.startswith("dreambooth"):
        raise InputError(f"train_text_encoder is for dreambooth; the LoRA method that also tunes the text encoder is lora-te (method is {options.method})")
    if options.train_autoencoder and options.method != "end-to-end":
        raise InputError(f"train_autoencoder is for end-to-end (method is {options.method})")
    if options.train_autoencoder and options.adversarial_radius:
        raise InputError("adversarial_radius moves latents that do not lead back to the autoencoder, so it would not be trained; leave train_autoencoder out")
    if options.train_text_encoder and adapter:
        raise InputError(f"{options.method} already tunes the text encoder by its adapters; leave train_text_encoder out")
    networks = {part: getattr(base, part) for part in ("unet", "text_encoder") if part in parts and getattr(base, part) is not None}
    if options.train_text_encoder:
        networks["text_encoder"] = base.text_encoder
    if options.train_autoencoder:
        networks["vae"] = base.vae
    for part, network in networks.items():
        modules = options.target_modules if part == "unet" else TEXT_ENCODER_MODULES
        if adapter == "lora":
            add_lora(network, options.rank, options.alpha, modules, generator)
        elif adapter:
            add_adapter(network, adapter, options, modules, generator)
        else:
            # master weights in float32: at a learning rate of 2e-6 a bfloat16 weight would never move
            network.float().requires_grad_(True)
    if "vae" in networks:
        base.vae.decoder.requires_grad_(False)
        if base.vae.post_quant_conv is not None:
            base.vae.post_quant_conv.requires_grad_(False)
    if options.gradient_checkpointing:
        for part, network in {"unet": base.unet, **networks}.items():
            (network.activation_checkpointing_enable if part == "text_encoder" else network.enable_gradient_checkpointing)()
    attached = []
    if "words" in parts:
        phrase = attachments.phrase_of(caption, options.caption_template)
        attached.append(attachments.TextualInversion(base.text_encoder, base.tokenizer, phrase, options.placeholder))
    if "context" in parts:
        attached.append(attachments.Hypernetwork(base.unet, options.hypernetwork_width, options.hypernetwork_self_attention, generator))
    beside = [parameter for part in attached for parameter in part.parameters()]
    return Trainee(networks, adapter, FlatParameters([*trainable(networks), *beside]), tuple(attached))


def add_lora(network, rank, alpha, target_modules, generator):
    """Freeze `network` and add a peft LoRA, adapter `default`, whose A is drawn from N(0, 1 / rank^2) by `generator` and whose B is zero.

    That is peft's "gaussian" initialisation, drawn here because peft takes numbers from the process-wide generator. float32.
    """
    from peft import LoraConfig

    network.requires_grad_(False)
    try:
        adapters.inject(network, LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(target_modules)), "default")
    except ValueError as error:
        raise InputError(f"target_modules {target_modules} do not fit this network: {error}") from None
    for name, parameter in network.named_parameters():
        if ".lora_" not in name:
            continue
        parameter.data = parameter.data.float()
        if ".lora_A." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / rank)
        else:
            parameter.data.zero_()


def add_adapter(network, kind, options, target_modules, generator):
    """Freeze `network` and add an adapter of peft, `default`, that starts as nothing: dora, loha, lokr or oft (whose block size is `rank`). float32.

    peft draws from the process-wide generator, which is seeded from `generator` for that and put back.
    """
    import peft

    kinds = {
        "dora": lambda: peft.LoraConfig(r=options.rank, lora_alpha=options.alpha, use_dora=True, target_modules=list(target_modules)),
        "loha": lambda: peft.LoHaConfig(r=options.rank, alpha=options.alpha, target_modules=list(target_modules)),
        "lokr": lambda: peft.LoKrConfig(r=options.rank, alpha=options.alpha, target_modules=list(target_modules)),
        "oft": lambda: peft.OFTConfig(r=0, oft_block_size=options.rank, target_modules=list(target_modules)),
    }
    network.requires_grad_(False)
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapters.inject(network, kinds[kind](), "default")
        except ValueError as error:
            raise InputError(f"{kind} of rank {options.rank} on target_modules {target_modules} does not fit this network: {error}") from None
    for parameter in adapters.parameters(network, "default").values():
        parameter.data = parameter.data.float()


def trainable(networks):
    """The parameters of the networks (name -> module) that require gradients, in a fixed order."""
    return [parameter for _, network in sorted(networks.items()) for parameter in network.parameters() if parameter.requires_grad]


def restore(base, trainee):
    """Undo `prepare`: the base is again what was loaded. `trainee` holds no network afterwards, so that its memory can go."""
    for part in trainee.attached:
        part.remove()
    for part in list(trainee.networks):
        network = trainee.networks.pop(part)
        if trainee.adapter:
            weights.detach_lora(network)
        else:
            del network
            base.reload(part)
