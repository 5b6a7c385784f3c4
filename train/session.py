"""A training as a session: it can be saved, told apart from others, and gone on with exactly. Knows no host.

What decides the result (configuration, networks, pictures) is the session's description; a snapshot carries it, and
only a training of the same description goes on from it. `Session` is shared by all trainings; `tune_style` is OSASIS's.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from ..models.checkpoints import CheckpointError, store
from ..models.clip import Clip
from ..models.diffae import DiffAE
from ..models.hashing import hash_of
from ..models.osasis import Style
from . import osasis
from .data import to_bytes, to_unit
from .loop import Progress, Run, restore, snapshot
from .osasis import OsasisConfig, Trainer, Update

PREDICTIONS = "session/predictions"
FREE_FIELDS = ("iterations",)  # may change when a fine-tune goes on
PRESETS: dict[str, dict] = {  # fields of OsasisConfig that differ from the official program
    "official": {},
    "mended": {"noise_level": "matched", "spn_time": "timestep", "clamp": "straight-through", "style_spn_weight": 0.1,
               "clip_preparation": "proper", "precision": "bfloat16"},  # spec D and F; not judged at 256 px
    "demo": {"bank": 8, "forward_steps": 20, "latent_steps": 50, "style_spn_weight": 0.1},
}
MEANINGS = {"model": "the model it starts from", "clip_network": "the CLIP",
            "perceptual_network": "the perceptual network",
            "twin": "the photo twin", "style": "the style picture", "photos": "the content photos",
            "structure_network": "the self-similarity network", "references": "what the style is learned from",
            "faces": "the set of source faces", "discriminator": "the discriminator", "art": "the artistic set"}


# --- any training ----------------------------------------------------------------------------------------------------
@dataclass
class Session:
    """A run, what decides its result, where it is saved (None: nowhere) and its last predictions, [-1, 1]."""
    run: Run
    settings: dict
    path: Path | None = None
    last: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def begin(cls, run: Run, settings: dict, path: Path | None = None, resume: bool = True,
              begun: Callable[[Run], None] | None = None) -> Session:
        """A session of a fresh run; it goes on from the snapshot if there is one. `begun` is told of the run.

        CheckpointError for a snapshot of other settings or a damaged one.
        """
        goes_on = resume and path is not None and path.exists()
        session = cls(run, settings, path, go_on(run, path, settings) if goes_on else {})
        if begun:
            begun(run)
        return session

    def carry_out(self, work: Callable[..., Run], steps: int, device: torch.device, save_every: int = 0,
                  tick: Callable[[Update], None] | None = None) -> dict:
        """`work(save_every=, save=, tick=)` trains the run to its end and saves. Returns the settings that were run.

        tick: after every optimiser step, and once with the last predictions if nothing is left to do.
        """
        def remember(update: Update) -> None:
            self.last["predictions"] = update.predictions
            if tick:
                tick(update)

        save_every = save_every if self.path else 0
        if self.run.step < steps:
            work(save_every=save_every, save=self.save, tick=remember)
            if save_every and self.run.step % save_every:
                self.save(self.run)
        elif tick and self.last:
            tick(Update(self.run.step - 1, 0, {}, self.last["predictions"].to(device)))
        return self.settings | {"iterations": self.run.step}

    def save(self, run: Run) -> None:
        save_snapshot(self.path, run, self.settings, self.last)


# --- the fine-tune of OSASIS -----------------------------------------------------------------------------------------

def tune_style(frozen: DiffAE, clip: Clip, perceptual: nn.Module, twin: Tensor, style: Tensor, config: OsasisConfig, *,
               fingerprint: str, photos: Tensor | None = None, snapshot_path: Path | None = None, save_every: int = 0,
               resume: bool = True, tick: Callable[[Update], None] | None = None,
               callback: Callable[[Progress], None] | None = None,
               check: Callable[[], None] | None = None,
               begun: Callable[[Run], None] | None = None) -> tuple[Style, Run]:
    """Fine-tune a style; go on from the snapshot if there is one. Returns the style and the finished run.

    twin, style (1, 3, px, px), photos (N, 3, px, px) or None: in [-1, 1], on the networks' device. The networks stay
    as they are. tick: after every optimiser step, and once with the last predictions if nothing is left to do.
    callback: after every iteration. check: before every UNet call, between steps too. begun: once, with the run (its
    history grows) as it begins or goes on. All may raise to stop; what was saved then stays. Raises ValueError
    (CheckpointError) for a snapshot of other settings or a damaged one.
    """
    if photos is None and frozen.latent_net is None:
        raise ValueError("this DiffAE has no latent DPM to draw content pictures from: connect photos as contents, "
                         "or load the '..._autoenc_latent' checkpoint")
    settings = describe(config, fingerprint, clip, perceptual, twin, style, photos)
    run = osasis.start(frozen, config)
    session = Session.begin(run, settings, snapshot_path, resume, begun)
    with checked((frozen.unet, run.nets["unet"]), check):
        trainer = prepare(frozen, clip, perceptual, twin, style, config, photos, check, run.step < config.iterations)
        done = session.carry_out(lambda **saving: osasis.fine_tune(trainer, run, callback=callback, **saving),
                                 config.iterations, style.device, save_every, tick)
        return osasis.finish(trainer, run, to_bytes(style[0]), fingerprint, done), run


def prepare(frozen: DiffAE, clip: Clip, perceptual: nn.Module, twin: Tensor, style: Tensor, config: OsasisConfig,
            photos: Tensor | None, check: Callable[[], None] | None, with_content: bool) -> Trainer:
    """The frozen side. Content is prepared only if there is training to be done."""
    with osasis.autocast(style.device, config):
        twin_content = osasis.prepare_content(frozen, twin, config)
    content = _no_content
    if with_content:
        content = osasis.content_source(frozen, config, photos, tick=check or (lambda: None))
    return Trainer(frozen, twin_content, style, clip, perceptual, config, content)


def _no_content(k: int):
    raise RuntimeError("a finished fine-tune draws no content")


@contextmanager
def checked(nets: Sequence[nn.Module], check: Callable[[], None] | None) -> Iterator[None]:
    """Calls `check` before every call of the networks."""
    handles = [net.register_forward_pre_hook(lambda *_: check()) for net in nets] if check else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- what a session is ---------------------------------------------------------------------------------------------
def describe(config: OsasisConfig, fingerprint: str, clip: nn.Module, perceptual: nn.Module, twin: Tensor,
             style: Tensor, photos: Tensor | None) -> dict:
    """Everything that decides the result, JSON-able: config fields, and hashes of networks and pictures."""
    return asdict(config) | {
        "model": fingerprint, "clip_network": hash_of_network(clip), "perceptual_network": hash_of_network(perceptual),
        "twin": hash_of({"": twin}), "style": hash_of({"": style}),
        "photos": None if photos is None else hash_of({"": photos})}


def hash_of_network(net: nn.Module) -> str:
    """Hash of a network's weights and of its configuration, if it has one."""
    config = repr(getattr(net, "config", None)).encode()
    return hashlib.sha256(hash_of(net.state_dict()).encode() + config).hexdigest()[:32]


