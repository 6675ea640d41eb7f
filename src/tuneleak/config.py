"""config.yaml as one typed model, and the look-ups the workflow needs. Imports neither torch nor pandas."""

import json
import re
from typing import Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from tuneleak.errors import InputError
from tuneleak.options import (
    AblationEvaluateOptions,
    AggregateOptions,
    Attack,
    AuditOptions,
    AutoencoderOptions,
    BaseOptions,
    CaptionCondition,
    CaptionOptions,
    ClusterOptions,
    CollectOptions,
    Count,
    DpUtilityOptions,
    EmbedderOptions,
    EvaluateOptions,
    FinetuneOptions,
    Guidance,
    GuidedAttack,
    ImportOptions,
    MeanFeaturesOptions,
    MembershipOptions,
    Options,
    PeopleOptions,
    PerturbOptions,
    PopulationOptions,
    Positive,
    PrivateFinetuneOptions,
    Rate,
    RegenerationOptions,
    SampleOptions,
    ShakeEvaluateOptions,
    SizeOptions,
    SweepOptions,
    SynthesizeOptions,
    TransformOptions,
    UtilityOptions,
    Variant,
    VariantsOptions,
    WeightsRunOptions,
    WeightsTrainOptions,
)


class Pathvars(Options):
    """Where a preset writes."""

    results: str = Field(description="root of everything this preset makes")
    logs: str = Field(description="one log per job")
    benchmarks: str = Field(description="one benchmark per job")


def _source_is_complete(source, kinds_with_path):
    if source.kind in kinds_with_path and not source.path:
        raise ValueError(f"{source.name!r} is of kind {source.kind!r} and needs `path`")
    if source.kind == "hub" and not source.repository:
        raise ValueError(f"{source.name!r} is of kind 'hub' and needs `repository`, a hub id such as owner/name")
    if source.kind == "hub" and not re.fullmatch(r"[0-9a-f]{40}", source.revision):
        raise ValueError(f"{source.name!r}: `revision` must be a full commit hash (40 hexadecimal digits), because branches and tags move")


class ImageSource(Options):
    """Where an ImageSet comes from."""

    name: str = Field(description="name of the image set")
    kind: Literal["population", "folder", "hub"] = Field(description="population: rendered; folder: local pictures; hub: a data set fetched by id")
    path: str = Field("", description="the folder (folder)")
    repository: str = Field("", description="hub id (hub)")
    revision: str = Field("", description="full commit hash (hub)")
    options: ImportOptions = Field(ImportOptions(), description="how pictures are read (folder, hub)")

    @model_validator(mode="after")
    def _complete(self):
        _source_is_complete(self, {"folder"})
        return self


class BaseSource(Options):
    """Where a base model comes from."""

    name: str = Field(description="name of the base")
    kind: Literal["assembled", "folder", "hub"] = Field(description="assembled: from the shipped parts; folder: a local pipeline folder; hub: fetched by id")
    path: str = Field("", description="shipped UNet (assembled) or pipeline folder (folder)")
    repository: str = Field("", description="hub id (hub)")
    revision: str = Field("", description="full commit hash (hub)")

    @model_validator(mode="after")
    def _complete(self):
        _source_is_complete(self, {"assembled", "folder"})
        return self


class Instruments(Options):
    """The networks that measure; attacks cluster with one copy embedder and are scored by the other."""

    copy_cluster: str = Field(description="copy embedder of the clustering")
    copy_score: str = Field(description="copy embedder of the scores")
    factors: str = Field("", description="reader of true factors (leaked bits); empty: leaked bits are not reported")


class Shipped(Options):
    """Parts of the embedded pipelines, shared by all its bases."""

    autoencoder: str = Field(description="folder of the autoencoder")
    text_encoder: str = Field(description="folder with text_encoder/ and tokenizer/")


class World(Options):
    """A kind of concept to fine-tune on: people, or artists."""

    name: str = Field(description="name of the world")
    base: str = Field(description="base that is fine-tuned")
    images: str = Field(description="image set with the private pictures")
    tune_concepts: Positive = Field(description="concepts on which knobs are chosen")
    test_concepts: Positive = Field(description="concepts that numbers are reported on")
    factors: bool = Field(False, description="whether true factors are known, so that leaked bits can be measured")


class Recipe(Options):
    """The fine-tuning recipe of one method in one world; its length was chosen by utility, never by attack success."""

    world: str = Field(description="name of the world")
    options: FinetuneOptions = Field(description="the knobs of the method")


class FrozenGuidance(Options):
    """Guidance values frozen after tuning on tune concepts."""

    world: str = Field(description="name of the world")
    method: str = Field(description="fine-tuning method")
    attack: GuidedAttack = Field(description="the attack")
    guidance: Guidance = Field(description="the frozen values")


