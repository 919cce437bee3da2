"""What the shipped weights can do, in figures: ``python -m training.evidence [--config FILE] [--sheets DIR]``.

    serve_config.yaml ──▶ endpoints, as a replica has them ─┐
    photographs that the networks have never seen ──────────┴──▶ clips ──▶ figures against bounds, contact sheets

The photographs come with scikit-image; the others are the playground's own pictures. No seed is chosen: it is 0.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from skimage import data

from deployments.inference.images import fit
from deployments.models.base import Clip, Size, VideoModel
from deployments.models.text_to_video import TextToVideo
from deployments.settings import AppArgs
from training import clips
from training.loop import contact_sheet
from training.measures import displacements, distance, flicker, is_shape, of_colour, psnr, sharpness
from training.pictures import draw
from training.scenes import a
from training.workshop import HELD_OUT

ROOT = Path(__file__).parents[1]

FAST = "fal-ai/fast-svd-lcm"

PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "stereo_motorcycle", "camera")
"""scikit-image's pictures of things, by the name of the function that answers with them."""

EXAMPLES = ROOT / "deployments/gateway/playground/examples"

PICTURES = ("boat", "hills", "balloon", "tea")
"""The playground's."""

MOTIONS = (1, 40, 127, 255)

FEW, MANY = 4, 25
"""Steps of the fast endpoint, and of guided sampling."""

WAYS: Mapping[str, tuple[int, int]] = {"left": clips.PANS["left"], "stay": (0, 0)}
"""Where depth maps go, x to the right and y down."""

FEWER = 5
"""On how many pictures masks, depth maps and guided sampling are tried: they take longer."""

DRAWN = 12
"""How many clips like those that the networks learnt from are looked at."""

PAIRS = (
    ("red", "circle", "blue"),
    ("yellow", "circle", "green"),
    ("blue", "square", "yellow"),
    ("white", "square", "red"),
    ("green", "triangle", "white"),
    ("orange", "triangle", "black"),
    ("purple", "circle", "white"),
    ("black", "square", "pink"),
)
"""What prompts ask for: a colour, a shape, and the ground's colour."""


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        claim: What should be so.
        found: The figures.
        bound: What they are held against.
        holds: Whether it is so.
    """

    claim: str
    found: str
    bound: str
    holds: bool


class Exhibits:
    """The endpoints of a configuration and what they make of the pictures, each clip made when it is first asked for.

    Args:
        config: In the format of ``serve_config.yaml``.
        device: Where the endpoints compute.
        most: How many pictures are looked at; a test has less time than the program.
    """

    def __init__(self, config: Path, device: str = "cpu", most: int = 10) -> None:
        document = yaml.safe_load(config.read_text(encoding="utf-8"))
        self._endpoints = AppArgs.model_validate(document["applications"][0]["args"]).build()
        self._device = device
        self._most = most
        self._loaded: set[str] = set()
        self.clip, self.painted = cache(self._clip), cache(self._painted)

    def endpoint(self, id: str) -> Any:
        """An endpoint with its weights."""
        if id not in self._loaded:
            self._endpoints[id].setup(self._device)
            self._loaded.add(id)
        return self._endpoints[id]

    @property
    def fast(self) -> VideoModel:
        """Few steps."""
        return self.endpoint(FAST)  # type: ignore[no-any-return]

    @property
    def guided(self) -> VideoModel:
        """As many guided steps as are asked for, with masks and depth maps."""
        return self.endpoint("fal-ai/svd")  # type: ignore[no-any-return]

    @property
    def painter(self) -> TextToVideo:
        """Prompts to pictures."""
        return self.endpoint("fal-ai/fast-svd-lcm/text-to-video")  # type: ignore[no-any-return]

    @property
    def size(self) -> Size:
        """Of all clips: the first that the fast endpoint has."""
        return self._endpoints[FAST].config.sizes[0]  # type: ignore[attr-defined, no-any-return]

    @property
    def frames(self) -> int:
        """How many a clip has."""
        return self._endpoints[FAST].config.frames

    @cached_property
    def pictures(self) -> Mapping[str, Image.Image]:
        """The pictures as the service would crop them to its first size."""
        found = {name: _photograph(name) for name in PHOTOGRAPHS}
        found |= {name: _read(EXAMPLES / f"{name}.jpg") for name in PICTURES}
        return {name: fit(picture, [self.size]) for name, picture in list(found.items())[: self._most]}

    @cached_property
    def drawn(self) -> Sequence[clips.Clip]:
        """Clips like those that the networks learnt from, of pictures that they did not see."""
        rng = np.random.default_rng(0)
        pictures = np.stack([draw(HELD_OUT + number) for number in range(DRAWN)])
        return [clips.make_clip(pictures, rng, self.size) for _ in range(DRAWN)]

    def follow(self, drawn: clips.Clip) -> np.ndarray:
        """Frames, uint8 [F, H, W, 3], that the fast endpoint makes of a clip's first frame and motion id."""
        first = Image.fromarray(as_bytes(drawn.frames)[0])
        return self._made(self.fast, Clip(first, 0, drawn.motion, 0.02, length=self.frames), FEW)

    def _clip(self, name: str, motion: int, steps: int = FEW, aug: float = 0.02, more: str = "") -> np.ndarray:
        """Frames, uint8 [F, H, W, 3], of the fast endpoint; of the guided one, where there are more steps or ``more``.

        ``more`` is ``mask``, or one of ``WAYS``.
        """
        model = self.guided if more or steps > FEW else self.fast
        picture = self.pictures[name]
        led: dict[str, Any] = {"depth": tuple(depth_maps(picture, more, self.frames))} if more in WAYS else {}
        still: dict[str, Any] = {"still": right_half(picture)} if more == "mask" else {}
        return self._made(model, Clip(picture, 0, motion, aug, length=self.frames, **led, **still), steps)

    def _made(self, model: VideoModel, asked: Clip, steps: int) -> np.ndarray:
        return np.asarray(model.generate([asked], steps, lambda done: [0])[0])

    def moved(self, name: str, motion: int) -> np.ndarray:
        """A picture moved by rule: as the program of the clips does it, but neither sharpened nor at another scale."""
        (mode,) = clips.FREE
        path = clips.Path.of(mode, motion, self.size, np.random.default_rng(0), self.frames)
        return as_bytes(clips.pass_over(np.asarray(self.pictures[name]), path, self.size))

    def _painted(self, prompt: str) -> np.ndarray:
        """The picture of a prompt, uint8 [H, W, 3]."""
        painter = self.painter
        return np.asarray(painter.paint(painter.Input(prompt=prompt, seed=0)))  # type: ignore[arg-type]


