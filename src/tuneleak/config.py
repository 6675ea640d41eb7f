"""config.yaml as one typed model, read with its overlays, and the look-ups the workflow needs; the studies' sections: `tuneleak.studies`.

Imports neither torch nor pandas.
"""

import json
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from tuneleak.errors import InputError
from tuneleak.options import (
    Count,
    DiffusionOptions,
    FinetuneOptions,
    FirstStageOptions,
    ImportOptions,
    Options,
    PopulationOptions,
    Positive,
)
from tuneleak.studies.defences import Defences
from tuneleak.studies.dp_ldm import DpLdm
from tuneleak.studies.finextract import Finextract
from tuneleak.studies.lora_weights import LoraWeights
from tuneleak.studies.shake_to_leak import ShakeToLeak
from tuneleak.studies.training import Training


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
    kind: Literal["population", "folder", "list", "hub"] = Field(
        description="population: rendered; folder: local pictures; list: pictures by path or address and SHA-256; hub: a data set fetched by id"
    )
    path: str = Field("", description="the folder (folder), or the CSV that lists the pictures (list)")
    repository: str = Field("", description="hub id (hub)")
    revision: str = Field("", description="full commit hash (hub)")
    options: ImportOptions = Field(ImportOptions(), description="how pictures are read (folder, list, hub)")

    @model_validator(mode="after")
    def _complete(self):
        _source_is_complete(self, {"folder", "list"})
        return self


class BaseSource(Options):
    """Where a base model comes from."""

    name: str = Field(description="name of the base")
    kind: Literal["assembled", "folder", "hub", "trained"] = Field(
        description="assembled: from the shipped parts; folder: a local pipeline folder; hub: fetched by id; trained: on public pictures"
    )
    path: str = Field("", description="shipped UNet (assembled) or pipeline folder (folder)")
    repository: str = Field("", description="hub id (hub)")
    revision: str = Field("", description="full commit hash (hub)")
    images: str = Field("", description="image set it is trained on, fold train (trained)")
    perceptual: str = Field("", description="public network behind the first stage's perceptual distance: VGG19 as safetensors (trained; empty: L1 alone)")
    first_stage: FirstStageOptions = Field(FirstStageOptions(), description="its autoencoder (trained)")
    diffusion: DiffusionOptions = Field(DiffusionOptions(), description="its UNet (trained)")

    @model_validator(mode="after")
    def _complete(self):
        _source_is_complete(self, {"assembled", "folder"})
        if self.kind == "trained" and not self.images:
            raise ValueError(f"{self.name!r} is of kind 'trained' and needs `images`, the public image set it is trained on")
        return self


class Instruments(Options):
    """The networks that measure; attacks cluster with one copy embedder and are scored by the other."""

    copy_cluster: str = Field(description="copy embedder of the clustering")
    copy_score: str = Field(description="copy embedder of the scores")
    factors: str = Field("", description="reader of true factors (leaked bits); empty: leaked bits are not reported")


class Limits(Options):
    """What jobs that use networks may take on a cluster, beside what they take in the embedded world. Both grow with every failed attempt."""

    time: Positive = Field(1, description="factor on their time limits")
    memory: Positive = Field(1, description="factor on their memory (of the host, not the GPU)")


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


