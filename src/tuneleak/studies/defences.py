"""The section of config.yaml that puts every attack on every defence: recipes, defences, attacks, and which cells of the matrix can be run.

Also the options of the verbs behind it. Imports neither torch nor pandas.
"""

from typing import Literal, get_args

from pydantic import Field, model_validator

from tuneleak.options import (
    AggregateOptions,
    CaptionCondition,
    Count,
    EvaluateOptions,
    FinetuneOptions,
    Fraction,
    MembershipOptions,
    Options,
    PeopleOptions,
    Positive,
    PrivacyOptions,
    PrivateFinetuneOptions,
    Rate,
    SynthesizeOptions,
    TransformOptions,
    UtilityOptions,
    Variant,
)

NONE, BASE = "none", "base"
AT = "@"  # between a world and a further base, in the column world
AttackGroup = Literal["membership", "extraction", "people", "weights", "weights-adaptive", "shadows", "shake"]
GROUPS = get_args(AttackGroup)


class PrivateDefence(Options):
    """DP-SGD on one concept's pictures: on its LoRA, or on the attention of a UNet that is fine-tuned whole."""

    epsilon: Rate = Field(10.0, description="budget; with `noiseless`, ignored")
    noiseless: bool = Field(False, description="clip but add no noise: epsilon is infinite (a control)")
    delta: float = Field(1e-3, gt=0, lt=1, description="probability with which epsilon may fail to hold; below 1 over the number of pictures")
    unit: Literal["image", "person"] = Field(
        "image", description="what one clipped gradient holds: one picture, or all pictures of the person, which then is the only record"
    )
    images: Count = Field(0, description="pictures trained on (0: as many as the recipe has)")
    expected_batch: Count = Field(0, description="pictures in a step on average (unit image; 0: all of them)")
    steps: Positive = Field(40, description="noisy steps")
    clip: Rate = Field(1e-3, description="norm C to which a gradient is clipped")
    multiplicity: Positive = Field(8, description="timesteps and noises averaged per picture before the clip (K)")
    lr: Rate = Field(2e-2, description="learning rate of AdamW on normalised gradients of a LoRA")
    attention_lr: Rate = Field(3e-3, description="the same of attention")
    gradients: Literal["auto", "ghost", "hooks"] = Field("hooks", description="how clipped sums are computed")
    physical_batch: Positive = Field(64, description="rows in memory at once")

    def count(self, recipe):
        """Number of pictures trained on, which is made public."""
        return self.images or recipe.images_per_concept

    def options(self, recipe):
        """`PrivateFinetuneOptions` of this defence for a recipe: its adapter or attention, its number of pictures made public."""
        person, count, lora = self.unit == "person", self.count(recipe), recipe.method == "lora"
        privacy = PrivacyOptions(
            epsilon=self.epsilon, noiseless=self.noiseless, delta=self.delta, public_size=1 if person else count,
            expected_batch=1 if person else min(self.expected_batch or count, count), steps=self.steps, clip=self.clip,
            multiplicity=self.multiplicity * (count if person else 1), unit="image",
        )  # fmt: skip
        return PrivateFinetuneOptions(
            trainable="lora" if lora else "attention", conditioning="frozen", privacy=privacy, seeds=recipe.seeds, lr=self.lr if lora else self.attention_lr,
            weight_decay=0, rank=recipe.rank, alpha=recipe.alpha, target_modules=recipe.target_modules, gradients=self.gradients,
            gradient_checkpointing=recipe.gradient_checkpointing, physical_batch=self.physical_batch,
        )  # fmt: skip


