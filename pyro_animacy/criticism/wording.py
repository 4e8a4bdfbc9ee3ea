"""How numbers are said in a report."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float | None) -> str:
    """Three significant digits, thousands apart; a dash for nothing."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.2e}".replace("-", "−")
    exponent = int(f"{value:.2e}".split("e")[1])  # after rounding: 99.96 is 100
    digits = max(0, 2 - exponent)
    return f"{value:,.{digits}f}".replace("-", "−")


def nats(value: float | None) -> str:
    """A log density to a hundredth of a nat; a dash for nothing, three digits of a large one."""
    if value is None or not math.isfinite(value) or abs(value) >= 1e4:
        return number(value)
    return f"{value:,.2f}".replace("-", "−")


def probability(value: float, draws: int) -> str:
    """A tail probability with no more certainty than the number of draws gives."""
    if math.isnan(value):
        return "–"
    if value == 0:
        return f"<{1 / draws:.2g}"
    return f">{1 - 1 / draws:.2g}" if value == 1 and draws > 1 else f"{value:.2f}"


def percent(share: float) -> str:
    """Two digits of a small share, so that it is not said to be none."""
    digits = f"{100 * share:.2g}" if 0 < share < 0.01 else f"{100 * share:.0f}"
    return f"{digits}\u00a0%"


def times(ratio: float) -> str:
    """How a positive `ratio` to the recording is said."""
    if ratio >= 2 or ratio <= 0.5:
        return f"{brief(ratio)} times as large"
    change = round(100 * (ratio - 1))
    return f"{abs(change)}\u00a0% {'larger' if change > 0 else 'smaller'}"


def with_error(value: float, error: float) -> str:
    """A log density and its standard error, to the same digit unless the error has none there."""
    said = f"{error:.1g}" if 0 < error < 0.005 else nats(error)
    return f"{nats(value)}\u00a0±\u00a0{said}"


def plus_minus(value: float, error: float) -> str:
    """A difference with its sign and its standard error."""
    return f"{'+' if value > 0 else ''}{with_error(value, error)}"


def brief(value: float) -> str:
    """Three significant digits, without zeros at their end."""
    digits = number(value)
    if "." in digits and "e" not in digits:
        digits = digits.rstrip("0").rstrip(".")
    return digits


def seconds(value: float) -> str:
    """A duration."""
    return f"{brief(value)}\u00a0s"


def signed(value: float) -> str:
    """A number with its sign."""
    return f"{value:+g}".replace("-", "−")


def body_name(name: object) -> str:
    """How a body is called: "body 0" where a file only numbers it."""
    return f"body {name}" if str(name).isdigit() else str(name)


def listed(names: Sequence[str], of: int, kind: str) -> str:
    """Names of bodies, or "every body" where they are all of several."""
    if len(names) == of > 1:
        return f"every {kind}"
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def counted(count: int, total: int, noun: str) -> str:
    """How many of the things called `noun` in the plural: none, all, or a share of them."""
    if total == 1:
        one = noun.removesuffix("es" if noun.endswith("ches") else "s")
        return f"{'none' if count == 0 else 'all'} of 1 {one}"
    if count in (0, total):
        return f"{'none of the' if count == 0 else 'all'} {total:,} {noun}"
    few = total <= 100 or round(100 * count / total) in (0, 100)
    said = f"{count:,}" if few else percent(count / total)
    return f"{said} of {total:,} {noun}"


def per_unit(units: str) -> str:
    """Units whose name is in words: "rad/data units" is rad per data unit."""
    return units.replace("/data units", " per data unit").replace("data units/", "data units per ")


def tick(value: float, _: float = 0) -> str:
    """The label of a tick: in full unless very large, so that an axis needs no common factor."""
    return number(value) if abs(value) >= 1e5 else f"{value:g}".replace("-", "−")
