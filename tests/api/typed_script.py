"""What a user writes, for type checkers: a line ends in `# error` where they have to find one."""

from typing import Any, Literal, assert_type

import numpy as np

import numba_ce as nc

Array = np.ndarray[Any, np.dtype[Any]]
Scalar = np.floating[Any]


class OnDevice:
    """As of CuPy or torch."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        raise NotImplementedError


def good(z: Array, y: Array, device: OnDevice, untyped: Any) -> None:
    assert_type(nc.cross_entropy(z, y), Scalar)
    assert_type(nc.cross_entropy([[1.0, 2.0]], [0], reduction="sum", axis=1), Scalar)
    assert_type(nc.cross_entropy(z, y, reduction="none", ignore_index=None), Array)
    assert_type(nc.cross_entropy(device, y), Any)
    assert_type(nc.cross_entropy_and_grad(z, y, out=z, class_weight=[1, 2]), tuple[Scalar, Array])
    assert_type(nc.cross_entropy_and_grad(z, 0, reduction="none", softcap=3), tuple[Array, Array])
    assert_type(nc.cross_entropy_and_grad(device, device, out=device), tuple[Any, Any])
    assert_type(nc.cross_entropy_grad_and_hess(z, y, hess="xgboost"), tuple[Array, Array])
    assert_type(nc.linear_cross_entropy(z, z, y, reduction="none"), Array)
    assert_type(nc.row_stats(z).rank, None)
    assert_type(nc.linear_row_stats(z, z, y).loss, Array)
    assert_type(nc.row_stats(z, y).rank, Array)
    assert_type((nc.row_stats(z, y).rank < 5).mean(), Any)
    assert_type(nc.row_stats(untyped, y).lse.sum(), Any)
    assert_type(nc.softmax(z, axis=(0, 1)), Array)
    assert_type(nc.log_softmax(device), Any)
    with nc.use_backend(nc.get_backend()):
        nc.stream([z], y, reduction="sum", temperature=2)
    nc.loss_from_record(nc.row_record(z, y, class_offset=0, n_classes=3)).sum()


def either(z: Array, y: Array, reduction: Literal["mean", "none"]) -> Scalar | Array:
    return nc.cross_entropy(z, y, reduction=reduction)


def bad(z: Array, y: Array, device: OnDevice) -> None:
    nc.cross_entropy(z, y, reduction="men")  # error
    nc.cross_entropy_and_grad(z, y, reduction="men")  # error
    nc.linear_cross_entropy(z, z, y, reduction="men")  # error
    nc.linear_cross_entropy_and_grad(z, z, y, reduction="men")  # error
    nc.stream(z, y, reduction="men")  # error
    nc.cross_entropy_grad_and_hess(z, y, hess="xgb")  # error
    nc.set_backend("gpu")  # error
    nc.use_backend("gpu")  # error
    nc.cross_entropy(z, y, label_smothing=0.1)  # error
    nc.cross_entropy(z, y, softcap="30")  # error
    nc.cross_entropy(None, y)  # error
    nc.cross_entropy(z, y, out=z)  # error
    nc.softmax(z, axis=1.0)  # error
    nc.log_softmax(z, out=[0.0])  # error
    assert nc.row_stats(z).rank < 5  # error
    nc.row_stats(z, y, ignore_index="none")  # error
    nc.set_backend(nc.softmax(z))  # error