class Config(Options):
    """config.yaml."""

    preset: str = Field(description="name of the preset")
    pathvars: Pathvars = Field(description="where it writes")
    device: str = Field(description="auto, cpu, cuda or mps")
    dtype: Literal["float32", "bfloat16"] = Field(description="precision of the networks; guidance and scores are float32 always")
    gpus: Count = Field(description="GPUs of this machine: as many jobs hold one at a time (0: none)")
    threads: Positive = Field(description="CPU threads of a heavy job")
    limits: Limits = Field(description="time and memory that jobs ask a cluster for")
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
    defences: Defences = Field(description="the matrix of all attacks under all defences")

    @model_validator(mode="after")
    def _has_its_own_folders(self):
        for name, folder in self.pathvars.model_dump().items():
            if self.preset != "embedded" and folder.split("/")[:2] == ["results", "embedded"]:
                raise ValueError(f"pathvars.{name}: {folder!r} is where preset 'embedded' writes; give preset {self.preset!r} a folder of its own")
        return self

    @model_validator(mode="after")
    def _dp_names_exist(self):
        images, bases = ({item.name for item in group} for group in (self.images, self.bases))
        trained = {base.name: base.images for base in self.bases if base.kind == "trained"}
        source = {item.name: (item.kind, item.path, item.repository) if item.kind != "population" else item.name for item in self.images}
        for name, public in trained.items():
            if public not in images:
                raise ValueError(f"bases: {name!r} is trained on the image set {public!r}, which `images` does not list")
        for world in self.dp_ldm.worlds:
            if world.images not in images or world.base not in bases:
                raise ValueError(f"dp_ldm.worlds: {world.name!r} uses image set {world.images!r} and base {world.base!r}; one of them is not listed")
            if world.base in trained and source[trained[world.base]] == source[world.images]:
                raise ValueError(f"dp_ldm.worlds: the base of {world.name!r} is trained on its private pictures {world.images!r}; give it public ones")
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

    @model_validator(mode="after")
    def _matrix_fits(self):
        matrix, weights = self.defences, self.lora_weights
        if not matrix.recipes:
            return self
        world = next((world for world in self.worlds if world.name == matrix.world), None)
        if world is None or matrix.concepts > world.test_concepts:
            raise ValueError(f"defences: `worlds` must list {matrix.world!r} with at least {matrix.concepts} test concepts")
        for base in matrix.further.bases:
            if base == world.base or base not in {item.name for item in self.bases}:
                raise ValueError(f"defences.further.bases: {base!r} must be listed in `bases`, and not be {world.base!r}, the base of {world.name!r} itself")
        pictures = next((source for source in self.images if source.name == world.images), None)
        if pictures and pictures.kind != "population":
            published, pool = pictures.options.published_split, pictures.options.train_per_concept
            # a set without held-outs (0) is refused by the attacks themselves
            if published or (pool and any(recipe.images_per_concept != pool for recipe in matrix.recipes)):
                told = "or members are the first files of the pool, and membership shows in whatever files are named by"
                raise ValueError(f"defences: train_per_concept of the image set {pictures.name!r} must be images_per_concept of every recipe, {told}")
        frozen = {(item.world, item.method, item.attack) for item in self.finextract.guidance}
        encoders = {plan.name for plan in weights.encoders}
        for recipe in matrix.recipes:
            if "extraction" in matrix.attacks and (matrix.world, recipe.method, "finextract") not in frozen:
                raise ValueError(f"defences: finextract.guidance has no entry for world {matrix.world!r}, method {recipe.method!r}, attack 'finextract'")
            odd = [key for key in ("rank", "alpha", "target_modules") if getattr(recipe, key) != getattr(weights.recipe, key)]
            if "weights" in matrix.attacks and recipe.method == "lora" and (odd or world.base != weights.base):
                raise ValueError(f"defences: the encoders of lora_weights expect its recipe and base; {', '.join(odd) or 'the base'} of the LoRA differs")
        for key in ("weights", "weights_adaptive"):
            unknown = sorted(set(getattr(matrix, key)) - encoders)
            if key.replace("_", "-") in matrix.attacks and unknown:
                raise ValueError(f"defences.{key}: {unknown[0]!r} is none of lora_weights.encoders")
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
            same = ("method", "rank", "target_modules", "seeds")
            odd = next((key for key in same if getattr(other.options, key) != getattr(knobs.recipe, key)), None)
            if odd or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", other.name) or [item.name for item in knobs.other_recipes].count(other.name) > 1:
                reason = f"{odd} must be that of lora_weights.recipe" if odd else "its name occurs twice or is none of small letters, digits and hyphens"
                raise ValueError(f"lora_weights.other_recipes: {other.name!r}: {reason}")
            for name in filter(None, (other.images, other.distractors)):
                if name not in images:
                    raise ValueError(f"lora_weights.other_recipes: the image set {name!r} of {other.name!r} is not in `images`")
            told = [bool(other.images), bool(other.world), bool(other.distractors)]
            if len(set(told)) > 1 or other.world == knobs.world:
                raise ValueError(f"lora_weights.other_recipes: {other.name!r}: other victims need `images`, `distractors` and a `world` of their own")
        self._size_pool_suffices(knobs)
        unknown = set(knobs.adaptive) - {item.name for item in knobs.transforms}
        if unknown:
            raise ValueError(f"lora_weights.adaptive: {sorted(unknown)[0]!r} is none of the transforms {[item.name for item in knobs.transforms]}")

    def _size_pool_suffices(self, knobs):
        drawn = {source.name for source in self.images if source.kind == "population"} & {"lora-train", "lora-test"}
        if knobs.sizes.photographs and knobs.train_images not in drawn:
            raise ValueError(f"lora_weights.sizes.photographs: those of lora-train can be drawn anew, not those of {knobs.train_images!r}; leave it out")
        pool, most = knobs.sizes.photographs or self.population.lora_photographs, max(knobs.sizes.image_counts, default=0)
        if knobs.sizes.steps and knobs.train_images in drawn and most > pool:
            raise ValueError(f"lora_weights.sizes.image_counts: {most} pictures of a person who has {pool}; set sizes.photographs to {most}")

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


def read(configuration, overlay=None):
    """The validated configuration of config.yaml with a preset's overlay (or a list of them) merged as Snakemake merges them (dicts deeply, lists replaced)."""
    overlays = overlay if isinstance(overlay, list) else [overlay]
    parsed = [_parsed(path) for path in [*filter(None, overlays), configuration]]  # a fault of an overlay is told first
    merged = parsed.pop()
    for values in parsed:
        _merge(merged, values)
    return load(merged)


def _parsed(path):
    import yaml  # Snakemake, which imports this module as well, has parsed the files by itself

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; check the path")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of YAML, of UTF-8 or of a date that does not exist, of endless nesting
        raise InputError(f"{path} is not valid YAML ({error}); mend it there") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold keys and values (as config.yaml does), not {type(values).__name__}")
    return values


def _merge(into, values):
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def one(items, **values):
    """The single item whose attributes equal `values`; raises `InputError` otherwise."""
    found = [item for item in items if all(getattr(item, key) == value for key, value in values.items())]
    if len(found) != 1:
        raise InputError(f"{len(found)} entries match {values}; expected one")
    return found[0]


def as_json(options, **changes):
    """Options as one sorted JSON string: how a rule passes them to the command line."""
    return json.dumps(options.model_copy(update=changes).model_dump(mode="json"), sort_keys=True)
