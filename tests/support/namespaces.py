"""Namespaces for daemons that clients are tested with: one for anyone, one for the boss alone."""

HUB = """\
[[hub.namespace]]
name = "public"
subscribe = "anyone"
publish = "anyone"
presence = "anyone"
history = "anyone"
history_size = 100
join_leave = true

[[hub.namespace]]
name = "staff"

[[hub.token]]
name = "boss"
secret = "of-the-boss-alone"
subscribe = ["staff:*"]
publish = ["staff:*"]
"""
