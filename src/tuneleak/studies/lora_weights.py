"""The section of config.yaml on what LoRA weights alone reveal: victims, the attacker's models, encoders."""

from typing import Literal

from pydantic import Field

from tuneleak.options import (
    CollectOptions,
    Count,
    EvaluateOptions,
    FinetuneOptions,
    Options,
    Positive,
    SizeOptions,
    TransformOptions,
    WeightsRunOptions,
    WeightsTrainOptions,
)


class EncoderPlan(Options):
    """An encoder of weights under its name in the tables."""

    name: str = Field(description="name: spectral and autoencoder, their controls, or one of your own")
    options: WeightsTrainOptions = Field(description="how it is trained")


class OtherRecipe(Options):
    """Victims that were fine-tuned otherwise than the attacker's own models, on as many pictures or others, or that are nothing the attacker has models of."""

    name: str = Field(description="name; the tables say recipe-<name>")
    options: FinetuneOptions = Field(description="how they were fine-tuned (method lora, the recipe's rank and modules)")
    images: str = Field("", description="image set of other victims than the study's, artists where its encoders know people (empty: the study's)")
    split: str = Field("", description="split of that set (empty: all)")
    distractors: str = Field("", description="image set of further concepts of their gallery (needed with `images`)")
    identity_b: str = Field("", description="embedder that judges their pictures (empty: the study's)")
    guesses: list[str] = Field([], description="prompts guessed for them (empty: the study's)")
    world: str = Field("", description="name of their world in the tables (empty: the study's)")


class SizePlan(Options):
    """Recovery of the number of training pictures."""

    people: Positive = Field(description="people, each with one number of pictures")
    image_counts: list[Positive] = Field(description="numbers of pictures, in turn")
    photographs: Count = Field(0, description="photographs of each person, drawn for this part alone (people of the population; 0: those of train_images)")
    steps: list[Literal["total", "per-image"]] = Field(description="what is the same for all numbers of pictures; one data set each")
    options: SizeOptions = Field(description="the classifier")


class LoraWeights(Options):
    """The study of what LoRA weights alone reveal."""

    base: str = Field(description="base that is fine-tuned")
    world: str = Field(description="name of the world in the tables")
    train_images: str = Field(description="image set of the attacker's people")
    test_images: str = Field(description="image set of the victims")
    test_split: str = Field("", description="split of that set that is attacked (empty: all)")
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
    memory_gb: Positive = Field(8, description="memory that a job which trains an encoder asks for: it holds all training models, about twice")
    recipe: FinetuneOptions = Field(description="how victims, and the attacker's models, are fine-tuned (method lora)")
    train_seeds: list[int] = Field([], description="seeds of the attacker's models of one person (empty: the recipe's)")
    collect: CollectOptions = Field(description="the attacker's data set of weights; its recipe is the one above")
    encoders: list[EncoderPlan] = Field(description="attacks and controls that are trained")
    trunk: str = Field("", description="CLIP text encoder of the paper's attack (empty: the base's own)")
    run: WeightsRunOptions = Field(description="the attacks on the victims")
    transforms: list[TransformOptions] = Field(description="changes made to the victims' weights, each attacked")
    other_recipes: list[OtherRecipe] = Field([], description="the same victims fine-tuned otherwise, attacked by encoders that expect the recipe above")
    adaptive: list[str] = Field(description="transforms (kind, or kind-strength) against which attackers train anew who know them")
    sizes: SizePlan = Field(description="recovery of the number of training pictures")
    evaluate: EvaluateOptions = Field(description="metrics and intervals")

    def attackers_recipe(self):
        """How the attacker's own models are fine-tuned."""
        return self.recipe.model_copy(update={"seeds": self.train_seeds}) if self.train_seeds else self.recipe
