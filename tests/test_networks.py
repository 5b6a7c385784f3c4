"""Networks: sizes of the public configurations, config round trips, mixed codes, v-prediction, the SPN."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from oneshot_atelier.models import diffae, spn, unet
from oneshot_atelier.models.diffae import CONFIGS, DiffAE, DiffAEConfig, change_point_weights, mix_codes
from oneshot_atelier.models.diffusion import denoiser, linear_alpha_bar, predict_x0
from oneshot_atelier.models.spn import SPN, SPNConfig
from oneshot_atelier.models.style import OSASISStyle, check_osasis_style, fingerprint
from oneshot_atelier.models.unet import UNet, UNetConfig
from oneshot_atelier.tests import tiny
from oneshot_atelier.train.recipes import diffusion

P2 = UNetConfig(256, 128, (1, 1, 2, 2, 4, 4), blocks=1, cond=0, out_channels=6, head_channels=64, dropout=0.0)
PLAIN_128 = replace(CONFIGS["ffhq128"].unet, cond=0, dropout=0.0)
# unet, encoder, latent network (docs/osasis.md A.1)
SIZES = {"ffhq256": (138_341_891, 30_150_400, 54_109_696), "ffhq128": (103_871_619, 24_673_536, 54_109_696),
         "celeba64": (71_518_723, 19_320_512, 54_109_696), "horse128": (103_871_619, 24_673_536, 117_106_176)}
SAME = {"afhq256-dog": "ffhq256", "afhq256-cat": "ffhq256", "church256": "ffhq256", "ffhq64": "celeba64",
        "bedroom128": "horse128"}


def run(net, x, t, z=None):
    """The UNet's output at times t (B,)."""
    return net(x, net.modulation(t, z))


def on_meta(make):
    """A network without memory."""
    with torch.device("meta"):
        return make()


def size(net):
    return sum(p.numel() for p in net.parameters())


@pytest.fixture(scope="module")
def public():
    return {name: on_meta(lambda c=CONFIGS[name]: DiffAE(c)) for name in SIZES}


# --- sizes and round trips ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SIZES)
def test_public_configurations_have_the_published_sizes(public, name):
    net = public[name]
    assert (size(net.unet), size(net.encoder), size(net.latent_net)) == SIZES[name]


def test_every_public_configuration_is_one_of_those_with_known_sizes():
    assert set(CONFIGS) == set(SIZES) | set(SAME)
    assert all(CONFIGS[name] == CONFIGS[other] for name, other in SAME.items())


@pytest.mark.parametrize(("name", "total", "count"), [("ffhq256", 168_492_291, 706), ("ffhq128", 128_545_155, 608),
                                                      ("celeba64", 90_839_235, 506)])
def test_totals_and_tensor_counts_of_the_autoencoders(public, name, total, count):
    net = public[name]
    names = [key for key in net.state_dict() if key.startswith(("unet.", "encoder."))]
    assert size(net) - size(net.latent_net) == total and len(names) == count


def test_ffhq256_has_the_blocks_of_the_spec(public):
    net = public["ffhq256"]
    assert len(net.state_dict()) == 766 + 2 and len(net.encoder.state_dict()) == 116
    assert sum(isinstance(m, unet.ResBlock) for m in net.modules()) == 42
    assert sum(isinstance(m, unet.Attention) for m in net.unet.modules()) == 6
    assert [m.heads for m in net.modules() if isinstance(m, unet.Attention)] == [1] * 9


def test_plain_ddim_and_p2_have_their_sizes():
    p2 = on_meta(lambda: UNet(P2))
    assert (size(p2), len(p2.state_dict())) == (93_563_910, 362)
    assert {m.heads for m in p2.modules() if isinstance(m, unet.Attention)} == {8}
    assert size(on_meta(lambda: UNet(PLAIN_128))) == 98_618_499


