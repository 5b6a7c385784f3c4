"""Schedules, spacing rules and sampling steps against closed forms (docs/osasis.md A.8, B)."""

import math
from types import SimpleNamespace

import pytest
import torch

from oneshot_atelier.models import diffusion as D
from oneshot_atelier.models import osasis
from oneshot_atelier.models.osasis import SamplingSettings
from oneshot_atelier.models.spn import SPN, SPNConfig

DOUBLE = torch.float64
ALPHA_BAR = {0: 0.9999, 50: 0.969951, 250: 0.521423, 450: 0.125839, 480: 0.094869, 500: 0.077797, 999: 4.04e-5}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def point(c):
    """The exact denoiser of a data set that is one picture c: x0 is always c."""
    def denoise(x, t):
        a = float(D.linear_alpha_bar()[t])
        return (x - a ** 0.5 * c) / (1 - a) ** 0.5
    return denoise


# --- schedules and spacing ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("t", "value"), ALPHA_BAR.items())
def test_linear_schedule_has_the_values_of_the_spec(t, value):
    assert float(D.linear_alpha_bar()[t]) == pytest.approx(value, rel=2e-5 if t < 999 else 2e-3)


def test_schedules_are_products_of_one_minus_beta():
    expected = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(701))
    assert float(D.linear_alpha_bar()[700]) == pytest.approx(expected, rel=1e-12)
    assert float(D.constant_alpha_bar()[311]) == pytest.approx(0.992 ** 312, rel=1e-12)
    assert D.linear_alpha_bar().dtype == D.constant_alpha_bar().dtype == DOUBLE


@pytest.mark.parametrize(("count", "stride"), {10: 100, 20: 50, 50: 20, 100: 10, 200: 5, 250: 4, 1000: 1, 4: 250,
                                               8: 125, 2: 500, 1: 1000, 3: 334}.items())
def test_stride_times_take_the_smallest_stride(count, stride):
    assert D.ddim_times(count) == tuple(i * stride for i in range(count))


@pytest.mark.parametrize("count", [0, -3, 300, 999, 1001])
def test_steps_that_cannot_be_spaced_are_refused_with_advice(count):
    with pytest.raises(ValueError, match="cannot be spaced evenly over 1000; take .*10, 20, 50"):
        D.ddim_times(count)


def test_seven_steps_are_possible_by_the_official_rule_and_an_error_over_a_schedule_of_fifty():
    assert D.ddim_times(7) == tuple(range(0, 1000, 143))
    with pytest.raises(ValueError, match="30 steps cannot be spaced evenly over 50"):
        D.ddim_times(30, 50)


def test_even_times_are_rounded_multiples_of_the_fractional_stride():
    times = D.respaced_times(50)
    assert times[:16] == (0, 20, 41, 61, 82, 102, 122, 143, 163, 183, 204, 224, 245, 265, 285, 306)
    assert (times[24], times[25], times[-2], times[-1], len(times)) == (489, 510, 979, 999, 50)
    assert all(abs(t - i * 999 / 49) <= 0.5 + 1e-9 for i, t in enumerate(times))
    assert D.respaced_times(1000) == tuple(range(1000)) and D.respaced_times(2) == (0, 999)


@pytest.mark.parametrize("count", [1, 0, 1001])
def test_even_spacing_of_too_few_or_many_is_refused(count):
    with pytest.raises(ValueError, match="2 to 1000"):
        D.respaced_times(count)


def test_tables_end_at_one_and_zero():
    table = D.ddim_schedule(20)
    assert (table.alpha_bar(-1), table.alpha_bar(20), len(table)) == (1.0, 0.0, 20)
    assert table.alpha_bar(9) == float(D.linear_alpha_bar()[450]) and table.times[9] == 450
    assert [D.ddim_schedule(n).num_steps(0.5) for n in (10, 20, 50, 100)] == [5, 10, 25, 50]
    assert D.respaced_schedule(50).alpha_bar(25) == float(D.linear_alpha_bar()[510])
    assert D.ddim_schedule(5, D.constant_alpha_bar()).alpha_bar(1) == pytest.approx(0.992 ** 201)


# --- deterministic steps -----------------------------------------------------------------------------------------
def test_noising_keeps_variance_and_takes_numbers_or_tensors():
    x, n = noise(3, 3, 8, 8), noise(3, 3, 8, 8, seed=1)
    levels = torch.tensor([0.9, 0.5, 0.1], dtype=DOUBLE)
    rows = torch.cat([D.add_noise(x[i:i + 1], n[i:i + 1], float(a)) for i, a in enumerate(levels)])
    assert torch.allclose(D.add_noise(x, n, levels[:, None, None, None]), rows, atol=1e-12)
    assert torch.allclose(rows[1], 0.5 ** 0.5 * (x[1] + n[1]), atol=1e-12)