class GuidanceGrid(Options):
    """What is tried on the tune concepts; every attack gets equally many points."""

    attack: GuidedAttack = Field(description="the attack")
    guidance: list[Guidance] = Field(description="the points of the grid")


class Ablations(Options):
    """Ablations and defences of the FineXtract study, in one of its worlds."""

    world: str = Field(description="name of the world")
    methods: list[str] = Field(description="fine-tuning methods whose recipes are varied (none: not run)")
    tune_concepts: Positive = Field(description="tune concepts on which a weight and a rule for it are chosen")
    test_concepts: Positive = Field(description="test concepts that numbers are reported on")
    shard_concepts: Positive = Field(description="concepts per job")
    variants: list[Variant] = Field(description="what is varied; `reference` must be among them")
    sweep: SweepOptions = Field(description="the attack; its guidance is the grid of weights, before which the frozen one of the study is put")
    utility: UtilityOptions = Field(description="how the use of each variant is measured")

    def variants_of(self, method, split):
        """The variants of a method; on tune concepts the reference alone, and any other training length."""
        return [item for item in self.variants if method in (item.methods or [method]) and (split == "test" or item.name == "reference")]

    def sweep_of(self, method, frozen):
        """The sweep of a method: the frozen guidance first; only the reference and other training lengths get the whole grid."""
        guidance = [frozen, *(point for point in self.sweep.guidance if point != frozen)]
        only_first = [item.name for item in self.variants if item.name != "reference" and item.axis != "steps"]
        return self.sweep.model_copy(update={"guidance": guidance, "only_first": only_first})

    def training(self, method, recipe, split):
        """The options of `finetune-variants`: one model per concept, of the recipe's first seed."""
        return VariantsOptions(recipe=recipe.model_copy(update={"seeds": recipe.seeds[:1]}), variants=self.variants_of(method, split))

    def steps(self, reference):
        """{variant: steps per picture} of the axis `steps`; `reference`: those of the reference."""
        return {"reference": float(reference)} | {item.name: item.value for item in self.variants if item.axis == "steps"}

    def evaluate(self, options, recipes):
        """The options of `evaluate ablations`; recipes: of its methods."""
        steps = {name: value for recipe in recipes for name, value in self.steps(recipe.steps_per_image).items()}
        return AblationEvaluateOptions(**options.model_dump(), steps=steps)

    @model_validator(mode="after")
    def _consistent(self):
        names = [item.name for item in self.variants]
        if "reference" not in names:
            raise ValueError("variants: `reference` is missing; every other variant is compared with it")
        for item in self.variants:
            if names.count(item.name) > 1:
                raise ValueError(f"variants: the name {item.name!r} occurs twice")
            unknown = sorted(set(item.change) - set(FinetuneOptions.model_fields))
            if unknown:
                raise ValueError(f"variants: {item.name!r} changes {unknown[0]!r}, which is no knob of fine-tuning")
            FinetuneOptions(**item.change)
            if item.name == "reference" and (item.change or item.transform.kind != "none"):
                raise ValueError("variants: `reference` must not change anything")
        return self


class CaptionRecipe(Options):
    """A fine-tune whose captions are drawn, so that reading them from the weights can be judged."""

    name: str = Field(description="label of the training in the tables, such as adamw or sgd; with the method it is unique")
    world: str = Field(description="world whose pictures are trained on")
    options: FinetuneOptions = Field(description="the recipe; caption_words says how long the captions are")


class Attacker(Options):
    """What an attacker of FineXtract needs to know, and knows afterwards."""

    worlds: list[str] = Field(description="worlds of the study (none: it is not run)")
    recipes: list[CaptionRecipe] = Field(description="fine-tunes under drawn captions")
    concepts: Positive = Field(description="test concepts of each of those recipes")
    recover: CaptionOptions = Field(CaptionOptions(), description="reading captions from weights")
    conditions: list[CaptionCondition] = Field(description="what is known of the caption in extraction; `known` must be there")
    generations_per_image: Positive = Field(description="generations N as a multiple of N0 under each condition")
    people: PeopleOptions = Field(PeopleOptions(), description="membership of people")

    @model_validator(mode="after")
    def _complete(self):
        if "known" not in self.conditions or len(set(self.conditions)) < len(self.conditions):
            raise ValueError(f"conditions: each once, and `known` among them, not {self.conditions}")
        if any(not recipe.options.caption_words for recipe in self.recipes):
            raise ValueError("recipes: each needs caption_words, the lengths of the captions that are drawn")
        names = [(recipe.world, recipe.options.method, recipe.name) for recipe in self.recipes]
        if len(set(names)) < len(names):
            raise ValueError("recipes: two recipes have one world, method and name")
        for recipe in self.recipes:
            if not re.fullmatch(r"[a-z0-9-]+", recipe.name):
                raise ValueError(f"recipes: the name {recipe.name!r} becomes a folder; use small letters, digits and hyphens only")
        return self


