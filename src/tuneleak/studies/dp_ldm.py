"""DP-LDM's section of config.yaml: private worlds, methods under one budget, baselines and audits."""

import re

from pydantic import Field, model_validator

from tuneleak.options import (
    AggregateOptions,
    AuditOptions,
    Count,
    DpUtilityOptions,
    MeanFeaturesOptions,
    Options,
    PrivateFinetuneOptions,
    Rate,
    SampleOptions,
)


class DpWorld(Options):
    """A private set to train on under differential privacy, and what is public about it."""

    name: str = Field(description="name of the world")
    base: str = Field(description="public base that is fine-tuned")
    images: str = Field(description="image set with folds train (private) and test (real held-outs, for utility)")
    prompts: dict[str, str] = Field(description="public grammar: label -> caption; the public list of classes")
    endings: list[str] = Field([], description="further words of the public grammar, appended in turn when a text-conditional model is sampled")


class DpRecipe(Options):
    """How one trained set is trained; knobs are chosen on a public style (which were tried stands in config.yaml), then frozen."""

    name: str = Field(description="name of the method: attention, all, lora, ...")
    worlds: list[str] = Field([], description="worlds it runs in (empty: all)")
    budgets: list[str] = Field([], description="budgets it runs at, of `epsilons` and `inf` (empty: all)")
    options: PrivateFinetuneOptions = Field(description="the knobs; prompts and epsilon are filled in")


class MeanFeaturesRecipe(Options):
    """How a generator is trained to a noisy mean of public features (DP-MEPF)."""

    name: str = Field(description="name of the method")
    worlds: list[str] = Field([], description="worlds it runs in (empty: all)")
    budgets: list[str] = Field([], description="budgets it runs at, of `epsilons` and `inf` (empty: all)")
    options: MeanFeaturesOptions = Field(MeanFeaturesOptions(), description="the knobs; prompts and epsilon are filled in")


class AggregateRecipe(Options):
    """How textual inversions of single pictures are averaged (DPAgg-TI)."""

    name: str = Field(description="name of the method")
    worlds: list[str] = Field([], description="worlds it runs in (empty: all)")
    budgets: list[str] = Field([], description="budgets it runs at, of `epsilons` and `inf` (empty: all)")
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
    shard_samples: Count = Field(0, description="pictures of each model drawn by one job (0: all)")
    utility: DpUtilityOptions = Field(description="what they are good for")
    audits: list[DpAudit] = Field(description="audits, in runs of their own")

    def cells(self):
        """(world, recipe, epsilon name) of every training: budgets ascending, `inf` last."""
        names = [f"{epsilon:g}" for epsilon in sorted(self.epsilons)] + (["inf"] if self.noiseless else [])
        every = [*self.recipes, *self.mean_features, *self.aggregates]
        placed = [(world, recipe) for world in self.worlds for recipe in every if world.name in (recipe.worlds or [world.name])]
        return [(world, recipe, name) for world, recipe in placed for name in names if name in (recipe.budgets or names)]

    def shards(self):
        """The slices (start, stop) of the samples of every model that are drawn by a job each."""
        size = self.shard_samples or self.sample.samples
        return [(start, min(start + size, self.sample.samples)) for start in range(0, self.sample.samples, size)]

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
        if any(recipe.name == "base" for recipe in every):
            raise ValueError("dp_ldm.recipes: 'base' is where the public base's tables lie; give that recipe another name")
        for name in [name for recipe in every for name in recipe.worlds] + [audit.world for audit in self.audits]:
            if name not in worlds:
                raise ValueError(f"dp_ldm: {name!r} is not in dp_ldm.worlds")
        known = [*(f"{epsilon:g}" for epsilon in self.epsilons), *(["inf"] if self.noiseless else [])]
        for recipe in every:
            for name in recipe.budgets:
                if name not in known:
                    raise ValueError(f"dp_ldm: {recipe.name!r} has the budget {name!r}, which is none of {known}")
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
