"""Path tracing for whatever has a TCP connection to its peer. Begin with path.py, then tracer.py."""