class Finextract(Options):
    """The FineXtract study."""

    attacks: list[Attack] = Field(description="attacks run on test concepts")
    shard_concepts: Positive = Field(description="concepts per fine-tuning and attack job")
    generations_per_image: Positive = Field(description="generations N as a multiple of the training pictures N0")
    tune_generations_per_image: Positive = Field(description="the same while tuning")
    steps: Positive = Field(description="sampler steps")
    sampler: Literal["ddim", "finextract-compat"] = Field(description="deterministic DDIM, or the public code's time list")
    batch: Positive = Field(description="generations in one batch")
    cluster: ClusterOptions = Field(description="clustering of the generations")
    control_draws: Positive = Field(description="random draws behind each size-matched control")
    guidance: list[FrozenGuidance] = Field(description="frozen guidance values")
    grid: list[GuidanceGrid] = Field(description="grid tried on tune concepts")
    evaluate: EvaluateOptions = Field(description="metrics and intervals")
    ablations: Ablations = Field(description="ablations and defences")
    attacker: Attacker = Field(description="captions, certainty and people")


class DpWorld(Options):
    """A private set to train on under differential privacy, and what is public about it."""

    name: str = Field(description="name of the world")
    base: str = Field(description="public base that is fine-tuned")
    images: str = Field(description="image set with folds train (private) and test (real held-outs, for utility)")
    prompts: dict[str, str] = Field(description="public grammar: label -> caption; the public list of classes")
    endings: list[str] = Field([], description="further words of the public grammar, appended in turn when a text-conditional model is sampled")


class DpRecipe(Options):
    """How one trained set is trained; tuned on the public tuning style with one budget for all, then frozen."""

    name: str = Field(description="name of the method: attention, all, lora, ...")
    worlds: list[str] = Field([], description="worlds it runs in (empty: all)")
    options: PrivateFinetuneOptions = Field(description="the knobs; prompts and epsilon are filled in")


class MeanFeaturesRecipe(Options):
    """How a generator is trained to a noisy mean of public features (DP-MEPF)."""

    name: str = Field(description="name of the method")
    worlds: list[str] = Field([], description="worlds it runs in (empty: all)")
    options: MeanFeaturesOptions = Field(MeanFeaturesOptions(), description="the knobs; prompts and epsilon are filled in")


class AggregateRecipe(Options):
    """How textual inversions of single pictures are averaged (DPAgg-TI)."""

    name: str = Field(description="name of the method")
    worlds: list[str] = Field([], description="worlds it runs in (empty: all)")
    options: AggregateOptions = Field(AggregateOptions(), description="the knobs; prompts and epsilon are filled in")


class DpAudit(Options):
    """One audit."""

    name: str = Field(description="name of the audit")
    world: str = Field(description="world whose pictures stand beside the canaries")
    epsilon: Rate = Field(description="claimed epsilon")
    training: PrivateFinetuneOptions = Field(description="the audited training; prompts and epsilon are filled in")
    options: AuditOptions = Field(description="canaries and guesses")