def test_x0_is_recovered_and_eps_with_it_where_nothing_is_clamped():
    x0, eps = noise(2, 3, 4, 4).clamp(-0.9, 0.9), noise(2, 3, 4, 4, seed=1)
    found, again = D.predict_x0(D.add_noise(x0, eps, 0.3), eps, 0.3)
    assert torch.allclose(found, x0, atol=1e-12) and torch.allclose(again, eps, atol=1e-12)


def test_x0_is_clamped_and_eps_follows_it():
    x0, eps = noise(2, 3, 4, 4) * 3, noise(2, 3, 4, 4, seed=1)
    x = D.add_noise(x0, eps, 0.3)
    found, again = D.predict_x0(x, eps, 0.3)
    assert torch.allclose(found, x0.clamp(-1, 1), atol=1e-12) and (found != x0).any()
    assert torch.allclose(D.add_noise(found, again, 0.3), x, atol=1e-12)
    free, same = D.predict_x0(x, eps, 0.3, clamp_x0=False)
    assert torch.allclose(free, x0, atol=1e-12) and torch.allclose(same, eps, atol=1e-12)


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_encoding_and_decoding_are_inverse_for_an_exact_linear_denoiser(steps):
    c = noise(1, 3, 4, 4).clamp(-0.9, 0.9)
    x = D.add_noise(c, noise(2, 3, 4, 4, seed=1), 0.9999)
    table, seen = D.ddim_schedule(steps), []
    n = table.num_steps(0.5)
    code = D.ddim_forward(point(c), x, table, range(n), hook=lambda i, x0, _: seen.append((i, x0)))
    a = table.alpha_bar(n)
    assert torch.allclose(code, a ** 0.5 * c + (1 - a) ** 0.5 * point(c)(x, 0), atol=1e-9)
    assert torch.allclose(D.ddim_reverse(point(c), code, table, range(n, 0, -1)), x, atol=1e-9)
    assert [i for i, _ in seen] == list(range(n))
    assert all(torch.allclose(x0, c.expand_as(x0), atol=1e-9) for _, x0 in seen)
    assert torch.allclose(D.ddim_reverse(point(c), code, table, range(n, -1, -1)), c.expand_as(x), atol=1e-9)


def test_encoding_gaussian_data_is_a_product_of_known_factors():
    """For N(0, s^2) data eps = sqrt(1 - a) / v x with v = a s^2 + 1 - a, so every step multiplies x."""
    s2, table = 0.09, D.ddim_schedule(20)

    def denoise(x, t):
        a = float(D.linear_alpha_bar()[t])
        return x * (1 - a) ** 0.5 / (a * s2 + 1 - a)

    factor = 1.0
    for i in range(10):
        a, b = table.alpha_bar(i), table.alpha_bar(i + 1)
        factor *= ((a * b) ** 0.5 * s2 + ((1 - a) * (1 - b)) ** 0.5) / (a * s2 + 1 - a)
    x = noise(1, 3, 4, 4) * 0.1
    assert torch.allclose(D.ddim_forward(denoise, x, table, range(10)), x * factor, rtol=1e-9)


def test_the_last_step_gives_the_noise_and_the_first_gives_the_picture():
    x, eps, table = noise(1, 3, 4, 4).clamp(-1, 1) * 0.2, noise(1, 3, 4, 4, seed=1) * 0.01, D.ddim_schedule(10)
    x0, after = D.ddim_step(x, eps, table, 9, 10, clamp_x0=False)
    assert torch.allclose(after, eps, atol=1e-12)
    x0, clean = D.ddim_step(x, eps, table, 0, -1)
    assert torch.equal(x0, clean)


def test_the_x_hook_changes_what_the_network_and_the_formula_see():
    table, seen = D.ddim_schedule(10), []

    def denoise(x, t):
        seen.append((float(x.mean()), t))
        return torch.zeros_like(x)

    start = torch.zeros(1, 3, 2, 2, dtype=DOUBLE)
    end = D.ddim_reverse(denoise, start, table, [1, 0], x_hook=lambda x, i: x + 0.01 * (i + 1))
    a, b = table.alpha_bar(1), table.alpha_bar(0)
    between = 0.02 * (b / a) ** 0.5
    assert [t for _, t in seen] == [100, 0] and [m for m, _ in seen] == pytest.approx([0.02, between + 0.01])
    assert float(end.mean()) == pytest.approx((between + 0.01) / b ** 0.5)


