"""Data: manifests, decoding, sampling, augmentation, the LightningDataModule and the demo data."""
