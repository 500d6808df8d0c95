"""Theorems 3.1, 3.2 and 3.3 of the paper on the exactly computed chain of demo/theory.py."""
import random

import pytest

import theory

HORIZONS = [10, 20, 40, 80, 160, 320]
EPS = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3]


def cloned(eps, runs=200):
    """A student taught where the teacher went."""
    states, _ = theory.correct_first_errors(theory.TEACHER, runs, 50, random.Random(0))
    return theory.student(states, eps)


def corrected(eps, runs=500):
    """A student taught where the cloned one went and was corrected."""
    states, _ = theory.correct_first_errors(cloned(eps), runs, 50, random.Random(0))
    return theory.student(states, eps)


def growth(table, xs=HORIZONS):
    costs = theory.expected_costs(table, max(xs))
    return theory.exponent(xs, [costs[h - 1] for h in xs])


def test_costs_by_dynamic_programming_are_those_of_played_runs():
    table, rng, horizon, runs = cloned(0.05), random.Random(1), 20, 10000
    _, wrong = theory.correct_first_errors(table, runs, horizon, rng)
    assert wrong / runs == pytest.approx(theory.expected_costs(table, horizon)[-1], rel=0.03)


def test_cloning_grows_with_the_square_of_the_horizon_and_correction_with_the_horizon():
    assert growth(cloned(1e-5)) == pytest.approx(2, abs=0.2)
    assert growth(theory.student("TS", 1e-5)) == pytest.approx(1, abs=0.2)
    for table_of in (cloned, lambda eps: theory.student("TS", eps)):       # both in proportion to eps
        costs = [theory.expected_costs(table_of(eps), 50)[-1] for eps in EPS[:3]]
        assert theory.exponent(EPS[:3], costs) == pytest.approx(1, abs=0.05)


def test_mentored_problem_solving_teaches_what_demonstrations_cannot():
    eps = 1e-3
    assert cloned(eps) == cloned(eps, runs=2000) == theory.student("T", eps)  # more of them change nothing
    assert corrected(eps) == theory.student("TS", eps)
    assert growth(corrected(eps), [5, 10, 20, 40]) == pytest.approx(1, abs=0.2)
    assert corrected(eps, runs=0) != theory.student("TS", eps)


def test_without_a_way_of_its_own_cloning_is_linear_too():
    """Control: the square comes from states that demonstrations lack, not from the way costs are added."""
    table = cloned(1e-5)
    right, own, wrong = table["T"]
    assert growth({**table, "T": (right + own, 0.0, wrong)}) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("eps", EPS)
def test_theorems_3_1_and_3_2_bound_the_cost_at_every_horizon(eps):
    linear_broken = 0
    for h, (clone, correct) in enumerate(zip(theory.expected_costs(cloned(eps), 320),
                                             theory.expected_costs(theory.student("TS", eps), 320)), 1):
        assert clone <= eps * h * h
        assert correct <= eps * h
        assert eps / 2 <= correct / h                                      # the bound is not idle
        linear_broken += clone > eps * h
    assert linear_broken > 100                                             # cloning does not keep 3.2's


# ---- Theorem 3.3 ----

H, GAMMA = 9, 0.95


def falls(values):
    return all(a > b for a, b in zip(values, values[1:]))


def variances(p, gamma=GAMMA, **how):
    return [theory.variance(k, H, p, gamma, **how) for k in range(H)]


@pytest.mark.parametrize("p", [0.3, 0.5, 0.7, 0.9, 0.99])
def test_variance_falls_with_the_prefix_and_stays_below_theorem_3_3(p):
    bounds = [theory.variance_bound(k, H, p, GAMMA) for k in range(H)]
    assert falls(bounds)
    assert falls(variances(p))
    for how in ({}, dict(sparse=True)):
        assert all(v <= b for v, b in zip(variances(p, **how), bounds))


def test_variance_is_that_of_the_estimator():
    """One step is a Bernoulli trial: (a - p) a has mean p(1-p) and second moment p(1-p)^2."""
    p = 0.7
    assert theory.variance(H - 1, H, p, GAMMA) == pytest.approx(p * (1 - p) ** 2 - (p * (1 - p)) ** 2)
    rng, runs, sums, squares = random.Random(0), 40000, [0.0] * 4, 0.0
    for _ in range(runs):
        a = [int(rng.random() < p) for _ in range(4)]
        g = [(a[t] - p) * sum(GAMMA ** (j - t) * a[j] for j in range(t, 4)) for t in range(4)]
        sums, squares = [s + x for s, x in zip(sums, g)], squares + sum(x * x for x in g)
    sampled = squares / runs - sum((s / runs) ** 2 for s in sums)
    assert theory.variance(H - 4, H, p, GAMMA) == pytest.approx(sampled, rel=0.03)


def test_bound_sums_the_bounds_of_the_terms():
    """The closed form against the sum over steps of what the proof bounds each by."""
    for k in range(H):
        terms = [0.8 * sum(GAMMA ** j for j in range(m)) for m in range(1, H - k + 1)]
        assert theory.variance_bound(k, H, 0.8, GAMMA) == pytest.approx(sum(terms) ** 2)


def test_without_truncation_the_variance_does_not_fall():
    """Control: the same tasks, begun at the question."""
    assert not falls(variances(0.9, truncate=False))


def test_where_only_the_end_is_rewarded_the_variance_falls_for_a_reliable_student_alone():
    """The theorem is about the bound. p^H = 0.6: the variance falls; p^H = 0.002: it rises."""
    assert falls(variances(0.95, gamma=1.0, sparse=True))
    rising = variances(0.5, gamma=1.0, sparse=True)[:-1]                     # all but the very last step
    assert falls(rising[::-1]) and rising[-1] > 10 * rising[0]
