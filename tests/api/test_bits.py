"""What counts as the same bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from bits import assert_same_bits


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=str)
def test_a_nan_is_a_nan_and_numbers_have_their_bits(dtype):
    one = np.array([np.nan, 0.0, 1.0], dtype)
    other = np.array([-np.nan, 0.0, 1.0], dtype)
    assert one.tobytes() != other.tobytes()
    assert_same_bits(one, other.astype(other.dtype.newbyteorder()))
    different = [1.0, 0.0, 1.0], [np.nan, -0.0, 1.0], [np.nan, 0.0, 1.01], [np.nan, 0.0, np.nan]
    for values in different:
        with pytest.raises(AssertionError):
            assert_same_bits((one,), (np.array(values, dtype),))
    with pytest.raises(AssertionError):
        assert_same_bits(one, one[None])
    with pytest.raises(AssertionError):
        assert_same_bits(one, one.astype(np.longdouble))
