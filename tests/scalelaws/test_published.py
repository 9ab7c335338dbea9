"""Published laws: constants by value, conventions, refusals, and what they cost on published runs."""

import json

import numpy as np
import pytest

from scalelaws import PUBLISHED, Target, forecast, get_published
from scalelaws.conventions import ConventionError, check_same_conventions, count_compute, list_conventions
from scalelaws.laws.power_schedule import PUBLISHED_SCHEDULE, PowerSchedule
from scalelaws.laws.published import PUBLISHED_ALLOCATIONS, get_published_allocation
from scalelaws.laws.weight_decay import find_timescale

TOLD = {
    "loss": 3.0, "anchor_tokens": 1e10, "anchor_peak_lr": 2e-3, "anchor_critical_batch_tokens": 1e6,
    "batch_tokens": 2.0**21, "unique_tokens": 25e9, "peak_lr": 1e-2,
}  # fmt: skip


SHAPE, PARAMS = {"width": 4096.0, "depth": 30.0}, 12 * 30 * 4096.0**2
"""DeepSeek 7B without its vocabulary."""


def tell(law, target_params, tokens, seq_len=2048):
    """A target that says what the law needs."""
    wanted = (*law.needs, *getattr(law, "optional", ()))
    return Target(target_params, tokens, seq_len, covariates={key: TOLD[key] for key in wanted if key in TOLD})


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_every_law_answers_and_says_where_it_comes_from(name):
    law = get_published(name)
    found = forecast(law, tell(law, 1e9, 2e10))
    given = [found.peak_lr, found.batch_tokens, found.weight_decay, found.critical_batch_tokens, found.loss]
    assert any(item is not None for item in given)
    assert all(item is None or item.value > 0 for item in given)
    assert {"schedule", "params_convention", "compute_convention", "batch_unit", "source"} <= set(found.scope)
    quoted = any("quoted, not read in the source" in text for text in found.warnings)
    assert quoted is not law.verified
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("minicpm", "loss"), ("bjorck", "anchor_tokens"), ("zhang", "anchor_critical"), ("muennighoff", "unique_tokens"),
     ("power_scheduler", "batch_tokens")],
)  # fmt: skip
def test_a_law_that_needs_more_says_what(name, lacking):
    law = get_published(name)
    assert any(item.startswith(lacking) for item in law.lacks(Target(1e9, 2e10)))
    with pytest.raises(ValueError, match=rf"{name} needs .*{lacking}"):
        forecast(law, Target(1e9, 2e10))


@pytest.mark.parametrize(("unique", "params", "tokens", "loss"), [
    (25e9, 6.34e9, 242e9, 2.2256440889984477), (25e9, 8.67e9, 178e9, 2.2269634075087867),
])  # fmt: skip
def test_muennighoff_against_the_figures_of_its_repository(unique, params, tokens, loss):
    found = forecast(get_published("muennighoff"), Target(params, tokens, covariates={"unique_tokens": unique}))
    assert found.loss.value == pytest.approx(loss, rel=1e-12)


def test_kaplan_by_hand():
    """Equations 1.4, 1.5 and D.1: the critical batch at 3 nats is 1.07e6 tokens."""
    found = forecast(get_published("kaplan_2020_settings"), Target(1e8, 1e10, covariates={"loss": 3.0}))
    assert found.critical_batch_tokens.value == pytest.approx(1.07e6, rel=2e-3)
    assert found.peak_lr.value == pytest.approx(0.003239 - 0.0001395 * np.log(1e8))
    at = Target(1e8, 1e10)
    expected = ((6.4e13 / 1e8) ** (0.076 / 0.103) + 1.8e13 / 1e10) ** 0.103
    assert forecast(get_published("kaplan_2020"), at).loss.value == pytest.approx(expected, rel=1e-12)
    beyond = forecast(get_published("kaplan_2020_settings"), Target(7e10, 1e12))
    assert beyond.peak_lr is None
    assert any("peak_lr is not given: the formula yields -" in text for text in beyond.warnings)
    assert any("critical_batch_tokens is not given: it needs loss" in text for text in beyond.warnings)


@pytest.mark.parametrize(("name", "counts"), [("hoffmann", "total"), ("kaplan_2020", ""), ("deepseek", "")])
def test_a_law_that_counts_embeddings_says_so(name, counts):
    said = [text for text in forecast(get_published(name), Target(1e9, 2e10)).warnings if "counts parameters" in text]
    assert said == ([f"the law counts parameters as {counts}; the target's N is taken to be that"] if counts else [])


