"""What cannot be measured on test images, and why, in words."""

from __future__ import annotations

from hrbench.metrics.words import counted

__all__ = ["left_open"]


def left_open(good: int, defective: int, unmasked: int) -> str:
    """Say what stays open without masks, defects or good images; "" if nothing does.

    Parameters
    ----------
    good, defective, unmasked : int
        Test images; those whose masks are unknown are among the defective ones.

    Examples
    --------
    >>> left_open(20, 10, 0)
    ''
    >>> left_open(20, 0, 0)
    'No defective test image: false alarms are measured, what is found is not.'
    """
    texts = []
    if not defective:
        texts.append("No defective test image: false alarms are measured, what is found is not.")
    elif unmasked == defective:
        whose = (
            "The defective test image has no"
            if defective == 1
            else f"None of {defective:,} defective test images has a"
        )
        texts.append(
            f"{whose} mask: which images alarm is measured; where in them, and how small a defect is found, is not "
            "(AUPRO, recall, detection limits, IoU)."
        )
    elif unmasked:
        texts.append(
            f"The masks of {unmasked:,} of {counted(defective, 'defective test image')} are unknown: these count in "
            "image ROC-AUC and in which images alarm, and in nothing else."
        )
    if not good:
        texts.append("No good test image: false alarms, and what is found at equal ones, are not measured.")
    return " ".join(texts)
