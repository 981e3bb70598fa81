"""Numbers as files of label tools show them."""


def decimal(value: float, places: int = 4) -> str:
    """``value`` with ``places`` decimals at most and no zeros at the end: 12, 0.5, 3.1416."""
    text = f"{value:.{places}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
