"""segdatagen turns a labelled segmentation data set into a larger, better balanced one."""

__version__ = "0.1.0"