# --- ancestral steps ---------------------------------------------------------------------------------------------
def posterior(table, i, x, x0):
    """Mean and variance of q(x_{i-1} | x_i, x_0) by Bayes' rule."""
    before = table.alpha_bar(i - 1)
    beta = 1 - table.alpha_bar(i) / before
    precision = 1 / (1 - before) + (1 - beta) / beta
    return (before ** 0.5 * x0 / (1 - before) + (1 - beta) ** 0.5 * x / beta) / precision, 1 / precision


@pytest.mark.parametrize("i", [1, 2, 24, 49])
def test_an_ancestral_step_is_the_posterior(i):
    table, eps = D.respaced_schedule(50), noise(2, 3, 4, 4, seed=1)
    x = D.add_noise(noise(2, 3, 4, 4), eps, table.alpha_bar(i))
    n = noise(2, 3, 4, 4, seed=2)
    x0, following = D.ancestral_step(x, eps, table, i, n)
    mean, variance = posterior(table, i, x, x0)
    assert x0.abs().max() <= 1 and D.posterior_variance(table, i) == pytest.approx(variance, rel=1e-9)
    assert torch.allclose(following, mean + variance ** 0.5 * n, atol=1e-9)


def test_learned_variance_lies_between_the_posterior_and_beta_in_logarithm():
    table, i = D.respaced_schedule(50), 24
    x, eps, n = noise(1, 3, 4, 4), noise(1, 3, 4, 4, seed=1), noise(1, 3, 4, 4, seed=2)
    low, high = D.posterior_variance(table, i), 1 - table.alpha_bar(i) / table.alpha_bar(i - 1)
    for v, variance in ((-1.0, low), (1.0, high), (0.0, (low * high) ** 0.5), (0.5, low ** 0.25 * high ** 0.75)):
        output = torch.cat([eps, torch.full_like(eps, v)], dim=1)
        mean = D.ancestral_step(x, output, table, i, torch.zeros_like(n))[1]
        assert torch.allclose(D.ancestral_step(x, output, table, i, n)[1] - mean, variance ** 0.5 * n, atol=1e-9)


@pytest.mark.parametrize("channels", [3, 6])
def test_the_last_ancestral_step_is_the_clamped_picture_without_noise(channels):
    table, x, out = D.respaced_schedule(50), noise(1, 3, 4, 4), noise(1, channels, 4, 4, seed=1)
    x0, following = D.ancestral_step(x, out, table, 0, torch.full_like(x, float("nan")))
    assert torch.allclose(following, x0, atol=1e-9) and x0.abs().max() <= 1


# --- photo twins -------------------------------------------------------------------------------------------------
class Network:
    """A stand-in for a UNet that answers eps `answer(x, t)`, and notes the times and inputs it is called at."""

    config = SimpleNamespace(prediction="eps")

    def __init__(self, answer):
        self.answer, self.times, self.inputs = answer, [], []

    def time_modulation(self, t):
        return t[None]

    def code_modulation(self, z=None):
        return 1

    def __call__(self, x, modulation):
        self.times.append(int(modulation))
        self.inputs.append(x.clone())
        return self.answer(x, int(modulation))


def recorder(c):
    """A DDPM that knows the one picture c."""
    return Network(point(c))


@pytest.mark.parametrize(("level", "first", "count"), [("official", 489, 25), ("matched", 510, 26)])
def test_photo_twins_start_at_index_25_and_denoise_from_24_unless_matched(level, first, count):
    c, style = noise(1, 3, 4, 4).clamp(-0.9, 0.9), noise(1, 3, 4, 4, seed=1).clamp(-1, 1)
    net, draws = recorder(c), []

    def draw():
        draws.append(noise(3, 3, 4, 4, seed=10 + len(draws)))
        return draws[-1]

    twins = osasis.photo_twins(net, style, draw, noise_level=level)
    assert (net.times[0], net.times[-1], len(net.times)) == (first, 0, count)
    assert torch.allclose(net.inputs[0], D.add_noise(style, draws[0], float(D.linear_alpha_bar()[510])))
    assert torch.allclose(twins, c.expand_as(twins), atol=1e-6)


def test_one_candidate_and_full_strength_work():
    net = recorder(noise(1, 3, 4, 4).clamp(-0.9, 0.9))
    style = noise(1, 3, 4, 4, seed=1).clamp(-1, 1)
    for level in osasis.NOISE_LEVELS:
        net.times.clear()
        twins = osasis.photo_twins(net, style, lambda: noise(1, 3, 4, 4, seed=2), steps=20, t0=1.0, noise_level=level)
        assert twins.shape == (1, 3, 4, 4) and net.times == list(reversed(D.respaced_times(20)))


