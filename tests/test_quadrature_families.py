"""P(best) of Gamma and Student-t posteriors is exact, whatever the posteriors."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import special, stats

import reference_policies as reference
from bandolero._march import (
    BETA,
    GAMMA,
    N_NODES,
    NORMAL,
    STUDENT,
    _density_nodes,
    march,
)
from bandolero.quadrature import best_of_gammas, best_of_normals, best_of_students
from reference import Kind
from reference_policies import StudentKind


class GammaCase(NamedTuple):
    """Arms (shape, rate), and what `reference.best_of_gammas` says of each kind."""

    name: str
    kinds: list[Kind]
    n_panels: int
    probability_best: list[float]


class StudentCase(NamedTuple):
    """Arms (mean, scale, dof), and what `reference.best_of_students` says of each."""

    name: str
    kinds: list[StudentKind]
    probability_best: list[float]


# Numbers are made, and made again by the slow tests below, by tests/reference.py.
GAMMAS = [
    GammaCase(
        "few", [Kind(5, 7), Kind(3, 9)], 60, [0.8628193996846676, 0.1371806003153324]
    ),
    GammaCase(
        "no counts",
        [Kind(1, 1001), Kind(11, 991), Kind(1, 11)],
        60,
        [3.1880785091720164e-05, 0.11431645137365751, 0.8856516678412508],
    ),
    GammaCase(
        "tiny priors",
        [Kind(0.5, 0.5), Kind(0.5, 20.5), Kind(0.01, 3.0)],
        150,
        [0.8973682578649602, 0.09661047982000708, 0.00602126231503267],
    ),
    GammaCase(
        "a million and fifty",
        [Kind(1e6, 1e7), Kind(1.002e6, 1e7), Kind(50, 480)],
        60,
        [0.032208084400356926, 0.3787447079723036, 0.5890472076273394],
    ),
    GammaCase(
        "a billion",
        [Kind(1e9, 1e10), Kind(1.00003e9, 1e10)],
        60,
        [0.25116907984994724, 0.7488309201500527],
    ),
    GammaCase(
        "narrow inside wide",
        [Kind(50, 1000), Kind(5.1e7, 1e9), Kind(2, 32)],
        60,
        [0.2292560775432886, 0.2787789284688255, 0.4919649939878859],
    ),
    GammaCase("fifty alike", [Kind(100, 2000, 50)], 60, [0.02]),
    GammaCase(
        "a thousand",
        [Kind(500, 10000, 700), Kind(520, 10000, 200), Kind(3, 63, 100)],
        60,
        [1.1839237541789559e-18, 3.9216209271219066e-17, 0.009999999999999913],
    ),
]
STUDENTS = [
    StudentCase(
        "one degree of freedom",
        [StudentKind(0, 1, 1), StudentKind(2, 1, 1), StudentKind(-3, 50, 1)],
        [0.1374361351915961, 0.4063005046596875, 0.45626336014871643],
    ),
    StudentCase(
        "few",
        [StudentKind(0, 1, 2), StudentKind(0.5, 2, 3), StudentKind(1, 0.3, 5)],
        [0.1629860603092524, 0.3752049328817256, 0.46180900680902204],
    ),
    StudentCase(
        "narrow inside wide",
        [
            StudentKind(0, 1, 1.5),
            StudentKind(0.2, 0.01, 30),
            StudentKind(0.21, 0.02, 1000),
        ],
        [0.42772340998758, 0.18688199535938227, 0.3853945946530377],
    ),
    StudentCase(
        "a hundred",
        [
            StudentKind(1.0, 0.01, 100),
            StudentKind(1.02, 0.012, 80),
            StudentKind(0.9, 0.05, 13),
        ],
        [0.09996367204210267, 0.8831236542545419, 0.0169126737033555],
    ),
    StudentCase(
        "far from zero",
        [StudentKind(1e6, 1, 31), StudentKind(1e6 + 2, 1, 31)],
        [0.08461233933953895, 0.9153876606604611],
    ),
]
each_gamma = pytest.mark.parametrize("case", GAMMAS, ids=lambda case: case.name)
each_student = pytest.mark.parametrize("case", STUDENTS, ids=lambda case: case.name)

shapes = st.one_of(
    st.integers(1, 100),
    st.floats(0.01, 1e7),
    st.floats(-12.0, 0.0).map(lambda x: 10.0**x),
).map(float)
rates = st.one_of(st.floats(1e-3, 1e9), st.floats(-9.0, 9.0).map(lambda x: 10.0**x))
gammas = st.lists(st.tuples(shapes, rates), min_size=1, max_size=6).map(np.array)
students = st.lists(
    st.tuples(
        st.floats(-1e3, 1e3),
        st.floats(-3.0, 3.0).map(lambda x: 10.0**x),
        st.floats(0.0, 6.0).map(lambda x: 10.0**x),
    ),
    min_size=1,
    max_size=6,
).map(np.array)


@each_gamma
def test_gammas_equal_forty_digits(case: GammaCase) -> None:
    """P(best) of Gammas is within 1e-11 of the truth, and sums to 1 by itself."""
    a, b = np.array([k[:2] for k in case.kinds for _ in range(k.n_arms)], float).T
    firsts = np.cumsum([0, *[k.n_arms for k in case.kinds[:-1]]])
    got = best_of_gammas(a, b).probability_best
    assert_allclose(got[firsts], case.probability_best, rtol=0, atol=1e-11)
    raw, _ = march(GAMMA, a, b, b)
    assert abs(raw.sum() - 1.0) < 1e-10


@each_student
def test_students_equal_the_definition(case: StudentCase) -> None:
    """P(best) of Student-t's is within 1e-13 of the truth."""
    got = best_of_students(*np.array(case.kinds, float).T)
    assert_allclose(got, case.probability_best, rtol=0, atol=1e-13)


