"""Former name of `utils.labels.teachers`."""

from utils.labels.teachers import Teacher

__all__ = ["Teacher"]
