"""The autoencoder: a linear encoder computed in closed form, and a convolutional decoder trained to undo it.

The encoder is the principal component analysis of picture patches, written into the convolutions of a stock
`AutoencoderTiny`. It needs no training, so latents exist at once and the UNets can start beside the decoder.
"""

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

PATCH = 8  # pixels of a latent's side: three stride-2 convolutions
LATENT_CHANNELS = 32
# Components are divided by std ** (1 - FLATTEN): 0 would whiten them, 1 keep their natural spread. In between,
# fine detail is not drowned by the noise until the last steps, and coarse shape still weighs most in the loss.
FLATTEN = 0.5
# The decoder squashes its input by 3 tanh(x / 3); latents half as large pass almost unchanged.
SCALING_FACTOR = 2.0


def make_autoencoder(pictures: Tensor, *, decoder_channels: int = 48) -> AutoencoderTiny:
    """Build the autoencoder with its encoder fitted to `pictures` and its decoder untrained.

    Args:
        pictures: `[N, 3, H, W]` in [-1, 1].
        decoder_channels: Width of the decoder at every resolution.
    """
    encoder_channels = 3 * PATCH * PATCH // 4  # the patch, before the last stride-2 convolution
    vae = AutoencoderTiny(
        encoder_block_out_channels=(encoder_channels,) * 4,
        decoder_block_out_channels=(decoder_channels,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        num_decoder_blocks=(4, 4, 1, 0),
        latent_channels=LATENT_CHANNELS,
        scaling_factor=SCALING_FACTOR,
    )
    weight, bias = _patch_components((pictures + 1) / 2)
    _write_encoder(vae, weight, bias)
    vae.encoder.requires_grad_(False)
    return vae


def encode(vae: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """Latents as the UNets see them: scaled to about unit variance, `[N, C, H / 8, W / 8]`."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latents for part in pictures.split(256)])
    return latents * float(vae.config.scaling_factor)


def decode(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Pictures in [-1, 1], not clamped, from latents as the UNets see them."""
    pictures: Tensor = vae.decode(latents / vae.config.scaling_factor).sample
    return pictures


def decoder_loss(vae: AutoencoderTiny, pictures: Tensor, latents: Tensor, noise: Tensor) -> Tensor:
    """Squared error with a little absolute and edge error, on latents as imperfect as a sampler's."""
    decoded = decode(vae, latents + noise)
    edges = sum(F.l1_loss(decoded.diff(dim=axis), pictures.diff(dim=axis)) for axis in (-1, -2))
    return F.mse_loss(decoded, pictures) + 0.05 * F.l1_loss(decoded, pictures) + 0.05 * edges


def psnr(decoded: Tensor, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1]."""
    error = F.mse_loss(decoded.clamp(-1, 1), pictures)
    return float(10 * torch.log10(4 / error))


def _patch_components(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled principal directions `[LATENT_CHANNELS, 3, PATCH, PATCH]` and the bias that centres them."""
    patches = F.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, 3 * PATCH * PATCH).double()
    mean = patches.mean(0)
    centred = patches - mean
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    std = variances[-LATENT_CHANNELS:].flip(0).sqrt()
    directions = directions[:, -LATENT_CHANNELS:].flip(1).T
    directions = directions * directions.sum(1, keepdim=True).sign()  # an eigenvector's sign is arbitrary
    gain = std.pow(FLATTEN - 1)
    gain = gain / (std * gain).square().mean().sqrt() / SCALING_FACTOR
    weight = directions * gain[:, None]
    return weight.reshape(-1, 3, PATCH, PATCH).float(), -(weight @ mean).float()


def _write_encoder(vae: AutoencoderTiny, weight: Tensor, bias: Tensor) -> None:
    """Embed one `PATCH x PATCH` stride-`PATCH` convolution into the stock 3x3 convolutions.

    Each stride-2 convolution copies a 2x2 block of pixels into channels, using the taps at offsets 0 and 1; the
    third projects instead of copying.
    """
    first, half, quarter, project, last = vae.encoder.layers
    with torch.no_grad():
        for layer in (first, half, quarter, project, last):
            layer.weight.zero_()
        first.bias.zero_()
        for channel in range(3):
            first.weight[channel, channel, 1, 1] = 1
        for layer, num_channels in ((half, 3), (quarter, 12)):
            for row in range(2):
                for column in range(2):
                    for channel in range(num_channels):
                        out = (row * 2 + column) * num_channels + channel
                        layer.weight[out, channel, 1 + row, 1 + column] = 1
        for row in range(PATCH):
            for column in range(PATCH):
                # Pixel (row, column) of a patch: coarsest bit is the tap here, then the two copies' channel blocks.
                tap_row, tap_column = row // 4, column // 4
                outer = (row // 2 % 2) * 2 + column // 2 % 2
                inner = (row % 2) * 2 + column % 2
                channel = outer * 12 + inner * 3
                project.weight[:LATENT_CHANNELS, channel : channel + 3, 1 + tap_row, 1 + tap_column] = weight[
                    :, :, row, column
                ]
        for channel in range(LATENT_CHANNELS):
            last.weight[channel, channel, 1, 1] = 1
        last.bias.copy_(bias)
