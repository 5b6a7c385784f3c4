"""Nodes of MMFS at sampling time: w+ codes from a seed, a picture or a prompt; mixing them; stylizing."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

from ..models import stylegan2
from ..models.faces import crops
from ..models.faces.crops import FaceCrops
from ..models.features.clip import Clip
from ..models.films import MOST_FRAMES, Piece, steadied_film
from ..models.graphs import Graphs
from ..models.mmfs import MMFS, MMFSConfig
from ..models.precision import AUTO
from ..models.style import MAX_STRENGTH, MMFSStyle, check_mmfs_style, styled
from ..models.stylegan2 import NOISES
from ..models.stylizer import stylizer
from ..models.tiles import Tiling
from ..train.data import to_bytes
from . import host, images, inputs, sockets
from .base import AtelierNode
from .host import NodeProgress
from .sockets import CLIPModel, MMFSModel, WPlus
from .stylegan2 import layer_noise, mixed_w_plus, mixing_inputs, truncation_input
from .whole_pictures import AS_IT_IS, FACE_SCALES, Part, part_memory, parts_of, result_size, sizes_for_faces

CROP, WHOLE = "crop", "whole picture"
TILE = 1536
UNCHANGED = 1e-4  # of 1, by rounding
GAP_ANCHOR = "photo"
GAP_SAMPLES = 64  # random stylizations whose mean embedding stands for pictures
PRECISION_TOOLTIP = ("Number format of the network on a GPU. auto is float16 where the pack's kernels run (NVIDIA, "
                     "with Triton) and float32 elsewhere. A CPU always computes in float32.")
CLIP_TOOLTIP = ("The CLIP that the model's mapping was trained with: officially OpenAI's ViT-B/32, 'demo' for the "
                "demo model.")


def w_plus_output(tooltip: str = "The w+ codes, for Stylize with MMFS.") -> list:
    return [sockets.W_PLUS.Output("w_plus", display_name="w+ code", tooltip=tooltip)]


class RandomStyle(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSRandomStyle", display_name="Random MMFS Style", category="Atelier/mmfs",
            description="Makes random w+ codes. MMFS was trained on thousands of artistic faces: every seed is another "
                        "style.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="The MMFS model."),
                inputs.seed("Seed of the styles. Style n of a seed is the same whatever the count."),
                io.Int.Input("count", default=1, min=1, max=256,
                             tooltip="Number of styles: one for each picture, or one for all."),
                *mixing_inputs("styles"),
                truncation_input(1.0)],
            outputs=w_plus_output())

    @classmethod
    def execute(cls, mmfs: MMFSModel, seed: int, count: int, mix_seed: int, mix_from: int,
                truncation: float) -> io.NodeOutput:
        with host.running(mmfs.patched) as device:
            w = mixed_w_plus(mmfs.net.styles, mmfs.net.config.w_dim, seed, count, mix_seed, mix_from, device)
        if truncation != 1:
            w = stylegan2.truncate(w, mmfs.mean_w, truncation)
        return io.NodeOutput(WPlus(w, mmfs.fingerprint, f"seed {seed}"))


class StyleFromPicture(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSStyleFromPicture", display_name="MMFS Style from Picture", category="Atelier/mmfs",
            description="Embeds a style image with CLIP and maps it to a w+ code. The result has its tone and look; "
                        "fine-tuning comes closer.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="An MMFS model with its CLIP mapping."),
                sockets.CLIP.Input("clip", tooltip=CLIP_TOOLTIP),
                inputs.image("style_image", "The style images. CLIP sees the middle square of wide or tall ones."),
                io.Boolean.Input("average", default=False,
                                 tooltip="One code from the mean of all pictures. Off: a code for each.")],
            outputs=w_plus_output())

    @classmethod
    def execute(cls, mmfs: MMFSModel, clip: CLIPModel, style_image: Tensor, average: bool) -> io.NodeOutput:
        pictures = to_bytes(images.checked(style_image, "style_image") * 2 - 1)
        sockets.warn_of_clip(mmfs, clip)
        progress, embeddings = NodeProgress(len(pictures)), []
        with host.running(mmfs.patched, clip.patched):
            for one in pictures:
                embeddings.append(F.normalize(embed_file(clip.net, one), dim=-1))
                progress()
            seen = torch.cat(embeddings)
            w = mmfs.net.styles_of(seen.mean(0, keepdim=True) if average else seen)
        return io.NodeOutput(WPlus(w.float().cpu(), mmfs.fingerprint, "picture"))


def embed_file(clip: Clip, picture: Tensor) -> Tensor:
    """The embedding (1, D) of a picture uint8 (3, H, W), preprocessed as the official program does references."""
    return clip.encode_with_tokens(clip.preprocess_file(picture))[0].float()


class StyleFromText(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSStyleFromText", display_name="MMFS Style from Text", category="Atelier/mmfs",
            description="Maps a prompt to a w+ code through CLIP. CLIP's text and image embeddings lie in "
                        "different regions, so this alone is vague. Fine-tuning comes closer.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="An MMFS model with its CLIP mapping."),
                sockets.CLIP.Input("clip", tooltip=CLIP_TOOLTIP),
                io.String.Input("prompt", default="watercolor painting", multiline=True,
                                tooltip="The style in a few words. The demo CLIP knows only a few words and lists them "
                                        "in its error."),
                io.Float.Input("gap", default=0.0, min=0.0, max=1.0, step=0.05,
                               tooltip="Moves the text's embedding to where CLIP embeds pictures. 0: not at all, as in "
                                       "the official program. 1: fully. Needs photos."),
                inputs.image("photos", "Faces, needed if gap is above 0. Their random stylizations show where pictures "
                                       "are embedded.", optional=True)],
            outputs=w_plus_output())

    @classmethod
    def execute(cls, mmfs: MMFSModel, clip: CLIPModel, prompt: str, gap: float,
                photos: Tensor | None = None) -> io.NodeOutput:
        clip.net.check_prompt(prompt)
        if gap and photos is None:
            raise ValueError("gap is above 0, which needs photos to stylize. Connect some faces to photos, or set gap "
                             "to 0")
        sockets.warn_of_clip(mmfs, clip)
        x = None
        if gap and photos is not None:
            x = images.to_square(images.check(photos, "photos")[:GAP_SAMPLES], mmfs.net.config.resolution, "photos")
        with host.running(mmfs.patched, clip.patched) as device:
            texts = F.normalize(clip.net.embed_text([prompt, GAP_ANCHOR] if gap else [prompt]).float(), dim=-1)
            seen = texts[:1]
            if x is not None:
                mean = mean_embedding(mmfs.net, clip.net, x.to(device), NodeProgress(GAP_SAMPLES))
                seen = across_the_gap(texts[:1], texts[1:], mean, gap)
            w = mmfs.net.styles_of(seen)
        return io.NodeOutput(WPlus(w.float().cpu(), mmfs.fingerprint, f"prompt '{prompt.strip()[:80]}'"))


def across_the_gap(text: Tensor, anchor: Tensor, mean: Tensor, share: float) -> Tensor:
    """An embedding (1, D) of text moved to the pictures' side: pictures' mean + (text - anchor) (docs/mmfs.md B.5)."""
    return torch.lerp(text, F.normalize(mean + text - anchor, dim=-1), share)


def mean_embedding(net: MMFS, clip: Clip, photos: Tensor, progress: NodeProgress) -> Tensor:
    """Mean embedding (1, D) of random stylizations of the photos (B, 3, px, px), taken in turn."""
    z = stylegan2.random_z(GAP_SAMPLES, net.config.w_dim, 0, photos.device)
    total = torch.zeros((), device=photos.device)
    for k in range(GAP_SAMPLES):
        result = net(photos[k % len(photos)][None], net.styles(z[k:k + 1]))
        total = total + F.normalize(clip.embed(result, "mmfs").float(), dim=-1)
        progress(partial(images.side_by_side, result))
    return total / GAP_SAMPLES


class MixStyles(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSMixStyles", display_name="Mix MMFS Styles", category="Atelier/mmfs",
            description="Interpolates from one w+ code to another, in some layers or in all. Early layers decide tone "
                        "and shape, late ones colour and texture.",
            inputs=[
                sockets.W_PLUS.Input("a", tooltip="The codes to start from."),
                sockets.W_PLUS.Input("b", tooltip="The codes to go to: as many as in a, or a single one on either "
                                                  "side."),
                io.Float.Input("amount", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="Position between the two: 0 is a, 1 is b in the chosen layers."),
                io.Int.Input("from_layer", default=0, min=0, max=17, tooltip="The first layer that changes."),
                io.Int.Input("to_layer", default=17, min=0, max=17,
                             tooltip="The last layer that changes. Layers that the model does not have are ignored "
                                     "(512 px: 0 to 9, 128 px: 0 to 5).")],
            outputs=w_plus_output("The mixed w+ codes."))

    @classmethod
    def execute(cls, a: WPlus, b: WPlus, amount: float, from_layer: int, to_layer: int) -> io.NodeOutput:
        sockets.same_model("w+ code b", b.fingerprint, a.fingerprint, "MMFS")
        if a.w.shape[1:] != b.w.shape[1:]:
            raise ValueError(f"w+ code a has {a.layers} layers of {a.w.shape[2]} numbers, b has {b.layers} of "
                             f"{b.w.shape[2]}. They are of different MMFS models; make both with the same one")
        if not from_layer <= to_layer or from_layer >= a.layers:
            raise ValueError(f"from_layer {from_layer} to to_layer {to_layer} holds no layer to mix. This model's are "
                             f"0 to {a.layers - 1}")
        first, second = sockets.paired(a.w, b.w, ("codes a", "codes b"))
        w = first.clone()
        w[:, from_layer:to_layer + 1] = torch.lerp(first, second, amount)[:, from_layer:to_layer + 1]
        origin = f"{a.origin} and {amount:g} of {b.origin} in layers {from_layer} to {min(to_layer, a.layers - 1)}"
        return io.NodeOutput(WPlus(w, a.fingerprint or b.fingerprint, origin))


class StylizeMMFS(AtelierNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMMFSStylize", display_name="Stylize with MMFS", category="Atelier/mmfs",
            description="Stylizes pictures in a single network call each. A fine-tuned style brings its own decoder "
                        "and w+ code.",
            inputs=[
                sockets.MMFS_MODEL.Input("mmfs", tooltip="The MMFS model."),
                inputs.image("image", "The photos. A single one with several w+ codes is stylized with each."),
                io.Float.Input("strength", default=1.0, min=0.0, max=MAX_STRENGTH, step=0.05,
                               tooltip="Of the fine-tuned style's decoder. 0: the model's own decoder. 1: the style's. "
                                       "More exaggerates. No effect without a style."),
                inputs.choice("noise", NOISES, "seeded",
                              "Noise of fine texture. seeded: each picture has its own. constant: the same for all, "
                              "for the frames of a film. zero: smooth."),
                inputs.fixed_seed("Seed of the noise. No effect with noise zero.", "noise_seed"),
                inputs.choice("fit", (CROP, WHOLE), CROP,
                              "crop: the middle square, at the model's size. The face should be upright and fill most "
                              "of it. whole picture: in its own shape and size (faces should be about as large as in "
                              "the crop, see face_scale)."),
                io.Int.Input("max_side", default=1024, min=0, max=8192, step=16,
                             tooltip="Whole pictures with a longer side than this are scaled down. 0: never."),
                inputs.batch("Pictures of the model's size at a time."),
                sockets.W_PLUS.Input("w_plus", display_name="w+ code", optional=True,
                                     tooltip="One code for each photo, one for all, or several for a single photo. "
                                             "Not connected: that of the fine-tuned style."),
                sockets.MMFS_STYLE.Input("style", display_name="fine-tuned style", optional=True,
                                         tooltip="A fine-tuned style, loaded or just made."),
                inputs.precision(PRECISION_TOOLTIP, optional=True),
                inputs.choice("face_scale", FACE_SCALES, AS_IT_IS,
                              "Of whole pictures: they are stylized at the size at which the largest face is as large "
                              "as in the model's crops, and get their own size back. each picture: by its own face. "
                              "whole batch: all alike, for the frames of a film. off: at their own size.",
                              optional=True),
                inputs.advanced(io.Int.Input(
                    "tile", default=TILE, min=0, max=8192, step=16, optional=True,
                    tooltip="Whole pictures with a longer side than this are computed in overlapping tiles. The result "
                            "is the same, the memory bounded. 0: never.")),
                io.Float.Input("steady", default=0.0, min=0.0, max=MOST_FRAMES, step=0.5, optional=True,
                               tooltip="For the frames of a film: each result is the mean of what the same things "
                                       "became in so many frames before and after. Motion is that of image. 2 is good. "
                                       "0: each picture on its own."),
                sockets.FACE_CROP.Input("face_crop", optional=True,
                                        tooltip="With steady, if image holds several faces of each frame: which crop "
                                                "is whose. From Detect & Align Faces. Not connected: each picture is "
                                                "a frame.")],
            outputs=[io.Image.Output("stylized", display_name="image", tooltip="The stylized pictures.")])

    @classmethod
    def execute(cls, mmfs: MMFSModel, image: Tensor, strength: float, noise: str, noise_seed: int, fit: str,
                max_side: int, batch: int, w_plus: WPlus | None = None, style: MMFSStyle | None = None,
                precision: str = AUTO, face_scale: str = AS_IT_IS, tile: int = TILE,
                steady: float = 0.0, face_crop: FaceCrops | None = None) -> io.NodeOutput:
        w, config = codes(mmfs, w_plus, style), mmfs.net.config
        size = result_size(image, fit == WHOLE, config, max_side)
        count = sockets.paired_length(len(image), len(w), ("pictures", "w+ codes"))
        sizes = [size] * len(image)
        if fit == WHOLE and face_scale != AS_IT_IS:
            sizes = sizes_for_faces(image, size, config, face_scale)
        parts = parts_of(sizes if len(image) > 1 else sizes * count, config, batch)
        tilings = [Tiling.of(*part.padded(config), tile, config) for part in parts]
        film = count if steady and len(image) > 1 else 0
        frames = frames_of(count, face_crop) if film else []
        progress, out = NodeProgress(len(parts) + film), torch.empty(count, *size, 3)
        memory = max(part_memory(part, tiling.size, mmfs.net, size) for part, tiling in zip(parts, tilings))
        with host.running(mmfs.patched, memory=memory) as device, Graphs() as graphs:
            net = mmfs.net if style is None else styled(mmfs.net, style, strength)
            stylize, where = stylizer(net, precision), device if device.type == "cuda" else images.CPU

            def inputs_of(part: Part, drawn: list[Tensor]) -> list[Tensor]:
                r = part.rows
                x = fitted(image[r] if len(image) > 1 else image, fit, config, part.size, where).to(device)
                x, code = sockets.paired(x, (w[r] if len(w) > 1 else w).to(device), ("pictures", "w+ codes"))
                return [x, code, *(host.sent(n, device) for n in drawn)]

            def kept(part: Part, picture: Tensor) -> Tensor:
                """The results (B, 3, H, W), as IMAGE on their device: without border, at their size."""
                picture = picture[..., :part.size[0], :part.size[1]]
                if part.size != size:
                    picture = torch.stack([crops.scaled(one, *size) for one in picture])
                return images.on_its_device(picture)

            def keep(part: Part, tiling: Tiling, given: list[Tensor], found: host.Received) -> None:
                """The pictures of a part. Those that left float16's range are made again."""
                r = part.rows
                if not torch.isfinite(picture := found.get()).all():
                    host.warn(f"Pictures {r.start + 1} to {r.stop} do not fit into {precision}. They were made in "
                              "float32")
                    picture = kept(part, tiling(stylizer(net, "float32"), *given)).cpu()
                out[r] = picture
                progress(lambda: images.side_by_side(
                    images.for_preview(rearrange(out[r], "b h w c -> b c h w")) * 2 - 1))

            def graphed(*given: Tensor) -> Tensor:
                return graphs("", lambda *tensors: (stylize(*tensors),), *given)[0]

            def noise_of(part: Part) -> list[Tensor]:
                shapes = mmfs.net.noise_shapes(*part.padded(config))
                return layer_noise(noise, shapes, part.rows, noise_seed, images.CPU) or []
            before: tuple[Part, Tiling, list[Tensor], host.Received] | None = None
            drawn_once = noise != "seeded" and len(set(sizes)) == 1
            for (part, drawn), tiling in zip(ahead(noise_of, parts, drawn_once), tilings):
                given = inputs_of(part, drawn)
                result = kept(part, tiling(graphed, *given))
                if before is not None:
                    keep(*before)  # while the GPU works on the next ones
                before = part, tiling, given, host.Received(result)
            if before is not None:
                keep(*before)
            if film:
                changed = steady_frames(out, frames, lambda k: fitted(image[k:k + 1], fit, config, size), steady,
                                        device, progress)
                if not changed:
                    host.inform("steady changed nothing. Pictures that follow one another show too little of the same. "
                                "If they are crops of several faces, connect face_crop of Detect & Align Faces")
        return io.NodeOutput(out)


