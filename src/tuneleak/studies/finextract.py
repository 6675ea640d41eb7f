"""FineXtract's section of config.yaml: guidance, ablations and defences, and what an attacker has to know."""

import re
from typing import Literal

from pydantic import Field, model_validator

from tuneleak.options import (
    AblationEvaluateOptions,
    AblationFigureOptions,
    Attack,
    CaptionCondition,
    CaptionOptions,
    ClusterOptions,
    EvaluateOptions,
    FinetuneOptions,
    Guidance,
    GuidedAttack,
    Options,
    PeopleOptions,
    Positive,
    SweepOptions,
    UtilityOptions,
    Variant,
    VariantsOptions,
)


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

    def drawn(self, recipe):
        """What figures need: the variants and their axes, and where the reference, trained by `recipe` and attacked by `sweep`, lies on these."""
        attack = {"generations_per_image": self.sweep.generations_per_image, "threshold": self.sweep.cluster.threshold, "steps": self.sweep.steps}
        return AblationFigureOptions(recipe=recipe, variants=self.variants, **attack)

    def evaluate(self, options, recipes):
        """The options of `evaluate ablations`; recipes: of its methods, which must be equally long, for a variant's name says how long it was."""
        if len({recipe.steps_per_image for recipe in recipes}) > 1:
            raise ValueError(f"finextract.ablations: the recipes of {', '.join(self.methods)} in world {self.world!r} need one steps_per_image")
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