class Defence(Options):
    """One row of the matrix: a change of the recipe, of the finished weights, or of both; or a training or release under differential privacy."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9.-]*$", description="name in the tables (column defence); `none` changes nothing")
    methods: list[str] = Field([], description="fine-tuning methods it is run with (empty: all)")
    change: dict[str, int | float | str | list[str]] = Field({}, description="knobs of the recipe that are changed")
    transform: TransformOptions = Field(TransformOptions(), description="change made to the finished LoRA")
    private: PrivateDefence | None = Field(None, description="instead: DP-SGD")
    aggregate: AggregateOptions | None = Field(None, description="instead: DPAgg-TI; prompts and numbers of pictures are filled in")

    @model_validator(mode="after")
    def _one_kind(self):
        plain = bool(self.change) or self.transform.kind != "none"
        if plain + (self.private is not None) + (self.aggregate is not None) > 1:
            raise ValueError(f"{self.name!r} mixes kinds: give `change` and `transform`, or `private`, or `aggregate`")
        unknown = sorted(set(self.change) - set(FinetuneOptions.model_fields))
        if unknown:
            raise ValueError(f"{self.name!r} changes {unknown[0]!r}, which is no knob of fine-tuning")
        FinetuneOptions(**self.change)
        if self.name == BASE:
            raise ValueError(f"{BASE!r} is what the control is called; give the defence another name")
        if self.name == NONE and (plain or self.private or self.aggregate):
            raise ValueError(f"{NONE!r} must not change anything: every other defence is compared with it")
        return self

    @property
    def variant(self):
        """The same as a variant of the recipe."""
        return Variant(name=self.name, change=self.change, transform=self.transform)

    @property
    def lora(self):
        """Whether what is released of a LoRA recipe is a LoRA."""
        return self.aggregate is None and self.change.get("method", "lora") == "lora"


class FinetuneDefendedOptions(Options):
    """One recipe under many defences."""

    recipe: FinetuneOptions = Field(FinetuneOptions(), description="the recipe that defences change")
    defences: list[Defence] = Field([Defence(name=NONE)], min_length=1, description="the defences")


class ShadowOptions(Options):
    """Scores of many LoRAs trained on coin-flip halves of a concept's pictures, as in LiRA and RMIA."""

    timesteps: list[Count] = Field([100, 300, 500], min_length=1, description="timesteps of the loss")
    draws: Positive = Field(1, description="noises per timestep")
    population: Positive = Field(20, description="held-out pictures of the same concept that RMIA compares with")
    transforms: list[TransformOptions] = Field([TransformOptions()], min_length=1, description="changes to finished weights, made to targets and shadows alike")
    names: list[str] = Field([NONE], min_length=1, description="defence that each of those transforms is called")
    seed: int = Field(0, description="seed of the noise, which belongs to the picture")
    batch: Positive = Field(64, description="samples in one call of the network")

    @model_validator(mode="after")
    def _named(self):
        if len(self.names) != len(self.transforms):
            raise ValueError("names: one for each of the transforms")
        return self


class ShakeDefendedOptions(Options):
    """Shake-to-Leak against released models: each draws pictures of its concept and is tuned on them without privacy."""

    defences: list[str] = Field([NONE], min_length=1, description="defences whose released models are shaken")
    synthesize: SynthesizeOptions = Field(SynthesizeOptions(), description="the self-made sets")
    recipe: FinetuneOptions = Field(FinetuneOptions(), description="the attacker's fine-tune; method and adapter are those of the released model")


class Missing(Options):
    """A cell of the matrix that is not run, and why."""

    method: str = Field(description="fine-tuning method")
    defence: str = Field(description="defence")
    attack: str = Field(description="group of attacks")
    reason: str = Field(description="why not")


class DefenceEvaluateOptions(EvaluateOptions):
    """How the scores of all attacks become one matrix."""

    missing: list[Missing] = Field([], description="cells that are not run")
    utility_kept: Fraction = Field(0.9, description="share of the undefended models' likeness, beyond the base's, that counts as keeping utility")


class Shadows(Options):
    """Shadow LoRAs of the matrix."""

    models: Positive = Field(16, description="LoRAs per concept, each trained on the pictures that a fair coin lets in, and each the target once")
    models_at_once: Positive = Field(16, description="of them in one forward call")
    attack: ShadowOptions = Field(ShadowOptions(), description="their losses; transforms and names are filled in")


class Further(Options):
    """Bases beside that of the world: the same recipes and defences of the same concepts, attacked there for the rankings over bases (Kendall's tau) alone."""

    bases: list[str] = Field([], description="names of further bases, such as a twin (none: no ranking over bases)")
    attacks: list[Literal["membership", "extraction", "people"]] = Field(["membership", "people"], min_length=1, description="groups of attacks run there")


