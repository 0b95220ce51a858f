"""What each stage trains: its networks, its loss and its sample sheet."""

from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from models.autoencoder import decode, decoder_loss, encode, psnr
from models.captions import plain_caption, varied_caption
from models.data import Icons
from models.sheets import generate, make_pipeline, save_sheet, to_images
from models.text import tokenize
from models.unets import make_scheduler

CAPTIONS_PER_ICON = 16
EMPTY_CAPTION_SHARE = 0.1  # classifier-free guidance needs the unconditional prediction (Ho and Salimans 2022)
SNR_LIMIT = 5.0
SHEET_PICTURES = 24


def as_tensor(icons: Icons) -> Tensor:
    """Pictures as `[N, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(icons.pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


class DecoderTask:
    """Train the decoder of the autoencoder on pictures and their fixed latents."""

    def __init__(self, vae: AutoencoderTiny, trained: Icons, held_out: Icons, *, device: str) -> None:
        """Encode all pictures once."""
        self.modules = {"vae": vae.to(device, memory_format=torch.channels_last)}  # 1.4 times faster convolutions
        self.pictures, self.held_out = (as_tensor(part).to(device) for part in (trained, held_out))
        self.latents = encode(vae, self.pictures).contiguous(memory_format=torch.channels_last)

    def loss(self, batch_size: int, random: torch.Generator) -> Tensor:
        """Reconstruction loss, with latents disturbed up to what a sampler leaves behind."""
        rows = torch.randint(len(self.pictures), (batch_size,), generator=random)
        latents = self.latents[rows]
        strength = 0.15 * torch.rand(batch_size, 1, 1, 1, generator=random)
        noise = (strength * torch.randn(latents.shape, generator=random)).to(latents)
        vae = self.modules["vae"]
        return decoder_loss(vae, self.pictures[rows], latents, noise)

    @torch.no_grad()
    def draw_sheet(self, averaged: dict[str, Any], path: Path) -> str:
        """Held-out pictures above their reconstructions."""
        vae, pictures = averaged["vae"], self.held_out
        decoded = decode(vae, encode(vae, pictures))
        save_sheet([to_images(part[:16]) for part in (pictures, decoded, pictures[16:], decoded[16:])], path)
        seen = self.pictures[: len(pictures)]
        return f"PSNR held-out {psnr(decoded, pictures):.2f} dB, seen {psnr(decode(vae, encode(vae, seen)), seen):.2f}"


class DenoiserTask:
    """Train a UNet, and the text encoder with it unless that is frozen, to predict v.

    With `guide`, the target is that network's prediction instead of the true v: what it averages over the pictures
    a noisy one may have come from, a less noisy target (Hinton et al. 2015).
    """

    def __init__(
        self,
        unet_name: str,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        vae: AutoencoderTiny,
        icons: Icons,
        *,
        train_text: bool,
        guide: UNet2DConditionModel | None = None,
        device: str,
    ) -> None:
        """Encode all pictures and tokenize their captions once."""
        self.unet_name, self.unet = unet_name, unet
        self.text_encoder, self.tokenizer, self.vae = text_encoder.to(device), tokenizer, vae.to(device)
        self.guide = guide.to(device).eval() if guide else None
        self.modules: dict[str, Any] = {unet_name: unet}
        if train_text:
            self.modules["text_encoder"] = text_encoder
        else:
            text_encoder.requires_grad_(False)
        if device == "cpu":  # the fused attention's backward pass is slow there
            for network in (unet, guide):
                if network is not None:
                    network.set_attn_processor(AttnProcessor())
        self.latents = encode(self.vae, as_tensor(icons).to(device))
        random = Random(0)
        captions = [varied_caption(icons, i, random) for i in range(len(icons)) for _ in range(CAPTIONS_PER_ICON)]
        self.tokens = tokenize(tokenizer, captions).view(len(icons), CAPTIONS_PER_ICON, -1).to(device)
        self.empty = tokenize(tokenizer, [""])[0].to(device)
        self.scheduler = make_scheduler()
        stride = max(len(icons) // SHEET_PICTURES, 1)
        self.sheet_prompts = [plain_caption(icons, i) for i in range(0, len(icons), stride)][:SHEET_PICTURES]

    def loss(self, batch_size: int, random: torch.Generator) -> Tensor:
        """Weighted squared error of v at random noise levels."""
        device = self.latents.device
        rows = torch.randint(len(self.latents), (batch_size,), generator=random)
        latents = self.latents[rows]
        tokens = self.tokens[rows, torch.randint(CAPTIONS_PER_ICON, (batch_size,), generator=random)]
        is_empty = torch.rand(batch_size, 1, generator=random) < EMPTY_CAPTION_SHARE
        tokens = torch.where(is_empty.to(device), self.empty, tokens)
        # One timestep from each of batch_size equal ranges: the loss varies less than with independent draws.
        ranks = (torch.arange(batch_size) + torch.rand(batch_size, generator=random)) / batch_size
        timesteps = (ranks * len(self.scheduler.alphas_cumprod)).long().to(device)
        noise = torch.randn(latents.shape, generator=random).to(device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        embeds = self.text_encoder(tokens).last_hidden_state
        if self.guide is None:
            target = self.scheduler.get_velocity(latents, noise, timesteps)
        else:
            with torch.no_grad():
                target = self.guide(noisy, timesteps, embeds).sample.float()
        prediction = self.unet(noisy, timesteps, embeds).sample.float()
        errors = F.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))
        return (errors * self._weights(timesteps)).mean()

    def _weights(self, timesteps: Tensor) -> Tensor:
        """Weigh down steps of little noise, which are easy and change the picture little (after Hang et al. 2023)."""
        kept: Tensor = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = kept / (1 - kept)
        return ((SNR_LIMIT + 1) / (snr + 1)).clamp(max=1)

    @torch.no_grad()
    def draw_sheet(self, averaged: dict[str, Any], path: Path) -> str:
        """Samples of the averaged weights, guidance 3 above guidance 1.5."""
        text_encoder = averaged.get("text_encoder", self.text_encoder)
        pipeline = make_pipeline(self.vae, text_encoder, self.tokenizer, averaged[self.unet_name])
        rows = []
        for guidance_scale in (3.0, 1.5):
            images = generate(pipeline, self.sheet_prompts, guidance_scale=guidance_scale)
            rows += [images[: SHEET_PICTURES // 2], images[SHEET_PICTURES // 2 :]]
        save_sheet(rows, path)
        return "; ".join(self.sheet_prompts)
