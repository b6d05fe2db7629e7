"""The control API's own routes: one file per noun, each a function that makes a router over the Host.

FastAPI reads the annotations of routes while it makes them, so these files do without `from __future__ import
annotations`.
"""
