"""The verb `cards`: model cards, the data card of the population, and contact sheets, written from what was measured."""

from pathlib import Path

import numpy as np
import pandas as pd

from tuneleak import files
from tuneleak.data import avatars, population
from tuneleak.data.imageset import ImageSet, as_tensor, from_tensor
from tuneleak.options import PopulationOptions

PARTS = {
    "autoencoder": "AutoencoderKL (diffusers). Maps 64 px pictures to 8x8 latents; shared by every base and frozen.",
    "text-encoder": "CLIPTextModel and CLIPTokenizer (transformers): the text tower of a CLIP trained on public pictures, the instrument photographs and "
    "their captions; shared by every base and frozen. Neither fold P nor fold Q was seen.",
    "bases/H1": "UNet2DConditionModel (diffusers), two blocks of 64 channels. Trained on public faces, public artists and fold P of the named people, each "
    "photograph of fold P repeated 1, 4 or 16 times by lot.",
    "bases/H1-twin": "The same as H1 in everything but the fold: it trained on fold Q, so every named photograph is a member of one of the two.",
    "bases/D1": "UNet2DModel (diffusers), a class-conditional DDPM of pixels: the same pictures and fold as H1, but neither autoencoder nor text; its classes "
    "are the names in captions (`classes.json`).",
    "embedders/copy-a": "Copy embedder of the clustering (stands in for SSCD).",
    "embedders/copy-b": "Copy embedder of the scores: other seed and width than copy-a.",
    "embedders/identity-a": "Identity embedder that attacks may use: trained on the even half of the public faces.",
    "embedders/identity-b": "Identity embedder of the reports: other seed, width and people (the odd half) than identity-a.",
    "embedders/factors": "Reads the true factors of a face; behind leaked bits and the checks of captions.",
    "embedders/clip": "CLIP (open_clip, small configuration): how well a picture follows its caption; other seed than the text encoder's.",
}


def cards(base, resources, data, preconditions, options: PopulationOptions):
    """Write `MODEL_CARD.md`, `DATA_CARD.md` and `sheets/*.png` into the folder `resources`.

    base: pipeline folder behind the samples. data: folder of rendered sets. preconditions: the table of the verb of that name.
    """
    resources = Path(resources)
    measured = pd.read_csv(preconditions, keep_default_na=False)
    files.write_text(resources / "MODEL_CARD.md", _model_card(resources, measured))
    files.write_text(resources / "DATA_CARD.md", _data_card(options))
    _sheets(base, data, resources / "sheets")
    _nearest(base, resources, data, resources / "sheets" / "nearest.png")
    for curve in sorted(resources.glob("bases/*/curve.csv")):
        _draw_curve(pd.read_csv(curve), resources / "sheets" / f"curve-{curve.parent.name}.png")


