"""The scorer: a small image and text encoder that says which emoji a picture shows.

Trained as CLIP is (Radford et al. 2021, arXiv 2103.00020) on real pictures alone, so that its verdict on generated
ones is a second opinion: it shares the tokenizer with the pair, and nothing else.
"""

from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Encoder
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from models.captions import plain_caption
from models.data import Icons
from models.text import text_config, tokenize

UNSHUFFLE = 4  # pixels of a side that become channels, before the convolutions


class Scorer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Embeds pictures and captions in one space, where a picture's own caption is the nearest.

    Args:
        vocab_size: Of the tokenizer.
        channels: Widths of the image encoder, each level half the size of the one before.
        embed_dim: Size of the common space.
        eos_token_id: Of the tokenizer; the text's features are taken there.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, vocab_size: int, channels: tuple[int, ...] = (32, 80, 160), embed_dim: int = 128, eos_token_id: int = 1
    ) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(UNSHUFFLE)
        self.image_encoder = Encoder(
            in_channels=3 * UNSHUFFLE**2,
            out_channels=channels[-1],
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=1,
            norm_num_groups=8,
            double_z=False,
            mid_block_add_attention=False,
        )
        self.image_projection = nn.Linear(channels[-1], embed_dim, bias=False)
        self.text_encoder = CLIPTextModel(
            text_config(vocab_size, width=128, num_layers=2, eos_token_id=eos_token_id, bos_token_id=0)
        )
        self.text_projection = nn.Linear(128, embed_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def image_features(self, pictures: Tensor) -> Tensor:
        """Pooled features before the projection, `[N, channels[-1]]`, of pictures `[N, 3, H, W]` in [-1, 1]."""
        # On white, which is 0 here: an empty border says nothing.
        features: Tensor = self.image_encoder(self.unshuffle(pictures - 1))
        return features.mean((2, 3))

    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Unit vectors `[N, embed_dim]` of pictures `[N, 3, H, W]` in [-1, 1]."""
        return F.normalize(self.image_projection(self.image_features(pictures)).float(), dim=-1)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Unit vectors `[N, embed_dim]` of captions' token ids `[N, MAX_TOKENS]`."""
        return F.normalize(self.text_projection(self.text_encoder(tokens).pooler_output).float(), dim=-1)

    def forward(self, pictures: Tensor, tokens: Tensor) -> Tensor:
        """Similarities `[num_pictures, num_captions]`, scaled for a softmax."""
        scale = self.log_scale.clamp(max=4.6).exp()  # at most 100, as in CLIP
        return scale * self.embed_pictures(pictures) @ self.embed_tokens(tokens).T


class Judge:
    """A trained scorer and the captions that it chooses among.

    Args:
        scorer: The trained scorer.
        tokenizer: The one that it was trained with.
        icons: Every concept of every style; a picture's rivals are all those of its style.
        device: Where the scorer is.
    """

    def __init__(
        self, scorer: Scorer, tokenizer: CLIPTokenizer, icons: Icons, *, device: torch.device | str = "cpu"
    ) -> None:
        self.scorer, self.device = scorer.eval(), device
        self.icons = icons
        tokens = tokenize(tokenizer, [plain_caption(icons, i) for i in range(len(icons))]).to(device)
        with torch.inference_mode():
            self._captions = torch.cat([scorer.embed_tokens(part) for part in tokens.split(512)]).cpu()
        styles = torch.tensor([sorted(set(icons.styles)).index(style) for style in icons.styles])
        self._same_style = styles[:, None] == styles[None, :]

    @torch.inference_mode()
    def best(self, pictures: Tensor, wanted: list[int]) -> tuple[list[int], list[int]]:
        """Choose, for each picture, among the captions of the wanted icon's style.

        Args:
            pictures: `[N, 3, H, W]` in [-1, 1].
            wanted: Index into `icons` of what each should show.

        Returns:
            The rank of the wanted caption of each picture, from 0 (a tie counts against it), and the index of the
            best caption.

        Raises:
            ValueError: If a picture is not finite.
        """
        if not bool(torch.isfinite(pictures).all()):
            raise ValueError("the pictures hold values that are not finite")
        embeds = torch.cat([self.scorer.embed_pictures(part.to(self.device)).cpu() for part in pictures.split(256)])
        similarities = embeds @ self._captions.T
        similarities = similarities.masked_fill(~self._same_style[wanted], -torch.inf)
        own = similarities.gather(1, torch.tensor(wanted)[:, None])
        return ((similarities >= own).sum(1) - 1).tolist(), similarities.argmax(1).tolist()

    @torch.inference_mode()
    def features(self, pictures: Tensor) -> Tensor:
        """Pooled image features `[N, F]`, float64, for distances between sets of pictures."""
        return torch.cat(
            [self.scorer.image_features(part.to(self.device)).cpu() for part in pictures.split(256)]
        ).double()


def load_scorer(folder: Path) -> tuple[Scorer, CLIPTokenizer]:
    """Load the scorer beside a pair, `PAIR/scorer`, in float32."""
    return Scorer.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder / "tokenizer")


def augment(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Move, scale, blur, tint and disturb pictures, as generated ones differ from real ones.

    Args:
        pictures: `[N, 3, H, W]` in [-1, 1], on white.
        random: Every draw comes from here.
    """
    count = len(pictures)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(count, *shape, generator=random)).to(pictures.device)

    transform = torch.zeros(count, 2, 3, device=pictures.device)
    transform[:, 0, 0] = transform[:, 1, 1] = draw(0.9, 1.15)
    transform[:, :, 2] = draw(-0.1, 0.1, 2)
    grid = F.affine_grid(transform, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures - 1, grid, align_corners=False) + 1  # what comes in from outside is white
    blurred = moved
    for _ in range(2):
        blurred = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    mixed = torch.lerp(moved, blurred, draw(0, 1, 1, 1, 1))
    tinted = 1 - (1 - mixed) * draw(0.9, 1.1, 3, 1, 1)
    noise = torch.randn(pictures.shape, generator=random).to(pictures.device)
    return (tinted + draw(0, 0.15, 1, 1, 1) * noise).clamp(-1, 1)
