"""Trees of the built-in objectives, grown by ours."""

from __future__ import annotations

import numpy as np
import pytest

import numba_ce as nc
from numba_ce.data import load_digits
from numba_ce.integrations.boosting import softmax_metric, softmax_objective

ROUNDS = 8


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits()
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y)).astype(np.float32)
    return X[:900], y[:900], weight[:900]


@pytest.mark.parametrize("weighted", [False, True])
def test_xgboost(digits, weighted):
    xgboost = pytest.importorskip("xgboost", reason="needs xgboost")
    X, y, weight = digits
    data = xgboost.DMatrix(X, y, weight=weight if weighted else None)
    # One intercept for both: the built-in one would start from the class frequencies
    common = {"num_class": 10, "base_score": 0.0, "nthread": 2, "max_depth": 4}
    built_in, ours = {}, {}
    expected = xgboost.train(
        common | {"objective": "multi:softprob", "eval_metric": "mlogloss"}, data, ROUNDS,
        evals=[(data, "train")], evals_result=built_in, verbose_eval=False,
    )  # fmt: skip
    got = xgboost.train(
        common | {"disable_default_eval_metric": True}, data, ROUNDS,
        obj=softmax_objective("xgboost", 10), custom_metric=softmax_metric("xgboost", 10),
        evals=[(data, "train")], evals_result=ours, verbose_eval=False,
    )  # fmt: skip
    margins = [b.predict(data, output_margin=True) for b in (got, expected)]
    assert np.abs(margins[0] - margins[1]).max() < 1e-5
    np.testing.assert_allclose(ours["train"]["mlogloss"], built_in["train"]["mlogloss"], rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_lightgbm(digits, weighted):
    lightgbm = pytest.importorskip("lightgbm", reason="needs lightgbm")
    X, y, weight = digits
    weight = weight if weighted else None
    common = {"num_class": 10, "num_threads": 2, "verbosity": -1, "boost_from_average": False,
              "deterministic": True, "force_row_wise": True, "metric": "None"}  # fmt: skip
    built_in, ours = {}, {}
    expected = lightgbm.train(
        common | {"objective": "multiclass", "metric": "multi_logloss"},
        lightgbm.Dataset(X, y, weight=weight), ROUNDS, valid_sets=[lightgbm.Dataset(X, y)],
        callbacks=[lightgbm.record_evaluation(built_in)],
    )  # fmt: skip
    got = lightgbm.train(
        common | {"objective": softmax_objective("lightgbm", 10)},
        lightgbm.Dataset(X, y, weight=weight), ROUNDS, valid_sets=[lightgbm.Dataset(X, y)],
        feval=softmax_metric("lightgbm", 10), callbacks=[lightgbm.record_evaluation(ours)],
    )  # fmt: skip
    scores = [b.predict(X, raw_score=True) for b in (got, expected)]
    assert np.array_equal(*scores)
    np.testing.assert_allclose(
        ours["valid_0"]["multi_logloss"], built_in["valid_0"]["multi_logloss"], rtol=1e-10
    )


def test_scikit_learn_estimators(digits):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    X, y, weight = digits
    for library, name in (("lightgbm", "LGBMClassifier"), ("xgboost", "XGBClassifier")):
        module = pytest.importorskip(library, reason=f"needs {library}")
        options = {"verbosity": -1, "n_jobs": 2} if library == "lightgbm" else {"n_jobs": 2}
        model = getattr(module, name)(
            n_estimators=5, objective=softmax_objective(library, 10), **options
        )
        model.fit(X, y, sample_weight=weight)
        if library == "lightgbm":
            scores = model.predict(X, raw_score=True)
        else:
            scores = model.predict(X, output_margin=True)
        assert (scores.argmax(axis=1) == y).mean() > 0.9


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_memory_order_dtype_and_factor(rng, library):
    order, dtype = ("C", np.float32) if library == "xgboost" else ("F", np.float64)
    scores = np.array(rng.standard_normal((20, 3)), dtype, order=order)
    labels = rng.integers(0, 3, 20).astype(np.float32)
    grad, hess = softmax_objective(library, 3)(labels, scores)
    for result in (grad, hess):
        assert result.dtype == dtype and result.strides == scores.strides
    p = nc.softmax(scores.astype(np.float64))
    factor = {"xgboost": 2.0, "lightgbm": 1.5}[library]
    np.testing.assert_allclose(hess, factor * p * (1 - p), rtol=1e-5)
    np.testing.assert_allclose(grad, p - np.eye(3)[labels.astype(int)], rtol=1e-5)


def test_errors():
    scores = np.zeros((2, 3))
    objective = softmax_objective("lightgbm", 3)
    with pytest.raises(ValueError, match=r"label\[1\] = 0.5"):
        objective(np.array([0, 0.5]), scores)
    with pytest.raises(ValueError, match=r"label\[1\] = nan"):
        objective(np.array([0, np.nan]), scores)
    with pytest.raises(ValueError, match="not a class index"):
        objective(np.array([0, 3.0]), scores)
    with pytest.raises(ValueError, match="num_class"):
        objective(np.array([0, 1.0]), scores.ravel())
    with pytest.raises(ValueError, match="library = 'catboost'"):
        softmax_objective("catboost", 3)
    with pytest.raises(ValueError, match="n_classes = 1"):
        softmax_metric("xgboost", 1)
    with pytest.raises(TypeError, match=r"n_classes = 2\.0"):
        softmax_metric("xgboost", 2.0)
    with pytest.raises(TypeError, match=r"n_classes = array.*expected an integer"):
        softmax_metric("xgboost", np.array([3, 4]))
    with pytest.raises(ValueError, match="library = "):
        softmax_objective(["lightgbm"], 3)