def test_minicpm_at_a_loss():
    """1.21e9 / L^6.24 at 2.5 nats, section 3.2 of Hu et al. 2024."""
    found = forecast(get_published("minicpm"), Target(2.4e9, 1e12, 4096, covariates={"loss": 2.5}))
    assert found.peak_lr.value == 0.01
    assert found.batch_tokens.value == pytest.approx(1.21e9 * np.exp(-6.24 * np.log(2.5)), rel=1e-12)
    assert found.scope["parametrization"] == "mup"


def test_power_lines_at_610_million_and_20_tokens_per_parameter():
    """Bergsma et al. 2025: timescale .2236, best batch 223 and critical batch 2152 sequences of 2048."""
    params, tokens = 6.1e8, 20 * 6.1e8
    told = {"peak_lr": 1e-2, "batch_tokens": 252 * 2048.0}
    found = forecast(get_published("power_lines"), Target(params, tokens, 2048, covariates=told))
    timescale = told["batch_tokens"] / (told["peak_lr"] * found.weight_decay.value * tokens)
    assert timescale == pytest.approx(0.2236, abs=5e-5)
    assert find_timescale(20) == pytest.approx(timescale)
    assert found.batch_sequences.value == pytest.approx(223, rel=0.01)
    assert found.critical_batch_tokens.value / 2048 == pytest.approx(2152, rel=0.01)


def test_bjorck_follows_the_horizon_and_zhang_the_data():
    lr = forecast(
        get_published("bjorck"), Target(1e9, 1e11, covariates={"anchor_tokens": 1e10, "anchor_peak_lr": 2e-3})
    )
    assert lr.peak_lr.value == pytest.approx(2e-3 * 10**-0.32)
    told = {"anchor_tokens": 1e10, "anchor_critical_batch_tokens": 1e6}
    batch = forecast(get_published("zhang"), Target(1e9, 1e11, covariates=told))
    assert batch.critical_batch_tokens.value == pytest.approx(1e6 * 10**0.47)


@pytest.mark.parametrize(("tokens", "rate"), [(2e10, 0.02), (2.6e10, 0.02), (1e11, 1.005e-2), (1e12, 3.11e-3)])
def test_power_schedule_at_1024_sequences(tokens, rate):
    assert PUBLISHED_SCHEDULE.rate_at(tokens, 1024) == pytest.approx(rate, rel=1e-3)
    told = Target(3e9, tokens, 4096, covariates={"batch_tokens": 1024 * 4096})
    assert forecast(get_published("power_scheduler"), told).peak_lr.value == pytest.approx(rate, rel=1e-3)


def test_a_power_schedule_with_adams_square_root():
    half = PowerSchedule(1.0, -0.5, 1.0, batch_exponent=0.5)
    assert half.rate_at(1e8, 400) == pytest.approx(20 * 1e-4)
    with pytest.raises(ValueError, match="must be positive"):
        half.rate_at(0, 400)


@pytest.mark.parametrize(("name", "at", "params", "tokens"), [
    ("greater_leverage_dense", 1e20, 0.0655 * 10**10.844, 15.2582 * 10**9.156),
    ("greater_leverage_experts", 1e20, 0.1915 * 10**10.19, 5.2232 * 10**9.81),
])  # fmt: skip
def test_published_splits_spend_the_budget(name, at, params, tokens):
    law = get_published_allocation(name)
    assert law.split(at) == pytest.approx((params, tokens))
    assert np.prod(law.split(at)) == pytest.approx(at, rel=1e-3)
    assert name in PUBLISHED_ALLOCATIONS
    with pytest.raises(ValueError, match="must be positive"):
        law.split(-1.0)
    with pytest.raises(ValueError, match="known are greater_leverage_dense"):
        get_published_allocation("x")


