"""Methods: the LightningModules that are trained."""