@pytest.mark.slow
@each_gamma
def test_gammas_are_what_the_twin_says(case: GammaCase) -> None:
    """The numbers above come out of the 40-digit twin again."""
    again = reference.best_of_gammas(case.kinds, case.n_panels)
    assert_allclose(again, case.probability_best, rtol=1e-13)


@pytest.mark.slow
@each_student
def test_students_are_what_the_twin_says(case: StudentCase) -> None:
    """The numbers above come out of the 25-digit twin again."""
    again = reference.best_of_students(case.kinds)
    assert_allclose(again, case.probability_best, rtol=1e-13)


@given(gammas)
def test_gammas_are_a_distribution(arms: np.ndarray) -> None:
    """Probabilities sum to 1 before normalising; losses differ as the means do."""
    a, b = arms[:, 0].copy(), arms[:, 1].copy()
    raw, loss = march(GAMMA, a, b, b)
    assert abs(raw.sum() - 1.0) < 1e-10
    mean = a / b
    assert (loss >= -1e-12 * mean.max()).all()
    assert_allclose(loss - loss[0], mean[0] - mean, atol=1e-9 * mean.max())


@given(*[st.floats(0.05, 300.0)] * 2, st.floats(-2.0, 2.0))
def test_two_gammas_equal_the_closed_form(a: float, c: float, log_ratio: float) -> None:
    """P(x > y) of two Gammas is one incomplete beta function."""
    ratio = a / c * 10.0**log_ratio
    best = best_of_gammas(np.array([a, c]), np.array([ratio, 1.0]))
    exact = special.betainc(c, a, 1.0 / (1.0 + ratio))
    assert best.probability_best[0] == pytest.approx(exact, abs=1e-11)


