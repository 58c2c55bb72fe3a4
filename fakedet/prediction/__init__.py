"""A statement about single images: what to look at, what to say, and where to write it."""
