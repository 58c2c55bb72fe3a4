"""Encoders, frontends, heads, trace destroyers: the parts a method is wired from."""