class DpLdm(Options):
    """The DP-LDM study."""

    embedder: str = Field(description="network behind the Frechet distance")
    worlds: list[DpWorld] = Field(description="private sets")
    recipes: list[DpRecipe] = Field(description="methods")
    mean_features: list[MeanFeaturesRecipe] = Field([], description="compared with: DP-MEPF, one release and a generator trained from scratch")
    perceptual: str = Field("", description="public network whose features DP-MEPF averages; never the one behind the Frechet distance")
    aggregates: list[AggregateRecipe] = Field([], description="compared with: DPAgg-TI, averaged textual inversions")
    epsilons: list[Rate] = Field(description="budgets; 0, the public base, is always reported")
    noiseless: bool = Field(description="also train with clipping but no noise (epsilon is infinite)")
    sample: SampleOptions = Field(description="pictures drawn from each model; prompts are filled in")
    utility: DpUtilityOptions = Field(description="what they are good for")
    audits: list[DpAudit] = Field(description="audits, in runs of their own")

    def cells(self):
        """(world, recipe, epsilon name) of every training: budgets ascending, `inf` last."""
        names = [f"{epsilon:g}" for epsilon in sorted(self.epsilons)] + (["inf"] if self.noiseless else [])
        every = [*self.recipes, *self.mean_features, *self.aggregates]
        return [(world, recipe, name) for world in self.worlds for recipe in every if world.name in (recipe.worlds or [world.name]) for name in names]

    def training(self, world, recipe, epsilon):
        """The options of one cell; the budget and the public grammar are filled in."""
        change = {"noiseless": True} if epsilon == "inf" else {"epsilon": float(epsilon)}
        privacy = recipe.options.privacy.model_copy(update=change)
        return recipe.options.model_copy(update={"privacy": privacy, "prompts": world.prompts})

    @model_validator(mode="after")
    def _consistent(self):
        worlds = {world.name for world in self.worlds}
        every = [*self.recipes, *self.mean_features, *self.aggregates]
        for group, items in {"worlds": self.worlds, "recipes": every, "audits": self.audits}.items():
            names = [item.name for item in items]
            for name in names:
                if names.count(name) > 1 or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):
                    raise ValueError(f"dp_ldm.{group}: {name!r} must be unique and becomes a folder; use letters, digits, dots and hyphens only")
        for name in [name for recipe in every for name in recipe.worlds] + [audit.world for audit in self.audits]:
            if name not in worlds:
                raise ValueError(f"dp_ldm: {name!r} is not in dp_ldm.worlds")
        for world in worlds:
            sets = [(item.options.trainable, *item.options.blocks) for item in self.recipes if world in (item.worlds or [world])]
            if len(set(sets)) < len(sets):
                raise ValueError(f"dp_ldm.recipes: two recipes train the same weights in world {world!r}; tables know a method by its weights")
            for group, items in {"mean_features": self.mean_features, "aggregates": self.aggregates}.items():
                if sum(world in (item.worlds or [world]) for item in items) > 1:
                    raise ValueError(f"dp_ldm.{group}: two entries in world {world!r}; tables know the method by one name")
        if self.mean_features and (not self.perceptual or self.perceptual == self.embedder):
            raise ValueError("dp_ldm.perceptual: mean_features needs a public network, and another than the one behind the Frechet distance")
        if len({f"{epsilon:g}" for epsilon in self.epsilons}) < len(self.epsilons):
            raise ValueError("dp_ldm.epsilons: a budget occurs twice")
        return self


class ShakeBase(Options):
    """A base whose pretraining pictures are known."""

    name: str = Field(description="name of the base")
    members: str = Field("", description="CSV whose column image_id lists what it was trained on")
    member_images: str = Field("", description="instead: image set that it was trained on, all of it")
    pooled: bool = Field(True, description="whether it enters the rows of all bases (false: reported alone, as a base of another width)")

    @model_validator(mode="after")
    def _one_list(self):
        if bool(self.members) == bool(self.member_images):
            raise ValueError(f"base {self.name!r} needs either `members` or `member_images`, so that members are known")
        return self


class ShakeSetting(Options):
    """One point of a study: the recipe of a method with something changed, tables call it `<study>=<value>`."""

    study: str = Field(pattern=r"^[a-z]+(-[a-z]+)*$", description="name of the study: rank, size, rounds, ...")
    value: str = Field(pattern=r"^[A-Za-z0-9.]+$", description="this point of it")
    method: str = Field(description="method whose recipe is changed")
    finetune: dict[str, JsonValue] = Field({}, description="knobs of the fine-tune that differ from the recipe")
    synthesize: dict[str, JsonValue] = Field({}, description="knobs of the self-made set that differ (none: the common set is used)")
    after: str = Field("", description="go on from the models of this point of the study, which also draw the set; self: from the recipe's own models")

    @property
    def name(self):
        """Name of its folder."""
        return f"{self.study}-{self.value}-{self.method}"


class ShakeGaussian(Options):
    """The Gaussian attack in the Shake-to-Leak study: random perturbation of a base's weights."""

    perturb: PerturbOptions = Field(PerturbOptions(), description="noise and draws")
    domains: Count = Field(0, description="domains judged, from first_domain on (0: the attack is not run)")


class ShakeRegeneration(Options):
    """Extraction of pretraining pictures in the Shake-to-Leak study."""

    methods: list[str] = Field([], description="methods whose models are drawn from beside the base (none: extraction is not run)")
    tune_domains: Count = Field(0, description="domains, all before first_domain, on which distances are calibrated (0: only the fixed distances are used)")
    options: RegenerationOptions = Field(RegenerationOptions(), description="drawing and judging")


