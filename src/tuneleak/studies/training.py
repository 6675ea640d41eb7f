"""The section of config.yaml that says how the shipped models are rebuilt."""

from pydantic import Field

from tuneleak.options import (
    AutoencoderOptions,
    BaseOptions,
    EmbedderOptions,
    Options,
    Positive,
)


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