def difference(saved: Mapping, now: Mapping) -> str | None:
    """The first setting in which two sessions differ, in words; None if they are the same but for FREE_FIELDS."""
    for name in [n for n in now if n not in FREE_FIELDS]:
        if saved.get(name) != now[name]:
            if name in MEANINGS:
                return f"{MEANINGS[name]} was another one"
            return f"{name} was {saved.get(name)!r} and is {now[name]!r} now"
    return None


# --- snapshots -----------------------------------------------------------------------------------------------------
def snapshot_file(folder: Path, name: str) -> Path:
    """FOLDER/NAME.snapshot. ValueError for names that are not plain."""
    return folder / f"{plain_name(name)}.snapshot"


def plain_name(name: str) -> str:
    """The name of a file, without its ending, that cannot leave its folder."""
    name = name.strip()
    if not re.fullmatch(r"\w[\w .-]{0,79}", name) or name.endswith("."):
        raise ValueError(f"{name!r} cannot be a file's name here; use letters, digits, spaces, _ - and . (at most 80, "
                         "a letter or digit first)")
    return name


def save_snapshot(path: Path, run: Run, settings: Mapping, last: Mapping[str, Tensor]) -> None:
    """Write everything needed to go on, complete or not at all."""
    tensors, meta = snapshot(run)
    if "predictions" in last:
        tensors[PREDICTIONS] = to_bytes(last["predictions"])
    store.save(path, tensors, "snapshot", dict(settings), meta, dtype=None)


def go_on(run: Run, path: Path, settings: Mapping) -> dict[str, Tensor]:
    """Put a snapshot into the run; returns the last predictions in it. CheckpointError if it is of another session."""
    advice = f"give this fine-tune another name, or turn 'resume' off to begin anew (then {path.name} is replaced)"
    header = store.peek(path)
    if header.kind != "snapshot":
        raise CheckpointError(f"{path} is no training snapshot; {advice}")
    reason = difference(header.config or {}, settings)
    if reason:
        raise CheckpointError(f"{path.name} (saved at iteration {(header.meta or {}).get('step')}) belongs to a "
                              f"fine-tune with other settings: {reason}. Set it back, or {advice}")
    stored = store.load(path, "snapshot")
    try:
        restore(run, stored.tensors, stored.meta)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path.name} does not fit this model ({error}); {advice}") from error
    found = stored.tensors.get(PREDICTIONS)
    return {} if found is None else {"predictions": to_unit(found)}


# --- pictures of a session -----------------------------------------------------------------------------------------
def loss_curve(values: Sequence[float], width: int = 512, height: int = 256) -> Image.Image:
    """The loss over the iterations as a line, with its first, lowest and last value; sound for one value or none."""
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    left, top, right, bottom = 8, 22, width - 8, height - 8
    pen.rectangle((left, top, right, bottom), outline=(200, 200, 200))
    values = [v for v in values if v == v and abs(v) != float("inf")]
    if not values:
        pen.text((left, 5), "no loss yet", fill="black")
        return sheet
    low, high = min(values), max(values)
    scale = (bottom - top - 8) / ((high - low) or 1.0)
    points = [(left + 4 + (right - left - 8) * i / max(1, len(values) - 1), bottom - 4 - (v - low) * scale)
              for i, v in enumerate(values)]
    if len(points) > 1:
        pen.line(points, fill=(31, 95, 191), width=2)
    x, y = points[-1]
    pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(191, 63, 31))
    pen.text((left, 5), f"loss after {len(values)} iterations: {values[-1]:.3f}   first {values[0]:.3f}   "
                        f"lowest {low:.3f}", fill="black")
    return sheet


def progress_picture(predictions: Tensor, values: Sequence[float], side: int = 128, most: int = 6) -> Image.Image:
    """Predictions (B, 3, H, W) in [-1, 1], the style row first, side by side above the loss curve."""
    few = torch.nn.functional.interpolate(predictions[:most].float(), (side, side), mode="area")
    row = to_bytes(torch.cat(list(few), dim=2)).permute(1, 2, 0).numpy()
    width = max(row.shape[1], 360)
    sheet = Image.new("RGB", (width, side + 100), "white")
    sheet.paste(Image.fromarray(row), (0, 0))
    sheet.paste(loss_curve(values, width, 100), (0, side))
    return sheet
