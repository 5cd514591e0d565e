# <upstream API>.<our release>: downstream packages compare the first three numbers with upstream's.
__version__ = "0.8.5.1"
UPSTREAM_VERSION = "0.8.5"
