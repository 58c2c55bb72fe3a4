"""A user's own package: nothing of it is known to fakedet."""