def test_candidates_depend_on_the_seed_and_on_their_row_only():
    net, style = recorder(torch.zeros(1, 3, 4, 4)), torch.zeros(1, 3, 4, 4)

    def run(seed, candidates):
        steps = []
        draw = osasis.twin_noise(seed, candidates, (3, 4, 4))
        osasis.photo_twins(net, style, draw, hook=lambda i, x0, x: steps.append(x))
        return steps[5]

    rows = run(1, range(2))
    assert torch.equal(rows, run(1, range(2))) and not torch.equal(rows, run(2, range(2)))
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[:1], run(1, [0])) and torch.equal(rows[1:], run(1, [1]))


def test_scores_rank_by_ten_times_l1_and_the_perceptual_distance():
    style = torch.zeros(1, 3, 4, 4)
    twins = torch.stack([torch.full((3, 4, 4), v) for v in (0.3, -0.1, 0.2)])
    scores = osasis.twin_scores(twins, style, lambda a, b: torch.tensor([0.0, 3.0, 0.5]))
    assert scores.tolist() == pytest.approx([3.0, 4.0, 2.5]) and int(scores.argmin()) == 2


# --- the switches of stylizing -----------------------------------------------------------------------------------
def test_reverse_indices_start_one_step_low_as_the_official_program_or_where_x_is():
    table = D.ddim_schedule(20)
    assert list(osasis.reverse_indices(table, 0.5)) == list(range(9, -1, -1))
    assert list(osasis.reverse_indices(table, 0.5, "matched")) == list(range(10, -1, -1))
    assert [osasis.reverse_indices(table, 1.0, level)[0] for level in osasis.NOISE_LEVELS] == [19, 19]
    with pytest.raises(ValueError, match="noise_level is 'other'; take one of"):
        osasis.reverse_indices(table, 0.5, "other")


class Times(SPN):
    """An SPN that adds a constant and notes its times."""

    def __init__(self):
        super().__init__(SPNConfig(timed=False))
        self.times = []

    def forward(self, picture, time):
        self.times.append(time)
        return torch.ones_like(picture)


@pytest.mark.parametrize(("switch", "expected"), [("index", [4, 3, 2, 1, 0]), ("timestep", [400, 300, 200, 100, 0])])
def test_the_spn_is_fed_the_index_or_the_time(switch, expected):
    spn = Times()
    picture = torch.zeros(1, 3, 4, 4)
    osasis.stylize(Network(lambda x, t: torch.zeros_like(x)), picture, torch.zeros(1, 4), steps=10, spn=spn,
                   picture=picture, settings=SamplingSettings(spn_time=switch))
    assert spn.times == expected


def test_an_unknown_spn_time_is_refused():
    with pytest.raises(ValueError, match="spn_time is 'day'; take one of"):
        SamplingSettings(spn_time="day")


def test_the_spn_weight_scales_and_zero_means_no_call():
    spn, x = Times(), torch.zeros(2, 3, 4, 4)
    x_hook = osasis.spn_hook(spn, x, torch.tensor([1.0, 0.1])[:, None, None, None], D.ddim_schedule(10))
    assert x_hook(x, 0).mean((1, 2, 3)).tolist() == pytest.approx([1.0, 0.1])
    for options in ({"settings": SamplingSettings(spn_weight=0.0)}, {"spn": None}):
        spn.times.clear()
        net = Network(lambda x, t: x)
        osasis.stylize(net, x, torch.zeros(1, 4), steps=10, **{"spn": spn, "picture": x} | options)
        assert spn.times == []


def test_the_noise_level_decides_the_first_time_of_stylizing():
    unet = Network(lambda x, t: torch.zeros_like(x))
    for level in osasis.NOISE_LEVELS:
        osasis.stylize(unet, torch.zeros(1, 3, 4, 4), torch.zeros(1, 4), settings=SamplingSettings(noise_level=level))
    assert (unet.times[0], unet.times[25], len(unet.times)) == (480, 500, 51)


@pytest.mark.parametrize(("field", "value"), [("t0", 0.0), ("t0", 1.1), ("t0", math.nan), ("spn_weight", -0.1),
                                              ("spn_weight", math.inf), ("noise_level", "other"), ("spn_time", "day")])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"^{field} is {value!r}; (take|it must be)"):
        SamplingSettings(**{field: value})


def test_settings_of_a_style_are_its_own_and_official_where_it_says_nothing():
    given = {"t0": 0.3, "spn_time": "timestep", "lr": 1.0}
    assert SamplingSettings.of(given) == SamplingSettings(0.3, spn_time="timestep")
    assert SamplingSettings.of({}) == SamplingSettings(0.5, 0.1, "index", "official")


def test_twin_noise_is_a_function_of_the_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = (osasis.twin_noise(7, range(2), (3,)) for _ in range(2))
    first = a()
    assert torch.equal(first, b()) and not torch.equal(first, a()) and torch.equal(before, torch.get_rng_state())
