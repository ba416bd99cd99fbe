import utils  # noqa: F401 - it sets how threads wait, which must come before PyTorch is imported
