"""Array types that cross module borders, and the few operations on them that several stages share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Shape (n, 3), int64, x y z.
Voxels = npt.NDArray[np.int64]
# Shape (n, channels), the volume's own dtype.
Labels = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]
