"""What is made from what, and where it is kept.

    pictures.npy ──▶ patches ──▶ bank/ ──▶ unet.pt ──▶ led.pt ──▶ made/ ─────────────────────────────┐
                        │                   reader.pt ──▶┘ └──▶ distilled.pt                         ▼
                        └──▶ linear_decoder.pt ──▶ decoder.pt ──────────────────────────▶ refined_decoder.pt
                        └──▶ still_linear_decoder.pt ──▶ still_decoder.pt
                        └──▶ painter.pt

Pictures and banks are made when they are first asked for; networks are trained in the order of the command line, each
from those before it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deployments.models.networks import VideoUNet
from deployments.models.vision import Normalisation, encoder_pixels
from training import networks
from training.bank import Bank
from training.clips import Clip, make_clip, make_led_clip
from training.control import Led, Reader, control_sheet, led_loss, reader_loss, reader_sheet
from training.distilled import distilled_loss
from training.layout import write_depth, write_svd, write_text_to_image, write_unet
from training.loop import Loss, Recipe, Sheet, Training
from training.painter import SIGMA_MIN as PAINTED_SIGMA_MIN
from training.painter import Painter, painter_loss, painter_sheet, tokenizer
from training.pictures import draw
from training.unet import SHARD, SIGMA_MIN, asking, clip_maker, made_maker, unet_loss, unet_sheet
from training.vae import (
    LONGER,
    TOGETHER,
    Batch,
    Decode,
    Patches,
    clips_of,
    crops_of,
    decoder_loss,
    decoder_sheet,
    refined_decoder_loss,
    stills_of,
)

CLIP_NORMALISATION = Normalisation(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

SEEDS = {
    "image_encoder": 1,
    "unet": 2,
    "decoder": 3,
    "led": 4,
    "painter": 5,
    "still_decoder": 6,
    "linear_decoder": 7,
    "still_linear_decoder": 8,
    "reader": 9,
    "refined_decoder": 10,
    "distilled": 11,
}
"""What each network's first weights are drawn from."""