def frames_of(count: int, face_crop: FaceCrops | None) -> list[dict[int, int]]:
    """For each frame of a film: which of `count` pictures shows its face of which number. ValueError for crops of
    others. Without face_crop each picture is a frame."""
    if face_crop is None:
        return [{0: k} for k in range(count)]
    if len(face_crop.crops) != count:
        raise ValueError(f"face_crop: {len(face_crop.crops)} crops, but image holds {count} pictures. Connect both "
                         "from the same Detect & Align Faces")
    frames: list[dict[int, int]] = [{} for _ in range(face_crop.pictures)]
    for k, crop in enumerate(face_crop.crops):
        frames[crop.picture][crop.index] = k
    return frames


def steady_frames(out: Tensor, frames: Sequence[Mapping[int, int]], picture: Callable[[int], Tensor], steady: float,
                  device: torch.device, progress: Callable[[], None]) -> bool:
    """Steadies the stylized pictures of a film, IMAGE (T, H, W, 3), in their place; whether that changed any. frames:
    see `frames_of`. picture(k): what number k was made of, (1, 3, H or more, W or more) in [-1, 1]."""
    def piece(k: int) -> Piece:
        seen = picture(k)[0, :, :out.shape[1], :out.shape[2]]
        return seen.to(device), rearrange(out[k].to(device), "h w c -> c h w") * 2 - 1
    changed = False
    film = ({number: piece(k) for number, k in frame.items()} for frame in frames)
    for frame, made in zip(frames, steadied_film(film, steady), strict=True):
        for number, k in frame.items():
            before, out[k] = out[k].clone(), images.to_image(made[number][None])[0]
            changed = changed or float((out[k] - before).abs().amax()) > UNCHANGED
            progress()
    return changed


