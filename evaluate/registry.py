"""The registry of metrics: from it come the node's outputs, the headers of tables and the legend.

A new metric is a function and an entry here.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.features.encoder import EncoderDistance
from . import faces, metrics
from .evaluator import Comparison, Evaluator, PictureFeatures, given
from .public import PublicNetworks

BETTER = ("higher", "lower")
SCOPES = ("picture", "set", "numbers")
BATCHES = ("photos", "results", "style_images", "others")  # others: the photos in other styles, row for row
OF_PHOTOS, OF_STYLE, ALL_THREE = ("photos", "results"), ("results", "style_images"), BATCHES[:3]
OF_OTHERS = ("results", "others")


@dataclass(frozen=True)
class Metric:
    """A metric. name: in code and files. title: on the page and in tables. description: what is compared.

    better: "higher" or "lower". networks: of evaluator.NETWORKS, that it looks through. scope "picture": `function`
    takes a Comparison and returns (B,); "set": it takes two PictureFeatures and returns a scalar; "numbers": it takes
    the values of other metrics, `needs`. needs: else, what of the Comparison must not be None. partial: NaN for a
    picture that cannot be compared, and not counted in means. sees: which of BATCHES it compares.
    """
    name: str
    title: str
    unit: str
    better: str
    networks: tuple[str, ...]
    description: str
    function: Callable[..., Tensor]
    scope: str = "picture"
    needs: tuple[str, ...] = ()
    partial: bool = False
    sees: tuple[str, ...] = OF_PHOTOS

    @property
    def text(self) -> str:
        """The description, which way is better, and the unit."""
        return f"{self.description} {self.better.capitalize()} is better. Unit: {self.unit}."


# --- content preservation ---------------------------------------------------------------------------------------------
def edge_agreement(comparison: Comparison) -> Tensor:
    return metrics.edge_agreement(comparison.photos.sized, comparison.results.sized)


def structure_distance(comparison: Comparison) -> Tensor:
    return metrics.structure_distance(comparison.photos.keys, comparison.results.keys)


def identity_distance(comparison: Comparison) -> Tensor:
    similarity = F.cosine_similarity(comparison.photos.identity, comparison.results.identity, dim=1)
    return (1 - similarity).clamp_min(0)


def retrieval_accuracy(comparison: Comparison) -> Tensor:
    return metrics.retrieval_accuracy(comparison.results.identity, comparison.photos.identity)


def psnr(comparison: Comparison) -> Tensor:
    return metrics.psnr(comparison.results.sized, comparison.photos.sized)


def ssim(comparison: Comparison) -> Tensor:
    return metrics.ssim(comparison.results.sized, comparison.photos.sized)


def encoder_distance(comparison: Comparison) -> Tensor:
    distance = EncoderDistance(comparison.evaluator.autoencoder().encoder)
    pairs = zip(comparison.photos.sized.split(64), comparison.results.sized.split(64), strict=True)
    return torch.cat([distance(a, b) for a, b in pairs])


# --- faces ------------------------------------------------------------------------------------------------------------
def face_read(comparison: Comparison) -> Tensor:
    return comparison.result_faces.read.float()


def landmark_shift(comparison: Comparison) -> Tensor:
    return faces.landmark_shift(comparison.photos.faces, comparison.result_faces)


# --- style similarity -------------------------------------------------------------------------------------------------
def style_image(comparison: Comparison) -> PictureFeatures:
    return given(comparison.style_image, "style_image")


def clip_direction(comparison: Comparison) -> Tensor:
    before, after = comparison.photos.embeddings, comparison.results.embeddings
    if comparison.prompts is not None:
        before, after = F.normalize(before, dim=1), F.normalize(after, dim=1)
    return metrics.direction_similarity(before, after, given(comparison.direction_start, "direction_start"),
                                        given(comparison.direction_end, "direction_end"))


def clip_similarity(comparison: Comparison) -> Tensor:
    return F.cosine_similarity(comparison.results.embeddings, style_image(comparison).embeddings, dim=1)


def prompt_similarity(comparison: Comparison) -> Tensor:
    return comparison.prompt_similarities[:, comparison.prompt_index]


def prompt_accuracy(comparison: Comparison) -> Tensor:
    return (comparison.prompt_similarities.argmax(1) == comparison.prompt_index).float()


def colour_distance(comparison: Comparison) -> Tensor:
    return metrics.colour_distance(comparison.results.sized, style_image(comparison).sized)


def texture_distance(comparison: Comparison) -> Tensor:
    return metrics.texture_distance(comparison.results.sized, style_image(comparison).sized)


def patch_projection(comparison: Comparison) -> Tensor:
    return metrics.projected_share(comparison.results.tokens, style_image(comparison).projection)


def patch_similarity(comparison: Comparison) -> Tensor:
    return metrics.nearest_similarity(comparison.results.tokens, style_image(comparison).tokens)


# --- edits ------------------------------------------------------------------------------------------------------------
def attribute_probability(comparison: Comparison) -> Tensor:
    classifier, row = given(comparison.attribute, "attribute")
    return classifier.probability(comparison.results.z.cpu(), row)


# --- sets of pictures -------------------------------------------------------------------------------------------------
def art_distance(pictures: PictureFeatures, art: PictureFeatures) -> Tensor:
    """ValueError for less than two of either."""
    return metrics.frechet_distance(pictures.embeddings, art.embeddings)


def diversity(pictures: PictureFeatures, others: PictureFeatures) -> Tensor:
    """Row k of both is the same photo in two styles. ValueError if the evaluator has no perceptual network."""
    parts = zip(pictures.sized.split(64), others.sized.split(64), strict=True)
    return torch.cat([pictures.evaluator.perceptual_distance(a, b) for a, b in parts]).mean()


# --- measures of papers, each with the public network alone -----------------------------------------------------------
def lpips_alex(comparison: Comparison) -> Tensor:
    return comparison.results.lpips_to(comparison.photos, "lpips_alex")


def lpips_vgg(comparison: Comparison) -> Tensor:
    return comparison.results.lpips_to(comparison.photos, "lpips_vgg")


def identity_similarity(comparison: Comparison) -> Tensor:
    return F.cosine_similarity(comparison.photos.face_embeddings, comparison.results.face_embeddings, dim=1)


def arcface_distance(comparison: Comparison) -> Tensor:
    return 1 - identity_similarity(comparison)


def dino_structure(comparison: Comparison) -> Tensor:
    return metrics.structure_distance(comparison.photos.dino_keys, comparison.results.dino_keys)


def public_clip_direction(comparison: Comparison) -> Tensor:
    before = comparison.photos.public_embeddings
    direction = metrics.image_direction(before, style_image(comparison).public_embeddings)
    return metrics.unit_direction_similarity(before, comparison.results.public_embeddings, direction)


def public_clip_similarity(comparison: Comparison) -> Tensor:
    style = metrics.mean_direction(style_image(comparison).public_embeddings)
    return F.cosine_similarity(comparison.results.public_embeddings, style, dim=1)


def fid(pictures: SetFeatures, art: SetFeatures) -> Tensor:
    return metrics.frechet_distance(pictures.inception, art.inception)


def kid(pictures: SetFeatures, art: SetFeatures) -> Tensor:
    return metrics.kernel_distance(pictures.inception, art.inception)


def fid_art(pictures: SetFeatures, art: SetFeatures) -> Tensor:
    return metrics.frechet_distance(pictures.art_inception, art.art_inception)


def lpips_diversity(pictures: PictureFeatures, others: PictureFeatures) -> Tensor:
    """Row k of both is the same photo in two styles."""
    return pictures.lpips_to(others, "lpips_alex").mean()


METRICS: dict[str, Metric] = {metric.name: metric for metric in (
    Metric("edge_agreement", "edge agreement", "correlation", "higher", (),
           "Correlation of the edge maps of photo and result at 32 px.", edge_agreement),
    Metric("structure_distance", "structure distance", "squared cosine", "lower", ("structure_net",),
           "Mean squared difference of the self-similarities of photo and result.", structure_distance),
    Metric("identity_distance", "identity distance", "1 - cosine", "lower", ("diffae",),
           "Distance of the autoencoder's z of photo and result. No face recognition network is used.",
           identity_distance),
    Metric("retrieval_accuracy", "retrieval accuracy", "share of results", "higher", ("diffae",),
           "Results whose own photo is the nearest of all photos by z. Each set's mean is subtracted.",
           retrieval_accuracy),
    Metric("clip_direction", "CLIP direction", "cosine", "higher", ("clip",),
           "Direction of the CLIP embedding from photo to result, compared with the direction to the style. The latter "
           "starts at the photo twin (OSASIS), the photos' mean (MMFS) or the anchor text.", clip_direction,
           needs=("direction_start", "direction_end"), sees=ALL_THREE),
    Metric("clip_similarity", "CLIP similarity", "cosine", "higher", ("clip",),
           "CLIP embeddings of result and style image.", clip_similarity, needs=("style_image",), sees=OF_STYLE),
    Metric("prompt_similarity", "prompt similarity", "cosine", "higher", ("clip",),
           "CLIP embeddings of result and prompt.", prompt_similarity, needs=("prompts",), sees=("results",)),
    Metric("prompt_accuracy", "prompt accuracy", "share of results", "higher", ("clip",),
           "Results whose nearest text is their prompt, of all prompts and the anchor text.", prompt_accuracy,
           needs=("prompts",), sees=("results",)),
    Metric("colour_distance", "colour distance", "pixel value (range 2)", "lower", (),
           "Sliced distance of the colours of result and style image.", colour_distance, needs=("style_image",),
           sees=OF_STYLE),
    Metric("texture_distance", "texture distance", "pixel value (range 2)", "lower", (),
           "Sliced distance of 5 px grey patches of result and style image.", texture_distance, needs=("style_image",),
           sees=OF_STYLE),
    Metric("patch_projection", "patch projection", "share of energy", "higher", ("clip",),
           "Part of the result's CLIP tokens that lies in the space of the style image's tokens.", patch_projection,
           needs=("style_image",), sees=OF_STYLE),
    Metric("patch_similarity", "patch similarity", "cosine", "higher", ("clip",),
           "Each CLIP token of the result and the style image's nearest one.", patch_similarity,
           needs=("style_image",), sees=OF_STYLE),
    Metric("art_distance", "art distance", "squared distance", "lower", ("clip",),
           "Frechet distance of the CLIP embeddings of pictures and art. FID uses Inception's. It is too large for few "
           "pictures.", art_distance, "set", sees=OF_STYLE),
    Metric("diversity", "diversity", "perceptual distance", "higher", ("perceptual",),
           "Perceptual distance of two random styles of one photo.", diversity, "set", sees=OF_OTHERS),
    Metric("attribute_probability", "attribute", "probability", "higher", ("diffae",),
           "How probable the attribute is to a linear classifier of the result's z.", attribute_probability,
           needs=("attribute",), sees=("results",)),
    Metric("encoder_distance", "encoder distance", "perceptual distance", "lower", ("diffae",),
           "Distance of the maps of the autoencoder's encoder of photo and result. It replaces LPIPS where there is no "
           "file of it.", encoder_distance),
    Metric("psnr", "PSNR", "dB", "higher", (), "Peak signal-to-noise ratio of photo and result.", psnr),
    Metric("ssim", "SSIM", "index", "higher", (), "Structural similarity of photo and result.", ssim),
    Metric("face_read", "face read", "share of results", "higher", ("faces",),
           "Results in which the face mesh is sure of a face where the photo's is (quality 15, which photographs "
           "reach).", face_read),
    Metric("landmark_shift", "landmark shift", "share of the eye distance", "lower", ("faces",),
           "Mean distance of the 468 face points of photo and result, of those in which a face is read.",
           landmark_shift, partial=True),
    Metric("lpips_alex", "LPIPS (AlexNet)", "perceptual distance", "lower", ("lpips_alex",),
           "LPIPS of photo and result.", lpips_alex),
    Metric("lpips_vgg", "LPIPS (VGG-16)", "perceptual distance", "lower", ("lpips_vgg",),
           "LPIPS of photo and result. AlexNet's has another scale.", lpips_vgg),
    Metric("identity_similarity", "ID similarity", "cosine", "higher", ("arcface",),
           "ArcFace embeddings of photo and result. It holds for aligned faces alone.", identity_similarity),
    Metric("arcface_distance", "Arcface-Dist", "1 - cosine", "lower", ("arcface",),
           "Distance of the ArcFace embeddings of photo and result. It holds for aligned faces alone.",
           arcface_distance),
    Metric("dino_structure", "DINO structure distance", "squared cosine", "lower", ("dino",),
           "Mean squared difference of the self-similarities of DINO's keys of photo and result.", dino_structure),
    Metric("public_clip_direction", "CLIP direction (normalised)", "cosine", "higher", ("public_clip",),
           "Change of the CLIP embedding from photo to result, compared with the direction from the photos' mean to "
           "the style image. Every embedding has length 1 first.", public_clip_direction, needs=("style_image",),
           sees=ALL_THREE),
    Metric("public_clip_similarity", "CLIP similarity (own size)", "cosine", "higher", ("public_clip",),
           "CLIP embeddings of result and style image, pictures at their own size.", public_clip_similarity,
           needs=("style_image",), sees=OF_STYLE),
    Metric("fid", "FID", "squared distance", "lower", ("inception",),
           "Frechet distance of the Inception features of results and art. It is too large for few pictures.", fid,
           "set", sees=OF_STYLE),
    Metric("kid", "KID", "squared distance", "lower", ("inception",),
           "Kernel distance of the Inception features of results and art, of all at once. It holds for few pictures.",
           kid, "set", sees=OF_STYLE),
    Metric("fid_art", "FID of ArtFID", "squared distance", "lower", ("art_inception",),
           "Frechet distance of the features of ArtFID's Inception of results and art. FID has another scale.", fid_art,
           "set", sees=OF_STYLE),
    Metric("art_fid", "ArtFID", "product", "lower", ("lpips_alex", "art_inception"),
           "Product of 1 + LPIPS of photo and result and 1 + FID of ArtFID.", metrics.art_fid, "numbers",
           needs=("lpips_alex", "fid_art"), sees=ALL_THREE),
    Metric("lpips_diversity", "LPIPS diversity", "perceptual distance", "higher", ("lpips_alex",),
           "LPIPS with AlexNet of two random styles of one photo.", lpips_diversity, "set", sees=OF_OTHERS),
)}
CONTENT_PRESERVATION = ("edge_agreement", "structure_distance", "identity_distance", "retrieval_accuracy")
STYLE_SIMILARITY = ("clip_direction", "clip_similarity", "colour_distance", "texture_distance", "patch_projection",
                    "patch_similarity")
FACES = ("face_read", "landmark_shift")
PUBLIC_PRESERVATION = ("lpips_alex", "lpips_vgg", "identity_similarity", "arcface_distance", "dino_structure")
PUBLIC_STYLE = ("public_clip_direction", "public_clip_similarity")
PUBLIC_DISTANCES = ("fid", "kid", "fid_art")  # of results and art
PUBLIC_NAMES = (*PUBLIC_PRESERVATION, *PUBLIC_STYLE, *PUBLIC_DISTANCES, "art_fid", "lpips_diversity")
PROMPT_AGREEMENT = ("clip_direction", "prompt_similarity", "prompt_accuracy")


def metric(name: str) -> Metric:
    """The metric of this name. ValueError for an unknown one."""
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    return METRICS[name]


@torch.no_grad()
def measure(comparison: Comparison, names: Iterable[str]) -> dict[str, Tensor]:
    """(B,) of each named metric of scope "picture".

    ValueError for an unknown name, a metric of sets, and a comparison that lacks what the metric needs.
    """
    chosen = [metric(name) for name in names]
    for wanted in chosen:
        if wanted.scope == "numbers":
            raise ValueError(f"{wanted.name} is made of other metrics: {', '.join(wanted.needs)}; measure these")
        if wanted.scope != "picture":
            raise ValueError(f"{wanted.name} is a metric of sets; call its function with two sets of pictures")
        missing = [field for field in wanted.needs if getattr(comparison, field) is None]
        if missing:
            raise ValueError(f"{wanted.name} needs {', '.join(missing)}, which this comparison does not have")
    return {wanted.name: wanted.function(comparison) for wanted in chosen}


def means(comparison: Comparison, names: Iterable[str]) -> dict[str, float]:
    """Mean over the pictures of each named metric; see `measure`. A partial one is missing if it is NaN for all."""
    return {name: float(values.float().nanmean() if metric(name).partial else values.float().mean())
            for name, values in measure(comparison, names).items()
            if not (metric(name).partial and values.isnan().all())}


def preservation(evaluator: Evaluator) -> tuple[str, ...]:
    """The metrics of content preservation, faces and papers' among them, that this evaluator has the networks for."""
    faces_too = () if evaluator.faces is None else FACES
    return (*CONTENT_PRESERVATION, *faces_too, *there(evaluator.public, PUBLIC_PRESERVATION))


