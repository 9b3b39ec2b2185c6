"""Training of the autoencoder: optimiser and logging; the loss and the model say what is learnt."""

from collections.abc import Callable

import lightning
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from ophio.autoencoder import Autoencoder
from ophio.lightning.schedule import warmup_cosine
from ophio.losses import ReconstructionLoss
from ophio.metrics import reconstruction_report
from ophio.protein import Protein

REPORTED = ("ca_rmsd", "all_atom_rmsd", "residue_accuracy", "bond_outliers", "angle_outliers", "chirality_errors")


class AutoencoderModule(lightning.LightningModule):
    """Trains an autoencoder on batches of `Protein`, and validates what a user would get from it.

    Args:
        model, loss: what to train, and towards what.
        optimizer: parameters -> optimiser.
        warmup_steps, total_steps: of the learning-rate schedule.
    """

    def __init__(
        self,
        model: Autoencoder,
        loss: ReconstructionLoss,
        optimizer: Callable[..., Optimizer],
        warmup_steps: int = 200,
        total_steps: int = 10_000,
    ):
        super().__init__()
        self.model, self.loss = model, loss
        self.optimizer, self.warmup_steps, self.total_steps = optimizer, warmup_steps, total_steps

    def training_step(self, protein: Protein, batch_index: int) -> Tensor:
        protein = self.model.seen(protein)
        decoded, kl = self.model(protein)
        loss, terms = self.loss(decoded, kl, protein)
        size = len(protein.residue_type)
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in terms.items()}, batch_size=size)
        return loss

    def validation_step(self, protein: Protein, batch_index: int) -> None:
        """Metrics of what a user gets: residue types are predicted too."""
        protein = self.model.seen(protein)
        predicted = self.model.decode(self.model.encode(protein))
        report = reconstruction_report(predicted, protein)
        means = {f"val/{name}": report[name].float().mean() for name in REPORTED}
        self.log_dict(means, batch_size=len(protein.residue_type), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer([weight for weight in self.model.parameters() if weight.requires_grad])
        schedule = warmup_cosine(optimizer, self.warmup_steps, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
