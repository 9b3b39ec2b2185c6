"""Where quality is lost between native structures and samples: the same chains after each stage of the way.

    native -> its reconstruction -> decoded from a noised latent -> noised farther and denoised -> sampled from noise

What a row loses against the one above it is the fault of what lies between them: of the encoder and decoder, of the
decoder's tolerance, of the denoiser at low noise, of the denoiser at high noise.
"""

from collections.abc import Iterator, Sequence

import torch

from ophio.autoencoder import Autoencoder
from ophio.cloud import Cloud
from ophio.diffusion import LatentDiffusion
from ophio.diffusion.process import centred_noise
from ophio.foldability import Foldability
from ophio.metrics import helix_strand_content
from ophio.protein import Protein, stack
from ophio.sampling import SamplerSettings, finished, generate, latent_of, sampled, told

NATIVE, RECONSTRUCTION, SAMPLES = "native", "reconstruction", "samples"


def stages(
    natives: Sequence[Protein],
    diffusion: LatentDiffusion,
    autoencoder: Autoencoder,
    settings: SamplerSettings,
    noised: Sequence[float],
    denoised: Sequence[float],
    seed: int = 0,
    foldability: Foldability | None = None,
) -> Iterator[tuple[str, list[Protein]]]:
    """The name of each stage and what becomes of the chains there; all but the natives with the finish of `settings`.

    Args:
        noised: standard deviations of the noise on standardised latents that are decoded as they are.
        denoised: noise levels from which the sampler of `settings` goes back, asked for the helix and strand of the native.
        foldability: of the model, where its samples are drafted (`ophio.sampling.generate`).

    Samples have the lengths of the natives and nothing else of them.
    """
    batch, lengths = stack(natives), [chain.num_residues for chain in natives]
    seeds = [seed + k for k in range(len(natives))]
    with torch.no_grad():
        latent = autoencoder.encode(batch)

        def decoded(cloud: Cloud) -> list[Protein]:
            chains = autoencoder.decode(latent_of(cloud, latent.residue_mask)).unstack(lengths)
            if not settings.idealize:
                return chains
            return [chain for chain in finished(chains, settings.hold_torsions)[0] if chain is not None]

        yield NATIVE, list(natives)
        yield RECONSTRUCTION, decoded(latent.cloud)
        clean = diffusion.standardizer(latent.cloud)
        for sigma in noised:
            noise = centred_noise(clean, [torch.Generator().manual_seed(k) for k in seeds])
            yield f"latent noise {sigma:g}", decoded(diffusion.standardizer.inverse(clean + noise * sigma))
        asked = told(settings, lengths, torch.tensor([helix_strand_content(chain) for chain in natives]))
        for sigma in denoised:
            generators = [torch.Generator().manual_seed(k) for k in seeds]
            cloud = sampled(diffusion, latent.cloud.mask, asked, generators, settings, latent.cloud, sigma)
            yield f"noise {sigma:g}, denoised", decoded(cloud)
    drawn = generate(diffusion, autoencoder, lengths, seeds, settings, foldability)
    yield SAMPLES, [sample.protein for sample in drawn if sample.protein is not None]