class Defences(Options):
    """The matrix of all attacks under all defences."""

    world: str = Field(description="name of the world whose test concepts are used")
    recipes: list[FinetuneOptions] = Field(description="one recipe per fine-tuning method (none: the matrix is not run)")
    concepts: Positive = Field(description="test concepts")
    shard_concepts: Positive = Field(description="concepts per job")
    defences: list[Defence] = Field(description="rows of the matrix; `none` must be among them")
    attacks: list[AttackGroup] = Field(description="groups of columns of the matrix")
    membership: MembershipOptions = Field(MembershipOptions(attacks=["loss", "secmi-stat", "pia"]), description="membership of fine-tuning pictures")
    conditions: list[CaptionCondition] = Field(["known", "none"], description="what FineXtract's attacker knows of the caption")
    generations_per_image: Positive = Field(description="generations N of FineXtract as a multiple of N0")
    people: PeopleOptions = Field(PeopleOptions(), description="membership of people")
    weights: list[str] = Field(["spectral", "autoencoder"], description="encoders of the weights study that attack here; their recipe must be that of the LoRA")
    weights_adaptive: list[str] = Field(["spectral"], description="those trained anew on weights that were changed as the victims' were")
    shadows: Shadows = Field(Shadows(), description="LiRA and RMIA")
    shake: ShakeDefendedOptions = Field(ShakeDefendedOptions(), description="Shake-to-Leak after the release")
    further: Further = Field(Further(), description="rankings of defences over bases")
    utility: UtilityOptions = Field(UtilityOptions(), description="how the use of each model is measured")
    utility_kept: Fraction = Field(0.9, description="share of the undefended models' likeness, beyond the base's, that counts as keeping utility")

    @property
    def shards(self):
        """Jobs per method, base and group of attacks."""
        return -(-self.concepts // self.shard_concepts)

    def place(self, shard):
        """(world in the tables, further base or empty, first concept, last) of a shard; those of further bases are numbered after those of the world's own."""
        base, part = divmod(shard, self.shards)
        first = part * self.shard_concepts
        named = ("", *self.further.bases)[base]
        return f"{self.world}{AT}{named}" if named else self.world, named, first, min(first + self.shard_concepts, self.concepts)

    def of_method(self, method):
        """The defences that a method is run with."""
        return [item for item in self.defences if method in (item.methods or [method])]

    def recipe(self, method):
        """The recipe of a method."""
        return next(recipe for recipe in self.recipes if recipe.method == method)

    def training(self, method):
        """The options of `finetune-defended`."""
        return FinetuneDefendedOptions(recipe=self.recipe(method), defences=self.of_method(method))

    def reason(self, method, defence, attack):
        """Why a group of attacks is not run on a defence of a method; empty where it is."""
        item = next(item for item in self.defences if item.name == defence)
        if attack not in self.attacks:
            return "this preset does not run the attack"
        if item not in self.of_method(method):
            return "the defence is not run with this method"
        if attack in ("weights", "weights-adaptive", "shadows") and method != "lora":
            return "the attack needs LoRAs"
        if attack in ("weights", "weights-adaptive") and not item.lora:
            return "words are released and no LoRA"
        if attack == "weights-adaptive" and item.transform.kind == "none":
            return "the attack adapts to changes of finished weights only"
        if attack == "shadows" and (item.private or item.aggregate):
            return "every shadow would be a private training of its own"
        if attack == "shadows" and self.recipe(method).model_copy(update=item.change).alone:
            return "shadows are trained side by side, which this recipe cannot be"
        if attack == "shake" and item.aggregate:
            return "words are released and no weights to train on"
        if attack == "shake" and defence not in self.shake.defences:
            return "not among the defences that are shaken"
        return ""

    def run(self, method, attack):
        """Names of the defences that a group of attacks is run on."""
        return [item.name for item in self.defences if not self.reason(method, item.name, attack)]

    def shadow_sets(self, method):
        """{defence whose recipe a set of shadows is trained by: the defences that the set serves}.

        The attacker knows the defence: a changed recipe has shadows of its own; a change of finished weights is made to every shadow.
        """
        sets, recipes = {}, {}
        for item in [item for item in self.defences if item.name in self.run(method, "shadows")]:
            name = recipes.setdefault(str(sorted(item.change.items())), item.name)
            sets.setdefault(name, []).append(item)
        return sets

    def shadow_recipe(self, method, trained):
        """The recipe of the shadows of one of `shadow_sets`."""
        change = self.shadow_sets(method)[trained][0].change
        return self.recipe(method).model_copy(update={**change, "seeds": list(range(self.shadows.models))})

    def shadow_options(self, method, trained):
        """Options of `attack shadows` on one of `shadow_sets`."""
        served = self.shadow_sets(method)[trained]
        return self.shadows.attack.model_copy(update={"transforms": [item.transform for item in served], "names": [item.name for item in served]})

    def known_changes(self, method):
        """{what a weights attacker knows of the defence: the names of the defences he attacks with that}.

        A change of finished weights, by its `TransformOptions.name`, for which some encoders are trained anew; `none`: the rest.
        """
        adapts, chosen = self.run(method, "weights-adaptive"), {}
        for item in [item for item in self.defences if item.name in self.run(method, "weights")]:
            chosen.setdefault(item.transform.name if item.name in adapts else NONE, []).append(item.name)
        return chosen

    def shake_options(self, method):
        """Options of `shake-defended`: what is tuned on is what was released."""
        recipe = self.recipe(method)
        same = {name: getattr(recipe, name) for name in ("method", "rank", "alpha", "target_modules", "seeds")}
        tuned = self.shake.recipe.model_copy(update=same)
        return self.shake.model_copy(update={"recipe": tuned, "defences": self.run(method, "shake")})

    def missing(self):
        """All cells that are not run."""
        cells = [(recipe.method, item.name, attack) for recipe in self.recipes for item in self.defences for attack in GROUPS]
        told = [Missing(method=method, defence=name, attack=attack, reason=self.reason(method, name, attack)) for method, name, attack in cells]
        return [cell for cell in told if cell.reason]

    def evaluate(self, options):
        """The options of `evaluate defences`."""
        return DefenceEvaluateOptions(**options.model_dump(), missing=self.missing(), utility_kept=self.utility_kept)

    @model_validator(mode="after")
    def _fits_together(self):
        for group, names in {"recipes": [recipe.method for recipe in self.recipes], "defences": [item.name for item in self.defences]}.items():
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{group}: {name!r} occurs twice")
        if NONE not in [item.name for item in self.defences]:
            raise ValueError(f"defences: {NONE!r} is missing; every other defence is compared with it")
        if "known" not in self.conditions:
            raise ValueError("conditions: `known` must be among them")
        if len(set(self.further.bases)) < len(self.further.bases):
            raise ValueError("further.bases: a base is listed twice")
        left_out = [attack for attack in self.further.attacks if attack not in self.attacks]
        if self.further.bases and left_out:
            raise ValueError(f"further.attacks: {left_out[0]!r} is not among `attacks`; rankings are compared with those on the world's own base")
        unknown = set(self.shake.defences) - {item.name for item in self.defences}
        if unknown:
            raise ValueError(f"shake.defences: {sorted(unknown)[0]!r} is none of the defences")
        for recipe in self.recipes:
            if recipe.method not in ("lora", "dreambooth"):
                raise ValueError(f"recipes: the matrix is about lora and dreambooth, not {recipe.method!r}")
            for item in self.of_method(recipe.method):
                if item.transform.kind != "none" and recipe.method != "lora":
                    raise ValueError(f"defences: {item.name!r} changes a finished LoRA; give it methods: [lora]")
                if item.private:
                    item.private.options(recipe)
                if item.private and item.private.unit == "image" and item.private.delta * item.private.count(recipe) >= 1:
                    raise ValueError(f"defences: {item.name!r}: delta must be below 1 over the number of pictures")
        return self
