"""Stages: a batch of rows in, columns out.

They know nothing of Ray, of storage or of quotas.
"""
