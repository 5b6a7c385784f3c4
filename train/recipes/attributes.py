"""Training the attribute classifier of a DiffAE from labelled pictures, as the command line does it."""
from __future__ import annotations

import logging
from pathlib import Path

from ...models.attributes import AttributeClassifier
from ...models.loading import load_diffae, save_attributes
from ...models.style import fingerprint
from .. import labels
from ..attributes import AttributeConfig, check_known, cross_validated, encode_pictures, fit_mirrored, targets
from .config import Folders, RecipeConfig

log = logging.getLogger(__name__)


def attributes(source: Path, folders: Folders, config: AttributeConfig, recipe: RecipeConfig) -> AttributeClassifier:
    """Train the classifier of the DiffAE in the file `source` on those photos that a labels.csv tells of, and write it
    to OUT with its figures, cross-validated. ValueError where the labels do not tell of an attribute."""
    net = load_diffae(source).to(recipe.device)
    told = labels.of_pictures(folders.photo_paths()[0])
    check_known(*targets(list(told.values())))
    z, paths = encode_pictures(net, sorted(told), recipe.hooks)
    found, not_found = targets([told[path] for path in paths])
    check_known(found, not_found)
    figures = cross_validated(z, found, not_found, config, recipe.hooks)
    for name, row in figures.items():
        log.info("%s: ranking %.2f, accuracy %.2f, of %d pictures with it and %d without", name, row["ranking"],
                 row["accuracy"], row["with"], row["without"])
    classifier = fit_mirrored(z, found, not_found, config, recipe.hooks)
    recipe.out.parent.mkdir(parents=True, exist_ok=True)
    save_attributes(recipe.out, classifier, fingerprint(net), {"figures": figures, "pictures": len(paths)})
    return classifier
