"""Servers: what answers over HTTP. `perspective` speaks the protocol of Google's Perspective API with a scorer of ours."""
