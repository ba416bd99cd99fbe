"""Scores of predicted intrinsics.

The modules named after an intrinsic are pure float64 functions on arrays, without files. Each takes one image (or one
set of angles) and raises ValueError, in one line, when its number would mean nothing. Aggregation over images is the
caller's business, because published evaluators disagree about it.
"""