class ShakeToLeak(Options):
    """The Shake-to-Leak study: does fine-tuning on self-made pictures amplify leakage of the pretraining set?"""

    world: str = Field("named", description="what the domains are called in the tables")
    bases: list[ShakeBase] = Field(description="bases, best as twins that exchange members and held-outs (none: the study is not run)")
    images: list[str] = Field(description="image sets with members and held-outs of every domain")
    reference: str = Field("", description="image set of real pictures of the domains that are neither (fidelity, control `instrument`)")
    first_domain: Count = Field(0, description="first domain that numbers are reported on; those before it are for choosing recipes")
    domains: Positive = Field(description="domains that numbers are reported on")
    shard_domains: Positive = Field(description="domains per fine-tuning and attack job")
    synthesize: SynthesizeOptions = Field(SynthesizeOptions(), description="the self-made sets")
    methods: list[FinetuneOptions] = Field(description="fine-tuning methods and their recipes")
    controls: list[Literal["unrelated", "another", "instrument", "noise", "lr0"]] = Field(
        description="sets fine-tuned on instead; lr0: the self-made, at rate 0"
    )
    control_methods: list[str] = Field(description="methods that the controls are run with")
    membership: MembershipOptions = Field(MembershipOptions(), description="the attacks")
    blind: str = Field("", description="embedder of the model-blind control; empty: none")
    identity: str = Field("", description="identity embedder of the fidelity; empty: fidelity is not measured")
    clip: str = Field("", description="CLIP of the fidelity")
    study_domains: Positive = Field(8, description="domains of further_methods and studies, from first_domain on")
    further_methods: list[FinetuneOptions] = Field([], description="methods and recipes that are run on study_domains only")
    studies: list[ShakeSetting] = Field([], description="what is changed about recipes, one point after another")
    set_losses: MembershipOptions = Field(
        MembershipOptions(attacks=["loss"], loss_timesteps=[100, 300, 500, 700, 900], loss_draws=1),
        description="denoising loss of the self-made sets along the study `steps`, at which methods are compared",
    )
    gaussian: ShakeGaussian = Field(ShakeGaussian(), description="the Gaussian attack")
    regeneration: ShakeRegeneration = Field(ShakeRegeneration(), description="extraction of pretraining pictures")
    evaluate: ShakeEvaluateOptions = Field(ShakeEvaluateOptions(), description="metrics and intervals")

    @model_validator(mode="after")
    def _fits_together(self):
        names = [options.method for options in self.methods]
        if self.regeneration.tune_domains > self.first_domain:
            raise ValueError(f"regeneration.tune_domains: there are {self.first_domain} domains before first_domain, not {self.regeneration.tune_domains}")
        if set(self.regeneration.methods) - set(names):
            raise ValueError(f"regeneration.methods: {sorted(set(self.regeneration.methods) - set(names))[0]!r} is not among `methods`")
        if len(set(names)) < len(names):
            raise ValueError(f"methods: {next(name for name in names if names.count(name) > 1)!r} occurs twice")
        unknown = sorted(set(self.control_methods) - set(names))
        if unknown:
            raise ValueError(f"control_methods: {unknown[0]!r} is not among `methods`")
        for options in [*self.methods, *self.further_methods]:
            if options.images_per_concept > self.synthesize.count:
                raise ValueError(
                    f"methods: {options.method!r} trains on {options.images_per_concept} pictures, but synthesize.count is {self.synthesize.count}"
                )
        self._studies_fit_together(names)
        if not self.reference and (self.identity or self.synthesize.mixed or "instrument" in self.controls):
            raise ValueError("reference is needed for identity (fidelity), for synthesize.mixed and for the control `instrument`")
        if bool(self.identity) != bool(self.clip):
            raise ValueError("identity and clip belong together: give both, or neither for no fidelity")
        return self

    def _studies_fit_together(self, names):
        further = [options.method for options in self.further_methods]
        if set(further) & set(names) or len(set(further)) < len(further):
            raise ValueError("further_methods: each method stands there once, and not in `methods` too")
        known = [point.name for point in self.studies]
        if len(set(known)) < len(known):
            raise ValueError(f"studies: {next(name for name in known if known.count(name) > 1)!r} occurs twice")
        if (self.studies or further) and self.study_domains > min(self.shard_domains, self.domains):
            raise ValueError("study_domains must be at most domains and shard_domains, because studies go on from the models of the first shard")
        for point in self.studies:
            if point.method not in [*names, *further]:
                raise ValueError(f"studies: {point.name!r} changes the recipe of a method that is not listed")
            if point.after not in ("", "self") and f"{point.study}-{point.after}-{point.method}" not in known[: known.index(point.name)]:
                raise ValueError(f"studies: {point.name!r} goes on from {point.after!r}, which does not stand before it")
            if point.after == "self" and point.method not in names:
                raise ValueError(f"studies: {point.name!r} goes on from a method that is not among `methods`")
            try:
                trained, drawn = self.trained(point), self.drawn(point) or self.synthesize
            except ValidationError as error:
                found = error.errors()[0]
                raise ValueError(f"studies: {point.name!r}: {'.'.join(map(str, found['loc']))}: {found['msg']}") from None
            if trained.images_per_concept > drawn.count:
                raise ValueError(f"studies: {point.name!r} trains on {trained.images_per_concept} pictures, but its set has {drawn.count}")
            if drawn.mixed and not self.reference:
                raise ValueError(f"studies: {point.name!r} mixes real pictures in, which needs `reference`")

    def recipe(self, method):
        """The recipe of a method."""
        return one([*self.methods, *self.further_methods], method=method)

    def trained(self, point):
        """How a point of a study is fine-tuned."""
        return FinetuneOptions.model_validate(self.recipe(point.method).model_dump() | point.finetune)

    def drawn(self, point):
        """How the set of a point is drawn, or None if it is the common set."""
        if not point.synthesize and not point.after:
            return None
        return SynthesizeOptions.model_validate(self.synthesize.model_dump() | point.synthesize)


