"""fakedet: detect AI-generated images by the natural traces that real photographs share."""

__version__ = "0.1.0"