@pytest.mark.parametrize("name", CONFIGS)
def test_every_public_configuration_is_detected_from_its_shapes(public, name):
    tensors = public[SAME.get(name, name)].state_dict()
    assert diffae.detect(tensors) == CONFIGS[name]
    without = {key: value for key, value in tensors.items() if not key.startswith(("latent_net.", "conds"))}
    assert diffae.detect(without) == replace(CONFIGS[name], latent=None)


@pytest.mark.parametrize("config", [P2, PLAIN_128, diffusion.small_ddpm(128), diffusion.small_ddpm(64), tiny.DDPM])
def test_unets_without_code_are_detected_from_their_shapes(config):
    found = unet.detect(on_meta(lambda: UNet(config)).state_dict())
    assert replace(found, prediction=config.prediction) == config  # which no shape says


def test_what_the_shapes_do_not_say_can_be_given():
    tensors = on_meta(lambda: UNet(replace(tiny.DDPM, head_channels=32))).state_dict()
    assert unet.detect(tensors).head_channels == 64 and unet.detect(tensors, head_channels=32).head_channels == 32
    flat = on_meta(lambda: UNet(replace(tiny.DDPM, image_size=64))).state_dict()  # attention at no level: 64 and 32 px
    with pytest.raises(ValueError, match="attention stands at 0 levels"):
        unet.detect(flat)
    assert unet.detect(flat, image_size=64).image_size == 64


@pytest.mark.parametrize("config", [*CONFIGS.values(), replace(CONFIGS["ffhq128"], latent=None),
                                    diffusion.small_diffae(128), diffusion.small_diffae(64), tiny.DIFFAE])
def test_configurations_survive_json(config):
    assert DiffAEConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config
    assert UNetConfig(**json.loads(json.dumps(asdict(config.unet)))) == config.unet


@pytest.mark.parametrize("px", [128, 64])
def test_the_demo_configurations_are_detected_but_for_dropout_and_prediction(px):
    config = diffusion.small_diffae(px)
    found = diffae.detect(on_meta(lambda: DiffAE(config)).state_dict())
    assert config.unet.prediction == "v"
    assert replace(found, unet=replace(found.unet, dropout=config.unet.dropout, prediction="v")) == config


def test_foreign_state_dicts_are_no_diffae():
    with pytest.raises(ValueError, match="lacks input_blocks.0.0.weight"):
        diffae.detect({"fc.weight": torch.zeros(1)})
    plain = {f"unet.{key}": value for key, value in on_meta(lambda: UNet(tiny.DDPM)).state_dict().items()}
    with pytest.raises(ValueError, match="no semantic encoder.*Load DDPM"):
        diffae.detect(plain)
    bare = on_meta(lambda: UNet(tiny.DDPM)).state_dict()
    with pytest.raises(ValueError, match="halves do not match"):
        unet.detect({key: value for key, value in bare.items() if "output_blocks.3" not in key})


def test_impossible_configurations_are_refused():
    with pytest.raises(ValueError, match="width of z must equal"):
        DiffAEConfig(replace(tiny.UNET, cond=16), (1, 2, 2))
    with pytest.raises(ValueError, match="prediction is 'x0'"):
        replace(tiny.UNET, prediction="x0")
    with pytest.raises(ValueError, match="attention heads of 48"):
        UNet(replace(tiny.DDPM, head_channels=48))


def test_a_fresh_unet_predicts_nothing():
    net = UNet(tiny.UNET).eval()
    assert not run(net, tiny.pictures(1), torch.tensor([3]), torch.zeros(1, tiny.WIDTH)).any()


def test_a_diffae_without_latent_ddim_says_what_to_load():
    with pytest.raises(ValueError, match="autoenc_latent"):
        DiffAE(replace(tiny.DIFFAE, latent=None)).sample_z(torch.zeros(1, tiny.WIDTH))


# --- time, rows, precision ---------------------------------------------------------------------------------------
def test_time_features_are_cosines_then_sines():
    t = torch.tensor([0, 437])
    found = unet.time_features(t, 8)
    angles = 437 * 10000.0 ** -(torch.arange(4) / 4)
    assert torch.allclose(found[1], torch.cat([angles.cos(), angles.sin()]), atol=1e-4)
    assert found[0].tolist() == [1.0] * 4 + [0.0] * 4