def ahead(make: Callable[[Part], list[Tensor]], parts: Sequence[Part],
          once: bool = False) -> Iterator[tuple[Part, list[Tensor]]]:
    """(part, make(part)) of every part; the next one's is made by another thread meanwhile. once: the first one's
    serves all."""
    inference = torch.is_inference_mode_enabled()

    def made(part: Part) -> list[Tensor]:
        with torch.inference_mode(inference):  # which a thread does not inherit
            return make(part)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(made, parts[0])
        for part, following in zip(parts, [*parts[1:], None]):
            found = coming.result()
            if following is not None and not once:
                coming = pool.submit(made, following)
            yield part, found


def codes(mmfs: MMFSModel, w_plus: WPlus | None, style: MMFSStyle | None) -> Tensor:
    """The w+ codes to stylize with. ValueError if there are none, or if they belong to another model."""
    if style is not None:
        check_mmfs_style(style, mmfs.net.config, mmfs.fingerprint)
    if w_plus is None:
        if style is None:
            raise ValueError("there is no style. Connect a w+ code (Random MMFS Style, MMFS Style from Picture or from "
                             "Text), or a fine-tuned style")
        if style.w_plus is None:
            raise ValueError("this fine-tuned style holds no w+ code of its own. Connect one, made from its reference "
                             "picture or prompt with MMFS Style from Picture or from Text")
        return style.w_plus.float()
    sockets.same_model("the w+ code", w_plus.fingerprint, mmfs.fingerprint, "MMFS")
    config = mmfs.net.config
    if w_plus.w.shape[1:] != (config.n_styles, config.w_dim):
        raise ValueError(f"the w+ code has {w_plus.layers} layers of {w_plus.w.shape[2]} numbers, and this model takes "
                         f"{config.n_styles} of {config.w_dim}. Make it with the same Load MMFS")
    return w_plus.w


def fitted(image: Tensor, fit: str, config: MMFSConfig, size: tuple[int, int],
           device: torch.device = images.CPU) -> Tensor:
    """Pictures in [-1, 1] that the model takes: the middle squares, or whole ones of this (height, width)."""
    if fit == WHOLE:
        return images.to_strides(image, config.stride, size, device=device)
    return images.to_square(image, config.resolution, device=device)


NODES = [RandomStyle, StyleFromPicture, StyleFromText, MixStyles, StylizeMMFS]
