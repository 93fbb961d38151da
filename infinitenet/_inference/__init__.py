"""Inference, given kernel matrices; and its thin entry points, given networks."""