HELD_OUT = 1_000_000
"""Pictures from this seed on are never learnt from."""


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        pictures: Drawn to learn from.
        shard: Clips of a bank that are made at a time; of what a UNet makes, a quarter of it.
        recipes: How each network is trained.
    """

    pictures: int
    shard: int
    recipes: Mapping[str, Recipe]


CPU = Scale(
    2000,
    SHARD,
    {
        "linear_decoder": Recipe(1500, rate=2e-3, warm_up=50, cool_down=0.5, mean_over=100),
        "still_linear_decoder": Recipe(1500, rate=2e-3, warm_up=50, cool_down=0.5, mean_over=100),
        "decoder": Recipe(2700, rate=3e-4, warm_up=100, mean_over=100),
        "refined_decoder": Recipe(1800, rate=3e-4, warm_up=50, cool_down=0.5, mean_over=100),
        "unet": Recipe(6200, rate=6e-4, cool_down=0.42, mean_over=300, precision=torch.bfloat16),
        "reader": Recipe(400, warm_up=50, mean_over=50, precision=torch.bfloat16),
        "led": Recipe(6500, rate=1e-3, cool_down=0.6, mean_over=300, precision=torch.bfloat16),
        "distilled": Recipe(1500, rate=1e-5, cool_down=0.5, mean_over=300, precision=torch.bfloat16),
        "painter": Recipe(16500, rate=1e-3, cool_down=0.4, mean_over=300, precision=torch.bfloat16),
        "still_decoder": Recipe(700, rate=3e-4, warm_up=100, mean_over=100),
    },
)
"""What the weights that ship were made with in the end: hours on two cores. Their card tells the UNet's way there.
``distilled`` does not ship."""

TOY = Scale(4, 4, {name: replace(recipe, steps=2, keep_seconds=0) for name, recipe in CPU.recipes.items()})
"""For tests: everything once, nothing learnt."""


@dataclass
class Workshop:
    """A directory in which networks are made.

    Args:
        directory: Where pictures, banks and checkpoints are kept.
        scale: How much of everything.
        device: Where networks are trained.
    """

    directory: Path
    scale: Scale = CPU
    device: str = "cpu"

    @cached_property
    def pictures(self) -> np.ndarray:
        """What is learnt from, uint8 [N, SIDE, SIDE, 3]."""
        file = self.directory / "pictures.npy"
        if not file.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial.npy")
            np.save(partial, np.stack([draw(seed) for seed in range(self.scale.pictures)]))
            os.replace(partial, file)
        drawn: np.ndarray = np.load(file, mmap_mode="r")
        return drawn

    @cached_property
    def held_out(self) -> torch.Tensor:
        """Some that are not, [N, 3, H, W] in -1..1."""
        crops = np.stack([draw(HELD_OUT + number)[60:140, 50:194] for number in range(5)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1

    @cached_property
    def patches(self) -> Patches:
        """What the encoder computes."""
        return Patches.of(self.pictures)

    @cached_property
    def image_encoder(self) -> Any:
        """Random, as it was built, and never trained."""
        torch.manual_seed(SEEDS["image_encoder"])
        return networks.image_encoder().eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Embeddings [N, 1, D] of pictures [N, 3, H, W] in -1..1."""
        pixels = encoder_pixels(pictures, CLIP_NORMALISATION)
        embeddings: torch.Tensor = self.image_encoder(pixels).image_embeds[:, None]
        return embeddings

    @cached_property
    def bank(self) -> Bank:
        """Clips as latents."""
        return self._bank("bank", 0, make_clip)

    def linear_decoder(self) -> Training:
        """Of the VAE's decoder, what is linear."""
        return self._linear("linear_decoder", networks.VAE_WIDTHS)

    def decoder(self) -> Training:
        """Of the VAE, and with it the VAE."""
        return self._decoding(
            "decoder",
            lambda: self._vae(networks.video_vae(), "linear_decoder"),
            clips_of(self.pictures),
            _in_clips_of(TOGETHER),
        )

    def refined_decoder(self) -> Training:
        """The same, which learns once more, from what the UNet makes."""

        def build() -> Any:
            return self._with_fixed_encoder(self._with_mean(networks.video_vae(), "decoder"))

        vae = self._built("refined_decoder", build)
        unet = self._moving().to(self.device)
        networks.flatten_time(unet)
        made = made_maker(unet, self.patches.encode, self.embed, self.pictures, self.scale.shard // 4)
        decode = _in_clips_of(LONGER)(vae)
        loss = refined_decoder_loss(
            self.patches,
            self.pictures,
            Bank(self.directory / "made", made, seed=2),
            decode,
            self._recipe("refined_decoder"),
        )
        return self._training("refined_decoder", vae, loss, decoder_sheet(self.held_out, self.patches, decode))

    def still_linear_decoder(self) -> Training:
        """The same for single pictures."""
        return self._linear("still_linear_decoder", networks.STILL_WIDTHS)

    def still_decoder(self) -> Training:
        """The same for single pictures."""

        def decoding(vae: Any) -> Decode:
            return lambda latents: vae.decode(latents).sample

        return self._decoding(
            "still_decoder",
            lambda: self._vae(networks.image_vae(), "still_linear_decoder"),
            stills_of(self.pictures),
            decoding,
        )

    def painter(self) -> Training:
        """Both towers of the text-to-image model."""
        vocabulary = tokenizer()
        painter = self._built("painter", lambda: Painter(vocabulary))
        loss = painter_loss(painter, vocabulary, self.patches, self._recipe("painter"))
        return self._training("painter", painter, loss, painter_sheet(vocabulary, self.patches))

    def unet(self) -> Training:
        """The video UNet."""
        unet = self._built("unet", networks.video_unet)
        networks.attend_to_one_token(unet)
        networks.begin_copying(unet, self.bank.shard(0)["clip"].float().std((0, 1, 3, 4)).to(self.device))
        sheet = unet_sheet(self.held_out, self.patches, self.embed)
        return self._training("unet", unet, unet_loss(asking(unet), self.bank, self._recipe("unet")), sheet)

    def reader(self) -> Training:
        """Of the depth ControlNet, what maps mean."""
        reader = self._built("reader", lambda: Reader(networks.depth_controlnet(networks.video_unet())))
        networks.attend_to_one_token(reader)
        return self._training("reader", reader, reader_loss(reader, self._recipe("reader")), reader_sheet())

    def led(self) -> Training:
        """The depth ControlNet, once it can read and there is a UNet, which goes on learning with it."""
        network = self._built("led", self._new_led)
        for part in (network.unet, network.control):
            networks.attend_to_one_token(part)
        with_maps = self._bank("led", 1, make_led_clip)
        few = {name: values[:4].float().to(self.device) for name, values in with_maps.shard(0).items()}
        loss = led_loss(network, self.bank, with_maps, self._recipe("led"))
        return self._training("led", network, loss, control_sheet(few, self.patches))

    def distilled(self) -> Training:
        """The video UNet again, which answers at once with what guided sampling would come to."""
        student = self._built("distilled", self._moving)
        teacher = self._moving().to(self.device).requires_grad_(False)
        networks.flatten_time(teacher)
        for unet in (student, teacher):
            networks.attend_to_one_token(unet)
        loss = distilled_loss(asking(student), asking(teacher), self.bank, self._recipe("distilled"))
        return self._training("distilled", student, loss, unet_sheet(self.held_out, self.patches, self.embed))

    def _new_led(self) -> Led:
        unet = self._with_mean(VideoUNet.from_config(networks.video_unet().config), "unet")
        return Led(unet, self._with_mean(Reader(networks.depth_controlnet(unet)), "reader"))

    def _led(self) -> Led:
        """As it was trained."""
        unet = VideoUNet.from_config(networks.video_unet().config)
        led: Led = self._with_mean(Led(unet, Reader(networks.depth_controlnet(unet))), "led")
        return led

    def export(self, directory: Path) -> None:
        """Write checkpoints of all that has been trained so far."""
        if self._kept("led").exists():
            write_depth(directory / "depth", self._led().control)
        decoder = "refined_decoder" if self._kept("refined_decoder").exists() else "decoder"
        vae = self._with_mean(networks.video_vae(), decoder)
        towers = {"unet": self._moving(), "vae": vae, "image_encoder": self.image_encoder}
        write_svd(directory / "svd", sigma_min=SIGMA_MIN, **towers)
        if self._kept("distilled").exists():
            write_unet(directory / "lcm", self._with_mean(networks.video_unet(), "distilled"))
        if self._kept("painter").exists() and self._kept("still_decoder").exists():
            vocabulary = tokenizer()
            painter = self._with_mean(Painter(vocabulary), "painter")
            still_vae = self._with_mean(networks.image_vae(), "still_decoder")
            towers = {"unet": painter.unet, "text_encoder": painter.text_encoder}
            towers |= {"vae": still_vae, "tokenizer": vocabulary}
            write_text_to_image(directory / "text-to-image", PAINTED_SIGMA_MIN, **towers)

    def learnt(self, name: str) -> dict[str, torch.Tensor]:
        """The running mean of a network's weights, as they were kept last."""
        kept: dict[str, torch.Tensor] = torch.load(self._kept(name), weights_only=True, map_location="cpu")["mean"]
        return kept

    def _kept(self, name: str) -> Path:
        """A network's checkpoint."""
        return self.directory / f"{name}.pt"

    def _with_mean(self, network: Any, name: str) -> Any:
        network.load_state_dict(self.learnt(name))
        return network

    def _bank(self, name: str, seed: int, shoot: Callable[..., Clip]) -> Bank:
        make = clip_maker(self.patches.encode, self.embed, self.pictures, shoot, self.scale.shard)
        return Bank(self.directory / name, make, seed=seed)

    def _built(self, name: str, build: Callable[[], Any]) -> Any:
        torch.manual_seed(SEEDS[name])
        network = build()
        networks.flatten_time(network)
        return network.to(self.device)

    def _moving(self) -> Any:
        """The video UNet as it was trained last."""
        unet = networks.video_unet()
        if not self._kept("led").exists():
            return self._with_mean(unet, "unet")
        unet.load_state_dict(self._led().unet.state_dict())
        return unet

    def _vae(self, vae: Any, linear: str) -> Any:
        """A VAE with its encoder, and with a decoder that begins with a linear one."""
        self._with_mean(networks.linear_decoder(vae.config.block_out_channels), linear).install(vae.decoder)
        self.patches.install(vae)
        return self._with_fixed_encoder(vae)

    def _with_fixed_encoder(self, vae: Any) -> Any:
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(False)
        return vae

    def _linear(self, name: str, widths: Sequence[int]) -> Training:
        return self._decoding(
            name, lambda: networks.linear_decoder(widths), crops_of(self.pictures), lambda decoder: decoder
        )

    def _decoding(
        self, name: str, build: Callable[[], Any], batch: Batch, decoding: Callable[[Any], Decode]
    ) -> Training:
        network = self._built(name, build)
        decode = decoding(network)
        loss = decoder_loss(self.patches, batch, decode, self._recipe(name))
        return self._training(name, network, loss, decoder_sheet(self.held_out, self.patches, decode))

    def _recipe(self, name: str) -> Recipe:
        return replace(self.scale.recipes[name], device=self.device)

    def _training(self, name: str, network: Any, loss: Loss, sheet: Sheet) -> Training:
        return Training(network, loss, self._recipe(name), self._kept(name), sheet)


def _in_clips_of(count: int) -> Callable[[Any], Decode]:
    """How a video VAE decodes frames of clips of so many frames each."""
    return lambda vae: lambda latents: vae.decode(latents, num_frames=min(count, len(latents))).sample
