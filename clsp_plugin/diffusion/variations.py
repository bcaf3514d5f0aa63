"""Image-variation pipelines of diffusers as generators of candidates.

They draw new images by the embedding of an image in CLIP: Stable unCLIP (Ramesh et al., 2022; its
embedding gets noise, the more the freer) and Stable Diffusion Image Variations. GenView (Li et al.,
ECCV 2024) draws its views with the first. The anchor's embedding stands where text is otherwise;
the prompt is empty.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.v2.functional as F
from diffusers import StableDiffusionImageVariationPipeline, StableUnCLIPImg2ImgPipeline
from torch import nn

from clsp_plugin.data.keyed_random import key_normal, keys_for
from clsp_plugin.diffusion.autoencoder import Autoencoder, weights_digest
from clsp_plugin.diffusion.denoiser import fetch_pipeline, scheduler_config
from clsp_plugin.diffusion.drawer import Drawer, GenerationSettings
from clsp_plugin.diffusion.folders import INDEX, read_config
from clsp_plugin.diffusion.sampling import (
    CandidateNoise,
    advance,
    autocast,
    check_latent,
    to_float,
    to_uint8,
)
from clsp_plugin.errors import ClspError
from clsp_plugin.system.devices import fetch, to_device

__all__ = ["VariationDrawer", "Variations", "is_variation", "load_variations"]

_KINDS = {
    kind.__name__: kind
    for kind in (StableDiffusionImageVariationPipeline, StableUnCLIPImg2ImgPipeline)
}
_NETWORKS = ("image_encoder", "image_normalizer", "text_encoder", "unet", "vae")


def is_variation(source: str | Path) -> bool:
    """Whether a directory, or an id on the hub, is an image-variation pipeline."""
    folder = fetch_pipeline(source)
    if not (folder / INDEX).is_file():
        return False
    return read_config(folder / INDEX).get("_class_name") in _KINDS


class _Reached(Exception):
    """The middle block was reached, and nothing behind it is needed."""


class Variations:
    """An image-variation pipeline.

    Args:
        pipeline: a ``StableUnCLIPImg2ImgPipeline`` or ``StableDiffusionImageVariationPipeline``.
        config: configuration of its scheduler.

    Attributes:
        unet: its network.
        autoencoder: what makes images of latents.
        noisy: whether its embeddings get noise.
        size: height and width in pixels that it was trained for.
    """

    def __init__(self, pipeline: Any, config: Mapping[str, Any]):
        self.pipeline, self.config = pipeline, dict(config)
        self.unet = pipeline.unet
        self.autoencoder = Autoencoder(pipeline.vae)
        self.noisy = isinstance(pipeline, StableUnCLIPImg2ImgPipeline)
        if self.unet.config.in_channels != self.autoencoder.channels:
            raise ClspError(
                f"The autoencoder of this pipeline has latents of {self.autoencoder.channels} "
                f"channels and its network takes {self.unet.config.in_channels}; they do not "
                f"belong together."
            )
        self.size = self.unet.config.sample_size * self.autoencoder.factor
        self._prompt: torch.Tensor | None = None

    def _networks(self) -> Iterator[tuple[str, nn.Module]]:
        for name in _NETWORKS:
            network = getattr(self.pipeline, name, None)
            if network is not None:
                yield name, network

    @property
    def hash(self) -> str:
        """Hash of all networks and of the noise schedules: 16 hexadecimal digits."""
        digest = None
        for name, network in self._networks():
            other = weights_digest(network)
            digest = other if digest is None else digest
            digest.update(f"{name} {other.hexdigest()}".encode())
        assert digest is not None
        config = {k: v for k, v in sorted(self.config.items()) if k[0] != "_"}
        digest.update(f"{config} {self.autoencoder.hash}".encode())
        return digest.hexdigest()[:16]

    def to(self, device: torch.device) -> None:
        for _, network in self._networks():
            network.requires_grad_(False)
            network.to(device)

    @torch.inference_mode()
    def embed(self, anchors: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of images: uint8 (B, H, W, 3) to float32 (B, D)."""
        images = list(anchors.cpu().numpy())
        prepared = self.pipeline.feature_extractor(images=images, return_tensors="pt")
        encoder = self.pipeline.image_encoder
        return encoder(prepared.pixel_values.to(encoder.device)).image_embeds.float()

    def _noised(self, embeddings: torch.Tensor, noise: torch.Tensor, level: int) -> torch.Tensor:
        """Add noise to embeddings (B, D) and append its level: (B, 2 * D)."""
        return self.pipeline.noise_image_embeddings(embeddings, noise_level=level, noise=noise)

    def _nothing(self, number: int, device: torch.device) -> torch.Tensor:
        """Return the embedding of the empty prompt: (number, tokens, D)."""
        if self._prompt is None:
            self._prompt = self.pipeline.encode_prompt(
                prompt="", device=device, num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )[0]  # fmt: skip
        return self._prompt.expand(number, -1, -1)

    def given(
        self, embeddings: torch.Tensor, keys: torch.Tensor, level: int
    ) -> Callable[[bool], dict[str, torch.Tensor]]:
        """Return a function that returns the arguments of the network for the embeddings.

        Args:
            embeddings: (B * K, D).
            keys: int64 (B * K,), keys of the noise of the embeddings.
            level: level of that noise, for Stable unCLIP.

        Returns:
            Takes whether the embeddings are given (else zeros, for guidance).
        """
        if not self.noisy:
            states = embeddings[:, None]
            return lambda known: {"encoder_hidden_states": states if known else 0 * states}
        noise = key_normal(keys, embeddings.shape[1])
        labels = self._noised(embeddings, noise, level)
        prompt = self._nothing(len(labels), labels.device)
        return lambda known: {
            "encoder_hidden_states": prompt,
            "class_labels": labels if known else 0 * labels,
        }

    @contextlib.contextmanager
    def _middle(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
        handle = self.unet.mid_block.register_forward_hook(lambda *given: change(given[-1]))
        try:
            yield
        finally:
            handle.remove()

    def middle(self, x: torch.Tensor, t: int, given: Mapping[str, Any]) -> torch.Tensor:
        """Return the middle feature of noised latents."""
        found = []

        def stop(h: torch.Tensor) -> torch.Tensor:
            found.append(h)
            raise _Reached

        with self._middle(stop), contextlib.suppress(_Reached):
            self.unet(x, t, **given)
        return found[0]

    def estimate(
        self,
        x: torch.Tensor,
        t: int,
        given: Mapping[str, Any],
        anchor: torch.Tensor | None,
        w: float,
    ) -> torch.Tensor:
        """Return the network's estimate, its middle feature blended with an anchor's if given."""
        if anchor is None:
            return self.unet(x, t, **given).sample
        with self._middle(lambda h: w * h + (1.0 - w) * anchor):
            return self.unet(x, t, **given).sample


def load_variations(source: str | Path) -> Variations:
    """Load an image-variation pipeline, in float32 on the CPU.

    Args:
        source: its directory or its id on the Hugging Face hub.

    Raises:
        ClspError: it cannot be loaded, or transformers, which has CLIP, is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ClspError(
            "Image-variation pipelines need transformers: `pip install "
            "'clsp-plugin[transformers]'`."
        )
    folder = fetch_pipeline(source)
    kind = _KINDS[read_config(folder / INDEX)["_class_name"]]
    without: dict[str, Any] = {}
    if kind is StableDiffusionImageVariationPipeline:  # nothing is shown to anybody
        without = {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipeline = kind.from_pretrained(
            folder, local_files_only=True, low_cpu_mem_usage=False, **without
        )
    except Exception as error:  # diffusers may raise anything on a damaged or foreign file
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the system
        reason = " ".join(str(error).split())[:200]
        raise ClspError(
            f"The pipeline in {folder} cannot be loaded ({reason}); get it again."
        ) from error
    for part in _NETWORKS:
        network = getattr(pipeline, part, None)
        if network is not None:
            network.eval()
    return Variations(pipeline, scheduler_config(folder))


class VariationDrawer(Drawer):
    """Draws candidates with an image-variation pipeline; see :class:`Drawer`.

    Args:
        images: uint8 (N, H, W, 3).
        variations: the pipeline; moved to the settings' device.
        settings: how to draw. ``draw_size`` is the size that images are drawn at before they are
            resized, by default the pipeline's own.
    """

    def __init__(self, images: torch.Tensor, variations: Variations, settings: GenerationSettings):
        check_latent(settings)
        if settings.noise_level and not variations.noisy:
            raise ClspError(
                f"noise_level={settings.noise_level} is of Stable unCLIP, and this pipeline adds "
                f"no noise to its embeddings; leave it out."
            )
        if settings.compile and settings.w < 1.0:
            raise ClspError(
                f"compile=True does not go with the blend of middle features (w={settings.w:g}) of "
                f"an image-variation pipeline; leave it out, or set w=1."
            )
        settings = replace(settings, compile=bool(settings.compile))
        self.variations = variations
        self.size = settings.draw_size or variations.size
        variations.autoencoder.latent_size(self.size, self.size)
        super().__init__(
            images, variations.unet, variations.config, settings,
            autoencoder=variations.autoencoder,
        )  # fmt: skip

    def _checked(self, unet: Any, condition: Any, settings: GenerationSettings) -> None:
        return None  # the condition is the anchor's embedding

    def _prepared(self, unet: Any, compiled: bool) -> Any:
        self.variations.to(self.device)
        return super()._prepared(unet, compiled)

    @torch.inference_mode()
    def _denoised(
        self, indexes: torch.Tensor, candidates: range, num_steps: int | None = None
    ) -> torch.Tensor:
        """Draw latents of candidates: (B * K, C, h, w)."""
        settings, found, scheduler = self.settings, self.variations, self.scheduler
        if hasattr(scheduler, "lower_order_nums"):  # DPM-Solver++ remembers earlier steps
            scheduler.set_timesteps(timesteps=scheduler.timesteps.tolist())
        anchors, numbers = self.images[indexes], torch.tensor(list(candidates))
        place, total = to_device(indexes, self.device), scheduler.config.num_train_timesteps
        side = self.size // found.autoencoder.factor
        noise = CandidateNoise(
            settings.seed, place, to_device(numbers, self.device),
            (found.autoencoder.channels, side, side), settings.share_anchor,
        )  # fmt: skip
        many = len(candidates)
        with autocast(self.device, settings.precision):
            embeddings = found.embed(anchors).repeat_interleave(many, dim=0)
            # behind the keys of the steps, 0 to T - 1, and of the first noise, T
            keys = keys_for(noise.sample_keys, torch.full_like(noise.sample_keys, total + 1))
            given = found.given(embeddings, keys, settings.noise_level)
        latents = self._latents(anchors, many) if settings.w < 1.0 else None
        x = noise.sample(total)
        for t in scheduler.timesteps[:num_steps].tolist():
            with autocast(self.device, settings.precision):
                estimate = self._estimate(x, t, given, latents, noise)
            x = advance(scheduler, estimate.float(), t, x, noise, settings.chosen_eta)
        return x

    def _latents(self, anchors: torch.Tensor, many: int) -> torch.Tensor:
        x = to_float(to_device(anchors, self.device))
        x = self.variations.autoencoder.encode(F.resize(x, [self.size, self.size], antialias=True))
        return x if self.settings.share_anchor else x.repeat_interleave(many, dim=0)

    def _estimate(
        self,
        x: torch.Tensor,
        t: int,
        given: Callable[[bool], dict[str, torch.Tensor]],
        latents: torch.Tensor | None,
        noise: CandidateNoise,
    ) -> torch.Tensor:
        w, g, found, noised = self.settings.w, self.settings.guidance, self.variations, None
        if latents is not None:
            a = self.scheduler.alphas_cumprod[t]
            noised = a.sqrt() * latents + (1 - a).sqrt() * noise.anchor(t)
            noised = noised.repeat_interleave(len(x) // len(noised), dim=0)

        def one(known: bool) -> torch.Tensor:
            own = given(known)
            middle = None if noised is None else found.middle(noised, t, own)
            return found.estimate(x, t, own, middle, w)

        return one(True) if g == 0 else (1 + g) * one(True) - g * one(False)

    def _begin(self, indexes: torch.Tensor, candidates: range) -> Callable[[], torch.Tensor]:
        x = self._denoised(indexes, candidates)
        x = self.variations.autoencoder.decode(x)
        size = list(self.images.shape[1:3])
        out = to_uint8(x if list(x.shape[2:]) == size else F.resize(x, size, antialias=True))
        wait = fetch(out.unflatten(0, (len(indexes), len(candidates))), torch.isfinite(x).all())

        def finish() -> torch.Tensor:
            drawn, finite = wait()
            if not finite:
                raise ClspError(
                    f"Candidates of images {int(indexes[0])} to {int(indexes[-1])} are not finite "
                    f"with precision={self.settings.precision}; use precision=32-true or another "
                    f"pipeline."
                )
            return drawn

        return finish

    def _try_steps(self, steps: int, batch_size: int) -> int:
        settings = self.settings
        candidates = range(min(batch_size, settings.num_candidates))
        rows = min(batch_size // len(candidates), len(self.images), settings.shard_size)
        self._denoised(torch.arange(rows), candidates, steps).sum().item()
        return rows * len(candidates)
