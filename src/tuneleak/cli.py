"""The command line: one verb per stage. Each verb is one Python function; `tuneleak VERB --help` lists its files and its knobs."""

from tuneleak.command import Argument, Verb, build_parser, run
from tuneleak.options import (
    AutoencoderOptions,
    BaseOptions,
    CollectOptions,
    EmbedderOptions,
    EvaluateOptions,
    ExtractionOptions,
    FinetuneOptions,
    ImportOptions,
    MembershipOptions,
    PopulationOptions,
    SizeOptions,
    SynthesizeOptions,
    TransformOptions,
    UtilityOptions,
    WeightsRunOptions,
    WeightsTrainOptions,
)

IMAGES = Argument("--images", "image set: a folder with manifest.csv")
IMAGE_SETS = Argument("--images", "image sets: folders with manifest.csv", many=True)
BASE = Argument("--base", "pipeline folder of the pretrained base model")
MODELS = Argument("--models", "model set: a folder with manifest.csv")
OUT = Argument("--out", "folder to write")
OUT_FILE = Argument("--out", "file to write")
DEVICE = Argument("--device", "auto, cpu, cuda or mps (default: auto)", required=False, kind=str)
DTYPE = Argument("--dtype", "float32 or bfloat16, of the networks only (default: float32)", required=False, kind=str)
WORLD = Argument("--world", "name of the world, noted in the tables", kind=str)
START = Argument("--start", "first concept of the split (default: 0)", required=False, kind=int)
STOP = Argument("--stop", "concept after the last (default: all)", required=False, kind=int)
METRICS = Argument("--metrics", "metrics.csv of a run")
MATCHES = Argument("--matches", "matches.csv of extraction attacks", many=True)
REFERENCE = Argument("--reference", "recorded runs (paper/reference)")

