"""A page to drop a picture on."""