def _read(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _photograph(name: str) -> Image.Image:
    pixels = getattr(data, name)()
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")


def as_bytes(frames: torch.Tensor) -> np.ndarray:
    """Frames [F, 3, H, W] in -1..1 as uint8 [F, H, W, 3]."""
    pixels: np.ndarray = ((frames + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return pixels


def right_half(picture: Image.Image) -> np.ndarray:
    """A mask: the right half stays, bool [H, W]."""
    return np.arange(picture.width)[None].repeat(picture.height, 0) >= picture.width // 2


def depth_maps(picture: Image.Image, way: str, frames: int) -> Iterator[Image.Image]:
    """Maps of a near hill on a plain, which go one of ``WAYS`` as far as a clip of full motion does."""
    x, y = np.meshgrid(np.linspace(-1, 1, picture.width), np.linspace(-1, 1, picture.height))
    for done in np.linspace(0, clips.PAN, frames):
        right, down = (2 * done * part / side for part, side in zip(WAYS[way], picture.size, strict=True))
        hill = np.exp(-(((x - right) / 0.4) ** 2) - ((y - down) / 0.5) ** 2)
        grey = np.clip(40 + 30 * (y - down) + 150 * hill, 0, 255).astype(np.uint8)
        yield Image.fromarray(grey).convert("RGB")


# ---------------------------------------------------------------- findings

Claim = Callable[[Exhibits], Finding]


def motion_rises(exhibits: Exhibits) -> Finding:
    """Optical flow by motion id."""
    far = [np.mean([distance(exhibits.clip(name, motion)) for name in exhibits.pictures]) for motion in MOTIONS]
    rises = all(less < more for less, more in pairwise(far))
    found = ", ".join(f"{100 * each:.2f} %" for each in far)
    return Finding(
        f"what is seen moves farther at motion {', '.join(map(str, MOTIONS))}",
        f"{found} of the width",
        "each farther, the last 3 times as far as the first",
        rises and bool(far[-1] >= 3 * far[0]),
    )


def the_least_is_nearly_still(exhibits: Exhibits) -> Finding:
    """Motion 1."""
    far = max(distance(exhibits.clip(name, 1)) for name in exhibits.pictures)
    return Finding(
        "at motion 1 a clip is nearly still", f"at most {100 * far:.2f} % of the width", "below 0.7 %", far < 0.007
    )


def the_first_frame_is_the_picture(exhibits: Exhibits) -> Finding:
    """PSNR over all motions."""
    near = [
        psnr(exhibits.clip(name, motion)[0], np.asarray(picture))
        for name, picture in exhibits.pictures.items()
        for motion in MOTIONS
    ]
    found = f"{min(near):.1f} dB at the least, {np.mean(near):.1f} on average"
    return Finding("the first frame is close to the picture", found, "22 dB at the least", min(near) >= 22)


def nothing_flickers(exhibits: Exhibits) -> Finding:
    """Against clips like those that the network learnt from: of the pictures, and of the very same clips made anew."""
    pairs = [(name, motion) for name in exhibits.pictures for motion in MOTIONS[1:]]
    ours, moved = (_mean_flicker(make(*pair) for pair in pairs) for make in (exhibits.clip, exhibits.moved))
    again = _mean_flicker(exhibits.follow(each) for each in exhibits.drawn)
    drawn = _mean_flicker(as_bytes(each.frames) for each in exhibits.drawn)
    return Finding(
        "frames are consistent",
        f"{ours:.2f} of 255 ({moved:.2f} where the pictures are moved by rule); {again:.2f} where clips like those it "
        f"learnt from have {drawn:.2f}",
        "neither more than those clips",
        max(ours, again) <= drawn,
    )


def _mean_flicker(shown: Iterable[np.ndarray]) -> float:
    return float(np.mean([flicker(frames) for frames in shown]))


def white_stays_and_black_moves(exhibits: Exhibits) -> Finding:
    """The mask."""
    off, moved = 0, []
    for name in list(exhibits.pictures)[:FEWER]:
        picture, frames = exhibits.pictures[name], exhibits.clip(name, 255, more="mask")
        still = right_half(picture)
        off = max(off, int(np.abs(frames[:, still].astype(int) - np.asarray(picture)[still]).max()))
        moved.append(distance(frames, ~still))
    found = f"white is off by {off} of 255, black moves by {100 * float(np.mean(moved)):.2f} % of the width"
    return Finding(
        "white stays and black moves", found, "0, and 1 % or more", off == 0 and bool(np.mean(moved) >= 0.01)
    )


def clips_go_where_depth_maps_go(exhibits: Exhibits) -> Finding:
    """To the left, though the motion id asks for stillness."""
    claim, bound = "clips go left where depth maps do, at motion 1", "-2 % or less"
    if exhibits.guided.control is None:
        return Finding(claim, "there is no ControlNet", bound, False)
    names = list(exhibits.pictures)[:FEWER]
    gone = float(np.mean([displacements(exhibits.clip(name, 1, more="left"))[..., 0].mean() for name in names]))
    return Finding(claim, f"{100 * gone:+.1f} % of the width", bound, gone <= -0.02)


def clips_stay_where_depth_maps_stay(exhibits: Exhibits) -> Finding:
    """Or nearly, though the motion id asks for all there is."""
    claim, bound = "clips hardly move where depth maps stay, at motion 255", "a third of the way without maps, or less"
    if exhibits.guided.control is None:
        return Finding(claim, "there is no ControlNet", bound, False)
    names = list(exhibits.pictures)[:FEWER]
    led = float(np.mean([distance(exhibits.clip(name, 255, more="stay")) for name in names]))
    free = float(np.mean([distance(exhibits.clip(name, 255)) for name in names]))
    found = f"{100 * led:.2f} % of the width, {100 * free:.2f} % without"
    return Finding(claim, found, bound, led <= free / 3)


def few_steps_are_like_many(exhibits: Exhibits) -> Finding:
    """Flow and sharpness of the fast endpoint against those of guided sampling."""
    names = list(exhibits.pictures)[:FEWER]

    def mean(measure: Callable[[np.ndarray], float], steps: int) -> float:
        return float(np.mean([measure(exhibits.clip(name, 127, steps)) for name in names]))

    ratios = [mean(measure, FEW) / mean(measure, MANY) for measure in (distance, lambda frames: sharpness(frames[-1]))]
    return Finding(
        f"{FEW} steps are close to {MANY} guided ones",
        f"{ratios[0]:.2f} times the motion, {ratios[1]:.2f} times the sharpness",
        "0.67 to 1.5 times",
        all(2 / 3 <= ratio <= 1.5 for ratio in ratios),
    )


def a_clip_takes_seconds(exhibits: Exhibits) -> Finding:
    """The fast endpoint's, on this machine as it is now."""
    fast, picture = exhibits.fast, next(iter(exhibits.pictures.values()))
    began = time.perf_counter()
    fast.generate([Clip(picture, 1, 127, 0.02, length=exhibits.frames)], FEW, lambda done: [0])
    seconds = time.perf_counter() - began
    return Finding(
        f"a clip of {exhibits.frames} frames of {exhibits.size} in {FEW} steps takes seconds",
        f"{seconds:.1f} s",
        "10 s at most",
        seconds <= 10,
    )


def clips_stay_sharp(exhibits: Exhibits) -> Finding:
    """The last frame against that of the picture moved by rule."""
    pairs = [(name, 127) for name in exhibits.pictures]
    ours = np.mean([sharpness(exhibits.clip(*pair)[-1]) for pair in pairs])
    theirs = np.mean([sharpness(exhibits.moved(*pair)[-1]) for pair in pairs])
    found = f"{ours / theirs:.2f} times that of the picture moved by rule"
    return Finding("the last frame is sharp", found, "0.5 times or more", bool(ours >= 0.5 * theirs))


def augmentation_keeps_less(exhibits: Exhibits) -> Finding:
    """``cond_aug``."""
    levels = (0.0, 0.5, 2.0)
    near = [
        float(
            np.mean(
                [psnr(exhibits.clip(name, 127, aug=level)[0], np.asarray(exhibits.pictures[name])) for name in names]
            )
        )
        for names in [list(exhibits.pictures)[:FEWER]]
        for level in levels
    ]
    found = ", ".join(f"{each:.1f} dB" for each in near)
    return Finding("cond_aug 0, 0.5, 2 keeps less of the picture", found, "each less", near[0] > near[1] > near[2])


def prompts_give_colours_and_shapes(exhibits: Exhibits) -> Finding:
    """A shape on a ground, each of its colour."""
    right = [
        is_shape(of_colour(picture, colour), shape) and of_colour(picture, ground).mean() > 0.3
        for colour, shape, ground in PAIRS
        for picture in [exhibits.painted(prompt_of(colour, shape, ground))]
    ]
    found = f"{sum(right)} of {len(right)}"
    return Finding(
        "prompts give their two colours and the shape", found, f"{len(right) - 1}", sum(right) >= len(right) - 1
    )


def prompt_of(colour: str, shape: str, ground: str) -> str:
    """How one would ask for it."""
    return f"{a(colour)} {shape} on {a(ground)} background"


CLAIMS: Sequence[Claim] = (
    motion_rises,
    the_least_is_nearly_still,
    the_first_frame_is_the_picture,
    nothing_flickers,
    clips_stay_sharp,
    white_stays_and_black_moves,
    clips_go_where_depth_maps_go,
    clips_stay_where_depth_maps_stay,
    few_steps_are_like_many,
    augmentation_keeps_less,
    prompts_give_colours_and_shapes,
    a_clip_takes_seconds,
)


# ---------------------------------------------------------------- sheets


def sheets(exhibits: Exhibits) -> Iterator[tuple[str, Image.Image]]:
    """What is for looking at, by name: a row for each picture, first, middle and last frame of each clip."""
    rows = [[exhibits.clip(name, motion) for motion in (1, 127, 255)] for name in exhibits.pictures]
    yield "motion", _sheet(rows)
    few = list(exhibits.pictures)[:FEWER]
    ways = (*(WAYS if exhibits.guided.control else ()), "mask")
    yield "led", _sheet([[exhibits.clip(name, 255, more=way) for way in ways] for name in few])
    yield "steps", _sheet([[exhibits.clip(name, 127, FEW), exhibits.clip(name, 127, MANY)] for name in few])
    painted = [exhibits.painted(prompt_of(*pair)) for pair in PAIRS]
    yield "prompts", contact_sheet([_floats(np.stack(painted[:4])), _floats(np.stack(painted[4:]))])


def _sheet(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Clips' first, middle and last frames, a row of clips for each of ``rows``."""
    return contact_sheet(
        [_floats(np.concatenate([frames[[0, len(frames) // 2, -1]] for frames in row])) for row in rows]
    )


def _floats(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit status is 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m training.evidence", description="Look at what the weights can do.")
    parser.add_argument(
        "--config", type=Path, default=ROOT / "serve_config.yaml", help="what is served (default: ours)"
    )
    parser.add_argument("--sheets", type=Path, help="where to write contact sheets")
    parser.add_argument("--device", default="cpu", help="where (default: cpu)")
    parser.add_argument("--only", help="claims whose name holds this word")
    options = parser.parse_args(arguments)
    exhibits = Exhibits(options.config, options.device)
    holds = True
    for claim in CLAIMS:
        if options.only and options.only not in claim.__name__:
            continue
        finding = claim(exhibits)
        holds &= finding.holds
        print(
            f"{'yes' if finding.holds else 'NO ':3} | {finding.claim} | {finding.found} | {finding.bound}", flush=True
        )
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
        for name, sheet in sheets(exhibits):
            sheet.save(options.sheets / f"{name}.png")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