def _model_card(resources, measured):
    lines = [
        "# Model card: the embedded world's models",
        "",
        "Small models of drawings of people who do not exist, made to study mechanisms of leakage on two processor cores. They are of no use for",
        "anything else. Weights are fp16 safetensors under the Apache-2.0 licence of this project; `SHA256SUMS` lists their digests, and",
        "`make resources` rebuilds them.",
        "",
        "## Parts",
        "",
        "| part | what it is | parameters | steps | seconds | on | trained on |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, text in PARTS.items():
        meta = resources / part / "config.json.meta.json"
        if not meta.is_file():
            continue
        facts = files.read_json(meta)
        names, fold = [Path(folder).name for folder in facts["images"]], facts["options"].get("fold")  # a base is given both folds and takes one
        trained_on = ", ".join(name for name in names if not fold or not name.startswith("named-") or name == f"named-{fold.lower()}")
        seconds = pd.read_csv(resources / part / "train.csv").seconds.iloc[-1]
        machine = facts.get("machine", {})
        accelerator = machine.get("accelerator", "cpu")
        where = f"{machine.get('cores', '?')} cores" if accelerator == "cpu" else accelerator
        cells = [f"`{part}`", text, facts["parameters"], facts["options"]["steps"], f"{seconds:.0f}", where]
        lines.append(f"| {' | '.join(map(str, cells))} | {trained_on} ({facts['pictures']} pictures) |")
    lines += [
        "",
        "## Preconditions, as measured",
        "",
        "On pictures that the part has not seen. `bar` is what the experimental protocol asks for; where it is not met,",
        "studies that lean on it are noisier than planned.",
        "",
    ]
    lines += ["| part | measure | value | interval | n | bar | met |", "|---|---|---|---|---|---|---|"]
    for row in measured.itertuples():
        interval = "" if row.ci_low == row.value else f"{float(row.ci_low):z.3f} to {float(row.ci_high):z.3f}"
        met = {"": "", "True": "yes", "False": "**no**"}[str(row.met)]
        lines.append(f"| {row.part} | {row.measure} | {float(row.value):z.3f} | {interval} | {row.n} | {row.bar} | {met} |")
    lines += [
        "",
        "`sheets/` shows reconstructions beside originals, samples of the base beside photographs it trained on and photographs it did not (named.png),",
        "samples above the nearest photograph it trained on and the nearest it did not (nearest.png), and, of bases that were traced,",
        "training curves (curve-*.png).",
    ]
    return "\n".join(lines) + "\n"


def _data_card(options):
    lines = [
        "# Data card: the population",
        "",
        "Every picture is drawn by DiceBear from a configuration (`population` in config.yaml) with pinned package versions; nobody in it exists.",
        f"An identity is one of {2 ** population.identity_bits():.0f} attribute combinations ({population.identity_bits():.1f} bits",
        "that a caption can name) plus the exact shades of three colours. No two people share a combination;",
        "photographs of one person have pairwise distinct factor tuples and are assigned to folds by a coin.",
        "",
        "| set | people or artists | pictures | seen by |",
        "|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in _sets(options)),
        "",
        "## Credits",
        "",
        "| style | used as | artist | source | licence |",
        "|---|---|---|---|---|",
    ]
    uses = {avatars.FACE_STYLE: "faces"} | dict.fromkeys(population.PUBLIC_STYLES, "public artist") | dict.fromkeys(population.PRIVATE_STYLES, "private artist")
    for style, use in (uses | {style: name for name, style in population.DP_STYLES.items()}).items():
        credit = avatars.credit(style)
        lines.append(f"| {style} | {use} | {credit['creator']} | [{credit['source']}]({credit['url']}) | [{credit['licence']}]({credit['licence_url']}) |")
    lines += [
        "",
        "Autoencoder training also uses crops of the photographs that scikit-image carries (see its own data licence notes); none of them is shipped here.",
    ]
    return "\n".join(lines) + "\n"


def _sets(options):
    """(set, people or artists, pictures, seen by) of the population."""
    o, per_private = options, options.private_pool + options.private_heldout
    faces, everyone = o.public_identities, "autoencoder, embedders, UNets"
    yield "public-faces", str(faces), str(faces * o.public_photographs), everyone
    yield "public-twins", "the same", str(faces), "copy embedders and factor reader (hard negatives)"
    yield "public-artists", str(o.public_artists), str(o.public_artists * o.public_pictures), everyone
    yield "named-p, named-q", str(o.named_identities), f"{o.named_identities * o.named_photographs} each", "UNets only, each its own half"
    yield "instrument", f"the same {o.named_identities}", str(o.named_identities * o.instrument_photographs), "CLIP models; fidelity references; control"
    yield "private-identities", f"{o.private_identities} ({o.tune_identities} tune)", str(o.private_identities * per_private), "fine-tunes only"
    yield "private-artists", f"{o.private_artists} ({o.tune_artists} tune)", str(o.private_artists * per_private), "fine-tunes only"
    yield "lora-train, lora-test", f"{o.lora_train_identities}, {o.lora_test_identities}", f"{o.lora_photographs} each", "fine-tunes only"
    yield "distractors", str(o.distractor_identities), "1 each", "nothing"
    yield "dp-near, dp-far, dp-tuning", ", ".join(population.DP_STYLES.values()), f"{o.dp_train} + {o.dp_test} each", "training under differential privacy only"


def sheet(rows, path, scale=2):
    """Save a contact sheet: `rows` is a list of uint8 arrays `(n, h, w, 3)`, one line each, enlarged `scale` times without smoothing."""
    from PIL import Image

    width = max(len(row) for row in rows)
    padded = [np.concatenate([row, np.full((width - len(row), *row.shape[1:]), 255, np.uint8)]) for row in rows]
    picture = Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in padded], 0))
    with files.atomic(path) as temporary:
        picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(temporary, "PNG", optimize=True)


