"""Records: what a part of a row is summed up by, so that rows may be cut into shards.

A record is nine float64 numbers, `FIELDS`. With k the class left out (the target; for probabilities
the largest logit of the shard), z after softcap, and T the temperature:

    row_max = m = max over j != k of z_j          q_target = s q_k
    sum_exp = sum over j != k of exp((z_j - m)/T) q_rest   = s sum over j != k of q_j
    target_logit = t = z_k, -inf if not here      a_rest   = s sum over j != k of q_j (m - z_j) / T
    z_weight = s v z_loss, in one of the shards   temperature, n_classes (of the whole row)

Merging and finishing are plain NumPy: Dask chunks, MPI ranks and memory maps need no kernel for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

import numpy as np

from numba_ce._backend import backend
from numba_ce._quiet import quiet
from numba_ce._validate import (
    Array,
    Problem,
    as_array,
    check_integer,
    check_logits,
    check_out,
    classes_last,
    make_problem,
    on_device,
    shown,
)
from numba_ce.options import AnyArray, HostArray, Keywords, check_options, documented
from numba_ce.reference import finish, row_loss, times
from numba_ce.results import fresh_output, inputs, returned
from numba_ce.weights import check_indices

FIELDS = (
    "row_max",
    "sum_exp",
    "target_logit",
    "q_target",
    "q_rest",
    "a_rest",
    "z_weight",
    "temperature",
    "n_classes",
)
N_FIELDS = len(FIELDS)
# Those from q_target to z_weight are linear in the weight of the row
_LINEAR = slice(3, 7)
# A record holds their number as a float64
MOST_CLASSES = 2**53


def _check_record(record: Any, name: str) -> Array:
    array = as_array(record, name)
    if on_device(array):
        raise TypeError(f"{name} is on a CUDA device: expected a host array, from row_record")
    if array.dtype.kind != "f" or array.dtype.itemsize != 8:
        raise TypeError(f"{name} has dtype {array.dtype}: expected float64, from row_record")
    if array.ndim == 0 or array.shape[-1] != N_FIELDS:
        raise ValueError(f"{name} has shape {array.shape}: expected (..., {N_FIELDS})")
    return array


def _check_offset(offset: int, here: int, n_classes: int) -> None:
    if not 0 <= offset <= n_classes - here:
        raise ValueError(
            f"class_offset = {shown(offset)}: a shard of {here} of {n_classes} classes starts "
            f"between 0 and {n_classes - here}"
        )


@quiet
def scaled(record: Array, weight: Any) -> Array:
    """The records of rows whose losses count `weight` times; 0 times NaN is 0."""
    result = record.copy()
    result[..., _LINEAR] = times(np.asarray(weight)[..., None], record[..., _LINEAR])
    return result


def _check_targets(problem: Problem, n_classes: int) -> Array | None:
    """Which targets of a shard without classes are bad, None if none is."""
    if on_device(problem.targets):
        problem = replace(problem, targets=problem.targets.to_host())  # type: ignore[union-attr]
    return check_indices(problem, n_classes)


@documented
@quiet
def row_record(
    logits: AnyArray,
    targets: AnyArray,
    *,
    class_offset: int,
    n_classes: int,
    axis: int = -1,
    **options: Unpack[Keywords],
) -> Array:
    """The record of each row, from the logits of some of its classes.

    ``(m, S, t)``: maximum and sum of ``exp((z - m) / T)`` of all classes here but the target, the
    target's logit, and the sums that the options need. The options are the same for every shard.

    Parameters
    ----------
    logits : array_like
        The classes ``class_offset, class_offset + 1, ...`` of each row.
    targets : array_like
        Class indices counted over the whole row; or the probabilities of the classes here.
    class_offset : int
        The first class of this shard.
    n_classes : int
        Number of classes of the whole row.
    axis
    class_weight : array_like, optional
        The weights of the classes here.
    **options

    Returns
    -------
    ndarray of float64, shape (..., 9)
        One record for each row.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `cross_entropy`; also if the shard reaches beyond `n_classes`.

    Notes
    -----
    The merge is that of Milakov & Gimelshein, "Online normalizer calculation for softmax" (2018),
    with the target kept apart: docs/mathematics.md.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import loss_from_record, merge_records, row_record
    >>> logits = np.array([[1.0, 2.0, 3.0, 4.0]])
    >>> left = row_record(logits[:, :2], [3], class_offset=0, n_classes=4)
    >>> right = row_record(logits[:, 2:], [3], class_offset=2, n_classes=4)
    >>> loss_from_record(merge_records(left, right)).round(6)
    array([0.44019])
    """
    array, axis = check_logits(logits, axis)
    checked = check_options(options, "row_record")
    problem = make_problem(array, targets, axis, *checked, "none")
    n_classes = check_integer(n_classes, "n_classes")
    here = problem.logits.shape[-1]
    if not max(here, 1) <= n_classes <= MOST_CLASSES:
        raise ValueError(
            f"n_classes = {shown(n_classes)}: expected at least {max(here, 1)} and at most 2**53, "
            f"as many as the whole row has (this shard holds {here})"
        )
    class_offset = check_integer(class_offset, "class_offset")
    _check_offset(class_offset, here, n_classes)
    record = np.empty((*problem.logits.shape[:-1], N_FIELDS))
    if here == 0:
        bad = _check_targets(problem, n_classes)
        record[...] = (-np.inf, 0, -np.inf, 0, 0, 0, 0, problem.options.temperature, n_classes)
        if bad is not None:
            record[bad, 1] = np.nan
    elif record.size:
        backend(on_device(array)).run_row_record(problem, class_offset, n_classes, record)
    return record


@quiet
def merge_records(a: HostArray, b: HostArray) -> Array:
    """The record of the classes of two shards together.

    ``m = max(m_a, m_b)``, ``S = S_a exp((m_a - m) / T) + S_b exp((m_b - m) / T)``, and the sums of
    an option likewise. The order of the arguments does not matter, to the bit.

    Parameters
    ----------
    a, b : array_like of float64, shape (..., 9)
        From `row_record` or from this function; they broadcast.

    Returns
    -------
    ndarray of float64, shape (..., 9)
        One record for each row.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an array of records.

    Notes
    -----
    Milakov & Gimelshein (2018), section 3; a part in which everything is masked is the identity.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import merge_records, row_record
    >>> a = row_record(np.array([1.0, 2.0]), 0, class_offset=0, n_classes=4)
    >>> b = row_record(np.array([2.0, 2.0]), 0, class_offset=2, n_classes=4)
    >>> merge_records(a, b)[:3]
    array([2., 3., 1.])
    """
    a, b = _check_record(a, "a"), _check_record(b, "b")
    try:
        a, b = np.broadcast_arrays(a, b)
    except ValueError:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}: they do not broadcast") from None
    m_a, s_a, t_a, k_a, q_a, r_a, z_a, temp_a, n_a = np.moveaxis(a, -1, 0)
    m_b, s_b, t_b, k_b, q_b, r_b, z_b, temp_b, n_b = np.moveaxis(b, -1, 0)
    temperature = np.fmax(temp_a, temp_b)
    m, t, loser = np.maximum(m_a, m_b), np.maximum(t_a, t_b), np.minimum(t_a, t_b)
    # With probabilities each side leaves out its own largest logit: the smaller one of the two
    # joins the others. With class indices only one side has one.
    joins = loser > -np.inf
    m = np.where(joins, np.maximum(m, loser), m)
    first = t_a == t
    tie = joins & (t_a == t_b)
    k_loser = np.where(first, k_b, k_a)
    k_winner = np.where(first, k_a, k_b)
    # In a tie either may stay; the choice must not depend on the order
    k_winner = np.where(tie, np.maximum(k_a, k_b), k_winner)
    k_loser = np.where(tie, np.minimum(k_a, k_b), k_loser)

    def scaled(s: Array, m_part: Array) -> Array:
        return np.where(s == 0.0, 0.0, s * np.exp((m_part - m) / temperature))

    def lifted(q: Array, r: Array, m_part: Array) -> Array:
        below = np.where(m_part == m, 0.0, np.where(np.isinf(m_part), 0.0, m - m_part))
        return r + np.where(q == 0.0, 0.0, q * below / temperature)

    # A sum over masked classes only (m = -inf) holds their infinities and no finite part
    s = scaled(s_a, m_a) + scaled(s_b, m_b)
    r = lifted(q_a, r_a, m_a) + lifted(q_b, r_b, m_b)
    s = s + np.where(joins, np.exp((loser - m) / temperature), 0.0)
    r = r + np.where(joins & (k_loser != 0.0), k_loser * (m - loser) / temperature, 0.0)
    q = (q_a + q_b) + np.where(joins, k_loser, 0.0)
    k = np.where(joins, k_winner, k_a + k_b)
    n_classes = np.fmax(n_a, n_b)
    return np.stack([m, s, t, k, q, r, z_a + z_b, temperature, n_classes], axis=-1)


@quiet
def loss_from_record(record: HostArray) -> Array:
    """The loss of each row, from the record of all its classes.

    With ``d = (t - m) / T``: ``log1p(S exp(-d))`` if d >= 0, else ``-d + log(S + exp(d))``, and
    what the options add.

    Parameters
    ----------
    record : array_like of float64, shape (..., 9)
        The merged record of all shards.

    Returns
    -------
    ndarray of float64, shape (...)
        One loss for each row.

    Raises
    ------
    TypeError, ValueError
        If the argument is not an array of records.

    Notes
    -----
    docs/mathematics.md, "From the record to the loss".

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import loss_from_record, row_record
    >>> record = row_record(np.zeros((2, 8)), [1, 2], class_offset=0, n_classes=8)
    >>> loss_from_record(record) == np.log(8)
    array([ True,  True])
    """
    record = _check_record(record, "record")
    m, s, t, k, q, a, z_weight, temperature, _ = np.moveaxis(record, -1, 0)
    row = finish(m, s, t, temperature)
    return np.asarray(row_loss(k, row, q, a, z_weight))


@documented
@quiet
def grad_from_record(
    logits: AnyArray,
    targets: AnyArray,
    record: HostArray,
    *,
    class_offset: int,
    axis: int = -1,
    out: Any = None,
    **options: Unpack[Keywords],
) -> Array:
    """The gradient of the classes of one shard, from the record of the whole row.

    ``Q p - q`` (`cross_entropy_and_grad`) for the sum of the losses of the rows. The options are
    those with which the records were made.

    Parameters
    ----------
    logits
    targets
    record : array_like of float64, shape (..., 9)
        The merged record of all shards.
    class_offset
    axis
    out
    **options

    Returns
    -------
    ndarray
        `out`, or a fresh array of the shape and dtype of `logits`.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As `row_record`; also if `record` does not have one record per row.

    Notes
    -----
    docs/mathematics.md, "From the record to the gradient".

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ce import grad_from_record, row_record
    >>> logits = np.zeros((1, 4))
    >>> record = row_record(logits, [0], class_offset=0, n_classes=4)
    >>> grad_from_record(logits[:, :2], [0], record, class_offset=0)
    array([[-0.75,  0.25]])
    """
    array, axis = check_logits(logits, axis)
    checked = check_options(options, "grad_from_record")
    problem = make_problem(array, targets, axis, *checked, "none")
    record, class_offset = (
        _check_record(record, "record"),
        check_integer(class_offset, "class_offset"),
    )
    rows = problem.logits.shape[:-1]
    if record.shape != (*rows, N_FIELDS):
        raise ValueError(f"record has shape {record.shape}: expected {(*rows, N_FIELDS)}")
    if out is None:
        grad = fresh_output(array)
    else:
        others = inputs(problem, options.get("class_weight"))
        grad = check_out(out, array, (*others, (record, "record")))
    if record.size:
        largest = record[..., 8].max()
        if not 1 <= largest <= MOST_CLASSES:
            raise ValueError(f"record names {largest} classes: expected a record from row_record")
        made_with, temperature = record[..., 7], problem.options.temperature
        if (other := made_with != temperature).any():
            raise ValueError(
                f"temperature = {temperature}: expected {made_with[other].flat[0]}, with "
                "which the record was made"
            )
        n_classes = int(largest)
        _check_offset(class_offset, problem.logits.shape[-1], n_classes)
        if problem.logits.shape[-1] == 0:
            _check_targets(problem, n_classes)
        else:
            record = np.ascontiguousarray(record, np.float64)
            moved = classes_last(grad, axis)
            backend(on_device(array)).run_grad_from_record(problem, record, class_offset, moved)
    return returned(grad) if out is None else out  # type: ignore[no-any-return]
