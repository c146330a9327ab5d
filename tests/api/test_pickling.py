"""What functions return can be pickled and copied, alone and within what holds it."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import numba_ce as nc
from numba_ce.integrations.boosting import softmax_metric, softmax_objective

Z, Y = np.linspace(-1.0, 2.0, 12).reshape(3, 4), np.array([0, 3, 1])
H, V = np.linspace(-1.0, 1.0, 6).reshape(3, 2), np.linspace(0.0, 1.0, 8).reshape(4, 2)


def pickled(protocol):
    return lambda value: pickle.loads(pickle.dumps(value, protocol))


def by_joblib(value):
    joblib = pytest.importorskip("joblib", reason="needs joblib")
    from io import BytesIO

    file = BytesIO()
    joblib.dump(value, file)
    file.seek(0)
    return joblib.load(file)


WAYS = {
    "pickle": pickled(pickle.HIGHEST_PROTOCOL),
    "old pickle": pickled(0),
    "joblib": by_joblib,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
@pytest.mark.parametrize("make", [softmax_objective, softmax_metric])
def test_functions_for_boosting(make, library, way):
    function = make(library, 4)
    again = WAYS[way](function)
    assert again == function and repr(again) == f"{make.__name__}({library!r}, 4)"
    assert again.__name__ == function.__name__
    np.testing.assert_equal(again(Y, Z), function(Y, Z))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_estimators(library, way):
    module = pytest.importorskip(library, reason=f"needs {library}")
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    name, quiet = {
        "lightgbm": ("LGBMClassifier", {"verbosity": -1}),
        "xgboost": ("XGBClassifier", {"eval_metric": softmax_metric(library, 3)}),
    }[library]
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((60, 4)), np.arange(60) % 3
    model = getattr(module, name)(
        objective=softmax_objective(library, 3), n_estimators=3, n_jobs=1, **quiet
    ).fit(X, y)
    again = WAYS[way](model)
    assert again.get_params()["objective"] == softmax_objective(library, 3)
    scores = {"lightgbm": {"raw_score": True}, "xgboost": {"output_margin": True}}[library]
    np.testing.assert_array_equal(again.predict(X, **scores), model.predict(X, **scores))
    np.testing.assert_array_equal(again.fit(X, y).predict(X, **scores), model.predict(X, **scores))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_objective(way, dtype, weighted):
    weight = np.array([1.0, 0.5, 2.0]) if weighted else None
    objective = nc.multinomial_objective(H.astype(dtype), Y, 4, l2=0.5, sample_weight=weight)
    objective.x0 = np.linspace(-1, 1, 12)
    again = WAYS[way](objective)
    assert np.array_equal(again.x0, objective.x0)
    np.testing.assert_equal(again(again.x0), objective(objective.x0))
    np.testing.assert_equal(again.unpack(again.x0), objective.unpack(objective.x0))
    shown = "<float64 (3,)>" if weighted else "None"
    assert (
        repr(again)
        == repr(objective)
        == (
            f"MultinomialObjective(X=<{np.dtype(dtype)} (3, 2)>, y=<int64 (3,)>, 4, l2=0.5, "
            f"sample_weight={shown})"
        )
    )


def test_a_copy_shares_the_features_and_a_deep_copy_does_not():
    X = H.copy()
    objective = nc.multinomial_objective(X, Y, 4)
    before = objective(objective.x0 + 1)
    shared, own = copy.copy(objective), copy.deepcopy(objective)
    X *= 2
    np.testing.assert_equal(shared(objective.x0 + 1), objective(objective.x0 + 1))
    np.testing.assert_equal(own(objective.x0 + 1), before)


def test_a_pickle_is_as_large_as_the_arguments():
    """Not as the logits, which no objective has."""
    X, y = np.zeros((1000, 2)), np.zeros(1000, np.int64)
    pickle_of = pickle.dumps(nc.multinomial_objective(X, y, 10_000))
    assert len(pickle_of) < 24_000 + 8 * 3 * 10_000 + 2_000


RESULTS = {
    "RowStats": lambda: nc.row_stats(Z, Y),
    "RowStats without targets": lambda: nc.row_stats(Z),
    "LinearGrad": lambda: nc.linear_cross_entropy_and_grad(H, V, Y, bias=np.ones(4)),
    "LinearGrad without bias": lambda: nc.linear_cross_entropy_and_grad(H, V, Y),
    "StreamResult": lambda: nc.stream(Z, Y, reduction="none"),
    "loss and gradient": lambda: nc.cross_entropy_and_grad(Z, Y),
    "record": lambda: nc.row_record(Z, Y, class_offset=0, n_classes=4),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RESULTS)
def test_results(name, way):
    result = RESULTS[name]()
    again = WAYS[way](result)
    assert type(again) is type(result)
    np.testing.assert_equal(again, result)


@pytest.mark.parametrize("name", [n for n in nc.__all__ if n[0].islower()])
def test_functions(name):
    function = getattr(nc, name)
    assert pickle.loads(pickle.dumps(function)) is function
