"""Diffusion networks and their samplers: tensors in, tensors out.

Nothing here knows of Ray, of storage or of quotas. The modules import torch when they are imported, so whoever wants a
quick start imports them late.
"""
