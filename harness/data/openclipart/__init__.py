"""Debian's package `openclipart-svg` as training data and evaluation sets. None of its contents are in this package."""
