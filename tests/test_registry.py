"""The registry of metrics: complete entries, and what is made from it."""

from dataclasses import replace

import pytest
import torch

from oneshot_atelier.evaluate import registry, tables
from oneshot_atelier.evaluate.evaluator import NETWORKS, Comparison, Evaluator, PictureFeatures
from oneshot_atelier.evaluate.public import PUBLIC
from oneshot_atelier.evaluate.registry import METRICS, legend, means, measure
from oneshot_atelier.models.attributes import AttributeClassifier
from oneshot_atelier.models.faces.networks import load_faces
from oneshot_atelier.models.features.encoder import EncoderDistance
from oneshot_atelier.tests import tiny

PICTURE_METRICS = [name for name, metric in METRICS.items() if metric.scope == "picture"]
WIDTH = tiny.DIFFAE.unet.embed
ATTRIBUTE = AttributeClassifier(torch.ones(2, WIDTH), torch.zeros(2), torch.zeros(1, WIDTH), torch.ones(1, WIDTH),
                                ("one", "two")), 1
GROUPS = (registry.CONTENT_PRESERVATION, registry.STYLE_SIMILARITY, registry.PROMPT_AGREEMENT, registry.FACES)


@pytest.fixture(scope="module")
def evaluator():
    diffae = tiny.diffae()
    return Evaluator(tiny.clip(), diffae, EncoderDistance(diffae.encoder), faces=load_faces(), public=tiny.public())


def comparison(evaluator, prompts=None):
    photos, results, style = tiny.pictures(3), tiny.pictures(3, 1), tiny.pictures(1, 2)
    start = evaluator.embed(tiny.pictures(1, 3))
    whole = Comparison.of(evaluator, photos, results, style, start)
    return Comparison(whole.photos, whole.results, whole.style_image, start, prompts, attribute=ATTRIBUTE)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_all_about_itself(name):
    metric = METRICS[name]
    assert metric.name == name and name.isidentifier() and metric.title and metric.unit and callable(metric.function)
    assert metric.better in registry.BETTER and metric.scope in registry.SCOPES
    assert set(metric.networks) <= set(NETWORKS)
    assert metric.description[0].isupper() and metric.description.endswith(".")
    assert metric.text == f"{metric.description} {metric.better.capitalize()} is better. Unit: {metric.unit}."


def test_names_and_titles_are_unique_and_the_groups_are_of_them():
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)
    assert all(METRICS[name].scope == "picture" for group in GROUPS for name in group)


def test_every_picture_metric_gives_one_number_a_picture(evaluator):
    prompts = torch.nn.functional.normalize(torch.randn(2, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    found = measure(comparison(evaluator, prompts), PICTURE_METRICS)
    assert list(found) == PICTURE_METRICS
    for name, values in found.items():
        assert values.shape == (3,) and not values.requires_grad
        assert torch.isfinite(values).all() != METRICS[name].partial, "these pictures have no faces"
    averaged = means(comparison(evaluator, prompts), ["ssim"])
    assert averaged == {"ssim": pytest.approx(float(found["ssim"].mean()))}


def test_metrics_of_sets_give_one_number(evaluator):
    a, b = (PictureFeatures(evaluator, tiny.pictures(4, seed)) for seed in (1, 2))
    for name, metric in METRICS.items():
        if metric.scope == "set":
            value = metric.function(a, b)
            assert value.ndim == 0 and value > 1e-4, name
            assert metric.function(a, a).abs() < 1e-3 or name == "kid", name  # which is unbiased, not 0


def test_a_picture_metric_sees_the_networks_it_names_and_no_other(evaluator):
    """Each network raises when it is used."""
    class Forbidden:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, attribute):
            raise AssertionError(self.name)

        def __call__(self, *_):
            raise AssertionError(self.name)

    prompts = torch.nn.functional.normalize(torch.ones(2, 24), dim=1)
    for name in PICTURE_METRICS:
        for network in {"clip", "structure_net", "perceptual", "faces", *PUBLIC} - set(METRICS[name].networks):
            given = {"clip": evaluator.clip, "diffae": evaluator.diffae, "structure_net": None, "perceptual": None,
                     "faces": evaluator.faces, "public": evaluator.public}
            if network in PUBLIC:
                given["public"] = replace(evaluator.public, **{network: Forbidden(network)})
            elif network == "clip":  # its device is asked for
                given["clip"] = Forbidden("clip")
                given["clip"].mean = evaluator.clip.mean
            else:
                given[network] = Forbidden(network)
            other = Evaluator(**given)
            start = torch.ones(1, 24)
            made = [PictureFeatures(other, tiny.pictures(n, n)) for n in (3, 3, 1)]
            assert measure(Comparison(*made, start, prompts, attribute=ATTRIBUTE), [name])[name].shape == (3,)


def test_unknown_names_are_refused(evaluator):
    for call in (lambda: measure(comparison(evaluator), ["sharpness"]), lambda: legend(["sharpness"]),
                 lambda: tables.table({"photos": {"sharpness": 1.0}})):
        with pytest.raises(ValueError, match="no metric 'sharpness'; there are edge_agreement"):
            call()


@pytest.mark.parametrize("name, missing", [
    ("clip_direction", "direction_start, direction_end"), ("clip_similarity", "style_image"),
    ("colour_distance", "style_image"), ("prompt_accuracy", "prompts")])
def test_what_a_comparison_lacks_is_named(evaluator, name, missing):
    bare = Comparison.of(evaluator, tiny.pictures(2), tiny.pictures(2))
    with pytest.raises(ValueError, match=f"{name} needs {missing}, which"):
        measure(bare, [name])


def test_a_metric_of_sets_is_no_picture_metric(evaluator):
    with pytest.raises(ValueError, match="art_distance is a metric of sets"):
        measure(comparison(evaluator), ["art_distance"])


def test_diversity_without_a_perceptual_network_is_refused(evaluator):
    bare = Evaluator(evaluator.clip, evaluator.diffae)
    with pytest.raises(ValueError, match="no perceptual network"):
        METRICS["diversity"].function(*[PictureFeatures(bare, tiny.pictures(2))] * 2)


def test_legend_and_headers_are_the_registrys():
    lines = legend().splitlines()
    assert lines == [f"- {metric.title}: {metric.text}" for metric in METRICS.values()]
    header = tables.table({"row": dict.fromkeys(METRICS, 0.5)}).splitlines()[0]
    assert header == "| | " + " | ".join(metric.title for metric in METRICS.values()) + " |"
