"""Figures about masks and images, as sums that can be added up over shards before they become a figure."""