def test_rows_of_a_batch_do_not_touch_each_other():
    net, x, t = tiny.diffae(), tiny.pictures(3), torch.tensor([10, 500, 900])
    with torch.no_grad():
        z = net.encode(x)
        whole = run(net.unet, x, t, z)
        rows = torch.cat([run(net.unet, x[i:i + 1], t[i:i + 1], z[i:i + 1]) for i in range(3)])
        alone = torch.cat([net.encode(x[i:i + 1]) for i in range(3)])
    assert torch.allclose(whole, rows, atol=1e-4) and torch.allclose(z, alone, atol=1e-5)


def test_autocast_stays_close_to_float32():
    net, x, t = tiny.diffae(), tiny.pictures(1), torch.tensor([300])
    with torch.no_grad():
        exact = run(net.unet, x, t, net.encode(x))
        with torch.autocast("cpu", torch.bfloat16):
            rough = run(net.unet, x, t, net.encode(x))
    assert 0 < (rough.float() - exact).abs().mean() < 0.03 * exact.abs().mean() + 0.01


# --- mixed codes -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("px", "style_levels"), [(256, 1), (128, 2), (64, 3), (32, 4), (16, 5), (8, 6), (512, 0),
                                                  (1, 6)])
def test_the_change_point_can_stand_at_any_resolution(px, style_levels):
    config = CONFIGS["ffhq256"].unet
    weights = change_point_weights(config, px)
    assert weights == (1.0,) * style_levels + (0.0,) * (7 - style_levels)
    assert change_point_weights(config, px, swap=True) == tuple(1 - w for w in weights)


def test_thirty_two_gives_the_blocks_of_the_paper(public):
    """Input 0-11 and output 6-17 take the style; input 12-17, the middle and output 0-5 the content (A.6)."""
    net = public["ffhq256"].unet
    content, style = torch.empty(1, 512, device="meta"), torch.empty(1, 512, device="meta")
    codes = [style if w else content for w in change_point_weights(net.config, 32)]
    taken = {}
    handles = [module.register_forward_pre_hook(lambda m, args, name=name: taken.__setitem__(name, args[0] is style))
               for name, module in net.named_modules() if name.endswith("cond_emb_layers")]
    with torch.no_grad():
        net.modulation(torch.zeros(1, dtype=torch.long, device="meta"), codes)
    for handle in handles:
        handle.remove()
    halves = (("input_blocks", range(1, 12)), ("output_blocks", range(6, 18)), ("middle_block", range(0)))
    for half, styled in halves:
        for name, is_style in taken.items():
            if name.startswith(half):
                assert is_style == (int(name.split(".")[1]) in styled), name
    assert len(taken) == 42


def test_codes_are_mixed_level_by_level():
    content, style = torch.zeros(3, 4), torch.ones(1, 4)
    mixed = mix_codes(content, style, (0.0, 1.0, 0.25))
    assert [m.shape for m in mixed] == [(3, 4)] * 3 and [float(m.mean()) for m in mixed] == [0.0, 1.0, 0.25]


def test_one_style_code_serves_a_batch_and_one_code_everywhere_is_no_mixing():
    net, x, t = tiny.diffae().unet, tiny.pictures(2), torch.tensor([100, 100])
    content, style = torch.randn(2, tiny.WIDTH), torch.randn(1, tiny.WIDTH)
    with torch.no_grad():
        broadcast = run(net, x, t, mix_codes(content, style, (1, 0, 0)))
        repeated = run(net, x, t, mix_codes(content, style.repeat(2, 1), (1, 0, 0)))
        assert torch.equal(broadcast, repeated)
        assert torch.equal(run(net, x, t, content), run(net, x, t, [content] * 3))
        assert torch.allclose(run(net, x, t, [style] * 3), run(net, x, t, style.repeat(2, 1)), atol=1e-5)
        single = [run(net, x, t, mix_codes(content, style, [float(i == k) for i in range(3)])) for k in range(3)]
    plain = run(net, x, t, content)
    assert all((s - plain).abs().max() > 1e-3 for s in single)


