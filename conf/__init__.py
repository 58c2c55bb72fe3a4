"""The configuration tree; installed as the package fakedet.conf."""
