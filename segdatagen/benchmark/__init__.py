"""Measurements of `segdatagen bench`, each beside a reference in the same run.

Every measurement returns figures by name; `record` keeps them as a row. Nothing here is a test.
"""
