"""Figures about masks and images, as sums that can be added up over shards before they become a figure.

They know nothing of runs, of storage or of where masks and images come from.
"""