def style_similarity(evaluator: Evaluator) -> tuple[str, ...]:
    """The metrics of similarity to a style image, papers' among them, that this evaluator has the networks for."""
    return (*STYLE_SIMILARITY, *there(evaluator.public, PUBLIC_STYLE))


def grouped(comparison: Comparison, groups: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """{group: means of FACES}, of the rows of each group; {} for no groups or without face networks."""
    if not groups or comparison.evaluator.faces is None:
        return {}
    return faces.group_means(measure(comparison, FACES), groups)


# --- measures of papers: what the user's files allow ------------------------------------------------------------------
@dataclass(frozen=True)
class FeatureSet:
    """Features (N, 2048) of a set of pictures that is gathered part by part, on the CPU; see `gather`."""
    inception: Tensor
    art_inception: Tensor

    def __add__(self, other: FeatureSet) -> FeatureSet:
        return FeatureSet(torch.cat([self.inception, other.inception]),
                          torch.cat([self.art_inception, other.art_inception]))

    def __getitem__(self, rows: slice) -> FeatureSet:
        return FeatureSet(self.inception[rows], self.art_inception[rows])


SetFeatures = PictureFeatures | FeatureSet


def gather(pictures: PictureFeatures) -> FeatureSet:
    """What sets are compared by; of a network that is missing, nothing."""
    public, nothing = pictures.evaluator.public, torch.empty(0, 0)
    return FeatureSet(*(getattr(pictures, name).cpu() if public.has(name) else nothing
                        for name in ("inception", "art_inception")))


def there(nets: Evaluator | PublicNetworks, names: Iterable[str]) -> list[str]:
    """Those of the metrics whose networks there are; of public networks alone, of the metrics of PUBLIC_NAMES."""
    return [name for name in names if all(nets.has(network) for network in metric(name).networks)]


def public_distances(public: PublicNetworks, results: FeatureSet, art: FeatureSet,
                     lpips: float | None = None) -> dict[str, float]:
    """PUBLIC_DISTANCES and ArtFID, as far as the networks allow. lpips: LPIPS (AlexNet) of photos and results.

    ValueError for less than two results or drawings.
    """
    found = {name: float(metric(name).function(results, art)) for name in there(public, PUBLIC_DISTANCES)}
    if lpips is not None and "fid_art" in found:
        found["art_fid"] = metrics.art_fid(lpips, found["fid_art"])
    return found


def public_notes(public: PublicNetworks, counts: str) -> list[str]:
    """A line for each of PUBLIC_NAMES: the networks, what they see and the numbers of pictures, or why there is no
    number. counts: the numbers of pictures."""
    lines = []
    for name in PUBLIC_NAMES:
        missing = [network for network in metric(name).networks if not public.has(network)]
        text = "; ".join([public.seen(network) for network in metric(name).networks] + [counts])
        if missing:
            text = "not measured; " + "; ".join(public.missing(network) for network in missing)
        lines.append(f"{metric(name).title}: {text}")
    return lines


def legend(names: Iterable[str] = tuple(METRICS)) -> str:
    """One line a metric: its title, what is compared, which way is better, its unit."""
    return "\n".join(f"- {metric(name).title}: {metric(name).text}" for name in names)