@pytest.mark.parametrize("shape", [1e-3, 1e-6, 1e-9, 1e-12])
def test_gammas_of_tiny_shape_equal_the_closed_form(shape: float) -> None:
    """Down to a shape of 1e-12 the answer is right, against others and among alike."""
    few = best_of_gammas(np.array([shape, 1.0]), np.ones(2))
    exact = special.betainc(1.0, shape, 0.5)
    assert few.probability_best[0] == pytest.approx(exact, rel=1e-12)
    # Logs are then exponentials of rate `shape`: the chance to be last is its share.
    shapes = shape * np.linspace(1.0, 2.0, 50)
    many = best_of_gammas(shapes, np.ones(50))
    assert_allclose(many.probability_best, shapes / shapes.sum(), atol=shape)


@pytest.mark.parametrize("family", [BETA, GAMMA])
def test_nodes_grow_with_the_log_of_a_tiny_parameter(family: int) -> None:
    """A support of length 40 / a takes as many panels as log(1 / a), not as 1 / a."""
    for a in (1e-3, 1e-6, 1e-9):
        points, _ = _density_nodes(family, a, a, 0.0, -40.0 / a, 0.0)
        assert points.size < 100 * N_NODES


@given(students)
def test_students_are_a_distribution(arms: np.ndarray) -> None:
    """Probabilities sum to 1 before normalising, down to one degree of freedom."""
    mean, scale, dof = (column.copy() for column in arms.T)
    raw, _ = march(STUDENT, mean, scale, dof)
    assert abs(raw.sum() - 1.0) < 1e-10
    assert (raw >= 0.0).all()


@given(*[st.floats(-50.0, 50.0)] * 2, *[st.floats(-3.0, 3.0)] * 2)
def test_two_cauchys_equal_the_closed_form(
    m: float, n: float, log_s: float, log_t: float
) -> None:
    """The difference of two Cauchys is a Cauchy, however unlike their widths."""
    s, t = 10.0**log_s, 10.0**log_t
    shares = best_of_students(np.array([m, n]), np.array([s, t]), np.ones(2))
    exact = 0.5 + math.atan2(m - n, s + t) / math.pi
    assert shares[0] == pytest.approx(exact, abs=1e-10)


def test_students_become_normals() -> None:
    """With ten million degrees of freedom they are Normals, up to 1e-7."""
    rng = np.random.default_rng(5)
    mean, sd = rng.normal(size=30), rng.uniform(0.01, 2.0, 30)
    shares = best_of_students(mean, sd, np.full(30, 1e7))
    normals = best_of_normals(mean, sd).probability_best
    assert_allclose(shares, normals, atol=1e-7)


def test_shares_do_not_depend_on_unit_or_origin() -> None:
    """Cents for euros, or everyone a million richer: the same shares."""
    mean, scale, dof = np.array([1.0, 2, 1.5]), np.array([1, 0.5, 2]), np.full(3, 4.0)
    here = best_of_students(mean, scale, dof)
    assert_allclose(best_of_students(100 * mean, 100 * scale, dof), here, atol=1e-13)
    assert_allclose(best_of_students(mean + 2.0**20, scale, dof), here, atol=1e-13)


def test_thousand_arms_of_each_family() -> None:
    """A thousand arms alike have a thousandth each."""
    ones = np.ones(1000)
    for family, c in ((GAMMA, 5 * ones), (NORMAL, ones), (STUDENT, 3 * ones)):
        raw, _ = march(family, 3.0 * ones, 5.0 * ones, c)
        assert_allclose(raw, 1e-3, rtol=1e-9)


def test_losses_of_gammas_equal_simulation() -> None:
    """E[max - x] of five Gammas, within five standard errors of a million draws."""
    shape, rate = np.array([1.0, 2, 5, 30, 80]), np.array([1.0, 2, 4, 30, 70])
    draws = stats.gamma(shape, scale=1 / rate).rvs((1_000_000, 5), random_state=3)
    losses = draws.max(axis=1)[:, None] - draws
    error = losses.std(axis=0) / 1e3
    loss = best_of_gammas(shape, rate).expected_loss
    assert (np.abs(loss - losses.mean(axis=0)) < 5 * error).all()
