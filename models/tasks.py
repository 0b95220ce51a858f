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
from models.scorer import Judge, Scorer, augment
from models.sheets import generate, make_pipeline, save_sheet, to_images
from models.text import tokenize
from models.unets import make_scheduler

CAPTIONS_PER_ICON = 16
EMPTY_CAPTION_SHARE = 0.1  # classifier-free guidance needs the unconditional prediction (Ho and Salimans 2022)
SNR_LIMIT = 5.0
CHECKED_PICTURES = 256  # drawn with repetition, for the loss in the log


def as_tensor(icons: Icons) -> Tensor:
    """Pictures as `[N, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(icons.pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def caption_tokens(tokenizer: CLIPTokenizer, icons: Icons) -> Tensor:
    """Token ids of several wordings for each icon, `[N, CAPTIONS_PER_ICON, MAX_TOKENS]`."""
    random = Random(0)
    captions = [varied_caption(icons, i, random) for i in range(len(icons)) for _ in range(CAPTIONS_PER_ICON)]
    return tokenize(tokenizer, captions).view(len(icons), CAPTIONS_PER_ICON, -1)


class DecoderTask:
    """Train the decoder of the autoencoder on pictures and their fixed latents."""

    def __init__(self, vae: AutoencoderTiny, icons: Icons, *, sheet_pictures: int = 24, device: str) -> None:
        """Encode all pictures once; the held-out ones are for the sheet."""
        trained, held_out = icons.select(held_out=False), icons.select(held_out=True)
        self.sheet_pictures = sheet_pictures
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
        save_sheet([to_images(part[: self.sheet_pictures]) for part in (pictures, decoded)], path)
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
        sheet_pictures: int = 24,
        device: str,
    ) -> None:
        """Encode all pictures and tokenize their captions once; the held-out ones are for the log."""
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
        self.tokens = caption_tokens(tokenizer, icons).to(device)
        self.empty = tokenize(tokenizer, [""])[0].to(device)
        held_out = torch.from_numpy(icons.held_out)
        self.trained, self.held_out = torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()
        self.scheduler = make_scheduler()
        shown = self.trained[:: max(len(self.trained) // sheet_pictures, 1)][:sheet_pictures]
        self.sheet_prompts = [plain_caption(icons, int(i)) for i in shown]

    def loss(self, batch_size: int, random: torch.Generator) -> Tensor:
        """Weighted squared error of v, or of the guide's prediction, at random noise levels."""
        rows = self.trained[torch.randint(len(self.trained), (batch_size,), generator=random)]
        return self._error(self.unet, self.text_encoder, rows, random, guide=self.guide)

    def _error(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        rows: Tensor,
        random: torch.Generator,
        *,
        guide: UNet2DConditionModel | None = None,
    ) -> Tensor:
        batch_size, device = len(rows), self.latents.device
        latents = self.latents[rows]
        tokens = self.tokens[rows, torch.randint(CAPTIONS_PER_ICON, (batch_size,), generator=random)]
        is_empty = torch.rand(batch_size, 1, generator=random) < EMPTY_CAPTION_SHARE
        tokens = torch.where(is_empty.to(device), self.empty, tokens)
        # One timestep from each of batch_size equal ranges: the loss varies less than with independent draws.
        ranks = (torch.arange(batch_size) + torch.rand(batch_size, generator=random)) / batch_size
        timesteps = (ranks * len(self.scheduler.alphas_cumprod)).long().to(device)
        noise = torch.randn(latents.shape, generator=random).to(device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        embeds = text_encoder(tokens).last_hidden_state
        if guide is None:
            target = self.scheduler.get_velocity(latents, noise, timesteps)
        else:
            with torch.no_grad():
                target = guide(noisy, timesteps, embeds).sample.float()
        prediction = unet(noisy, timesteps, embeds).sample.float()
        errors = F.mse_loss(prediction, target, reduction="none").mean((1, 2, 3))
        return (errors * self._weights(timesteps)).mean()

    def _weights(self, timesteps: Tensor) -> Tensor:
        """Weigh down steps of little noise, which are easy and change the picture little (after Hang et al. 2023)."""
        kept: Tensor = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = kept / (1 - kept)
        return ((SNR_LIMIT + 1) / (snr + 1)).clamp(max=1)

    @torch.no_grad()
    def draw_sheet(self, averaged: dict[str, Any], path: Path) -> str:
        """Samples of the averaged weights, guidance 3 above guidance 1.5; their loss on both sides of the split."""
        unet, text_encoder = averaged[self.unet_name], averaged.get("text_encoder", self.text_encoder)
        pipeline = make_pipeline(self.vae, text_encoder, self.tokenizer, unet)
        rows = []
        for guidance_scale in (3.0, 1.5):
            rows.append(generate(pipeline, self.sheet_prompts, guidance_scale=guidance_scale))
        save_sheet(rows, path)
        errors = {}
        for name, side in (("trained", self.trained), ("held-out", self.held_out)):
            random = torch.Generator().manual_seed(0)  # the same pictures and noise every time
            chosen = side[torch.randint(len(side), (CHECKED_PICTURES,), generator=random)]
            errors[name] = float(self._error(unet, text_encoder, chosen, random))
        return ", ".join(f"loss {name} {error:.4f}" for name, error in errors.items())


class ScorerTask:
    """Train the scorer to find the caption of each picture among those of a batch, and the other way round.

    A batch holds one style, so that what is compared differs in what it shows and not in how it is drawn.
    """

    def __init__(
        self, scorer: Scorer, tokenizer: CLIPTokenizer, icons: Icons, *, sheet_pictures: int = 24, device: str
    ) -> None:
        """Tokenize the captions of the trained icons; `icons` also has the held-out ones, for the log."""
        self.modules = {"scorer": scorer.to(device)}
        self.tokenizer, self.icons, self.sheet_pictures = tokenizer, icons, sheet_pictures
        trained = icons.select(held_out=False)
        self.pictures = as_tensor(trained).to(device)
        self.tokens = caption_tokens(tokenizer, trained).to(device)
        styles = sorted(set(trained.styles))
        self.rows = [torch.tensor([i for i, s in enumerate(trained.styles) if s == style]) for style in styles]
        self.style_shares = torch.tensor([float(len(rows)) for rows in self.rows])

    def loss(self, batch_size: int, random: torch.Generator) -> Tensor:
        """Cross-entropy both ways (Radford et al. 2021, figure 3)."""
        rows = self.rows[int(torch.multinomial(self.style_shares, 1, generator=random))]
        rows = rows[torch.randperm(len(rows), generator=random)[:batch_size]]
        pictures = augment(self.pictures[rows], random)
        tokens = self.tokens[rows, torch.randint(CAPTIONS_PER_ICON, (len(rows),), generator=random)]
        logits = self.modules["scorer"](pictures, tokens)
        targets = torch.arange(len(rows), device=logits.device)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2

    @torch.no_grad()
    def draw_sheet(self, averaged: dict[str, Any], path: Path) -> str:
        """Held-out pictures above the picture of the caption that the averaged scorer gives them."""
        judge = Judge(averaged["scorer"], self.tokenizer, self.icons, device=self.pictures.device)
        pictures = as_tensor(self.icons)
        figures = []
        for name, held_out in (("trained", False), ("held-out", True)):
            wanted = [i for i in range(len(self.icons)) if self.icons.held_out[i] == held_out][:: 1 if held_out else 20]
            ranks, best = judge.best(pictures[wanted], wanted)
            figures.append(f"{name} top-1 {sum(rank == 0 for rank in ranks) / len(ranks):.1%}")
        shown = slice(None, None, max(len(wanted) // self.sheet_pictures, 1))
        save_sheet([to_images(pictures[wanted[shown]]), to_images(pictures[best[shown]])], path)
        return ", ".join(figures)
