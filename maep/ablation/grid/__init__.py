"""A sweep as its file describes it: axes, points, and halving."""
