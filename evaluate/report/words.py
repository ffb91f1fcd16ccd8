"""Numbers as a reader takes them in: three digits and a suffix, percent, intervals, p-values; "–" for the unknown."""

from __future__ import annotations

import math

UNKNOWN = "–"


def short(x: float) -> str:
    """A number in three digits and a suffix: 1234 → 1.23k, 2.5e12 → 2.5T, 0.00012 → 0.00012."""
    if math.isnan(x):
        return UNKNOWN
    for size, suffix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size * 0.9995:
            return f"{x / size:.3g}{suffix}" if abs(x) < size * 999.5 else f"{x / size:.0f}{suffix}"
    return f"{x:.3g}"


def percent(value: float, low: float = math.nan, high: float = math.nan, sign: str = "") -> str:
    """`value` in percent with its interval, such as "71.2 [66.0, 76.1]".

    Args:
        value: a share.
        low: lower end of its interval; NaN leaves the interval out.
        high: upper end.
        sign: "+" to write the sign of positive numbers.
    """
    if math.isnan(value):
        return UNKNOWN
    said = [f"{100 * x + 0.0:{sign}.1f}".replace("-0.0", "0.0") for x in (value, low, high)]
    return said[0] if math.isnan(low) else f"{said[0]} [{said[1]}, {said[2]}]"


def times(value: float, low: float, high: float) -> str:
    """A ratio with its interval; an end that is not known is open."""
    if math.isnan(value):
        return UNKNOWN
    return f"{short(value)} [{short(low)}, {short(high)}]"


def p_value(p: float) -> str:
    """Two significant digits, from 0.0001 upwards."""
    if math.isnan(p):
        return UNKNOWN
    return "<0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.2f}"
