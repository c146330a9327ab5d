"""What keeps `numpy.seterr` of the caller and the public functions out of each other's way."""

from __future__ import annotations

import numpy as np

# A decorator: infinities and NaN are results of this package, not accidents. Threads may be in it
# at once, and it within itself. The caller's code, as a callback, is called outside
quiet = np.errstate(all="ignore")
