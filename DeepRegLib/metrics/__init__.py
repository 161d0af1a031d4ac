"""Measures of a registration: overlap, landmarks, regularity, similarity, and the quality card."""
