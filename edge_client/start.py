"""Where a generation starts: at the seed's noise, at that of a file, or at a picture with noise."""

from __future__ import annotations

import torch

from diffusion.model import StartsFromPicture
from diffusion.noise import draw_noise
from diffusion.picture_start import noisy_picture
from diffusion.schedule import Schedule
from diffusion.tensors import from_array, to_array
from edge_client.edge_model import EdgeModel
from edge_client.noise_file import read_noise
from edge_client.picture_file import read_picture
from edge_client.request import GenerationRequest
from wire.messages import Noise, Seed, State
from wire.messages import Start as CloudStart


class Start:
    """The start of one generation; the files that the request names are read now.

    Args:
        request: What is asked for, with the picture's size in it.
        edge: Encodes the picture: it goes nowhere else.
        latents_shape: In the model's layout.

    Raises:
        ValueError: A file does not hold what it should.
        OSError: It cannot be read.
    """

    def __init__(self, request: GenerationRequest, edge: EdgeModel, latents_shape: tuple[int, ...]) -> None:
        self._request = request
        self._edge = edge
        self._latents_shape = latents_shape
        self._noise = None if request.initial_latents is None else read_noise(request.initial_latents, latents_shape)
        self._picture = None if request.image is None else read_picture(request.image)
        self._state: State | None = None

    async def encode_picture(self, schedule: Schedule) -> None:
        """Encode the picture and add the noise; without one there is nothing to do."""
        if self._picture is None:
            return
        request, model = self._request, self._edge.model
        assert isinstance(model, StartsFromPicture), "`GenerationRequest.for_model` has seen to it"
        assert request.height is not None
        assert request.width is not None
        start_step = request.plan_options.start_step
        latents = await self._edge.run(
            noisy_picture,
            model,
            self._picture,
            schedule,
            start_step,
            size=(request.height, request.width),
            num_images=request.num_images,
            seed=request.seed,
            noise=None if self._noise is None else torch.from_numpy(self._noise),
        )
        self._state = State(step_index=start_step, latents=to_array(latents))

    def for_cloud(self) -> CloudStart:
        """Return what a cloud is told."""
        noise = Seed(seed=self._request.seed) if self._noise is None else Noise(noise=self._noise)
        return self._state or noise

    def latents(self, init_noise_sigma: float) -> torch.Tensor:
        """Return x at the first step, `[B, C, H, W]`, float32, on the CPU."""
        if self._state is not None:
            return from_array(self._state.latents)
        if self._noise is not None:
            return torch.from_numpy(self._noise) * init_noise_sigma
        return draw_noise(self._latents_shape, self._request.seed) * init_noise_sigma