class EmbedderPlan(EmbedderOptions):
    """An embedder and what it is trained on: never the folds that bases are trained on or tested with."""

    images: list[str] = Field(description="image sets it is trained on")

    def options(self):
        """The options of its training alone."""
        return EmbedderOptions(**self.model_dump(exclude={"images"}))


class Training(Options):
    """How the shipped models are rebuilt (target `resources`)."""

    autoencoder_sets: list[str] = Field(
        description="image sets the autoencoder sees; pictures of one image_id in two of them show it what an expression changes"
    )
    public_sets: list[str] = Field(description="image sets the UNets see")
    named_sets: list[str] = Field(description="further image sets of the UNets; each base takes its own fold of them")
    autoencoder: AutoencoderOptions = Field(description="the autoencoder")
    embedders: list[EmbedderPlan] = Field(description="the embedders; the clip one named text-encoder gives the pipelines their text encoder")
    bases: list[BaseOptions] = Field(description="the UNets")
    curve_captions: Positive = Field(description="pictures drawn per snapshot of a base's training curve")


class EncoderPlan(Options):
    """An encoder of weights under its name in the tables."""

    name: str = Field(description="name: spectral and autoencoder, their controls, or one of your own")
    options: WeightsTrainOptions = Field(description="how it is trained")


class OtherRecipe(Options):
    """Victims that were fine-tuned otherwise than the attacker's own models."""

    name: str = Field(description="name; the tables say recipe-<name>")
    options: FinetuneOptions = Field(description="how they were fine-tuned (method lora, the recipe's rank and modules)")


class SizePlan(Options):
    """Recovery of the number of training pictures."""

    people: Positive = Field(description="people, each with one number of pictures")
    image_counts: list[Positive] = Field(description="numbers of pictures, in turn")
    steps: list[Literal["total", "per-image"]] = Field(description="what is the same for all numbers of pictures; one data set each")
    options: SizeOptions = Field(description="the classifier")


class LoraWeights(Options):
    """The study of what LoRA weights alone reveal."""

    base: str = Field(description="base that is fine-tuned")
    world: str = Field(description="name of the world in the tables")
    train_images: str = Field(description="image set of the attacker's people")
    test_images: str = Field(description="image set of the victims")
    distractors: str = Field(description="image set of further people of the gallery")
    identity_a: str = Field(description="identity embedder the attacks train with")
    identity_b: str = Field(description="identity embedder that judges")
    factors: bool = Field(description="whether true factors are known, so that leaked bits can be measured")
    clip_image: str = Field("", description="folder of the CLIP that gives CLIP-I of photographs (empty: not measured)")
    clip_text: str = Field("", description="folder of the CLIP that gives CLIP-T of photographs (empty: not measured)")
    dino: str = Field("", description="folder of the DINO ViT (empty: not measured)")
    train_people: Positive = Field(description="people whose LoRAs train the attacks")
    test_people: Positive = Field(description="people whose LoRAs are attacked")
    shard_people: Positive = Field(description="people per job of collect-weights")
    recipe: FinetuneOptions = Field(description="how victims, and the attacker's models, are fine-tuned (method lora)")
    collect: CollectOptions = Field(description="the attacker's data set of weights; its recipe is the one above")
    encoders: list[EncoderPlan] = Field(description="attacks and controls that are trained")
    trunk: str = Field("", description="CLIP text encoder of the paper's attack (empty: the base's own)")
    run: WeightsRunOptions = Field(description="the attacks on the victims")
    transforms: list[TransformOptions] = Field(description="changes made to the victims' weights, each attacked")
    other_recipes: list[OtherRecipe] = Field([], description="the same victims fine-tuned otherwise, attacked by encoders that expect the recipe above")
    adaptive: list[str] = Field(description="transforms (kind, or kind-strength) against which attackers train anew who know them")
    sizes: SizePlan = Field(description="recovery of the number of training pictures")
    evaluate: EvaluateOptions = Field(description="metrics and intervals")