# --- v-prediction ------------------------------------------------------------------------------------------------
def test_v_prediction_is_eps_prediction_of_the_same_function():
    raw = tiny.filled(UNet(tiny.UNET)).eval()
    net = UNet(replace(tiny.UNET, prediction="v")).eval()
    net.load_state_dict(raw.state_dict())
    x, z = tiny.pictures(2), torch.randn(2, tiny.WIDTH)
    for t in (40, 800):
        a = float(linear_alpha_bar()[t])
        with torch.no_grad():
            v, eps = denoiser(raw, z)(x, t), denoiser(net, z)(x, t)
        assert torch.allclose(eps, a ** 0.5 * v + (1 - a) ** 0.5 * x, atol=1e-6)
        x0, _ = predict_x0(x, eps, a, clamp_x0=False)  # of both it is sqrt(abar) x - sqrt(1 - abar) v
        assert torch.allclose(x0, a ** 0.5 * x - (1 - a) ** 0.5 * v, atol=1e-4)


# --- the SPN -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("config", "numbers", "tensors"), [(SPNConfig(), 873_347, 28),
                                                            (SPNConfig(timed=False), 67_843, 14)])
def test_both_spns_have_their_sizes_and_are_detected(config, numbers, tensors):
    net = SPN(config)
    assert (size(net), len(net.state_dict())) == (numbers, tensors)
    assert spn.detect(net.state_dict()) == config


def test_only_the_timed_spn_sees_the_time_and_both_take_any_size():
    x = tiny.pictures(2, px=24)[:, :, :, :16]
    with torch.no_grad():
        timed, untimed = SPN(), SPN(SPNConfig(timed=False))
        assert timed(x, 3).shape == untimed(x, 3).shape == x.shape
        assert not torch.allclose(timed(x, 0), timed(x, 9)) and torch.equal(untimed(x, 0), untimed(x, 9))
        assert timed(x, 0).abs().max() > 0  # nothing is initialised to zero


def test_the_untimed_spn_has_the_official_layer_numbers():
    names = {key.rpartition(".")[0] for key in SPN(SPNConfig(timed=False)).state_dict()}
    assert names == {f"layers.{i}" for i in (0, 1, 3, 4, 6, 7, 9)}
    with pytest.raises(ValueError, match="neither in_layer.0 nor layers.9"):
        spn.detect({"w": torch.zeros(1)})


# --- styles ------------------------------------------------------------------------------------------------------
def test_the_fingerprint_is_that_of_the_slim_copy_and_no_other():
    net = tiny.diffae()
    slim = tiny.diffae()
    slim.load_state_dict({key: value.half().float() for key, value in net.state_dict().items()})
    assert fingerprint(slim) == fingerprint(net) != fingerprint(tiny.diffae(1))
    slim.latent_net.layers[0].linear.bias.add_(1)
    assert fingerprint(slim) == fingerprint(net)  # the latent DDIM is no part of what a style depends on
    slim.encoder.out[3].bias.add_(1)
    assert fingerprint(slim) != fingerprint(net)


def test_a_style_of_another_model_is_refused_with_advice():
    style = OSASISStyle(tiny.UNET, {}, None, None, None, "abc")
    check_osasis_style(style, tiny.UNET, "abc")
    check_osasis_style(replace(style, model=""), tiny.UNET, "abc")  # official files do not say whose they are
    with pytest.raises(ValueError, match="another DiffAE of the same size; load that one, its fingerprint is abc"):
        check_osasis_style(style, tiny.UNET, "def")
    with pytest.raises(ValueError, match="made for a DiffAE of 32 px.*not for this one of 256 px"):
        check_osasis_style(style, CONFIGS["ffhq256"].unet, "abc")


def test_a_style_of_the_ffhq256_model_fits_into_280_megabytes(public):
    numbers = size(public["ffhq256"].unet) + size(SPN()) + 512
    assert 2 * numbers + 3 * 256 * 256 < 279.5e6  # the header of 600 names takes the rest