VERBS = [
    Verb(
        "render",
        "Draw one set of the embedded world's people or artists.",
        "tuneleak.data.render:render",
        [Argument("--name", "name of the set", kind=str), OUT],
        PopulationOptions,
    ),
    Verb(
        "import-images",
        "Turn a folder of pictures, or a fetched data set, into an image set.",
        "tuneleak.data.importing:import_images",
        [Argument("--source", "folder of pictures"), OUT],
        ImportOptions,
    ),
    Verb(
        "fetch",
        "Download a model or data set from the hub at a fixed revision (safe files only).",
        "tuneleak.data.hub:fetch",
        [
            Argument("--repository", "hub id, owner/name", kind=str),
            Argument("--revision", "full commit hash", kind=str),
            Argument("--kind", "model or dataset", kind=str),
            OUT,
        ],
    ),
    Verb("train-autoencoder", "Train the embedded world's autoencoder.", "tuneleak.models.autoencoder:train", [IMAGE_SETS, OUT], AutoencoderOptions),
    Verb(
        "train-embedder",
        "Train one measuring network, or the CLIP whose text tower the bases use.",
        "tuneleak.models.train_embedder:train",
        [IMAGE_SETS, OUT],
        EmbedderOptions,
    ),
    Verb(
        "train-base",
        "Train the UNet of an embedded base model.",
        "tuneleak.models.train_base:train",
        [IMAGE_SETS, Argument("--autoencoder", "folder of the autoencoder"), Argument("--text-encoder", "folder with text_encoder/ and tokenizer/"), OUT],
        BaseOptions,
    ),
    Verb(
        "assemble",
        "Put shipped parts together into a Stable Diffusion pipeline folder.",
        "tuneleak.models.assemble:assemble",
        [
            Argument("--autoencoder", "folder of the autoencoder"),
            Argument("--text-encoder", "folder with text_encoder/ and tokenizer/"),
            Argument("--unet", "folder of the UNet"),
            OUT,
        ],
    ),
    Verb(
        "promote",
        "Copy rebuilt models over the shipped ones.",
        "tuneleak.models.assemble:promote",
        [Argument("--built", "results/<preset>/resources"), Argument("--resources", "resources")],
    ),
    Verb(
        "preconditions",
        "Measure whether the embedded world is good enough for its studies.",
        "tuneleak.metrics.world:preconditions",
        [
            Argument("--base", "pipeline folders of the bases", many=True),
            Argument("--resources", "folder with embedders/"),
            Argument("--data", "folder with the rendered sets"),
            Argument("--photographs", "image set of real photographs", required=False),
            Argument("--limit", "pictures per measure (default: 500)", required=False, kind=int),
            OUT_FILE,
        ],
    ),
    Verb(
        "trace-base",
        "Measure the snapshots of a base's training: quality, obedience and memory against steps.",
        "tuneleak.metrics.curve:trace",
        [
            BASE,
            Argument("--unet", "folder of the trained UNet, with snapshots/"),
            Argument("--resources", "folder with embedders/"),
            Argument("--data", "folder with the rendered sets"),
            Argument("--captions", "pictures drawn per snapshot (default: 120)", required=False, kind=int),
            OUT_FILE,
        ],
    ),
    Verb(
        "finetune",
        "Fine-tune a base on a shard of concepts by one method.",
        "tuneleak.finetune.loop:finetune",
        [BASE, IMAGES, WORLD, Argument("--split", "tune or test", kind=str), START, STOP, OUT, DEVICE, DTYPE],
        FinetuneOptions,
    ),
    Verb(
        "attack extraction",
        "Generate with fine-tuned models, cluster, and match against their training pictures.",
        "tuneleak.attacks.extraction.run:extract",
        [
            MODELS,
            IMAGES,
            BASE,
            Argument("--copy-cluster", "copy embedder of the clustering"),
            Argument("--copy-score", "copy embedder of the scores"),
            Argument("--factors", "reader of true factors, for leaked bits", required=False),
            OUT,
            DEVICE,
            DTYPE,
        ],
        ExtractionOptions,
    ),
    Verb(
        "synthesize",
        "Let a model draw pictures of concepts it was trained on (a synthetic private set), or make a control.",
        "tuneleak.finetune.synthesize:synthesize",
        [
            Argument("--images", "image set that names the domains and their captions"),
            BASE,
            Argument("--reference", "image set of real pictures that are neither members nor held-outs", required=False),
            Argument("--models", "model set that draws instead of the base, one model per domain", required=False),
            Argument("--split", "split that the new set carries (default: test)", required=False, kind=str),
            START,
            STOP,
            OUT,
            DEVICE,
            DTYPE,
        ],
        SynthesizeOptions,
    ),
    Verb(
        "fidelity",
        "Measure how near self-made pictures are to real ones of the same domain.",
        "tuneleak.metrics.fidelity:fidelity",
        [
            Argument("--synthetic", "image sets made by `synthesize`", many=True),
            Argument("--reference", "image set of real pictures of the domains"),
            Argument("--copy-score", "copy embedder whose features KID compares"),
            Argument("--identity", "identity embedder"),
            Argument("--clip", "CLIP that compares pictures and captions"),
            OUT_FILE,
            Argument("--world", "name noted in the table (default: named)", required=False, kind=str),
            DEVICE,
        ],
    ),
    Verb(
        "attack membership",
        "Score pictures by how likely a model was trained on them, for the base and many fine-tuned models.",
        "tuneleak.attacks.membership.run:infer",
        [
            IMAGE_SETS,
            BASE,
            Argument("--models", "model sets: folders with manifest.csv (none: the base alone)", many=True, required=False),
            Argument("--members", "members.csv of the base: image_ids of what it was trained on", required=False),
            OUT_FILE,
            DEVICE,
            DTYPE,
        ],
        MembershipOptions,
    ),
    Verb(
        "collect-weights",
        "Train the LoRAs of many concepts side by side: a data set of weights.",
        "tuneleak.finetune.many:collect",
        [BASE, IMAGES, WORLD, Argument("--split", "tune or test (default: all)", required=False, kind=str), START, STOP, OUT, DEVICE, DTYPE],
        CollectOptions,
    ),
    Verb(
        "attack weights train",
        "Train an encoder of LoRA weights on models of public people.",
        "tuneleak.attacks.weights.train:train",
        [
            Argument("--models", "model sets: folders with manifest.csv", many=True),
            Argument("--images", "image set with the pictures of the models' people"),
            BASE,
            Argument("--embedder", "identity embedder A, the attacker's own"),
            Argument("--trunk", "CLIP text encoder of the paper's attack (default: the base's)", required=False),
            OUT,
            DEVICE,
            DTYPE,
        ],
        WeightsTrainOptions,
    ),
    Verb(
        "attack weights run",
        "Attack the LoRA weights of victims, beside controls and baselines.",
        "tuneleak.attacks.weights.run:run",
        [
            MODELS,
            Argument("--images", "image set with the victims' people"),
            Argument("--distractors", "image set of further people of the gallery"),
            BASE,
            Argument("--encoders", "folders of `attack weights train`", many=True),
            Argument("--identity-a", "identity embedder A"),
            Argument("--identity-b", "identity embedder B, which judges"),
            Argument("--copy-score", "copy embedder of the scores"),
            Argument("--second", "model set of the same people from other pictures", required=False),
            Argument("--factors", "reader of true factors, for leaked bits", required=False),
            OUT,
            DEVICE,
            DTYPE,
        ],
        WeightsRunOptions,
    ),
    Verb(
        "dataset-size",
        "Tell from LoRA weights how many pictures they were trained on.",
        "tuneleak.attacks.weights.dataset_size:dataset_size",
        [
            Argument("--models", "model sets: folders with manifest.csv", many=True),
            BASE,
            Argument("--steps", "what was the same for every number of pictures: total or per-image", kind=str),
            OUT_FILE,
        ],
        SizeOptions,
    ),
    Verb(
        "transform",
        "Change finished LoRA weights before they are published: noise, rounding, lower rank, other factors.",
        "tuneleak.defences.transforms:transform",
        [MODELS, BASE, OUT],
        TransformOptions,
    ),
    Verb(
        "utility",
        "Judge fine-tuned models by use: likeness to held-outs under the true caption, and denoising loss.",
        "tuneleak.finetune.utility:utility",
        [MODELS, IMAGES, BASE, Argument("--embedder", "folder of the embedder that measures likeness"), OUT_FILE, DEVICE, DTYPE],
        UtilityOptions,
    ),
    Verb(
        "calibrate",
        "Set the similarity threshold tau on tune concepts, by the rate of false matches against held-outs.",
        "tuneleak.metrics.finextract:calibrate",
        [
            IMAGES,
            Argument("--copy-score", "copy embedder of the scores"),
            Argument("--n-images", "training pictures per concept (N0)", kind=int),
            Argument("--world", "name of the world (default: the folder's)", required=False, kind=str),
            Argument("--split", "concepts to use (default: tune)", required=False, kind=str),
            START,
            STOP,
            OUT_FILE,
            DEVICE,
        ],
        EvaluateOptions,
    ),
    Verb(
        "evaluate finextract",
        "Turn matches into metrics with intervals and controls.",
        "tuneleak.metrics.finextract:evaluate",
        [MATCHES, Argument("--tau", "tau.json of each world", many=True, required=False), OUT_FILE],
        EvaluateOptions,
    ),
    Verb(
        "evaluate lora-weights",
        "Turn scores of the weights attacks into metrics with intervals and controls.",
        "tuneleak.metrics.lora_weights:evaluate",
        [
            Argument("--scores", "scores.csv of `attack weights run`", many=True),
            Argument("--sizes", "tables of `dataset-size`", many=True, required=False),
            OUT_FILE,
        ],
        EvaluateOptions,
    ),
    Verb("join-metrics", "Join metrics tables into one.", "tuneleak.metrics.join:join", [Argument("--metrics", "tables to join", many=True), OUT_FILE]),
    Verb(
        "figures finextract",
        "Draw the figures of the FineXtract study.",
        "tuneleak.report.figures_finextract:figures",
        [METRICS, Argument("--tuning", "metrics of the tune concepts"), MATCHES, IMAGE_SETS, OUT],
    ),
    Verb(
        "figures lora-weights",
        "Draw the figures of the weights study.",
        "tuneleak.report.figures_lora_weights:figures",
        [
            METRICS,
            Argument("--scores", "scores.csv of `attack weights run` on untouched weights, beside its pictures"),
            Argument("--images", "image set with the victims' people"),
            OUT,
        ],
    ),
    Verb("tables", "Write the tables of the paper.", "tuneleak.report.tables:tables", [METRICS, REFERENCE, OUT]),
    Verb(
        "claims",
        "Hold each claim against the row that answers it.",
        "tuneleak.report.claims:claims",
        [METRICS, Argument("--claims", "claims.yaml"), Argument("--preset", "name of the preset", kind=str), OUT_FILE],
    ),
    Verb(
        "paper",
        "Typeset the paper of a run; every number comes from a file.",
        "tuneleak.report.paper:paper",
        [
            METRICS,
            Argument("--claims", "claims.csv of the run"),
            Argument("--tables", "folder of the run's tables"),
            Argument("--figures", "folders of the run's figures, one for each system", many=True),
            REFERENCE,
            Argument("--sources", "folder of main.tex"),
            OUT_FILE,
            Argument("--benchmarks", "folder of Snakemake's benchmark files, for the cost table", required=False),
        ],
    ),
    Verb("verify", "Compare a run with the recorded one; exit code 1 lists rows that differ.", "tuneleak.report.verify:verify", [METRICS, REFERENCE, OUT_FILE]),
    Verb(
        "record",
        "Record a finished run under paper/reference.",
        "tuneleak.report.record:record",
        [METRICS, Argument("--benchmarks", "folder of Snakemake's benchmark files"), OUT, Argument("--claims", "claims.csv of the run", required=False)],
    ),
    Verb(
        "cards",
        "Write model cards, data card and contact sheets of the shipped models.",
        "tuneleak.report.cards:cards",
        [
            BASE,
            Argument("--resources", "folder of the models"),
            Argument("--data", "folder with the rendered sets"),
            Argument("--preconditions", "table of `preconditions`"),
        ],
        PopulationOptions,
    ),
    Verb(
        "schema",
        "Check that the JSON schema and the README's table agree with the configuration's types, or write them.",
        "tuneleak.report.schema:schema",
        [
            Argument("--root", "folder of the checkout (default: here)", required=False),
            Argument("--write", "write instead of checking", required=False, kind=bool),
        ],
    ),
    Verb(
        "budget",
        "Count the UNet calls of a preset before running it.",
        "tuneleak.budget:budget",
        [Argument("--configuration", "config.yaml (default: here)", required=False), Argument("--overlay", "overlay of a preset", required=False)],
    ),
    Verb(
        "unlock",
        "Free a folder that a killed Snakemake left locked, unless one is alive.",
        "tuneleak.unlock:unlock",
        [Argument("--folder", "working directory of Snakemake (default: here)", required=False)],
    ),
]


def main(argv=None):
    """Entry point of `tuneleak` and `python -m tuneleak`."""
    run(build_parser("tuneleak", "What does a shared, fine-tuned diffusion model give away about its training pictures?", VERBS), argv)
