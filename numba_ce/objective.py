"""Multinomial logistic regression: what `scipy.optimize.minimize` minimises."""

from __future__ import annotations

from typing import Any

import numpy as np

from numba_ce._foreign import readable
from numba_ce._quiet import quiet
from numba_ce._validate import Array, as_array, check_integer, check_number, shown
from numba_ce.linear import Gradients, Layer, check_matrix, make_layer, run
from numba_ce.options import HostArray, LossOptions
from numba_ce.weights import stand_in


class MultinomialObjective:
    """What `multinomial_objective` returns: call it with a vector for the value and its gradient.

    Attributes
    ----------
    x0 : ndarray
        Zeros, to start from.
    """

    def __init__(self, layer: Layer, l2: float) -> None:
        """From a checked layer, whose `weight` is only a shape."""
        self._layer, self._l2 = layer, l2
        n_classes, n_features = layer.problem.logits.shape[1], layer.hidden.shape[1]
        self._shape = (n_classes, n_features + 1)
        self.x0 = np.zeros(n_classes * (n_features + 1))

    def __reduce__(self) -> tuple[Any, ...]:
        """By the arguments: a layer holds a module, and logits without their memory."""
        layer, state = self._layer, {"x0": self.x0}
        y, sample_weight = layer.problem.targets, layer.problem.sample_weight
        return _again, (layer.hidden, y, self._shape[0], self._l2, sample_weight), state

    def __repr__(self) -> str:
        """The arguments, arrays by their shapes."""
        hidden, problem = self._layer.hidden, self._layer.problem
        arrays = {"X": hidden, "y": problem.targets, "sample_weight": problem.sample_weight}
        X, y, sample_weight = (
            f"{name}=" + ("None" if a is None else f"<{a.dtype} {a.shape}>")
            for name, a in arrays.items()
        )
        return f"MultinomialObjective({X}, {y}, {self._shape[0]}, l2={self._l2}, {sample_weight})"

    @quiet
    def unpack(self, x: Any) -> tuple[Array, Array]:
        """`coef` of shape (C, D) and `intercept` of shape (C,), as scikit-learn names them."""
        array, size = as_array(x, "x"), self._shape[0] * self._shape[1]
        if array.dtype.kind not in "iuf":
            raise TypeError(f"x has dtype {array.dtype}: expected real numbers")
        if array.size != size:
            raise ValueError(f"x has shape {array.shape}: expected ({size},)")
        matrix = array.astype(np.float64, copy=False).reshape(self._shape)
        return matrix[:, :-1], matrix[:, -1]

    @quiet
    def __call__(self, x: Any) -> tuple[float, Array]:
        """The objective and its gradient at `x`."""
        coef, intercept = self.unpack(x)
        dtype = self._layer.problem.logits.dtype
        layer = self._layer._replace(
            weight=np.asarray(coef, dtype), bias=np.asarray(intercept, dtype)
        )
        gradients = Gradients(layer, of_hidden=False)
        loss = float(run(layer, gradients))
        grad = np.empty(self._shape)
        grad[:, :-1], grad[:, -1] = gradients.weight, gradients.bias
        if self._l2:
            loss += 0.5 * self._l2 * float(np.vdot(coef, coef))
            grad[:, :-1] += self._l2 * coef
        return loss, grad.ravel()


def _again(X: Any, y: Any, n_classes: int, l2: float, sample_weight: Any) -> MultinomialObjective:
    return multinomial_objective(X, y, n_classes, l2=l2, sample_weight=sample_weight)


@quiet
def multinomial_objective(
    X: HostArray,
    y: HostArray,
    n_classes: int,
    *,
    l2: float = 0.0,
    sample_weight: HostArray | None = None,
) -> MultinomialObjective:
    """The objective of multinomial logistic regression, for ``scipy.optimize.minimize(jac=True)``.

    ``mean of the losses of X @ coef.T + intercept  +  l2 / 2 * sum(coef**2)``, the mean weighted by
    `sample_weight`. The intercept is not penalised.

    Parameters
    ----------
    X : array_like of shape (N, D)
        Features, float32 or float64.
    y : array_like of shape (N,)
        Class indices.
    n_classes : int
        C, at least 1.
    l2 : float
        Strength of the penalty. scikit-learn's `LogisticRegression(C=c)` minimises the same
        function for ``l2 = 1 / (c * N)``, with the sum of `sample_weight` in the place of N.
    sample_weight : array_like of shape (N,), optional
        One float for each row.

    Returns
    -------
    MultinomialObjective
        A function of a vector of C * (D + 1) numbers: for each class its coefficients and its
        intercept. Its attribute `x0` is a vector to start from; `unpack` gives coefficients and
        intercept of a solution.

    Raises
    ------
    ValueError, TypeError
        As `linear_cross_entropy`.

    Notes
    -----
    Hastie, Tibshirani & Friedman, "The Elements of Statistical Learning" (2009), section 4.4.

    L-BFGS-B ends where the value no longer changes in float64, before the gradient is 0. Largest
    difference from `LogisticRegression` at tight tolerances: 7.5e-8 in `coef` and 8.9e-7 in
    `intercept` on the digits; 4.2e-6 and 3.2e-5 for N = 20000, D = 64, C = 500 (gtol = 1e-9,
    ftol = 0), 9.5e-8 and 9.0e-7 after one Newton step more, by conjugate gradients on
    differences of this gradient, and 1.9e-9 and 1.4e-8 after three.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.optimize import minimize
    >>> from numba_ce import multinomial_objective
    >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), [0, 0, 1, 1]
    >>> objective = multinomial_objective(X, y, 2, l2=0.1)
    >>> solution = minimize(objective, objective.x0, jac=True, method="L-BFGS-B")
    >>> coef, intercept = objective.unpack(solution.x)
    >>> (X @ coef.T + intercept).argmax(axis=1)
    array([0, 0, 1, 1])
    """
    for value, name in ((X, "X"), (y, "y"), (sample_weight, "sample_weight")):
        if hasattr(readable(value, name), "__cuda_array_interface__"):
            raise TypeError(
                f"{name} ({type(value).__name__}) is on a CUDA device: expected it on the host, "
                "where SciPy is"
            )
    X = check_matrix(X, "X", "(N, D)")
    n_classes = check_integer(n_classes, "n_classes")
    if not 1 <= n_classes < 2**31:
        raise ValueError(f"n_classes = {shown(n_classes)}: expected at least 1 and below 2**31")
    l2 = check_number(l2, "l2", "l2 >= 0")
    if not 0.0 <= l2 < np.inf:
        raise ValueError(f"l2 = {l2}: expected a finite l2 >= 0")
    y = as_array(y, "y")
    if y.dtype.kind not in "iu":
        raise TypeError(f"y has dtype {y.dtype}: expected class indices of an integer dtype")
    if y.shape != X.shape[:1]:
        raise ValueError(f"y has shape {y.shape}: expected {X.shape[:1]}")
    bad = np.flatnonzero((y < 0) | (y >= n_classes))
    if bad.size:
        raise ValueError(
            f"y[{bad[0]}] = {y[bad[0]]} is not a class index: expected 0 <= y < {n_classes}"
        )
    coef = stand_in((n_classes, X.shape[1]), X.dtype)
    options = LossOptions(ignore_index=None)
    layer = make_layer(X, coef, y, None, None, sample_weight, options, "mean", None)
    return MultinomialObjective(layer, l2)
