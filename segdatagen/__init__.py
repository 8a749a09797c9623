"""segdatagen turns a labelled segmentation data set into a larger, better balanced one.

It holds the version alone: what is used is imported from its modules, so that no command pays for another.
"""

__version__ = "0.1.0"
