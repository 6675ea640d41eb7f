"""Shake-to-Leak's section of config.yaml: bases and their domains, methods, controls and studies."""

from typing import Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from tuneleak.options import (
    Count,
    FinetuneOptions,
    MembershipOptions,
    Options,
    PerturbOptions,
    Positive,
    RegenerationOptions,
    ShakeEvaluateOptions,
    SynthesizeOptions,
)


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


class ShakeFurtherAttacks(Options):
    """Membership attacks beside those of the study, on a few of its models: a table of their own, as some of them ask a model a hundred times."""

    bases: list[str] = Field([], description="bases that are attacked, alone and tuned (none: these attacks are not run)")
    methods: list[str] = Field([], description="methods whose models are attacked beside the base")
    membership: MembershipOptions = Field(
        MembershipOptions(attacks=["secmi-nns", "pian", "pfami", "clid"]), description="the attacks; none of them is among `membership.attacks`"
    )


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
    further_attacks: ShakeFurtherAttacks = Field(ShakeFurtherAttacks(), description="attacks that only a few models are judged by")
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
        self._further_attacks_fit_together(names)
        self._studies_fit_together(names)
        if not self.reference and (self.identity or self.synthesize.mixed or "instrument" in self.controls):
            raise ValueError("reference is needed for identity (fidelity), for synthesize.mixed and for the control `instrument`")
        if bool(self.identity) != bool(self.clip):
            raise ValueError("identity and clip belong together: give both, or neither for no fidelity")
        return self

    def _further_attacks_fit_together(self, names):
        further = self.further_attacks
        for kind, asked, known in (("bases", further.bases, [base.name for base in self.bases]), ("methods", further.methods, names)):
            if set(asked) - set(known):
                raise ValueError(f"further_attacks.{kind}: {sorted(set(asked) - set(known))[0]!r} is not among `{kind}`")
        both = set(further.membership.attacks) & set(self.membership.attacks)
        if further.bases and both:
            raise ValueError(f"further_attacks.membership: {sorted(both)[0]!r} is among membership.attacks too; tables of both are joined")

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
        return next(recipe for recipe in [*self.methods, *self.further_methods] if recipe.method == method)

    def trained(self, point):
        """How a point of a study is fine-tuned."""
        return FinetuneOptions.model_validate(self.recipe(point.method).model_dump() | point.finetune)

    def drawn(self, point):
        """How the set of a point is drawn, or None if it is the common set."""
        if not point.synthesize and not point.after:
            return None
        return SynthesizeOptions.model_validate(self.synthesize.model_dump() | point.synthesize)
