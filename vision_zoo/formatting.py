"""Figures as people read them."""


def metric_text(name: str, value: float) -> str:
    """A metric for people: shares in per cent with two decimals, losses with four."""
    if name.endswith(("accuracy", "f1", "calibration_error", "precision", "recall", "known")):
        return f"{100 * value:.2f} %"
    return f"{value:.3g}" if name == "lr" else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
