"""Sessions: what tells one training apart from another."""

from dataclasses import asdict, replace

import pytest
import torch

from oneshot_atelier.models.perceptual import EncoderDistance
from oneshot_atelier.tests import tiny
from oneshot_atelier.train import session
from oneshot_atelier.train.osasis import OsasisConfig


def described(config=None, clip=None, twin=1):
    frozen = tiny.diffae()
    return session.describe(config or OsasisConfig(), "model", clip or tiny.clip(), EncoderDistance(frozen.encoder),
                            tiny.pictures(1, twin), tiny.pictures(1, 2), None)


def test_every_field_of_the_configuration_is_kept():
    assert asdict(OsasisConfig()).items() <= described().items()


@pytest.mark.parametrize(("other", "words"), [
    ({"config": OsasisConfig(clip=3.0)}, "clip was 30.0 and is 3.0 now"),
    ({"config": OsasisConfig(perceptual=3.0)}, "perceptual was 10.0 and is 3.0 now"),
    ({"clip": tiny.clip(1)}, "the CLIP was another one"), ({"twin": 9}, "the photo twin was another one"),
    ({"config": OsasisConfig(iterations=9)}, "None")])
def test_a_difference_is_named(other, words):
    assert str(session.difference(described(), described(**other))) == words


def test_a_network_s_hash_is_of_its_weights_and_its_configuration():
    net = tiny.clip()
    same, moved, other = session.hash_of_network(tiny.clip()), tiny.clip(1), tiny.clip()
    other.config = replace(other.config, mean=(0.1, 0.1, 0.1))
    assert session.hash_of_network(net) == same
    assert len({same, session.hash_of_network(moved), session.hash_of_network(other)}) == 3
    assert len(same) == 32 and torch.equal(net.mean, tiny.clip().mean)