class TestCompute:
    """6ND and M D: M = 72 L d^2 + 12 L d s, DeepSeek-AI 2024, equation 2."""

    def test_the_shape_of_a_target_gives_its_compute(self):
        target = Target(PARAMS, 1e12, 4096, covariates=SHAPE)
        expected = (72 * 30 * 4096**2 + 12 * 30 * 4096 * 4096) * 1e12
        found = count_compute(target, "M D")
        assert found.value == pytest.approx(expected, rel=1e-12)
        assert found.low is None

    def test_unknown_shapes_bound_it(self):
        found = count_compute(Target(PARAMS, 1e12, 4096), "M D")
        exact = count_compute(Target(PARAMS, 1e12, 4096, covariates=SHAPE), "M D").value
        assert found.low <= exact <= found.high
        wider = count_compute(Target(PARAMS, 1e12), "M D")
        assert wider.low < found.low < found.high < wider.high

    def test_a_target_that_counts_so_is_taken_at_its_word(self):
        target = Target(1e9, 1e10, compute_flops=1e20, compute_convention="M D")
        assert count_compute(target, "M D").value == 1e20
        assert count_compute(target, "6ND").value == 6e19
        assert target.to_dict()["compute_convention"] == "M D"
        assert Target(**target.to_dict()) == target

    def test_a_law_of_m_d_converts_and_says_what_hangs_on_it(self):
        law = get_published("deepseek")
        loose, exact = Target(PARAMS, 1e12, 4096), Target(PARAMS, 1e12, 4096, covariates=SHAPE)
        guessed, known = forecast(law, loose), forecast(law, exact)
        assert known.peak_lr.value == pytest.approx(0.3118 * count_compute(exact, "M D").value ** -0.125)
        assert guessed.peak_lr.value == pytest.approx(known.peak_lr.value, rel=0.01)
        assert any("times 6ND, which moves peak_lr by" in text for text in guessed.warnings)
        assert not any("which moves peak_lr" in text for text in known.warnings)

    def test_flops_that_may_hold_attention_are_not_converted_again(self):
        plain, given = Target(PARAMS, 1e12, 4096), Target(PARAMS, 1e12, 4096, compute_flops=9e22)
        assert count_compute(given, "M D") == count_compute(plain, "M D")
        assert count_compute(given, "6ND").value == 9e22
        assert any("compute_flops was not used" in text for text in forecast(get_published("deepseek"), given).warnings)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"compute_convention": "MACs"}, "must be 6ND or M D"),
            ({"compute_convention": "M D"}, "needs compute_flops"),
        ],
    )
    def test_other_countings_are_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            Target(1e9, 1e10, **fields)
        with pytest.raises(ValueError, match="6ND or M D"):
            count_compute(Target(1e9, 1e10), "2ND")


class TestMixing:
    def test_laws_of_other_conventions_are_not_put_together(self):
        with pytest.raises(
            ConventionError, match=r"deepseek and moonlight differ in compute_convention: 'M D' against"
        ):
            check_same_conventions([get_published("deepseek"), get_published("moonlight")])
        with pytest.raises(ConventionError, match="schedule"):
            check_same_conventions([get_published("deepseek"), get_published("greater_leverage")])

    def test_what_is_named_may_be_pooled(self):
        check_same_conventions([get_published("deepseek"), get_published("greater_leverage")], pool=("schedule",))
        check_same_conventions([get_published("hoffmann"), get_published("besiroglu")])
        with pytest.raises(ValueError, match="no convention 'colour'"):
            check_same_conventions([], pool=("colour",))

    def test_fits_carry_their_own_conventions(self, plant_settings):
        import scalelaws

        fit = scalelaws.fit("lr_batch", plant_settings(3, 3), bootstrap=50)
        assert list_conventions(fit) == {"params_convention": "non_embedding", "compute_convention": "6ND"}
        check_same_conventions([fit, get_published("step_law")])
        with pytest.raises(ConventionError, match="non_embedding' against 'total"):
            check_same_conventions([fit, get_published("hoffmann")])


def test_regret_of_the_published_laws_on_step_law_runs(published_runs):
    """Loss of the grid point nearest in log2 space over the cell's best, mean over 13 cells."""
    cells = published_runs("steplaw_dense").groupby(["N", "D"])
    regret = {}
    for name in ("step_law", "deepseek", "greater_leverage", "moonlight", "porian"):
        lost = []
        for (params, tokens), runs in cells:
            shape = {"width": float(runs["d_model"].iloc[0]), "depth": float(runs["n_layers"].iloc[0])}
            found = forecast(get_published(name), Target(params, tokens, 2048, covariates=shape))
            far = np.hypot(
                np.log2(runs["lr"] / found.peak_lr.value), np.log2(runs["bs_tokens"] / found.batch_tokens.value)
            )
            lost.append(runs["loss"].loc[far.idxmin()] / runs["loss"].min() - 1)
        regret[name] = float(np.mean(lost))
    assert len(cells) == 13
    assert regret["step_law"] == pytest.approx(0.00104, abs=1e-5)
    assert min(regret, key=regret.get) == "step_law"
    assert sorted(regret, key=regret.get)[1] == "porian"
    assert max(regret.values()) < 0.015