class Config(Options):
    """config.yaml."""

    preset: str = Field(description="name of the preset")
    pathvars: Pathvars = Field(description="where it writes")
    device: str = Field(description="auto, cpu, cuda or mps")
    dtype: Literal["float32", "bfloat16"] = Field(description="precision of the networks; guidance and scores are float32 always")
    gpus: Count = Field(description="GPUs of this machine: as many jobs hold one at a time (0: none)")
    threads: Positive = Field(description="CPU threads of a heavy job")
    shipped: Shipped = Field(description="shared parts of the embedded pipelines")
    instruments: Instruments = Field(description="the measuring networks")
    population: PopulationOptions = Field(description="the embedded world's people and artists")
    training: Training = Field(description="how the shipped models are rebuilt")
    images: list[ImageSource] = Field(description="image sets")
    bases: list[BaseSource] = Field(description="base models")
    worlds: list[World] = Field(description="worlds to fine-tune in")
    finetune: list[Recipe] = Field(description="fine-tuning recipes")
    finextract: Finextract = Field(description="the FineXtract study")
    lora_weights: LoraWeights = Field(description="the study of LoRA weights")
    dp_ldm: DpLdm = Field(description="the DP-LDM study")
    shake_to_leak: ShakeToLeak = Field(description="the Shake-to-Leak study")

    @model_validator(mode="after")
    def _dp_names_exist(self):
        images, bases = ({item.name for item in group} for group in (self.images, self.bases))
        for world in self.dp_ldm.worlds:
            if world.images not in images or world.base not in bases:
                raise ValueError(f"dp_ldm.worlds: {world.name!r} uses image set {world.images!r} and base {world.base!r}; one of them is not listed")
        return self

    @model_validator(mode="after")
    def _names_exist(self):
        images, bases, worlds = ({item.name for item in group} for group in (self.images, self.bases, self.worlds))
        for world in self.worlds:
            if world.images not in images:
                raise ValueError(f"worlds: {world.name!r} uses the image set {world.images!r}, which `images` does not list")
            if world.base not in bases:
                raise ValueError(f"worlds: {world.name!r} uses the base {world.base!r}, which `bases` does not list")
        for recipe in self.finetune:
            if recipe.world not in worlds:
                raise ValueError(f"finetune: a recipe is for the world {recipe.world!r}, which `worlds` does not list")
        groups = {"autoencoder_sets": self.training.autoencoder_sets, "public_sets": self.training.public_sets, "named_sets": self.training.named_sets}
        groups |= {f"embedders.{plan.name}.images": plan.images for plan in self.training.embedders}
        for group, names in groups.items():
            for name in names:
                if name not in images:
                    raise ValueError(f"training.{group}: {name!r} is not in `images`")
        self._weights_study_fits(images, bases)
        shake = self.shake_to_leak
        for name in [*shake.images, *filter(None, (shake.reference, *(base.member_images for base in shake.bases)))] if shake.bases else []:
            if name not in images:
                raise ValueError(f"shake_to_leak: the image set {name!r} is not in `images`")
        for base in shake.bases:
            if base.name not in bases:
                raise ValueError(f"shake_to_leak.bases: {base.name!r} is not in `bases`")
        self._names_are_unique()
        self._guidance_is_complete()
        self._attacker_fits(worlds)
        self._fits_the_machine()
        return self

    def _weights_study_fits(self, images, bases):
        knobs = self.lora_weights
        for key in ("train_images", "test_images", "distractors"):
            if getattr(knobs, key) not in images:
                raise ValueError(f"lora_weights.{key}: {getattr(knobs, key)!r} is not in `images`")
        if knobs.base not in bases:
            raise ValueError(f"lora_weights.base: {knobs.base!r} is not in `bases`")
        names = [plan.name for plan in knobs.encoders]
        for name in names:
            if names.count(name) > 1 or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
                raise ValueError(f"lora_weights.encoders: {name!r} occurs twice or is no name of small letters, digits and hyphens")
        if knobs.recipe.method != "lora":
            raise ValueError(f"lora_weights.recipe: the weights attacks are about LoRAs of the UNet; method is {knobs.recipe.method!r}, not 'lora'")
        for other in knobs.other_recipes:
            same = ("method", "rank", "target_modules", "images_per_concept", "seeds")
            odd = next((key for key in same if getattr(other.options, key) != getattr(knobs.recipe, key)), None)
            if odd or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", other.name) or [item.name for item in knobs.other_recipes].count(other.name) > 1:
                reason = f"{odd} must be that of lora_weights.recipe" if odd else "its name occurs twice or is none of small letters, digits and hyphens"
                raise ValueError(f"lora_weights.other_recipes: {other.name!r}: {reason}")
        unknown = set(knobs.adaptive) - {item.name for item in knobs.transforms}
        if unknown:
            raise ValueError(f"lora_weights.adaptive: {sorted(unknown)[0]!r} is none of the transforms {[item.name for item in knobs.transforms]}")

    def _names_are_unique(self):
        groups = {"images": self.images, "bases": self.bases, "worlds": self.worlds}
        groups |= {"shake_to_leak.bases": self.shake_to_leak.bases, "training.embedders": self.training.embedders, "training.bases": self.training.bases}
        for group, items in groups.items():
            names = [item.name for item in items]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{group}: the name {name!r} occurs twice")
                if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):
                    raise ValueError(f"{group}: the name {name!r} becomes a folder; use letters, digits, dots and hyphens only")

    def _attacker_fits(self, worlds):
        study = self.finextract.attacker
        for name in [*study.worlds, *(recipe.world for recipe in study.recipes)]:
            if name not in worlds:
                raise ValueError(f"finextract.attacker: the world {name!r} is not listed in `worlds`")
        missing = {"finextract", "base"} - set(self.finextract.attacks)
        if study.worlds and (missing or "finextract" not in {grid.attack for grid in self.finextract.grid}):
            raise ValueError("finextract.attacker compares with finextract and base: both must be among `attacks`, and finextract in `grid`")

    def _fits_the_machine(self):
        if self.device not in ("auto", "cpu", "mps") and not self.gpus:
            raise ValueError(f"device is {self.device!r}, but gpus is 0; set gpus to the number of GPUs of this machine")

    def _guidance_is_complete(self):
        frozen = [(item.world, item.method, item.attack) for item in self.finextract.guidance]
        recipes = [(recipe.world, recipe.options.method) for recipe in self.finetune]
        for group, entries in {"finextract.guidance": frozen, "finetune": recipes, "finextract.grid": [grid.attack for grid in self.finextract.grid]}.items():
            for entry in entries:
                if entries.count(entry) > 1:
                    raise ValueError(f"{group}: two entries for {entry}")
        for world in self.worlds:
            sizes = {recipe.options.images_per_concept for recipe in self.finetune if recipe.world == world.name}
            if len(sizes) != 1:
                told = f"must share one images_per_concept, not {sorted(sizes)}: its threshold tau belongs to one N0"
                raise ValueError(f"finetune: the methods of world {world.name!r} {told}")
        for recipe in self.finetune:
            needed = {"cfg" if attack == "base" else attack for attack in self.finextract.attacks} - {"direct"}  # the base control takes the scale of cfg
            for attack in sorted(needed):
                if (recipe.world, recipe.options.method, attack) not in frozen:
                    raise ValueError(f"finextract.guidance has no entry for world {recipe.world!r}, method {recipe.options.method!r}, attack {attack!r}")
        ablations = self.finextract.ablations
        for method in ablations.methods:
            if (ablations.world, method) not in recipes:
                raise ValueError(f"finextract.ablations: there is no recipe for method {method!r} in world {ablations.world!r}")
        if ablations.methods:
            world = next(world for world in self.worlds if world.name == ablations.world)
            if ablations.tune_concepts > world.tune_concepts or ablations.test_concepts > world.test_concepts:
                raise ValueError(f"finextract.ablations: world {world.name!r} has {world.tune_concepts} tune and {world.test_concepts} test concepts")
        sizes = {item.attack: len(item.guidance) for item in self.finextract.grid}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"finextract.grid: attacks are tuned with unequal budgets {sizes}; give each as many points")


def load(values):
    """Validate a merged configuration (a dict); an `InputError` names every wrong key."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'config'}: {item['msg']}" for item in error.errors()]
        raise InputError("the configuration is not valid; mend these keys:\n" + "\n".join(lines)) from None


def one(items, **values):
    """The single item whose attributes equal `values`; raises `InputError` otherwise."""
    found = [item for item in items if all(getattr(item, key) == value for key, value in values.items())]
    if len(found) != 1:
        raise InputError(f"{len(found)} entries match {values}; expected one")
    return found[0]


def as_json(options, **changes):
    """Options as one sorted JSON string: how a rule passes them to the command line."""
    return json.dumps(options.model_copy(update=changes).model_dump(mode="json"), sort_keys=True)