def _sheets(base, data, out):
    import torch

    from tuneleak.metrics.bases import generate
    from tuneleak.models.pipeline import load_base

    world = load_base(base, "cpu", "float32")
    faces, artists = (ImageSet.load(f"{data}/{name}").pixels() for name in ("private-identities", "private-artists"))
    rows = []
    for pixels in (faces[:: len(faces) // 10][:10], artists[:: len(artists) // 10][:10]):
        with torch.inference_mode():
            rows += [pixels, from_tensor(world.decode(world.encode_images(as_tensor(pixels))))]
    sheet(rows, out / "reconstructions.png")
    members, others = ImageSet.load(f"{data}/named-p"), ImageSet.load(f"{data}/named-q")
    people = list(dict.fromkeys(members.table.concept))[:10]
    trained, unseen = (np.stack([images.where(concept=person).pixels()[0] for person in people]) for images in (members, others))
    captions = [members.where(concept=person).table.caption[0] for person in people]
    with torch.inference_mode():
        drawn = [generate(world, captions, key=f"sheet-{number}") for number in range(3)]
    sheet([trained, unseen, *drawn], out / "named.png")


def _nearest(base, resources, data, path):
    """Samples of named people over the nearest member and the nearest held-out photograph of the person, by copy-b."""
    import torch

    from tuneleak.metrics import bases
    from tuneleak.models.embedders import load_embedder
    from tuneleak.models.pipeline import load_base

    world, copier = load_base(base, "cpu", "float32"), load_embedder(resources / "embedders" / "copy-b")
    sides = bases.named_photographs(base, data)
    people = np.unique(sides[0].concepts)[:10]
    captions = sides[0].table.groupby("concept").caption.first()[people]
    with torch.inference_mode():
        drawn = bases.generate(world, list(captions), key="nearest")
    features, rows = copier.embed(drawn), [drawn]
    for side in sides:
        known = copier.embed(side.pixels)
        similarity = np.where(side.concepts[None] == people[:, None], features @ known.T, -2)
        rows.append(side.pixels[similarity.argmax(1)])
    sheet(rows, path)


def _draw_curve(table, path):
    """A base's training curve: obedience, quality, and loss AUC by dose, against steps; bands are the intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3), layout="constrained")
    panels = figure.subplots(1, 3)
    groups = {
        "accuracy": ["caption accuracy", "name accuracy"],
        "KID": ["KID"],
        "loss AUC": sorted(table.measure[table.measure.str.startswith("loss")].unique()),
    }
    for panel, (label, measures) in zip(panels, groups.items(), strict=True):
        for measure in measures:
            part = table[table.measure == measure]
            panel.plot(part.step, part.value, marker="o", markersize=3, label=measure.removeprefix("loss AUC, "))
            panel.fill_between(part.step, part.ci_low, part.ci_high, alpha=0.15)
        panel.set(xlabel="optimiser step", ylabel=label)
        panel.legend(frameon=False, fontsize=8)
    with files.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
