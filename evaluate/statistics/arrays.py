"""Vectors of numbers, checked to be what they should be."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]


def finite(values: npt.ArrayLike, name: str) -> Array:
    """`values` as a vector; a ValueError that names them if they are none, or not all finite numbers."""
    x = np.asarray(values, dtype=float)
    x = x[None] if x.ndim == 0 else x
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"{name}: need a non-empty list of finite numbers, got shape {x.shape}: {x}")
    return x


def probabilities(values: npt.ArrayLike, name: str) -> Array:
    """`values` as a vector; a ValueError that names them unless they are numbers in [0, 1]."""
    x = finite(values, name)
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"{name} must lie in [0, 1], got {x.min():g} to {x.max():g}")
    return x
