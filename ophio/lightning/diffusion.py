"""Training of the latent diffusion model: optimiser, logging, and samples to look at."""

from collections.abc import Callable, Mapping, Sequence

import lightning
from lightning.pytorch.utilities.types import OptimizerLRScheduler
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import Optimizer

from ophio.autoencoder import Autoencoder
from ophio.data.latents import LatentBatch
from ophio.diffusion import LatentDiffusion
from ophio.lightning.schedule import warmup_cosine
from ophio.sampling import SamplerSettings, generate, sample_statistics

LEVELS = (0.05, 0.2, 0.5, 1.0, 3.0, 10.0)  # of noise, at which validation looks
SHOWN = (
    "valid_residues", "clashes", "chain_breaks", "left_handed_helices", "rama_outliers",
    "helix", "strand", "with_strand", "compactness",
)  # fmt: skip


class DiffusionModule(lightning.LightningModule):
    """Trains a denoiser on latents, and validates it level by level and by what it samples.

    Args:
        model: with its standardizer set.
        autoencoder: decodes the samples of the validation; not trained.
        optimizer: parameters -> optimiser.
        warmup_steps, total_steps: of the learning-rate schedule.
        forget_content: probability of training without a condition on content (see `Conditions.forget`).
        sample_lengths: residues of the samples that every validation draws; empty for none.
        corpus_below: noise level above which sampled chains alone are learned from (`corpus_below_level`): folds from
            them, precision from all; None: every chain at every level.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        autoencoder: Autoencoder,
        optimizer: Callable[..., Optimizer],
        warmup_steps: int = 200,
        total_steps: int = 10_000,
        forget_content: float = 0.2,
        sample_lengths: Sequence[int] = (),
        corpus_below: float | None = None,
    ):
        super().__init__()
        self.model = model
        self._frozen = (autoencoder.eval().requires_grad_(False),)  # in a tuple: its weights are not this module's
        self.optimizer, self.warmup_steps, self.total_steps = optimizer, warmup_steps, total_steps
        self.forget_content, self.sample_lengths = forget_content, tuple(sample_lengths)
        self.corpus_below = corpus_below

    def training_step(self, batch: LatentBatch, batch_index: int) -> Tensor:
        count = len(batch.cloud.mask)
        sigma = self.model.process.schedule.draw(count).to(batch.cloud.positions)
        if self.corpus_below is not None:
            sigma = corpus_below_level(sigma, batch.sampled, self.corpus_below)
        loss = self.model.loss(batch.cloud, batch.conditions.forget(self.forget_content), sigma).mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=count)
        return loss

    def validation_step(self, batch: LatentBatch, batch_index: int) -> None:
        count = len(batch.cloud.mask)
        conditions = batch.conditions.without_content()
        losses = {}
        with torch.random.fork_rng():
            torch.manual_seed(batch_index)  # the same noise at every validation
            for level in LEVELS:
                sigma = batch.cloud.positions.new_full((count,), level)
                losses[f"val/sigma_{level}"] = self.model.loss(batch.cloud, conditions, sigma).mean()
        losses["val/loss"] = torch.stack(list(losses.values())).mean()
        self.log_dict(losses, batch_size=count, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if self.sample_lengths:
            self.log_dict({f"val/{name}": value for name, value in self._sample().items()}, sync_dist=True)

    def _sample(self) -> Mapping[str, float]:
        autoencoder = self._frozen[0].to(self.device)
        seeds = range(len(self.sample_lengths))
        drawn = generate(self.model, autoencoder, self.sample_lengths, seeds, SamplerSettings())
        found = sample_statistics([sample.protein for sample in drawn if sample.protein is not None])
        return {name: found[name] for name in SHOWN if name in found}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.model.parameters())
        schedule = warmup_cosine(optimizer, self.warmup_steps, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def corpus_below_level(
    sigma: Float[Tensor, "batch"], sampled: Bool[Tensor, "batch"], level: float
) -> Float[Tensor, "batch"]:
    """Noise levels with those of chains that were not sampled mirrored, on a logarithmic scale, to below `level`."""
    return torch.where(sampled, sigma, torch.minimum(sigma, level**2 / sigma))
